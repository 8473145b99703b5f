"""`shoal demo`: a real swarm of processes on this machine, measured against the bound.

An origin, a scheduler and N peers, all limited to the same rate; every peer downloads the same
file at once. The clock runs from the first request to the last verified file. Exits with 1 if any
byte is wrong.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from peer.cli.demo_processes import Processes
from peer.cli.local import human
from peer.cli.local_client import DaemonError, LocalClient
from peer.cli.outcome import FileOutcome, Outcome
from shoal.runtime.config_values import parse_rate, parse_size
from shoal.wire.errors import ShoalError, UsageError

CHUNK_BYTES: Final = 1 << 20
CONNECT_TIMEOUT_S: Final = 20.0
TELL_INTERVAL_S: Final = 2.0


@dataclass(slots=True)
class Node:
    """One peer of the demo."""

    name: str
    client: LocalClient
    output: Path
    outcome: Outcome
    seconds: float | None = None
    correct: bool = False


def bound_s(size_bytes: int, nodes: int, origin_rate: int, up: int, down: int) -> float:
    """The fluid minimum time: max(S/u_o, S/d, n·S/(u_o + Σu)), rates in bytes per second
    (Mundinger, Weber and Weiss 2008 for the uplinks; Kumar and Ross 2006 for all three)."""
    return max(
        size_bytes / origin_rate,
        size_bytes / down,
        nodes * size_bytes / (origin_rate + nodes * up),
    )


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(prog="shoal demo", description=__doc__)
    parser.add_argument("--nodes", type=int, default=8, help="peers (1 to 64)")
    parser.add_argument("--size", default="256MiB", help="of the file")
    parser.add_argument("--rate", default="25MB", help="of the origin and each peer, per second")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--keep", action="store_true", help="keep the directory with the logs")
    return parser


def run(_name: str, arguments: Sequence[str]) -> int:
    """Runs the demo; returns the exit code."""
    options = parser().parse_args(arguments)
    try:
        if not 1 <= options.nodes <= 64:
            raise UsageError("--nodes: 1 to 64")
        size, rate = int(parse_size(options.size)), int(parse_rate(options.rate))
        if rate <= 0:
            raise UsageError("--rate: more than 0")
    except UsageError as error:
        sys.stderr.write(f"shoal demo: {error}\n")
        return 2
    directory = Path(tempfile.mkdtemp(prefix="shoal-demo-"))
    # What ends this process must not leave the others behind.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        _check_space(directory, size * (options.nodes + 1))
        result = demonstrate(directory, options.nodes, size, rate, show=not options.json)
    except (ShoalError, OSError) as error:
        sys.stderr.write(f"shoal demo: {error}\n")
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        return 130
    finally:
        if options.keep:
            sys.stderr.write(f"kept: {directory}\n")
        else:
            shutil.rmtree(directory, ignore_errors=True)
    if options.json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        _print(result)
    return 0 if result["verified"] else 1


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _check_space(directory: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(directory).free
    if needed_bytes > free_bytes:
        raise UsageError(
            f"{human(needed_bytes)} are needed in {directory.parent} and {human(free_bytes)} are "
            "free: make the demo smaller with --size, or set TMPDIR"
        )


def demonstrate(directory: Path, nodes: int, size: int, rate: int, *, show: bool) -> dict[str, Any]:
    """Makes the file, starts everything, downloads, verifies; returns the numbers."""
    content = directory / "content.bin"
    digest = make_content(content, size)
    with Processes(directory) as processes:
        origin = processes.start("origin", "peer.cli.demo_origin", str(content), str(rate))
        scheduler = processes.start(
            "scheduler", "peer.cli", "scheduler", "--listen", "127.0.0.1:0", "--status", "",
            "--ready-file",
        )  # fmt: skip
        port, address = origin.facts()["port"], scheduler.facts()["address"]
        started = [
            processes.start(
                f"peer-{number}", "peer.cli", "peer",
                "--host-id", f"peer-{number}",
                "--scheduler", address,
                "--listen", "127.0.0.1:0",
                "--status", "",
                "--store-root", str(directory / f"store-{number}"),
                "--socket", str(directory / f"peer-{number}.sock"),
                "--upload-rate", f"{rate}B/s",
                "--download-rate", f"{rate}B/s",
                "--ready-file",
            )
            for number in range(nodes)
        ]  # fmt: skip
        peers = [
            _node(directory, number, Path(each.facts()["socket"]))
            for number, each in enumerate(started)
        ]
        for node in peers:
            _wait_connected(node.client)
        stats_url = f"http://127.0.0.1:{port}/-/stats"
        before = _origin_bytes(stats_url)
        makespan = download_all(peers, f"http://127.0.0.1:{port}/content.bin", show=show)
        sent = _origin_bytes(stats_url) - before
    with ThreadPoolExecutor(2) as pool:
        for node, actual in zip(peers, pool.map(_digest_of, peers), strict=True):
            node.correct = node.outcome.ok and actual == digest
    return summary(peers, size, rate, makespan, sent)


def make_content(path: Path, size_bytes: int) -> str:
    """A file that no compression or deduplication shortens; returns its SHA-256."""
    hasher = hashlib.sha256()
    with path.open("wb") as sink:
        left = size_bytes
        while left:
            chunk = os.urandom(min(CHUNK_BYTES, left))
            hasher.update(chunk)
            sink.write(chunk)
            left -= len(chunk)
    return hasher.hexdigest()


def _node(directory: Path, number: int, socket: Path) -> Node:
    output = directory / f"output-{number}.bin"
    outcome = Outcome([FileOutcome("content.bin", str(output))])
    return Node(f"peer-{number}", LocalClient(socket), output, outcome)


def _wait_connected(client: LocalClient) -> None:
    end = time.monotonic() + CONNECT_TIMEOUT_S
    while not client.get_json("/v1/status")["scheduler_connected"]:
        if time.monotonic() > end:
            raise ShoalError("a peer did not reach the scheduler")
        time.sleep(0.02)


def _origin_bytes(url: str) -> int:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as response:
        return int(json.load(response)["sent_bytes"])


def _digest_of(node: Node) -> str:
    if not node.output.exists():
        return ""
    with node.output.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def download_all(peers: list[Node], url: str, *, show: bool) -> float:
    """Downloads on all peers at once; returns the makespan in seconds."""
    gate = threading.Barrier(len(peers) + 1)
    began = [0.0]

    def one(node: Node) -> None:
        body = {
            "urls": [{"url": url}],
            "outputs": [str(node.output)],
            "overwrite": True,
        }
        gate.wait()
        try:
            for event in node.client.lines("/v1/downloads", body):
                node.outcome.take(event)
        except DaemonError as error:
            node.outcome.fail(error.reason, error.detail)
        node.seconds = time.monotonic() - began[0]

    threads = [threading.Thread(target=one, args=(node,), daemon=True) for node in peers]
    for thread in threads:
        thread.start()
    began[0] = time.monotonic()
    gate.wait()
    if show:
        (_watch if sys.stderr.isatty() else _tell)(peers, threads)
    for thread in threads:
        thread.join()
    return max(node.seconds or 0.0 for node in peers)


def _watch(peers: list[Node], threads: list[threading.Thread]) -> None:
    """The live table."""
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    def table() -> Table:
        shown = Table("node", "done", "rate", "from origin", "from peers")
        for node in peers:
            outcome = node.outcome
            total = outcome.size_bytes or 0
            share = 100 * outcome.received_bytes // total if total else 0
            shown.add_row(
                node.name,
                f"{share} %",
                f"{human(outcome.rate_bytes_s)}/s",
                human(outcome.origin_bytes),
                human(outcome.peer_bytes),
            )
        return shown

    with Live(table(), console=Console(stderr=True), refresh_per_second=4) as live:
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.25)
            live.update(table())


def _tell(peers: list[Node], threads: list[threading.Thread]) -> None:
    """A line now and then, where nobody could see a table change."""
    began = time.monotonic()
    ends = began
    while any(thread.is_alive() for thread in threads):
        ends += TELL_INTERVAL_S
        for thread in threads:
            thread.join(max(0.0, ends - time.monotonic()))
        shares = [
            100 * node.outcome.received_bytes // (node.outcome.size_bytes or 1) for node in peers
        ]
        passed = time.monotonic() - began
        sys.stderr.write(f"{passed:5.1f} s  {' '.join(f'{share:3d} %' for share in shares)}\n")


def summary(
    peers: list[Node], size: int, rate: int, makespan: float, origin_bytes: int
) -> dict[str, Any]:
    """The numbers of a run."""
    bound = bound_s(size, len(peers), rate, rate, rate)
    seconds = sorted(node.seconds or 0.0 for node in peers)
    return {
        "nodes": len(peers),
        "size_bytes": size,
        "rate_bytes_s": rate,
        "bound_s": round(bound, 4),
        "makespan_s": round(makespan, 4),
        "makespan_over_bound": round(makespan / bound, 4) if bound else None,
        "origin_bytes": origin_bytes,
        "origin_copies": round(origin_bytes / size, 5) if size else None,
        "p50_s": round(statistics.median(seconds), 4),
        "max_s": round(seconds[-1], 4),
        "verified": all(node.correct for node in peers),
        "per_node": [
            {
                "node": node.name,
                "seconds": round(node.seconds or 0.0, 4),
                "origin_bytes": node.outcome.origin_bytes,
                "peer_bytes": node.outcome.peer_bytes,
                "verified": node.correct,
                "detail": node.outcome.detail,
            }
            for node in peers
        ],
    }


def _print(result: dict[str, Any]) -> None:
    write = sys.stdout.write
    write(f"{'node':<10} {'seconds':>8} {'from origin':>12} {'from peers':>12}  sha256\n")
    for node in result["per_node"]:
        verdict = "right" if node["verified"] else f"WRONG {node['detail']}"
        write(
            f"{node['node']:<10} {node['seconds']:>8.2f} {human(node['origin_bytes']):>12} "
            f"{human(node['peer_bytes']):>12}  {verdict}\n"
        )
    write(
        f"\n{result['nodes']} nodes, {human(result['size_bytes'])}, "
        f"{human(result['rate_bytes_s'])}/s each\n"
        f"makespan {result['makespan_s']:.2f} s, bound {result['bound_s']:.2f} s: "
        f"{result['makespan_over_bound']:.3f} times the bound\n"
        f"copies read from the origin: {result['origin_copies']:.3f}\n"
    )
