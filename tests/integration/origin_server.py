"""An HTTP origin that misbehaves on demand, and counts what it sent.

Written on plain asyncio streams, because most of its switches are things that a proper HTTP
server refuses to do. Each path is a `Resource`; what happens to a request depends on the
resource's switches and, where they are tuples, on how many requests came before. Use it as

    async with OriginServer() as origin:
        origin.put("/model", Resource(content))
        ... origin.url("/model") ...
        assert origin.requests["/model"][0].headers["range"] == "bytes=0-0"

Header names in `Seen` are in lower case. Serves tests only: no limits against bad clients.
"""

import asyncio
import mmap
import re
import ssl
from collections import defaultdict
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self, TypeVar

from shoal.runtime.rates import RateLimiter

T = TypeVar("T")

SEND_BYTES: Final = 64 * 1024

_RANGE: Final = re.compile(r"bytes=(\d+)-(\d*)")

PHRASES: Final = {200: "OK", 204: "No Content", 206: "Partial Content", 302: "Found", 416: "No"}


@dataclass(frozen=True)
class Failure:
    """A refusal: status and headers in place of content."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Resource:
    """What a path does. Tuples that are named `..._in_turn` give one entry to each request, and
    their last entry to all that follow."""

    content: bytes | mmap.mmap = b""
    ranges: bool = True
    etag: str | None = '"v1"'
    last_modified: str | None = None
    contents_in_turn: tuple[bytes, ...] = ()
    etags_in_turn: tuple[str | None, ...] = ()
    failures: tuple[Failure, ...] = ()
    """For the first so many requests; afterwards all is well."""
    always: Failure | None = None
    redirect: str | None = None
    redirect_status: int = 302
    authorization: str | None = None
    """The only Authorization header that is let in; others get 401."""
    chunked: bool = False
    close_delimited: bool = False
    """An HTTP/1.0 answer whose end is the connection's end."""
    status: int | None = None
    """In place of 200, for a content without ranges."""
    short_by_bytes: int = 0
    """The connection is closed so many bytes before the announced end."""
    surplus: bytes = b""
    """Sent behind the content; needs `chunked` to be seen as part of it."""
    stall_after_bytes: int | None = None
    """After so many payload bytes nothing more comes until `OriginServer.release_stalls()`."""
    stall_before_answer: bool = False
    drop_after_requests: int | None = None
    """A kept connection is closed, without an answer, on the request after so many."""
    content_range: str | None = None
    content_length: str | None = None
    """The header as given, true or not."""
    bare_416: bool = False
    """Answers 416 without Content-Range to every range request."""
    extra_headers: tuple[tuple[str, str], ...] = ()
    raw_answer: bytes | None = None
    """Sent in place of everything, then the connection is closed."""


@dataclass(frozen=True)
class Seen:
    """A request as it came."""

    path: str
    target: str
    """Path with query."""
    headers: dict[str, str]
    connection: int
    """Number of the connection that it came on."""


@dataclass
class _Connection:
    number: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    requests: int = field(default=0)


