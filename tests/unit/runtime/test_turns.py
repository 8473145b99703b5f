"""Turns at a rate limit: no stretch of time lets through more than burst and rate, and all get
their share."""

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shoal.runtime.clock import MonotonicClock
from shoal.runtime.rates import RateLimiter
from shoal.runtime.turns import TURN_BYTES_MIN, Turns
from shoal.wire.limits import KIB, MILLISECOND_NS, SECOND_NS
from tests.fakes.virtual_time import VirtualLoop, run_virtual

MB = 1_000_000


class Takers:
    """So many takers that always want more, and a record of what they got."""

    def __init__(self, loop: VirtualLoop, turns: Turns, count: int, ask_bytes: int) -> None:
        self.loop = loop
        self.turns = turns
        self.ask_bytes = ask_bytes
        self.moved: list[tuple[int, int]] = []
        """(when in nanoseconds, bytes)"""
        self.of_each = [0] * count
        self.unused_bytes: Callable[[int], int] = lambda paid: 0

    def start(self) -> None:
        for number in range(len(self.of_each)):
            self.ask(number)

    def ask(self, number: int) -> None:
        paid = self.turns.take(self.ask_bytes)
        if paid:
            self.move(number, paid)
            self.loop.call_soon(self.ask, number)
        else:
            self.turns.wait(self.ask_bytes, lambda paid: self.turn(number, paid))

    def turn(self, number: int, paid: int) -> None:
        self.move(number, paid)
        self.ask(number)

    def move(self, number: int, paid: int) -> None:
        used = paid - self.unused_bytes(paid)
        self.turns.settle(paid, used)
        self.moved.append((self.loop.now_ns(), used))
        self.of_each[number] += used

    @property
    def total_bytes(self) -> int:
        return sum(self.of_each)


def most_in(moved: list[tuple[int, int]], window_ns: int) -> int:
    """The most bytes in any stretch of time of that length."""
    most = inside = first = 0
    for when_ns, count in moved:
        inside += count
        while moved[first][0] < when_ns - window_ns:
            inside -= moved[first][1]
            first += 1
        most = max(most, inside)
    return most


async def nothing_for(seconds: float) -> None:
    """Lets virtual time go by."""
    await asyncio.sleep(seconds)


@pytest.mark.parametrize("count", [1, 8, 24, 200])
@pytest.mark.parametrize("rate", [100_000, 25 * MB, 1_000 * MB])
def test_burst_and_rate_bound_every_stretch_of_time(count: int, rate: int) -> None:
    loop = VirtualLoop()
    takers = Takers(loop, Turns(RateLimiter(rate, loop)), count, 256 * KIB)

    async def scenario() -> None:
        takers.start()
        await nothing_for(1.0)
        loop.stall(0.3)  # Nobody may make up for more of it than the burst.
        await nothing_for(1.0)

    run_virtual(loop, scenario())
    assert most_in(takers.moved, 100 * MILLISECOND_NS) <= 2 * rate // 10
    # All of the rate is used, but for what the stall lost beyond the burst.
    assert takers.total_bytes >= 2.05 * rate
    # All get the same, but for the few that the first burst was enough for.
    assert max(takers.of_each) - min(takers.of_each) <= 256 * KIB + max(
        16 * KIB, rate * 80 // 1_000 // count
    )


@given(
    count=st.integers(1, 20),
    rate=st.integers(50_000, 20 * MB),
    ask_bytes=st.integers(10_000, 300_000),
    unused_percent=st.integers(0, 75),
    stalls=st.lists(st.integers(0, 400), max_size=5),
)
@example(count=1, rate=93_870, ask_bytes=10_000, unused_percent=1, stalls=[])
def test_what_was_not_used_is_given_to_others(
    count: int, rate: int, ask_bytes: int, unused_percent: int, stalls: list[int]
) -> None:
    loop = VirtualLoop()
    takers = Takers(loop, Turns(RateLimiter(rate, loop)), count, ask_bytes)
    takers.unused_bytes = lambda paid: paid * unused_percent // 100

    async def scenario() -> None:
        takers.start()
        for stall_ms in stalls:
            await nothing_for(0.02)
            loop.stall(stall_ms / 1_000)
        await nothing_for(0.2)

    run_virtual(loop, scenario())
    for window_ms in (1, 10, 100):
        allowed = rate * (window_ms + 100) // 1_000
        assert most_in(takers.moved, window_ms * MILLISECOND_NS) <= allowed + TURN_BYTES_MIN
    # What is paid for when the time is over has not moved yet.
    assert takers.total_bytes >= rate * 0.2 - TURN_BYTES_MIN


