"""Beginning a run: what the metadata says and what is really on disk are brought together.

Files that nobody knows are deleted, tasks without a file are forgotten, pieces that may not have
survived are re-hashed and wrong ones dropped. What is left may be offered without further doubt.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from peer.core.events import StoredTask
from peer.shell.store.handles import FileSlot
from peer.shell.store.held import HeldTask, Shelf, stored_of
from peer.shell.store.metadata import Metadata, PieceRow, TaskRow
from peer.shell.store.recovery import OPEN_MODE, Doubt, Recovery, mask_of, same_file
from peer.shell.store.root import StoreRoot
from shoal.runtime.files import Files, FileStatus
from shoal.wire.ids import TaskId


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """What a start had to mend, for the log."""

    checked_pieces: int = 0
    wrong_pieces: int = 0
    orphan_files: int = 0
    """Deleted: no metadata."""
    lost_tasks: int = 0
    """Forgotten: no file."""


class Loader:
    """Fills an empty shelf from disk."""

    def __init__(
        self,
        *,
        root: StoreRoot,
        files: Files,
        metadata: Metadata,
        shelf: Shelf,
        recovery: Recovery,
    ) -> None:
        self._root = root
        self._files = files
        self._metadata = metadata
        self._shelf = shelf
        self._recovery = recovery

    def load(self) -> tuple[tuple[StoredTask, ...], Recovered]:
        """Every task that survived, by age. Raises OSError, sqlite3.Error."""
        rows = self._metadata.read_tasks()
        shelf = self._shelf
        shelf.start_after(
            max((row.number for row in rows), default=0),
            max((row.access_order for row in rows), default=0),
        )
        orphans = self._sweep({row.descriptor.task_id for row in rows})
        tasks, doubts = self._adopt_all(rows)
        checked = sum(doubt.pieces.bit_count() for doubt in doubts)
        held = sum(doubt.task.held.bit_count() for doubt in doubts)
        self._recovery.settle(doubts)
        left = sum(doubt.task.held.bit_count() for doubt in doubts)
        stored = tuple(self._stored(task) for task in tasks)
        return stored, Recovered(
            checked_pieces=checked,
            wrong_pieces=held - left,
            orphan_files=orphans,
            lost_tasks=len(rows) - len(tasks),
        )

    def _sweep(self, known: set[TaskId]) -> int:
        """Deletes files that no task owns; returns how many."""
        content, orphans = self._root.content, 0
        for name in self._files.list_dir(content):
            directory = content / name
            status = self._files.status(directory)
            if status is None or not status.is_directory:
                continue
            for file_name in self._files.list_dir(directory):
                if file_name not in known or file_name[:2] != name:
                    with contextlib.suppress(IsADirectoryError, PermissionError):
                        self._files.unlink(directory / file_name)
                        orphans += 1
        return orphans

    def _adopt_all(self, rows: Sequence[TaskRow]) -> tuple[list[HeldTask], list[Doubt]]:
        pieces = self._metadata.read_all_pieces()
        number, pieces_of_task = next(pieces, (0, []))
        tasks: list[HeldTask] = []
        doubts: list[Doubt] = []
        with contextlib.closing(pieces):
            for row in rows:
                while pieces_of_task and number < row.number:
                    number, pieces_of_task = next(pieces, (0, []))
                own = pieces_of_task if number == row.number else []
                path = self._root.file_of(row.descriptor.task_id)
                status = self._files.status(path)
                if status is None:
                    self._shelf.removed[row.number] = row.descriptor.task_id
                    self._shelf.unsettled[row.descriptor.task_id] = None
                    continue
                task, doubt = adopt(row, own, FileSlot(path), status)
                self._shelf.put(task)
                tasks.append(task)
                if doubt is not None:
                    doubts.append(doubt)
        return tasks, doubts

    def _stored(self, task: HeldTask) -> StoredTask:
        assert task.records is not None
        records = task.records
        if task.seal is not None and not task.journal_pieces:
            task.records = None  # The core has them now; the database keeps them for us.
        else:
            records = dict(records)
        return stored_of(task, records)


def adopt(
    row: TaskRow, pieces: Sequence[PieceRow], slot: FileSlot, status: FileStatus
) -> tuple[HeldTask, Doubt | None]:
    """A task as its rows and its file tell it, and what is doubtful about it."""
    geometry = row.descriptor.geometry
    held = mask_of(one.piece for one in pieces)
    task = HeldTask(
        number=row.number,
        descriptor=row.descriptor,
        slot=slot,
        access_order=row.access_order,
        created_unix_s=row.created_unix_s,
        records={piece.piece: piece.record for piece in pieces},
        held=held,
        durable=row.durable & held,
        seal=row.seal,
        journal_row=False,
        named=True,
    )
    if geometry.size_bytes is None:
        full = geometry.piece_length_bytes
        task.short = {one.piece: one.length_bytes for one in pieces if one.length_bytes != full}
    else:
        task.backed = status.allocated_bytes >= geometry.size_bytes
    task.written_bytes = task.held_bytes(held)
    # Whoever reads the list of held pieces takes them for full ones while the size is unknown.
    task.drop(sum(1 << piece for piece in task.short))
    if task.seal is not None:
        fit = same_file(task.seal, status) and held == geometry.all_pieces
    else:
        # An unsealed file that has other names, or must not be written to: its seal was lifted
        # (or not yet written down) when the last run was cut off.
        fit = status.links == 1 and status.mode == OPEN_MODE
    if not fit:
        task.unseal()
    doubtful = task.held & ~task.durable
    if fit and not doubtful:
        return task, None
    return task, Doubt(task, doubtful, apart=status.links > 1)
