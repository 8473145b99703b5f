"""What is told to the scheduler, in batches. Decides when a batch goes out, never its content."""

from peer.core.effects import SendToScheduler
from peer.core.state import PeerState, Task, TaskPhase
from shoal.wire.control import (
    Blame,
    Checked,
    DigestList,
    Goodput,
    HeldLease,
    Hello,
    Holding,
    HostMessage,
    LeaseEnd,
    Progress,
    Report,
    Statement,
)
from shoal.wire.limits import MILLISECOND_NS, STATEMENTS_PER_MESSAGE_MAX

HOLDINGS_MAX = 8192
"""Tasks told in one inventory; it must fit one control message of 4 MiB."""

URGENT_INTERVAL_NS = 5 * MILLISECOND_NS
"""Least time between reports when this host has nothing left to read under its leases."""


STATEMENT_INTERVAL_NS = 25 * MILLISECOND_NS
"""Least time between reports of a host that reads from the origin: others may pass a piece on only
when its digest is known, and only a few hosts read at once."""


class Outbox:
    """Collects reports for the scheduler and sends them a few times a second at most.

    The first news after a quiet time goes out at once, so that a small file never waits.
    """

    def __init__(self, state: PeerState) -> None:
        self._state = state
        self._statements: list[Statement] = []
        self._lease_ends: list[LeaseEnd] = []
        self._blames: list[Blame] = []
        self._dirty_tasks: dict[str, Task] = {}
        self._last_sent_ns = -(1 << 62)
        self._due_ns: int | None = None

    def state_digest(self, statement: Statement) -> None:
        """This host read a piece under a lease; its word on the digest."""
        task = self._state.tasks.get(statement.task_id)
        if task is not None:
            task.stated |= 1 << statement.piece
        self._statements.append(statement)
        self._plan(STATEMENT_INTERVAL_NS)

    def end_lease(self, lease_end: LeaseEnd, *, urgent: bool) -> None:
        """A lease is used up or given back. `urgent`: it was the last one, reading pauses until
        the scheduler knows."""
        self._lease_ends.append(lease_end)
        self._plan(URGENT_INTERVAL_NS if urgent else None)

    def blame(self, blame: Blame) -> None:
        """A parent did wrong."""
        self._blames.append(blame)
        self._plan()

    def progressed(self, task: Task) -> None:
        """A task holds pieces that the scheduler was not told of."""
        self._dirty_tasks[task.task_id] = task
        self._plan()

    def tell_loss(self, task: Task) -> None:
        """The task is about to be forgotten: the scheduler is told at once what it lost."""
        if task.lost:
            self._flush()

    def lost(self, task: Task, gone: int) -> None:
        """Pieces that the scheduler was told of turned out wrong or unreadable."""
        task.lost |= gone & (task.reported | task.stated)
        task.reported &= ~gone
        task.stated &= ~gone
        self.progressed(task)

    def send(self, *messages: HostMessage) -> None:
        """Sends at once, behind whatever was collected before. Dropped without a session."""
        session = self._state.session
        if session is None:
            return
        self._flush()
        self._state.emit(SendToScheduler(session=session.number, messages=messages))

    def flush_if_due(self) -> None:
        """Sends the batch if its time has come. Called at the end of every event."""
        if self._due_ns is not None and self._state.now_ns >= self._due_ns:
            self._flush()

    def reset(self) -> None:
        """A session ended or began: what was collected is told by the next `Hello`."""
        self._statements.clear()
        self._lease_ends.clear()
        self._blames.clear()
        self._dirty_tasks.clear()
        self._due_ns = None

    def hello(self, leases: tuple[HeldLease, ...]) -> Hello:
        """The inventory: everything that this host holds or is about to."""
        holdings: list[Holding] = []
        for task in self._state.tasks.values():
            if task.phase in (TaskPhase.FAILED, TaskPhase.REMOVING, TaskPhase.OPENING):
                continue
            task.reported = task.held
            holdings.append(
                Holding(
                    descriptor=task.descriptor,
                    held=task.held,
                    sealed=task.phase is TaskPhase.SEALED,
                )
            )
            if len(holdings) == HOLDINGS_MAX:
                break
        return Hello(
            host=self._state.host,
            generation=self._state.generation,
            holdings=tuple(holdings),
            leases=leases,
        )

    def restate(self) -> None:
        """Says again what this host read of unsealed tasks: a new scheduler knows no digests."""
        for task in self._state.tasks.values():
            if task.phase in (TaskPhase.ACTIVE, TaskPhase.CHECKING, TaskPhase.SEALING):
                for piece in sorted(task.records):
                    record = task.records[piece]
                    if record.read_here:
                        self._statements.append(
                            Statement(
                                task_id=task.task_id,
                                epoch=task.descriptor.epoch,
                                piece=piece,
                                digest=record.digest,
                                lease_number=record.lease_number,
                            )
                        )
        self._plan()

    def digest_lists(self, task: Task) -> list[DigestList]:
        """All piece digests of a held task, split into messages of bounded size."""
        if not task.held:
            return []
        end = task.held.bit_length()
        return [
            DigestList(
                task_id=task.task_id,
                epoch=task.descriptor.epoch,
                first_piece=first,
                digests=tuple(
                    task.records[piece].digest if piece in task.records else b""
                    for piece in range(first, min(first + STATEMENTS_PER_MESSAGE_MAX, end))
                ),
            )
            for first in range(0, end, STATEMENTS_PER_MESSAGE_MAX)
        ]

    def checked(self, task: Task, *, passed: bool) -> None:
        """The whole digest of a task was computed."""
        self.send(
            Checked(
                task_id=task.task_id,
                epoch=task.descriptor.epoch,
                passed=passed,
                digest=task.computed_digest,
            )
        )

    def _plan(self, interval_ns: int | None = None) -> None:
        if self._state.session is None:
            return
        if interval_ns is None:
            interval_ns = self._state.report_interval_ns
        due_ns = max(self._state.now_ns, self._last_sent_ns + interval_ns)
        if self._due_ns is None or due_ns < self._due_ns:
            self._due_ns = due_ns
            self._state.wake_at(due_ns)

    def _flush(self) -> None:
        self._due_ns = None
        session = self._state.session
        if session is None:
            return
        goodput = self._take_goodput()
        reports: list[HostMessage] = []
        statements = self._statements
        progress = self._take_progress()
        while statements or progress or self._lease_ends or self._blames or goodput:
            part = statements[:STATEMENTS_PER_MESSAGE_MAX]
            del statements[:STATEMENTS_PER_MESSAGE_MAX]
            reports.append(
                Report(
                    statements=tuple(part),
                    # Progress and lease ends go behind the statements that they rest on.
                    progress=() if statements else tuple(progress),
                    lease_ends=() if statements else tuple(self._lease_ends),
                    goodput=() if statements else goodput,
                    blames=() if statements else tuple(self._blames),
                    free_upload_slots=self._free_upload_slots(),
                )
            )
            if not statements:
                progress = []
                goodput = ()
                self._lease_ends.clear()
                self._blames.clear()
        if reports:
            self._last_sent_ns = self._state.now_ns
            self._state.emit(SendToScheduler(session=session.number, messages=tuple(reports)))

    def _take_progress(self) -> list[Progress]:
        progress = []
        for task in self._dirty_tasks.values():
            new = task.held & ~task.reported
            lost, task.lost = task.lost & ~task.held, 0
            if new or lost:
                task.reported |= new
                progress.append(
                    Progress(task_id=task.task_id, epoch=task.descriptor.epoch, new=new, lost=lost)
                )
        self._dirty_tasks.clear()
        return progress

    def _take_goodput(self) -> tuple[Goodput, ...]:
        goodput = []
        for link in self._state.links.values():
            if link.received_bytes:
                goodput.append(
                    Goodput(
                        host_id=link.host_id,
                        received_bytes=link.received_bytes,
                        rate_bytes_s=int(link.rate_bytes_s),
                    )
                )
                link.received_bytes = 0
        return tuple(goodput)

    def _free_upload_slots(self) -> int:
        waiting = sum(len(child.queue) for child in self._state.children.values())
        return max(0, self._state.limits.upload_queue_total_max - waiting)
