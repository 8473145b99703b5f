"""The processes of the service benchmark: the scheduler that is measured, and clients.

Starts them, talks to them, reads what Linux tells of them, and ends them whatever happens; kills
only what it started.
"""

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from benchmarks.real.machine import cpu_seconds
from shoal.wire.errors import ShoalError

START_TIMEOUT_S: Final = 20.0
STOP_TIMEOUT_S: Final = 5.0
POLL_S: Final = 0.02
LOG_END_CHARACTERS: Final = 2000
"""Of a process's log, in the error that its end is."""


def rss_bytes(pid: int) -> int:
    """Resident memory of a process now."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ShoalError(f"process {pid} is gone")


class Clients:
    """One process that plays hosts `first` and so on."""

    def __init__(self, address: str, kind: str, first: int, count: int, log: Path) -> None:
        self.first = first
        self.count = count
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.scale.service_clients", address, kind],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def tell(self, do: str, **command: Any) -> None:
        """Begins something; `answer` waits for its end. Raises ShoalError."""
        assert self._process.stdin is not None
        range_of_hosts = {"first": self.first, "count": self.count}
        line = json.dumps({"do": do, **range_of_hosts, **command})
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise ShoalError(f"clients ended: {self.log_end()}") from None

    def answer(self, timeout_s: float) -> dict[str, Any]:
        """What came of it. Raises ShoalError."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], timeout_s)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            what = "ended" if ready else f"said nothing for {timeout_s} s"
            raise ShoalError(f"clients {what}: {self.log_end()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def log_end(self) -> str:
        """The last of what it wrote to its errors."""
        return self._log.read_text()[-LOG_END_CHARACTERS:]

    def leave(self) -> None:
        """Ends its input: its hosts leave once it is done with what it does. Safe to call twice."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # It ended before it was told everything.
            self._process.stdin.close()

    def close(self, *, at_once: bool = False) -> int:
        """Ends the process: as its hosts have left, or else, or `at_once`, by force. Its exit code;
        negative is a signal."""
        try:
            self.leave()
            if not at_once:
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(STOP_TIMEOUT_S)
            if self._process.poll():
                sys.stderr.write(f"clients ended by themselves: {self.log_end()}\n")
        finally:
            code = _stop(self._process)
        return code


class Rig:
    """One scheduler and its clients. `engine` is "core", or "stub" for the shell alone; `kind` is
    what carries the hosts' streams."""

    def __init__(self, *, engine: str, kind: str, hosts: int, processes: int) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="shoal-service-")
        self._path = Path(self._directory.name)
        self._engine = engine
        self._kind = kind
        self._hosts = hosts
        self._processes = processes
        self._scheduler: subprocess.Popen[bytes] | None = None
        self.clients: list[Clients] = []

    @property
    def pid(self) -> int:
        """The scheduler's process."""
        assert self._scheduler is not None
        return self._scheduler.pid

    def __enter__(self) -> Self:
        ready = self._path / "scheduler.ready"
        module = ["peer.cli", "scheduler"]
        if self._engine == "stub":
            module = ["benchmarks.scale.service_stub"]
        listen = "127.0.0.1:0"
        arguments = ["--listen", listen, "--status", listen, "--log-level", "error"]
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith("SHOAL_")
        }
        with (self._path / "scheduler.log").open("wb") as log:
            self._scheduler = subprocess.Popen(
                [sys.executable, "-m", *module, *arguments, "--ready-file", str(ready)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
            )
        try:
            address = self._wait_ready(ready)
            # The last process gets what does not divide.
            share = self._hosts // self._processes
            for number in range(self._processes):
                last = number == self._processes - 1
                count = self._hosts - number * share if last else share
                log_path = self._path / f"clients-{number}.log"
                self.clients.append(Clients(address, self._kind, number * share, count, log_path))
        except BaseException:
            self._close(at_once=True)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close(at_once=error is not None)

    def _wait_ready(self, ready: Path) -> str:
        assert self._scheduler is not None
        end = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < end and self._scheduler.poll() is None:
            if ready.exists():
                address: str = json.loads(ready.read_text())["address"]
                return address
            time.sleep(POLL_S)
        log = (self._path / "scheduler.log").read_text()[-LOG_END_CHARACTERS:]
        raise ShoalError(f"the scheduler does not start: {log}")

    def _close(self, *, at_once: bool) -> None:
        with ExitStack() as stack:
            # Last in, first out; and each of them is ended, whatever happens to another.
            stack.callback(self._directory.cleanup)
            if self._scheduler is not None:
                stack.callback(_stop, self._scheduler)
            for clients in self.clients:
                stack.callback(clients.close, at_once=at_once)
            for clients in self.clients:
                clients.leave()

    def tell_all(self, do: str, **command: Any) -> None:
        """Begins something in all client processes."""
        for clients in self.clients:
            clients.tell(do, **command)

    def answers(self, timeout_s: float) -> list[dict[str, Any]]:
        """What came of it in each."""
        return [clients.answer(timeout_s) for clients in self.clients]

    def cpu_s(self) -> float:
        """CPU time of the scheduler so far, all threads."""
        return cpu_seconds(self.pid)

    def rss_bytes(self) -> int:
        """Memory of the scheduler now."""
        return rss_bytes(self.pid)


def _stop(process: subprocess.Popen[bytes]) -> int:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
    if process.stdout is not None:
        process.stdout.close()
    return process.wait()