def test_small_turns_come_before_long() -> None:
    """What is urgent on one connection waits for one round of the others, not for their bulk."""
    loop = VirtualLoop()
    takers = Takers(loop, Turns(RateLimiter(25 * MB, loop)), 24, 256 * KIB)

    async def scenario() -> float:
        takers.start()
        await nothing_for(1.0)
        asked_s = loop.time()
        assert await takers.turns.acquire(100) == 100
        return loop.time() - asked_s

    assert run_virtual(loop, scenario()) < 0.1


def test_without_a_limit_nobody_waits() -> None:
    turns = Turns(RateLimiter(0, MonotonicClock()))
    assert turns.take(10**12) == 10**12
    turns.settle(10**12, 0)
    assert turns.take(5) == 5


def test_a_limit_without_a_burst_still_moves() -> None:
    loop = VirtualLoop()
    takers = Takers(loop, Turns(RateLimiter(1 * MB, loop, burst_ms=0)), 3, 64 * KIB)

    async def scenario() -> None:
        takers.start()
        await nothing_for(1.0)

    run_virtual(loop, scenario())
    assert takers.total_bytes == pytest.approx(1 * MB, rel=0.02)


def test_who_gives_up_has_paid_nothing() -> None:
    loop = VirtualLoop()
    limiter = RateLimiter(1 * MB, loop)
    turns = Turns(limiter)

    async def scenario() -> None:
        assert turns.take(200 * KIB) == 80_000
        assert await turns.acquire(60_000) == 60_000
        assert await turns.acquire(20_000) == 20_000
        waiting = [asyncio.create_task(turns.acquire(50_000)) for _ in range(3)]
        await asyncio.sleep(0)
        assert turns.waiting == 3
        assert turns.take(1) == 0
        waiting[0].cancel()
        await asyncio.wait(waiting[:1])
        assert turns.waiting == 2
        assert await waiting[1] == 40_000
        # A turn that came in the same moment as the cancel.
        turn_came = loop.create_future()

        def my_turn(paid: int) -> None:
            turns.settle(paid, 0)
            waiting[2].cancel()
            turn_came.set_result(None)

        turns.wait(10_000, my_turn)
        await turn_came
        await asyncio.wait(waiting)
        await nothing_for(1.0)
        assert limiter.balance_bytes() == 100_000

    run_virtual(loop, scenario())


def test_the_queue_goes_on_after_an_error_in_a_turn() -> None:
    loop = VirtualLoop()
    turns = Turns(RateLimiter(1 * MB, loop))
    seen: list[object] = []
    loop.set_exception_handler(lambda _loop, context: seen.append(context["exception"]))

    def fail(_paid: int) -> None:
        raise ValueError("a defect")

    async def scenario() -> int:
        while turns.take(100_000):
            pass
        turns.wait(1_000, fail)
        return await turns.acquire(1_000)

    assert run_virtual(loop, scenario()) == 1_000
    assert [type(error) for error in seen] == [ValueError]


def test_time_of_a_turn_is_the_time_of_its_bytes() -> None:
    loop = VirtualLoop()
    limiter = RateLimiter(10 * MB, loop)
    turns = Turns(limiter)

    async def scenario() -> int:
        while turns.take(100_000):
            pass
        started_ns = loop.now_ns()
        for _ in range(100):
            assert await turns.acquire(50_000) == 50_000
        return loop.now_ns() - started_ns

    assert run_virtual(loop, scenario()) == pytest.approx(SECOND_NS // 2, rel=0.02)
