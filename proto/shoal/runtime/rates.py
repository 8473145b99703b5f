"""Token buckets: how fast payload bytes may flow.

Works in debt rather than in slices: a whole piece is taken at once, and whoever took it waits
until the debt is paid. So a piece is never cut to fit a rate, and the long-run rate is exact as
long as everybody waits as told. Counting is in integers of byte-nanoseconds, so nothing drifts.
Decides nothing about who goes first: `acquire` is first come, first served, and where many share a
limit, `shoal.runtime.turns` says whose turn it is.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from shoal.runtime.clock import Clock
from shoal.wire.limits import MILLISECOND_NS, SECOND_NS

BURST_MS_DEFAULT: Final = 100
"""Idle time that is remembered: longer bursts would make a measured rate a lie."""


class RateLimiter:
    """One direction's budget in bytes per second; 0 stands for "not limited".

    The balance rises with time up to `burst_ms` worth of the rate and may fall below zero without
    a bound; a caller that waits as told brings it back to zero at the right moment. Not
    thread-safe: it belongs to the event loop's thread. `sleep` is injected for tests.
    """

    def __init__(
        self,
        rate_bytes_s: int,
        clock: Clock,
        burst_ms: int = BURST_MS_DEFAULT,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        assert rate_bytes_s >= 0
        assert burst_ms >= 0
        self._rate_bytes_s = rate_bytes_s
        self._burst_ns = burst_ms * MILLISECOND_NS
        self._clock = clock
        self._sleep = sleep
        # The moment at which the balance is zero, in nanoseconds times the rate: a balance of b
        # bytes is b / rate seconds of time, and this scale keeps the division out of the books.
        self._zero_at = (clock.now_ns() - self._burst_ns) * rate_bytes_s

    @property
    def rate_bytes_s(self) -> int:
        """The configured rate in bytes per second, 0 for "not limited"."""
        return self._rate_bytes_s

    @property
    def burst_bytes(self) -> int:
        """The most that idle time leaves to be taken at once."""
        return self._rate_bytes_s * self._burst_ns // SECOND_NS

    def set_rate(self, rate_bytes_s: int) -> None:
        """Changes the rate from now on. A debt keeps its bytes; a credit is cut to the burst."""
        assert rate_bytes_s >= 0
        balance_bytes = self.balance_bytes()
        self._rate_bytes_s = rate_bytes_s
        self._zero_at = self._clock.now_ns() * rate_bytes_s - balance_bytes * SECOND_NS
        self._forget_idle_time(self._clock.now_ns())

    def balance_bytes(self) -> int:
        """Bytes that could be taken now without waiting; negative for a debt. 0 if unlimited."""
        if self._rate_bytes_s == 0:
            return 0
        now_ns = self._clock.now_ns()
        self._forget_idle_time(now_ns)
        return (now_ns * self._rate_bytes_s - self._zero_at) // SECOND_NS

    def try_take(self, count: int) -> float:
        """Takes so many bytes, into debt if need be, and returns the seconds to wait until the
        debt is paid (0.0 if there is none)."""
        assert count >= 0
        if self._rate_bytes_s == 0:
            return 0.0
        now_ns = self._clock.now_ns()
        self._forget_idle_time(now_ns)
        self._zero_at += count * SECOND_NS
        debt = self._zero_at - now_ns * self._rate_bytes_s
        return debt / (self._rate_bytes_s * SECOND_NS) if debt > 0 else 0.0

    def give_back(self, count: int) -> None:
        """Bytes that were taken and did not flow."""
        assert count >= 0
        self._zero_at -= count * SECOND_NS

    async def acquire(self, count: int) -> None:
        """Takes so many bytes and sleeps until the debt is paid. Fair: a later caller's debt ends
        later. A caller that is cancelled while it waits has still spent its bytes."""
        wait_s = self.try_take(count)
        if wait_s > 0.0:
            await self._sleep(wait_s)

    def _forget_idle_time(self, now_ns: int) -> None:
        earliest = (now_ns - self._burst_ns) * self._rate_bytes_s
        if self._zero_at < earliest:
            self._zero_at = earliest
