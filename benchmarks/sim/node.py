"""One simulated host: the production `PeerEngine`, and models of its disk, links and connections.

Carries out effects as the shell does, after the time that they would take; never decides.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from peer.core import effects as fx
from peer.core import events as ev
from peer.core.engine import PeerEngine
from shoal.wire.control import Address, Demand, HostInfo, SchedulerMessage
from shoal.wire.digest import swarm_proof
from shoal.wire.errors import Reason
from shoal.wire.ids import ConnectionId, DownloadId, HostId, RequestId, TaskId, collection_of
from shoal.wire.limits import MILLISECOND_NS, SECOND_NS

if TYPE_CHECKING:
    from benchmarks.sim.world import World

RECONNECT_NS = 200 * MILLISECOND_NS
STORE_NS = MILLISECOND_NS // 10
ACTIVE_NS = 500 * MILLISECOND_NS


@dataclass(slots=True)
class _Fetching:
    effect: fx.FetchPiece
    parent: "SimNode"


class SimNode:
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
        self.fetching: dict[RequestId, _Fetching] = {}
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

    # ------------------------------------------------------------ child side

    def _do_Connect(self, effect: fx.Connect) -> None:
        parent = self.world.nodes.get(effect.host_id)
        delay_ns = 2 * self.world.options.latency_ns
        if parent is None or not parent.alive:
            self.later(
                delay_ns,
                ev.ParentConnectFailed,
                host_id=effect.host_id,
                reason=Reason.PEER_LOST,
                detail="refused",
            )
            return
        connection_id = ConnectionId(self.world.random.getrandbits(62))
        self.parents[connection_id] = parent
        parent.children[connection_id] = self
        self.later(
            delay_ns,
            ev.ParentConnected,
            host_id=effect.host_id,
            connection_id=connection_id,
            round_trip_ns=delay_ns,
        )

    def _do_Disconnect(self, effect: fx.Disconnect) -> None:
        parent = self.parents.pop(effect.connection_id, None)
        if parent is not None:
            parent.child_gone(effect.connection_id)
            self._end_connection(effect.connection_id, Reason.CANCELLED)

    def parent_gone(self, connection_id: ConnectionId) -> None:
        """A parent's process died."""
        if self.parents.pop(connection_id, None) is not None:
            self._end_connection(connection_id, Reason.PEER_LOST)

    def _end_connection(self, connection_id: ConnectionId, reason: Reason) -> None:
        for request_id, fetching in list(self.fetching.items()):
            if fetching.effect.connection_id == connection_id:
                del self.fetching[request_id]
                self.later(0, ev.FetchEnded, request_id=request_id, reason=Reason.PEER_LOST)
        self.later(0, ev.ParentClosed, connection_id=connection_id, reason=reason, detail="closed")

    def child_gone(self, connection_id: ConnectionId) -> None:
        """A child closed its connection, or died."""
        if self.children.pop(connection_id, None) is not None:
            self.later(0, ev.ChildGone, connection_id=connection_id)

    def _do_OpenChannel(self, effect: fx.OpenChannel) -> None:
        parent = self.parents.get(effect.connection_id)
        if parent is None:
            return
        nonce = b"n" * 16
        parent.later(
            self.world.options.latency_ns,
            ev.ChildOpened,
            connection_id=effect.connection_id,
            host_id=self.host_id,
            task_id=effect.task_id,
            nonce=nonce,
            proof=swarm_proof(effect.token, nonce, self.host_id, effect.task_id),
        )

    def _do_CloseChannel(self, effect: fx.CloseChannel) -> None:
        parent = self.parents.get(effect.connection_id)
        if parent is not None:
            parent.later(
                self.world.options.latency_ns,
                ev.ChildClosedTask,
                connection_id=effect.connection_id,
                task_id=effect.task_id,
            )

    def _do_FetchPiece(self, effect: fx.FetchPiece) -> None:
        parent = self.parents.get(effect.connection_id)
        if parent is None:
            self.later(0, ev.FetchEnded, request_id=effect.request_id, reason=Reason.PEER_LOST)
            return
        self.fetching[effect.request_id] = _Fetching(effect, parent)
        parent.later(
            self.world.options.latency_ns,
            ev.ChildRequested,
            connection_id=effect.connection_id,
            task_id=effect.task_id,
            requests=((effect.request_id, effect.piece),),
        )

    def _do_CancelFetch(self, effect: fx.CancelFetch) -> None:
        fetching = self.fetching.pop(effect.request_id, None)
        if fetching is None:
            return
        self.later(0, ev.FetchEnded, request_id=effect.request_id, reason=Reason.CANCELLED)
        fetching.parent.later(
            self.world.options.latency_ns,
            ev.ChildCancelled,
            connection_id=fetching.effect.connection_id,
            requests=(effect.request_id,),
        )

    def receive(
        self,
        connection_id: ConnectionId,
        request_id: RequestId,
        reason: Reason | None,
        **fields: object,
    ) -> None:
        """A parent answered a request, unless the connection broke meanwhile."""
        fetching = self.fetching.get(request_id)
        if fetching is None or fetching.effect.connection_id != connection_id:
            return
        del self.fetching[request_id]
        effect = fetching.effect
        if reason is None:
            record = fields["record"]
            assert isinstance(record, ev.PieceRecord)
            if fields["corrupt"]:
                reason = Reason.PEER_CORRUPT
            elif fields["epoch"] != effect.epoch and (fields["epoch"] or not effect.provisional):
                reason = Reason.NOT_HELD
            elif effect.expected and effect.expected != record.digest:
                reason = Reason.PEER_CONTRADICTED
            else:
                kept = ev.PieceRecord(record.digest, record.lease_number, read_here=False)
                self._keep(effect.task_id, effect.piece, kept)
                self.later(
                    STORE_NS,
                    ev.FetchEnded,
                    request_id=request_id,
                    reason=None,
                    digest=record.digest,
                    lease_number=record.lease_number,
                    epoch=fields["epoch"],
                )
                return
        retry_after_ms = fields.get("retry_after_ms", 0)
        self.later(
            0, ev.FetchEnded, request_id=request_id, reason=reason, retry_after_ms=retry_after_ms
        )

    # ------------------------------------------------------------ parent side

    def _child(self, connection_id: ConnectionId) -> "SimNode | None":
        return self.children.get(connection_id)

    def _tell_child(
        self, connection_id: ConnectionId, event_type: type[ev.Event], **fields: object
    ) -> None:
        child = self._child(connection_id)
        if child is not None:
            child.later(
                self.world.options.latency_ns, event_type, connection_id=connection_id, **fields
            )

    def _do_AcceptChild(self, effect: fx.AcceptChild) -> None:
        self._tell_child(
            effect.connection_id,
            ev.ParentOpened,
            task_id=effect.task_id,
            epoch=effect.epoch,
            held=effect.held,
        )

    def _do_RefuseChild(self, effect: fx.RefuseChild) -> None:
        self._tell_child(
            effect.connection_id, ev.ParentRefused, task_id=effect.task_id, reason=effect.reason
        )

    def _do_Announce(self, effect: fx.Announce) -> None:
        for connection_id in effect.connection_ids:
            self._tell_child(connection_id, ev.ParentHave, task_id=effect.task_id, new=effect.new)

    def _do_Withdraw(self, effect: fx.Withdraw) -> None:
        for connection_id in effect.connection_ids:
            self._tell_child(
                connection_id, ev.ParentWithdrew, task_id=effect.task_id, gone=effect.gone
            )

    def _do_ServePiece(self, effect: fx.ServePiece) -> None:
        world = self.world
        child = self._child(effect.connection_id)
        if child is None:
            self._served(effect, 0, Reason.PEER_LOST)
            return
        if self.lie == "stall":
            return
        up_ns = effect.length_bytes * SECOND_NS // self.rate_bytes_s
        self.up_free_ns = max(self.up_free_ns, world.now_ns) + up_ns
        sent_ns = self.up_free_ns
        record, corrupt = effect.record, False
        if self.lie == "bytes":
            corrupt = True
        elif self.lie == "header":
            record = ev.PieceRecord(b"L" * 16, record.lease_number, read_here=False)
        self._served(effect, sent_ns - world.now_ns, None)
        for step in range(1, (sent_ns - world.now_ns) // ACTIVE_NS + 1):
            if sent_ns - step * ACTIVE_NS >= sent_ns - up_ns:
                child.later(
                    sent_ns - step * ACTIVE_NS - world.now_ns,
                    ev.ParentActive,
                    connection_id=effect.connection_id,
                )

        def arrive() -> None:
            child.receive(
                effect.connection_id,
                RequestId(effect.child_request),
                None,
                record=record,
                corrupt=corrupt,
                epoch=effect.epoch,
            )

        world.after(
            sent_ns + world.options.latency_ns - world.now_ns,
            lambda: child.take_in(effect.length_bytes, arrive),
        )

    def take_in(self, length_bytes: int, then: Callable[[], None]) -> None:
        """Bytes that were just sent pass this host's downlink, behind what is passing already."""
        down_ns = length_bytes * SECOND_NS // self.rate_bytes_s
        # Cut through: they came in while they were sent, if the link was free.
        self.down_free_ns = max(self.down_free_ns + down_ns, self.world.now_ns)
        self.world.after(self.down_free_ns - self.world.now_ns, then)

    def _served(self, effect: fx.ServePiece, delay_ns: int, reason: Reason | None) -> None:
        self.later(
            delay_ns,
            ev.ServeEnded,
            connection_id=effect.connection_id,
            child_request=effect.child_request,
            task_id=effect.task_id,
            piece=effect.piece,
            reason=reason,
        )

    def _answer(
        self, connection_id: ConnectionId, request: int, reason: Reason, retry_after_ms: int = 0
    ) -> None:
        child = self._child(connection_id)
        if child is not None:
            self.world.after(
                self.world.options.latency_ns,
                lambda: child.receive(
                    connection_id, RequestId(request), reason, retry_after_ms=retry_after_ms
                ),
            )

    def _do_SendBusy(self, effect: fx.SendBusy) -> None:
        self._answer(
            effect.connection_id, effect.child_request, Reason.PEER_BUSY, effect.retry_after_ms
        )

    def _do_SendReject(self, effect: fx.SendReject) -> None:
        self._answer(effect.connection_id, effect.child_request, effect.reason)

    def _do_DropChild(self, effect: fx.DropChild) -> None:
        child = self.children.pop(effect.connection_id, None)
        if child is not None:
            child.parent_gone(effect.connection_id)
            self.later(0, ev.ChildGone, connection_id=effect.connection_id)

    # ------------------------------------------------------------ origin

    def _do_StatOrigin(self, effect: fx.StatOrigin) -> None:
        origin = self.world.origin
        origin.stats += 1
        delay_ns = 2 * self.world.options.latency_ns
        if not origin.up:
            self.later(
                delay_ns,
                ev.StatEnded,
                request_id=effect.request_id,
                reason=Reason.ORIGIN_FAILED,
                detail="refused",
            )
            return
        self.later(
            delay_ns,
            ev.StatEnded,
            request_id=effect.request_id,
            reason=None,
            size_bytes=origin.size_bytes if origin.known_size else None,
            validator=origin.validator,
            ranges=origin.ranges,
        )

    def _do_ReadOrigin(self, effect: fx.ReadOrigin) -> None:
        run = self.runs
        origin = self.world.origin
        geometry = effect.descriptor.geometry
        sealed = geometry.sealed(origin.size_bytes)
        count = effect.piece_count
        end = sealed.piece_count if count is None else effect.first_piece + count

        def next_piece(piece: int) -> None:
            if not self.alive or self.runs != run:
                return
            reason = None
            if effect.request_id in self.stopped_reads:
                reason = Reason.CANCELLED
            elif not origin.up:
                reason = Reason.ORIGIN_FAILED
            elif effect.descriptor.validator not in (None, origin.validator):
                reason = Reason.ORIGIN_CHANGED
            if reason is not None or piece >= end:
                size = origin.size_bytes if count is None and reason is None else None
                self.post(
                    ev.OriginReadEnded(
                        now_ns=self.world.now_ns,
                        request_id=effect.request_id,
                        reason=reason,
                        size_bytes=size,
                    )
                )
                return
            length = sealed.length_bytes(piece)
            took_ns = length * SECOND_NS // origin.rate_bytes_s
            origin.free_at_ns = max(origin.free_at_ns, self.world.now_ns) + took_ns
            self.world.after(
                origin.free_at_ns - self.world.now_ns,
                lambda: self.take_in(
                    length, lambda: self._piece_read(effect, piece, length, run, next_piece)
                ),
            )

        self.world.after(2 * self.world.options.latency_ns, lambda: next_piece(effect.first_piece))

    def _piece_read(
        self, effect: fx.ReadOrigin, piece: int, length: int, run: int, then: Callable[[int], None]
    ) -> None:
        if not self.alive or self.runs != run:
            return
        origin = self.world.origin
        origin.reads[piece] = origin.reads.get(piece, 0) + 1
        self.origin_bytes += length
        digest = origin.digest(piece)
        if self.lie == "origin":
            digest = b"L" * 16
        task_id = effect.descriptor.task_id
        self._keep(task_id, piece, ev.PieceRecord(digest, effect.lease_number, read_here=True))
        self.post(
            ev.OriginPieceStored(
                now_ns=self.world.now_ns,
                request_id=effect.request_id,
                piece=piece,
                digest=digest,
                length_bytes=length,
            )
        )
        then(piece + 1)

    def _do_CancelOrigin(self, effect: fx.CancelOrigin) -> None:
        self.stopped_reads[effect.request_id] = None

    # ------------------------------------------------------------ clients

    def _do_DownloadEnded(self, effect: fx.DownloadEnded) -> None:
        self.ended = True
        self.reason = effect.reason
        self.ended_ns = self.world.now_ns

    def _do_Noted(self, effect: fx.Noted) -> None:
        if effect.kind == "blamed" and effect.host_id is not None:
            self.world.blamed.append((self.host_id, effect.host_id))

    def _ignore(self, effect: object) -> None:
        """Of no consequence in the simulation."""

    _do_SourceResolved = _do_PrefixReadable = _do_SourceEnded = _do_RemoveEnded = _ignore
