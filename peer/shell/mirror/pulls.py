"""Downloads behind the blobs that clients read: one per image and credential, for all readers.

Begins a download of the whole image when its first blob is read, and ends it a while after the last
reader is gone: nobody else may want it. Decides nothing about how pieces come.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from peer.shell.api_types import DownloadRequest, WantedUrl
from peer.shell.mirror.upstreams import Upstream
from peer.shell.streams import RunningContent
from shoal.wire.control import Demand

LINGER_S: Final = 10.0
"""A client that fetches layers one after the other leaves pauses between them."""

LINGERING_MAX: Final = 64
"""Downloads without a reader; beyond that the oldest is ended at once."""


class Collection(Protocol):
    """A running download whose contents can be read: `downloads.RunningDownload`."""

    def content(self, index: int) -> RunningContent:
        """One of its contents."""
        ...

    async def close(self) -> None:
        """Nobody wants it any longer."""
        ...


@dataclass(frozen=True, slots=True)
class Pull:
    """What one client reads of."""

    upstream: Upstream
    repository: str
    blobs: tuple[str, ...]
    """All that is fetched together."""
    credential: str
    """What its authorization is known by."""


@dataclass(slots=True)
class _Shared:
    download: Collection
    readers: int = 0
    linger: asyncio.TimerHandle | None = None


class Pulls:
    """Keeps them. `start` begins a download; it may raise UsageError and DownloadError."""

    def __init__(self, start: Callable[[DownloadRequest], Collection]) -> None:
        self._start = start
        self._shared: dict[Pull, _Shared] = {}
        self._closing: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def reading(
        self, pull: Pull, blob: str, authorization: str
    ) -> AsyncIterator[RunningContent]:
        """The content of a blob for the time of the block."""
        shared = self._shared.get(pull)
        if shared is None:
            shared = self._shared[pull] = _Shared(self._start(_request(pull, authorization)))
        if shared.linger is not None:
            shared.linger.cancel()
            shared.linger = None
        shared.readers += 1
        try:
            yield shared.download.content(pull.blobs.index(blob))
        finally:
            shared.readers -= 1
            if not shared.readers:
                if self._shared.get(pull) is shared:
                    self._let_linger(pull, shared)
                else:
                    self._end(shared)

    def fails(self, pull: Pull) -> None:
        """The download did not bring what it was to: the next reader begins a new one, and those
        who read other blobs of it go on."""
        shared = self._shared.pop(pull, None)
        if shared is not None and not shared.readers:
            self._end(shared)

    def _let_linger(self, pull: Pull, shared: _Shared) -> None:
        loop = asyncio.get_running_loop()
        shared.linger = loop.call_later(LINGER_S, self._over, pull, shared)
        lingering = [key for key, each in self._shared.items() if each.linger is not None]
        if len(lingering) > LINGERING_MAX:
            self._over(lingering[0], self._shared[lingering[0]])

    def _over(self, pull: Pull, shared: _Shared) -> None:
        if self._shared.get(pull) is shared and not shared.readers:
            del self._shared[pull]
            self._end(shared)

    def _end(self, shared: _Shared) -> None:
        if shared.linger is not None:
            shared.linger.cancel()
            shared.linger = None
        task = asyncio.get_running_loop().create_task(shared.download.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Ends all of them. Safe to call twice."""
        for shared in self._shared.values():
            self._end(shared)
        self._shared.clear()
        if self._closing:
            await asyncio.wait(self._closing)


def _request(pull: Pull, authorization: str) -> DownloadRequest:
    headers = (("Authorization", authorization),) if authorization else ()
    base = f"{pull.upstream.url}/v2/{pull.repository}/blobs"
    return DownloadRequest(
        urls=tuple(
            WantedUrl(url=f"{base}/{blob}", headers=headers, digest=blob) for blob in pull.blobs
        ),
        outputs=(None,) * len(pull.blobs),
        demand=Demand.STREAMING,
    )
