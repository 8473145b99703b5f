"""The driver: one event at a time, messages serialised once, ticks when due, errors that end it."""

import asyncio
import logging
from collections.abc import Iterable

import pytest

from scheduler.core.effects import AnyEffect, CloseSession, Noted, SendToHost
from scheduler.core.events import AnyEvent, FromHost, HostConnected, HostDisconnected, Tick
from scheduler.shell.driver import SchedulerDriver
from shoal.runtime.clock import MonotonicClock
from shoal.runtime.control_codec import scheduler_entry
from shoal.runtime.tasks import Supervisor
from shoal.wire.control import StatWanted
from shoal.wire.errors import Reason
from shoal.wire.ids import HostId, SourceId
from shoal.wire.limits import MILLISECOND_NS, SECOND_NS
from tests.shell.control_rig import FakeEngine, hello


class Sessions:
    """Where effects went."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, list[bytes]]] = []
        self.closed: list[tuple[int, Reason, str]] = []

    def send(self, session: int, entries: Iterable[bytes]) -> None:
        self.sent.append((session, list(entries)))

    def close_session(self, session: int, reason: Reason, detail: str) -> None:
        self.closed.append((session, reason, detail))


class Rig:
    """A driver with everything around it faked but the clock."""

    def __init__(self, *, validate: bool = False) -> None:
        self.engine = FakeEngine()
        self.sessions = Sessions()
        self.supervisor = Supervisor()
        self.clock = MonotonicClock()
        self.driver = SchedulerDriver(
            engine=self.engine,
            clock=self.clock,
            supervisor=self.supervisor,
            validate=validate,
        )
        self.driver.attach(self.sessions)


def connect(session: int) -> HostConnected:
    return HostConnected(now_ns=1, session=session)


def test_effects_are_carried_out_in_order() -> None:
    rig = Rig()
    wanted = StatWanted(source_id=SourceId("1" * 64))
    effects: list[AnyEffect] = [
        SendToHost(session=1, messages=(wanted, wanted)),
        SendToHost(session=2, messages=(wanted,)),
        CloseSession(session=3, reason=Reason.OVERLOADED, detail="too many"),
    ]
    rig.engine.script = lambda event: effects
    rig.driver.post(connect(1))
    entry = scheduler_entry(wanted)
    assert rig.sessions.sent == [(1, [entry, entry]), (2, [entry])]
    assert rig.sessions.closed == [(3, Reason.OVERLOADED, "too many")]
    assert rig.driver.counters() == {"hosts": 1, "leases_granted_total": 7}


def test_a_message_for_many_hosts_is_serialised_once() -> None:
    rig = Rig()
    wanted = StatWanted(source_id=SourceId("1" * 64))
    twin = StatWanted(source_id=SourceId("1" * 64))
    rig.engine.script = lambda event: [
        *(SendToHost(session=session, messages=(wanted,)) for session in range(100)),
        SendToHost(session=100, messages=(twin,)),
    ]
    rig.driver.post(connect(1))
    entries = [entries[0] for _, entries in rig.sessions.sent]
    assert all(entry is entries[0] for entry in entries[:100])
    assert entries[100] == entries[0]


def test_an_event_that_comes_meanwhile_waits_for_its_turn() -> None:
    rig = Rig()
    depth = deepest = 0

    def script(event: AnyEvent) -> list[AnyEffect]:
        nonlocal depth, deepest
        depth += 1
        deepest = max(deepest, depth)
        if isinstance(event, HostConnected):
            rig.driver.post(FromHost(now_ns=2, session=event.session, messages=(hello(),)))
            rig.driver.post(HostDisconnected(now_ns=3, session=event.session))
        depth -= 1
        return []

    rig.engine.script = script
    rig.driver.post(connect(1))
    assert [type(event) for event in rig.engine.events.seen] == [
        HostConnected,
        FromHost,
        HostDisconnected,
    ]
    assert deepest == 1
    assert rig.driver.events_handled == 3


def test_invariants_are_checked_where_asked() -> None:
    rig = Rig(validate=True)
    rig.driver.post(connect(1))
    assert rig.engine.validated == 1


async def test_a_tick_comes_when_it_is_due() -> None:
    rig = Rig()
    due_ns = rig.clock.now_ns() + 20 * MILLISECOND_NS
    rig.engine.deadline_ns = due_ns
    rig.driver.post(connect(1))
    rig.engine.script = lambda event: cancel_deadline(rig)
    tick = await rig.engine.events.wait(Tick)
    assert tick.now_ns >= due_ns
    rig.driver.close()


def cancel_deadline(rig: Rig) -> list[AnyEffect]:
    rig.engine.deadline_ns = None
    return []


async def test_an_earlier_deadline_counts() -> None:
    rig = Rig()
    rig.engine.deadline_ns = rig.clock.now_ns() + 3600 * SECOND_NS
    rig.driver.post(connect(1))
    rig.engine.deadline_ns = rig.clock.now_ns() + MILLISECOND_NS
    rig.driver.post(connect(2))
    await rig.engine.events.wait(Tick)
    rig.driver.close()


async def test_a_deadline_that_moved_away_makes_no_tick() -> None:
    rig = Rig()
    rig.engine.deadline_ns = rig.clock.now_ns() + MILLISECOND_NS
    rig.driver.post(connect(1))
    later_ns = rig.clock.now_ns() + 30 * MILLISECOND_NS
    rig.engine.deadline_ns = later_ns
    tick = await rig.engine.events.wait(Tick)
    assert tick.now_ns >= later_ns
    rig.driver.close()


async def test_a_deadline_that_stays_in_the_past_does_not_spin() -> None:
    rig = Rig()
    rig.engine.deadline_ns = 1
    rig.driver.post(connect(1))
    started_ns = rig.clock.now_ns()
    await rig.engine.events.wait(Tick, 5)
    assert rig.clock.now_ns() - started_ns >= 4 * MILLISECOND_NS
    rig.driver.close()


async def test_an_error_in_the_core_ends_it() -> None:
    rig = Rig()

    def crash(event: AnyEvent) -> list[AnyEffect]:
        raise AssertionError("an invariant does not hold")

    rig.engine.script = crash
    rig.driver.post(connect(1))
    with pytest.raises(AssertionError, match="invariant"):
        async with asyncio.timeout(5):
            await rig.supervisor.wait_failed()
    rig.driver.post(connect(2))
    assert len(rig.engine.events.seen) == 1


async def test_nothing_happens_after_close() -> None:
    rig = Rig()
    rig.engine.deadline_ns = rig.clock.now_ns() + MILLISECOND_NS
    rig.driver.post(connect(1))
    rig.driver.close()
    rig.driver.close()
    rig.driver.post(connect(2))
    assert len(rig.engine.events.seen) == 1


def test_what_people_must_read_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    rig = Rig()
    noted = Noted(
        kind="blame",
        text="a host served wrong bytes",
        host_id=HostId("mallory"),
        reason=Reason.PEER_CORRUPT,
    )
    rig.engine.script = lambda event: [noted]
    rig.driver.post(connect(1))
    (record,) = caplog.records
    assert record.getMessage() == "a host served wrong bytes"
    assert record.shoal_fields == {"kind": "blame", "host": "mallory", "reason": "peer-corrupt"}  # type: ignore[attr-defined]
