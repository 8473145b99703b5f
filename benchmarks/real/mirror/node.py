"""One node: a peer daemon with a mirror, beside a scheduler that may outlive several of them."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.real.machine import cpu_seconds, peak_rss_bytes
from benchmarks.real.site import wait_connected
from peer.cli.demo_processes import Processes

NAME: Final = "registry.test"


@dataclass(frozen=True, slots=True)
class Node:
    """A running daemon."""

    pid: int
    mirror: str
    """Where its mirror listens."""

    def peak_rss_bytes(self) -> int:
        """The most memory that it ever had."""
        return peak_rss_bytes(self.pid)

    def cpu_s(self) -> float:
        """What it has used so far."""
        return cpu_seconds(self.pid)


@contextmanager
def running_scheduler(directory: Path) -> Iterator[str]:
    """The address of one that runs for the time of the block, with its files in a directory that
    it makes."""
    directory.mkdir()
    with Processes(directory) as processes:
        started = processes.start(
            "scheduler",
            *("peer.cli", "scheduler", "--listen", "127.0.0.1:0", "--status", ""),
            "--ready-file",
        )
        yield started.facts()["address"]


@contextmanager
def running_node(directory: Path, registry: str, scheduler: str = "") -> Iterator[Node]:
    """A node with an empty store, which is removed at the end. `scheduler` "": on its own."""
    directory.mkdir()
    try:
        with Processes(directory) as processes:
            started = processes.start(
                "peer",
                *("peer.cli", "peer", "--host-id", "node", "--listen", "127.0.0.1:0"),
                *("--status", "", "--store-root", str(directory / "store")),
                *("--socket", str(directory / "peer.sock")),
                *(("--scheduler", scheduler) if scheduler else ()),
                *("--set", "mirror.listen=127.0.0.1:0"),
                *("--set", f"mirror.upstreams={NAME}=http://{registry}"),
                *("--set", f"mirror.default={NAME}"),
                "--ready-file",
            )
            facts = started.facts()
            if scheduler:
                wait_connected("the node", Path(facts["socket"]))
            yield Node(started.process.pid, facts["mirrors"][0])
    finally:
        shutil.rmtree(directory, ignore_errors=True)
