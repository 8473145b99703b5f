"""Asks registries on behalf of clients, and hands their answers back as they are.

Passes on what a registry needs to decide (authorization, what is accepted, conditions) and nothing
of the connection. Follows no redirect: clients do that, with rules of their own for credentials.
Knows neither the swarm nor the store.
"""

import ssl
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from peer.shell.mirror.upstreams import Upstream

HEAD_TIMEOUT_S: Final = 20.0
"""For a registry to begin its answer. containerd gives up after 30."""
CONNECT_TIMEOUT_S: Final = 5.0
CONNECTIONS_MAX: Final = 256

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
_OF_THE_CONNECTION: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "content-encoding",
        "date",
        "server",
    }
)


class UpstreamFailedError(Exception):
    """A registry could not be asked; the text is fit for its client."""


class Relay:
    """Connections to registries. Must be used on one event loop; `close` it at the end."""

    def __init__(self, *, ca_file: Path | None = None) -> None:
        # True: the system's certificates, which aiohttp has in memory. Reading them again would
        # hold up the first client for longer than its first bytes take.
        self._ssl: ssl.SSLContext | bool = True
        if ca_file is not None:
            self._ssl = ssl.create_default_context()
            self._ssl.load_verify_locations(ca_file)
        self._session: aiohttp.ClientSession | None = None

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

    async def close(self) -> None:
        """Ends all connections. Safe to call twice."""
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX, ssl=self._ssl),
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=HEAD_TIMEOUT_S
                ),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
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
    """What of a registry's answer its client is told: all but what is the connection's."""
    return CIMultiDict(
        (name, value) for name, value in headers if name.lower() not in _OF_THE_CONNECTION
    )
