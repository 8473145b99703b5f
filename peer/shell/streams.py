"""Reading contents while they arrive: what a running download knows of each of its contents.

Bytes come from the store's file, in order, as far as the core says that they may be read; the core
withholds the last piece until the whole digest has passed. Decides nothing about what is fetched.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from peer.core import events as ev
from peer.shell.api_types import DownloadError, DownloadEvent, DownloadRequest, Failed
from peer.shell.rights import Renewer
from peer.shell.store.content import ContentStore
from peer.shell.store.errors import StoreError
from shoal.runtime.tasks import Offload
from shoal.wire.control import TaskDescriptor
from shoal.wire.errors import Reason
from shoal.wire.ids import DownloadId, SourceId, TaskId

CHUNK_BYTES: Final = 256 * 1024


@dataclass(slots=True)
class Wanted:
    """One source of a running download."""

    index: int
    source: ev.Source
    output: Path | None
    descriptor: TaskDescriptor | None = None
    origin_bytes_before: int = 0
    peer_bytes_before: int = 0
    readable_bytes: int = 0
    """How much of it may be read, from its beginning."""
    whole: bool = False
    failed: DownloadError | None = None


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
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def change(self) -> None:
        """Wakes all who wait for news of it."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def next_change(self) -> None:
        """Returns at the next news."""
        await self._changed.wait()

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


class ContentReading:
    """Reads the store's files beside the event loop."""

    def __init__(self, store: ContentStore, offload: Offload) -> None:
        self._store = store
        self._offload = offload

    async def read(self, task_id: TaskId, position: int, count: int) -> bytes:
        """Some bytes from a position on, at least one. Raises DownloadError."""
        return await self._offload(self._read, task_id, position, count)

    def _read(self, task_id: TaskId, position: int, count: int) -> bytes:
        try:
            with self._store.lend(task_id) as lent:
                chunk = os.pread(lent.fd, count, position)
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
            await self._running.next_change()
        return self._wanted.descriptor

    async def chunks(self, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Verified bytes in order from `start` up to `end`, or to its end. Raises DownloadError."""
        descriptor = await self.known()
        position = start
        while True:
            wanted = self._wanted
            self._running.raise_failure(wanted)
            up_to = wanted.readable_bytes if end is None else min(end, wanted.readable_bytes)
            while position < up_to:
                count = min(CHUNK_BYTES, up_to - position)
                chunk = await self._reading.read(descriptor.task_id, position, count)
                position += len(chunk)
                yield chunk
            if position == end or (wanted.whole and position >= wanted.readable_bytes):
                return
            up_to = wanted.readable_bytes if end is None else min(end, wanted.readable_bytes)
            if position >= up_to and not wanted.whole and wanted.failed is None:
                await self._running.next_change()
