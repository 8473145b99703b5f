"""Requests that pass through: asked of their origin as the client asked, and answered as it did.

Bodies stream in both directions and are held by nobody. Follows no redirect, keeps no cookie,
unpacks nothing, tries nothing twice (aiohttp alone repeats a request without a body once whose
kept connection had died). Whether a request may be made is decided elsewhere; where its name leads
is checked here, when it is resolved.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import aiohttp
from aiohttp import web
from yarl import URL

from peer.shell.http_passing import pass_body
from peer.shell.origin.authorities import web_context
from peer.shell.origin.http_errors import RAISED, translate
from peer.shell.origin.places import PlaceRules
from peer.shell.origin.resolving import CheckedResolver, PlaceRefusedError
from peer.shell.proxy.headers import asked_headers, told_headers
from peer.shell.proxy.policy import RefusedError, refused_place
from peer.shell.proxy.targets import Target
from shoal.wire.limits import KIB

CONNECT_TIMEOUT_S: Final = 10.0
STALL_TIMEOUT_S: Final = 300.0
"""Without a byte from the origin, also for the answer to begin: some compute for long."""
CONNECTIONS_MAX: Final = 512
BUFFER_BYTES: Final = 64 * KIB
HEADER_BYTES_MAX: Final = 32 * KIB
"""Redirects to signed URLs have long Location headers."""

_ADDED_BY_AIOHTTP: Final = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")


class UnreachableError(Exception):
    """An origin cannot be asked; the text is fit for its client."""


class Passing:
    """Connections to origins. Must be used on one event loop; `start` it first, `close` it at the
    end."""

    def __init__(self, *, places: PlaceRules, ca_file: Path | None, pseudonym: str) -> None:
        self._places = places
        self._ca_file = ca_file
        self._pseudonym = pseudonym
        self._session: aiohttp.ClientSession | None = None
        self.passed_bytes = 0

    async def start(self) -> None:
        """Reads the certificates that origins are known by. Raises UsageError."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=CONNECTIONS_MAX,
                ssl=await web_context(self._ca_file),
                resolver=CheckedResolver(self._places),
            ),
            timeout=aiohttp.ClientTimeout(
                total=None,
                connect=CONNECT_TIMEOUT_S,
                sock_connect=CONNECT_TIMEOUT_S,
                sock_read=STALL_TIMEOUT_S,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            read_bufsize=BUFFER_BYTES,
            max_field_size=HEADER_BYTES_MAX,
            max_line_size=HEADER_BYTES_MAX,
        )

    async def pass_on(self, http: web.Request, target: Target, rest: str) -> web.StreamResponse:
        """Asks the origin and answers with what it says. Raises UnreachableError."""
        try:
            answer = await self._opened().request(
                http.method,
                URL(target.url + rest, encoded=True),
                headers=asked_headers(http.headers, self._pseudonym),
                data=http.content if http.body_exists else None,
                skip_auto_headers=_ADDED_BY_AIOHTTP,
                allow_redirects=False,
            )
        except RAISED as error:
            if isinstance(getattr(error, "os_error", None), PlaceRefusedError):
                raise RefusedError(refused_place(target)) from error
            raise UnreachableError(
                translate(
                    error,
                    target.authority,
                    connect_timeout_s=CONNECT_TIMEOUT_S,
                    stall_timeout_s=STALL_TIMEOUT_S,
                ).detail
            ) from error
        try:
            return await self._hand_back(http, answer)
        finally:
            # Gives the connection back if the body was read to its end, and closes it otherwise.
            if answer.content.at_eof():
                answer.release()
            else:
                answer.close()

    async def _hand_back(
        self, http: web.Request, answer: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            status=answer.status,
            reason=answer.reason,
            headers=told_headers(answer.headers.items(), self._pseudonym),
        )
        return await pass_body(http, response, self._counted(answer))

    async def _counted(self, answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        async for chunk in answer.content.iter_any():
            self.passed_bytes += len(chunk)
            yield chunk

    async def close(self) -> None:
        """Ends all connections. Safe to call twice."""
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise UnreachableError("this proxy is stopping")
        return self._session
