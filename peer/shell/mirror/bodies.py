"""Bodies on their way through the mirror, chunk by chunk: what a client sends to a registry, and
what a registry answers.

The slower side sets the pace, and neither may stand still for long. Keeps no byte, sends none
twice.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Final, Self

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from peer.shell.http_passing import pass_body

IDLE_S: Final = 60.0
"""Longest time in which nothing of a body moves, on either side."""


class BodyFailedError(Exception):
    """A client did not send what it began to send. `status` to answer it with."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class ClientBody:
    """The body of a client's request, to be iterated once. A client that waits to be told to go on
    (`Expect: 100-continue`) is told when the first chunk is asked for: when the registry has said
    the same, or never."""

    def __init__(self, http: web.Request, limit: asyncio.Timeout, *, answer_s: float) -> None:
        self._http = http
        self._limit: asyncio.Timeout | None = limit
        self._answer_s = answer_s
        self._must_tell = self.is_expected
        self._over = False
        self.awaits_client = False
        """Whether the client is the one who has to do something."""
        self.broken = False
        self.ended = False
        """All of it has been handed on."""

    @property
    def is_expected(self) -> bool:
        """Whether the client waits to be told to send it."""
        return self._http.headers.get("Expect", "").lower() == "100-continue"

    def answered(self) -> None:
        """The registry has begun its answer: from here on that is what is waited for."""
        self._limit = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._over:
            raise RuntimeError("a client's body is sent once")
        if self._must_tell:
            self._must_tell = False
            await self._http.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._again_in(IDLE_S)
        self.awaits_client = True
        try:
            chunk = await self._http.content.readany()
        except (web.RequestPayloadError, ConnectionError, aiohttp.ClientError):
            self._over = self.broken = True
            raise
        self.awaits_client = False
        if not chunk:
            self._over = self.ended = True
            self._again_in(self._answer_s)
            raise StopAsyncIteration
        self._again_in(IDLE_S)
        return chunk

    def _again_in(self, seconds: float) -> None:
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(asyncio.get_running_loop().time() + seconds)


async def hand_back(
    http: web.Request,
    answer: aiohttp.ClientResponse,
    headers: Mapping[str, str] | CIMultiDict[str],
    *,
    whole: bool = True,
) -> web.StreamResponse:
    """Sends a registry's answer on to its client; one that breaks off there breaks off here.
    `whole`: the client's own body was read to its end, so that the connection can be used on."""
    response = web.StreamResponse(status=answer.status, headers=headers)
    if not whole:
        response.force_close()
    return await pass_body(http, response, _chunks(answer))


async def _chunks(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    while True:
        async with asyncio.timeout(IDLE_S):
            chunk = await answer.content.readany()
        if not chunk:
            return
        yield chunk
