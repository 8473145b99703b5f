"""A virtual world for the production cores: one heap of events, hosts, a scheduler, an origin.

Links are modelled as serialised: a host's uplink sends one piece after the other at its rate, and
its downlink takes one after the other. Content is a digest per piece, never bytes; the world knows
the truth and checks at every step what no host can: nothing false is stored or served, and the
origin is read once per piece.
"""

import hashlib
import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.sim.base import NodeBase
from benchmarks.sim.node import SimNode
from scheduler.core import effects as sfx
from scheduler.core import events as sev
from scheduler.core.engine import SchedulerEngine
from shoal.wire.control import HostMessage
from shoal.wire.ids import HostId, SourceId
from shoal.wire.limits import MILLISECOND_NS, SECOND_NS, PeerLimits, SchedulerLimits


@dataclass(slots=True, kw_only=True)
class SimOrigin:
    """The content, and how the origin behaves."""

    size_bytes: int
    rate_bytes_s: int
    validator: str = "v1"
    ranges: bool = True
    known_size: bool = True
    up: bool = True
    free_at_ns: int = 0
    reads: dict[int, int] = field(default_factory=dict)
    """How often each piece was read."""
    stats: int = 0

    def digest(self, piece: int) -> bytes:
        """The true digest of a piece of the present version."""
        return hashlib.blake2b(f"{self.validator}/{piece}".encode(), digest_size=16).digest()


@dataclass(slots=True, kw_only=True)
class WorldOptions:
    """What a run is made of. Rates in bytes per second."""

    nodes: int
    size_bytes: int
    origin_rate_bytes_s: int
    node_rate_bytes_s: int
    seed: int = 1
    latency_ns: int = MILLISECOND_NS // 2
    with_scheduler: bool = True
    validate: bool = True
    content_digest: str | None = "sha256:" + "ab" * 32
    peer_limits: PeerLimits = field(default_factory=PeerLimits)
    scheduler_limits: SchedulerLimits = field(default_factory=SchedulerLimits)


