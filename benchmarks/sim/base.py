"""The process and the disk of one simulated host, around the production `PeerEngine`.

Carries out effects as the shell does, after the time that they would take; never decides.
"""

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from peer.core import effects as fx
from peer.core import events as ev
from peer.core.engine import PeerEngine
from shoal.wire.control import Address, Demand, HostInfo, SchedulerMessage
from shoal.wire.errors import Reason
from shoal.wire.ids import ConnectionId, DownloadId, HostId, RequestId, TaskId, collection_of
from shoal.wire.limits import MILLISECOND_NS

if TYPE_CHECKING:
    from benchmarks.sim.node import SimNode
    from benchmarks.sim.world import World

RECONNECT_NS = 200 * MILLISECOND_NS
STORE_NS = MILLISECOND_NS // 10
ACTIVE_NS = 500 * MILLISECOND_NS


@dataclass(slots=True)
class Fetching:
    """A piece that was requested from a parent."""

    effect: fx.FetchPiece
    parent: "SimNode"


class NodeBase:
    """A host of the world. `lie` makes it a liar: "bytes" sends wrong bytes under the right
    header, "header" wrong bytes with a digest that fits them, "stall" never sends."""

    def __init__(self, world: "World", host_id: HostId) -> None:
        self.world = world
        self.host_id = host_id
        self.lie = ""
        self.alive = False
        self.wants = False
        self.ended = False
        self.reason: Reason | None = None
        self.ended_ns = 0
        self.runs = 0
        self.origin_bytes = 0
        self.rate_bytes_s = world.options.node_rate_bytes_s
        self.disk: dict[TaskId, dict[int, ev.PieceRecord]] = {}
        self.sealed: dict[TaskId, bool] = {}
        self.descriptors: dict[TaskId, object] = {}
        self.up_free_ns = 0
        self.down_free_ns = 0
        self._boot()

    def _boot(self) -> None:
        self.runs += 1
        self.engine = PeerEngine(
            host=HostInfo(host_id=self.host_id, addresses=(Address("127.0.0.1", 1),)),
            limits=self.world.options.peer_limits,
            dice=random.Random(f"{self.world.options.seed}/{self.host_id}/{self.runs}"),
            scheduler_configured=self.world.options.with_scheduler,
        )
        self.session: int | None = None
        self.wake_ns: int | None = None
        self.parents: dict[ConnectionId, SimNode] = {}
        self.children: dict[ConnectionId, SimNode] = {}
        self.fetching: dict[RequestId, Fetching] = {}
        self.stopped_reads: dict[RequestId, None] = {}

    # ------------------------------------------------------------ life

    def start(self) -> None:
        """The daemon starts; what is on its disk survived."""
        self.alive = True
        tasks = tuple(
            ev.StoredTask(
                self.descriptors[task_id],  # type: ignore[arg-type]
                sum(1 << piece for piece in pieces),
                self.sealed.get(task_id, False),
                dict(pieces),
            )
            for task_id, pieces in self.disk.items()
        )
        self.post(ev.StoreLoaded(now_ns=self.world.now_ns, generation=self.runs, tasks=tasks))
        self.connect_scheduler()

    def crash(self) -> None:
        """The process dies: connections break, memory is gone, the disk stays."""
        self.alive = False
        if self.session is not None:
            self.world.close_session(self.session)
        for connection_id, parent in list(self.parents.items()):
            parent.child_gone(connection_id)
        for connection_id, child in list(self.children.items()):
            child.parent_gone(connection_id)
        self.parents.clear()
        self.children.clear()

    def restart(self) -> None:
        """The daemon comes back with its disk."""
        self._boot()
        self.start()
        if self.wants and not self.ended:
            self.want()

    def want(
        self, demand: Demand = Demand.WHOLE, *, origin_allowed: bool = True, credential: str = ""
    ) -> None:
        """A local client wants the world's content."""
        from benchmarks.sim.world import SOURCE_ID

        self.wants = True
        digest = self.world.options.content_digest
        source = ev.Source(
            source_id=SOURCE_ID,
            task_id=TaskId("7" * 64) if digest is not None else None,
            digest=digest,
            display_url="sim://origin/content",
            piece_length_bytes=None,
            credential=credential,
        )
        self.post(
            ev.Want(
                now_ns=self.world.now_ns,
                download_id=DownloadId(self.runs),
                collection_id=collection_of((SOURCE_ID,)),
                sources=(source,),
                demand=demand,
                origin_allowed=origin_allowed,
            )
        )

    # ------------------------------------------------------------ events and effects

    def post(self, event: ev.AnyEvent) -> None:
        """Hands an event to the core and carries out what it answers."""
        if not self.alive:
            return
        effects = self.engine.handle(event)
        if self.world.options.validate:
            self.engine.validate()
        for effect in effects:
            getattr(self, "_do_" + type(effect).__name__)(effect)
        self._plan_tick()

    def later(self, delay_ns: int, event_type: type[ev.Event], **fields: object) -> None:
        """Posts an event after a time, unless the process died meanwhile."""
        run = self.runs

        def arrive() -> None:
            if self.alive and self.runs == run:
                self.post(event_type(now_ns=self.world.now_ns, **fields))  # type: ignore[arg-type]

        self.world.after(delay_ns, arrive)

    def _plan_tick(self) -> None:
        deadline_ns = self.engine.next_deadline_ns()
        if deadline_ns is None:
            return
        if self.wake_ns is not None and self.world.now_ns < self.wake_ns <= deadline_ns:
            return
        wake_ns = self.wake_ns = max(deadline_ns, self.world.now_ns)
        run = self.runs

        def tick() -> None:
            # An earlier deadline may have taken the place of this one.
            if self.alive and self.runs == run and self.wake_ns == wake_ns:
                self.wake_ns = None
                self.post(ev.Tick(now_ns=self.world.now_ns))

        self.world.after(deadline_ns - self.world.now_ns, tick)

    # ------------------------------------------------------------ scheduler

    def connect_scheduler(self) -> None:
        """Opens the control stream, or tries again later."""
        if not self.alive or self.session is not None or not self.world.options.with_scheduler:
            return
        self.session = self.world.open_session(self)
        if self.session is None:
            self.world.after(RECONNECT_NS, self.connect_scheduler)
        else:
            self.post(ev.SchedulerUp(now_ns=self.world.now_ns, session=self.session))

    def scheduler_lost(self, session: int) -> None:
        """The stream broke."""
        if self.session == session:
            self.session = None
            self.later(0, ev.SchedulerDown, session=session)
            self.world.after(RECONNECT_NS, self.connect_scheduler)

    def from_scheduler(self, session: int, messages: tuple[SchedulerMessage, ...]) -> None:
        """A batch arrived."""
        if self.session == session:
            self.post(
                ev.FromScheduler(now_ns=self.world.now_ns, session=session, messages=messages)
            )

    def _do_SendToScheduler(self, effect: fx.SendToScheduler) -> None:
        if self.session == effect.session:
            self.world.to_scheduler(effect.session, effect.messages)

    # ------------------------------------------------------------ store

    def _do_OpenTask(self, effect: fx.OpenTask) -> None:
        task_id = effect.descriptor.task_id
        pieces = self.disk.setdefault(task_id, {})
        known = self.descriptors.get(task_id)
        sealed = self.sealed.get(task_id, False)
        if known is not None and known.epoch < effect.descriptor.epoch and not sealed:  # type: ignore[attr-defined]
            pieces.clear()
        self.descriptors[task_id] = effect.descriptor
        stored = ev.StoredTask(
            effect.descriptor, sum(1 << piece for piece in pieces), sealed, dict(pieces)
        )
        self.later(STORE_NS, ev.TaskOpened, stored=stored)

    def _do_DropPieces(self, effect: fx.DropPieces) -> None:
        pieces = self.disk.get(effect.task_id, {})
        for piece in list(pieces):
            if effect.pieces >> piece & 1:
                del pieces[piece]

    def _do_HashPrefix(self, effect: fx.HashPrefix) -> None:
        if not effect.final:
            return
        pieces = self.disk[effect.task_id]
        right = all(
            record.digest == self.world.origin.digest(piece) for piece, record in pieces.items()
        )
        digest = (
            (self.world.options.content_digest or "sha256:" + "ab" * 32) if right else "sha256:bad"
        )
        self.later(
            STORE_NS,
            ev.ContentHashed,
            task_id=effect.task_id,
            epoch=effect.epoch,
            digest=digest,
        )

    def _do_SealTask(self, effect: fx.SealTask) -> None:
        self.sealed[effect.task_id] = True
        self.later(STORE_NS, ev.TaskSealed, task_id=effect.task_id, reason=None)

    def _do_RemoveTask(self, effect: fx.RemoveTask) -> None:
        self.disk.pop(effect.task_id, None)
        self.sealed.pop(effect.task_id, None)
        self.later(STORE_NS, ev.TaskRemoved, task_id=effect.task_id)

    def _keep(self, task_id: TaskId, piece: int, record: ev.PieceRecord) -> None:
        self.disk.setdefault(task_id, {})[piece] = record
