"""Connections between simulated hosts and the pieces that flow over them."""

from typing import TYPE_CHECKING

from peer.core import effects as fx
from peer.core.events import PieceRecord
from shoal.wire.ids import ConnectionId
from shoal.wire.limits import MILLISECOND_NS

if TYPE_CHECKING:
    from benchmarks.sim.child import ChildSide
    from benchmarks.sim.parent import ParentSide
    from benchmarks.sim.world import World

ACTIVE_NS = 500 * MILLISECOND_NS
"""How often a child is told that a long piece is still coming."""


class Connection:
    """A child's connection to a parent. It is there from the moment the parent accepts it until
    one side closes it or dies; the other side notices a little later."""

    __slots__ = ("active_ns", "child", "connection_id", "links", "open", "parent", "transfers")

    def __init__(
        self, connection_id: ConnectionId, child: "ChildSide", parent: "ParentSide", world: "World"
    ) -> None:
        self.connection_id = connection_id
        self.child = child
        self.parent = parent
        self.links = world.topology.path(parent, child)
        self.open = True
        self.active_ns = -1
        self.transfers: dict[int, Transfer] = {}
        """What the parent sends or should send, by the child's request."""

    def close(self, world: "World") -> None:
        """Nothing flows any more."""
        self.open = False
        for transfer in self.transfers.values():
            world.flights.cancel(transfer)


class Transfer:
    """A piece on its way from a parent to a child."""

    __slots__ = ("connection", "corrupt", "effect", "flow", "moved_bytes", "record", "start_ns")

    def __init__(
        self, connection: Connection, effect: fx.ServePiece, record: PieceRecord, *, corrupt: bool
    ) -> None:
        self.connection = connection
        self.effect = effect
        self.record = record
        self.corrupt = corrupt
        self.flow: int | None = None
        self.start_ns = 0
        self.moved_bytes = 0.0

    def arrived(self, finish_ns: int) -> None:
        """The flow came to its end."""
        parent = self.connection.parent
        parent.world.flights.landed(self)
        parent.sent(self, finish_ns)


class Flights:
    """All transfers that flow now. Looks through them twice a second, so that who waits for a long
    piece hears that it is coming; a short one costs nothing."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._flying: dict[Transfer, None] = {}
        """In the order of their start."""
        self._looking = False

    def start(self, transfer: Transfer) -> None:
        """A parent begins to send."""
        world = self._world
        transfer.start_ns = world.now_ns
        transfer.flow = world.network.start(
            world.now_ns,
            transfer.connection.links,
            transfer.effect.length_bytes,
            transfer.arrived,
        )
        self._flying[transfer] = None
        if not self._looking:
            self._looking = True
            world.after(ACTIVE_NS, self._look)

    def landed(self, transfer: Transfer) -> None:
        """All of it was sent."""
        del self._flying[transfer]

    def cancel(self, transfer: Transfer) -> None:
        """Its connection is gone."""
        if transfer in self._flying and transfer.flow is not None:
            del self._flying[transfer]
            self._world.network.cancel(self._world.now_ns, transfer.flow)

    def _look(self) -> None:
        world = self._world
        now_ns = world.now_ns
        for transfer in self._flying:
            if transfer.start_ns > now_ns - ACTIVE_NS:
                break
            assert transfer.flow is not None
            moved = world.network.moved_bytes(now_ns, transfer.flow)
            if moved > transfer.moved_bytes:
                transfer.moved_bytes = moved
                transfer.connection.child.payload_came(transfer.connection)
        self._looking = bool(self._flying)
        if self._looking:
            world.after(ACTIVE_NS, self._look)
