"""The store's directory: whose it is, where things are in it, and that only one daemon uses it.

    <root>/            mode 0700: contents may be private
      VERSION          of the layout
      lock             held with flock(2) while a daemon runs
      metadata.db      SQLite
      content/ab/<task id>

Decides nothing about contents. Raises StoreError for a disk that does not work and UsageError for
a directory that is not (or not now) ours to use.
"""

import contextlib
import errno
import fcntl
import os
from pathlib import Path
from typing import Final

from peer.shell.store.errors import translated
from shoal.wire.errors import UsageError
from shoal.wire.ids import TaskId

VERSION: Final = 1
OWN_NAMES: Final = frozenset({"VERSION", "VERSION.new", "lock", "lost+found"})
"""Names in a directory that may become a store: a first start that was cut off, an empty disk."""


class StoreRoot:
    """One store directory, locked from `open` to `close`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock_fd: int | None = None

    @property
    def content(self) -> Path:
        """The directory of all contents."""
        return self.path / "content"

    @property
    def database(self) -> Path:
        """The metadata database."""
        return self.path / "metadata.db"

    def directory_of(self, task_id: TaskId) -> Path:
        """The directory of a task's file; 256 of them keep each one small."""
        return self.content / task_id[:2]

    def file_of(self, task_id: TaskId) -> Path:
        """The file of a task's content."""
        assert len(task_id) > 2, "a task id is 64 hex digits"
        assert task_id.isalnum(), "a task id is 64 hex digits"
        return self.content / task_id[:2] / task_id

    def open(self) -> None:
        """Makes the directory if need be and locks it."""
        with translated(f"opening the store {self.path}"):
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            version_file = self.path / "VERSION"
            if not version_file.exists():
                self._check_empty()
            self._lock()
            try:
                # The umask may have taken bits away, a service manager may have left more.
                self.path.chmod(0o700)
                self._check_version(version_file)
                self.content.mkdir(mode=0o700, exist_ok=True)
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Lets another daemon have the directory. Safe to call twice."""
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def _check_empty(self) -> None:
        # Contents without metadata are deleted as orphans: never begin that in a place that may
        # be somebody's own directory.
        foreign = sorted(set(os.listdir(self.path)) - OWN_NAMES)
        if foreign:
            raise UsageError(
                f"{self.path} is neither empty nor a content store (there is {foreign[0]!r} in "
                "it): choose another store root"
            )

    def _lock(self) -> None:
        fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip()
            os.close(fd)
            if error.errno != errno.EWOULDBLOCK:
                raise
            who = f" (process {holder})" if holder else ""
            raise UsageError(
                f"the store {self.path} is in use by another daemon{who}: stop it, or give this "
                "one another store root"
            ) from None
        self._lock_fd = fd
        with contextlib.suppress(OSError):  # For people only; a full disk must not stop us here.
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)

    def _check_version(self, version_file: Path) -> None:
        if not version_file.exists():
            fresh = self.path / "VERSION.new"
            fresh.write_text(f"{VERSION}\n")
            fresh.rename(version_file)
            return
        found = version_file.read_text().strip()
        if found != str(VERSION):
            raise UsageError(
                f"the store {self.path} has layout version {found[:20]!r}, this daemon knows "
                f"{VERSION}: use the daemon that made it, or another store root"
            )
