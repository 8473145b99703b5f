"""Sockets for the piece plane: connecting, accepting, TLS handshakes. Decides nothing.

Everything here works on raw non-blocking sockets, so that the caller owns them afterwards.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar

T = TypeVar("T")

SOCKET_BUFFER_BYTES: Final = 4 * 1024 * 1024
"""Asked of the kernel for both directions; enough for 25 Gb/s at 1 ms."""

HAPPY_EYEBALLS_DELAY_S: Final = 0.1
"""Head start of each address over the next (RFC 8305 names 100 ms as the least)."""


SILENCE_MS: Final = 30_000
"""A host that acknowledges nothing for so long is gone. Without this, bytes that are on their way
to a host that lost its power keep the connection for a quarter of an hour, keep-alives or not; and
who only waits there (standing requests) would not miss it."""


def prepare(sock: socket.socket) -> None:
    """Options that every piece connection has: no delay of small frames, and dead peers noticed."""
    sock.settimeout(0)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE_MS)


async def race(
    attempts: Sequence[Callable[[], Coroutine[Any, Any, T]]],
    *,
    failures: tuple[type[Exception], ...],
    discard: Callable[[T], None],
) -> T:
    """The result of the first attempt that succeeds; each begins a little after the one before, or
    as soon as one has failed (RFC 8305). Raises the last of `failures` if none succeeds. A second
    success is handed to `discard`. The caller sets the time limit."""
    tasks: list[asyncio.Task[T]] = []
    waiting: set[asyncio.Task[T]] = set()
    error: BaseException = OSError("there is no address")
    try:
        for number, attempt in enumerate(attempts, 1):
            task = asyncio.create_task(attempt())
            tasks.append(task)
            waiting.add(task)
            last = number == len(attempts)
            while waiting:
                done, waiting = await asyncio.wait(
                    waiting,
                    timeout=None if last else HAPPY_EYEBALLS_DELAY_S,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for task in done:
                    failure = task.exception()
                    if failure is None:
                        tasks.remove(task)
                        return task.result()
                    if not isinstance(failure, failures):
                        raise failure
                    error = failure
                if not last:
                    break
        raise error
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError, *failures):
                discard(await task)


async def connect(address: tuple[str, int]) -> socket.socket:
    """A connection to one address. Raises OSError."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        prepare(sock)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


def listen(ip: str, port: int, backlog: int = 1024) -> socket.socket:
    """A listening socket; port 0 picks one. Raises OSError."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.settimeout(0)
        sock.bind((ip, port))
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


async def start_tls(
    sock: socket.socket, context: ssl.SSLContext, *, server_side: bool, server_name: str | None
) -> ssl.SSLSocket:
    """Wraps a connected socket and shakes hands. Raises ssl.SSLError or OSError; the socket is
    closed then. The caller sets the time limit."""
    wrapped = context.wrap_socket(
        sock,
        server_side=server_side,
        do_handshake_on_connect=False,
        server_hostname=server_name,
    )
    try:
        while True:
            try:
                wrapped.do_handshake()
                return wrapped
            except ssl.SSLWantReadError:
                await _ready(wrapped, write=False)
            except ssl.SSLWantWriteError:
                await _ready(wrapped, write=True)
    except BaseException:
        wrapped.close()
        raise


async def _ready(sock: socket.socket, *, write: bool) -> None:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    number = sock.fileno()
    add, remove = (
        (loop.add_writer, loop.remove_writer) if write else (loop.add_reader, loop.remove_reader)
    )
    add(number, lambda: None if future.done() else future.set_result(None))
    try:
        await future
    finally:
        remove(number)
