"""What the commands that measure real processes have in common: a directory, an end, a print."""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shoal.wire.errors import ShoalError


def run(
    name: str,
    options: argparse.Namespace,
    measure: Callable[[Path], dict[str, Any]],
    table: Callable[[dict[str, Any]], str],
    *,
    place: Callable[[], Path | None],
    keep: bool = False,
) -> dict[str, Any] | int:
    """Measures in a new directory at `place` (None: TMPDIR) and prints the result, which it
    returns; where there is none, the exit code. The directory is removed in the end, unless it is
    to be kept and has something in it."""
    work: Path | None = None
    try:
        with _ended_by_signals():
            work = Path(tempfile.mkdtemp(prefix="shoal-bench-", dir=place()))
            result = measure(work)
    except (ShoalError, OSError, subprocess.TimeoutExpired) as error:
        sys.stderr.write(f"{name}: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        if work is not None and keep and any(work.iterdir()):
            sys.stderr.write(f"files and logs are in {work}\n")
        elif work is not None:
            shutil.rmtree(work, ignore_errors=True)
    sys.stdout.write((json.dumps(result) if options.json else table(result)) + "\n")
    return result


@contextmanager
def _ended_by_signals() -> Iterator[None]:
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


@contextmanager
def undisturbed() -> Iterator[None]:
    """A signal that comes within ends the block only at its end: what is started here is known by
    then to whoever has to stop it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda sent, _: came.append(sent)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt
