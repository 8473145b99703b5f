"""What the store knows of its tasks in memory, and which facts are still to be journalled.

Plain records with the changes that keep them consistent; no IO. Everything here is used under
the one lock of `Shelf`. Masks are integers (`shoal.wire.bitfield`).
"""

import threading
from dataclasses import dataclass, field

from peer.core.events import PieceRecord, StoredTask
from peer.shell.store.errors import StoreError, unknown_task
from peer.shell.store.handles import FileSlot
from peer.shell.store.space import Ledger, share_of
from shoal.wire import bitfield
from shoal.wire.control import TaskDescriptor
from shoal.wire.errors import Reason
from shoal.wire.ids import TaskId


@dataclass(frozen=True, slots=True)
class Seal:
    """The mark of a whole and verified content, and how its file looked at that moment."""

    digest: str
    size_bytes: int
    mtime_ns: int


@dataclass(slots=True, eq=False)
class HeldTask:
    """One task in the store, from its creation to its removal; a task that comes back later is
    another one."""

    number: int
    descriptor: TaskDescriptor
    slot: FileSlot
    access_order: int
    created_unix_s: int
    records: dict[int, PieceRecord] | None = field(default_factory=dict)
    """By piece. None: they rest in the database, as for sealed tasks."""
    held: int = 0
    short: dict[int, int] = field(default_factory=dict)
    """Lengths of pieces shorter than the piece length while the size is not known."""
    written_bytes: int = 0
    backed: bool = False
    """The file system has set aside all blocks."""
    seal: Seal | None = None
    suspect: bool = False
    """The bytes may not be those that were verified: to be re-hashed before anything else."""
    removed: bool = False
    pins: int = 0
    lends: int = 0
    writing: dict[int, None] = field(default_factory=dict)
    """Pieces whose bytes a thread is writing at this moment."""
    unsynced: int = 0
    """Written since the file was last made durable."""
    syncing: int = 0
    """Being made durable now."""
    durable: int = 0
    """Known to survive a loss of power."""
    disowned: int = 0
    """Dropped, while the database may still call them durable: their range must not be written
    to before it was made to forget that."""
    named: bool = False
    """The file's name is durable."""
    journal_pieces: int = 0
    """Pieces whose rows in the database are out of date."""
    journal_row: bool = True
    journal_access: bool = False

    @property
    def task_id(self) -> TaskId:
        """The task's id."""
        return self.descriptor.task_id

    @property
    def busy(self) -> bool:
        """In use: not to be evicted."""
        return bool(self.pins or self.lends or self.writing)

    def length_bytes(self, piece: int) -> int:
        """How long a held piece is."""
        return self.short.get(piece) or self.descriptor.geometry.length_bytes(piece)

    def held_bytes(self, pieces: int) -> int:
        """How many bytes these held pieces have."""
        total = self.descriptor.geometry.held_bytes(pieces)
        full = self.descriptor.geometry.piece_length_bytes
        return total - sum(full - n for piece, n in self.short.items() if pieces >> piece & 1)

    def hold(self, piece: int, record: PieceRecord, length_bytes: int) -> None:
        """A piece was written."""
        bit = 1 << piece
        assert self.records is not None
        assert not self.held & bit
        geometry = self.descriptor.geometry
        if geometry.size_bytes is None and length_bytes < geometry.piece_length_bytes:
            self.short[piece] = length_bytes
        self.records[piece] = record
        self.held |= bit
        self.written_bytes += length_bytes
        self.unsynced |= bit
        self.journal_pieces |= bit

    def drop(self, pieces: int) -> None:
        """Pieces are not held any more. A sealed content that loses one is not sealed."""
        pieces &= self.held
        if not pieces:
            return
        self.written_bytes -= self.held_bytes(pieces)
        self.held &= ~pieces
        if self.records is not None or self.short:
            for piece in bitfield.pieces(pieces):
                self.short.pop(piece, None)
                if self.records is not None:
                    self.records.pop(piece, None)
        if self.durable & pieces:
            self.disowned |= self.durable & pieces
            self.durable &= ~pieces
            self.journal_row = True
        self.unsynced &= ~pieces
        self.syncing &= ~pieces
        self.journal_pieces |= pieces
        if self.seal is not None:
            self.unseal()

    def unseal(self) -> None:
        """The content is not taken for whole and right any more; all of its bytes are in doubt."""
        self.seal = None
        self.suspect = True
        self.disowned |= self.durable
        self.durable = self.unsynced = self.syncing = 0
        self.journal_row = True


