"""Opening a task: making its file with its room set aside, or fitting a held one to a new word.

Carries out what `decide_reopening` and the ledger say. The caller lets only one thread at a time
open, seal or remove a task. Raises StoreError.
"""

import contextlib
from collections.abc import Callable

from peer.shell.store.errors import StoreError, translated
from peer.shell.store.handles import FileSlot, Handles
from peer.shell.store.held import HeldTask, Shelf
from peer.shell.store.journal import Journal
from peer.shell.store.recovery import OPEN_MODE, Recovery
from peer.shell.store.reopening import Reopening, decide_reopening
from peer.shell.store.root import StoreRoot
from peer.shell.store.space import Share, SpaceLimits, no_room_text, share_of
from shoal.runtime.files import Files
from shoal.wire.control import TaskDescriptor
from shoal.wire.errors import Reason


class Opener:
    """Creates and reopens tasks."""

    def __init__(
        self,
        *,
        root: StoreRoot,
        files: Files,
        handles: Handles,
        shelf: Shelf,
        journal: Journal,
        recovery: Recovery,
        limits: SpaceLimits,
        now_unix_s: Callable[[], int],
    ) -> None:
        self._root = root
        self._files = files
        self._handles = handles
        self._shelf = shelf
        self._journal = journal
        self._recovery = recovery
        self._limits = limits
        self._now_unix_s = now_unix_s

    def create(self, descriptor: TaskDescriptor) -> HeldTask:
        """A task that the store does not have: reserves its room and makes its file."""
        task_id = descriptor.task_id
        shelf = self._shelf
        self._reserve(descriptor)
        try:
            with shelf.changed:
                settle = task_id in shelf.unsettled
            if settle:
                # The database may still call pieces of the removed file durable. It must have
                # forgotten that before a new file gets the same name.
                self._journal.flush(durably=True)
            slot = FileSlot(self._root.file_of(task_id))
            fd, backed = self._make_file(slot, descriptor)
        except BaseException:
            with shelf.changed:
                shelf.ledger.clear(task_id)
            raise
        with shelf.changed:
            task = HeldTask(
                number=shelf.next_number(),
                descriptor=descriptor,
                slot=slot,
                access_order=shelf.next_access(),
                created_unix_s=self._now_unix_s(),
                backed=backed,
            )
            shelf.put(task)
        self._handles.adopt(slot, fd)
        return task

    def reopen(self, task: HeldTask, descriptor: TaskDescriptor) -> None:
        """A task that the store has: takes over what is said of it now."""
        shelf = self._shelf
        with shelf.changed:
            decision = _decide(task, descriptor)
        if decision.cut_anew:
            with translated(f"reading {task.slot.path}"):
                self._recovery.cut_anew(task, decision.descriptor)
            return
        size = decision.descriptor.geometry.size_bytes
        resized = size != task.descriptor.geometry.size_bytes
        if resized:
            self._reserve(decision.descriptor)
        with shelf.changed:
            # Once more: pieces may have been written meanwhile.
            decision = _decide(task, descriptor)
            task.drop(task.held & ~decision.keep)
            if decision.descriptor != task.descriptor:
                task.descriptor = decision.descriptor
                task.journal_row = True
            if resized:
                task.backed = False
                task.short.clear()
            shelf.note(task)
        if task.seal is None and size is not None and not task.backed:
            self._resize(task, size)

    def _reserve(self, descriptor: TaskDescriptor) -> None:
        """Sets the room of a task aside, or raises DISK_FULL."""
        shelf, task_id = self._shelf, descriptor.task_id
        with translated(f"asking for free space on {self._root.content}"):
            disk_free = self._files.free_bytes(self._root.content)
        with shelf.changed:
            had = shelf.ledger.share(task_id)
            wanted = share_of(descriptor.geometry.size_bytes, had.used, backed=False)
            needed = _occupied(wanted) - _occupied(had)
            usage = shelf.ledger.usage(self._limits, disk_free)
            if needed > usage.free_bytes:
                raise StoreError(Reason.DISK_FULL, no_room_text(usage, needed), needed_bytes=needed)
            shelf.ledger.set(task_id, wanted)

    def _make_file(self, slot: FileSlot, descriptor: TaskDescriptor) -> tuple[int, bool]:
        files, path = self._files, slot.path
        with translated(f"creating {path}"):
            files.make_dir(path.parent, 0o700)
            # A file that could not be deleted earlier may be there. Never truncate it: it may
            # have other names.
            with contextlib.suppress(FileNotFoundError):
                files.unlink(path)
            fd = files.open(path, write=True, create=True, mode=OPEN_MODE)
            try:
                return fd, self._allocate(fd, descriptor.geometry.size_bytes)
            except BaseException:
                files.close(fd)
                files.unlink(path)
                raise

    def _allocate(self, fd: int, size_bytes: int | None) -> bool:
        if size_bytes is None:
            return False
        backed = self._files.fallocate(fd, size_bytes)
        self._files.truncate(fd, size_bytes)
        return backed

    def _resize(self, task: HeldTask, size_bytes: int) -> None:
        with translated(f"resizing {task.slot.path}"):
            opened = self._handles.take(task.slot, write=True)
            try:
                backed = self._allocate(opened.fd, size_bytes)
            finally:
                self._handles.give_back(opened)
        with self._shelf.changed:
            task.backed = backed
            self._shelf.note(task)


def _decide(task: HeldTask, descriptor: TaskDescriptor) -> Reopening:
    return decide_reopening(
        task.descriptor,
        descriptor,
        held=task.held,
        sealed=task.seal is not None,
        short=task.short,
    )


def _occupied(share: Share) -> int:
    return share.used + share.reserved
