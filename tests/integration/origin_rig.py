"""What the origin tests share: reading an origin to its end, and a reader on fakes of the store,
the buffers and the core, which record what a real one would see."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from peer.core.effects import ReadOrigin
from peer.core.events import (
    AnyEvent,
    OriginPieceStored,
    OriginReadEnded,
    PieceRecord,
    StatEnded,
)
from peer.shell.origin.base import Origins
from peer.shell.origin.http import HttpOptions, HttpOrigin
from peer.shell.origin.reader import OriginReader
from peer.shell.origin.request import OriginRequest
from peer.shell.rights import Renewer, Rights
from shoal.runtime.clock import MonotonicClock
from shoal.runtime.rates import RateLimiter
from shoal.runtime.tasks import InlineOffload, Offload, Supervisor
from shoal.runtime.turns import Turns
from shoal.wire.control import TaskDescriptor
from shoal.wire.geometry import Geometry
from shoal.wire.ids import LeaseNumber, RequestId, SourceId, TaskId

SOURCE = SourceId("a" * 64)
TASK = TaskId("b" * 64)
CREDENTIAL = "c" * 32


@asynccontextmanager
async def http_origin(**options: object) -> AsyncIterator[HttpOrigin]:
    """An HttpOrigin with some options, closed at the end."""
    origin = HttpOrigin(HttpOptions(**options))  # type: ignore[arg-type] # as HttpOptions checks
    try:
        yield origin
    finally:
        await origin.close()


async def read_range(
    origin: HttpOrigin,
    request: OriginRequest,
    *,
    start_byte: int = 0,
    end_byte: int | None = None,
    validator: str | None = None,
    size_bytes: int | None = None,
) -> bytes:
    """The bytes of a range, those to skip left out, and the end checked."""
    received = bytearray()
    buffer = memoryview(bytearray(100_000))
    async with origin.open(
        request,
        start_byte=start_byte,
        end_byte=end_byte,
        validator=validator,
        size_bytes=size_bytes,
    ) as body:
        while count := await body.receive_into(buffer):
            received += buffer[:count]
        if end_byte is not None or size_bytes is not None:
            await body.finish()
        return bytes(received[body.skip_bytes :])


@dataclass
class MemoryStore:
    """The store's writing side in memory. `fail_on`: that piece raises `failure`."""

    pieces: dict[int, bytes] = field(default_factory=dict)
    records: dict[int, PieceRecord] = field(default_factory=dict)
    fail_on: int | None = None
    failure: Exception | None = None

    def write_piece(
        self, task_id: TaskId, piece: int, epoch: int, data: memoryview, record: PieceRecord
    ) -> None:
        """Keeps a copy of the piece."""
        assert task_id == TASK
        assert epoch == 1
        if piece == self.fail_on:
            assert self.failure is not None
            raise self.failure
        assert piece not in self.pieces
        self.pieces[piece] = bytes(data)
        self.records[piece] = record

    def read_held(self, task_id: TaskId, start_byte: int, end_byte: int) -> bytes:
        """As if everything were one file."""
        assert task_id == TASK
        if self.failure is not None:
            raise self.failure
        return self.content[start_byte:end_byte]

    @property
    def content(self) -> bytes:
        """All pieces one behind the other; there must be no gap."""
        assert sorted(self.pieces) == list(range(len(self.pieces)))
        return b"".join(self.pieces[piece] for piece in sorted(self.pieces))


class CountedBuffer:
    """Memory that notices being released twice."""

    def __init__(self, owner: "CountedBuffers", length_bytes: int) -> None:
        self._owner = owner
        self.view = memoryview(bytearray(length_bytes))

    def release(self) -> None:
        """Counts itself out; the bytes are spoilt, so that a late reader is found out."""
        self._owner.out -= 1
        assert self._owner.out >= 0
        self.view[:] = bytes(len(self.view))


