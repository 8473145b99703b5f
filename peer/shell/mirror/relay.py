"""Asks registries on behalf of clients, and hands their answers back as they are.

Passes on what a registry needs to decide (authorization, what is accepted, conditions) and nothing
of the connection. Follows no redirect: clients do that, with rules of their own for credentials.
What clients send is passed on while it comes, and never twice. Knows neither the swarm nor the
store.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from peer.shell.http_passing import going_on
from peer.shell.mirror.bodies import IDLE_S, BodyFailedError, ClientBody
from peer.shell.mirror.upstreams import Upstream
from peer.shell.origin.authorities import web_context

HEAD_TIMEOUT_S: Final = 20.0
"""For a registry to begin its answer. containerd gives up after 30."""
CONNECT_TIMEOUT_S: Final = 5.0
CONNECTIONS_MAX: Final = 256
COMMIT_TIMEOUT_S: Final = 300.0
"""For a registry to answer when it has all that it was sent: it may have to read and hash a whole
layer first."""

LOOP_HEADER: Final = "Shoal-Mirrored"
"""Says that a request has passed a mirror; one that comes to a mirror again is refused."""

_ASKED: Final = (
    "Accept",
    "Authorization",
    "If-Match",
    "If-None-Match",
    "If-Modified-Since",
    "Range",
    "User-Agent",
    "Docker-Distribution-Api-Version",
    "OCI-Filters-Applied",
)
_SENT: Final = ("Content-Type", "Content-Length", "Content-Range", "Content-Encoding")
"""Of requests with a body."""
_TOLD_HERE: Final = frozenset({"content-encoding", "date", "server"})


class UpstreamFailedError(Exception):
    """A registry could not be asked; the text is fit for its client."""


class Relay:
    """Connections to registries. Must be used on one event loop; `start` it first, `close` it at
    the end."""

    def __init__(self, *, ca_file: Path | None = None) -> None:
        self._ca_file = ca_file
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Reads the certificates that registries are known by. Raises UsageError."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=CONNECTIONS_MAX, ssl=await web_context(self._ca_file)
            ),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=HEAD_TIMEOUT_S
            ),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    @asynccontextmanager
    async def ask(
        self,
        upstream: Upstream,
        method: str,
        path: str,
        *,
        query: str = "",
        headers: "Mapping[str, str] | CIMultiDict[str]",
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request; the body of its answer is to be read within the block. Raises
        UpstreamFailedError."""
        url = URL(f"{upstream.url}{path}{'?' + query if query else ''}", encoded=True)
        try:
            response = await self._opened().request(
                method, url, headers=asked_headers(headers), allow_redirects=False
            )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UpstreamFailedError(
                f"{upstream.name} cannot be reached: {type(error).__name__}"
            ) from error
        try:
            yield response
        finally:
            response.release()

    @asynccontextmanager
    async def send(
        self, upstream: Upstream, path: str, http: web.Request, *, query: str = ""
    ) -> AsyncIterator[tuple[aiohttp.ClientResponse, ClientBody]]:
        """Passes on a request that writes, its body while it comes. The answer may begin before
        the body has ended. Raises UpstreamFailedError and BodyFailedError."""
        url = URL(f"{upstream.url}{path}{'?' + query if query else ''}", encoded=True)
        headers = asked_headers(http.headers)
        headers.extend((name, http.headers[name]) for name in _SENT if name in http.headers)
        if not http.body_exists:
            headers["Content-Length"] = "0"
        limit = asyncio.timeout(HEAD_TIMEOUT_S)
        body = ClientBody(http, limit, answer_s=COMMIT_TIMEOUT_S)
        try:
            async with limit:
                response = await self._opened().request(
                    http.method,
                    url,
                    headers=headers,
                    # Always something that is iterated once: the library repeats a request
                    # without a body whose connection died.
                    data=body,
                    expect100=body.is_expected,
                    skip_auto_headers=("Content-Type",),
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
                )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if body.broken:
                raise BodyFailedError(400, "the body of the request broke off") from error
            if body.awaits_client and isinstance(error, TimeoutError):
                raise BodyFailedError(408, f"the client sent nothing for {IDLE_S:g} s") from error
            raise UpstreamFailedError(
                f"{upstream.name} cannot be reached: {type(error).__name__}"
            ) from error
        body.answered()
        try:
            yield response, body
        finally:
            # An answer may come before the body has ended: then nothing more of that is sent.
            response.close()

    async def close(self) -> None:
        """Ends all connections. Safe to call twice."""
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise UpstreamFailedError("this mirror is stopping")
        return self._session


def asked_headers(headers: "Mapping[str, str] | CIMultiDict[str]") -> CIMultiDict[str]:
    """What of a client's request its registry is told. Repeated headers are joined, as some
    clients send each type that they accept in a line of its own."""
    given = CIMultiDict(headers)
    own: CIMultiDict[str] = CIMultiDict({"Accept-Encoding": "identity", LOOP_HEADER: "1"})
    for name in _ASKED:
        if values := given.getall(name, []):
            own[name] = ", ".join(values)
    return own


def told_headers(headers: Iterable[tuple[str, str]]) -> CIMultiDict[str]:
    """What of a registry's answer its client is told: all but what is the connection's
    or this server's own."""
    return going_on(headers, _TOLD_HERE)


def without_range(headers: Mapping[str, str]) -> CIMultiDict[str]:
    """A client's headers for a question about the whole."""
    own = CIMultiDict(headers)
    own.popall("Range", None)
    return own
