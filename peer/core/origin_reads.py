"""What this host reads from the origin, and when.

With a scheduler only under its leases; each lease ends with one report. Without one the host helps
itself: with everything that is missing where no scheduler is configured, and only with what no
connected parent holds where the scheduler is gone, later by a random time, so that a swarm that
lost its scheduler does not fall on the origin as one.
"""

from collections.abc import Callable
from dataclasses import dataclass

from peer.core.download import TaskKeeper
from peer.core.effects import CancelOrigin, Noted, ReadOrigin
from peer.core.events import OriginPieceStored, OriginReadEnded, PieceRecord
from peer.core.reports import Outbox
from peer.core.state import PeerState, Task, TaskPhase
from shoal.wire import bitfield
from shoal.wire.control import HeldLease, Lease, LeaseEnd, SizeFound, Statement
from shoal.wire.errors import TRANSIENT_ORIGIN, Reason
from shoal.wire.ids import NO_LEASE, LeaseNumber, RequestId, TaskId
from shoal.wire.limits import MIB, MILLISECOND_NS, RUN_BYTES_MAX

READ_BUFFER_PIECES = 2
"""Piece buffers that one running origin read may use: one filling, one being written."""

AHEAD_UNITS_MAX = 10
"""A root that has so many more units of the stripe that it reads than of those that it is fed reads
one lease after the other: several reads at once only take from its feeds, and leave it behind when
the others are done. It is ahead by a few anyway, one for each level of the trees."""

SOLO_READ_BYTES_MIN = 4 * MIB
"""A solo host asks for at least so much at once, so that a request's round trip stays small beside
its transfer."""

STREAM_READ_BYTES_MAX = 16 * MIB
"""And where somebody reads along, for no more: what is read next follows the reader."""

URGENT_READS = 1
"""Reads beside the usual ones for what somebody waits for: it waits for no other's end."""


@dataclass(slots=True)
class HeldRight:
    """A lease of this host, or the right that it gave itself (number 0)."""

    number: LeaseNumber
    task_id: TaskId
    epoch: int
    pieces: int
    """What is left to read."""
    sequential: bool
    """From the first piece to the end, in one request."""
    failures: int = 0
    retry_at_ns: int = 0


@dataclass(slots=True)
class RunningRead:
    """One request to the origin."""

    request_id: RequestId
    right: HeldRight
    task: Task
    pieces: int
    """What it will still bring (for an unknown size: 0)."""
    reserved_bytes: int
    piece_length_bytes: int
    stored: int = 0
    cancelled: bool = False


