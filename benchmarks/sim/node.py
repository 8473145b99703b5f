"""One simulated host: what passes between it, its parents and children, and the origin.

Carries out effects as the shell does, after the time that they would take; never decides.
"""

from typing import TYPE_CHECKING, Any

from benchmarks.sim.base import NodeBase
from benchmarks.sim.options import HostSpec
from benchmarks.sim.origin import FALSE_DIGEST, OriginRead, SimTask
from benchmarks.sim.transfer import ACTIVE_NS, Connection, Transfer
from peer.core import effects as fx
from peer.core import events as ev
from shoal.wire.digest import swarm_proof
from shoal.wire.errors import Reason
from shoal.wire.ids import ConnectionId, HostId, RequestId

if TYPE_CHECKING:
    from benchmarks.sim.world import World

NONCE = b"n" * 16


class Fetching:
    """A piece that this host waits for: asked for, coming, or being written."""

    __slots__ = ("came", "connection", "effect")

    def __init__(self, effect: fx.FetchPiece, connection: Connection) -> None:
        self.effect = effect
        self.connection = connection
        self.came = False
        """All its bytes are here."""


class SimNode(NodeBase):
    """A host of the world, complete."""

    def __init__(self, world: "World", host_id: HostId, number: int, spec: HostSpec) -> None:
        self.parents: dict[ConnectionId, Connection] = {}
        self.children: dict[ConnectionId, Connection] = {}
        self.fetching: dict[RequestId, Fetching] = {}
        super().__init__(world, host_id, number, spec)

    # ------------------------------------------------------------ connections

    def _connect(self, effect: fx.Connect) -> None:
        when_ns = self.world.now_ns + self.world.options.latency_ns
        self.world.at(when_ns, self._knock, self.runs, effect.host_id)

    def _knock(self, run: int, host_id: HostId) -> None:
        """This host's call comes to a parent."""
        if self.runs != run or not self.alive:
            return
        world = self.world
        latency_ns = world.options.latency_ns
        parent = world.nodes.get(host_id)
        if parent is None or not parent.alive:
            self.expect(
                ev.ParentConnectFailed(
                    now_ns=world.now_ns + latency_ns,
                    host_id=host_id,
                    reason=Reason.PEER_LOST,
                    detail="refused",
                )
            )
            return
        connection = Connection(world.next_connection_id(), self, parent, world)
        self.parents[connection.connection_id] = connection
        parent.children[connection.connection_id] = connection
        self.expect(
            ev.ParentConnected(
                now_ns=world.now_ns + latency_ns,
                host_id=host_id,
                connection_id=connection.connection_id,
                round_trip_ns=2 * latency_ns,
            )
        )

    def _disconnect(self, effect: fx.Disconnect) -> None:
        connection = self.parents.get(effect.connection_id)
        if connection is not None:
            self._close_from_child(connection)
            self.parent_left(self.runs, connection, Reason.CANCELLED)

    def _drop_child(self, effect: fx.DropChild) -> None:
        connection = self.children.get(effect.connection_id)
        if connection is not None:
            self._close_from_parent(connection)
            self.child_left(self.runs, connection)

    def _close_from_child(self, connection: Connection) -> None:
        connection.close(self.world)
        when_ns = self.world.now_ns + self.world.options.latency_ns
        parent = connection.parent
        self.world.at(when_ns, parent.child_left, parent.runs, connection)

    def _close_from_parent(self, connection: Connection) -> None:
        connection.close(self.world)
        when_ns = self.world.now_ns + self.world.options.latency_ns
        child = connection.child
        self.world.at(when_ns, child.parent_left, child.runs, connection, Reason.PEER_LOST)

    def _break_connections(self) -> None:
        for connection in self.parents.values():
            self._close_from_child(connection)
        for connection in self.children.values():
            self._close_from_parent(connection)
        self.parents.clear()
        self.children.clear()
        self.fetching.clear()

    def parent_left(self, run: int, connection: Connection, reason: Reason) -> None:
        """This side notices that the connection to a parent is gone."""
        if self.runs != run or self.parents.pop(connection.connection_id, None) is None:
            return
        now_ns = self.world.now_ns
        for request_id, fetching in list(self.fetching.items()):
            # What has come is written all the same.
            if fetching.connection is connection and not fetching.came:
                del self.fetching[request_id]
                self.expect(
                    ev.FetchEnded(now_ns=now_ns, request_id=request_id, reason=Reason.PEER_LOST)
                )
        self.expect(
            ev.ParentClosed(
                now_ns=now_ns,
                connection_id=connection.connection_id,
                reason=reason,
                detail="closed",
            )
        )

    def child_left(self, run: int, connection: Connection) -> None:
        """This side notices that a child's connection is gone."""
        if self.runs != run or self.children.pop(connection.connection_id, None) is None:
            return
        for transfer in connection.transfers.values():
            self._served(transfer.effect, Reason.PEER_LOST)
        connection.transfers.clear()
        self.expect(ev.ChildGone(now_ns=self.world.now_ns, connection_id=connection.connection_id))

    # ------------------------------------------------------------ child side

    def _to_parent(self, connection_id: ConnectionId, event: ev.AnyEvent) -> None:
        connection = self.parents.get(connection_id)
        if connection is not None and connection.open:
            connection.parent.expect(event)

    def _open_channel(self, effect: fx.OpenChannel) -> None:
        self._to_parent(
            effect.connection_id,
            ev.ChildOpened(
                now_ns=self.world.now_ns + self.world.options.latency_ns,
                connection_id=effect.connection_id,
                host_id=self.host_id,
                task_id=effect.task_id,
                nonce=NONCE,
                proof=swarm_proof(effect.token, NONCE, self.host_id, effect.task_id),
            ),
        )

    def _close_channel(self, effect: fx.CloseChannel) -> None:
        self._to_parent(
            effect.connection_id,
            ev.ChildClosedTask(
                now_ns=self.world.now_ns + self.world.options.latency_ns,
                connection_id=effect.connection_id,
                task_id=effect.task_id,
            ),
        )

    def _fetch(self, effects: list[fx.FetchPiece]) -> None:
        first = effects[0]
        connection = self.parents.get(first.connection_id)
        now_ns, ask = self.world.now_ns, self.ledger.ask
        if connection is None:
            for effect in effects:
                ask(effect.request_id, effect)
                self._fetch_failed(effect.request_id, Reason.PEER_LOST)
            return
        for effect in effects:
            ask(effect.request_id, effect)
            self.fetching[effect.request_id] = Fetching(effect, connection)
        if not connection.open:
            return  # They end when this side notices.
        connection.parent.expect(
            ev.ChildRequested(
                now_ns=now_ns + self.world.options.latency_ns,
                connection_id=first.connection_id,
                task_id=first.task_id,
                requests=tuple([(effect.request_id, effect.piece) for effect in effects]),
                wait=first.wait,
            )
        )

    def _fetch_failed(self, request_id: RequestId, reason: Reason) -> None:
        self.expect(ev.FetchEnded(now_ns=self.world.now_ns, request_id=request_id, reason=reason))

    def _cancel_fetch(self, effect: fx.CancelFetch) -> None:
        fetching = self.fetching.pop(effect.request_id, None)
        if fetching is None:
            return
        self._fetch_failed(effect.request_id, Reason.CANCELLED)
        if not fetching.came:
            self._to_parent(
                fetching.effect.connection_id,
                ev.ChildCancelled(
                    now_ns=self.world.now_ns + self.world.options.latency_ns,
                    connection_id=fetching.effect.connection_id,
                    requests=(effect.request_id,),
                ),
            )

    def payload_came(self, connection: Connection) -> None:
        """A long piece is still on its way to this host."""
        now_ns = self.world.now_ns
        if now_ns - connection.active_ns >= ACTIVE_NS or connection.active_ns < 0:
            connection.active_ns = now_ns
            self.expect(
                ev.ParentActive(
                    now_ns=now_ns + self.world.options.latency_ns,
                    connection_id=connection.connection_id,
                )
            )

    def refused(
        self, connection: Connection, request_id: RequestId, reason: Reason, retry_after_ms: int
    ) -> None:
        """A parent will not send a piece, now or ever."""
        fetching = self.fetching.get(request_id)
        if fetching is None or fetching.connection is not connection:
            return
        del self.fetching[request_id]
        self.post(
            ev.FetchEnded(
                now_ns=self.world.now_ns,
                request_id=request_id,
                reason=reason,
                retry_after_ms=retry_after_ms,
            )
        )

    def receive(self, transfer: Transfer) -> None:
        """The last byte of a piece came in, unless the connection broke meanwhile."""
        request_id = RequestId(transfer.effect.child_request)
        fetching = self.fetching.get(request_id)
        if fetching is None or fetching.connection is not transfer.connection:
            return
        effect, epoch = fetching.effect, transfer.effect.epoch
        if transfer.corrupt:
            reason = Reason.PEER_CORRUPT
        elif epoch != effect.epoch and (epoch or not effect.provisional):
            reason = Reason.NOT_HELD
        elif effect.expected and effect.expected != transfer.record.digest:
            reason = Reason.PEER_CONTRADICTED
        else:
            fetching.came = True
            when_ns = self.store_ns(transfer.effect.length_bytes, self.world.now_ns)
            self.world.at(when_ns, self._stored, fetching, transfer)
            return
        del self.fetching[request_id]
        self.post(ev.FetchEnded(now_ns=self.world.now_ns, request_id=request_id, reason=reason))

    def _stored(self, fetching: Fetching, transfer: Transfer) -> None:
        effect, record = fetching.effect, transfer.record
        if self.fetching.get(effect.request_id) is not fetching:
            return  # It was given up, or the process died.
        del self.fetching[effect.request_id]
        if record.read_here:
            record = ev.PieceRecord(record.digest, record.lease_number, read_here=False)
        self.keep(effect.task_id, effect.piece, record, effect.epoch)
        self.post(
            ev.FetchEnded(
                now_ns=self.world.now_ns,
                request_id=effect.request_id,
                reason=None,
                digest=record.digest,
                lease_number=record.lease_number,
                epoch=transfer.effect.epoch,
            )
        )

    # ------------------------------------------------------------ parent side

    def _to_child(self, connection_id: ConnectionId, event: ev.AnyEvent) -> None:
        connection = self.children.get(connection_id)
        if connection is not None and connection.open:
            connection.child.expect(event)

    def _accept_child(self, effect: fx.AcceptChild) -> None:
        self._to_child(
            effect.connection_id,
            ev.ParentOpened(
                now_ns=self.world.now_ns + self.world.options.latency_ns,
                connection_id=effect.connection_id,
                task_id=effect.task_id,
                epoch=effect.epoch,
                held=effect.held,
            ),
        )

    def _refuse_child(self, effect: fx.RefuseChild) -> None:
        self._to_child(
            effect.connection_id,
            ev.ParentRefused(
                now_ns=self.world.now_ns + self.world.options.latency_ns,
                connection_id=effect.connection_id,
                task_id=effect.task_id,
                reason=effect.reason,
            ),
        )

    def _announce(self, effect: fx.Announce) -> None:
        when_ns = self.world.now_ns + self.world.options.latency_ns
        task_id, new, children, at = effect.task_id, effect.new, self.children, self.world.at
        for connection_id in effect.connection_ids:
            connection = children.get(connection_id)
            if connection is not None and connection.open:
                child = connection.child
                event = ev.ParentHave(
                    now_ns=when_ns, connection_id=connection_id, task_id=task_id, new=new
                )
                at(when_ns, child.arrive, child.runs, event)

    def _withdraw(self, effect: fx.Withdraw) -> None:
        for connection_id in effect.connection_ids:
            self._to_child(
                connection_id,
                ev.ParentWithdrew(
                    now_ns=self.world.now_ns + self.world.options.latency_ns,
                    connection_id=connection_id,
                    task_id=effect.task_id,
                    gone=effect.gone,
                ),
            )

    def _serve_piece(self, effect: fx.ServePiece) -> None:
        world = self.world
        self.ledger.ask((effect.connection_id, effect.child_request), effect)
        content = self.contents.get(effect.task_id)
        if content is None or effect.piece not in content.pieces:
            world.broken.append(f"{self.host_id}: serves {effect.piece}, which is not stored")
        connection = self.children.get(effect.connection_id)
        if connection is None:
            self._served(effect, Reason.PEER_LOST)
            return
        record = effect.record
        corrupt = self.lie == "bytes"
        if world.faults is not None and not self.lie:
            corrupt = world.faults.flips_a_byte()
        if self.lie == "header":
            record = ev.PieceRecord(FALSE_DIGEST, record.lease_number, read_here=False)
        transfer = Transfer(connection, effect, record, corrupt=corrupt)
        connection.transfers[effect.child_request] = transfer
        # A closed connection ends it when this side notices, a stalled one never.
        if connection.open and self.lie != "stall":
            world.flights.start(transfer)

    def sent(self, transfer: Transfer, finish_ns: int) -> None:
        """The last byte of a piece left this host."""
        world, connection, effect = self.world, transfer.connection, transfer.effect
        del connection.transfers[effect.child_request]
        when_ns = max(finish_ns, world.now_ns) + world.options.latency_ns
        world.at(when_ns, connection.child.receive, transfer)
        self.post(
            ev.ServeEnded(
                now_ns=world.now_ns,
                connection_id=effect.connection_id,
                child_request=effect.child_request,
                task_id=effect.task_id,
                piece=effect.piece,
                reason=None,
            )
        )

    def _served(self, effect: fx.ServePiece, reason: Reason) -> None:
        self.expect(
            ev.ServeEnded(
                now_ns=self.world.now_ns,
                connection_id=effect.connection_id,
                child_request=effect.child_request,
                task_id=effect.task_id,
                piece=effect.piece,
                reason=reason,
            )
        )

    def _send_busy(self, effect: fx.SendBusy) -> None:
        self._answer(effect, Reason.PEER_BUSY, effect.retry_after_ms)

    def _send_reject(self, effect: fx.SendReject) -> None:
        self._answer(effect, effect.reason, 0)

    def _answer(
        self, effect: fx.SendBusy | fx.SendReject, reason: Reason, retry_after_ms: int
    ) -> None:
        connection = self.children.get(effect.connection_id)
        if connection is not None and connection.open:
            self.world.at(
                self.world.now_ns + self.world.options.latency_ns,
                connection.child.refused,
                connection,
                RequestId(effect.child_request),
                reason,
                retry_after_ms,
            )

    # ------------------------------------------------------------ origin

    def _stat_origin(self, effect: fx.StatOrigin) -> None:
        origin = self.world.origin
        origin.stats += 1
        self.ledger.ask(effect.request_id, effect)
        when_ns = self.world.now_ns + origin.round_trip_ns
        if not origin.up:
            self.expect(
                ev.StatEnded(
                    now_ns=when_ns,
                    request_id=effect.request_id,
                    reason=Reason.ORIGIN_FAILED,
                    detail="refused",
                )
            )
            return
        size_bytes = origin.by_source[effect.source_id].size_bytes
        self.expect(
            ev.StatEnded(
                now_ns=when_ns,
                request_id=effect.request_id,
                reason=None,
                size_bytes=size_bytes if origin.known_size else None,
                validator=origin.validator,
                ranges=origin.ranges,
            )
        )

    def _read_origin(self, effect: fx.ReadOrigin) -> None:
        self.ledger.ask(effect.request_id, effect)
        read = OriginRead(self.world, self, effect)
        self.reads[effect.request_id] = read
        self.world.after(self.world.origin.round_trip_ns, read.begin)

    def read_ended(
        self, run: int, effect: fx.ReadOrigin, reason: Reason | None, task: SimTask
    ) -> None:
        """A read from the origin is over and all that it brought is written."""
        if self.runs != run or not self.alive:
            return
        del self.reads[effect.request_id]
        found = effect.piece_count is None and reason is None
        self.post(
            ev.OriginReadEnded(
                now_ns=self.world.now_ns,
                request_id=effect.request_id,
                reason=reason,
                size_bytes=task.size_bytes if found else None,
            )
        )

    def _cancel_origin(self, effect: fx.CancelOrigin) -> None:
        read = self.reads.get(effect.request_id)
        if read is not None:
            read.stop()

    # ------------------------------------------------------------ clients

    def _download_ended(self, effect: fx.DownloadEnded) -> None:
        self.ended = True
        self.reason = effect.reason
        self.ended_ns = self.world.now_ns
        if effect.reason is None and not all(c.sealed for c in self.contents.values()):
            self.world.broken.append(f"{self.host_id}: has success without a sealed content")

    def _noted(self, effect: fx.Noted) -> None:
        if effect.kind == "blamed" and effect.host_id is not None:
            self.world.blamed.append((self.host_id, effect.host_id))

    def _ignore(self, effect: Any) -> None:
        """Of no consequence in the simulation."""


