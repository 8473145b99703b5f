"""`shoal inspect`: what a registry has under a name, and what of it this host and its swarm hold.

Reads the manifest and the configuration, and no layer. Changes nothing.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any, Final

from peer.cli.inspect_holdings import Holdings
from peer.cli.local import human
from peer.cli.local_client import DaemonError
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
    options = parser("inspect").parse_args(arguments)
    outcome = Outcome([])
    try:
        question = Question(options)
        # It loads an HTTP client: not for `--help`, nor for arguments that make no sense.
        from peer.cli.registry_questions import manifest_and_config

        manifest, config = manifest_and_config(question)
        holdings = Holdings(options, _asked(manifest))
        facts = _facts(question.reference, manifest, config, holdings)
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


def _asked(manifest: Manifest) -> list[str]:
    """The digests of what can be held: nobody needs to hold an empty layer."""
    return [layer.digest for layer in manifest.layers if layer.size_bytes]


def _facts(
    reference: Reference, manifest: Manifest, config: dict[str, Any], holdings: Holdings
) -> dict[str, Any]:
    layers = [_layer(layer, holdings) for layer in manifest.layers]
    swarm = None
    if holdings.swarm is not None:
        covered = sum(layer["swarm"]["covered_bytes"] for layer in layers if layer["swarm"])
        swarm = {**holdings.swarm, "covered_bytes": covered}
    return {
        "ok": True,
        "reference": str(reference),
        "digest": manifest.digest,
        "media_type": manifest.media_type,
        "artifact_type": manifest.artifact_type or manifest.config.media_type,
        "size_bytes": manifest.size_bytes,
        "held_bytes": None
        if holdings.held is None
        else sum(layer["held_bytes"] for layer in layers),
        "swarm": swarm,
        "swarm_unknown": holdings.unknown,
        "annotations": dict(manifest.annotations),
        "config": config,
        "layers": layers,
    }


def _layer(layer: Descriptor, holdings: Holdings) -> dict[str, Any]:
    path = next((text for name in FILEPATHS if (text := layer.annotations.get(name))), None)
    return {
        "path": path,
        "media_type": layer.media_type,
        "digest": layer.digest,
        "size_bytes": layer.size_bytes,
        "held_bytes": holdings.held_bytes(layer.digest),
        "swarm": holdings.of_swarm(layer.digest),
    }


def _print(facts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(facts) + "\n")
        return
    out = sys.stdout
    for name, value in (
        ("reference", facts["reference"]),
        ("digest", facts["digest"]),
        ("type", facts["artifact_type"]),
        ("size", human(facts["size_bytes"])),
        ("this node", _node(facts)),
        ("swarm", _swarm(facts)),
    ):
        out.write(f"{name:<16} {_plain(value)}\n")
    for group in ("descriptor", "config"):
        described = facts["config"].get(group)
        if isinstance(described, dict):
            for name, value in described.items():
                out.write(f"{_plain(name):<16} {_plain(value)}\n")
    heads = f"{'SIZE':>10} {'NODE':>6} {'SWARM':>6} {'HOSTS':>6} {'WHOLE':>6}"
    out.write(f"{heads} {'DIGEST':<20} FILE\n")
    for layer in facts["layers"]:
        size, swarm = layer["size_bytes"], layer["swarm"] or {}
        out.write(
            f"{human(size):>10} {_percent(layer['held_bytes'], size):>6} "
            f"{_percent(swarm.get('covered_bytes'), size):>6} {swarm.get('hosts', '-'):>6} "
            f"{swarm.get('whole_hosts', '-'):>6} {layer['digest'][:19]:<20} "
            f"{_plain(layer['path'] or layer['media_type'])}\n"
        )


def _node(facts: dict[str, Any]) -> str:
    held = facts["held_bytes"]
    if held is None:
        return "not known: no daemon runs here"
    return f"{_percent(held, facts['size_bytes'])} ({human(held)})"


def _swarm(facts: dict[str, Any]) -> str:
    swarm = facts["swarm"]
    if swarm is None:
        return f"not known: {facts['swarm_unknown']['detail']}"
    covered = _percent(swarm["covered_bytes"], facts["size_bytes"])
    hosts = swarm["hosts"]
    if hosts is None:
        return f"{covered}; too many layers to say on how many hosts"
    noun = "host" if hosts == 1 else "hosts"
    return f"{covered} on {hosts} {noun} ({swarm['whole_hosts']} whole)"


def _percent(part_bytes: int | None, size_bytes: int) -> str:
    """Rounded so that only all of it is 100 %, and only nothing 0 %."""
    if part_bytes is None or not size_bytes:
        return "-"
    percent = min(part_bytes, size_bytes) * 100 // size_bytes
    return "<1 %" if part_bytes and not percent else f"{percent} %"


def _plain(value: object) -> str:
    """Text of somebody else's, fit for a terminal."""
    text = value if isinstance(value, str) else json.dumps(value)
    return "".join(character for character in text if character.isprintable())[
        :VALUE_CHARACTERS_MAX
    ]
