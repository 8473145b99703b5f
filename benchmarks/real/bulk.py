"""One big file: CPU seconds per GB and peak memory, origin -> peer -> peer, beside curl.

The rows: curl from nginx into a file; the same and then sha256sum, because shoal always checks
the whole content; `shoal get` on a peer that must read the origin; `shoal get` on a second peer
that gets everything from the first.
"""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.real.machine import children_cpu_s, cpu_seconds, peak_rss_bytes
from benchmarks.real.site import Peer, Site, get_command, run_quietly, running_site
from peer.cli.demo import make_content
from shoal.wire.errors import ShoalError

GB: Final = 1_000_000_000
COPIES: Final = 4
"""Of the file at the same time: the origin's, one per store, and curl's."""


@dataclass(frozen=True, slots=True)
class Row:
    """One way to move the file."""

    name: str
    seconds: float
    cpu_s: dict[str, float]
    """By process; `client` is the command that was run."""

    def as_json(self, size_bytes: int) -> dict[str, Any]:
        """The numbers, with those per GB (10^9 bytes)."""
        return {
            "name": self.name,
            "seconds": round(self.seconds, 3),
            "gb_per_s": round(size_bytes / GB / self.seconds, 3),
            "cpu_s_per_gb": round(sum(self.cpu_s.values()) * GB / size_bytes, 3),
            "cpu_s": {name: round(value, 2) for name, value in self.cpu_s.items()},
        }


def measure(directory: Path, size_bytes: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Runs all rows in an empty directory. Raises ShoalError if something fails."""
    free_bytes = shutil.disk_usage(directory).free
    if free_bytes < COPIES * size_bytes:
        raise ShoalError(
            f"{COPIES * size_bytes} bytes are needed in {directory}, {free_bytes} are free: give a "
            "smaller --size or another --directory"
        )
    with running_site(directory, 2) as site:
        tell("making the file")
        digest = f"sha256:{make_content(site.content / 'big', size_bytes)}"
        rows = []
        tell("curl")
        rows.append(_curl(site, with_digest=False))
        rows.append(_curl(site, with_digest=True))
        for peer, name in zip(site.peers, ("origin to peer", "peer to peer"), strict=True):
            tell(name)
            rows.append(_get(site, peer, name, digest))
        memory = {peer.name: peak_rss_bytes(peer.pid) for peer in site.peers}
        memory["scheduler"] = peak_rss_bytes(site.scheduler_pid)
    return {
        "size_bytes": size_bytes,
        "rows": [row.as_json(size_bytes) for row in rows],
        "peak_rss_bytes": memory,
    }


def _timed(name: str, site: Site, run: Callable[[], None]) -> Row:
    """Runs something and takes every process's CPU time while it ran."""
    before = {process: cpu_seconds(pid) for process, pid in site.pids.items()}
    client_before = children_cpu_s()
    began = time.monotonic()
    run()
    seconds = time.monotonic() - began
    used = {process: cpu_seconds(pid) - before[process] for process, pid in site.pids.items()}
    used["client"] = children_cpu_s() - client_before
    return Row(name, seconds, {key: value for key, value in used.items() if value > 0.0})


def _curl(site: Site, *, with_digest: bool) -> Row:
    output = site.directory / "curl.out"
    output.unlink(missing_ok=True)

    def run() -> None:
        run_quietly(["curl", "-sS", "--fail", "-o", str(output), site.origin.url("big")])
        if with_digest:
            run_quietly(["sha256sum", str(output)])

    name = "curl and sha256sum" if with_digest else "curl"
    try:
        return _timed(name, site, run)
    finally:
        output.unlink(missing_ok=True)


def _get(site: Site, peer: Peer, name: str, digest: str) -> Row:
    command = [
        *get_command(),
        *("--endpoint", str(peer.socket), "--digest", digest, "--quiet", "--no-progress"),
        *("-O", str(site.directory / f"{peer.name}.out"), site.origin.url("big")),
    ]
    return _timed(name, site, lambda: run_quietly(command))
