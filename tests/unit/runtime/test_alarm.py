"""The timer of a state machine, in virtual time."""

import asyncio

from shoal.runtime.alarm import Alarm
from shoal.wire.limits import MILLISECOND_NS, SECOND_NS
from tests.fakes.virtual_time import VirtualLoop, run_virtual


class Machine:
    """Wants to hear of the time when a test says so."""

    def __init__(self) -> None:
        self.loop = VirtualLoop()
        self.deadline_ns: int | None = None
        self.rang_ns: list[int] = []
        self.started_ns = self.loop.now_ns()
        self.alarm = Alarm(
            next_deadline_ns=lambda: self.deadline_ns, on_due=self.on_due, clock=self.loop
        )
        self.next_deadline_ns: int | None = None

    def on_due(self, now_ns: int) -> None:
        self.rang_ns.append(now_ns)
        self.deadline_ns = self.next_deadline_ns
        self.alarm.arm()

    def due_in(self, wait_ns: int) -> None:
        self.deadline_ns = self.loop.now_ns() + wait_ns
        self.alarm.arm()

    @property
    def rang_ms(self) -> list[int]:
        return [(when - self.started_ns) // MILLISECOND_NS for when in self.rang_ns]


def test_it_rings_when_it_is_due_and_once() -> None:
    machine = Machine()

    async def scenario() -> None:
        machine.alarm.arm()
        machine.due_in(20 * MILLISECOND_NS)
        machine.alarm.arm()
        await asyncio.sleep(10)

    run_virtual(machine.loop, scenario())
    assert machine.rang_ms == [20]


def test_an_earlier_deadline_counts_and_a_later_one_too() -> None:
    machine = Machine()

    async def scenario() -> None:
        machine.due_in(3600 * SECOND_NS)
        machine.due_in(30 * MILLISECOND_NS)
        machine.due_in(50 * MILLISECOND_NS)
        await asyncio.sleep(10)

    run_virtual(machine.loop, scenario())
    assert machine.rang_ms == [50]


def test_a_deadline_that_went_away_makes_no_ring() -> None:
    machine = Machine()

    async def scenario() -> None:
        machine.due_in(30 * MILLISECOND_NS)
        machine.deadline_ns = None
        await asyncio.sleep(1)
        machine.due_in(30 * MILLISECOND_NS)
        machine.alarm.cancel()
        machine.alarm.cancel()
        await asyncio.sleep(1)

    run_virtual(machine.loop, scenario())
    assert machine.rang_ms == []


def test_a_deadline_that_stays_in_the_past_does_not_spin() -> None:
    machine = Machine()
    machine.next_deadline_ns = 1

    async def scenario() -> None:
        machine.due_in(-SECOND_NS)
        await asyncio.sleep(0.0105)

    run_virtual(machine.loop, scenario())
    assert machine.rang_ms == list(range(1, 11))


def test_what_came_while_the_process_was_held_up_is_heard_before_the_time() -> None:
    machine = Machine()
    heard: list[str] = []

    async def scenario() -> None:
        machine.due_in(20 * MILLISECOND_NS)
        machine.loop.call_later(0.01, machine.loop.stall, 0.04)
        # As what waits in a socket: there at 30 ms, read when the loop turns again.
        machine.loop.call_later(0.03, lambda: machine.loop.call_soon(heard.append, "news"))
        await asyncio.sleep(0.0505)
        assert (heard, machine.rang_ms) == (["news"], [])
        await asyncio.sleep(10)

    run_virtual(machine.loop, scenario())
    assert machine.rang_ms == [51]


def test_it_rings_though_the_process_is_held_up_again_and_again() -> None:
    machine = Machine()

    async def scenario() -> None:
        machine.due_in(20 * MILLISECOND_NS)
        for wait_s in (0.01, 0.0505):
            machine.loop.call_later(wait_s, machine.loop.stall, 0.04)
        await asyncio.sleep(10)

    run_virtual(machine.loop, scenario())
    assert machine.rang_ms == [90]


def test_a_late_ring_for_nothing_is_not_held_against_the_next_one() -> None:
    machine = Machine()

    async def scenario() -> None:
        machine.due_in(20 * MILLISECOND_NS)
        machine.due_in(201 * MILLISECOND_NS)  # The timer stays, and looks again at 20 ms.
        for wait_s in (0.01, 0.19):
            machine.loop.call_later(wait_s, machine.loop.stall, 0.04)
        await asyncio.sleep(10)

    run_virtual(machine.loop, scenario())
    assert machine.rang_ms == [231]
