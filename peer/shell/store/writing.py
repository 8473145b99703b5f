"""Writing verified pieces: the hot path, called by several threads at once.

One short lock before the bytes are written and one behind; no SQL, no waiting for the disk. No
two threads write one piece at the same time, so a held piece has exactly the bytes of its record.
Decides whether a piece is still wanted by what the shelf says at both moments.
"""

from collections.abc import Callable

from peer.core.events import PieceRecord
from peer.shell.store.errors import StoreError, from_os_error, unknown_task
from peer.shell.store.handles import Handles
from peer.shell.store.held import HeldTask, Shelf
from peer.shell.store.space import SpaceLimits, in_words
from shoal.runtime.files import Files
from shoal.wire.errors import Reason
from shoal.wire.ids import TaskId
from shoal.wire.limits import PIECES_PER_TASK_MAX


class PieceWriter:
    """Writes pieces. `clear_way(task)` is called, without any lock, for a task whose bytes are in
    doubt or whose piece the database may still call durable; then the write goes on."""

    def __init__(
        self,
        *,
        files: Files,
        handles: Handles,
        shelf: Shelf,
        limits: SpaceLimits,
        clear_way: Callable[[HeldTask], None],
    ) -> None:
        self._files = files
        self._handles = handles
        self._shelf = shelf
        self._limits = limits
        self._clear_way = clear_way

    def write(
        self, task_id: TaskId, piece: int, epoch: int, data: memoryview, record: PieceRecord
    ) -> None:
        """Writes one piece, unless it is held already. Raises StoreError."""
        shelf = self._shelf
        length = len(data)
        task = self._begin(task_id, piece, epoch, length, record)
        if task is None:
            return
        geometry = task.descriptor.geometry
        try:
            opened = self._handles.take(task.slot, write=True)
            try:
                self._files.pwrite(opened.fd, data, geometry.offset_bytes(piece))
            finally:
                self._handles.give_back(opened)
        except BaseException as error:
            with shelf.changed:
                self._end(task, piece)
            if isinstance(error, OSError) and task.removed:
                raise unknown_task(task_id) from error
            if isinstance(error, OSError):
                doing = f"writing piece {piece} to {task.slot.path}"
                raise from_os_error(error, doing) from error
            raise
        with shelf.changed:
            self._end(task, piece)
            if task.removed:
                raise unknown_task(task_id)
            _check_wanted(task, piece, epoch, length)
            if geometry.piece_length_bytes != task.descriptor.geometry.piece_length_bytes:
                raise _late(piece, "the task is cut in another way now")
            task.hold(piece, record, length)
            shelf.note(task)

    def _begin(
        self, task_id: TaskId, piece: int, epoch: int, length: int, record: PieceRecord
    ) -> HeldTask | None:
        """The task, this thread being the only one to write the piece; None: it is held."""
        shelf = self._shelf
        while True:
            with shelf.changed:
                task = shelf.get(task_id)
                while piece in task.writing:
                    shelf.changed.wait()
                    task = shelf.get(task_id)
                if task.held >> piece & 1:
                    _check_same(task, piece, record)
                    return None
                _check_wanted(task, piece, epoch, length)
                if not task.suspect and not task.disowned >> piece & 1:
                    self._check_room(task, length)
                    task.writing[piece] = None
                    return task
            self._clear_way(task)

    def _end(self, task: HeldTask, piece: int) -> None:
        del task.writing[piece]
        self._shelf.changed.notify_all()

    def _check_room(self, task: HeldTask, length: int) -> None:
        # A task of unknown size has reserved nothing: each of its pieces needs room of its own.
        capacity = self._limits.capacity_bytes
        if task.descriptor.geometry.size_bytes is not None or not capacity:
            return
        ledger = self._shelf.ledger
        if ledger.used_bytes + ledger.reserved_bytes + length > capacity:
            raise StoreError(
                Reason.DISK_FULL,
                f"the store's capacity of {in_words(capacity)} is used up by a content whose size "
                "the origin does not tell: remove tasks with `shoal tasks rm`, or raise the "
                "capacity in the configuration",
                needed_bytes=length,
            )


def _check_same(task: HeldTask, piece: int, record: PieceRecord) -> None:
    # Sealed contents have no records in memory and need none: they are known to be right.
    if task.records is not None and task.records[piece].digest != record.digest:
        raise _late(piece, "it is held with another digest")


def _check_wanted(task: HeldTask, piece: int, epoch: int, length: int) -> None:
    if epoch != task.descriptor.epoch:
        raise _late(piece, f"its epoch {epoch} is not the present one, {task.descriptor.epoch}")
    geometry = task.descriptor.geometry
    if geometry.size_bytes is None:
        fits = piece < PIECES_PER_TASK_MAX and 0 < length <= geometry.piece_length_bytes
    else:
        fits = piece < geometry.piece_count and length == geometry.length_bytes(piece)
    if not fits:
        raise _late(piece, f"{length} bytes are not what the task has there")


def _late(piece: int, why: str) -> StoreError:
    return StoreError(Reason.CANCELLED, f"piece {piece} was not kept: {why}")
