"""Settling doubts: pieces that may not be what was verified are re-hashed, wrong ones dropped.

Also lifts the seal of a content that somebody changed from outside: its right pieces are kept, in
a new file if the old one has other names, because what others do with their names for it is
theirs. Decides nothing but which pieces are still right. Raises OSError, StoreError.
"""

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from peer.core.events import PieceRecord
from peer.shell.store.errors import FULL, StoreError
from peer.shell.store.handles import FileSlot, Handles
from peer.shell.store.held import HeldTask, Seal, Shelf
from peer.shell.store.metadata import Metadata
from peer.shell.store.rehash import FileCheck, PieceCheck, Rehasher
from shoal.runtime.files import Files, FileStatus
from shoal.wire import bitfield
from shoal.wire.control import TaskDescriptor
from shoal.wire.errors import Reason
from shoal.wire.ids import NO_LEASE

SEALED_MODE: Final = 0o444
"""Read-only, so that a hard link to it is not written to by accident."""

OPEN_MODE: Final = 0o600


@dataclass(frozen=True, slots=True)
class Doubt:
    """A task of which these pieces must be re-hashed. `apart`: its file has other names, under
    which others use it; if it must be written to, then as a new file."""

    task: HeldTask
    pieces: int
    apart: bool


class Recovery:
    """Settles doubts. The caller keeps others from opening, sealing or removing the tasks."""

    def __init__(
        self,
        *,
        files: Files,
        handles: Handles,
        shelf: Shelf,
        metadata: Metadata,
        rehasher: Rehasher,
    ) -> None:
        self._files = files
        self._handles = handles
        self._shelf = shelf
        self._metadata = metadata
        self._rehasher = rehasher

    def settle(self, doubts: Sequence[Doubt]) -> None:
        """Re-hashes what is doubtful. Afterwards every held piece of these tasks is right, and no
        unsealed one shares its file with others."""
        # A sealed content of which some piece is wrong loses its seal in the first round; if its
        # file has other names, the second one takes it apart.
        left = self._settle_round(self._settle_round(doubts))
        assert not left

    def settle_task(self, task: HeldTask) -> None:
        """Settles what is doubtful about a task while the store is in use, if anything is."""
        with self._shelf.changed:
            if not task.suspect or task.removed:
                return
            while task.writing:
                self._shelf.changed.wait()
        if task.records is None:
            records = self.read_records(task)
            with self._shelf.changed:
                task.records = only_held(records, task.held)
        status = self._files.status(task.slot.path)
        apart = status is None or status.links > 1
        self.settle([Doubt(task, task.held, apart=apart)])

    def read_records(self, task: HeldTask) -> dict[int, PieceRecord]:
        """The records of a task as they rest in the database."""
        return {row.piece: row.record for row in self._metadata.read_pieces(task.number)}

    def _settle_round(self, doubts: Sequence[Doubt]) -> list[Doubt]:
        checks: list[FileCheck] = []
        for doubt in doubts:
            fresh = None
            if doubt.apart and doubt.task.seal is None:
                fresh = self._make_fresh(doubt.task)
            with self._shelf.changed:
                checks.append(check_of(doubt.task, doubt.pieces, fresh))
        again: list[Doubt] = []
        for doubt, check, right in zip(doubts, checks, self._rehasher.run(checks), strict=True):
            task = doubt.task
            if check.copy_to is not None:
                self._replace(task, check.copy_to)
            with self._shelf.changed:
                checked = mask_of(piece.piece for piece in check.pieces)
                task.drop(checked & ~mask_of(right))
                task.unsynced |= task.held & ~task.durable & ~task.syncing
                self._shelf.note(task)
                unsealed = task.seal is None
                if check.copy_to is not None or not (unsealed and doubt.apart):
                    task.suspect = False
            if unsealed and check.copy_to is None:
                if doubt.apart:
                    again.append(Doubt(task, task.held, apart=True))
                else:
                    self._files.chmod(task.slot.path, OPEN_MODE)
        return again

    def _make_fresh(self, task: HeldTask) -> Path:
        """A new file beside the task's own, as long as that has to be."""
        files = self._files
        fresh = task.slot.path.with_name(f"{task.task_id}.new")
        with contextlib.suppress(FileNotFoundError):
            files.unlink(fresh)
        fd = files.open(fresh, write=True, create=True)
        backed = False
        try:
            size = task.descriptor.geometry.size_bytes
            if size is not None:
                backed = files.fallocate(fd, size)
                files.truncate(fd, size)
        except OSError as error:
            if error.errno not in FULL:
                raise
            # No room for a copy: begin again, from nothing. The others keep their file.
            with self._shelf.changed:
                task.drop(task.held)
        finally:
            files.close(fd)
        with self._shelf.changed:
            task.backed = backed
        return fresh

    def _replace(self, task: HeldTask, fresh: Path) -> None:
        # Lifting the seal has taken back what was called durable: that was so in the old file. If
        # the database should not come to know, the new file still is not the one that was sealed.
        assert not task.durable
        self._files.rename(fresh, task.slot.path)
        self._handles.retire(task.slot)
        with self._shelf.changed:
            task.slot = FileSlot(task.slot.path)
            task.named = False

    def cut_anew(self, task: HeldTask, descriptor: TaskDescriptor) -> None:
        """A sealed content gets other pieces: computes their digests. Raises StoreError if it
        can't be read."""
        geometry = descriptor.geometry
        wanted = [
            PieceCheck(piece, geometry.offset_bytes(piece), geometry.length_bytes(piece), None)
            for piece in range(geometry.piece_count)
        ]
        check = FileCheck(task.slot.path, descriptor.piece_digest, wanted)
        (digests,) = self._rehasher.run([check])
        if len(digests) != geometry.piece_count:
            raise StoreError(
                Reason.DISK_FAILED, f"{task.slot.path} can't be read back: remove the task"
            )
        with self._shelf.changed:
            was_durable = task.durable == task.held
            task.journal_pieces |= task.held | geometry.all_pieces
            task.records = {
                piece: PieceRecord(digest, NO_LEASE, read_here=False)
                for piece, digest in digests.items()
            }
            task.descriptor = descriptor
            task.held = geometry.all_pieces
            task.durable = task.held if was_durable else 0
            task.unsynced, task.syncing = task.held & ~task.durable, 0
            task.journal_row = True
            self._shelf.note(task)