class World:
    """The clock, the network, the scheduler and the hosts of one run."""

    def __init__(self, options: WorldOptions) -> None:
        self.options = options
        self.now_ns = 0
        self.random = random.Random(options.seed)
        self.origin = SimOrigin(
            size_bytes=options.size_bytes, rate_bytes_s=options.origin_rate_bytes_s
        )
        self.scheduler: SchedulerEngine | None = None
        self.nodes: dict[HostId, SimNode] = {}
        self.blamed: list[tuple[str, str]] = []
        """(who noted it, whom it blames)."""
        self.events = 0
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._sequence = 0
        self._sessions: dict[int, NodeBase] = {}
        self._next_session = 0
        self._scheduler_runs = 0
        self._scheduler_wake_ns: int | None = None
        if options.with_scheduler:
            self.start_scheduler()
        for number in range(options.nodes):
            self.add_node(f"node-{number}")

    # ------------------------------------------------------------ time

    def after(self, delay_ns: int, action: Callable[[], None]) -> None:
        """Plans an action; actions of the same moment run in the order of planning."""
        self._sequence += 1
        heapq.heappush(self._heap, (self.now_ns + max(0, delay_ns), self._sequence, action))

    def run(self, *, until: Callable[[], bool], limit_s: float) -> bool:
        """Runs until the condition holds (True), or time or events end (False)."""
        limit_ns = int(limit_s * SECOND_NS)
        while not until():
            if not self._heap or self._heap[0][0] > limit_ns:
                return False
            self.now_ns, _, action = heapq.heappop(self._heap)
            self.events += 1
            action()
        return True

    def run_for(self, seconds: float) -> None:
        """Lets time pass."""
        end_ns = self.now_ns + int(seconds * SECOND_NS)
        while self._heap and self._heap[0][0] <= end_ns:
            self.now_ns, _, action = heapq.heappop(self._heap)
            self.events += 1
            action()
        self.now_ns = end_ns

    # ------------------------------------------------------------ hosts

    def add_node(self, name: str) -> SimNode:
        """A new host with an empty disk; it connects to the scheduler at once."""
        node = SimNode(self, HostId(name))
        self.nodes[node.host_id] = node
        node.start()
        return node

    def all_done(self) -> bool:
        """Every host that wanted something has it or failed."""
        return all(node.ended for node in self.nodes.values() if node.alive and node.wants)

    # ------------------------------------------------------------ scheduler

    def start_scheduler(self) -> None:
        """A scheduler with empty memory; the hosts connect to it again."""
        self._scheduler_runs += 1
        seeded = random.Random(f"{self.options.seed}/scheduler/{self._scheduler_runs}")
        self.scheduler = SchedulerEngine(
            limits=self.options.scheduler_limits,
            dice=seeded,
            scheduler_id=f"scheduler-{self._scheduler_runs}",
            token_source=lambda: seeded.getrandbits(256).to_bytes(32, "little"),
        )
        self._scheduler_offset_ns = self.now_ns
        for node in self.nodes.values():
            if node.alive:
                self.after(10 * MILLISECOND_NS, node.connect_scheduler)

    def kill_scheduler(self) -> None:
        """The scheduler dies; every stream breaks."""
        self.scheduler = None
        self._scheduler_wake_ns = None
        for session, node in list(self._sessions.items()):
            del self._sessions[session]
            node.scheduler_lost(session)

    def open_session(self, node: NodeBase) -> int | None:
        """A host opens a control stream; None if no scheduler is there."""
        if self.scheduler is None:
            return None
        self._next_session += 1
        session = self._next_session
        self._sessions[session] = node
        self._scheduler_event(sev.HostConnected(now_ns=self.now_ns, session=session))
        return session

    def close_session(self, session: int) -> None:
        """A host's stream breaks."""
        if self._sessions.pop(session, None) is not None and self.scheduler is not None:
            self._scheduler_event(sev.HostDisconnected(now_ns=self.now_ns, session=session))

    def to_scheduler(self, session: int, messages: tuple[HostMessage, ...]) -> None:
        """Messages travel to the scheduler."""

        def arrive() -> None:
            if session in self._sessions and self.scheduler is not None:
                self._scheduler_event(
                    sev.FromHost(now_ns=self.now_ns, session=session, messages=messages)
                )

        self.after(self.options.latency_ns, arrive)

    def _scheduler_event(self, event: sev.AnyEvent) -> None:
        engine = self.scheduler
        assert engine is not None
        effects = engine.handle(event)
        if self.options.validate:
            engine.validate()
        for effect in effects:
            match effect:
                case sfx.SendToHost():
                    self._deliver(effect)
                case sfx.CloseSession():
                    node = self._sessions.pop(effect.session, None)
                    if node is not None:
                        node.scheduler_lost(effect.session)
                case sfx.Noted():
                    if effect.kind == "blamed" and effect.host_id is not None:
                        self.blamed.append(("scheduler", effect.host_id))
        self._plan_scheduler_tick()

    def _deliver(self, effect: sfx.SendToHost) -> None:
        node = self._sessions.get(effect.session)
        if node is not None:
            self.after(
                self.options.latency_ns,
                lambda: node.from_scheduler(effect.session, effect.messages),
            )

    def _plan_scheduler_tick(self) -> None:
        engine = self.scheduler
        assert engine is not None
        deadline_ns = engine.next_deadline_ns()
        if deadline_ns is None or (
            self._scheduler_wake_ns is not None
            and self.now_ns < self._scheduler_wake_ns <= deadline_ns
        ):
            return
        wake_ns = self._scheduler_wake_ns = max(deadline_ns, self.now_ns)

        def tick() -> None:
            if self.scheduler is engine and self._scheduler_wake_ns == wake_ns:
                self._scheduler_wake_ns = None
                self._scheduler_event(sev.Tick(now_ns=self.now_ns))

        self.after(deadline_ns - self.now_ns, tick)

    # ------------------------------------------------------------ results

    def bound_s(self) -> float:
        """The fluid minimum time of the run (design: origin, slowest download, sum of uploads)."""
        options = self.options
        size, count = options.size_bytes, options.nodes
        total = options.origin_rate_bytes_s + count * options.node_rate_bytes_s
        return max(
            size / options.origin_rate_bytes_s,
            size / options.node_rate_bytes_s,
            count * size / total,
        )

    def makespan_s(self) -> float:
        """When the last host had everything, in seconds from the start."""
        return max(node.ended_ns for node in self.nodes.values() if node.wants) / SECOND_NS

    def origin_copies(self) -> float:
        """Pieces read from the origin over the pieces of the content."""
        return sum(self.origin.reads.values()) / max(1, len(self.origin.reads))


SOURCE_ID = SourceId("5" * 64)
"""The one source of the simulated worlds."""
