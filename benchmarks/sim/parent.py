"""The side of a simulated host that serves: its connections from children and what it sends.

Carries out effects as the shell does, after the time that they would take; never decides. Liars lie
here.
"""

from typing import TYPE_CHECKING

from benchmarks.sim.base import NodeBase
from benchmarks.sim.options import HostSpec
from benchmarks.sim.origin import FALSE_DIGEST
from benchmarks.sim.transfer import Connection, Transfer
from peer.core import effects as fx
from peer.core import events as ev
from shoal.wire.errors import Reason
from shoal.wire.ids import ConnectionId, HostId, RequestId

if TYPE_CHECKING:
    from benchmarks.sim.world import World


class ParentSide(NodeBase):
    """A host as a parent."""

    def __init__(self, world: "World", host_id: HostId, number: int, spec: HostSpec) -> None:
        self.children: dict[ConnectionId, Connection] = {}
        super().__init__(world, host_id, number, spec)

    # ------------------------------------------------------------ connections

    def _drop_child(self, effect: fx.DropChild) -> None:
        connection = self.children.get(effect.connection_id)
        if connection is not None:
            self.close_from_parent(connection)
            self.child_left(self.runs, connection)

    def close_from_parent(self, connection: Connection) -> None:
        """This host closes it or dies; the child notices a little later."""
        connection.close(self.world)
        when_ns = self.world.now_ns + self.world.options.latency_ns
        child = connection.child
        self.world.at(when_ns, child.parent_left, child.runs, connection, Reason.PEER_LOST)

    def child_left(self, run: int, connection: Connection) -> None:
        """This side notices that a child's connection is gone."""
        if self.runs != run or self.children.pop(connection.connection_id, None) is None:
            return
        for transfer in connection.transfers.values():
            self._served(transfer.effect, Reason.PEER_LOST)
        connection.transfers.clear()
        self.expect(ev.ChildGone(now_ns=self.world.now_ns, connection_id=connection.connection_id))

    # ------------------------------------------------------------ channels, news, pieces

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
