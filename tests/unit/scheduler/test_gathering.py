"""Which wakes of many sessions wait for one another, in virtual time."""

import asyncio

from scheduler.shell.gathering import AT_ONCE, TURN, WINDOW_S, Gathering
from tests.fakes.virtual_time import VirtualLoop, run_virtual


class Sessions:
    """Notes when each of its wakes was called, in milliseconds from the start."""

    def __init__(self) -> None:
        self.loop = VirtualLoop()
        self.started_s = self.loop.time()
        self.woken: list[tuple[int, int]] = []
        self.gathering = Gathering()

    def wake(self, number: int) -> None:
        self.gathering.call(lambda: self.woken.append((number, self.now_ms)))

    @property
    def now_ms(self) -> int:
        return round(1000 * (self.loop.time() - self.started_s))


def test_a_few_are_called_at_once() -> None:
    sessions = Sessions()

    async def scenario() -> None:
        for number in range(AT_ONCE):
            sessions.wake(number)
            assert sessions.woken[-1] == (number, 0)

    run_virtual(sessions.loop, scenario())


def test_the_rest_of_a_crowd_is_called_together_in_order() -> None:
    sessions = Sessions()

    async def scenario() -> None:
        for number in range(AT_ONCE + 3):
            sessions.wake(number)
        assert len(sessions.woken) == AT_ONCE
        await asyncio.sleep(1)

    run_virtual(sessions.loop, scenario())
    late = round(1000 * WINDOW_S)
    assert sessions.woken[AT_ONCE:] == [(AT_ONCE + n, late) for n in range(3)]


def test_a_large_crowd_is_called_in_turns_of_the_loop() -> None:
    sessions = Sessions()
    after_one_turn: list[int] = []

    def look() -> None:
        sessions.loop.call_soon(lambda: after_one_turn.append(len(sessions.woken)))

    async def scenario() -> None:
        for number in range(AT_ONCE):
            sessions.wake(number)
        sessions.gathering.call(look)
        for number in range(AT_ONCE, AT_ONCE + 2 * TURN):
            sessions.wake(number)
        await asyncio.sleep(1)

    run_virtual(sessions.loop, scenario())
    # One of the turn is the one that looks.
    assert after_one_turn == [AT_ONCE + TURN - 1]
    assert [number for number, _ in sessions.woken] == list(range(AT_ONCE + 2 * TURN))


def test_after_a_window_the_first_are_called_at_once_again() -> None:
    sessions = Sessions()

    async def scenario() -> None:
        for _ in range(3):
            for number in range(AT_ONCE + 1):
                sessions.wake(number)
            await asyncio.sleep(2 * WINDOW_S)

    run_virtual(sessions.loop, scenario())
    assert [when for number, when in sessions.woken if number == 0] == [0, 20, 40]
    assert [when for number, when in sessions.woken if number == AT_ONCE] == [10, 30, 50]


def test_a_wake_that_leads_to_another_is_not_lost() -> None:
    sessions = Sessions()

    async def scenario() -> None:
        for number in range(AT_ONCE):
            sessions.wake(number)
        sessions.gathering.call(lambda: sessions.wake(99))
        await asyncio.sleep(1)

    run_virtual(sessions.loop, scenario())
    assert sessions.woken[-1] == (99, round(1000 * WINDOW_S))
