"""Writing what changed in memory into the metadata database, in batches.

Collects the changes of all tasks under the shelf's lock, commits them without it, and gives them
back if the commit fails, so that nothing is forgotten. A change is collected only after the bytes
it speaks of were written, because it is noted only then.
"""

import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from peer.shell.store.errors import from_sqlite_error
from peer.shell.store.held import HeldTask, Shelf
from peer.shell.store.metadata import Batch, Metadata, PieceRow, TaskRow
from shoal.wire import bitfield
from shoal.wire.ids import TaskId


@dataclass(slots=True)
class Collected:
    """One batch and what it covers, to give it back if it can't be written."""

    batch: Batch
    tasks: list[tuple[HeldTask, int, bool, bool]] = field(default_factory=list)
    """(task, pieces, row, access)"""
    removed: dict[int, TaskId] = field(default_factory=dict)
    unsettled: dict[TaskId, None] = field(default_factory=dict)
    disowned: list[tuple[HeldTask, int]] = field(default_factory=list)


class Journal:
    """Brings the database in line with the shelf. Thread-safe.

    `on_commit(durably)` is called behind each commit: tests look at the database there.
    """

    def __init__(
        self,
        metadata: Metadata,
        shelf: Shelf,
        *,
        on_commit: Callable[[bool], None] | None = None,
    ) -> None:
        self._metadata = metadata
        self._shelf = shelf
        self._on_commit = on_commit
        self._writing = threading.Lock()

    def flush(self, *, durably: bool = False) -> None:
        """Commits everything noted so far. `durably`: it survives a loss of power when this
        returns. Raises StoreError; then all of it is still to be written."""
        with self._writing:
            with self._shelf.changed:
                collected = self._collect()
            if collected.batch.empty and not durably:
                return
            try:
                self._metadata.commit(collected.batch, durably=durably)
            except sqlite3.Error as error:
                with self._shelf.changed:
                    self._give_back(collected)
                doing = f"writing {self._metadata.path}"
                raise from_sqlite_error(error, doing) from error
            with self._shelf.changed:
                self._committed(collected, durably)
            if self._on_commit is not None:
                self._on_commit(durably)

    def _collect(self) -> Collected:
        shelf = self._shelf
        rows: list[TaskRow] = []
        accesses: list[tuple[int, int]] = []
        dropped: list[tuple[int, int]] = []
        pieces: list[tuple[int, PieceRow]] = []
        covered: list[tuple[HeldTask, int, bool, bool]] = []
        for task in shelf.dirty.values():
            changed = task.journal_pieces
            covered.append((task, changed, task.journal_row, task.journal_access))
            if task.journal_row:
                rows.append(row_of(task))
            elif task.journal_access:
                accesses.append((task.number, task.access_order))
            if gone := changed & ~task.held:
                dropped.append((task.number, gone))
            assert task.records is not None or not changed & task.held
            if records := task.records:
                pieces.extend(
                    (task.number, PieceRow(piece, records[piece], task.length_bytes(piece)))
                    for piece in bitfield.pieces(changed & task.held)
                )
            task.journal_pieces = 0
            task.journal_row = task.journal_access = False
        collected = Collected(
            Batch(tuple(shelf.removed), rows, accesses, dropped, pieces),
            covered,
            dict(shelf.removed),
            dict(shelf.unsettled),
            [(task, task.disowned) for task in shelf.disowning.values()],
        )
        shelf.dirty.clear()
        shelf.removed.clear()
        return collected

    def _give_back(self, collected: Collected) -> None:
        shelf = self._shelf
        shelf.removed.update(collected.removed)
        for task, changed, row, access in collected.tasks:
            task.journal_pieces |= changed
            task.journal_row |= row
            task.journal_access |= access
            if not task.removed:
                shelf.dirty[task.number] = task

    def _committed(self, collected: Collected, durably: bool) -> None:
        shelf = self._shelf
        for task, _, _, _ in collected.tasks:
            if task.seal is not None and not task.journal_pieces:
                # A sealed content's records are seldom asked for: the database has them.
                task.records = None
        if not durably:
            return
        removed_since = set(shelf.removed.values())
        for task_id in collected.unsettled:
            if task_id not in removed_since:
                shelf.unsettled.pop(task_id, None)
        for task, disowned in collected.disowned:
            task.disowned &= ~disowned
            if not task.disowned:
                shelf.disowning.pop(task.number, None)


def row_of(task: HeldTask) -> TaskRow:
    """What is kept of a task as it is now."""
    return TaskRow(
        task.number,
        task.descriptor,
        task.durable,
        task.seal,
        task.access_order,
        task.created_unix_s,
    )
