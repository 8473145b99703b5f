"""Making written pieces durable in the background.

fdatasync of whole files, then one durable commit that says so: in this order a piece is never
called durable that is not. Decides nothing but which tasks come next.
"""

import threading
from itertools import islice
from typing import Final

from peer.shell.store.errors import StoreError, from_os_error
from peer.shell.store.handles import Handles
from peer.shell.store.held import HeldTask, Shelf
from peer.shell.store.journal import Journal
from peer.shell.store.root import StoreRoot
from shoal.runtime.files import Files

TASKS_MAX: Final = 16
"""Files made durable per call, so that one call does not take for ever."""


class Syncer:
    """Makes pieces durable. Thread-safe; one call works, others wait."""

    def __init__(
        self,
        *,
        root: StoreRoot,
        files: Files,
        handles: Handles,
        shelf: Shelf,
        journal: Journal,
    ) -> None:
        self._root = root
        self._files = files
        self._handles = handles
        self._shelf = shelf
        self._journal = journal
        self._working = threading.Lock()

    def sync_some(self, tasks_max: int | None = TASKS_MAX) -> bool:
        """Makes durable what some tasks have written so far, all of them for None. True: there
        are more to do. Raises the first StoreError when it has tried them all; pieces that the
        disk failed to make durable are not tried again but re-hashed at the next start."""
        shelf = self._shelf
        failure: StoreError | None = None
        with self._working:
            with shelf.changed:
                tasks = list(islice(shelf.unsynced.values(), tasks_max))
                for task in tasks:
                    del shelf.unsynced[task.number]
                    task.syncing, task.unsynced = task.unsynced, 0
            for task in tasks:
                try:
                    self._sync(task)
                except OSError as error:
                    if not task.removed:
                        failure = failure or from_os_error(error, f"syncing {task.slot.path}")
            if tasks:
                self._journal.flush(durably=True)
            if failure is not None:
                raise failure
            return bool(shelf.unsynced)

    def _sync(self, task: HeldTask) -> None:
        try:
            opened = self._handles.take(task.slot)
        except OSError:
            # The disk was not even asked: to be tried again.
            with self._shelf.changed:
                task.unsynced |= task.syncing
                task.syncing = 0
                if not task.removed:
                    self._shelf.note(task)
            raise
        done = False
        try:
            self._files.fdatasync(opened.fd)
            if not task.named:
                self._files.fsync_dir(task.slot.path.parent)
                self._files.fsync_dir(self._root.content)
            done = True
        finally:
            self._handles.give_back(opened)
            with self._shelf.changed:
                # After a failed fdatasync the kernel calls the lost pages clean and the next one
                # succeeds: these pieces must never be called durable in this run.
                if done:
                    task.durable |= task.syncing
                    task.named = True
                    task.journal_row = True
                task.syncing = 0
                self._shelf.note(task)
