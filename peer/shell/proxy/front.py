"""The first look at a client's connection: CONNECT, or HTTP as usual.

Reads no further than to know which it is. HTTP goes to aiohttp's own handler, with all that was
read; CONNECT, which takes the connection out of HTTP, is read to its empty line and handed over
together with the connection. Decides nothing about where anything may go.
"""

import asyncio
from collections.abc import Callable
from typing import Final, Protocol, cast

from peer.shell.proxy.targets import HEAD_BYTES_MAX, Target, TargetError, parse_connect

HEAD_TIMEOUT_S: Final = 30.0
"""For a client to say what it wants; some connect ahead of need."""

_CONNECT: Final = b"CONNECT "
_END: Final = b"\r\n\r\n"
_REASONS: Final = {
    400: "Bad Request",
    403: "Forbidden",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}


class HandedOver(asyncio.Protocol):
    """A connection that another protocol has from now on; `over` is called at its end. What comes
    before `begin` is kept, since TLS may bring bytes before it is told to be ready."""

    def __init__(self, inner: asyncio.Protocol, over: Callable[[], None]) -> None:
        self._inner = inner
        self._over = over
        self._early: list[bytes] | None = []
        self._lost = False

    def begin(self, transport: asyncio.Transport, data: bytes = b"") -> None:
        """The inner protocol takes over, `data` first."""
        early, self._early = self._early or [], None
        if self._lost:
            return
        self._inner.connection_made(transport)
        for chunk in (data, *early):
            if chunk:
                self._inner.data_received(chunk)

    def data_received(self, data: bytes) -> None:
        """Hands on."""
        if self._early is not None:
            self._early.append(data)
        else:
            self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        """Hands on."""
        return None if self._early is not None else self._inner.eof_received()

    def pause_writing(self) -> None:
        """Hands on."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Hands on."""
        self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Hands on, and tells."""
        self._lost = True
        if self._early is None:
            self._inner.connection_lost(exc)
        self._over()


class FrontOwner(Protocol):
    """What a front tells of its connection."""

    def opened(self, front: "Front") -> bool:
        """A client has come. False: there are too many."""
        ...

    def closed(self, front: "Front") -> None:
        """It is gone."""
        ...

    def http(self) -> asyncio.Protocol:
        """A handler for one connection of HTTP."""
        ...

    def connect(self, front: "Front", target: Target, data: bytes) -> None:
        """A client asks for a tunnel, and has sent this behind it. Nothing more is read of the
        connection until its protocol is another one."""
        ...

    def misread(self, front: "Front", error: TargetError) -> None:
        """A client asks for a tunnel in a way that cannot be read."""
        ...


class Front(asyncio.Protocol):
    """One client's connection until it is known what for."""

    def __init__(self, owner: FrontOwner) -> None:
        self._owner = owner
        self._head = b""
        self._decided = False
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None

    @property
    def transport(self) -> asyncio.Transport:
        """The connection."""
        assert self._transport is not None
        return self._transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Waits for what comes, for a bounded time."""
        # Those of uvloop are none by their type.
        self._transport = cast("asyncio.Transport", transport)
        if not self._owner.opened(self):
            self.refuse(503, "too many connections")
            return
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(HEAD_TIMEOUT_S, self.transport.abort)

    def data_received(self, data: bytes) -> None:
        """More of the beginning."""
        if self._decided:
            return
        self._head += data
        if not _CONNECT.startswith(self._head[: len(_CONNECT)]):
            self._hand_over_http()
            return
        head, end, rest = self._head.partition(_END)
        if not end:
            if len(self._head) > HEAD_BYTES_MAX:
                self._decide()
                self._owner.misread(self, TargetError("the CONNECT request is too long"))
            return
        self._decide()
        self.transport.pause_reading()
        try:
            target = parse_connect(head)
        except TargetError as error:
            self._owner.misread(self, error)
        else:
            self._owner.connect(self, target, rest)

    def _hand_over_http(self) -> None:
        self._decide()
        handed = HandedOver(self._owner.http(), self._gone)
        self.transport.set_protocol(handed)
        handed.begin(self.transport, self._head)
        self._head = b""

    def _decide(self) -> None:
        self._decided = True
        if self._timer is not None:
            self._timer.cancel()

    def refuse(self, status: int, text: str) -> None:
        """Answers, and ends the connection."""
        self._decided = True
        if not self.transport.is_closing():
            self.transport.write(answer_to_connect(status, text))
            self.transport.close()

    def _gone(self) -> None:
        self._owner.closed(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client went before it was known what for."""
        self._decide()
        self._gone()


def answer_to_connect(status: int, text: str) -> bytes:
    """A refusal as bytes."""
    body = f"shoal proxy: {text}\n".encode()
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\n"
        "Content-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\n"
        "X-Shoal-Error: proxy\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body
