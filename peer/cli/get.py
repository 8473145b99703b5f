"""`shoal get`: downloads files through the node's daemon, or by itself where there is none.

Chooses the way, follows the events, and says at the end what came of it. Leaves the whole verified
file or none. Imports no library before it is needed: a small file is a matter of milliseconds.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from peer.cli.get_options import UsageProblem, display, parser, request_of
from peer.cli.local_client import DaemonError, LocalClient, socket_path
from peer.cli.outcome import FileOutcome, Outcome
from peer.cli.progress import Bar

DAEMON_GRACE_S: Final = 10.0
"""A daemon that is this late to report a timeout hangs."""


def run(_name: str, arguments: Sequence[str]) -> int:
    """Runs `shoal get`; returns the exit code."""
    options = parser().parse_intermixed_args(arguments)
    try:
        body, outputs = request_of(options)
    except UsageProblem as problem:
        return _finish(options, _usage(options, str(problem)))
    files = [
        FileOutcome(display(url), "-" if target is None else str(target))
        for url, target in zip(options.urls, outputs, strict=True)
    ]
    outcome = Outcome(files)
    began = time.monotonic()
    try:
        _download(options, body, outputs, outcome)
    except DaemonError as error:
        outcome.fail(error.reason, error.detail)
    except KeyboardInterrupt:
        outcome.fail("interrupted", _how_to_resume(outcome))
    except BrokenPipeError:
        outcome.fail("broken-pipe", "nobody reads the output any longer")
        _silence_stdout()
    outcome.seconds = time.monotonic() - began
    return _finish(options, outcome)


def _usage(options: argparse.Namespace, problem: str) -> Outcome:
    outcome = Outcome([FileOutcome(display(url), "") for url in options.urls])
    outcome.fail("usage", problem)
    return outcome


def _how_to_resume(outcome: Outcome) -> str:
    if outcome.files[0].output == "-":
        return "stopped before the end of the content"
    share = ""
    if outcome.size_bytes:
        share = f" at {100 * outcome.received_bytes // outcome.size_bytes} %"
    return f"stopped{share}; run the same command again to resume"


def _silence_stdout() -> None:
    """Python flushes stdout at exit, which would fail once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _finish(options: argparse.Namespace, outcome: Outcome) -> int:
    # With -O - stdout is the content's.
    stream = sys.stderr if options.output == "-" else sys.stdout
    if options.json:
        stream.write(json.dumps(outcome.as_json()) + "\n")
    elif outcome.ok and not options.quiet and options.output != "-":
        for each in outcome.files:
            stream.write(f"{each.output}  {each.digest}\n")
    if not outcome.ok:
        sys.stderr.write(f"shoal get: {outcome.reason}: {outcome.detail}\n")
    return outcome.exit_code


def _download(
    options: argparse.Namespace,
    body: dict[str, Any],
    outputs: list[Path | None],
    outcome: Outcome,
) -> None:
    deadline_s = None
    if body["timeout_ms"]:
        deadline_s = time.monotonic() + body["timeout_ms"] / 1000 + DAEMON_GRACE_S
    client = LocalClient(socket_path(options.endpoint), deadline_s)
    title = outcome.files[0].url.rpartition("/")[2] or "download"
    wanted = not (options.no_progress or options.quiet or options.json)
    with Bar(title, outcome, wanted=wanted, verbose=options.verbose) as bar:
        if is_alone(client, options):
            from peer.cli.alone import download_alone

            download_alone(options, body, outputs, outcome, bar)
        elif outputs == [None]:
            _stream_from_daemon(client, body, outcome)
        else:
            let_daemon_download(client, options, body, outputs, outcome, bar)


def is_alone(client: LocalClient, options: argparse.Namespace) -> bool:
    """Whether this process downloads by itself: there is no daemon, or a swarm was named."""
    return bool(options.scheduler) or not (options.endpoint or client.answers())


def let_daemon_download(
    client: LocalClient,
    options: argparse.Namespace,
    body: dict[str, Any],
    outputs: list[Path | None],
    outcome: Outcome,
    bar: Bar,
) -> None:
    """One download through the daemon, its events taken; outputs that the daemon can't write are
    written here. Raises DaemonError."""
    if options.transfer_from_dfdaemon:
        body["outputs"] = [None] * len(outputs)
    before = [_identity(target) for target in outputs]
    _follow(client, body, outcome, bar)
    if not outcome.ok and body["outputs"][0] and outcome.reason.startswith("disk-"):
        # A daemon in a sandbox of its own cannot write where this user can. The content is in
        # its store by now, or the second answer tells what is really wrong.
        body["outputs"] = [None] * len(outputs)
        _follow(client, body, outcome, bar)
    if not outcome.ok:
        return
    for index, target in enumerate(outputs):
        # The same sandbox may have a /tmp of its own: delivered there is not delivered here.
        if index not in outcome.ready and _identity(target) == before[index]:
            outcome.ready[index] = f"/v1/tasks/{outcome.files[index].task_id}/content"
    if outcome.ready:
        from peer.cli.get_delivery import write_contents

        write_contents(client, outputs, outcome, overwrite=options.overwrite)


def _identity(target: Path | None) -> tuple[int, ...] | None:
    """What changes when a file is put in place; None if there is none."""
    assert target is not None
    try:
        found = target.lstat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino, found.st_ctime_ns


def _follow(client: LocalClient, body: dict[str, Any], outcome: Outcome, bar: Bar) -> None:
    outcome.begin()
    try:
        for event in client.lines("/v1/downloads", body):
            outcome.take(event)
            bar.update(event)
    except DaemonError as error:
        if error.reason == "usage" and "'own_files'" in error.detail:
            raise DaemonError(
                "usage",
                "--own-files: the daemon is of an older version: update it or leave the option out",
            ) from None
        raise
    if not outcome.ok and not outcome.reason:
        outcome.fail("failed", "the daemon ended without an answer")


def _stream_from_daemon(client: LocalClient, body: dict[str, Any], outcome: Outcome) -> None:
    broken: DaemonError | None = None
    with client.request("POST", "/v1/stream", body) as response:
        stream_id = response.headers.get("x-shoal-stream-id", "")
        outcome.files[0].task_id = response.headers.get("x-shoal-task-id")
        sink = sys.stdout.buffer
        try:
            for chunk in response.chunks():
                sink.write(chunk)
                sink.flush()
        except DaemonError as error:
            broken = error
    try:
        ended = client.get_json(f"/v1/streams/{stream_id}")
    except DaemonError:
        # It tells only why; that the content is not whole is known already.
        if broken is None:
            raise
        raise broken from None
    outcome.ok = bool(ended["ok"]) and broken is None
    if not outcome.ok:
        outcome.fail(str(ended["reason"] or "failed"), str(ended["detail"] or broken or ""))
    outcome.files[0].size_bytes = ended["size"]
    outcome.files[0].digest = ended["digest"]
    outcome.origin_bytes = ended["origin_bytes"]
    outcome.peer_bytes = ended["peer_bytes"]