@dataclass
class CountedBuffers:
    """A budget that only counts. `out` must be 0 in the end."""

    out: int = 0
    out_max: int = 0
    _taken: asyncio.Event = field(default_factory=asyncio.Event)

    async def acquire(self, length_bytes: int) -> CountedBuffer:
        """Always has some memory."""
        self.out += 1
        self.out_max = max(self.out_max, self.out)
        self._taken.set()
        return CountedBuffer(self, length_bytes)

    async def wait_out(self, count: int) -> None:
        """Waits until so many buffers are out at once."""
        while self.out < count:
            self._taken.clear()
            await self._taken.wait()


class Rig:
    """An OriginReader with everything around it."""

    def __init__(
        self,
        origin: HttpOrigin,
        request: OriginRequest | None,
        *,
        offload: Offload | None = None,
        limiter: RateLimiter | None = None,
        renewer: Renewer | None = None,
    ) -> None:
        clock = MonotonicClock()
        self.events: list[AnyEvent] = []
        self.store = MemoryStore()
        self.buffers = CountedBuffers()
        self.supervisor = Supervisor()
        self._changed = asyncio.Event()
        self.rights = Rights()
        if request is not None:
            self.rights.add((SOURCE, CREDENTIAL), request, renewer)
        self.reader = OriginReader(
            Origins({"http": origin, "https": origin}),
            self.rights,
            self.store,
            self.buffers,
            offload or InlineOffload(),
            Turns(limiter or RateLimiter(0, clock)),
            clock,
            self._post,
            self.supervisor,
        )

    def _post(self, event: AnyEvent) -> None:
        self.events.append(event)
        self._changed.set()

    async def wait_events(self, count: int) -> list[AnyEvent]:
        """Waits until so many events were posted in all."""
        while len(self.events) < count:
            self._changed.clear()
            await self._changed.wait()
        return self.events

    async def wait_end(self) -> OriginReadEnded | StatEnded:
        """Waits for the end of the only request, and checks that nothing is left behind."""
        while not (self.events and isinstance(self.events[-1], OriginReadEnded | StatEnded)):
            self._changed.clear()
            await self._changed.wait()
        end = self.events[-1]
        assert isinstance(end, OriginReadEnded | StatEnded)
        assert self.buffers.out == 0
        assert sum(isinstance(event, type(end)) for event in self.events) == 1
        return end

    async def read(self, effect: ReadOrigin) -> OriginReadEnded:
        """Carries out one read to its end."""
        self.reader.read(effect)
        end = await self.wait_end()
        assert isinstance(end, OriginReadEnded)
        return end

    @property
    def stored(self) -> list[tuple[int, int]]:
        """(piece, length) as they were told."""
        return [
            (event.piece, event.length_bytes)
            for event in self.events
            if isinstance(event, OriginPieceStored)
        ]


@asynccontextmanager
async def rig(
    request: OriginRequest | None,
    *,
    offload: Offload | None = None,
    limiter: RateLimiter | None = None,
    crashes: bool = False,
    **options: object,
) -> AsyncIterator[Rig]:
    """A rig that is closed at the end, and in which nothing crashed unless expected."""
    async with http_origin(**options) as origin:
        one = Rig(origin, request, offload=offload, limiter=limiter)
        try:
            yield one
        finally:
            await one.reader.close()
            await one.supervisor.close()
        assert (one.supervisor.failure is not None) == crashes
        assert one.buffers.out == 0


def read_effect(
    size_bytes: int | None,
    *,
    piece_length_bytes: int = 1024,
    first_piece: int = 0,
    piece_count: int | None = None,
    validator: str | None = '"v1"',
    ranges: bool = True,
    piece_digest: str = "xxh3-128",
) -> ReadOrigin:
    """A read of the test's task."""
    geometry = Geometry(size_bytes=size_bytes, piece_length_bytes=piece_length_bytes, run_pieces=1)
    return ReadOrigin(
        request_id=RequestId(1),
        source_id=SOURCE,
        credential=CREDENTIAL,
        descriptor=TaskDescriptor(
            task_id=TASK,
            source_id=SOURCE,
            geometry=geometry,
            digest=None,
            validator=validator,
            ranges=ranges,
            piece_digest=piece_digest,
        ),
        first_piece=first_piece,
        piece_count=piece_count,
        lease_number=LeaseNumber(7),
    )
