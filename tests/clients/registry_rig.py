"""A real registry on loopback, with the recording proxy in front of it.

Its storage, configuration and log lie in a directory of the test. Waits until it answers, and ends
only the process that it started.
"""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.real.registry import Registry
from tests.clients.images import Image, push
from tests.clients.recording_proxy import RecordingProxy
from tests.conftest import require_tool
from tests.integration.swarm_rig import STOP_S


def bare_environment(home: Path) -> dict[str, str]:
    """For a program of the rig: nothing of this machine's user, no proxy and no credential."""
    home.mkdir(parents=True, exist_ok=True)
    kept = {key: os.environ[key] for key in ("LANG", "TMPDIR") if key in os.environ}
    return {
        **kept,
        "PATH": os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin",
        "HOME": str(home),
        "XDG_RUNTIME_DIR": str(home),
        "XDG_CONFIG_HOME": str(home / "config"),
        "XDG_CACHE_HOME": str(home / "cache"),
    }


class Program:
    """A process that serves until it is closed."""

    def __init__(self, arguments: list[str], log: Path, environment: dict[str, str]) -> None:
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=log.parent,
                env=environment,
            )

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-4000:]

    def signal(self, number: int) -> None:
        """Sends it a signal; it has to run."""
        assert self.running, self.tail()
        self._process.send_signal(number)

    def close(self) -> None:
        """SIGTERM, and SIGKILL to what does not heed it soon. Safe to call twice."""
        if self.running:
            self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_S)


def plain_registry(directory: Path) -> Registry:
    """One that is to be started, with all its files in a directory that it makes."""
    require_tool("docker-registry")
    directory.mkdir(parents=True, exist_ok=True)
    return Registry(directory, directory / "storage")


@dataclass(frozen=True, slots=True)
class RecordedRegistry:
    """A registry and the proxy through which clients come."""

    registry: Registry
    proxy: RecordingProxy

    def push(self, image: Image, repository: str, tag: str = "v1") -> str:
        """Past the proxy, so that nothing of it is in the record. Returns the reference."""
        push(image, self.registry.address, repository, tag)
        return f"{self.proxy.address}/{repository}:{tag}"


@contextmanager
def recorded_registry(directory: Path) -> Iterator[RecordedRegistry]:
    """Both, started and empty."""
    with plain_registry(directory) as registry, RecordingProxy(registry.address) as proxy:
        yield RecordedRegistry(registry, proxy)


def seconds_since(began_s: float) -> float:
    """By the clock that never jumps."""
    return time.monotonic() - began_s
