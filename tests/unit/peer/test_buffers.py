"""The budget of memory for pieces: never exceeded, reused, handed out in order."""

import asyncio

import pytest

from peer.shell.buffers import BufferPool
from shoal.wire.limits import KIB


def test_a_buffer_is_as_long_as_asked_and_unusable_once_given_back() -> None:
    pool = BufferPool(64 * KIB)
    buffer = pool.try_acquire(5000)
    assert buffer is not None
    view = buffer.view
    assert (len(view), pool.used_bytes) == (5000, 8 * KIB)
    buffer.release()
    assert (pool.used_bytes, pool.allocated_bytes) == (0, 8 * KIB)
    with pytest.raises(ValueError, match="released"):
        view[0] = 1
    with pytest.raises(AssertionError, match="released once"):
        buffer.release()


def test_the_budget_holds_and_memory_is_reused() -> None:
    pool = BufferPool(16 * KIB)
    for length in (4 * KIB, 8 * KIB, 16 * KIB, 8 * KIB):
        buffer = pool.try_acquire(length)
        assert buffer is not None
        assert pool.allocated_bytes <= 16 * KIB
        buffer.release()
    held = pool.try_acquire(16 * KIB)
    assert held is not None
    assert pool.try_acquire(1) is None


def test_a_request_beyond_the_budget_is_served_alone() -> None:
    pool = BufferPool(4 * KIB)
    large = pool.try_acquire(64 * KIB)
    assert large is not None
    assert pool.try_acquire(1) is None
    large.release()
    assert pool.allocated_bytes <= 4 * KIB
    assert pool.try_acquire(1) is not None


async def test_waiters_are_served_in_order_and_a_cancelled_one_holds_up_nobody() -> None:
    pool = BufferPool(8 * KIB)
    held = await pool.acquire(8 * KIB)
    large = asyncio.ensure_future(pool.acquire(8 * KIB))
    small = asyncio.ensure_future(pool.acquire(4 * KIB))
    await asyncio.sleep(0)
    assert pool.try_acquire(1) is None
    large.cancel()
    held.release()
    (await small).release()
    assert large.cancelled()
    assert pool.used_bytes == 0


async def test_a_waiter_cancelled_as_it_is_served_gives_its_buffer_back() -> None:
    pool = BufferPool(4 * KIB)
    held = await pool.acquire(1)
    waiter = asyncio.ensure_future(pool.acquire(1))
    await asyncio.sleep(0)
    held.release()
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert pool.used_bytes == 0
