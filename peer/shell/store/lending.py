"""A content's file, lent to somebody who reads from it: to serve, to hash, to deliver.

Lending is cheap: a shared descriptor and a counter. A sealed file that somebody changed from
outside (through a hard link) is not lent: its seal is lifted. Decides nothing else.
"""

import os
from collections.abc import Callable
from types import TracebackType

from peer.shell.store.errors import StoreError, from_os_error, unknown_task
from peer.shell.store.handles import Handles, OpenFile
from peer.shell.store.held import HeldTask, Shelf
from peer.shell.store.recovery import same_file
from shoal.runtime.files import Files
from shoal.wire.errors import Reason
from shoal.wire.ids import TaskId


class LentFile:
    """A read-only descriptor, valid until it is given back, even if the task is removed. Give it
    back with `release` or by leaving a `with` block; a lent task is never evicted."""

    __slots__ = ("_opened", "_release", "fd", "task")

    def __init__(
        self, task: HeldTask, opened: OpenFile, release: Callable[[HeldTask, OpenFile], None]
    ) -> None:
        self.task = task
        self.fd = opened.fd
        self._opened: OpenFile | None = opened
        self._release = release

    @property
    def size_bytes(self) -> int | None:
        """Length of the content; None while it is not known."""
        return self.task.descriptor.geometry.size_bytes

    @property
    def digest(self) -> str | None:
        """`algorithm:hex` of a sealed content; None for one that is not sealed."""
        seal = self.task.seal
        return None if seal is None else seal.digest

    def release(self) -> None:
        """Gives the descriptor back. Safe to call twice, by one thread at a time."""
        opened, self._opened = self._opened, None
        if opened is not None:
            self._release(self.task, opened)

    def __enter__(self) -> "LentFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


class Lender:
    """Lends files. Thread-safe."""

    def __init__(self, *, files: Files, handles: Handles, shelf: Shelf) -> None:
        self._files = files
        self._handles = handles
        self._shelf = shelf

    def lend(self, task_id: TaskId) -> LentFile:
        """A task's file. Raises StoreError: UNKNOWN_TASK, or DISK_FAILED if its bytes are not to
        be trusted or can't be had."""
        with self._shelf.changed:
            task = self._shelf.get(task_id)
            if task.suspect:
                raise _changed(task)
            task.lends += 1
            self._shelf.use(task)
        try:
            opened = self._handles.take(task.slot)
        except OSError as error:
            self._returned(task)
            if task.removed:
                raise unknown_task(task_id) from error
            raise from_os_error(error, f"opening {task.slot.path}") from error
        try:
            self.check(task, opened.fd)
        except BaseException:
            self._give_back(task, opened)
            raise
        return LentFile(task, opened, self._give_back)

    def read(self, task_id: TaskId, start_byte: int, end_byte: int) -> bytes:
        """Some of a task's bytes, fewer where its file ends before. Raises StoreError."""
        parts: list[bytes] = []
        with self.lend(task_id) as lent:
            try:
                while start_byte < end_byte and (
                    part := os.pread(lent.fd, end_byte - start_byte, start_byte)
                ):
                    parts.append(part)
                    start_byte += len(part)
            except OSError as error:
                raise from_os_error(error, f"reading {lent.task.slot.path}") from error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def check(self, task: HeldTask, fd: int) -> None:
        """Raises StoreError if a sealed file is not any more what it was, and lifts its seal."""
        seal = task.seal
        if seal is None:
            return
        try:
            status = self._files.status_fd(fd)
        except OSError as error:
            raise from_os_error(error, f"looking at {task.slot.path}") from error
        if same_file(seal, status):
            return
        with self._shelf.changed:
            if task.seal is seal:
                task.unseal()
                self._shelf.note(task)
        raise _changed(task)

    def _give_back(self, task: HeldTask, opened: OpenFile) -> None:
        self._handles.give_back(opened)
        self._returned(task)

    def _returned(self, task: HeldTask) -> None:
        with self._shelf.changed:
            task.lends -= 1
            assert task.lends >= 0


def _changed(task: HeldTask) -> StoreError:
    return StoreError(
        Reason.DISK_FAILED,
        f"{task.slot.path} was changed by somebody else, perhaps through a hard link: it is "
        "checked again when the task is opened the next time",
    )
