"""The store's memory on disk: one SQLite database with tasks, pieces and a few facts.

Written in batches, one transaction each. SQLite's WAL with synchronous=NORMAL keeps the database
whole over a loss of power, but may lose the last transactions; a commit asked for *durably* makes
itself and all before it last. Decides nothing: it stores rows and gives them back. Raises
sqlite3.Error.
"""

import sqlite3
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from peer.core.events import PieceRecord
from peer.shell.store.held import Seal
from shoal.wire import bitfield
from shoal.wire.control import TaskDescriptor
from shoal.wire.geometry import Geometry
from shoal.wire.ids import LeaseNumber, SourceId, TaskId
from shoal.wire.limits import PIECES_PER_TASK_MAX

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tasks (
    number INTEGER PRIMARY KEY,
    task_id TEXT NOT NULL UNIQUE,
    source_id TEXT NOT NULL,
    size_bytes INTEGER,
    piece_length_bytes INTEGER NOT NULL,
    run_pieces INTEGER NOT NULL,
    digest TEXT,
    validator TEXT,
    ranges INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    piece_digest TEXT NOT NULL,
    durable BLOB NOT NULL,
    sealed_digest TEXT,
    sealed_size_bytes INTEGER,
    sealed_mtime_ns INTEGER,
    access_order INTEGER NOT NULL,
    created_unix_s INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS pieces (
    task INTEGER NOT NULL,
    piece INTEGER NOT NULL,
    digest BLOB NOT NULL,
    lease_number INTEGER NOT NULL,
    read_here INTEGER NOT NULL,
    length_bytes INTEGER NOT NULL,
    PRIMARY KEY (task, piece)
) WITHOUT ROWID;
"""

TASK_COLUMNS: Final = (
    "number, task_id, source_id, size_bytes, piece_length_bytes, run_pieces, digest, validator, "
    "ranges, epoch, piece_digest, durable, sealed_digest, sealed_size_bytes, sealed_mtime_ns, "
    "access_order, created_unix_s"
)
TASK_MARKS: Final = ", ".join("?" * 17)

BUSY_TIMEOUT_S: Final = 5.0
"""Another process looks at the database (a backup, an operator): wait so long for it."""


@dataclass(frozen=True, slots=True)
class TaskRow:
    """What is kept of a task. `durable`: pieces known to survive a loss of power."""

    number: int
    descriptor: TaskDescriptor
    durable: int
    seal: Seal | None
    access_order: int
    created_unix_s: int


@dataclass(frozen=True, slots=True)
class PieceRow:
    """What is kept of a piece."""

    piece: int
    record: PieceRecord
    length_bytes: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Changes that belong into one transaction, carried out in this order."""

    removed: Sequence[int] = ()
    """Numbers of tasks to forget."""
    tasks: Sequence[TaskRow] = ()
    accesses: Sequence[tuple[int, int]] = ()
    """(task number, access order)"""
    dropped: Sequence[tuple[int, int]] = ()
    """(task number, mask of pieces to forget)"""
    pieces: Sequence[tuple[int, PieceRow]] = ()
    """(task number, piece), new or changed."""

    @property
    def empty(self) -> bool:
        """Nothing is to be written."""
        return not (self.removed or self.tasks or self.accesses or self.dropped or self.pieces)


class Metadata:
    """The database. Thread-safe: one call at a time, the others wait."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(
            path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        try:
            self._prepare()
        except sqlite3.Error:
            self._connection.close()
            raise

    def _prepare(self) -> None:
        execute = self._connection.execute
        # The root's own lock keeps other daemons out. With this mode SQLite needs no shared
        # memory, which network file systems do not have.
        execute("PRAGMA locking_mode = EXCLUSIVE")
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = NORMAL")
        self._connection.executescript(SCHEMA)

    @property
    def path(self) -> Path:
        """The database's file."""
        return self._path

    def begin_run(self, generation_min: int) -> int:
        """A new run of the daemon begins: returns its generation, larger than every earlier one
        and at least so large. Durable before it returns."""
        with self._transaction(durably=True) as execute:
            row = execute("SELECT value FROM facts WHERE name = 'generation'").fetchone()
            generation = max(generation_min, 1 if row is None else int(row[0]) + 1)
            execute("INSERT OR REPLACE INTO facts VALUES ('generation', ?)", (generation,))
        return generation

    def commit(self, batch: Batch, *, durably: bool = False) -> None:
        """Writes a batch, all of it or nothing. `durably`: it and everything before it survive a
        loss of power when this returns."""
        with self._transaction(durably=durably) as execute:
            for number in batch.removed:
                execute("DELETE FROM pieces WHERE task = ?", (number,))
                execute("DELETE FROM tasks WHERE number = ?", (number,))
            for row in batch.tasks:
                execute(
                    f"INSERT OR REPLACE INTO tasks ({TASK_COLUMNS}) VALUES ({TASK_MARKS})",
                    _task_values(row),
                )
            for number, access_order in batch.accesses:
                execute(
                    "UPDATE tasks SET access_order = ? WHERE number = ?", (access_order, number)
                )
            for number, mask in batch.dropped:
                for first, count in bitfield.ranges(mask):
                    execute(
                        "DELETE FROM pieces WHERE task = ? AND piece BETWEEN ? AND ?",
                        (number, first, first + count - 1),
                    )
            if batch.pieces:
                self._connection.executemany(
                    "INSERT OR REPLACE INTO pieces VALUES (?, ?, ?, ?, ?, ?)",
                    (_piece_values(number, row) for number, row in batch.pieces),
                )
            if durably:
                # A transaction that writes nothing would sync nothing.
                execute("INSERT OR REPLACE INTO facts VALUES ('settled', abs(random() % 1000000))")

    def read_tasks(self) -> list[TaskRow]:
        """Every task, by number."""
        with self._lock:
            rows = self._connection.execute(f"SELECT {TASK_COLUMNS} FROM tasks ORDER BY number")
            return [_task_row(row) for row in rows]

    def read_all_pieces(self) -> Generator[tuple[int, list[PieceRow]], None, None]:
        """(task number, its pieces in rising order) by number. Holds the database meanwhile."""
        with self._lock:
            rows = self._connection.execute("SELECT * FROM pieces ORDER BY task, piece")
            for number, group in groupby(rows, key=lambda row: int(row[0])):
                yield number, [_piece_row(row) for row in group]

    def read_pieces(self, number: int) -> list[PieceRow]:
        """The pieces of one task in rising order."""
        with self._lock:
            rows = self._connection.execute(
                "SELECT * FROM pieces WHERE task = ? ORDER BY piece", (number,)
            )
            return [_piece_row(row) for row in rows]

    def close(self) -> None:
        """Ends the use of the database. Safe to call twice."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def _transaction(self, *, durably: bool) -> Iterator[Any]:
        with self._lock:
            execute = self._connection.execute
            if durably:
                execute("PRAGMA synchronous = FULL")
            try:
                execute("BEGIN IMMEDIATE")
                try:
                    yield execute
                    execute("COMMIT")
                except BaseException:
                    if self._connection.in_transaction:
                        execute("ROLLBACK")
                    raise
            finally:
                if durably:
                    execute("PRAGMA synchronous = NORMAL")


def _task_values(row: TaskRow) -> tuple[Any, ...]:
    descriptor, seal = row.descriptor, row.seal
    geometry = descriptor.geometry
    return (
        row.number,
        descriptor.task_id,
        descriptor.source_id,
        geometry.size_bytes,
        geometry.piece_length_bytes,
        geometry.run_pieces,
        descriptor.digest,
        descriptor.validator,
        descriptor.ranges,
        descriptor.epoch,
        descriptor.piece_digest,
        bitfield.to_bytes(row.durable),
        None if seal is None else seal.digest,
        None if seal is None else seal.size_bytes,
        None if seal is None else seal.mtime_ns,
        row.access_order,
        row.created_unix_s,
    )


def _task_row(values: Sequence[Any]) -> TaskRow:
    descriptor = TaskDescriptor(
        task_id=TaskId(values[1]),
        source_id=SourceId(values[2]),
        geometry=Geometry(size_bytes=values[3], piece_length_bytes=values[4], run_pieces=values[5]),
        digest=values[6],
        validator=values[7],
        ranges=bool(values[8]),
        epoch=values[9],
        piece_digest=values[10],
    )
    sealed = values[12] is not None
    return TaskRow(
        number=values[0],
        descriptor=descriptor,
        durable=bitfield.from_bytes(values[11], PIECES_PER_TASK_MAX),
        seal=Seal(values[12], values[13], values[14]) if sealed else None,
        access_order=values[15],
        created_unix_s=values[16],
    )


def _piece_values(number: int, row: PieceRow) -> tuple[Any, ...]:
    record = row.record
    return (
        number,
        row.piece,
        record.digest,
        record.lease_number,
        record.read_here,
        row.length_bytes,
    )


def _piece_row(values: Sequence[Any]) -> PieceRow:
    record = PieceRecord(
        digest=values[2], lease_number=LeaseNumber(values[3]), read_here=bool(values[4])
    )
    return PieceRow(piece=values[1], record=record, length_bytes=values[5])
