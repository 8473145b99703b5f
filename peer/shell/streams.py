"""Reading contents while they arrive: what a running download knows of each of its contents.

Bytes come from the store's file, in order from wherever a reader begins, as far as the core says
that they may be read; the core withholds the last piece until the whole digest has passed. Tells
the core what readers wait for. Decides nothing about what is fetched.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from peer.core import events as ev
from peer.shell.api_types import DownloadEvent, DownloadRequest, Failed
from peer.shell.errors import DownloadError
from peer.shell.rights import Renewer
from peer.shell.sending import FileSender
from peer.shell.store.content import ContentStore
from peer.shell.store.errors import StoreError
from shoal.runtime.clock import Clock
from shoal.runtime.tasks import Offload
from shoal.wire import bitfield
from shoal.wire.control import TaskDescriptor
from shoal.wire.errors import Reason
from shoal.wire.ids import DownloadId, SourceId, TaskId
from shoal.wire.limits import MIB

CHUNK_BYTES: Final = 256 * 1024

STRETCH_BYTES_MAX: Final = 64 * MIB
"""Sent before it is looked again whether all is well."""


class RevokedError(DownloadError):
    """A reader was given bytes that turned out to be false. The download goes on: it reads them
    anew."""


@dataclass(slots=True)
class Wanted:
    """One source of a running download."""

    index: int
    source: ev.Source
    output: Path | None
    descriptor: TaskDescriptor | None = None
    origin_bytes_before: int = 0
    peer_bytes_before: int = 0
    readable: int = 0
    """The pieces of it that may be read."""
    revoked: int = 0
    """How often pieces turned out false that could be read."""
    whole: bool = False
    size_bytes: int | None = None
    """Once it is known: for some contents at their end alone."""
    failed: DownloadError | None = None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def change(self) -> None:
        """Wakes its readers: those of the download's other contents have no news."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def next_change(self) -> None:
        """Returns at the next news of it."""
        await self._changed.wait()


@dataclass(slots=True)
class Running:
    """One download, and what its client was told."""

    download_id: DownloadId
    request: DownloadRequest
    wanted: dict[SourceId, list[Wanted]]
    queue: asyncio.Queue[DownloadEvent]
    deliveries: int = 0
    failed: Failed | None = None
    ended: bool = False
    closed: bool = False
    renewer: Renewer | None = None
    """Who gives fresh rights to it, if anybody does."""

    def change(self) -> None:
        """Wakes the readers of all its contents."""
        for group in self.wanted.values():
            for wanted in group:
                wanted.change()

    def of_index(self, index: int) -> Wanted:
        """What its request's URL of that number became."""
        return next(
            wanted for group in self.wanted.values() for wanted in group if wanted.index == index
        )

    def raise_failure(self, wanted: Wanted) -> None:
        """Raises DownloadError if the content will not come (any more)."""
        if wanted.failed is not None:
            raise wanted.failed
        if self.failed is not None and self.ended and not wanted.whole:
            raise DownloadError(self.failed.reason, self.failed.detail)
        if self.closed:
            raise DownloadError(Reason.CANCELLED, "the stream was closed")


_Stretches = AsyncGenerator[tuple[int, int], None]
"""Half-open byte ranges."""


class ContentReading:
    """Reads the store's files beside the event loop. `post` tells the core of readers."""

    def __init__(
        self,
        store: ContentStore,
        offload: Offload,
        clock: Clock,
        post: Callable[[ev.AnyEvent], None],
    ) -> None:
        self._store = store
        self._offload = offload
        self._clock = clock
        self._post = post
        self._last_reader = 0

    def sender(self, transport: asyncio.Transport) -> FileSender:
        """What sends stored bytes to a plain connection."""
        return FileSender(transport, self._store, self._offload)

    def next_reader(self) -> int:
        """A number never used before in this process."""
        self._last_reader += 1
        return self._last_reader

    def waits(self, reader: int, task_id: TaskId, first_piece: int, piece_count: int) -> None:
        """Tells the core what a reader waits for; a count of 0: for nothing any more."""
        self._post(
            ev.Reading(
                now_ns=self._clock.now_ns(),
                reader=reader,
                task_id=task_id,
                first_piece=first_piece,
                piece_count=piece_count,
            )
        )

    async def read(self, task_id: TaskId, position: int, count: int) -> bytes:
        """Some bytes from a position on, at least one. Raises DownloadError."""
        return await self._offload(self._read, task_id, position, count)

    def _read(self, task_id: TaskId, position: int, count: int) -> bytes:
        try:
            chunk = self._store.read_held(task_id, position, position + count)
        except StoreError as error:
            raise DownloadError(error.reason, error.detail) from error
        if not chunk:
            raise DownloadError(Reason.DISK_FAILED, "the stored file is shorter than its content")
        return chunk


