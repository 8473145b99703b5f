"""A plain tunnel: two connections whose bytes go over to one another, and no more.

Each side is paused while the other cannot take more, so that a tunnel holds one buffer of its
transport at most. A side that has ended is told to the other. Looks at nothing that passes.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Final, cast

from aiohttp.abc import AbstractResolver

CONNECT_TIMEOUT_S: Final = 10.0
ADDRESS_TIMEOUT_S: Final = 4.0
"""For one address of several."""
IDLE_S: Final = 900.0
"""A tunnel without a byte for so long is ended."""


class TunnelEnd(asyncio.Protocol):
    """One side. `moved` is told how many bytes came."""

    def __init__(self, moved: Callable[[int], None]) -> None:
        self._moved = moved
        self._transport: asyncio.Transport | None = None
        self._other: TunnelEnd | None = None
        self._finished = False
        self.ended = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection that it is the end of. It reads nothing until it is tied."""
        # Those of uvloop are none by their type.
        self._transport = cast("asyncio.Transport", transport)
        self._transport.pause_reading()

    def tie(self, other: "TunnelEnd") -> None:
        """From now on bytes flow, in both directions."""
        self._other, other._other = other, self
        for end in (self, other):
            if end._transport is not None:
                end._transport.resume_reading()

    def write(self, data: bytes) -> None:
        """Sends to whoever is at this end."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        """Hands on."""
        self._moved(len(data))
        assert self._other is not None
        self._other.write(data)

    def pause_writing(self) -> None:
        """This end takes no more: the other side is not read."""
        if self._other is not None and self._other._transport is not None:
            self._other._transport.pause_reading()

    def resume_writing(self) -> None:
        """This end takes more."""
        if self._other is not None and self._other._transport is not None:
            self._other._transport.resume_reading()

    def eof_received(self) -> bool:
        """Whoever is at this end sends no more, but may still be sent to."""
        self._finished = True
        other = self._other
        if other is None or other._transport is None or other._finished:
            return False
        if not other._transport.is_closing():
            other._transport.write_eof()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone, and with it the other."""
        self._transport = None
        self.ended.set()
        if self._other is not None:
            self._other.close()

    def close(self) -> None:
        """Ends the connection once what was written has gone out."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Ends it at once."""
        if self._transport is not None:
            self._transport.abort()


class Idle:
    """Notes that something moved, and ends a wait for nothing."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._last_s = self._loop.time()

    def moved(self) -> None:
        """A byte came."""
        self._last_s = self._loop.time()

    async def wait_for(self, ended: asyncio.Event) -> bool:
        """Waits until the event; False if nothing moved for too long before it."""
        while not ended.is_set():
            left_s = self._last_s + self._seconds - self._loop.time()
            if left_s <= 0:
                return False
            try:
                async with asyncio.timeout(left_s):
                    await ended.wait()
            except TimeoutError:
                continue
        return True


async def dial(
    resolver: AbstractResolver, host: str, port: int, end: Callable[[], TunnelEnd]
) -> TunnelEnd:
    """Connects to the first address of a host that answers, among those that the resolver lets
    pass. Raises OSError (TimeoutError too)."""
    loop = asyncio.get_running_loop()
    failure: OSError | None = None
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        for place in await resolver.resolve(host, port, socket.AF_UNSPEC):
            try:
                async with asyncio.timeout(ADDRESS_TIMEOUT_S):
                    _, made = await loop.create_connection(end, place["host"], place["port"])
            except OSError as error:
                failure = failure or error
            else:
                return made
    raise failure or OSError(f"{host} has no address")
