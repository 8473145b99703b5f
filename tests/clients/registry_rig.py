"""A real registry on loopback, with the recording proxy in front of it.

Its storage, configuration and log lie in a directory of the test. Waits until it answers, and ends
only the process that it started.
"""

import http.client
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.clients.images import Image, push
from tests.clients.recording_proxy import RecordingProxy
from tests.conftest import require_tool
from tests.integration.swarm_rig import STOP_S, wait_for

PORT_TRIES: Final = 5
ANSWER_S: Final = 2.0

_CONFIGURATION: Final = """\
version: 0.1
log: {{level: warn, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {root}}}
  delete: {{enabled: true}}
http:
  addr: 127.0.0.1:{port}
  relativeurls: true
"""


def free_port() -> int:
    """A port of loopback that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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


class Registry:
    """The process `docker-registry`. To be used as a context manager."""

    def __init__(self, directory: Path) -> None:
        self._program = require_tool("docker-registry")
        self._directory = directory
        self._process: Program | None = None
        self.port = 0

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._directory.mkdir(parents=True, exist_ok=True)
        for _ in range(PORT_TRIES):
            if self._start(free_port()):
                return self
        tail = self._process.tail() if self._process is not None else ""
        raise AssertionError(f"the registry does not start:\n{tail}")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.close()

    def _start(self, port: int) -> bool:
        """False when it ended, for somebody else may have taken the port."""
        self.port = port
        configuration = self._directory / "registry.yml"
        configuration.write_text(_CONFIGURATION.format(root=self._directory / "storage", port=port))
        process = self._process = Program(
            [self._program, "serve", str(configuration)],
            self._directory / "registry.log",
            bare_environment(self._directory / "home"),
        )
        try:
            wait_for(lambda: not process.running or self._answers(), "the registry answers")
        except AssertionError:
            process.close()
            raise
        return process.running

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection(self.address, timeout=ANSWER_S)
        try:
            connection.request("GET", "/v2/")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()


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
    with Registry(directory) as registry, RecordingProxy(registry.address) as proxy:
        yield RecordedRegistry(registry, proxy)


def seconds_since(began_s: float) -> float:
    """By the clock that never jumps."""
    return time.monotonic() - began_s
