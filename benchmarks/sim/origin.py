"""The origin of a world: what its contents truly are, who read how much, and one running read."""

import hashlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks.sim.options import WorldOptions
from peer.core import effects as fx
from peer.core import events as ev
from shoal.wire.errors import Reason
from shoal.wire.ids import SourceId, TaskId, fingerprint

if TYPE_CHECKING:
    from benchmarks.sim.node import SimNode
    from benchmarks.sim.world import World

SOURCE_ID = SourceId("5" * 64)
"""The source of a world's first task."""

FALSE_DIGEST = b"L" * 16
"""The digest that a liar tells."""


class Truth(dict[int, bytes]):
    """The true digest of each piece of one version of one task, made when first asked for."""

    def __init__(self, validator: str, task: int) -> None:
        super().__init__()
        self._name = f"{validator}/{task}" if task else validator

    def __missing__(self, piece: int) -> bytes:
        digest = hashlib.blake2b(f"{self._name}/{piece}".encode(), digest_size=16).digest()
        self[piece] = digest
        return digest


@dataclass(slots=True)
class SimTask:
    """One content of the world, as its makers know it."""

    number: int
    source_id: SourceId
    task_id: TaskId | None
    """None: named by its URL."""
    digest: str | None
    size_bytes: int
    versions: dict[str, Truth] = field(default_factory=dict)

    def truth(self, validator: str) -> Truth:
        """The digests of a version."""
        known = self.versions.get(validator)
        if known is None:
            known = self.versions[validator] = Truth(validator, self.number)
        return known

    @property
    def true_digest(self) -> str:
        """What hashing the whole of it gives."""
        return self.digest or "sha256:" + "ab" * 32

    def source(self, credential: str) -> ev.Source:
        """How a client names it."""
        return ev.Source(
            source_id=self.source_id,
            task_id=self.task_id,
            digest=self.digest,
            display_url=f"sim://origin/{self.number}",
            piece_length_bytes=None,
            credential=credential,
        )


def make_tasks(options: WorldOptions) -> tuple[SimTask, ...]:
    """The contents of a world."""
    tasks = []
    for number, size_bytes in enumerate(options.sizes()):
        digest = options.content_digest
        source_id, task_id = SOURCE_ID, TaskId("7" * 64)
        if number:
            source_id = SourceId(fingerprint("sim-source", number))
            task_id = TaskId(fingerprint("sim-task", number))
            digest = digest and "sha256:" + fingerprint("sim-content", number)
        tasks.append(
            SimTask(number, source_id, None if digest is None else task_id, digest, size_bytes)
        )
    return tuple(tasks)


class SimOrigin:
    """How the origin behaves (the flags may change while the world runs), and what it sent."""

    def __init__(self, options: WorldOptions, tasks: tuple[SimTask, ...]) -> None:
        self.spec = options.origin_spec()
        self.tasks = tasks
        self.by_source = {task.source_id: task for task in tasks}
        self.validator = self.first_validator = "v1"
        self.ranges = True
        self.known_size = True
        self.up = True
        self.stats = 0
        self.reads: dict[tuple[int, int], int] = {}
        """How often each (task, piece) was read to its end."""
        self.sent_bytes = 0.0
        """Payload, parts of broken reads included."""
        self.connections = 0
        self.connections_peak = 0
        self._queue: deque[OriginRead] = deque()

    @property
    def round_trip_ns(self) -> int:
        """Of a request to the origin."""
        assert self.spec.round_trip_ns is not None
        return self.spec.round_trip_ns

    def digest(self, piece: int, task: int = 0) -> bytes:
        """The true digest of a piece of the present version."""
        return self.tasks[task].truth(self.validator)[piece]

    def truth_for(self, source_id: SourceId, validator: str | None) -> Truth:
        """What hosts must hold: a digest names the first version for ever, a URL the version that
        its validator tells."""
        task = self.by_source[source_id]
        if task.digest is not None or validator is None:
            return task.truth(self.first_validator)
        return task.truth(validator)

    def enter(self, read: "OriginRead") -> bool:
        """A read asks for a connection: whether it has one now. If not, it is called later."""
        if self.connections >= self.spec.connections_max:
            self._queue.append(read)
            return False
        self.connections += 1
        self.connections_peak = max(self.connections_peak, self.connections)
        return True

    def leave(self) -> None:
        """A read gives its connection back, to the next one that still waits."""
        self.connections -= 1
        while self._queue:
            read = self._queue.popleft()
            if not read.finished:
                read.begin()
                return


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

    def __init__(self, world: "World", node: "SimNode", effect: fx.ReadOrigin) -> None:
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
        self._world.origin.sent_bytes += moved
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
