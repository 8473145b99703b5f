"""The life of one task on this host: opened, filled, checked, sealed, failed, dropped.

Order of a piece (each step only after the one before): received -> verified -> written ->
announced -> served. A piece from another host is announced only when the scheduler's list has
confirmed its digest, so a header that the list contradicts always convicts its sender.
"""

from collections.abc import Callable
from dataclasses import replace

from peer.core.effects import (
    Announce,
    DropPieces,
    HashPrefix,
    Noted,
    OpenTask,
    PiecesReadable,
    PiecesRevoked,
    RefuseChild,
    SealTask,
    Withdraw,
)
from peer.core.events import ContentHashed, PieceRecord, StoredTask, TaskOpened, TaskSealed
from peer.core.reports import Outbox
from peer.core.state import PeerState, Task, TaskPhase
from shoal.wire import bitfield
from shoal.wire.control import Blame, Digests, TaskDescriptor
from shoal.wire.errors import Reason
from shoal.wire.ids import ConnectionId, HostId, TaskId

OPEN_PHASES = (TaskPhase.ACTIVE, TaskPhase.CHECKING, TaskPhase.SEALING, TaskPhase.SEALED)


class TaskKeeper:
    """Owns every task's phase and its sets of pieces.

    `on_change(task)` is called when requests may be possible that were not before; `on_end(task,
    reason, detail)` when a task is sealed (None) or failed; `on_false(host, reason)` when a parent
    is convicted.
    """

    def __init__(
        self,
        state: PeerState,
        outbox: Outbox,
        *,
        on_change: Callable[[Task], None],
        on_end: Callable[[Task, Reason | None, str], None],
        on_false: Callable[[HostId, Reason], None],
        on_abandon: Callable[[Task], None],
    ) -> None:
        self._state = state
        self._outbox = outbox
        self._on_change = on_change
        self._on_end = on_end
        self._on_false = on_false
        self._on_abandon = on_abandon
        self._announce_due_ns: int | None = None
        self._last_announce_ns = -(1 << 62)
        self._to_announce: dict[TaskId, Task] = {}
        self._renewed: dict[TaskId, Task] = {}

    # ------------------------------------------------------------ opening

    def load(self, stored: StoredTask) -> None:
        """A task survived the restart."""
        task = Task(descriptor=stored.descriptor)
        self._state.tasks[task.task_id] = task
        self._adopt(task, stored)
        task.phase = TaskPhase.SEALED if stored.sealed else TaskPhase.ACTIVE
        if stored.sealed:
            task.confirmed = task.held
        self._queue_announcement(task)
        # It may have been whole and not yet checked when the daemon ended.
        self._advance(task)

    def describe(self, descriptor: TaskDescriptor) -> Task:
        """Someone fixed what the task is: opens it, or takes over what changed."""
        task = self._state.tasks.get(descriptor.task_id)
        if task is None:
            task = Task(descriptor=descriptor)
            self._state.tasks[descriptor.task_id] = task
            self._open(task)
        elif task.phase in (TaskPhase.OPENING, TaskPhase.REMOVING):
            if descriptor != task.descriptor:
                task.next_descriptor = descriptor
        elif task.phase is TaskPhase.FAILED:
            task.origin_failures = 0
            task.phase = TaskPhase.ACTIVE
            self._take_over(task, descriptor)
            if not self._is_opening(task):
                self._open(task)
        elif task.phase is not TaskPhase.SEALED:
            self._take_over(task, descriptor)
        return task

    def _take_over(self, task: Task, descriptor: TaskDescriptor) -> None:
        old = task.descriptor
        sizes = {descriptor.geometry.size_bytes, old.geometry.size_bytes} - {None}
        same_cut = (
            descriptor.geometry.piece_length_bytes == old.geometry.piece_length_bytes
            and descriptor.piece_digest == old.piece_digest
            and len(sizes) < 2
        )
        if not same_cut or descriptor.epoch != old.epoch:
            # Requests of the old cut or epoch bring nothing, and parents must tell anew.
            self._on_abandon(task)
        if not same_cut:
            self._state.emit(
                Noted(
                    kind="other-geometry",
                    text="the scheduler cuts this task in another way: its pieces are dropped",
                    task_id=task.task_id,
                )
            )
            self._drop(task, task.held)
            task.listed.clear()
        elif descriptor.epoch > old.epoch:
            self._void(task)
        elif descriptor.epoch < old.epoch:
            # The scheduler has heard what is held, and of which epoch, and decided otherwise: it
            # had forgotten the task when nobody wanted it any more, and it begins anew for all.
            self._begin_anew(task)
        if descriptor.geometry.size_bytes is None and old.geometry.size_bytes is not None:
            descriptor = replace(descriptor, geometry=old.geometry)
        if descriptor != old:
            if descriptor.geometry.size_bytes is not None:
                # Only a liar can have sent pieces from behind the end.
                self._drop(task, task.held & ~descriptor.geometry.all_pieces)
            task.descriptor = descriptor
            self._open(task)

    def _open(self, task: Task) -> None:
        task.phase = TaskPhase.OPENING
        _lacks_something(task)
        self._state.emit(OpenTask(descriptor=task.descriptor))

    def opened(self, event: TaskOpened) -> None:
        """The store has made room and tells what is held already."""
        task = self._state.tasks.get(event.stored.descriptor.task_id)
        if task is None or task.phase is not TaskPhase.OPENING:
            return
        if task.next_descriptor is not None:
            newer, task.next_descriptor = task.next_descriptor, None
            task.phase = TaskPhase.ACTIVE
            self._adopt(task, event.stored)
            self._take_over(task, newer)
            if self._is_opening(task):
                return
        self._adopt(task, event.stored)
        task.phase = TaskPhase.SEALED if event.stored.sealed else TaskPhase.ACTIVE
        self._state.tell(task.task_id, f"opened with {task.held.bit_count()} pieces held")
        if event.stored.sealed:
            self._finish(task)
            return
        self._confirm_from_list(task)
        self._outbox.progressed(task)
        self._queue_announcement(task)
        self._advance(task)
        self._on_change(task)

    @staticmethod
    def _is_opening(task: Task) -> bool:
        return task.phase is TaskPhase.OPENING

    def _adopt(self, task: Task, stored: StoredTask) -> None:
        # What came in while the store was asked is not forgotten: the store knows it as well.
        task.held |= stored.held
        task.computed_digest = stored.digest or task.computed_digest
        for piece, record in stored.records.items():
            task.records.setdefault(piece, record)
            if record.read_here:
                task.confirmed |= 1 << piece

    def open_failed(self, task_id: TaskId, reason: Reason, detail: str) -> None:
        """The store has no room or no disk for it."""
        task = self._state.tasks.get(task_id)
        if task is not None and task.phase is TaskPhase.OPENING:
            self.fail(task, reason, detail)

    # ------------------------------------------------------------ pieces

    def store_read(self, task: Task, piece: int, record: PieceRecord) -> None:
        """A piece was read from the origin here and written."""
        self._hold(task, piece, record)
        task.confirmed |= 1 << piece
        self._piece_news(task)

    def store_fetched(
        self, task: Task, piece: int, record: PieceRecord, supplier: HostId | None
    ) -> bool:
        """A piece came from a parent, fits its header and is written. False: the scheduler's list
        contradicts the header, the piece is dropped and its sender is convicted. `supplier` None:
        the sender did not vouch for it, having no scheduler, and is never convicted."""
        if task.held >> piece & 1:
            return True
        geometry = task.descriptor.geometry
        if geometry.size_bytes is not None and piece >= geometry.piece_count:
            return False  # Asked for before the size was known: there is no such piece.
        listed = task.listed.get(piece)
        if listed is not None and listed != record.digest:
            self._state.emit(DropPieces(task_id=task.task_id, pieces=1 << piece))
            if supplier is not None:
                self.convict(task, piece, supplier, Reason.PEER_CONTRADICTED)
            return False
        self._hold(task, piece, record)
        if supplier is not None:
            task.suppliers[piece] = supplier
        if listed is not None:
            task.confirmed |= 1 << piece
        self._piece_news(task)
        return True

    def _hold(self, task: Task, piece: int, record: PieceRecord) -> None:
        assert task.phase in (TaskPhase.ACTIVE, TaskPhase.OPENING), (
            f"a piece for a task that is {task.phase.name}"
        )
        task.held |= 1 << piece
        task.records[piece] = record
        task.origin_failures = 0

    def _piece_news(self, task: Task) -> None:
        self._outbox.progressed(task)
        self._queue_announcement(task)
        self._advance(task)

    def convict(self, task: Task, piece: int, host_id: HostId, reason: Reason) -> None:
        """A parent sent wrong bytes or a wrong digest: say so, and let its health suffer."""
        self._state.tell(task.task_id, f"piece {piece} from {host_id}: {reason.value}")
        self._state.emit(
            Noted(
                kind="blamed",
                text="sent a piece with wrong bytes"
                if reason is Reason.PEER_CORRUPT
                else "sent a piece with a digest that the scheduler's list contradicts",
                host_id=host_id,
                task_id=task.task_id,
                piece=piece,
                reason=reason,
            )
        )
        self.accuse(task, piece, host_id, reason)
        self._on_false(host_id, reason)

    def accuse(self, task: Task, piece: int, host_id: HostId, reason: Reason) -> None:
        """Tells the scheduler that a parent did not give a piece, or gave it wrong: where nobody
        else holds it, it has to come from the origin again."""
        self._outbox.blame(Blame(host_id=host_id, task_id=task.task_id, piece=piece, reason=reason))

    def listed(self, digests: Digests) -> None:
        """The scheduler tells piece digests: confirms held pieces, convicts liars."""
        task = self._state.tasks.get(digests.task_id)
        if task is None or digests.epoch != task.descriptor.epoch:
            return
        for piece, digest, _ in digests.entries:
            task.listed[piece] = digest
        if task.phase is not TaskPhase.ACTIVE and task.phase is not TaskPhase.CHECKING:
            return
        self._confirm_from_list(task)
        self._queue_announcement(task)
        self._advance(task)

    def _confirm_from_list(self, task: Task) -> None:
        false = 0
        for piece in bitfield.pieces(task.held & ~task.confirmed):
            listed = task.listed.get(piece)
            if listed is None:
                continue
            if listed == task.records[piece].digest:
                task.confirmed |= 1 << piece
            else:
                false |= 1 << piece
        if not false:
            return
        for piece in bitfield.pieces(false):
            supplier = task.suppliers.get(piece)
            if supplier is not None:
                self.convict(task, piece, supplier, Reason.PEER_CONTRADICTED)
        self._drop(task, false)
        if task.phase is TaskPhase.CHECKING:
            task.phase = TaskPhase.ACTIVE
            _lacks_something(task)
        self._on_change(task)

    def announceable(self, task: Task) -> int:
        """What children may be told of and sent."""
        if task.phase is TaskPhase.SEALED or self._state.on_our_own:
            return task.held if task.phase in OPEN_PHASES else 0
        return task.confirmed & task.held

    @staticmethod
    def vouched(task: Task, piece: int) -> bool:
        """Whether the scheduler's list, our own reading or the whole digest stands behind it."""
        return task.phase is TaskPhase.SEALED or bool(task.confirmed >> piece & 1)

    def take_back_unconfirmed(self) -> None:
        """There is a scheduler again: pieces that were announced without one's confirmation are
        withdrawn, and announced again when it comes."""
        for task in self._state.tasks.values():
            if task.phase is TaskPhase.SEALED:
                continue
            unsure = task.told & ~task.confirmed
            task.told &= ~unsure
            self._withdraw(task, unsure)

    def _queue_announcement(self, task: Task) -> None:
        self._to_announce[task.task_id] = task
        self._renewed[task.task_id] = task
        if self._announce_due_ns is None:
            interval_ns = self._state.limits.announce_interval_ns
            if self._state.planned(task):
                # Children are sent what they wait for without such news.
                interval_ns = max(interval_ns, 4 * self._state.report_interval_ns)
            earliest = self._last_announce_ns + interval_ns
            self._announce_due_ns = max(self._state.now_ns, earliest)
            self._state.wake_at(self._announce_due_ns)

    def take_renewed(self) -> list[Task]:
        """Tasks of which pieces may have become servable, or never will, since the last call."""
        if not self._renewed:
            return []
        renewed = list(self._renewed.values())
        self._renewed.clear()
        return renewed

    def announce_everything(self) -> None:
        """The rule of what may be announced and read changed: the grace time of a lost scheduler is
        over."""
        for task in self._state.tasks.values():
            self._queue_announcement(task)
            self._advance(task)

    def flush_if_due(self) -> None:
        """Announces what is new, in batches. Called at the end of every event."""
        due = self._announce_due_ns
        if due is None or self._state.now_ns < due:
            return
        self._announce_due_ns = None
        self._last_announce_ns = self._state.now_ns
        listeners: dict[TaskId, list[ConnectionId]] = {}
        for child in self._state.children.values():
            for task_id in child.tasks:
                listeners.setdefault(task_id, []).append(child.connection_id)
        for task in self._to_announce.values():
            new = self.announceable(task) & ~task.told
            if not new:
                continue
            task.told |= new
            connections = tuple(listeners.get(task.task_id, ()))
            if connections:
                self._state.emit(
                    Announce(task_id=task.task_id, new=new, connection_ids=connections)
                )
        self._to_announce.clear()

    def reread(self, task: Task) -> None:
        """The disk does not give back what was held: the store looks again at what it has."""
        if task.phase not in (TaskPhase.ACTIVE, TaskPhase.SEALED):
            return
        told, task.told = task.told, 0
        self._outbox.lost(task, task.held)
        self._revoke(task, task.readable)
        task.held = task.confirmed = 0
        task.records.clear()
        task.suppliers.clear()
        task.hash_attempt += 1
        task.hashed_to_bytes = 0
        task.computed_digest = ""
        self._withdraw(task, told)
        self._on_abandon(task)
        self._open(task)

    def _withdraw(self, task: Task, told: int) -> None:
        connections = tuple(
            child.connection_id
            for child in self._state.children.values()
            if task.task_id in child.tasks
        )
        if told and connections:
            self._state.emit(Withdraw(task_id=task.task_id, gone=told, connection_ids=connections))

    def _drop(self, task: Task, gone: int) -> None:
        gone &= task.held
        if not gone:
            return
        self._outbox.lost(task, gone)
        geometry = task.descriptor.geometry
        task.held &= ~gone
        task.confirmed &= ~gone
        told = task.told & gone
        task.told &= ~gone
        for piece in bitfield.pieces(gone):
            task.records.pop(piece, None)
            task.suppliers.pop(piece, None)
        self._state.emit(DropPieces(task_id=task.task_id, pieces=gone))
        self._revoke(task, task.readable & gone)
        self._withdraw(task, told)
        if geometry.offset_bytes(bitfield.lowest(gone)) < task.hashed_to_bytes:
            task.hash_attempt += 1
            task.hashed_to_bytes = 0
            task.computed_digest = ""

    def _revoke(self, task: Task, pieces: int) -> None:
        """Readers may have been given bytes that are not to be trusted."""
        if pieces:
            task.readable &= ~pieces
            self._state.emit(PiecesRevoked(task_id=task.task_id, pieces=pieces))

    def new_epoch(self, task: Task, epoch: int) -> None:
        """The scheduler voided the epoch before this one: drop everything and open it. What is
        sealed is kept, and called by this number, higher or lower."""
        if task.phase is TaskPhase.SEALED:
            self._rename_epoch(task, epoch)
        elif task.phase in (TaskPhase.OPENING, TaskPhase.REMOVING):
            described = task.next_descriptor or task.descriptor
            if epoch > described.epoch:
                task.next_descriptor = replace(described, epoch=epoch)
        elif task.phase is not TaskPhase.FAILED and epoch > task.descriptor.epoch:
            self._take_over(task, replace(task.descriptor, epoch=epoch))

    def _rename_epoch(self, task: Task, epoch: int) -> None:
        if epoch == task.descriptor.epoch:
            return
        task.descriptor = replace(task.descriptor, epoch=epoch)
        # Children of that epoch had no use for what they were told before.
        task.told = 0
        self._queue_announcement(task)

    def _void(self, task: Task) -> None:
        """The piece digests of the task were wrong as a whole: begin again."""
        self._state.tell(task.task_id, f"epoch {task.descriptor.epoch} is void")
        task.voids += 1
        self._begin_anew(task)

    def _begin_anew(self, task: Task) -> None:
        task.listed.clear()
        self._drop(task, task.held)
        task.hash_attempt += 1
        task.hashed_to_bytes = 0
        task.computed_digest = ""
        task.phase = TaskPhase.ACTIVE

    # ------------------------------------------------------------ the end

    def _advance(self, task: Task) -> None:
        """Lets the hash follow the prefix, readers what is usable, and begins the check of a whole
        content."""
        if task.phase is not TaskPhase.ACTIVE:
            return
        geometry = task.descriptor.geometry
        complete = task.complete
        usable = task.held if complete else self.announceable(task)
        up_to = geometry.prefix_bytes(bitfield.prefix(usable))
        if complete or up_to > task.hashed_to_bytes:
            task.hashed_to_bytes = up_to
            if complete:
                task.phase = TaskPhase.CHECKING
                self._on_abandon(task)
            self._state.emit(
                HashPrefix(
                    task_id=task.task_id,
                    epoch=task.hash_attempt,
                    algorithm=_algorithm(task),
                    up_to_bytes=up_to,
                    final=complete,
                )
            )
        self._let_read(task, usable)

    def _let_read(self, task: Task, usable: int) -> None:
        if not task.streaming:
            return
        geometry = task.descriptor.geometry
        if task.phase is not TaskPhase.SEALED:
            # The last piece is withheld until the whole digest has passed. Of a content whose
            # length is not known any may be it.
            known = geometry.size_bytes is not None
            usable &= geometry.all_pieces >> 1 if known else (1 << usable.bit_length()) - 1 >> 1
        new = usable & ~task.readable
        if new:
            task.readable |= new
            self._state.emit(PiecesReadable(task_id=task.task_id, pieces=new))

    def start_streaming(self, task: Task) -> None:
        """Somebody reads the task while it arrives."""
        task.streaming = True
        task.readable = 0  # Who comes later is told all of it.
        if task.phase in OPEN_PHASES:
            self._let_read(task, self.announceable(task))

    def hashed(self, event: ContentHashed) -> None:
        """The whole content's digest is known."""
        task = self._state.tasks.get(event.task_id)
        if task is None or task.phase is not TaskPhase.CHECKING:
            return
        if event.epoch != task.hash_attempt:
            return
        task.computed_digest = event.digest
        expected = task.descriptor.digest
        if expected is None or expected == event.digest:
            task.phase = TaskPhase.SEALING
            self._state.emit(SealTask(task_id=task.task_id, digest=event.digest))
            return
        self._state.tell(task.task_id, f"whole digest is {event.digest}, not {expected}")
        self._mismatch(task, expected)

    def _mismatch(self, task: Task, expected: str) -> None:
        detail = (
            f"the content has the digest {task.computed_digest}, not {expected}: "
            "check the digest that was asked for, and the origin"
        )
        self._state.emit(Noted(kind="digest-mismatch", text=detail, task_id=task.task_id))
        if self._state.scheduled and task.voids + 1 < self._state.limits.epochs_max:
            # The scheduler compares with what others read, names who was wrong and says what next.
            self._outbox.checked(task, passed=False)
            return
        self._drop(task, task.held)
        self.fail(task, Reason.DIGEST_MISMATCH, detail)

    def false_content(self, task: Task, detail: str) -> None:
        """The content is not what its digest says, and there is no use in reading it again."""
        if task.phase not in (TaskPhase.SEALED, TaskPhase.FAILED, TaskPhase.REMOVING):
            self._drop(task, task.held)
            self.fail(task, Reason.DIGEST_MISMATCH, detail)

    def judge_lost(self) -> None:
        """The scheduler is gone: contents that wait for its word on a mismatch fail."""
        for task in list(self._state.tasks.values()):
            expected = task.descriptor.digest
            if task.phase is TaskPhase.CHECKING and expected is not None and task.computed_digest:
                self.false_content(
                    task, f"the content has the digest {task.computed_digest}, not {expected}"
                )

    def sealed(self, event: TaskSealed) -> None:
        """The store wrote down that the content is whole and right."""
        task = self._state.tasks.get(event.task_id)
        if task is None or task.phase is not TaskPhase.SEALING:
            return
        if event.reason is not None:
            self.fail(task, event.reason, event.detail)
            return
        self._finish(task)

    def _finish(self, task: Task) -> None:
        task.phase = TaskPhase.SEALED
        task.confirmed = task.held
        task.suppliers.clear()
        self._state.tell(task.task_id, "sealed")
        self._outbox.progressed(task)
        if self._state.scheduled:
            self._outbox.checked(task, passed=True)
        self._queue_announcement(task)
        self._let_read(task, task.held)
        self._on_end(task, None, "")

    def fail(self, task: Task, reason: Reason, detail: str) -> None:
        """The task cannot be had; what is held of it stays for a later try."""
        if task.phase in (TaskPhase.SEALED, TaskPhase.FAILED, TaskPhase.REMOVING):
            return
        self._state.tell(task.task_id, f"failed: {reason.value}")
        task.phase = TaskPhase.FAILED
        task.next_descriptor = None
        self._renewed[task.task_id] = task  # Whoever waits for a piece of it is told.
        for child in self._state.children.values():
            if task.task_id in child.tasks:
                del child.tasks[task.task_id]
                self._state.emit(
                    RefuseChild(
                        connection_id=child.connection_id,
                        task_id=task.task_id,
                        reason=Reason.NOT_HELD,
                    )
                )
        task.told = 0
        self._on_abandon(task)
        self._on_end(task, reason, detail)

    def seal_size(self, task: Task, size_bytes: int) -> None:
        """The end of a content of unknown size was found here."""
        old = task.descriptor
        assert old.geometry.size_bytes is None
        self._take_over(task, replace(old, geometry=old.geometry.sealed(size_bytes)))


def _lacks_something(task: Task) -> None:
    """Its collection may have passed it by already, for all of it was here."""
    if task.flow is not None:
        task.flow.first = min(task.flow.first, task.number)


def _algorithm(task: Task) -> str:
    digest = task.descriptor.digest
    return digest.partition(":")[0] if digest is not None else "sha256"
