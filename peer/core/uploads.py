"""Serving others: who may see a task, whose request is sent next, and when to say "busy".

Children are served in turn, a few pieces at once, so that one with a long queue takes no more
than its share.
"""

from dataclasses import dataclass, field

from peer.core.download import OPEN_PHASES, TaskKeeper
from peer.core.effects import (
    AcceptChild,
    DropChild,
    Noted,
    RefuseChild,
    SendBusy,
    SendReject,
    ServePiece,
)
from peer.core.events import (
    ChildCancelled,
    ChildClosedTask,
    ChildGone,
    ChildOpened,
    ChildRequested,
    ServeEnded,
)
from peer.core.state import Child, PeerState, Task, TaskPhase
from shoal.wire import bitfield
from shoal.wire.errors import Reason
from shoal.wire.ids import ConnectionId, TaskId
from shoal.wire.limits import MILLISECOND_NS
from shoal.wire.proof import same, swarm_proof

SERVING_PER_CHILD_MAX = 2
"""Pieces of one child being sent at once: the second is ready when the first ends."""

PULLING_MAX = 2
"""Children whose pulls are served at once where a swarm flows by a plan: what few hosts hold yet
and all want spreads faster from child to child than to all of them from here."""

PULL_REST_NS = 1_000 * MILLISECOND_NS
"""While this host has something for those that it feeds, it begins with a child's pulls only so
often. The plan gives all of its upload to them: pulls that took a share for long would make the
whole tree below lag, which makes for more pulls."""

BUSY_RETRY_MS = 100
TOKENS_PER_TASK_MAX = 4
"""Tokens of a task that are good at once: of this scheduler and of ones before a restart."""


PARK_NS = 1_000 * MILLISECOND_NS
"""How long a child that comes too early waits for its answer."""

PARKED_MAX = 4096

STILL_FILLING = (TaskPhase.ACTIVE, TaskPhase.CHECKING, TaskPhase.SEALING)


@dataclass(slots=True)
class Awaited:
    """Standing requests for pieces of one task."""

    mask: int = 0
    children: dict[int, dict[tuple[ConnectionId, int], Child]] = field(default_factory=dict)
    """By piece: the children that wait for it, each with its request number."""


