"""Turns at a rate limit: whose bytes may move next, and how many of them.

Bytes are paid before they move. Whoever finds the budget empty waits in one queue for all, first
come, first served, and gets a small part in its turn. Nothing is reserved for those that wait, so
any stretch of time lets through the limiter's burst and its rate and no more, however many
connections there are and however late the event loop is. What a taker paid and could not use it
gives back at once. Not thread-safe: it belongs to the event loop's thread. Decides nothing else.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from shoal.runtime.rates import RateLimiter
from shoal.wire.limits import KIB, SECOND_NS

ROUND_NS: Final = 80_000_000
"""Time in which everybody who waits has a turn, where turns are not too small for that: what is
small and urgent on one connection waits no longer for the bulk on all the others."""

TURN_BYTES_USUAL: Final = 16 * KIB
"""A turn has at least so much: smaller ones cost more system calls than they are worth."""

TURN_BYTES_MIN: Final = 4 * KIB
"""The same where even the burst is smaller."""

PAUSE_S: Final = 0.004
"""One timer serves all turns of so long: a timer for each would cost more than the bytes."""


class Turn:
    """A place in the queue. `on_turn(paid)` is called once, unless it was cancelled before."""

    def __init__(self, owner: "Turns", count: int, on_turn: Callable[[int], None]) -> None:
        self._owner = owner
        self.count = count
        self.on_turn = on_turn

    def cancel(self) -> None:
        """Leaves the queue. Does nothing for a turn that came."""
        self._owner.forget(self)


class Turns:
    """Shares one limiter among everybody who moves bytes in one direction."""

    def __init__(self, limiter: RateLimiter) -> None:
        self._limiter = limiter
        self._waiting: dict[Turn, None] = {}
        self._timer: asyncio.Handle | None = None
        self._calling = False

    @property
    def waiting(self) -> int:
        """How many wait for a turn."""
        return len(self._waiting)

    def take(self, count: int) -> int:
        """Pays for up to so many bytes. Returns for how many; 0: others are first, or the budget
        is used up, so `wait` for a turn."""
        if self._waiting and self._limiter.rate_bytes_s:
            return 0
        return self._grant(count)

    def wait(self, count: int, on_turn: Callable[[int], None]) -> Turn:
        """Asks for a turn of up to so many bytes. `on_turn` is told how many are paid."""
        assert count > 0
        turn = Turn(self, count, on_turn)
        self._waiting[turn] = None
        self._plan()
        return turn

    async def acquire(self, count: int) -> int:
        """Pays for up to so many bytes, after waiting for a turn if need be; returns for how many.
        A caller that is cancelled has paid nothing."""
        paid = self.take(count)
        if paid:
            return paid
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def on_turn(paid: int) -> None:
            if future.done():
                self.settle(paid, 0)
            else:
                future.set_result(paid)

        turn = self.wait(count, on_turn)
        try:
            return await future
        except asyncio.CancelledError:
            turn.cancel()
            if not future.cancelled():
                self.settle(future.result(), 0)
            raise

    def settle(self, paid: int, used: int) -> None:
        """Gives back what was paid and not used; pays what was used beyond."""
        if used < paid:
            self._limiter.give_back(paid - used)
        elif used > paid:
            self._limiter.try_take(used - paid)

    def forget(self, turn: Turn) -> None:
        """Takes a place out of the queue, if it is still there."""
        self._waiting.pop(turn, None)

    # ------------------------------------------------------------ turns

    def _grant(self, count: int) -> int:
        limiter = self._limiter
        if not limiter.rate_bytes_s:
            return count
        count = min(count, self._turn_bytes())
        if limiter.balance_bytes() < min(count, limiter.burst_bytes):
            return 0
        limiter.try_take(count)
        return count

    def _turn_bytes(self) -> int:
        share = self._limiter.rate_bytes_s * ROUND_NS // SECOND_NS // max(1, len(self._waiting))
        return max(TURN_BYTES_MIN, min(self._limiter.burst_bytes, max(TURN_BYTES_USUAL, share)))

    def _plan(self) -> None:
        """Comes back when the first in the queue can be paid."""
        if self._timer is not None or self._calling or not self._waiting:
            return
        loop = asyncio.get_running_loop()
        limiter = self._limiter
        first = next(iter(self._waiting))
        needed = min(first.count, self._turn_bytes(), limiter.burst_bytes)
        missing = needed - limiter.balance_bytes()
        if not limiter.rate_bytes_s or missing <= 0:
            self._timer = loop.call_soon(self._pay)
            return
        burst_s = limiter.burst_bytes / limiter.rate_bytes_s
        wait_s = max(missing / limiter.rate_bytes_s, min(PAUSE_S, burst_s / 4))
        self._timer = loop.call_later(wait_s, self._pay)

    def _pay(self) -> None:
        """Gives turns while the budget lasts, to each one at most: other work comes in between."""
        self._timer = None
        self._calling = True
        try:
            for _ in range(len(self._waiting)):
                if not self._waiting:
                    break
                turn = next(iter(self._waiting))
                paid = self._grant(turn.count)
                if not paid:
                    break
                del self._waiting[turn]
                turn.on_turn(paid)
        finally:
            self._calling = False
            self._plan()
