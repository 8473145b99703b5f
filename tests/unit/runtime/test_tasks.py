"""Threads beside the loop, and background coroutines under watch."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from shoal.runtime.tasks import InlineOffload, Offload, Supervisor


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


def add(left: int, right: int) -> int:
    return left + right


async def some_turns() -> None:
    """Lets the loop run what is due."""
    for _ in range(5):
        await asyncio.sleep(0)


def fail() -> None:
    raise OSError(28, "No space left on device")


async def test_offload_runs_elsewhere_and_returns(pool: ThreadPoolExecutor) -> None:
    offload = Offload(pool)
    assert await offload(add, 2, 3) == 5
    assert await offload(threading.get_ident) != threading.get_ident()


async def test_offload_raises_what_the_call_raises(pool: ThreadPoolExecutor) -> None:
    with pytest.raises(OSError, match="No space left"):
        await Offload(pool)(fail)


async def test_inline_offload_runs_here() -> None:
    offload = InlineOffload()
    assert await offload(threading.get_ident) == threading.get_ident()
    with pytest.raises(OSError, match="No space left"):
        await offload(fail)


async def test_offload_bounds_what_waits_in_the_pool(pool: ThreadPoolExecutor) -> None:
    offload = Offload(pool, waiting_max=3)
    gate = threading.Event()
    both_run = threading.Barrier(3)

    def wait(number: int) -> int:
        if number < 2:
            both_run.wait(10)
        gate.wait(10)
        return number

    calls = [asyncio.ensure_future(offload(wait, number)) for number in range(10)]
    await asyncio.to_thread(both_run.wait, 10)
    # Two run, one waits in the pool, the others wait outside it.
    assert pool._work_queue.qsize() <= 1
    gate.set()
    assert await asyncio.gather(*calls) == list(range(10))


async def test_supervisor_keeps_and_forgets_tasks() -> None:
    supervisor = Supervisor()
    done = asyncio.Event()
    task = supervisor.spawn(done.wait(), "waiter")
    assert len(supervisor) == 1
    assert not task.done()
    done.set()
    await some_turns()
    assert len(supervisor) == 0
    assert task.done()
    assert supervisor.failure is None


async def test_a_crash_ends_wait_failed_with_its_error() -> None:
    supervisor = Supervisor()

    async def crash() -> None:
        raise ZeroDivisionError("a programmer's error")

    supervisor.spawn(crash(), "crash")
    with pytest.raises(ZeroDivisionError):
        await supervisor.wait_failed()
    assert isinstance(supervisor.failure, ZeroDivisionError)
    await supervisor.close()


async def test_one_task_can_be_cancelled_alone() -> None:
    supervisor = Supervisor()
    first = supervisor.spawn(asyncio.Event().wait(), "first")
    second = supervisor.spawn(asyncio.Event().wait(), "second")
    first.cancel()
    await some_turns()
    assert first.done()
    assert not second.done()
    await supervisor.close()
    assert second.done()


async def test_the_first_failure_is_the_one_told() -> None:
    supervisor = Supervisor()
    supervisor.fail(ValueError("first"))
    supervisor.fail(KeyError("second"))
    with pytest.raises(ValueError, match="first"):
        await supervisor.wait_failed()


async def test_close_cancels_everything_and_waits_for_clean_up() -> None:
    supervisor = Supervisor()
    cleaned: list[int] = []

    async def work(number: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append(number)

    for number in range(5):
        supervisor.spawn(work(number), f"work {number}")
    await asyncio.sleep(0)
    await supervisor.close()
    await supervisor.close()
    assert sorted(cleaned) == [0, 1, 2, 3, 4]
    assert len(supervisor) == 0
    assert supervisor.failure is None


async def test_nothing_starts_after_close() -> None:
    supervisor = Supervisor()
    await supervisor.close()
    with pytest.raises(RuntimeError, match="closed"):
        supervisor.spawn(asyncio.sleep(0), "late")
