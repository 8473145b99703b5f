"""Origins over HTTP and HTTPS.

Asks with GET only, because signed URLs are signed for one method: `stat` is a GET for the first
byte. An origin without ranges answers that with its whole content; this answer is parked for a
few seconds, so that the read which follows takes it up instead of asking again. Redirects are
followed here and not by aiohttp: every header of the user is a credential and stays with scheme,
host and port, and only the user names an internal address, no redirect does. A storage that
refuses a signed URL may have seen it too late, so the way there is asked for once more. Never
decompresses, never sends a precondition, and otherwise never tries twice (aiohttp alone repeats a
GET once whose connection died before the answer began).
"""

import asyncio
import ssl
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from peer.shell.errors import OriginError
from peer.shell.origin.base import OriginBody, OriginStat
from peer.shell.origin.http_answer import Answer, check_same, read_answer
from peer.shell.origin.http_body import HttpBody
from peer.shell.origin.http_errors import RAISED, translate
from peer.shell.origin.internal import InternalHosts
from peer.shell.origin.places import PlaceRules
from peer.shell.origin.request import OriginRequest
from peer.shell.origin.resolving import CheckedResolver, PlaceRefusedError
from peer.shell.urls import place_of, redirect_url
from shoal.wire.errors import Reason, UsageError
from shoal.wire.limits import KIB

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})

_ENDED: Final = frozenset({401, 403})
"""What storages answer to a signed URL that has expired."""

DRAIN_BYTES_MAX: Final = 16 * KIB
"""A body that nobody wants is read to its end up to this size, to keep the connection."""

DRAIN_TIMEOUT_S: Final = 0.5
"""A body that takes longer to come costs more than a new connection."""

SSL_CONTEXTS_MAX: Final = 16
"""CA files whose parsed form is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpOptions:
    """How to treat HTTP origins. Times in seconds."""

    connections_per_host: int = 8
    connections_total: int = 64
    """Both again for where redirects lead."""
    connect_timeout_s: float = 10.0
    """For waiting for a place in the pool, resolving the name, connecting and TLS together."""
    stall_timeout_s: float = 10.0
    """Longest time without a byte, also for the answer to begin."""
    idle_timeout_s: float = 30.0
    """How long a connection that nobody uses is kept."""
    redirects_max: int = 10
    allow_downgrade: bool = False
    """Whether https may redirect to http."""
    internal_hosts: InternalHosts = field(default_factory=InternalHosts)
    """Internal hosts that redirects may lead to."""
    ca_file: Path | None = None
    """PEM certificates trusted for every request beside the system's own."""
    park_timeout_s: float = 5.0
    parked_max: int = 2
    """Each parked answer may hold a connection and two read buffers."""
    read_buffer_bytes: int = 256 * KIB
    """Bytes that aiohttp receives ahead of the reader; it stops at twice as many."""
    user_agent: str = "shoal"


@dataclass(frozen=True, slots=True)
class _Good:
    """A good answer whose body was not touched yet."""

    host: str
    response: aiohttp.ClientResponse
    answer: Answer


