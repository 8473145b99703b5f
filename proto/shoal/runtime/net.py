"""Sockets: how they listen, how they are tuned, and how one of several addresses is found.

Plain TCP helpers for connections that a daemon owns itself. Decides which of several attempts
wins (the first that succeeds); knows nothing of what is spoken over a connection.
"""

import asyncio
import errno
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

from shoal.wire.control import Address
from shoal.wire.errors import ShoalError, UsageError
from shoal.wire.limits import KIB

T = TypeVar("T")

BACKLOG: Final = 512
"""Connections not accepted yet: a whole swarm may come at once."""

STAGGER_S: Final = 0.25
"""Head start of an address over the next one: the "Connection Attempt Delay" that RFC 8305,
section 8, recommends."""

KEEPALIVE_IDLE_S: Final = 30
KEEPALIVE_INTERVAL_S: Final = 10
KEEPALIVE_PROBES: Final = 3
USER_TIMEOUT_MS: Final = 60_000
"""Sent bytes that are not acknowledged for so long end a connection: its host is gone."""

UNSENT_BYTES_MAX: Final = 512 * KIB
"""What the kernel keeps unsent per connection: enough to keep a link busy between two turns of the
event loop, and little enough that a small frame never waits behind megabytes."""


class AllFailed(ShoalError):
    """No attempt of a race succeeded. `errors` holds what each of them raised, in order."""

    def __init__(self, errors: list[ShoalError]) -> None:
        super().__init__("; ".join(str(error) for error in errors) or "there is no address to try")
        self.errors = errors


def family_of(address: Address) -> socket.AddressFamily:
    """IPv6 for an address with a colon, else IPv4."""
    return socket.AF_INET6 if ":" in address.ip else socket.AF_INET


def new_socket(address: Address) -> socket.socket:
    """A non-blocking TCP socket of the address' family. Raises OSError."""
    made = socket.socket(family_of(address), socket.SOCK_STREAM)
    made.settimeout(0)
    return made


def tune(connected: socket.socket) -> None:
    """Sets what every connection between hosts has: no delay of small frames, little unsent in
    the kernel, and a dead other side is noticed. Buffers are left to the kernel, which sizes them
    by what the path can carry. Raises OSError."""
    option = connected.setsockopt
    option(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    option(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES_MAX)
    option(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    option(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    option(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    option(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    option(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)


def listen(address: Address) -> socket.socket:
    """A non-blocking listening socket; port 0 stands for any free one. IPv6 listens for IPv6
    alone, so that both families can be listened on side by side. Raises UsageError."""
    try:
        made = new_socket(address)
    except OSError as error:
        raise UsageError(f"cannot listen on {show(address)}: {why(error)}") from error
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if made.family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((address.ip, address.port))
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        hint = ""
        if error.errno == errno.EADDRINUSE:
            hint = ": another process has it; choose another port or 0 for any"
        elif error.errno == errno.EADDRNOTAVAIL:
            hint = ": this machine has no such address"
        raise UsageError(f"cannot listen on {show(address)}: {why(error)}{hint}") from error
    return made


def local_address(bound: socket.socket) -> Address:
    """Where a socket is bound."""
    name = bound.getsockname()
    return Address(ip=name[0], port=name[1])


def show(address: Address) -> str:
    """An address as people write it."""
    return f"[{address.ip}]:{address.port}" if ":" in address.ip else f"{address.ip}:{address.port}"


def why(error: OSError) -> str:
    """The system's own words for an error, which event loops replace by others."""
    return os.strerror(error.errno) if error.errno else error.strerror or type(error).__name__


def interleave(addresses: Sequence[Address]) -> list[Address]:
    """Addresses in the given order with the families taking turns (RFC 8305, section 4): if one
    family is broken, the second attempt already uses the other."""
    first = [one for one in addresses if family_of(one) == family_of(addresses[0])]
    second = [one for one in addresses if family_of(one) != family_of(addresses[0])]
    mixed: list[Address] = []
    for place in range(max(len(first), len(second))):
        mixed += first[place : place + 1] + second[place : place + 1]
    return mixed


async def race(
    attempts: Sequence[Callable[[], Awaitable[T]]],
    discard: Callable[[T], None],
    *,
    stagger_s: float = STAGGER_S,
) -> T:
    """The result of the first attempt that succeeds. The next one starts when one fails or
    `stagger_s` have passed; the losers are cancelled, and what they still gained is given to
    `discard`. An attempt fails by raising a ShoalError. Raises AllFailed (RFC 8305, section 5).
    """
    return await _Race(attempts, discard, stagger_s).run()


class _Race(Generic[T]):
    def __init__(
        self,
        attempts: Sequence[Callable[[], Awaitable[T]]],
        discard: Callable[[T], None],
        stagger_s: float,
    ) -> None:
        self._attempts = attempts
        self._discard = discard
        self._stagger_s = stagger_s
        self._running: dict[asyncio.Task[T], None] = {}
        self._errors: list[ShoalError] = []

    async def run(self) -> T:
        try:
            for attempt in self._attempts:
                self._running[asyncio.ensure_future(_as_coroutine(attempt))] = None
                last = attempt is self._attempts[-1]
                failures = len(self._errors)
                while self._running and (last or len(self._errors) == failures):
                    done, _ = await asyncio.wait(
                        self._running,
                        timeout=None if last else self._stagger_s,
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                    for task in done:
                        if self._won(task):
                            return task.result()
                    if not done:
                        break
            raise AllFailed(self._errors)
        finally:
            await self._end_losers()

    def _won(self, task: asyncio.Task[T]) -> bool:
        error = task.exception()
        del self._running[task]
        if error is None:
            return True
        if not isinstance(error, ShoalError):
            raise error
        self._errors.append(error)
        return False

    async def _end_losers(self) -> None:
        losers = list(self._running)
        for task in losers:
            task.cancel()
        for outcome in await asyncio.gather(*losers, return_exceptions=True):
            if not isinstance(outcome, BaseException):
                self._discard(outcome)


async def _as_coroutine(attempt: Callable[[], Awaitable[T]]) -> T:
    return await attempt()
