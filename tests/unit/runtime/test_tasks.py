"""Threads beside the loop, and background coroutines under watch."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from typing import Any

import pytest

from shoal.runtime.tasks import InlineOffload, Offload, Supervisor


@pytest.fixture
async def offload() -> AsyncIterator[Offload]:
    with closing(Offload(2)) as threads:
        yield threads


def add(left: int, right: int) -> int:
    return left + right


async def some_turns() -> None:
    """Lets the loop run what is due."""
    for _ in range(5):
        await asyncio.sleep(0)


def fail() -> None:
    raise OSError(28, "No space left on device")


async def test_offload_runs_elsewhere_and_returns(offload: Offload) -> None:
    assert await offload(add, 2, 3) == 5
    assert await offload(threading.get_ident) != threading.get_ident()


async def test_offload_raises_what_the_call_raises(offload: Offload) -> None:
    with pytest.raises(OSError, match="No space left"):
        await offload(fail)


async def test_offload_tells_of_an_end_on_the_loop_and_never_at_once(offload: Offload) -> None:
    told: asyncio.Queue[tuple[int | None, BaseException | None, int]] = asyncio.Queue()

    def ended(value: int | None, error: BaseException | None) -> None:
        told.put_nowait((value, error, threading.get_ident()))

    offload.start(ended, add, 2, 3)
    assert told.empty()
    assert await told.get() == (5, None, threading.get_ident())
    offload.start(ended, fail)
    value, error, _ = await told.get()
    assert value is None
    assert isinstance(error, OSError)


async def test_calls_that_end_together_wake_the_loop_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    offload = Offload(2)
    loop = asyncio.get_running_loop()
    planned: list[Callable[[], None]] = []
    monkeypatch.setattr(loop, "call_soon_threadsafe", lambda callback: planned.append(callback))
    values: list[int | None] = []
    for number in range(10):
        offload.start(lambda value, _: values.append(value), add, number, 0)
    offload.close()
    # Two threads may both see that nobody has woken the loop yet.
    assert 1 <= len(planned) <= 2
    planned[0]()
    assert sorted(value for value in values if value is not None) == list(range(10))
    assert offload.handed == 0


async def test_an_error_of_one_end_is_said_and_keeps_no_other_from_being_told() -> None:
    said: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))

    def broken(_value: int | None, _error: BaseException | None) -> None:
        raise ZeroDivisionError("a programmer's error")

    with closing(Offload(1)) as offload:
        offload.start(broken, add, 1, 1)
        assert await offload(add, 2, 3) == 5
    assert isinstance(said[0]["exception"], ZeroDivisionError)


async def test_an_error_of_an_end_is_handed_to_whoever_ends_the_daemon() -> None:
    supervisor = Supervisor()

    def broken(_value: int | None, _error: BaseException | None) -> None:
        raise ZeroDivisionError("a programmer's error")

    with closing(Offload(1, fail=supervisor.fail)) as offload:
        offload.start(broken, add, 1, 1)
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(supervisor.wait_failed(), 10)


async def test_offload_bounds_what_waits_for_its_threads() -> None:
    gate = threading.Event()
    both_run = threading.Barrier(3)

    def wait(number: int) -> int:
        if number < 2:
            both_run.wait(10)
        gate.wait(10)
        return number

    with closing(Offload(2, waiting_max=3)) as offload:
        calls = [asyncio.ensure_future(offload(wait, number)) for number in range(10)]
        await asyncio.to_thread(both_run.wait, 10)
        # Two run, one waits for a thread, the others wait behind it.
        assert offload.handed == 3
        gate.set()
        assert await asyncio.gather(*calls) == list(range(10))
        assert offload.handed == 0


async def test_a_cancelled_call_that_has_not_begun_never_runs() -> None:
    gate = threading.Event()
    ran: list[str] = []
    with closing(Offload(1, waiting_max=1)) as offload:
        running = asyncio.ensure_future(offload(gate.wait, 10))
        waiting = asyncio.ensure_future(offload(ran.append, "cancelled"))
        after = asyncio.ensure_future(offload(ran.append, "kept"))
        await some_turns()
        waiting.cancel()
        running.cancel()  # It runs on; what it returns is dropped.
        await some_turns()
        assert running.cancelled()
        gate.set()
        await after
    assert ran == ["kept"]


async def test_close_waits_for_every_call_and_lets_nothing_begin() -> None:
    ran: list[int] = []
    offload = Offload(1, waiting_max=2)
    for number in range(5):
        offload.start(lambda _, __: None, ran.append, number)
    offload.close()
    offload.close()
    assert ran == [0, 1, 2, 3, 4]
    with pytest.raises(RuntimeError, match="closed"):
        await offload(add, 1, 1)


async def test_inline_offload_tells_in_the_next_turn() -> None:
    told: list[tuple[int | None, BaseException | None]] = []
    InlineOffload().start(lambda value, error: told.append((value, error)), add, 2, 3)
    assert not told
    await some_turns()
    assert told == [(5, None)]


async def test_inline_offload_runs_here() -> None:
    offload = InlineOffload()
    assert await offload(threading.get_ident) == threading.get_ident()
    with pytest.raises(OSError, match="No space left"):
        await offload(fail)


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
