"""Drives the scheduler's core: events in, one at a time, effects out, and a tick when it is due.

Serialises a message once, however many hosts it goes to. Decides nothing. An error inside the core
is a programmer's error: it is handed to the supervisor, which ends the daemon, and no further
event is handled.
"""

import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Protocol

from scheduler.core.effects import AnyEffect, CloseSession, Noted, SendToHost
from scheduler.core.events import AnyEvent, Tick
from shoal.runtime.alarm import Alarm
from shoal.runtime.clock import Clock
from shoal.runtime.control_memory import EntryMemory
from shoal.runtime.logs import Log
from shoal.runtime.tasks import Supervisor
from shoal.wire.errors import Reason


class Engine(Protocol):
    """The part of `scheduler.core.engine.SchedulerEngine` that the driver uses."""

    def handle(self, event: AnyEvent, /) -> list[AnyEffect]:
        """Takes one event and says what to do."""
        ...

    def next_deadline_ns(self) -> int | None:
        """When a `Tick` is wanted next, if ever."""
        ...

    def validate(self) -> None:
        """Checks every invariant; raises AssertionError."""
        ...

    def counters(self) -> dict[str, int]:
        """Numbers for metrics."""
        ...

    def graph(self) -> list[dict[str, object]]:
        """Who feeds whom, a graph per collection."""
        ...


class Sessions(Protocol):
    """Where effects for sessions go: `ControlServer`, or a fake."""

    def send(self, session: int, entries: Iterable[bytes]) -> None:
        """Queues entries of messages for a session."""
        ...

    def close_session(self, session: int, reason: Reason, detail: str) -> None:
        """Ends a session."""
        ...


class SchedulerDriver:
    """Runs one engine on the event loop's thread. `validate` checks its invariants after every
    event: for tests, it costs O(state)."""

    def __init__(
        self,
        *,
        engine: Engine,
        clock: Clock,
        supervisor: Supervisor,
        validate: bool = False,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._supervisor = supervisor
        self._validate = validate
        self._sessions: Sessions | None = None
        self._events: deque[AnyEvent] = deque()
        self._memory = EntryMemory()
        self._handling = False
        self._stopped = False
        self._alarm = Alarm(next_deadline_ns=engine.next_deadline_ns, on_due=self._due, clock=clock)
        self._log = Log("scheduler.shell.driver")
        self.events_handled = 0
        self.busy_ns = 0
        """Time spent in the core and in carrying out what it said."""

    def attach(self, sessions: Sessions) -> None:
        """Says where effects go. Once, before the first event."""
        assert self._sessions is None
        self._sessions = sessions

    def post(self, event: AnyEvent) -> None:
        """Takes an event. One that comes while another is handled waits for its turn."""
        if self._stopped:
            return
        self._events.append(event)
        if self._handling:
            return
        self._handling = True
        started_ns = time.perf_counter_ns()
        try:
            self._drain()
        except Exception as error:  # noqa: BLE001 - kept, and raised by the supervisor
            self._supervisor.fail(error)
        finally:
            self._handling = False
            self.busy_ns += time.perf_counter_ns() - started_ns
        if self._events:
            self._log.error("the core failed: no further event is handled")
            self.close()

    def counters(self) -> Mapping[str, int]:
        """The engine's own numbers."""
        return self._engine.counters()

    def graph(self) -> list[dict[str, object]]:
        """Who feeds whom now, a graph per collection."""
        return self._engine.graph()

    def close(self) -> None:
        """Handles nothing from now on. Safe to call twice."""
        self._stopped = True
        self._events.clear()
        self._alarm.cancel()

    def _drain(self) -> None:
        while self._events:
            # It leaves the queue when it is done: one that is still there has failed.
            event = self._events[0]
            effects = self._engine.handle(event)
            if self._validate:
                self._engine.validate()
            self._carry_out(effects)
            self.events_handled += 1
            if not self._stopped:
                self._events.popleft()
        if not self._stopped:
            self._alarm.arm()

    def _carry_out(self, effects: list[AnyEffect]) -> None:
        assert self._sessions is not None, "not attached"
        entry = self._memory.entry
        send = self._sessions.send
        for effect in effects:
            match effect:
                case SendToHost():
                    send(effect.session, [entry(message) for message in effect.messages])
                case CloseSession(session=session, reason=reason, detail=detail):
                    self._sessions.close_session(session, reason, detail)
                case Noted():
                    self._note(effect)

    def _note(self, effect: Noted) -> None:
        about = {
            "host": effect.host_id,
            "task": effect.task_id,
            "reason": effect.reason.value if effect.reason is not None else None,
        }
        fields = {name: value for name, value in about.items() if value is not None}
        self._log.info(effect.text, kind=effect.kind, **fields)

    def _due(self, now_ns: int) -> None:
        self.post(Tick(now_ns=now_ns))