def stored_of(task: HeldTask, records: dict[int, PieceRecord]) -> StoredTask:
    """A task as the core sees it. `records` are given away. Short pieces are left out: while the
    size is not known, whoever reads the list takes every piece for a full one."""
    held = task.held
    for piece in task.short:
        held &= ~(1 << piece)
        del records[piece]
    return StoredTask(
        descriptor=task.descriptor,
        held=held,
        sealed=task.seal is not None,
        records=records,
        digest=task.seal.digest if task.seal is not None else "",
    )


class Shelf:
    """All tasks of a store with the lock that guards them. `changed` is that lock; it is also
    waited on for writes in flight to end."""

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.Lock())
        self.tasks: dict[TaskId, HeldTask] = {}
        self.ledger = Ledger()
        self.dirty: dict[int, HeldTask] = {}
        """By number: tasks with something to journal."""
        self.removed: dict[int, TaskId] = {}
        """By number: removed tasks whose rows are still to be deleted."""
        self.unsettled: dict[TaskId, None] = {}
        """Removed tasks that the database may still remember after a loss of power."""
        self.disowning: dict[int, HeldTask] = {}
        """By number: tasks with disowned pieces."""
        self.unsynced: dict[int, HeldTask] = {}
        """By number: tasks with pieces to make durable."""
        self.closed = False
        self._last_number = 0
        self._last_access = 0

    def start_after(self, number: int, access_order: int) -> None:
        """The largest numbers used in earlier runs."""
        self._last_number = number
        self._last_access = access_order

    def next_number(self) -> int:
        """The number of a new task."""
        self._last_number += 1
        return self._last_number

    def next_access(self) -> int:
        """A place in the order of use behind all others."""
        self._last_access += 1
        return self._last_access

    def get(self, task_id: TaskId) -> HeldTask:
        """A task. Raises StoreError: UNKNOWN_TASK, or SHUTTING_DOWN once the store is closed."""
        if self.closed:
            raise StoreError(Reason.SHUTTING_DOWN, "the store is closed")
        task = self.tasks.get(task_id)
        if task is None:
            raise unknown_task(task_id)
        return task

    def put(self, task: HeldTask) -> None:
        """A task is there from now on."""
        assert task.task_id not in self.tasks
        self.tasks[task.task_id] = task
        self.note(task)

    def take_out(self, task: HeldTask) -> None:
        """A task is gone."""
        if self.tasks.get(task.task_id) is task:
            del self.tasks[task.task_id]
            self.ledger.clear(task.task_id)
        task.removed = True
        self.dirty.pop(task.number, None)
        self.disowning.pop(task.number, None)
        self.unsynced.pop(task.number, None)
        self.removed[task.number] = task.task_id
        self.unsettled[task.task_id] = None
        self.changed.notify_all()

    def note(self, task: HeldTask) -> None:
        """Something about a task changed: it is to be journalled, and its room counted anew."""
        if task.removed:
            return
        self.dirty[task.number] = task
        if task.disowned:
            self.disowning[task.number] = task
        if task.unsynced:
            self.unsynced[task.number] = task
        self.ledger.set(
            task.task_id,
            share_of(task.descriptor.geometry.size_bytes, task.written_bytes, backed=task.backed),
        )

    def use(self, task: HeldTask) -> None:
        """A task is used now."""
        task.access_order = self.next_access()
        task.journal_access = True
        if not task.removed:
            self.dirty[task.number] = task

    def close(self) -> None:
        """No task is given out any more. Returns when the last write has ended."""
        self.closed = True
        while any(task.writing for task in self.tasks.values()):
            self.changed.wait()

    def validate(self) -> None:
        """Checks all invariants in O(n)."""
        self.ledger.validate()
        for task_id, task in self.tasks.items():
            assert task.task_id == task_id
            assert not task.removed
            assert task.written_bytes == task.held_bytes(task.held)
            geometry = task.descriptor.geometry
            share = share_of(geometry.size_bytes, task.written_bytes, backed=task.backed)
            assert self.ledger.share(task_id) == share
            assert task.durable & ~task.held == 0, "a piece is durable that is not held"
            assert (task.unsynced | task.syncing) & ~task.held == 0
            assert task.durable & (task.unsynced | task.syncing) == 0
            if task.records is not None:
                assert set(task.records) == set(bitfield.pieces(task.held))
            if geometry.size_bytes is not None:
                assert task.held & ~geometry.all_pieces == 0
                assert not task.short
            if task.seal is not None:
                assert task.held == geometry.all_pieces
            if task.journal_pieces or task.journal_row or task.journal_access:
                assert task.number in self.dirty
            if task.unsynced:
                assert task.number in self.unsynced
            if task.disowned:
                assert task.number in self.disowning
        assert set(self.ledger.known()) == set(self.tasks)
