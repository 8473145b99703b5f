"""The content store of a peer: verified pieces go in, whole contents come out.

One file per task, written piece by piece without waiting for the disk; what is held is journalled
in batches (`flush`) and made durable behind the scenes (`sync_some`). After an unclean stop every
piece that is not known to be durable is re-hashed before it is offered. Every public method may be
called from any thread. The store keeps and gives; what to fetch, serve, remove or evict, and when,
is decided elsewhere.
"""

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from peer.core.events import PieceRecord, StoredTask
from peer.shell.store.delivery import DELIVERED_MODE, Deliverer, Delivery
from peer.shell.store.durability import Syncer
from peer.shell.store.errors import StoreError, translated
from peer.shell.store.handles import IDLE_MAX, Handles
from peer.shell.store.held import HeldTask, Seal, Shelf, stored_of
from peer.shell.store.journal import Journal
from peer.shell.store.lending import Lender, LentFile
from peer.shell.store.loading import Loader, Recovered
from peer.shell.store.metadata import Metadata
from peer.shell.store.opening import Opener
from peer.shell.store.recovery import OPEN_MODE, SEALED_MODE, Recovery, only_held
from peer.shell.store.rehash import Rehasher
from peer.shell.store.root import StoreRoot
from peer.shell.store.space import Occupant, SpaceLimits, StoreUsage, choose_evictions
from peer.shell.store.writing import PieceWriter
from shoal.runtime.files import Files, RealFiles
from shoal.wire.control import TaskDescriptor
from shoal.wire.errors import Reason
from shoal.wire.ids import TaskId

STRUCTURE_LOCKS: Final = 64
"""Tasks are opened, sealed and removed under one of so many locks: enough that two seldom wait
for one another, and no bookkeeping."""


