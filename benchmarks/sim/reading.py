"""The side of a simulated host that reads from the origin."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from benchmarks.sim.base import NodeBase
from benchmarks.sim.options import HostSpec
from benchmarks.sim.origin import FALSE_DIGEST, SimTask
from peer.core import effects as fx
from peer.core import events as ev
from shoal.wire.errors import Reason
from shoal.wire.ids import HostId, RequestId

if TYPE_CHECKING:
    from benchmarks.sim.world import World


class OriginRead:
    """One connection to the origin: reads piece after piece, each as one flow."""

    __slots__ = (
        "_cap_bytes_s",
        "_connected",
        "_effect",
        "_end",
        "_flow",
        "_last_store_ns",
        "_length_of",
        "_links",
        "_node",
        "_piece",
        "_run",
        "_task",
        "_world",
        "finished",
    )

    def __init__(self, world: "World", node: "OriginSide", effect: fx.ReadOrigin) -> None:
        descriptor = effect.descriptor
        self._world = world
        self._node = node
        self._run = node.runs
        self._effect = effect
        self._task = world.origin.by_source[descriptor.source_id]
        geometry = descriptor.geometry.sealed(self._task.size_bytes)
        count = effect.piece_count
        self._piece = effect.first_piece
        self._end = geometry.piece_count if count is None else effect.first_piece + count
        self._length_of: Callable[[int], int] = geometry.length_bytes
        self._links = world.topology.origin_path(node)
        self._cap_bytes_s = world.origin.spec.per_connection_bytes_s
        self._flow: int | None = None
        self._connected = False
        self._last_store_ns = 0
        self.finished = False

    def begin(self) -> None:
        """The request has come to the origin."""
        if self.finished or not self._world.origin.enter(self):
            return
        self._connected = True
        self._next()

    def _next(self) -> None:
        origin, piece = self._world.origin, self._piece
        if not origin.up:
            self._finish(Reason.ORIGIN_FAILED)
        elif self._effect.descriptor.validator not in (None, origin.validator):
            self._finish(Reason.ORIGIN_CHANGED)
        elif piece >= self._end:
            self._finish(None)
        else:
            world = self._world
            self._flow = world.network.start(
                world.now_ns, self._links, self._length_of(piece), self._arrived, self._cap_bytes_s
            )

    def _arrived(self, finish_ns: int) -> None:
        world, node, piece = self._world, self._node, self._piece
        length = self._length_of(piece)
        self._flow = None
        key = (self._task.number, piece)
        world.origin.reads[key] = world.origin.reads.get(key, 0) + 1
        self._count(length)
        digest = self._task.truth(world.origin.validator)[piece]
        if node.lie == "origin":
            digest = FALSE_DIGEST
        self._last_store_ns = node.store_ns(length, max(finish_ns, world.now_ns))
        world.at(self._last_store_ns, self._stored, piece, digest, length)
        self._piece += 1
        self._next()

    def _count(self, moved: float) -> None:
        self._world.origin.count(self._task.number, self._piece, moved)
        self._node.origin_bytes += int(moved)

    def _stored(self, piece: int, digest: bytes, length: int) -> None:
        node, effect = self._node, self._effect
        if not node.alive or node.runs != self._run:
            return
        record = ev.PieceRecord(digest, effect.lease_number, read_here=True)
        node.keep(effect.descriptor.task_id, piece, record, effect.descriptor.epoch)
        node.post(
            ev.OriginPieceStored(
                now_ns=self._world.now_ns,
                request_id=effect.request_id,
                piece=piece,
                digest=digest,
                length_bytes=length,
            )
        )

    def stop(self) -> None:
        """The reader wants no more of it."""
        self._finish(Reason.CANCELLED)

    def abort(self) -> None:
        """The reader died."""
        self._close()

    def _close(self) -> None:
        self.finished = True
        if self._flow is not None:
            self._count(self._world.network.cancel(self._world.now_ns, self._flow))
            self._flow = None
        if self._connected:
            self._connected = False
            self._world.origin.leave()

    def _finish(self, reason: Reason | None) -> None:
        if self.finished:
            return
        self._close()
        when_ns = max(self._world.now_ns, self._last_store_ns)
        self._world.at(when_ns, self._node.read_ended, self._run, self._effect, reason, self._task)


class OriginSide(NodeBase):
    """A host as a reader of the origin."""

    def __init__(self, world: "World", host_id: HostId, number: int, spec: HostSpec) -> None:
        self.reads: dict[RequestId, OriginRead] = {}
        super().__init__(world, host_id, number, spec)

    def _stat_origin(self, effect: fx.StatOrigin) -> None:
        origin = self.world.origin
        origin.stats += 1
        self.ledger.ask(effect.request_id, effect)
        when_ns = self.world.now_ns + origin.round_trip_ns * (1 if effect.sample is None else 2)
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
                same=None if effect.sample is None else True,
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
