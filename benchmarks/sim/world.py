"""A virtual world for the production cores: one heap of events, hosts, a scheduler, an origin.

Bytes move as fluid through links that flows share fairly (`benchmarks.sim.fluid`). Content is a
digest per piece, never bytes; the world knows the truth and checks all the time what no host can:
nothing false is sealed, nothing is served that is not stored, and every request ends once.
"""

import gc
import heapq
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.sim.control import SimScheduler
from benchmarks.sim.faults import FaultPlan, Faults
from benchmarks.sim.fluid import FluidNetwork
from benchmarks.sim.links import Topology, bound_s
from benchmarks.sim.node import SimNode
from benchmarks.sim.options import HostSpec, OriginSpec, WorldOptions, ZoneSpec
from benchmarks.sim.origin import SOURCE_ID, SimOrigin, make_tasks
from benchmarks.sim.trace import Trace
from benchmarks.sim.transfer import Flights
from scheduler.core.engine import SchedulerEngine
from shoal.wire.ids import ConnectionId, HostId
from shoal.wire.limits import SECOND_NS

__all__ = [
    "SOURCE_ID",
    "FaultPlan",
    "HostSpec",
    "OriginSpec",
    "SimNode",
    "SimOrigin",
    "World",
    "WorldOptions",
    "ZoneSpec",
]


Planned = tuple[int, int, Callable[..., object], tuple[Any, ...]]
"""(when, in which order of planning, what, with what)"""