class ContentStore:
    """The store under one root directory. `load` comes first, `close` last.

    `now_unix_s` is the wall clock: it dates tasks for people, and sees to it that a store that was
    wiped still gets a larger generation than before. `workers`: threads that re-hash. `on_commit`:
    see `Journal`.
    """

    def __init__(
        self,
        root: Path,
        *,
        now_unix_s: Callable[[], int],
        limits: SpaceLimits | None = None,
        files: Files | None = None,
        workers: int = 2,
        idle_descriptors_max: int = IDLE_MAX,
        on_commit: Callable[[bool], None] | None = None,
    ) -> None:
        self._root = StoreRoot(root)
        self._limits = limits or SpaceLimits()
        self._files: Files = files or RealFiles()
        self._now_unix_s = now_unix_s
        self._on_commit = on_commit
        self._shelf = Shelf()
        self._handles = Handles(self._files, idle_max=idle_descriptors_max)
        self._rehasher = Rehasher(self._files, workers)
        self._deliverer = Deliverer(self._files)
        self._lender = Lender(files=self._files, handles=self._handles, shelf=self._shelf)
        self._writer = PieceWriter(
            files=self._files,
            handles=self._handles,
            shelf=self._shelf,
            limits=self._limits,
            clear_way=self._clear_way,
        )
        self._structure = [threading.Lock() for _ in range(STRUCTURE_LOCKS)]
        self._running: _Running | None = None
        self.recovered = Recovered()
        """What the start had to mend, for the log."""

    # ------------------------------------------------------------ begin and end

    def load(self) -> tuple[int, tuple[StoredTask, ...]]:
        """Opens the store: this run's generation and all tasks that survived. Raises StoreError,
        or UsageError if the directory is not ours to use."""
        assert self._running is None, "the store is loaded already"
        assert not self._shelf.closed, "a closed store stays closed: make another one"
        doing = f"opening the store {self._root.path}"
        with contextlib.ExitStack() as undo:
            self._root.open()
            undo.callback(self._root.close)
            with translated(doing):
                metadata = Metadata(self._root.database)
                undo.callback(metadata.close)
                undo.callback(self._handles.close)
                running = self._start(metadata)
                generation = metadata.begin_run(self._now_unix_s())
                stored, self.recovered = running.loader.load()
            running.journal.flush(durably=True)
            undo.pop_all()
        self._running = running
        return generation, stored

    def _start(self, metadata: Metadata) -> "_Running":
        files, handles, shelf, root = self._files, self._handles, self._shelf, self._root
        journal = Journal(metadata, shelf, on_commit=self._on_commit)
        recovery = Recovery(
            files=files,
            handles=handles,
            shelf=shelf,
            rehasher=self._rehasher,
            metadata=metadata,
        )
        return _Running(
            metadata=metadata,
            journal=journal,
            recovery=recovery,
            loader=Loader(
                root=root, files=files, metadata=metadata, shelf=shelf, recovery=recovery
            ),
            opener=Opener(
                root=root,
                files=files,
                handles=handles,
                shelf=shelf,
                journal=journal,
                recovery=recovery,
                limits=self._limits,
                now_unix_s=self._now_unix_s,
            ),
            syncer=Syncer(root=root, files=files, handles=handles, shelf=shelf, journal=journal),
        )

    def close(self) -> None:
        """Makes everything durable and gives the directory back: the next start has nothing to
        re-hash. Raises the first StoreError if that did not work; closed it is in any case. Safe
        to call twice."""
        with contextlib.ExitStack() as last:
            for lock in self._structure:  # Nothing is being opened, sealed or removed.
                last.enter_context(lock)
            running, self._running = self._running, None
            if running is None:
                return
            last.callback(self._root.close)
            last.callback(running.metadata.close)
            last.callback(self._handles.close)
            with self._shelf.changed:
                self._shelf.close()
            last.callback(running.journal.flush, durably=True)
            running.syncer.sync_some(None)

    def flush(self) -> None:
        """Journals what happened since the last time: a few times a second. Raises StoreError;
        then it is to be called again, and nothing is forgotten."""
        self._run().journal.flush()

    def sync_some(self) -> bool:
        """Makes the pieces of some tasks durable; True if there are more to do. Takes as long as
        the disk does. Raises StoreError."""
        return self._run().syncer.sync_some()

    # ------------------------------------------------------------ tasks

    def open_task(self, descriptor: TaskDescriptor) -> StoredTask:
        """Creates a task and sets its room aside, or reopens one and fits it to the descriptor: a
        newer epoch drops unsealed pieces, a size found at last cuts the file to length. Raises
        StoreError, DISK_FULL (with `needed_bytes`) if there is no room."""
        with self._structure_lock(descriptor.task_id):
            running = self._run()
            with self._shelf.changed:
                task = self._shelf.tasks.get(descriptor.task_id)
            if task is None:
                task = running.opener.create(descriptor)
            else:
                self._settle(task)
                running.opener.reopen(task, descriptor)
            with self._shelf.changed:
                self._shelf.use(task)
            return self._stored(task)

    def seal(self, task_id: TaskId, digest: str) -> None:
        """Marks a content as whole and right; nobody writes to its file any more. Raises
        StoreError, NOT_HELD if pieces are missing."""
        shelf = self._shelf
        with self._structure_lock(task_id):
            with shelf.changed:
                task = shelf.get(task_id)
                if task.seal is not None:
                    return
                while task.writing:
                    shelf.changed.wait()
                _check_whole(task)
            seal = self._seal_file(task, digest)
            with shelf.changed:
                if task.held == task.descriptor.geometry.all_pieces:
                    task.seal = seal
                    task.journal_row = True
                    shelf.note(task)
            if task.seal is None:  # Pieces were dropped in between.
                with translated(f"sealing {task.slot.path}"):
                    self._files.chmod(task.slot.path, OPEN_MODE)
                _check_whole(task)
            self._handles.retire_writer(task.slot)

    def _seal_file(self, task: HeldTask, digest: str) -> Seal:
        files, size = self._files, task.descriptor.geometry.size_bytes
        assert size is not None
        with translated(f"sealing {task.slot.path}"):
            opened = self._handles.take(task.slot, write=True)
            try:
                files.chmod_fd(opened.fd, SEALED_MODE)
                if files.status_fd(opened.fd).size_bytes != size:
                    files.truncate(opened.fd, size)
                status = files.status_fd(opened.fd)
            finally:
                self._handles.give_back(opened)
        return Seal(digest, status.size_bytes, status.mtime_ns)

    def remove(self, task_id: TaskId) -> None:
        """Deletes a task; what is lent of it stays readable until it is given back. Nothing
        happens if there is no such task. Raises StoreError; then the task is still there."""
        with self._structure_lock(task_id):
            self._run()
            with self._shelf.changed:
                task = self._shelf.tasks.get(task_id)
            if task is None:
                return
            # Gone already is as good as deleted.
            with translated(f"deleting {task.slot.path}"), contextlib.suppress(FileNotFoundError):
                self._files.unlink(task.slot.path)
            with self._shelf.changed:
                self._shelf.take_out(task)
            self._handles.retire(task.slot)

    # ------------------------------------------------------------ pieces

    def write_piece(
        self, task_id: TaskId, piece: int, epoch: int, data: memoryview, record: PieceRecord
    ) -> None:
        """Writes one verified piece; it may be served as soon as this returns. A piece that is
        held already with the same digest is left as it is.

        Raises StoreError: UNKNOWN_TASK, CANCELLED for a piece that came too late (its epoch is
        void, or it is held with another digest), or what the disk says; nothing else is lost
        then."""
        self._writer.write(task_id, piece, epoch, data, record)

    def drop_pieces(self, task_id: TaskId, mask: int) -> None:
        """Forgets pieces; a sealed content loses its seal. Touches memory only. Nothing happens
        if there is no such task."""
        with self._shelf.changed:
            task = self._shelf.tasks.get(task_id)
            if task is not None:
                task.drop(mask)
                self._shelf.note(task)

    def lend(self, task_id: TaskId) -> LentFile:
        """Lends a task's file, to read pieces that are held. Raises StoreError: UNKNOWN_TASK, or
        DISK_FAILED if the bytes are not to be trusted or can't be had."""
        return self._lender.lend(task_id)

    def read_held(self, task_id: TaskId, start_byte: int, end_byte: int) -> bytes:
        """Bytes of pieces that are held; fewer where the file ends before. Raises StoreError as
        `lend` does."""
        return self._lender.read(task_id, start_byte, end_byte)

    def deliver(
        self,
        task_id: TaskId,
        target: Path,
        *,
        overwrite: bool,
        mode: int = DELIVERED_MODE,
        hard_link: bool = True,
    ) -> str:
        """Gives a sealed content a file at `target`, whole or not at all; returns how: "reflink",
        "hard-link" or "copy". `mode`: permission bits of a file of its own; a hard link is the
        store's file and read-only, `hard_link` False forbids it. Raises StoreError, NOT_HELD if
        the content is not sealed, and UsageError for a target that can't be."""
        with self.lend(task_id) as lent:
            size, task = lent.size_bytes, lent.task
            if task.seal is None or size is None:
                raise StoreError(Reason.NOT_HELD, f"task {task_id[:16]} is not whole yet")
            if task.journal_row:
                # After a crash an unsealed file with two names would have to be copied.
                self.flush()
            delivery = Delivery(
                fd=lent.fd,
                path=task.slot.path,
                size_bytes=size,
                target=target,
                overwrite=overwrite,
                mode=mode,
                hard_link=hard_link,
                check=lambda: self._lender.check(task, lent.fd),
            )
            return self._deliverer.deliver(delivery).value

    # ------------------------------------------------------------ space

    def touch(self, task_id: TaskId) -> None:
        """The task is used now. Touches memory only."""
        with self._shelf.changed:
            if (task := self._shelf.tasks.get(task_id)) is not None:
                self._shelf.use(task)

    def pin(self, task_id: TaskId) -> None:
        """Keeps a task from eviction until as many `unpin`. Raises StoreError UNKNOWN_TASK."""
        with self._shelf.changed:
            self._shelf.get(task_id).pins += 1

    def unpin(self, task_id: TaskId) -> None:
        """Takes one pin back; nothing happens if the task was removed meanwhile."""
        with self._shelf.changed:
            task = self._shelf.tasks.get(task_id)
            if task is not None:
                task.pins = max(0, task.pins - 1)

    def candidates_to_evict(self, room_bytes: int = 0) -> list[TaskId]:
        """Tasks to remove, least recently used first, so that the store comes below its water
        marks and `room_bytes` more fit. Never one that is pinned, lent or being written."""
        disk_free = self._disk_free()
        with self._shelf.changed:
            ledger = self._shelf.ledger
            occupants = (
                Occupant(task_id, task.access_order, share.used + share.reserved, task.busy)
                for task_id, task in self._shelf.tasks.items()
                for share in (ledger.share(task_id),)
            )
            usage = ledger.usage(self._limits, disk_free)
            return choose_evictions(occupants, usage, self._limits, room_bytes)

    def usage(self) -> StoreUsage:
        """The room there is, is used and is promised."""
        disk_free = self._disk_free()
        with self._shelf.changed:
            return self._shelf.ledger.usage(self._limits, disk_free)

    def validate(self) -> None:
        """Checks all invariants in O(n): for tests, with no call in flight."""
        with self._shelf.changed:
            self._shelf.validate()

    # ------------------------------------------------------------ inside

    def _run(self) -> "_Running":
        if self._running is None:
            raise StoreError(Reason.SHUTTING_DOWN, "the store is not open")
        return self._running

    def _structure_lock(self, task_id: TaskId) -> threading.Lock:
        return self._structure[hash(task_id) % STRUCTURE_LOCKS]

    def _disk_free(self) -> int:
        with translated(f"asking for free space on {self._root.content}"):
            return self._files.free_bytes(self._root.content)

    def _stored(self, task: HeldTask) -> StoredTask:
        with self._shelf.changed:
            if task.records is not None:
                return stored_of(task, dict(task.records))
        with translated(f"reading {self._root.database}"):
            records = self._run().recovery.read_records(task)
        with self._shelf.changed:
            return stored_of(task, only_held(records, task.held))

    def _clear_way(self, task: HeldTask) -> None:
        """Something is in the way of a write: bytes in doubt, or an old claim in the database."""
        with self._structure_lock(task.task_id):
            self._settle(task)
        if task.disowned:
            self._run().journal.flush(durably=True)

    def _settle(self, task: HeldTask) -> None:
        with translated(f"checking {task.slot.path}"):
            self._run().recovery.settle_task(task)


class _Running:
    """What exists between `load` and `close`."""

    def __init__(
        self,
        *,
        metadata: Metadata,
        journal: Journal,
        recovery: Recovery,
        loader: Loader,
        opener: Opener,
        syncer: Syncer,
    ) -> None:
        self.metadata = metadata
        self.journal = journal
        self.recovery = recovery
        self.loader = loader
        self.opener = opener
        self.syncer = syncer


def _check_whole(task: HeldTask) -> None:
    geometry = task.descriptor.geometry
    size = geometry.size_bytes
    if task.suspect or size is None or task.held != geometry.all_pieces:
        raise StoreError(
            Reason.NOT_HELD, f"task {task.task_id[:16]} is not whole and can't be sealed"
        )
