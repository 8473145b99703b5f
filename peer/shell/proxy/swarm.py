"""Requests that go through the swarm: downloads of URLs with the client's own headers.

The content is sent in order while it arrives. Who may have it is the core's decision, by the
origin's word about this very request's headers. What cannot be begun, for whatever reason, is left
to the origin itself to answer: it knows what a client that it refuses has to do.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from peer.shell.api_routes import TASK_ID_HEADER
from peer.shell.api_types import DownloadRequest, WantedUrl
from peer.shell.content_answer import answer_content
from peer.shell.errors import DownloadError
from peer.shell.mirror.pulls import Collection
from peer.shell.origin.places import PlaceRules
from peer.shell.proxy.headers import credential_headers
from peer.shell.proxy.rules import Wishes
from peer.shell.proxy.targets import Target
from shoal.runtime.logs import Log
from shoal.wire.control import Demand
from shoal.wire.errors import UsageError

KNOWN_TIMEOUT_S: Final = 30.0
"""For the origin to say what a URL is; then the client is better off with the origin alone."""


@dataclass(slots=True)
class SwarmCounters:
    """What is counted."""

    reads: int = 0
    read_bytes: int = 0
    left: int = 0
    """Left to the origin."""
    failed: int = 0
    """Broke off."""


class SwarmReads:
    """Answers them. `start` begins a download. `unready()`: why none can be begun, "" if one
    can."""

    def __init__(
        self, *, start: Callable[[DownloadRequest], Collection], unready: Callable[[], str]
    ) -> None:
        self._start = start
        self._unready = unready
        self._log = Log("peer.shell.proxy")
        self.counters = SwarmCounters()

    async def answer(
        self, http: web.Request, target: Target, rest: str, places: PlaceRules, wishes: Wishes
    ) -> web.StreamResponse | None:
        """Sends the content. None if nothing was sent and the origin is to be asked itself."""
        if self._unready():
            self.counters.left += 1
            return None
        try:
            download = self._start(_request(http, target.url + rest, places, wishes))
        except (DownloadError, UsageError) as error:
            self._leave(target, error)
            return None
        try:
            content = download.content(0)
            try:
                async with asyncio.timeout(KNOWN_TIMEOUT_S):
                    descriptor = await content.known()
            except (DownloadError, TimeoutError) as error:
                self._leave(target, error)
                return None
            self.counters.reads += 1

            def broke_off(error: DownloadError) -> None:
                task = descriptor.task_id
                self.counters.failed += 1
                self._log.warning("a download broke off", task=task, reason=str(error))

            headers = {
                "Content-Type": "application/octet-stream",
                TASK_ID_HEADER: descriptor.task_id,
            }
            return await answer_content(
                http, content, headers, sent=self._count, broke_off=broke_off
            )
        finally:
            await download.close()

    def _leave(self, target: Target, error: Exception) -> None:
        self.counters.left += 1
        reason = str(error) or type(error).__name__
        self._log.debug("left to the origin", origin=target.authority, reason=reason)

    def _count(self, sent_bytes: int) -> None:
        self.counters.read_bytes += sent_bytes


def _request(http: web.Request, url: str, places: PlaceRules, wishes: Wishes) -> DownloadRequest:
    return DownloadRequest(
        urls=(WantedUrl(url=url, headers=credential_headers(http.headers), places=places),),
        outputs=(None,),
        tag=wishes.tag,
        application=wishes.application,
        priority=wishes.priority,
        filtered_query_params=wishes.filtered_query_params,
        piece_length_bytes=wishes.piece_length_bytes,
        demand=Demand.STREAMING,
    )
