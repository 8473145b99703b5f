"""Downloads behind the blobs that clients read: one per image and credential, for all readers.

Begins a download of the whole image when a second blob of it is asked for: a container runtime asks
for all of them within a few milliseconds. Who asks for one blob alone gets that one. Ends each
download a while after its last reader is gone: nobody else may want it. Decides nothing about how
pieces come.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from peer.shell.api_types import DownloadRequest, WantedUrl
from peer.shell.mirror.upstreams import Upstream
from peer.shell.streams import RunningContent
from shoal.wire.control import Demand

LINGER_S: Final = 10.0
"""A client that fetches layers one after the other leaves pauses between them."""

BROKEN_LINGER_S: Final = 1.0
"""After a reader that took a part: it comes back at once for the next, or not at all."""

GATHER_S: Final = 0.01
"""The first blob of an image waits so long for a second one. Begun together they are scheduled
together, and one collection costs the scheduler less than two."""

ASKED_MAX: Final = 1024
"""Images of which it is known what was asked for lately."""

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
class _Asked:
    """What was asked for of an image lately, while only one blob was."""

    blob: str
    until_s: float
    another: asyncio.Event = field(default_factory=asyncio.Event)
    """Another blob was asked for."""


@dataclass(slots=True)
class _Shared:
    download: Collection
    readers: int = 0
    linger: asyncio.TimerHandle | None = None


class Pulls:
    """Keeps them. `start` begins a download; it may raise UsageError and DownloadError.
    `is_here(digest)`: a content is here whole, so that nothing is to be fetched for it."""

    def __init__(
        self,
        start: Callable[[DownloadRequest], Collection],
        is_here: Callable[[str], bool] = lambda digest: False,
    ) -> None:
        self._start = start
        self._is_here = is_here
        self._asked: OrderedDict[Pull, _Asked] = OrderedDict()
        self._shared: dict[Pull, _Shared] = {}
        self._closing: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def reading(
        self, pull: Pull, blob: str, authorization: str, *, part: bool = False
    ) -> AsyncIterator[RunningContent]:
        """The content of a blob of an image for the time of the block. `part`: not all of it is
        asked for. An exception out of the block says that the reader did not even take that."""
        if not await self._is_together(pull, blob):
            pull = replace(pull, blobs=(blob,))
        shared = self._shared.get(pull)
        if shared is None:
            shared = self._shared[pull] = _Shared(self._start(_request(pull, authorization)))
        if shared.linger is not None:
            shared.linger.cancel()
            shared.linger = None
        shared.readers += 1
        linger_s = BROKEN_LINGER_S
        try:
            yield shared.download.content(pull.blobs.index(blob))
            if not part:
                linger_s = LINGER_S
        finally:
            shared.readers -= 1
            if not shared.readers:
                if self._shared.get(pull) is shared:
                    self._let_linger(pull, shared, linger_s)
                else:
                    self._end(shared)

    async def _is_together(self, pull: Pull, blob: str) -> bool:
        """Whether a blob is fetched together with the others of its image."""
        if pull.blobs == (blob,) or pull in self._shared:
            return True
        now_s = asyncio.get_running_loop().time()
        asked = self._asked.get(pull)
        if asked is not None and asked.until_s > now_s and asked.blob != blob:
            asked.another.set()
            return True
        if asked is None or asked.until_s <= now_s:
            asked = self._asked[pull] = _Asked(blob, 0.0)
            while len(self._asked) > ASKED_MAX:
                self._asked.popitem(last=False)
        asked.until_s = now_s + LINGER_S
        if self._is_here(blob):
            return False
        try:
            async with asyncio.timeout(GATHER_S):
                await asked.another.wait()
        except TimeoutError:
            return False
        return True

    def fails(self, pull: Pull, blob: str) -> None:
        """A download did not bring this blob of an image: the next reader begins a new one, and
        those who read other blobs of it go on."""
        for each in (pull, replace(pull, blobs=(blob,))):
            shared = self._shared.pop(each, None)
            if shared is not None and not shared.readers:
                self._end(shared)

    def _let_linger(self, pull: Pull, shared: _Shared, linger_s: float) -> None:
        loop = asyncio.get_running_loop()
        shared.linger = loop.call_later(linger_s, self._over, pull, shared)
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
            WantedUrl(url=f"{base}/{blob}", headers=headers, digest=blob, trusted=True)
            for blob in pull.blobs
        ),
        outputs=(None,) * len(pull.blobs),
        demand=Demand.STREAMING,
    )