class RunningContent:
    """One content of a running download; any number of readers, each at a place of its own."""

    def __init__(self, reading: ContentReading, running: Running, index: int) -> None:
        self._reading = reading
        self._running = running
        self._wanted = running.of_index(index)

    async def known(self) -> TaskDescriptor:
        """What the content was found to be. Waits until that is known. Raises DownloadError."""
        while self._wanted.descriptor is None:
            self._running.raise_failure(self._wanted)
            await self._wanted.next_change()
        return self._wanted.descriptor

    async def chunks(self, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        """Verified bytes in order from `start` up to `end`, or to its end. Raises DownloadError."""
        descriptor = await self.known()
        async with aclosing(self._stretches(start, end)) as stretches:
            async for position, up_to in stretches:
                while position < up_to:
                    count = min(CHUNK_BYTES, up_to - position)
                    chunk = await self._reading.read(descriptor.task_id, position, count)
                    position += len(chunk)
                    yield chunk

    async def send(
        self,
        transport: asyncio.Transport,
        start: int,
        end: int | None,
        sent: Callable[[int], None],
    ) -> None:
        """The same, straight to a plain connection (`sending.can_send`) that nobody else writes to
        meanwhile. `sent` is told how many bytes went. Raises DownloadError and ConnectionError."""
        descriptor = await self.known()
        with closing(self._reading.sender(transport)) as sender:
            async with aclosing(self._stretches(start, end)) as stretches:
                async for position, up_to in stretches:
                    await sender.send(descriptor.task_id, position, up_to)
                    sent(up_to - position)

    async def _stretches(
        self, start: int, end: int | None
    ) -> AsyncGenerator[tuple[int, int], None]:
        """Half-open byte ranges that may be read, one behind the other. Raises DownloadError."""
        wanted = self._wanted
        place = _Place(self._reading, wanted, start, end)
        revoked = wanted.revoked
        position = start
        try:
            while True:
                self._running.raise_failure(wanted)
                if wanted.revoked != revoked and position > start:
                    raise RevokedError(Reason.PEER_CORRUPT, "what was sent turned out to be false")
                revoked = wanted.revoked
                up_to = place.readable_from(position)
                if position < up_to:
                    # In parts: what comes to be known meanwhile is heeded.
                    up_to = min(up_to, position + STRETCH_BYTES_MAX)
                    yield position, up_to
                    position = up_to
                elif position == end or (wanted.whole and position == wanted.size_bytes):
                    return
                else:
                    place.wait_at(position)
                    await wanted.next_change()
        finally:
            place.leave()


class _Place:
    """Where one reader of a content is."""

    def __init__(
        self, reading: ContentReading, wanted: Wanted, start: int, end: int | None
    ) -> None:
        assert wanted.descriptor is not None
        self._reading = reading
        self._wanted = wanted
        self._descriptor = wanted.descriptor
        self._geometry = self._descriptor.geometry
        self._end = end
        # Who reads all of it from the start is served anyway, and tells nothing.
        self._whole = start == 0 and end in (None, self._geometry.size_bytes)
        self._reader = 0
        self._told = -1

    def readable_from(self, position: int) -> int:
        """The end of what may be read from a position on; the position itself if nothing may."""
        length = self._geometry.piece_length_bytes
        piece = position // length
        pieces = bitfield.prefix(self._wanted.readable >> piece)
        ends = [(piece + pieces) * length]
        ends += [end for end in (self._end, self._wanted.size_bytes) if end is not None]
        return max(position, min(ends))

    def wait_at(self, position: int) -> None:
        """Its next byte is not there yet."""
        length = self._geometry.piece_length_bytes
        piece = position // length
        if self._whole or piece == self._told:
            return
        self._reader = self._reader or self._reading.next_reader()
        self._told = piece
        end = self._end if self._end is not None else self._wanted.size_bytes
        count = 1 if end is None else -(-end // length) - piece
        self._reading.waits(self._reader, self._descriptor.task_id, piece, count)

    def leave(self) -> None:
        """It reads no more."""
        if self._reader:
            self._reading.waits(self._reader, self._descriptor.task_id, 0, 0)
