"""Small files over a warm daemon and scheduler: latency at the daemon's API, and of the command.

Every file is another one that nobody holds, so each download asks the scheduler, the origin and
the store.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks.real.site import Peer, Site, get_command, run_quietly, running_site
from peer.cli.local_client import LocalClient
from peer.cli.outcome import FileOutcome, Outcome
from shoal.wire.errors import ShoalError
from shoal.wire.limits import MIB

FILE_BYTES: Final = MIB
WARM_UP_RUNS: Final = 10


def percentile(values: list[float], percent: int) -> float:
    """The value below or at which so many percent lie (nearest rank)."""
    ordered = sorted(values)
    rank = -(-percent * len(ordered) // 100)
    return ordered[max(0, rank - 1)]


def measure(
    directory: Path, api_runs: int, command_runs: int, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Downloads so many files in each way, in an empty directory. Raises ShoalError."""
    with running_site(directory, 1) as site:
        total = WARM_UP_RUNS + api_runs + command_runs
        for number in range(total):
            (site.content / f"small-{number}").write_bytes(os.urandom(FILE_BYTES))
        peer = site.peers[0]
        client = LocalClient(peer.socket)
        tell("small files at the API")
        api = [_by_api(site, client, number) for number in range(total - command_runs)]
        tell("small files by the command")
        command = [_by_command(site, peer, number) for number in range(len(api), total)]
    return {
        "file_bytes": FILE_BYTES,
        "api": _summary(api[WARM_UP_RUNS:]),
        "command": _summary(command),
    }


def _summary(seconds: list[float]) -> dict[str, Any]:
    if not seconds:
        return {"runs": 0}
    return {
        "runs": len(seconds),
        "p50_ms": round(1000 * percentile(seconds, 50), 2),
        "p99_ms": round(1000 * percentile(seconds, 99), 2),
        "max_ms": round(1000 * max(seconds), 2),
    }


def _by_api(site: Site, client: LocalClient, number: int) -> float:
    url, output = site.origin.url(f"small-{number}"), site.directory / f"api-{number}.out"
    outcome = Outcome([FileOutcome(url, str(output))])
    body = {"urls": [{"url": url}], "outputs": [str(output)], "overwrite": True}
    began = time.monotonic()
    for event in client.lines("/v1/downloads", body):
        outcome.take(event)
    seconds = time.monotonic() - began
    if not outcome.ok or output.stat().st_size != FILE_BYTES:
        raise ShoalError(f"small file {number}: {outcome.detail or outcome.reason or 'not whole'}")
    return seconds


def _by_command(site: Site, peer: Peer, number: int) -> float:
    output = site.directory / f"command-{number}.out"
    command = [
        *get_command(),
        *("--endpoint", str(peer.socket), "--quiet", "--no-progress", "-O", str(output)),
        site.origin.url(f"small-{number}"),
    ]
    began = time.monotonic()
    run_quietly(command)
    return time.monotonic() - began