class Uploads:
    """Keeps children and their queues."""

    def __init__(self, state: PeerState, keeper: TaskKeeper) -> None:
        self._state = state
        self._keeper = keeper
        self._serving = 0
        self._queued = 0
        self._awaited: dict[TaskId, Awaited] = {}
        self._parked: dict[tuple[ConnectionId, TaskId], tuple[int, ChildOpened]] = {}
        """Children that came before this host knew the task, each with the end of its patience."""
        self._turn: dict[ConnectionId, Child] = {}
        """Children with something to send, in the order of their turns."""
        self._pulling: dict[ConnectionId, None] = {}
        """Children with pulls."""
        self._pulls = 0
        self._pulled_ns = -PULL_REST_NS
        """When a pull was last let in."""

    # ------------------------------------------------------------ tokens and channels

    def trust(self, task_id: TaskId, token: bytes, ttl_ms: int) -> None:
        """The scheduler issued a swarm token for a task."""
        now_ns = self._state.now_ns
        expires_ns = now_ns + ttl_ms * MILLISECOND_NS
        known = self._state.tokens.get(task_id, [])
        good = [pair for pair in known if pair[1] > now_ns and pair[0] != token]
        good.append((token, expires_ns))
        self._state.tokens[task_id] = good[-TOKENS_PER_TASK_MAX:]

    def opened(self, event: ChildOpened) -> None:
        """A child asks for a task and shows a proof of its right."""
        child = self._state.children.get(event.connection_id)
        if child is None:
            if len(self._state.children) >= self._state.limits.children_max:
                self._refuse(event, Reason.OVERLOADED)
                return
            child = Child(connection_id=event.connection_id, host_id=event.host_id)
            self._state.children[event.connection_id] = child
        if self._early(event) and len(self._parked) < PARKED_MAX:
            until_ns = self._state.now_ns + PARK_NS
            self._parked[event.connection_id, event.task_id] = (until_ns, event)
            self._state.wake_at(until_ns)
            return
        self._decide(event)

    def _early(self, event: ChildOpened) -> bool:
        """Whether this host is only about to know the task or the child's token: both were told
        of it at the same moment."""
        task = self._state.tasks.get(event.task_id)
        opening = task is None or task.phase is TaskPhase.OPENING
        return self._state.scheduled and (opening or event.task_id not in self._state.tokens)

    def _decide(self, event: ChildOpened) -> None:
        if not self._proven(event):
            self._state.emit(
                Noted(
                    kind="unauthorized-child",
                    text="showed no valid swarm token",
                    host_id=event.host_id,
                    task_id=event.task_id,
                    reason=Reason.UNAUTHORIZED,
                )
            )
            self._refuse(event, Reason.UNAUTHORIZED)
            return
        task = self._state.tasks.get(event.task_id)
        if task is None or task.phase not in OPEN_PHASES:
            self._refuse(event, Reason.UNKNOWN_TASK)
            return
        self._accept(event)

    def _look_at_parked(self) -> None:
        for key, (until_ns, event) in list(self._parked.items()):
            if until_ns <= self._state.now_ns or not self._early(event):
                del self._parked[key]
                self._decide(event)

    def _accept(self, event: ChildOpened) -> None:
        child = self._state.children[event.connection_id]
        task = self._state.tasks[event.task_id]
        child.tasks[event.task_id] = None
        self._state.emit(
            AcceptChild(
                connection_id=event.connection_id,
                task_id=event.task_id,
                epoch=task.descriptor.epoch,
                held=task.told,
            )
        )

    def _proven(self, event: ChildOpened) -> bool:
        for token, expires_ns in self._state.tokens.get(event.task_id, ()):
            if expires_ns <= self._state.now_ns:
                continue
            proof = swarm_proof(token, event.nonce, event.host_id, event.task_id)
            if same(proof, event.proof):
                return True
        return False

    def _refuse(self, event: ChildOpened, reason: Reason) -> None:
        self._state.emit(
            RefuseChild(connection_id=event.connection_id, task_id=event.task_id, reason=reason)
        )

    def closed_task(self, event: ChildClosedTask) -> None:
        """A child needs nothing more of a task."""
        self._parked.pop((event.connection_id, event.task_id), None)
        child = self._state.children.get(event.connection_id)
        if child is not None:
            child.tasks.pop(event.task_id, None)
            self._drop_waiting(child, event.task_id)

    def gone(self, event: ChildGone) -> None:
        """A child's connection is gone."""
        for key in [key for key in self._parked if key[0] == event.connection_id]:
            del self._parked[key]
        child = self._state.children.pop(event.connection_id, None)
        if child is None:
            return
        self._queued -= len(child.queue)
        self._serving -= len(child.serving)
        self._turn.pop(event.connection_id, None)
        self._pulling.pop(event.connection_id, None)
        self._pulls -= len(child.pulls)
        for number in list(child.waiting):
            self._stop_waiting(child, number)

    # ------------------------------------------------------------ standing requests

    def _wait(self, child: Child, number: int, task: Task, piece: int) -> None:
        child.waiting[number] = (task.task_id, piece)
        awaited = self._awaited.setdefault(task.task_id, Awaited())
        awaited.mask |= 1 << piece
        awaited.children.setdefault(piece, {})[child.connection_id, number] = child

    def _stop_waiting(self, child: Child, number: int) -> None:
        task_id, piece = child.waiting.pop(number)
        awaited = self._awaited[task_id]
        children = awaited.children[piece]
        del children[child.connection_id, number]
        if not children:
            del awaited.children[piece]
            awaited.mask &= ~(1 << piece)
            if not awaited.mask:
                del self._awaited[task_id]

    def _drop_waiting(self, child: Child, task_id: TaskId) -> None:
        for number, (waited, _) in list(child.waiting.items()):
            if waited == task_id:
                self._stop_waiting(child, number)
                self._reject(child.connection_id, number, Reason.NOT_HELD)

    def let_go(self, task_id: TaskId | None = None) -> None:
        """Nobody here wants the task (or, None, anything) any more: what children wait for will
        not come this way."""
        for child in list(self._state.children.values()):
            for waited in dict.fromkeys(waited for waited, _ in child.waiting.values()):
                if task_id in (None, waited):
                    self._drop_waiting(child, waited)

    def serve_awaited(self) -> None:
        """Standing requests for what has just become servable. At the end of every event."""
        if self._parked:
            self._look_at_parked()
        renewed = self._keeper.take_renewed()
        if not renewed and not self._turn:
            return
        for task in renewed:
            awaited = self._awaited.get(task.task_id)
            if awaited is None:
                continue
            if task.phase not in OPEN_PHASES and task.phase is not TaskPhase.OPENING:
                for child in list(self._state.children.values()):
                    self._drop_waiting(child, task.task_id)
                continue
            for piece in list(bitfield.pieces(awaited.mask & self._keeper.announceable(task))):
                for (connection_id, number), child in list(awaited.children[piece].items()):
                    self._stop_waiting(child, number)
                    child.queue.append((number, task.task_id, piece))
                    self._queued += 1
                    self._turn[connection_id] = child
        self._serve()

    # ------------------------------------------------------------ requests

    def requested(self, event: ChildRequested) -> None:
        """A child asks for pieces."""
        child = self._state.children.get(event.connection_id)
        if child is None or event.task_id not in child.tasks:
            for number, _ in event.requests:
                self._reject(event.connection_id, number, Reason.UNKNOWN_TASK)
            return
        task = self._state.tasks[event.task_id]
        limits = self._state.limits
        ready = self._keeper.announceable(task)
        pulls = not event.wait and self._state.planned(task)
        for number, piece in event.requests:
            if (
                number in child.serving
                or number in child.waiting
                or any(number == queued[0] for queued in child.queue)
            ):
                self._state.emit(
                    DropChild(connection_id=event.connection_id, reason=Reason.PEER_PROTOCOL)
                )
                return
            if not ready >> piece & 1 and not (event.wait and self._will_hold(task)):
                self._reject(event.connection_id, number, Reason.NOT_HELD)
            elif (
                len(child.queue) + len(child.waiting) >= limits.upload_queue_pieces_max
                or self._queued >= limits.upload_queue_total_max
                or (pulls and not self._may_pull(child))
            ):
                self._state.emit(
                    SendBusy(
                        connection_id=event.connection_id,
                        child_request=number,
                        retry_after_ms=BUSY_RETRY_MS,
                    )
                )
            elif not ready >> piece & 1:
                self._wait(child, number, task, piece)
            else:
                child.queue.append((number, event.task_id, piece))
                self._queued += 1
                self._turn[event.connection_id] = child
                if pulls:
                    self._begin_pull(child, number)
        self._serve()

    def _may_pull(self, child: Child) -> bool:
        if child.connection_id in self._pulling:
            return True
        if len(self._pulling) >= PULLING_MAX:
            return False
        feeding = self._serving + self._queued > self._pulls
        return not feeding or self._state.now_ns - self._pulled_ns >= PULL_REST_NS

    def _begin_pull(self, child: Child, number: int) -> None:
        child.pulls[number] = None
        self._pulls += 1
        self._pulling[child.connection_id] = None
        self._pulled_ns = self._state.now_ns

    def _end_pull(self, child: Child, number: int) -> None:
        if number not in child.pulls:
            return
        del child.pulls[number]
        self._pulls -= 1
        if not child.pulls:
            del self._pulling[child.connection_id]

    def _will_hold(self, task: Task) -> bool:
        return task.phase in STILL_FILLING and bool(task.watchers) and not self._state.shutting_down

    def cancelled(self, event: ChildCancelled) -> None:
        """A child no longer wants some of its requests; those being sent go on."""
        child = self._state.children.get(event.connection_id)
        if child is None:
            return
        unwanted = dict.fromkeys(event.requests)
        for number in unwanted:
            if number in child.waiting:
                self._stop_waiting(child, number)
                self._reject(event.connection_id, number, Reason.CANCELLED)
        kept = [entry for entry in child.queue if entry[0] not in unwanted]
        dropped = [entry for entry in child.queue if entry[0] in unwanted]
        child.queue.clear()
        child.queue.extend(kept)
        self._queued -= len(dropped)
        for number, _, _ in dropped:
            self._end_pull(child, number)
            self._reject(event.connection_id, number, Reason.CANCELLED)

    def _reject(self, connection_id: ConnectionId, number: int, reason: Reason) -> None:
        self._state.emit(
            SendReject(connection_id=connection_id, child_request=number, reason=reason)
        )

    def _serve(self) -> None:
        limits = self._state.limits
        waiting = len(self._turn)
        while self._serving < limits.serving_max and self._turn and waiting:
            connection_id, child = next(iter(self._turn.items()))
            del self._turn[connection_id]
            waiting -= 1
            if not child.queue:
                continue
            if len(child.serving) < SERVING_PER_CHILD_MAX:
                self._serve_one(child)
                waiting += 1
            if child.queue and len(child.serving) < SERVING_PER_CHILD_MAX:
                self._turn[connection_id] = child

    def _serve_one(self, child: Child) -> None:
        number, task_id, piece = child.queue.popleft()
        self._queued -= 1
        task = self._state.tasks.get(task_id)
        # It may have been dropped while it waited.
        if task is None or not self._keeper.announceable(task) >> piece & 1:
            self._end_pull(child, number)
            self._reject(child.connection_id, number, Reason.NOT_HELD)
            return
        geometry = task.descriptor.geometry
        child.serving[number] = (task_id, piece)
        self._serving += 1
        self._state.emit(
            ServePiece(
                connection_id=child.connection_id,
                child_request=number,
                task_id=task_id,
                piece=piece,
                offset_bytes=geometry.offset_bytes(piece),
                length_bytes=geometry.length_bytes(piece),
                record=task.records[piece],
                epoch=task.descriptor.epoch if self._keeper.vouched(task, piece) else 0,
            )
        )

    def served(self, event: ServeEnded) -> None:
        """A piece was sent, or could not be."""
        child = self._state.children.get(event.connection_id)
        if child is not None and child.serving.pop(event.child_request, None) is not None:
            self._serving -= 1
            self._end_pull(child, event.child_request)
            if event.reason is None:
                task = self._state.tasks.get(event.task_id)
                if task is not None:
                    child.served_bytes += task.descriptor.geometry.length_bytes(event.piece)
            if child.queue:
                self._turn[child.connection_id] = child
        if event.reason in (Reason.DISK_FAILED, Reason.NOT_HELD):
            self._lost(event)
        self._serve()

    def _lost(self, event: ServeEnded) -> None:
        """Our own disk does not give the piece back: it is not held any more."""
        task = self._state.tasks.get(event.task_id)
        if task is None:
            return
        self._state.emit(
            Noted(
                kind="piece-unreadable",
                text=event.detail,
                task_id=event.task_id,
                piece=event.piece,
                reason=event.reason,
            )
        )
        self._keeper.reread(task)

    @property
    def serving(self) -> int:
        """Pieces being sent now."""
        return self._serving

    @property
    def pulls(self) -> int:
        """Of the requests that are served or wait, those of hosts that are not fed from here."""
        return self._pulls

    @property
    def queued(self) -> int:
        """Requests waiting, over all children."""
        return self._queued

    @property
    def awaited(self) -> dict[TaskId, Awaited]:
        """Standing requests, by task."""
        return self._awaited

    def task_in_use(self, task_id: TaskId) -> bool:
        """Whether some child is being sent a piece of the task or waits for one."""
        return any(
            any(served == task_id for served, _ in child.serving.values())
            or any(queued == task_id for _, queued, _ in child.queue)
            for child in self._state.children.values()
        )