class OriginServer:
    """The server. `limiter`, if given, is awaited for payload bytes of all answers together."""

    def __init__(
        self, *, limiter: RateLimiter | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self.requests: defaultdict[str, list[Seen]] = defaultdict(list)
        self.payload_bytes: defaultdict[str, int] = defaultdict(int)
        self.connections = 0
        self._limiter = limiter
        self._tls = tls
        self._resources: dict[str, Resource] = {}
        self._stalls = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(
            self._accept, "127.0.0.1", 0, ssl=self._tls, limit=256 * 1024
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Closes the port and every connection, as a crash would. Safe to call twice."""
        if self._server is not None:
            self._server.close()
            self._server = None
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def put(self, path: str, resource: Resource) -> None:
        """Puts a resource at a path, in place of what was there; counts go on."""
        self._resources[path] = resource

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        """The URL of a path. `localhost` as host makes it another host for credentials."""
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://{host}:{self.port}{path}"

    @property
    def total_payload_bytes(self) -> int:
        """Payload bytes handed to the kernel for all paths."""
        return sum(self.payload_bytes.values())

    @property
    def total_requests(self) -> int:
        """Requests to all paths."""
        return sum(len(seen) for seen in self.requests.values())

    def release_stalls(self) -> None:
        """Lets every stalled answer go on."""
        self._stalls.set()

    # ------------------------------------------------------------ connections

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        writer.transport.set_write_buffer_limits(high=SEND_BYTES)
        connection = _Connection(self.connections, reader, writer)
        try:
            while await self._serve_one(connection):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass  # The client went away, which is its right.
        except asyncio.CancelledError:
            pass  # stop(): the connection is closed below.
        finally:
            self._tasks.discard(task)
            writer.transport.abort() if writer.is_closing() else writer.close()

    async def _serve_one(self, connection: _Connection) -> bool:
        """Answers one request. Returns whether the connection lives on."""
        head = (await connection.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        target = head[0].split(" ")[1]
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in head[1:] if line)
        }
        path = target.partition("?")[0]
        turn = len(self.requests[path])
        self.requests[path].append(Seen(path, target, headers, connection.number))
        connection.requests += 1
        resource = self._resources.get(path)
        if resource is None:
            return await self._refuse(connection, Failure(404))
        drop = resource.drop_after_requests
        if drop is not None and connection.requests > drop:
            return False
        if resource.stall_before_answer:
            await self._stalls.wait()
        if resource.raw_answer is not None:
            connection.writer.write(resource.raw_answer)
            await connection.writer.drain()
            return False
        refusal = self._refusal(resource, headers, turn)
        if refusal is not None:
            return await self._refuse(connection, refusal)
        return await self._answer(connection, path, resource, headers.get("range"), turn)

    @staticmethod
    def _refusal(resource: Resource, headers: dict[str, str], turn: int) -> Failure | None:
        if turn < len(resource.failures):
            return resource.failures[turn]
        if resource.always is not None:
            return resource.always
        if resource.redirect is not None:
            return Failure(resource.redirect_status, (("Location", resource.redirect),))
        wanted = resource.authorization
        if wanted is not None and headers.get("authorization") != wanted:
            return Failure(401, (("WWW-Authenticate", "Basic"),))
        if resource.bare_416 and "range" in headers:
            return Failure(416)
        return None

    async def _refuse(self, connection: _Connection, failure: Failure) -> bool:
        body = b"" if failure.status in (204, 304) else b"no\n"
        lines = [*failure.headers, ("Content-Length", str(len(body)))]
        self._write_head(connection, failure.status, lines)
        connection.writer.write(body)
        await connection.writer.drain()
        return True

    # ------------------------------------------------------------ content

    async def _answer(
        self,
        connection: _Connection,
        path: str,
        resource: Resource,
        asked: str | None,
        turn: int,
    ) -> bool:
        content = _in_turn(resource.contents_in_turn, turn, resource.content)
        etag = _in_turn(resource.etags_in_turn, turn, resource.etag)
        lines = list(resource.extra_headers)
        if etag is not None:
            lines.append(("ETag", etag))
        if resource.last_modified is not None:
            lines.append(("Last-Modified", resource.last_modified))
        status, start, end = resource.status or 200, 0, len(content)
        match = _RANGE.fullmatch(asked or "") if resource.ranges else None
        if match is not None:
            status, start = 206, int(match[1])
            end = min(int(match[2]) + 1, end) if match[2] else end
            if start >= len(content):
                unsatisfied = ("Content-Range", f"bytes */{len(content)}")
                return await self._refuse(connection, Failure(416, (unsatisfied,)))
            told = resource.content_range or f"bytes {start}-{end - 1}/{len(content)}"
            lines.append(("Content-Range", told))
        if resource.chunked:
            lines.append(("Transfer-Encoding", "chunked"))
        elif not resource.close_delimited and status != 204:
            lines.append(("Content-Length", resource.content_length or str(end - start)))
        self._write_head(connection, status, lines, old=resource.close_delimited)
        with memoryview(content) as view:
            whole = await self._send_payload(connection, path, resource, view[start:end])
        if resource.surplus:
            await self._write(connection, resource, resource.surplus)
        if not whole or resource.close_delimited:
            return False
        if resource.chunked:
            connection.writer.write(b"0\r\n\r\n")
            await connection.writer.drain()
        return True

    async def _send_payload(
        self, connection: _Connection, path: str, resource: Resource, data: memoryview
    ) -> bool:
        """Returns whether all of it was sent."""
        end = len(data) - resource.short_by_bytes
        stall = resource.stall_after_bytes
        sent = 0
        while sent < end:
            if stall is not None and sent >= stall:
                await self._stalls.wait()
                stall = None
            stop = min(end, sent + SEND_BYTES, end if stall is None else stall)
            if self._limiter is not None:
                await self._limiter.acquire(stop - sent)
            await self._write(connection, resource, data[sent:stop])
            self.payload_bytes[path] += stop - sent
            sent = stop
        return end == len(data)

    @staticmethod
    async def _write(connection: _Connection, resource: Resource, data: bytes | memoryview) -> None:
        writer = connection.writer
        if resource.chunked:
            writer.write(b"%x\r\n" % len(data) + bytes(data) + b"\r\n")
        else:
            writer.write(bytes(data))
        await writer.drain()

    @staticmethod
    def _write_head(
        connection: _Connection, status: int, lines: list[tuple[str, str]], *, old: bool = False
    ) -> None:
        version = "1.0" if old else "1.1"
        head = f"HTTP/{version} {status} {PHRASES.get(status, 'Status')}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in lines)
        connection.writer.write((head + "\r\n").encode("latin-1"))


def _in_turn(entries: tuple[T, ...], turn: int, otherwise: T) -> T:
    return entries[min(turn, len(entries) - 1)] if entries else otherwise
