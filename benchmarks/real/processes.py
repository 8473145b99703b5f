"""Programs that benchmarks start: waited for until they listen, and ended.

Each keeps what it writes in a directory of its own; only what was started here is ended.
"""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from shoal.wire.errors import ShoalError

START_TIMEOUT_S: Final = 15.0
PORT_TRIES: Final = 5
STOP_TIMEOUT_S: Final = 5.0
PROBE_TIMEOUT_S: Final = 1.0
TAIL_CHARACTERS: Final = 2000
"""Of a log, in the error of a program that does not start."""
SYSTEM_PATHS: Final = ("/usr/sbin", "/usr/local/sbin")
"""Where Debian keeps some, which are not on everybody's PATH."""


def find_program(name: str, package: str) -> str:
    """Its path. Raises ShoalError that names Debian's package if it is not installed."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *SYSTEM_PATHS))
    found = shutil.which(name, path=path)
    if found is None:
        raise ShoalError(f"{name} is not installed; on Debian: apt-get install {package}")
    return found


class Server:
    """A program that listens on one port of `host`, one that nobody uses, wherever it is started:
    the thread that starts it may be on a host of a network. `work`: an existing directory for its
    own files. A context manager, which raises ShoalError with the program's log if it does not
    start."""

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
        for _ in range(PORT_TRIES):
            if self._start(program):
                return self
        told = self.log.read_text(errors="replace")[-TAIL_CHARACTERS:]
        raise ShoalError(f"{self.name} did not start: {told or 'it says nothing'}")

    def _start(self, program: str) -> bool:
        """Whether it listens. False if it did not in time, or ended, for somebody else may have
        taken the port; none is left then."""
        with socket.socket() as probe:
            probe.bind((self.host, 0))
            self.port = probe.getsockname()[1]
        arguments = self.configure()
        with self.log.open("wb") as output:
            process = self._process = subprocess.Popen(
                [program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.work,
                # Nothing that its user has set for such programs.
                env={"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self.work)},
            )
        end = time.monotonic() + START_TIMEOUT_S
        try:
            while not (listens := self.listens()) and process.poll() is None:
                if time.monotonic() > end:
                    break
                time.sleep(0.01)
        except BaseException:
            self.stop()
            raise
        if listens and process.poll() is None:
            return True
        self.stop()
        return False

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

    def listens(self) -> bool:
        """Whether somebody answers there."""
        with socket.socket() as probe:
            probe.settimeout(PROBE_TIMEOUT_S)
            return probe.connect_ex((self.host, self.port)) == 0
