"""Token buckets: exact in the long run, bounded bursts, first come first served."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.runtime.rates import RateLimiter
from shoal.wire.limits import MILLISECOND_NS, SECOND_NS

MB = 1_000_000


class ManualClock:
    """Time that moves when told, or when somebody sleeps on it."""

    def __init__(self) -> None:
        self.ns = 12_345

    def now_ns(self) -> int:
        return self.ns

    def advance(self, seconds: float) -> None:
        self.ns += round(seconds * SECOND_NS)

    async def sleep(self, seconds: float) -> None:
        self.advance(seconds)


def test_zero_is_not_limited() -> None:
    limiter = RateLimiter(0, ManualClock())
    assert limiter.try_take(10**15) == 0.0


def test_a_fresh_bucket_holds_one_burst_and_no_more() -> None:
    clock = ManualClock()
    limiter = RateLimiter(25 * MB, clock)
    assert limiter.balance_bytes() == 2_500_000
    clock.advance(3600)
    assert limiter.balance_bytes() == 2_500_000


def test_taking_more_than_there_is_makes_a_debt_to_wait_for() -> None:
    clock = ManualClock()
    limiter = RateLimiter(10 * MB, clock)
    assert limiter.try_take(1 * MB) == 0.0
    assert limiter.try_take(5 * MB) == pytest.approx(0.5)
    assert limiter.balance_bytes() == -5 * MB
    clock.advance(0.2)
    assert limiter.try_take(0) == pytest.approx(0.3)


async def test_the_long_run_rate_is_exact() -> None:
    clock = ManualClock()
    limiter = RateLimiter(7_777_777, clock, sleep=clock.sleep)
    start_ns = clock.ns
    total = 0
    for piece in range(2_000):
        count = 262_144 + piece
        await limiter.acquire(count)
        total += count
    elapsed_s = (clock.ns - start_ns) / SECOND_NS
    # The burst that was there at the start comes on top, to the byte.
    assert total - 777_777 == pytest.approx(7_777_777 * elapsed_s, abs=10)


async def test_late_wakers_do_not_lower_the_rate() -> None:
    clock = ManualClock()

    async def sleep_too_long(seconds: float) -> None:
        clock.advance(seconds + 0.015)

    limiter = RateLimiter(25 * MB, clock, sleep=sleep_too_long)
    start_ns = clock.ns
    for _ in range(1_000):
        await limiter.acquire(1 * MB)
    elapsed_s = (clock.ns - start_ns) / SECOND_NS
    assert 1_000 * MB / elapsed_s == pytest.approx(25 * MB, rel=0.005)


@given(
    rate=st.integers(1, 10**10),
    burst_ms=st.integers(0, 100),
    steps=st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**8)), max_size=50),
)
def test_no_window_lets_more_through_than_rate_and_burst(
    rate: int, burst_ms: int, steps: list[tuple[int, int]]
) -> None:
    """Whoever waits as told: bytes let through since the start <= burst + rate x time."""
    clock = ManualClock()
    limiter = RateLimiter(rate, clock, burst_ms)
    start_ns = clock.ns
    taken = 0
    for idle_ns, count in steps:
        clock.ns += idle_ns
        clock.ns += -(-round(limiter.try_take(count) * SECOND_NS * 1_000) // 1_000) + 1
        taken += count
        allowed = rate * (clock.ns - start_ns + burst_ms * MILLISECOND_NS)
        assert taken * SECOND_NS <= allowed * (1 + 1e-9) + rate


def test_a_new_rate_counts_from_now_on() -> None:
    clock = ManualClock()
    limiter = RateLimiter(10 * MB, clock)
    limiter.try_take(6 * MB)
    limiter.set_rate(50 * MB)
    assert limiter.try_take(0) == pytest.approx(0.1)
    clock.advance(10)
    limiter.set_rate(1 * MB)
    assert limiter.balance_bytes() == 100_000
    limiter.set_rate(0)
    assert limiter.try_take(10**12) == 0.0
    limiter.set_rate(1 * MB)
    assert limiter.balance_bytes() == 0


def test_first_come_first_served() -> None:
    """Every taker waits longer than all before it, however little it takes."""
    limiter = RateLimiter(1 * MB, ManualClock(), burst_ms=0)
    waits = [limiter.try_take(count) for count in (5 * MB, 1, 10, 1 * MB)]
    assert waits == sorted(waits)
    assert waits[0] == pytest.approx(5.0)


async def test_a_cancelled_taker_has_spent_its_bytes() -> None:
    clock = ManualClock()
    limiter = RateLimiter(1 * MB, clock, burst_ms=0)
    task = asyncio.ensure_future(limiter.acquire(3 * MB))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert limiter.try_take(0) == pytest.approx(3.0)
