"""A small site of real processes: nginx as the origin, a scheduler, peers. Starts and stops it."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.real.nginx import Nginx
from peer.cli.demo_processes import Processes
from peer.cli.local_client import LocalClient
from shoal.wire.errors import ShoalError

CONNECT_TIMEOUT_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Peer:
    """One peer daemon."""

    name: str
    pid: int
    socket: Path


@dataclass(frozen=True, slots=True)
class Site:
    """What runs, and where its files are."""

    directory: Path
    origin: Nginx
    scheduler_pid: int
    peers: tuple[Peer, ...]

    @property
    def content(self) -> Path:
        """The directory that the origin serves."""
        return self.directory / "content"

    @property
    def pids(self) -> dict[str, int]:
        """Every process that shares the work, by name."""
        return {
            "nginx": self.origin.pid,
            "scheduler": self.scheduler_pid,
            **{peer.name: peer.pid for peer in self.peers},
        }


@contextmanager
def running_site(directory: Path, peer_count: int) -> Iterator[Site]:
    """A site in an empty directory. Raises ShoalError if a process does not start."""
    for name in ("content", "nginx"):
        (directory / name).mkdir()
    origin = Nginx(directory / "content", directory / "nginx")
    with origin, Processes(directory) as processes:
        scheduler = processes.start(
            "scheduler",
            *("peer.cli", "scheduler", "--listen", "127.0.0.1:0", "--status", ""),
            "--ready-file",
        )
        address = scheduler.facts()["address"]
        started = [
            processes.start(
                name,
                *("peer.cli", "peer", "--host-id", name, "--scheduler", address),
                *("--listen", "127.0.0.1:0", "--status", ""),
                *("--store-root", str(directory / f"{name}.store")),
                *("--socket", str(directory / f"{name}.sock")),
                "--ready-file",
            )
            for name in (f"peer-{number}" for number in range(peer_count))
        ]
        peers = tuple(
            Peer(each.name, each.process.pid, Path(each.facts()["socket"])) for each in started
        )
        for peer in peers:
            wait_connected(peer.name, peer.socket)
        yield Site(directory, origin, scheduler.process.pid, peers)


def wait_connected(name: str, endpoint: Path) -> None:
    """Until a peer has its session with the scheduler. Raises ShoalError after too long."""
    client = LocalClient(endpoint)
    end = time.monotonic() + CONNECT_TIMEOUT_S
    while not client.get_json("/v1/status")["scheduler_connected"]:
        if time.monotonic() > end:
            raise ShoalError(f"{name} did not reach the scheduler")
        time.sleep(0.01)


def get_command() -> list[str]:
    """How a user's shell starts `shoal get`: the installed script, else the module."""
    script = Path(sys.executable).parent / "shoal"
    return [str(script), "get"] if script.exists() else [sys.executable, "-m", "peer.cli", "get"]


def run_quietly(command: list[str]) -> None:
    """Runs a program to its end. Raises ShoalError with what it said if it fails."""
    # The environment of whoever measures must not lead the command to another daemon or proxy.
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.lower().endswith("_proxy") and not key.startswith("SHOAL_")
    }
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if done.returncode != 0:
        told = (done.stderr or done.stdout).decode(errors="replace")[-2000:]
        raise ShoalError(f"{command[0]} failed with exit code {done.returncode}: {told}")