class OriginReads:
    """Keeps leases and running reads.

    `on_failure(task, reason, detail)`: a solo read cannot go on; `on_local_failure`: our disk
    failed; `on_read(task, pieces)`: pieces came from the origin; `ahead_units(task)`: how many more
    units this host has of what it reads of the task's collection than of what it is fed.
    """

    def __init__(
        self,
        state: PeerState,
        keeper: TaskKeeper,
        outbox: Outbox,
        *,
        on_failure: Callable[[Task, Reason, str], None],
        on_local_failure: Callable[[Task, Reason, str], None],
        on_read: Callable[[Task, int], None],
        ahead_units: Callable[[Task], int],
    ) -> None:
        self._state = state
        self._keeper = keeper
        self._outbox = outbox
        self._on_failure = on_failure
        self._on_local_failure = on_local_failure
        self._on_read = on_read
        self._ahead_units = ahead_units
        self._leases: dict[LeaseNumber, HeldRight] = {}
        self._reads: dict[RequestId, RunningRead] = {}
        self._dirty = False

    # ------------------------------------------------------------ leases

    def granted(self, lease: Lease) -> None:
        """The scheduler grants a lease."""
        task = self._state.tasks.get(lease.task_id)
        usable = (TaskPhase.OPENING, TaskPhase.ACTIVE)
        if task is None or task.phase not in usable or lease.epoch != task.descriptor.epoch:
            self._end(lease.number, lease.task_id, Reason.CANCELLED)
            return
        sequential = lease.piece_count is None
        pieces = 0
        if lease.piece_count is not None:
            pieces = bitfield.mask_of(lease.first_piece, lease.piece_count)
        self._leases[lease.number] = HeldRight(
            number=lease.number,
            task_id=lease.task_id,
            epoch=lease.epoch,
            pieces=pieces,
            sequential=sequential,
        )
        self._dirty = True

    def revoked(self, number: LeaseNumber) -> None:
        """The scheduler takes a lease back."""
        right = self._leases.pop(number, None)
        if right is not None:
            self._cancel_reads(right)

    def held_leases(self) -> tuple[HeldLease, ...]:
        """The leases that this host still works on, for a scheduler that may not know them."""
        return tuple(
            HeldLease(number=right.number, task_id=right.task_id, pieces=right.pieces)
            for right in self._leases.values()
        )

    def _end(
        self,
        number: LeaseNumber,
        task_id: TaskId,
        outcome: Reason | None,
        retry_after_ms: int = 0,
        detail: str = "",
    ) -> None:
        self._outbox.end_lease(
            LeaseEnd(
                number=number,
                task_id=task_id,
                outcome=outcome,
                retry_after_ms=retry_after_ms,
                detail=detail,
            ),
            urgent=not self._leases,
        )

    def _finish(
        self, right: HeldRight, outcome: Reason | None, retry_after_ms: int = 0, detail: str = ""
    ) -> None:
        if right.number != NO_LEASE:
            self._leases.pop(right.number, None)
            self._end(right.number, right.task_id, outcome, retry_after_ms, detail)

    def task_over(self, task: Task) -> None:
        """The task needs nothing more from the origin."""
        for right in list(self._leases.values()):
            if right.task_id == task.task_id:
                done = not right.pieces and not right.sequential
                self._finish(right, None if done else Reason.CANCELLED)
        for read in self._reads.values():
            # A read that has brought everything ends by itself and keeps its connection.
            if read.task is task and not read.cancelled and read.pieces:
                self._cancel(read)

    def _cancel_reads(self, right: HeldRight) -> None:
        for read in self._reads.values():
            if read.right is right and not read.cancelled:
                self._cancel(read)

    def _cancel(self, read: RunningRead) -> None:
        read.cancelled = True
        read.task.reading_mask &= ~read.pieces
        self._state.emit(CancelOrigin(request_id=read.request_id))

    # ------------------------------------------------------------ starting

    def changed(self) -> None:
        """Reads may be possible that were not before."""
        self._dirty = True

    def fill(self) -> None:
        """Starts what can be started now. Called at the end of every event."""
        if not self._dirty:
            return
        self._dirty = False
        for right in list(self._leases.values()):
            self._serve_lease(right)
        if self._state.on_our_own:
            self._help_ourselves_to_all()

    def _running(self, task: Task | None = None) -> int:
        return sum(
            1
            for read in self._reads.values()
            if not read.cancelled and (task is None or read.task is task)
        )

    def _serve_lease(self, right: HeldRight) -> None:
        task = self._state.tasks[right.task_id]
        if task.phase is TaskPhase.OPENING:
            return
        if right.retry_at_ns > self._state.now_ns:
            self._state.wake_at(right.retry_at_ns)
            return
        right.pieces &= ~task.held
        busy = any(read.right is right for read in self._reads.values())
        if right.sequential:
            if not busy:
                self._start_sequential(right, task)
            return
        if not right.pieces:
            if not busy:
                self._finish(right, None)
            return
        if urgent := right.pieces & task.urgent & ~task.reading_mask:
            first = bitfield.lowest(urgent)
            count = bitfield.prefix((right.pieces & ~task.reading_mask) >> first)
            if not self._start(right, task, first, count, urgent=True):
                return
        for first, count in bitfield.ranges(right.pieces & ~task.reading_mask):
            if self._running() and self._ahead_units(task) >= AHEAD_UNITS_MAX:
                return  # It is looked at again when a read ends.
            if not self._start(right, task, first, count):
                return

    def _start_sequential(self, right: HeldRight, task: Task) -> None:
        if task.complete:
            self._finish(right, None)
            return
        geometry = task.descriptor.geometry
        first = bitfield.prefix(task.held)
        if geometry.size_bytes is None:
            self._start(right, task, first, None)
        else:
            self._start(right, task, first, geometry.piece_count - first)

    def _start(
        self, right: HeldRight, task: Task, first: int, count: int | None, *, urgent: bool = False
    ) -> bool:
        reads_max = self._state.limits.origin_reads_max + (URGENT_READS if urgent else 0)
        if self._running() >= reads_max:
            return False
        length = task.descriptor.geometry.piece_length_bytes
        reserved = READ_BUFFER_PIECES * length
        request_id = self._state.next_request_id()
        pieces = 0 if count is None else bitfield.mask_of(first, count) & ~task.held
        self._reads[request_id] = RunningRead(request_id, right, task, pieces, reserved, length)
        self._state.in_flight_bytes += reserved
        task.reading_mask |= pieces
        self._state.emit(
            ReadOrigin(
                request_id=request_id,
                source_id=task.descriptor.source_id,
                credential=task.credential,
                descriptor=task.descriptor,
                first_piece=first,
                piece_count=count,
                lease_number=right.number,
            )
        )
        return True

    # ------------------------------------------------------------ without a scheduler

    def _help_ourselves_to_all(self) -> None:
        reads_max = self._state.limits.origin_reads_max
        full = self._running() >= reads_max
        for task in list(self._state.tasks.values()):
            # Of thousands of files a few are read at once; the others are looked at when a read
            # ends. There is room beside for what somebody waits for.
            if task.phase is not TaskPhase.ACTIVE or (full and not task.urgent):
                continue
            reads = len(self._reads)
            self._help_ourselves(task)
            if len(self._reads) > reads:
                full = self._running() >= reads_max

    def _help_ourselves(self, task: Task) -> None:
        if not task.watchers or not task.origin_allowed:
            return
        if any(right.task_id == task.task_id for right in self._leases.values()):
            return
        if task.origin_retry_at_ns > self._state.now_ns:
            self._state.wake_at(task.origin_retry_at_ns)
            return
        descriptor = task.descriptor
        if descriptor.geometry.size_bytes is None or not descriptor.ranges:
            if not self._running(task) and not task.flying:
                right = HeldRight(NO_LEASE, task.task_id, descriptor.epoch, 0, sequential=True)
                self._start_sequential(right, task)
            return
        orphaned = self._state.scheduler_configured
        candidates = task.missing_unrequested
        reads_max = self._state.limits.origin_reads_max
        if orphaned:
            candidates &= ~task.availability.available
            reads_max = 1
        while candidates:
            urgent = candidates & task.urgent
            if self._running(task) >= reads_max + (URGENT_READS if urgent else 0):
                return
            first, count = self._choose_stretch(task, candidates, urgent, spread=orphaned)
            right = HeldRight(
                NO_LEASE,
                task.task_id,
                descriptor.epoch,
                bitfield.mask_of(first, count),
                sequential=False,
            )
            if not self._start(right, task, first, count, urgent=bool(urgent)):
                return
            candidates &= ~right.pieces

    def _choose_stretch(
        self, task: Task, candidates: int, urgent: int, *, spread: bool
    ) -> tuple[int, int]:
        """A stretch of consecutive missing pieces: long at first, shorter towards the end, so
        that all connections end together (guided self-scheduling, Polychronopoulos 1987). The
        first that somebody waits for before all others."""
        geometry = task.descriptor.geometry
        reads = self._state.limits.origin_reads_max
        length = geometry.piece_length_bytes
        share_bytes = candidates.bit_count() * length // (2 * reads)
        limit_bytes = max(SOLO_READ_BYTES_MIN, min(RUN_BYTES_MAX, share_bytes))
        if task.streaming:
            limit_bytes = min(limit_bytes, STREAM_READ_BYTES_MAX)
        start = bitfield.lowest(urgent) if urgent else 0
        if spread and not urgent:
            start = int(self._state.dice.random() * geometry.piece_count)
        first = bitfield.lowest_from(candidates, start)
        count = min(bitfield.prefix(candidates >> first), max(1, limit_bytes // length))
        return first, count

    # ------------------------------------------------------------ answers

    def piece_stored(self, event: OriginPieceStored) -> None:
        """One more piece was read and written."""
        read = self._reads.get(event.request_id)
        if read is None:
            return
        task, right = read.task, read.right
        bit = 1 << event.piece
        read.pieces &= ~bit
        task.reading_mask &= ~bit
        right.pieces &= ~bit
        right.failures = 0
        read.stored += 1
        task.origin_bytes += event.length_bytes
        if task.phase not in (TaskPhase.ACTIVE, TaskPhase.OPENING) or task.held & bit:
            return
        geometry = task.descriptor.geometry
        if task.descriptor.epoch != right.epoch:
            return
        if geometry.piece_length_bytes != read.piece_length_bytes:
            return  # The task is cut in another way since.
        if geometry.size_bytes is None and event.length_bytes < geometry.piece_length_bytes:
            # The short last piece of a content of unknown size: the end of this read tells it.
            self._keeper.seal_size(task, geometry.offset_bytes(event.piece) + event.length_bytes)
            self._tell_size(task, right)
        record = PieceRecord(event.digest, right.number, read_here=True)
        self._keeper.store_read(task, event.piece, record)
        self._outbox.state_digest(
            Statement(
                task_id=task.task_id,
                epoch=task.descriptor.epoch,
                piece=event.piece,
                digest=event.digest,
                lease_number=right.number,
            )
        )
        self._on_read(task, bit)

    def _tell_size(self, task: Task, right: HeldRight) -> None:
        size = task.descriptor.geometry.size_bytes
        assert size is not None
        if self._state.scheduled:
            self._outbox.send(
                SizeFound(task_id=task.task_id, lease_number=right.number, size_bytes=size)
            )

    def read_ended(self, event: OriginReadEnded) -> None:
        """A request to the origin is over."""
        read = self._reads.pop(event.request_id, None)
        if read is None:
            return
        task, right = read.task, read.right
        self._state.in_flight_bytes -= read.reserved_bytes
        self._dirty = True
        if not read.cancelled:
            task.reading_mask &= ~read.pieces
        if read.cancelled or task.phase not in (TaskPhase.ACTIVE, TaskPhase.OPENING):
            return
        if event.reason is None:
            self._read_whole(read, event)
        elif event.reason in (Reason.DISK_FULL, Reason.DISK_FAILED, Reason.DISK_READ_ONLY):
            self._finish(right, event.reason, detail=event.detail)
            self._on_local_failure(task, event.reason, event.detail)
        else:
            self._read_failed(read, event)

    def _read_whole(self, read: RunningRead, event: OriginReadEnded) -> None:
        task, right = read.task, read.right
        if event.size_bytes is not None and task.descriptor.geometry.size_bytes is None:
            self._keeper.seal_size(task, event.size_bytes)
            self._tell_size(task, right)
        if right.sequential:
            self._finish(right, None)
        self._on_read(task, 0)

    def _read_failed(self, read: RunningRead, event: OriginReadEnded) -> None:
        task, right = read.task, read.right
        assert event.reason is not None
        limits = self._state.limits
        failures = 1
        if not read.stored:
            failures = max(right.failures, task.origin_failures) + 1
        right.failures = task.origin_failures = failures
        self._state.emit(
            Noted(
                kind="origin-read-failed",
                text=event.detail,
                task_id=task.task_id,
                reason=event.reason,
            )
        )
        # CANCELLED: the store had the piece from elsewhere meanwhile; nothing is wrong.
        worth_it = event.reason in TRANSIENT_ORIGIN or event.reason is Reason.CANCELLED
        if not worth_it or failures > limits.origin_retries_max:
            if right.number != NO_LEASE:
                self._finish(right, event.reason, event.retry_after_ms, event.detail)
            else:
                self._on_failure(task, event.reason, event.detail)
            return
        delay_ns = retry_delay_ns(self._state, failures, event.retry_after_ms)
        right.retry_at_ns = task.origin_retry_at_ns = self._state.now_ns + delay_ns
        self._state.wake_at(right.retry_at_ns)

    def tick(self) -> None:
        """Time passed: retries come due, and a lost scheduler's grace may be over."""
        self._dirty = True

    @property
    def reserved_bytes(self) -> int:
        """Buffers that running reads may use."""
        return sum(read.reserved_bytes for read in self._reads.values())


def retry_delay_ns(state: PeerState, failures: int, retry_after_ms: int) -> int:
    """How long to wait before the next try: doubling, half of it drawn, and never less than the
    origin asked for."""
    limits = state.limits
    ceiling = min(limits.origin_retry_max_ns, limits.origin_retry_base_ns << min(failures, 16))
    drawn = ceiling // 2 + int(ceiling // 2 * state.dice.random())
    return max(retry_after_ms * MILLISECOND_NS, drawn)
