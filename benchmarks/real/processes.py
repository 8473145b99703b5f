"""Programs that benchmarks start: waited for until they listen, and ended.

Each keeps what it writes in a directory of its own; only what was started here is ended.
"""

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from shoal.wire.errors import ShoalError

START_TIMEOUT_S: Final = 15.0
STOP_TIMEOUT_S: Final = 5.0
PROBE_TIMEOUT_S: Final = 1.0
TAIL_CHARACTERS: Final = 2000
"""Of a log, in the error of a program that does not start."""
SYSTEM_PATHS: Final = ("/usr/sbin", "/usr/local/sbin")
"""Where Debian keeps some, which are not on everybody's PATH."""


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does: with everything removed."""

    def stop(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def find_program(name: str, package: str) -> str:
    """Its path. Raises ShoalError that names Debian's package if it is not installed."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *SYSTEM_PATHS))
    found = shutil.which(name, path=path)
    if found is None:
        raise ShoalError(f"{name} is not installed; on Debian: apt-get install {package}")
    return found


class Server:
    """A program that listens on one port of `host`, an address where it is started: that nobody
    uses, and another one each time. `work`: an existing directory for its own files. A context
    manager, which raises ShoalError with the program's log if it does not start."""

    name = ""
    """Of the program."""
    package = ""
    """Of Debian, that has it."""

    def __init__(self, work: Path, host: str = "127.0.0.1") -> None:
        self.work = work
        self.log = work / f"{self.name}.log"
        self.host = host
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Host and port."""
        return f"{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        """Its one process."""
        assert self._process is not None, "not started"
        return self._process.pid

    def configure(self) -> list[str]:
        """Writes what it needs to listen on `address`; its arguments."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        program = find_program(self.name, self.package)
        with socket.socket() as probe:
            probe.bind((self.host, 0))
            self.port = probe.getsockname()[1]
        arguments = self.configure()
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                [program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.work,
                # Nothing that its user has set for such programs.
                env={"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self.work)},
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends it and waits until it is gone. Safe to call twice."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _wait(self) -> None:
        assert self._process is not None
        end = time.monotonic() + START_TIMEOUT_S
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > end:
                told = self.log.read_text(errors="replace")[-TAIL_CHARACTERS:]
                raise ShoalError(f"{self.name} did not start: {told or 'it says nothing'}")
            time.sleep(0.01)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(PROBE_TIMEOUT_S)
            return probe.connect_ex((self.host, self.port)) == 0
