"""The side of a simulated host that fetches: its connections to parents and what it asked for.

Carries out effects as the shell does, after the time that they would take; never decides.
"""

from typing import TYPE_CHECKING

from benchmarks.sim.base import NodeBase
from benchmarks.sim.options import HostSpec
from benchmarks.sim.transfer import ACTIVE_NS, Connection, Transfer
from peer.core import effects as fx
from peer.core import events as ev
from shoal.wire.errors import Reason
from shoal.wire.ids import ConnectionId, HostId, RequestId
from shoal.wire.proof import swarm_proof

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


class ChildSide(NodeBase):
    """A host as a child."""

    def __init__(self, world: "World", host_id: HostId, number: int, spec: HostSpec) -> None:
        self.parents: dict[ConnectionId, Connection] = {}
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
            self.close_from_child(connection)
            self.parent_left(self.runs, connection, Reason.CANCELLED)

    def close_from_child(self, connection: Connection) -> None:
        """This host closes it or dies; the parent notices a little later."""
        connection.close(self.world)
        when_ns = self.world.now_ns + self.world.options.latency_ns
        parent = connection.parent
        self.world.at(when_ns, parent.child_left, parent.runs, connection)

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

    # ------------------------------------------------------------ requests

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
