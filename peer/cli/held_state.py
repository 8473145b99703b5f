"""The directory where a download without a daemon keeps its state, held by one process at a time.

Apart from what downloads, because loading a whole peer takes longer than asking a daemon.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from shoal.wire.errors import UsageError


@contextlib.contextmanager
def held_state(root: Path) -> Iterator[None]:
    """Makes the directory and keeps other processes out of it. Raises UsageError if one is in it
    already, or if it cannot be made."""
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UsageError(
            f"{root}: {error.strerror}: the state of a download is kept there"
        ) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another shoal get or shoal pull is writing there ({root} is in use)"
            ) from None
        yield
    finally:
        os.close(descriptor)
