"""Turns at a rate limit: many connections share one budget fairly.

The limiter works in debt, so a connection that moved bytes first and paid later could let a
hundred others do the same in one turn of the loop. Here bytes are paid for before they move, a
quantum at a time, and connections take turns at what was paid for, first come, first served.
Decides who goes next; moves no bytes itself.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from shoal.runtime.rates import RateLimiter
from shoal.wire.limits import KIB

QUANTUM_BYTES_MAX: Final = 256 * KIB
"""Most bytes that one connection moves in one turn."""

QUANTUM_BYTES_MIN: Final = 16 * KIB
"""Less would cost more processor time than it makes a slow link smooth."""

QUANTA_PER_S: Final = 100
"""A quantum is this part of a second's bytes: far below the bursts that the limiter allows."""


class Pacer:
    """The turns of one direction. Belongs to the event loop's thread."""

    def __init__(self, limiter: RateLimiter, loop: asyncio.AbstractEventLoop) -> None:
        self._limiter = limiter
        self._loop = loop
        self._paid_bytes = 0
        self._serving = False
        self._timer: asyncio.TimerHandle | None = None
        # Bounded: a connection is in here once per direction.
        self._waiting: deque[Turn] = deque()

    def close(self) -> None:
        """Wakes nobody any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._waiting.clear()

    def allowance(self, turn: "Turn", wanted_bytes: int) -> int:
        """For `Turn` alone."""
        if not self._limiter.rate_bytes_s:
            return wanted_bytes
        if (self._waiting and not self._serving) or not self._pay():
            turn.waiting = True
            self._waiting.append(turn)
            return 0
        return min(wanted_bytes, self._paid_bytes, QUANTUM_BYTES_MAX)

    def used(self, count: int) -> None:
        """For `Turn` alone."""
        if self._limiter.rate_bytes_s:
            self._paid_bytes -= count

    def _pay(self) -> bool:
        if self._paid_bytes > 0:
            return True
        if self._timer is not None:
            return False
        rate_bytes_s = self._limiter.rate_bytes_s
        quantum = max(QUANTUM_BYTES_MIN, min(QUANTUM_BYTES_MAX, rate_bytes_s // QUANTA_PER_S))
        # What moved unpaid (the first bytes of a payload come with its header) is paid for too.
        quantum -= self._paid_bytes
        wait_s = self._limiter.try_take(quantum)
        if wait_s <= 0.0:
            self._paid_bytes += quantum
            return True
        self._timer = self._loop.call_later(wait_s, self._paid, quantum)
        return False

    def _paid(self, quantum: int) -> None:
        self._timer = None
        self._paid_bytes += quantum
        self._serving = True
        try:
            for _ in range(len(self._waiting)):
                if not self._waiting or self._paid_bytes <= 0:
                    break
                turn = self._waiting.popleft()
                turn.waiting = False
                turn.wake()
        finally:
            self._serving = False
        if self._waiting and self._timer is None:
            self._go_on()

    def _go_on(self) -> None:
        # Somebody still waits and no payment is on its way: make one, or go on with what is left.
        if self._pay():
            self._timer = self._loop.call_later(0, self._paid, 0)


class Turn:
    """The place of one direction of one connection in the queue. `wake` is called when bytes may
    move again after `allowance` returned 0."""

    __slots__ = ("_pacer", "waiting", "wake")

    def __init__(self, pacer: Pacer, wake: Callable[[], None]) -> None:
        self._pacer = pacer
        self.wake = wake
        self.waiting = False

    def allowance(self, wanted_bytes: int) -> int:
        """How many bytes may move now; 0: not before `wake`."""
        return 0 if self.waiting else self._pacer.allowance(self, wanted_bytes)

    def used(self, count: int) -> None:
        """So many bytes did move."""
        self._pacer.used(count)
