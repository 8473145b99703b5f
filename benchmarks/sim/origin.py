"""The origin of a world: what its contents truly are, how it behaves, and what it sent."""

import hashlib
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks.sim.options import WorldOptions
from peer.core import events as ev
from shoal.wire.ids import SourceId, TaskId, fingerprint

if TYPE_CHECKING:
    from benchmarks.sim.reading import OriginRead

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
        self.read_bytes: dict[tuple[int, int], float] = {}
        """How many bytes of each (task, piece) were sent, parts of broken reads included."""
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

    def count(self, task: int, piece: int, moved_bytes: float) -> None:
        """A piece was sent, or a part of it before the reader went away."""
        key = (task, piece)
        self.read_bytes[key] = self.read_bytes.get(key, 0.0) + moved_bytes
        self.sent_bytes += moved_bytes

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
