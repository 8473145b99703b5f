"""The scheduler of a world and the control streams between it and the hosts.

A stream is TCP: nothing overtakes, and what is lost stalls its direction until the stream breaks.
"""

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from scheduler.core import effects as sfx
from scheduler.core import events as sev
from scheduler.core.engine import SchedulerEngine
from shoal.wire.control import HostMessage
from shoal.wire.geometry import Geometry, choose_geometry
from shoal.wire.ids import HostId
from shoal.wire.limits import MILLISECOND_NS

if TYPE_CHECKING:
    from benchmarks.sim.base import NodeBase
    from benchmarks.sim.world import World

RECONNECT_AFTER_START_NS = 10 * MILLISECOND_NS
SCHEDULER_NUMBER = 0
"""Who the scheduler is in the trace; hosts count from 1."""


class Stream:
    """One control stream. Direction 0 leads to the scheduler, 1 to the host."""

    __slots__ = ("free_ns", "node", "number", "open", "stalled")

    def __init__(self, number: int, node: "NodeBase") -> None:
        self.number = number
        self.node = node
        self.open = True
        self.free_ns = [0, 0]
        """When the last message of a direction arrives: nothing arrives before it."""
        self.stalled = [False, False]


def cut_by(unit_bytes: int | None) -> Callable[[int | None, int | None], Geometry]:
    """How the scheduler cuts contents."""
    if unit_bytes is None:
        return choose_geometry
    length = unit_bytes
    return lambda size, wanted: Geometry(
        size_bytes=size, piece_length_bytes=wanted or length, run_pieces=1
    )


class SimScheduler:
    """Runs the production `SchedulerEngine`, or none while it is dead."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.engine: SchedulerEngine | None = None
        self.counts: dict[HostId, int] = {}
        """Messages between the scheduler and each host, both ways."""
        self._streams: dict[int, Stream] = {}
        self._next_session = 0
        self._runs = 0
        self._wake_ns: int | None = None

    # ------------------------------------------------------------ life

    def start(self) -> None:
        """With empty memory; the hosts connect to it again."""
        world = self._world
        self._runs += 1
        seeded = random.Random(f"{world.options.seed}/scheduler/{self._runs}")
        self.engine = SchedulerEngine(
            limits=world.options.limits_of_scheduler(),
            dice=seeded,
            scheduler_id=f"scheduler-{self._runs}",
            token_source=lambda: seeded.getrandbits(256).to_bytes(32, "little"),
            cut=cut_by(world.options.unit_bytes),
        )
        for node in world.nodes.values():
            if node.alive:
                world.after(RECONNECT_AFTER_START_NS, node.connect_scheduler)

    def kill(self) -> None:
        """It dies; every stream breaks."""
        self.engine = None
        self._wake_ns = None
        for stream in list(self._streams.values()):
            self._forget(stream)
            stream.node.scheduler_lost(stream.number)

    # ------------------------------------------------------------ streams

    def open(self, node: "NodeBase") -> int | None:
        """A host opens a control stream; None if no scheduler is there."""
        if self.engine is None:
            return None
        self._next_session += 1
        stream = Stream(self._next_session, node)
        self._streams[stream.number] = stream
        self._handle(sev.HostConnected(now_ns=self._world.now_ns, session=stream.number))
        return stream.number

    def close(self, session: int) -> None:
        """A host's stream breaks, from its side."""
        stream = self._streams.get(session)
        if stream is not None:
            self._forget(stream)
            self._disconnected(session)

    def break_stream(self, session: int) -> None:
        """A stream breaks on its way: both sides notice."""
        stream = self._streams.get(session)
        if stream is not None:
            self.close(session)
            stream.node.scheduler_lost(session)

    def _forget(self, stream: Stream) -> None:
        stream.open = False
        del self._streams[stream.number]

    def _disconnected(self, session: int) -> None:
        if self.engine is not None:
            self._handle(sev.HostDisconnected(now_ns=self._world.now_ns, session=session))

    def from_host(self, session: int, messages: tuple[HostMessage, ...]) -> None:
        """Messages travel to the scheduler."""
        stream = self._streams.get(session)
        if stream is not None:
            self._count(stream, len(messages))
            when_ns = self._travel(stream, 0)
            if when_ns is not None:
                self._world.at(when_ns, self._arrive, stream, messages)

    def _arrive(self, stream: Stream, messages: tuple[HostMessage, ...]) -> None:
        if stream.open and self.engine is not None:
            self._handle(
                sev.FromHost(now_ns=self._world.now_ns, session=stream.number, messages=messages)
            )

    def _deliver(self, effect: sfx.SendToHost) -> None:
        stream = self._streams.get(effect.session)
        if stream is not None:
            self._count(stream, len(effect.messages))
            when_ns = self._travel(stream, 1)
            if when_ns is not None:
                self._world.at(when_ns, stream.node.from_scheduler, effect.session, effect.messages)

    def _count(self, stream: Stream, messages: int) -> None:
        host_id = stream.node.host_id
        self.counts[host_id] = self.counts.get(host_id, 0) + messages

    def _travel(self, stream: Stream, direction: int) -> int | None:
        """When what is sent now arrives; None: never."""
        world = self._world
        when_ns = world.now_ns + world.options.latency_ns
        if world.faults is not None:
            if stream.stalled[direction]:
                return None
            fate = world.faults.control_fate()
            if fate.lost:
                stream.stalled[direction] = True
                world.after(fate.delay_ns, self.break_stream, stream.number)
                return None
            when_ns += fate.delay_ns
        when_ns = max(when_ns, stream.free_ns[direction])
        stream.free_ns[direction] = when_ns
        return when_ns

    # ------------------------------------------------------------ the core

    def _handle(self, event: sev.AnyEvent) -> None:
        engine, world = self.engine, self._world
        assert engine is not None
        effects = engine.handle(event)
        world.events += 1
        world.trace.note(SCHEDULER_NUMBER, event, len(effects))
        if world.options.validate:
            engine.validate()
        for effect in effects:
            match effect:
                case sfx.SendToHost():
                    self._deliver(effect)
                case sfx.CloseSession():
                    stream = self._streams.get(effect.session)
                    if stream is not None:
                        self._forget(stream)
                        stream.node.scheduler_lost(effect.session)
                case sfx.Noted():
                    if effect.kind == "blamed" and effect.host_id is not None:
                        world.blamed.append(("scheduler", effect.host_id))
        self._plan_tick()

    def _plan_tick(self) -> None:
        engine, now_ns = self.engine, self._world.now_ns
        assert engine is not None
        deadline_ns = engine.next_deadline_ns()
        if deadline_ns is None or (
            self._wake_ns is not None and now_ns < self._wake_ns <= deadline_ns
        ):
            return
        self._wake_ns = max(deadline_ns, now_ns)
        self._world.at(self._wake_ns, self._tick, engine, self._wake_ns)

    def _tick(self, engine: SchedulerEngine, wake_ns: int) -> None:
        # An earlier deadline may have taken the place of this one.
        if self.engine is engine and self._wake_ns == wake_ns:
            self._wake_ns = None
            self._handle(sev.Tick(now_ns=self._world.now_ns))