class HttpOrigin:
    """The `Origin` for http and https. Must be used on one event loop; `close` it at the end."""

    def __init__(
        self, options: HttpOptions, *, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._options = options
        self._wall_clock = wall_clock
        self._sessions: dict[PlaceRules | None, aiohttp.ClientSession] = {}
        """By where they may lead: a connection that a user was let make must not serve a
        redirect."""
        self._closed = False
        self._parked: OrderedDict[OriginRequest, tuple[_Good, asyncio.TimerHandle]] = OrderedDict()
        self._ssl_contexts: OrderedDict[tuple[Path | None, str], ssl.SSLContext] = OrderedDict()

    async def stat(self, request: OriginRequest) -> OriginStat:
        """Asks for the first byte and reads what the answer says. Raises OriginError."""
        host, response = await self._get(request, (0, 1))
        if response.status == 416 and "Content-Range" not in response.headers:
            # Allowed, but it does not tell whether the content is empty or ranges are refused.
            await self._discard(response)
            host, response = await self._get(request, None)
            good = await self._good(host, response, None)
        else:
            good = await self._good(host, response, (0, 1))
        answer = good.answer
        if response.status == 416 and answer.size_bytes != 0:
            await self._discard(response)
            raise OriginError(
                Reason.ORIGIN_INVALID,
                f"{host} refuses the first byte of {answer.size_bytes} (416)",
            )
        if response.status != 200 or answer.size_bytes == 0:
            await self._discard(response)
        else:
            self._park(request, good)
        return OriginStat(
            size_bytes=answer.size_bytes, validator=answer.validator, ranges=answer.ranges
        )

    @asynccontextmanager
    async def open(
        self,
        request: OriginRequest,
        *,
        start_byte: int,
        end_byte: int | None,
        validator: str | None,
        size_bytes: int | None,
    ) -> AsyncIterator[OriginBody]:
        """Opens a byte range; see `Origin.open`. Leaving gives the connection back if the body
        was read to its end, and closes it otherwise."""
        good = self._take_parked(request)
        if good is None:
            to_the_end = end_byte is None or end_byte == size_bytes
            asked = None if start_byte == 0 and to_the_end else (start_byte, end_byte)
            host, response = await self._get(request, asked)
            good = await self._good(host, response, asked)
        try:
            self._check(good, start_byte, end_byte, validator, size_bytes)
            yield HttpBody(
                good.host,
                good.response,
                good.answer,
                start_byte=start_byte,
                end_byte=end_byte,
                size_bytes=size_bytes,
                translate=self._translated,
            )
        finally:
            if good.response.content.at_eof():
                good.response.release()
            else:
                good.response.close()

    async def close(self) -> None:
        """Ends all connections; what is being read fails. Nothing can be asked any more."""
        self._closed = True
        while self._parked:
            self._unpark(next(iter(self._parked)))
        for session in self._sessions.values():
            await session.close()

    # ------------------------------------------------------------ asking

    async def _get(
        self, request: OriginRequest, asked: tuple[int, int | None] | None
    ) -> tuple[str, aiohttp.ClientResponse]:
        """One GET, redirects followed. Gives the answering host and its answer, good or bad."""
        own: CIMultiDict[str] = CIMultiDict({"Accept-Encoding": "identity"})
        if asked is not None:
            start, end = asked
            own["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        url, host, response = await self._follow(request, own)
        if response.status in _ENDED and place_of(url) != place_of(request.url):
            await self._discard(response)
            url, host, response = await self._follow(request, own)
        return host, response

    async def _follow(
        self, request: OriginRequest, own: CIMultiDict[str]
    ) -> tuple[str, str, aiohttp.ClientResponse]:
        """From the request's URL to the answer that is no redirect: its URL, host and itself."""
        headers = own.copy()
        headers.extend(request.headers)
        url, host = request.url, ""
        for _ in range(self._options.redirects_max + 1):
            host = urlsplit(url).netloc
            response = await self._send(url, host, headers, request)
            if response.status not in _REDIRECTS:
                return url, host, response
            target = await self._redirect_target(url, host, response)
            if place_of(target) != place_of(url):
                headers = own
            url = target
        raise OriginError(
            Reason.ORIGIN_INVALID,
            f"more than {self._options.redirects_max} redirects, the last one by {host}",
        )

    async def _send(
        self, url: str, host: str, headers: CIMultiDict[str], request: OriginRequest
    ) -> aiohttp.ClientResponse:
        places = self._places_of(url, request)
        # A name is judged when it is resolved; an address is never resolved.
        if places is not None and not places.allows_host(*place_of(url)[1:]):
            raise _refused(host, request)
        try:
            return await self._open_session(places).get(
                URL(url, encoded=True),
                headers=headers,
                allow_redirects=False,
                ssl=await self._ssl(request),
            )
        except RAISED as error:
            if isinstance(getattr(error, "os_error", None), PlaceRefusedError):
                raise _refused(host, request) from None
            raise self._translated(error, host) from None

    def _places_of(self, url: str, request: OriginRequest) -> PlaceRules | None:
        """Where a URL may lead; None: anywhere. The host and port that a user or an operator named
        is theirs to name."""
        if request.places is not None:
            return request.places
        named = place_of(url)[1:] == place_of(request.url)[1:]
        if named or self._options.internal_hosts.names(url):
            return None
        return self._options.internal_hosts.places

    async def _redirect_target(self, url: str, host: str, response: aiohttp.ClientResponse) -> str:
        location = response.headers.get("Location")
        await self._discard(response)
        if location is None:
            raise OriginError(
                Reason.ORIGIN_INVALID, f"{host} answered {response.status} without a Location"
            )
        try:
            target = redirect_url(url, location)
        except UsageError:
            raise OriginError(
                Reason.ORIGIN_INVALID, f"{host} redirects to something that is no HTTP(S) URL"
            ) from None
        was, is_now = place_of(url), place_of(target)
        if was[0] == "https" and is_now[0] == "http" and not self._options.allow_downgrade:
            raise OriginError(
                Reason.ORIGIN_INVALID,
                f"{host} redirects from https to plain http at {is_now[1]}: refused, because "
                "anybody on the way could then change the content",
            )
        return target

    async def _good(
        self,
        host: str,
        response: aiohttp.ClientResponse,
        asked: tuple[int, int | None] | None,
    ) -> _Good:
        """The answer read; a bad one is discarded and raised."""
        try:
            answer = read_answer(
                host, response.status, response.headers, asked, wall_s=self._wall_clock()
            )
        except OriginError:
            await self._discard(response)
            raise
        return _Good(host, response, answer)

    def _check(
        self,
        good: _Good,
        start_byte: int,
        end_byte: int | None,
        validator: str | None,
        size_bytes: int | None,
    ) -> None:
        """Raises OriginError unless the answer is of the right content and has the range."""
        answer = good.answer
        # An answer without a range to give (416) carries no validator either.
        empty = good.response.status == 416
        check_same(good.host, answer, None if empty else validator, size_bytes)
        needed = start_byte if end_byte is None else end_byte
        if answer.size_bytes is not None and answer.size_bytes < needed:
            raise OriginError(
                Reason.ORIGIN_CHANGED,
                f"the content at {good.host} changed: it ends at {answer.size_bytes} bytes now, "
                f"before byte {needed}; start the download again",
            )
        if empty and (size_bytes is not None or answer.size_bytes != start_byte):
            raise OriginError(
                Reason.ORIGIN_INVALID,
                f"{good.host} refuses bytes from {start_byte} on, of {answer.size_bytes} (416)",
            )

    async def _discard(self, response: aiohttp.ClientResponse) -> None:
        """Ends an answer whose body is not wanted, keeping the connection if that is cheap."""
        length = response.content_length
        if not response.content.at_eof() and (length is None or length > DRAIN_BYTES_MAX):
            response.close()
            return
        try:
            async with asyncio.timeout(DRAIN_TIMEOUT_S):
                await response.read()
        except RAISED:
            # What was wanted of this answer is known already; the connection is not.
            response.close()
        except BaseException:
            response.close()
            raise
        else:
            response.release()

    def _translated(self, error: Exception, host: str) -> OriginError:
        if self._closed:
            return OriginError(Reason.SHUTTING_DOWN, "the daemon is shutting down")
        return translate(
            error,
            host,
            connect_timeout_s=self._options.connect_timeout_s,
            stall_timeout_s=self._options.stall_timeout_s,
        )

    # ------------------------------------------------------------ parked answers

    def _park(self, request: OriginRequest, good: _Good) -> None:
        self._unpark(request)
        while len(self._parked) >= max(1, self._options.parked_max):
            self._unpark(next(iter(self._parked)))
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self._options.park_timeout_s, self._unpark, request)
        self._parked[request] = (good, timer)

    def _unpark(self, request: OriginRequest) -> None:
        parked = self._parked.pop(request, None)
        if parked is not None:
            good, timer = parked
            timer.cancel()
            good.response.close()

    def _take_parked(self, request: OriginRequest) -> _Good | None:
        """The parked answer of a request, if it is still alive."""
        parked = self._parked.pop(request, None)
        if parked is None:
            return None
        good, timer = parked
        timer.cancel()
        if good.response.content.exception() is not None:
            good.response.close()
            return None
        return good

    # ------------------------------------------------------------ session and TLS

    def _open_session(self, places: PlaceRules | None) -> aiohttp.ClientSession:
        if self._closed:
            raise OriginError(Reason.SHUTTING_DOWN, "the daemon is shutting down")
        session = self._sessions.get(places)
        if session is None:
            session = self._sessions[places] = self._new_session(places)
        return session

    def _new_session(self, places: PlaceRules | None) -> aiohttp.ClientSession:
        options = self._options
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=options.connections_total,
                limit_per_host=options.connections_per_host,
                keepalive_timeout=options.idle_timeout_s,
                resolver=None if places is None else CheckedResolver(places),
            ),
            timeout=aiohttp.ClientTimeout(
                total=None,
                connect=options.connect_timeout_s,
                sock_connect=options.connect_timeout_s,
                sock_read=options.stall_timeout_s,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": options.user_agent},
            auto_decompress=False,
            read_bufsize=options.read_buffer_bytes,
            # Redirects to signed URLs have long Location headers.
            max_field_size=32 * KIB,
            max_line_size=32 * KIB,
        )

    async def _ssl(self, request: OriginRequest) -> ssl.SSLContext | bool:
        """How to verify the other side: aiohttp's own context, none, or one with more CAs. The
        user's choice holds for hosts that a redirect leads to, too."""
        if request.insecure_skip_verify:
            return False
        if not (request.ca_file or self._options.ca_file or request.authorities):
            return True
        key = request.ca_file, request.authorities
        context = self._ssl_contexts.get(key)
        if context is None:
            files = [path for path in (self._options.ca_file, request.ca_file) if path is not None]
            context = await asyncio.to_thread(_ssl_context, files, request.authorities)
            self._ssl_contexts[key] = context
            while len(self._ssl_contexts) > SSL_CONTEXTS_MAX:
                self._ssl_contexts.popitem(last=False)
        else:
            self._ssl_contexts.move_to_end(key)
        return context


def _refused(host: str, request: OriginRequest) -> OriginError:
    if request.places is not None:
        return OriginError(Reason.ORIGIN_FORBIDDEN, f"{host} is at an address that is not allowed")
    return OriginError(
        Reason.ORIGIN_INVALID,
        f"a redirect leads to {host}, which is at an internal address: refused; list it in "
        "origin.internal_hosts if that is meant",
    )


def _ssl_context(ca_files: list[Path], authorities: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    for path in ca_files:
        try:
            context.load_verify_locations(cafile=path)
        except OSError as error:
            what = error.strerror if not isinstance(error, ssl.SSLError) else "no PEM certificates"
            raise OriginError(
                Reason.ORIGIN_INVALID, f"CA file {path} can't be read: {what}"
            ) from None
    if authorities:
        try:
            context.load_verify_locations(cadata=authorities)
        except (ssl.SSLError, ValueError):
            raise OriginError(
                Reason.ORIGIN_INVALID, "the CA certificates of the request are no PEM certificates"
            ) from None
    return context
