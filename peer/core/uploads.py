"""Serving others: who may see a task, whose request is sent next, and when to say "busy".

Children are served in turn, a few pieces at once, so that one with a long queue takes no more
than its share.
"""

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
from peer.core.state import Child, PeerState
from shoal.wire.digest import same, swarm_proof
from shoal.wire.errors import Reason
from shoal.wire.ids import ConnectionId, TaskId
from shoal.wire.limits import MILLISECOND_NS

SERVING_PER_CHILD_MAX = 2
"""Pieces of one child being sent at once: the second is ready when the first ends."""

BUSY_RETRY_MS = 100
TOKENS_PER_TASK_MAX = 4
"""Tokens of a task that are good at once: of this scheduler and of ones before a restart."""


class Uploads:
    """Keeps children and their queues."""

    def __init__(self, state: PeerState, keeper: TaskKeeper) -> None:
        self._state = state
        self._keeper = keeper
        self._serving = 0
        self._queued = 0
        self._turn: dict[ConnectionId, Child] = {}
        """Children with something to send, in the order of their turns."""

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
        child = self._state.children.get(event.connection_id)
        if child is not None:
            child.tasks.pop(event.task_id, None)

    def gone(self, event: ChildGone) -> None:
        """A child's connection is gone."""
        child = self._state.children.pop(event.connection_id, None)
        if child is None:
            return
        self._queued -= len(child.queue)
        self._serving -= len(child.serving)
        self._turn.pop(event.connection_id, None)

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
        for number, piece in event.requests:
            if number in child.serving or any(number == queued[0] for queued in child.queue):
                self._state.emit(
                    DropChild(connection_id=event.connection_id, reason=Reason.PEER_PROTOCOL)
                )
                return
            if not task.told >> piece & 1:
                self._reject(event.connection_id, number, Reason.NOT_HELD)
            elif (
                len(child.queue) >= limits.upload_queue_pieces_max
                or self._queued >= limits.upload_queue_total_max
            ):
                self._state.emit(
                    SendBusy(
                        connection_id=event.connection_id,
                        child_request=number,
                        retry_after_ms=BUSY_RETRY_MS,
                    )
                )
            else:
                child.queue.append((number, event.task_id, piece))
                self._queued += 1
                self._turn[event.connection_id] = child
        self._serve()

    def cancelled(self, event: ChildCancelled) -> None:
        """A child no longer wants some of its requests; those being sent go on."""
        child = self._state.children.get(event.connection_id)
        if child is None:
            return
        unwanted = dict.fromkeys(event.requests)
        kept = [entry for entry in child.queue if entry[0] not in unwanted]
        dropped = [entry for entry in child.queue if entry[0] in unwanted]
        child.queue.clear()
        child.queue.extend(kept)
        self._queued -= len(dropped)
        for number, _, _ in dropped:
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
        if task is None or not task.told >> piece & 1:
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
    def queued(self) -> int:
        """Requests waiting, over all children."""
        return self._queued

    def task_in_use(self, task_id: TaskId) -> bool:
        """Whether some child is being sent a piece of the task or waits for one."""
        return any(
            any(served == task_id for served, _ in child.serving.values())
            or any(queued == task_id for _, queued, _ in child.queue)
            for child in self._state.children.values()
        )
