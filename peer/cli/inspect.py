"""`shoal inspect`: what a registry has under a name, and what of it this host's daemon holds.

Reads the manifest and the configuration, and no layer. Changes nothing.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from peer.cli.local import human
from peer.cli.local_client import DaemonError, LocalClient, socket_path
from peer.cli.outcome import Outcome
from peer.cli.pull_options import Question, parser
from peer.shell.errors import DownloadError
from peer.shell.oci.layers import FILEPATHS
from peer.shell.oci.manifest import Descriptor, Manifest
from peer.shell.oci.reference import Reference
from shoal.wire.errors import UsageError

VALUE_CHARACTERS_MAX: Final = 200


def run(_name: str, arguments: Sequence[str]) -> int:
    """Runs `shoal inspect`; returns the exit code."""
    options = parser("inspect").parse_intermixed_args(arguments)
    outcome = Outcome([])
    try:
        question = Question(options)
        # It loads an HTTP client: not for `--help`, nor for arguments that make no sense.
        from peer.cli.registry_questions import manifest_and_config

        manifest, config = manifest_and_config(question)
        facts = _facts(question.reference, manifest, config, _held(options))
    except UsageError as error:
        outcome.fail("usage", str(error))
    except (DownloadError, DaemonError) as error:
        outcome.fail(str(error.reason), error.detail)
    else:
        _print(facts, as_json=options.json)
        return 0
    if options.json:
        told = {"ok": False, "reason": outcome.reason, "detail": outcome.detail}
        sys.stdout.write(json.dumps(told) + "\n")
    sys.stderr.write(f"shoal inspect: {outcome.reason}: {outcome.detail}\n")
    return outcome.exit_code


def _held(options: argparse.Namespace) -> dict[str, int] | None:
    """Bytes that the daemon holds, by digest; None without a daemon."""
    client = LocalClient(socket_path(options.endpoint))
    if not options.endpoint and not client.answers():
        return None
    held: dict[str, int] = {}
    for task in client.get_json("/v1/tasks")["tasks"]:
        if task["digest"]:
            held[task["digest"]] = max(held.get(task["digest"], 0), task["held_bytes"])
    return held


def _facts(
    reference: Reference,
    manifest: Manifest,
    config: dict[str, Any],
    held: Mapping[str, int] | None,
) -> dict[str, Any]:
    layers = [_layer(layer, held) for layer in manifest.layers]
    return {
        "ok": True,
        "reference": str(reference),
        "digest": manifest.digest,
        "media_type": manifest.media_type,
        "artifact_type": manifest.artifact_type or manifest.config.media_type,
        "size_bytes": manifest.size_bytes,
        "held_bytes": None if held is None else sum(layer["held_bytes"] for layer in layers),
        "annotations": dict(manifest.annotations),
        "config": config,
        "layers": layers,
    }


def _layer(layer: Descriptor, held: Mapping[str, int] | None) -> dict[str, Any]:
    path = next((text for name in FILEPATHS if (text := layer.annotations.get(name))), None)
    return {
        "path": path,
        "media_type": layer.media_type,
        "digest": layer.digest,
        "size_bytes": layer.size_bytes,
        "held_bytes": None if held is None else held.get(layer.digest, 0),
    }


def _print(facts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(facts) + "\n")
        return
    out = sys.stdout
    held = "no daemon runs here" if facts["held_bytes"] is None else human(facts["held_bytes"])
    for name, value in (
        ("reference", facts["reference"]),
        ("digest", facts["digest"]),
        ("type", facts["artifact_type"]),
        ("size", human(facts["size_bytes"])),
        ("held here", held),
    ):
        out.write(f"{name:<16} {_plain(value)}\n")
    for group in ("descriptor", "config"):
        described = facts["config"].get(group)
        if isinstance(described, dict):
            for name, value in described.items():
                out.write(f"{_plain(name):<16} {_plain(value)}\n")
    out.write(f"{'SIZE':>10} {'HELD':>10} {'DIGEST':<20} FILE\n")
    for layer in facts["layers"]:
        held = "-" if layer["held_bytes"] is None else human(layer["held_bytes"])
        what = layer["path"] or layer["media_type"]
        out.write(
            f"{human(layer['size_bytes']):>10} {held:>10} {layer['digest'][:19]:<20} "
            f"{_plain(what)}\n"
        )


def _plain(value: object) -> str:
    """Text of somebody else's, fit for a terminal."""
    text = value if isinstance(value, str) else json.dumps(value)
    return "".join(character for character in text if character.isprintable())[
        :VALUE_CHARACTERS_MAX
    ]