SimNode.DO = {
    fx.OpenTask: SimNode._open_task,
    fx.DropPieces: SimNode._drop_pieces,
    fx.HashPrefix: SimNode._hash_prefix,
    fx.SealTask: SimNode._seal_task,
    fx.RemoveTask: SimNode._remove_task,
    fx.SendToScheduler: SimNode._send_to_scheduler,
    fx.Connect: SimNode._connect,
    fx.Disconnect: SimNode._disconnect,
    fx.OpenChannel: SimNode._open_channel,
    fx.CloseChannel: SimNode._close_channel,
    fx.CancelFetch: SimNode._cancel_fetch,
    fx.AcceptChild: SimNode._accept_child,
    fx.RefuseChild: SimNode._refuse_child,
    fx.Announce: SimNode._announce,
    fx.Withdraw: SimNode._withdraw,
    fx.ServePiece: SimNode._serve_piece,
    fx.SendBusy: SimNode._send_busy,
    fx.SendReject: SimNode._send_reject,
    fx.DropChild: SimNode._drop_child,
    fx.StatOrigin: SimNode._stat_origin,
    fx.ReadOrigin: SimNode._read_origin,
    fx.CancelOrigin: SimNode._cancel_origin,
    fx.DownloadEnded: SimNode._download_ended,
    fx.Noted: SimNode._noted,
    fx.SourceResolved: SimNode._ignore,
    fx.PrefixReadable: SimNode._ignore,
    fx.SourceEnded: SimNode._ignore,
    fx.RemoveEnded: SimNode._ignore,
}