@contextmanager
def no_collections() -> Iterator[None]:
    """Without the collector of cycles: events and messages have none, and looking through a big
    world for some again and again takes a quarter of a run."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class World:
    """The clock, the network, the scheduler and the hosts of one run."""

    def __init__(self, options: WorldOptions) -> None:
        self.options = options
        self.now_ns = 0
        self.random = random.Random(options.seed)
        self.events = 0
        """Events that cores handled."""
        self.trace = Trace()
        self.blamed: list[tuple[str, str]] = []
        """(who noted it, whom it blames)."""
        self.broken: list[str] = []
        """What must never happen and did."""
        self.network = FluidNetwork(quantum_ns=options.quantum_ns)
        self.topology = Topology(self.network, options)
        self.flights = Flights(self)
        self.tasks = make_tasks(options)
        self.origin = SimOrigin(options, self.tasks)
        self.nodes: dict[HostId, SimNode] = {}
        self.control = SimScheduler(self)
        self.faults: Faults | None = None
        self._heap: list[Planned] = []
        self._soon: deque[Planned] = deque()
        """What comes after one latency. Time runs forward, so these are in order without a heap."""
        self._sequence = 0
        self._latency_ns = options.latency_ns
        self._connections = 0
        self._waiting: SimNode | None = None
        if options.with_scheduler:
            self.start_scheduler()
        for number, spec in enumerate(options.host_specs()):
            self.add_node(f"node-{number}", spec)
        if options.faults.any():
            self.install(options.faults)

    def install(self, plan: FaultPlan) -> None:
        """Lets things go wrong by a plan from now on; its moments count from the start."""
        assert self.faults is None, "one plan per world"
        self.faults = Faults(self, plan)

    # ------------------------------------------------------------ time

    def at(self, when_ns: int, action: Callable[..., object], *arguments: Any) -> None:
        """Plans an action; actions of the same moment run in the order of planning."""
        sequence = self._sequence = self._sequence + 1
        if when_ns == self.now_ns + self._latency_ns:
            self._soon.append((when_ns, sequence, action, arguments))
        else:
            when_ns = max(when_ns, self.now_ns)
            heapq.heappush(self._heap, (when_ns, sequence, action, arguments))

    def after(self, delay_ns: int, action: Callable[..., object], *arguments: Any) -> None:
        """Plans an action for so much later."""
        self.at(self.now_ns + delay_ns, action, *arguments)

    def _step(self, limit_ns: int) -> bool:
        """Does what comes next; False if nothing does until the limit."""
        heap, soon, network = self._heap, self._soon, self.network
        from_heap = not soon or bool(heap and heap[0] < soon[0])
        first_ns = (heap[0] if from_heap else soon[0])[0] if heap or soon else None
        flow_ns = network.next_ns()
        if first_ns is not None and (flow_ns is None or first_ns < flow_ns):
            if first_ns > limit_ns:
                return False
            planned = heapq.heappop(heap) if from_heap else soon.popleft()
            self.now_ns = first_ns
            planned[2](*planned[3])
            return True
        if flow_ns is None or flow_ns > limit_ns:
            return False
        if flow_ns > self.now_ns:
            self.now_ns = flow_ns
        network.advance(self.now_ns)
        return True

    def run(self, *, until: Callable[[], bool], limit_s: float) -> bool:
        """Runs until the condition holds (True), or time or events end (False)."""
        limit_ns = int(limit_s * SECOND_NS)
        with no_collections():
            while not until():
                if not self._step(limit_ns):
                    return False
        return True

    def run_for(self, seconds: float) -> None:
        """Lets time pass."""
        end_ns = self.now_ns + int(seconds * SECOND_NS)
        with no_collections():
            while self._step(end_ns):
                pass
        self.now_ns = end_ns

    # ------------------------------------------------------------ hosts

    def add_node(self, name: str, spec: HostSpec | None = None) -> SimNode:
        """A new host with an empty disk; it connects to the scheduler at once."""
        node = SimNode(self, HostId(name), len(self.nodes) + 1, spec or self.options.plain_host())
        self.nodes[node.host_id] = node
        node.start()
        return node

    def all_done(self) -> bool:
        """Every host that wanted something has it or failed."""
        # Asked after every event: look first at the one that was not done when asked last.
        waiting = self._waiting
        if waiting is not None and waiting.alive and waiting.wants and not waiting.ended:
            return False
        for node in self.nodes.values():
            if node.alive and node.wants and not node.ended:
                self._waiting = node
                return False
        return True

    def next_connection_id(self) -> ConnectionId:
        """A number never used before."""
        self._connections += 1
        return ConnectionId(self._connections)

    # ------------------------------------------------------------ scheduler

    @property
    def scheduler(self) -> SchedulerEngine | None:
        """The scheduler's core, while it lives."""
        return self.control.engine

    def start_scheduler(self) -> None:
        """A scheduler with empty memory; the hosts connect to it again."""
        self.control.start()

    def kill_scheduler(self) -> None:
        """The scheduler dies; every stream breaks."""
        self.control.kill()

    # ------------------------------------------------------------ results

    def bound_s(self) -> float:
        """The fluid minimum time of the run, for the hosts that were there from the start."""
        return bound_s(self.options)

    def makespan_s(self) -> float:
        """When the last host had everything, in seconds from the start."""
        return max(node.ended_ns for node in self.nodes.values() if node.wants) / SECOND_NS

    @property
    def origin_bytes(self) -> float:
        """Payload bytes that the origin sent, parts of broken reads included."""
        return self.origin.sent_bytes

    def origin_copies(self) -> float:
        """What the origin sent over the size of everything."""
        return self.origin.sent_bytes / max(1, sum(task.size_bytes for task in self.tasks))

    def zone_in_bytes(self, zone: int) -> float:
        """What came into a zone from outside."""
        return float(self.network.link_bytes(self.now_ns)[self.topology.zones[zone][0]])

    def rack_in_bytes(self, rack: int) -> float:
        """What came into a rack from outside."""
        return float(self.network.link_bytes(self.now_ns)[self.topology.racks[rack][0]])

    @property
    def scheduler_messages(self) -> int:
        """Messages between the scheduler and all hosts, both ways."""
        return sum(self.control.counts.values())

    def scheduler_message_count(self, host_id: HostId) -> int:
        """Messages between the scheduler and one host, both ways."""
        return self.control.counts.get(host_id, 0)

    def trace_hash(self) -> str:
        """The hash of every event so far: the same for the same options, whatever the machine."""
        return self.trace.hex()
