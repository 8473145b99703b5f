"""Open file descriptors of the store: shared, counted, and closed when nobody uses them.

A descriptor in use is never closed, also when its task is removed meanwhile; idle ones are kept
for the next user, the least recently used being closed first when there are too many. Decides
nothing else.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from shoal.runtime.files import Files

IDLE_MAX: Final = 256
"""Idle descriptors kept open: well under the usual limit of 1,024 per process."""


@dataclass(slots=True, eq=False)
class OpenFile:
    """One descriptor with its users."""

    fd: int
    owner: "FileSlot"
    write: bool
    users: int = 1
    retired: bool = False
    """To be closed as soon as the last user gives it back."""


@dataclass(slots=True, eq=False)
class FileSlot:
    """The descriptors of one file: one for reading, one for writing."""

    path: Path
    open: dict[bool, OpenFile] = field(default_factory=dict)
    retired: bool = False


class Handles:
    """Keeper of all descriptors of a store. Thread-safe."""

    def __init__(self, files: Files, *, idle_max: int = IDLE_MAX) -> None:
        self._files = files
        self._idle_max = idle_max
        self._lock = threading.Lock()
        self._idle: OrderedDict[OpenFile, None] = OrderedDict()
        self._closed = False

    def take(self, slot: FileSlot, *, write: bool = False) -> OpenFile:
        """A descriptor, to be given back. Raises OSError."""
        with self._lock:
            found = self._share(slot, write)
        if found is not None:
            return found
        fd = self._files.open(slot.path, write=write)
        with self._lock:
            found = self._share(slot, write)
            if found is None:
                taken = OpenFile(fd, slot, write, retired=slot.retired or self._closed)
                if not taken.retired:
                    slot.open[write] = taken
                return taken
        self._files.close(fd)  # Another thread was quicker.
        return found

    def adopt(self, slot: FileSlot, fd: int) -> None:
        """A file was just made: keeps its descriptor for the first writer."""
        with self._lock:
            made = OpenFile(fd, slot, write=True)
            slot.open[True] = made
        self.give_back(made)

    def give_back(self, taken: OpenFile) -> None:
        """A user needs it no longer."""
        close: OpenFile | None = None
        with self._lock:
            taken.users -= 1
            assert taken.users >= 0
            if taken.users == 0:
                if taken.retired or self._closed:
                    close = taken
                else:
                    self._idle[taken] = None
                    if len(self._idle) > self._idle_max:
                        close, _ = self._idle.popitem(last=False)
                        del close.owner.open[close.write]
        if close is not None:
            self._files.close(close.fd)

    def retire(self, slot: FileSlot) -> None:
        """The file is gone, or another one has its name: its descriptors go with their last
        users."""
        with self._lock:
            slot.retired = True
            idle = []
            for opened in slot.open.values():
                opened.retired = True
                if opened.users == 0:
                    del self._idle[opened]
                    idle.append(opened.fd)
            slot.open.clear()
        for fd in idle:
            self._files.close(fd)

    def retire_writer(self, slot: FileSlot) -> None:
        """The file must not be written any more."""
        close = None
        with self._lock:
            opened = slot.open.pop(True, None)
            if opened is not None:
                opened.retired = True
                if opened.users == 0:
                    del self._idle[opened]
                    close = opened.fd
        if close is not None:
            self._files.close(close)

    def close(self) -> None:
        """Closes what is idle; the rest follows as it is given back."""
        with self._lock:
            self._closed = True
            idle = list(self._idle)
            self._idle.clear()
            for opened in idle:
                del opened.owner.open[opened.write]
        for opened in idle:
            self._files.close(opened.fd)

    def _share(self, slot: FileSlot, write: bool) -> OpenFile | None:
        found = slot.open.get(write)
        if found is not None:
            if found.users == 0:
                del self._idle[found]
            found.users += 1
        return found
