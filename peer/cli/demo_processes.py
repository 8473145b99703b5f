"""The demo's processes: started, waited for, and ended, whatever happens.

Kills only what it started.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from shoal.wire.errors import ShoalError

START_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 10.0


class Processes:
    """Processes that belong to one demo. Their output goes to files in its directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for _, process in self._running:
            if process.poll() is None:
                process.terminate()
        end = time.monotonic() + STOP_TIMEOUT_S
        for _, process in self._running:
            try:
                process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def start(self, name: str, *arguments: str, within: tuple[str, ...] = ()) -> "Started":
        """Starts a module of this project as a process; its last argument is its ready file.
        `within` is a command that runs another one somewhere else: in a network namespace."""
        ready = self._directory / f"{name}.ready"
        log = self._directory / f"{name}.log"
        # Neither a proxy nor the settings of a real daemon on this machine must get in.
        environment = {
            key: value
            for key, value in os.environ.items()
            if not key.lower().endswith("_proxy") and not key.startswith("SHOAL_")
        }
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*within, sys.executable, "-m", *arguments, str(ready)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
            )
        self._running.append((name, process))
        return Started(name, process, ready, log)


class Started:
    """One process on its way."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], ready: Path, log: Path) -> None:
        self.name = name
        self.process = process
        self._ready = ready
        self._log = log

    def facts(self) -> dict[str, Any]:
        """Waits until it listens; what it says of itself. Raises ShoalError with its log."""
        end = time.monotonic() + START_TIMEOUT_S
        while not self._ready.exists():
            if self.process.poll() is not None or time.monotonic() > end:
                tail = self._log.read_text(errors="replace")[-2000:]
                raise ShoalError(f"{self.name} did not start:\n{tail}")
            time.sleep(0.02)
        facts: dict[str, Any] = json.loads(self._ready.read_text())
        return facts