def same_file(seal: Seal, status: FileStatus) -> bool:
    """Whether a sealed file looks as it did when it was sealed."""
    return (status.size_bytes, status.mtime_ns) == (seal.size_bytes, seal.mtime_ns)


def check_of(task: HeldTask, pieces: int, copy_to: Path | None) -> FileCheck:
    """What to re-hash of a task; all that is held if it is to be copied."""
    records = task.records
    assert records is not None
    geometry = task.descriptor.geometry
    wanted = task.held if copy_to is not None else pieces & task.held
    return FileCheck(
        task.slot.path,
        task.descriptor.piece_digest,
        [
            PieceCheck(
                piece,
                geometry.offset_bytes(piece),
                task.length_bytes(piece),
                records[piece].digest,
            )
            for piece in bitfield.pieces(wanted)
        ],
        copy_to,
    )


def only_held(records: dict[int, PieceRecord], held: int) -> dict[int, PieceRecord]:
    """The records without those of pieces that are not held."""
    for piece in bitfield.pieces(mask_of(records) & ~held):
        del records[piece]
    return records


def mask_of(pieces: Iterable[int]) -> int:
    """The mask of single pieces."""
    data = bytearray()
    for piece in pieces:
        index = piece >> 3
        if index >= len(data):
            data.extend(bytes(index + 1 - len(data)))
        data[index] |= 1 << (piece & 7)
    return int.from_bytes(data, "little")
