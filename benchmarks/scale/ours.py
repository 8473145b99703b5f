"""Runs a plan with the production cores, in the simulator's world.

Prepares (connects all hosts, fills seeds), starts the clock of the run, lets hosts arrive and
faults happen, and records. Decides nothing about who does what: the cores do.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.scale.metrics import Curves, Outcome
from benchmarks.scale.options import RunOptions
from benchmarks.scale.plan import Fault, Plan
from benchmarks.sim.world import HostSpec, OriginSpec, SimNode, World, WorldOptions, ZoneSpec
from peer.core import events as ev
from peer.core.limits import PeerLimits
from shoal.wire.control import Demand
from shoal.wire.ids import DownloadId, collection_of
from shoal.wire.limits import MILLISECOND_NS, PIECE_LENGTH_BYTES_MAX, SECOND_NS

CONNECTING_S = 0.5
"""Hosts are up and connected before anybody wants anything."""
LOOK_NS = 10 * MILLISECOND_NS
"""How often it is looked which collections are whole, where there are several."""
SEEDING_LIMIT_S = 100_000.0


@dataclass(slots=True)
class Start:
    """Where the run begins, after all preparation."""

    now_ns: int
    crossed: NDArray[np.float64]
    messages: int
    events: int


@dataclass(slots=True)
class Run:
    """One run of the world."""

    options: RunOptions
    plan: Plan
    world: World
    nodes: list[SimNode]
    start: Start
    curves: Curves | None = None
    collections_s: list[dict[int, float]] = field(default_factory=list)
    """By collection: when each host had all of it."""
    waiting: int = 0
    """The first host that is not known to have ended."""

    # ------------------------------------------------------------ what happens

    def arrive(self, index: int) -> None:
        """A host wants everything."""
        node = self.nodes[index]
        if self.plan.collections == 1:
            node.want()
            return
        node.wants = True
        node.started_ns = self.world.now_ns
        for number, task in enumerate(self.world.tasks):
            source = task.source("")
            node.post(
                ev.Want(
                    now_ns=self.world.now_ns,
                    download_id=DownloadId(1000 + number),
                    collection_id=collection_of((source.source_id,)),
                    sources=(source,),
                    demand=Demand.WHOLE,
                    priority=self.plan.collections - 1 - number,
                )
            )

    def strike(self, fault: Fault) -> None:
        """A fault of the plan happens."""
        match fault.kind:
            case "crash":
                self.nodes[fault.host].crash()
            case "restart":
                self.nodes[fault.host].restart()
            case "leave":
                self.nodes[fault.host].leave()
            case "kill_scheduler":
                self.world.kill_scheduler()
            case "start_scheduler":
                self.world.start_scheduler()

    def begin(self) -> None:
        """Plans everything that happens."""
        for index, host in enumerate(self.plan.hosts):
            if not host.seed:
                self.at(host.arrives_s, self.arrive, index)
        for fault in self.plan.faults():
            self.at(fault.at_s, self.strike, fault)

    def at(self, time_s: float, action: Callable[..., object], *arguments: object) -> None:
        """Plans an action for a time of the run."""
        self.world.at(self.start.now_ns + int(time_s * SECOND_NS), action, *arguments)

    # ------------------------------------------------------------ its end

    def ended(self, index: int) -> bool:
        """Whether a host has what it wanted, or failed."""
        node = self.nodes[index]
        if self.plan.collections == 1:
            return node.ended
        contents = node.contents.values()
        return len(contents) == self.plan.collections and all(one.sealed for one in contents)

    def all_ended(self) -> bool:
        """Whether every host that the run waits for has ended. Asked after every event."""
        hosts, count = self.plan.hosts, len(self.nodes)
        while self.waiting < count and (
            not hosts[self.waiting].must_finish or self.ended(self.waiting)
        ):
            self.waiting += 1
        return self.waiting == count

    def look(self) -> None:
        """Notes which collections are whole by now."""
        now_s = (self.world.now_ns - self.start.now_ns) / SECOND_NS
        for index, node in enumerate(self.nodes):
            for number, task in enumerate(self.world.tasks):
                content = node.contents.get(task.task_id) if task.task_id is not None else None
                if content is not None and content.sealed:
                    self.collections_s[number].setdefault(index, now_s)
        self.world.after(LOOK_NS, self.look)

    def sample(self, step_ns: int) -> None:
        """Adds a point to the curves."""
        assert self.curves is not None
        crossed = self.crossed()
        self.curves.times_s.append((self.world.now_ns - self.start.now_ns) / SECOND_NS)
        self.curves.up_bytes.append(crossed[[node.up_link for node in self.nodes]])
        self.curves.down_bytes.append(crossed[[node.down_link for node in self.nodes]])
        self.curves.origin_bytes.append(float(crossed[self.world.topology.origin_link]))
        self.world.after(step_ns, self.sample, step_ns)

    def crossed(self) -> NDArray[np.float64]:
        """Bytes through each link since the start."""
        return np.asarray(self.world.network.link_bytes(self.world.now_ns)) - self.start.crossed

    def broken(self) -> list[str]:
        """What must never happen and did. The world takes a host for the reader of one collection:
        that others are not whole when the first one is, is no fault where there are several."""
        if self.plan.collections == 1:
            return self.world.broken
        return [what for what in self.world.broken if "success without a sealed" not in what]

    def outcome(self, wall_s: float, cpu_s: float) -> Outcome:
        """The record of the run."""
        world, start = self.world, self.start
        crossed = self.crossed()
        failures: dict[str, int] = {}
        started: list[float | None] = []
        ended: list[float | None] = []
        for index, (node, host) in enumerate(zip(self.nodes, self.plan.hosts, strict=True)):
            fine = host.seed or (self.ended(index) and node.reason is None and node.ended)
            started.append((node.started_ns - start.now_ns) / SECOND_NS if node.wants else None)
            ended.append(max(0, node.ended_ns - start.now_ns) / SECOND_NS if fine else None)
            if host.must_finish and not fine:
                name = str(node.reason) if node.reason is not None else "time limit"
                failures[name] = failures.get(name, 0) + 1
        failures |= dict.fromkeys(self.broken()[:10], 1)
        zones, racks = world.topology.zones, world.topology.racks
        return Outcome(
            started_s=started,
            ended_s=ended,
            failures=failures,
            origin_bytes=float(crossed[world.topology.origin_link]),
            up_bytes=crossed[[node.up_link for node in self.nodes]],
            down_bytes=crossed[[node.down_link for node in self.nodes]],
            zone_in_bytes=[float(crossed[entry]) for entry, _ in zones],
            rack_in_bytes=[float(crossed[entry]) for entry, _ in racks],
            collections_s=[
                max(times.values()) if len(times) == len(self.nodes) else None
                for times in self.collections_s
            ],
            scheduler_messages=world.scheduler_messages - start.messages,
            events=world.events - start.events,
            wall_s=wall_s,
            cpu_s=cpu_s,
            trace_hash=world.trace_hash(),
            curves=self.curves,
        )


def make_world(options: RunOptions, plan: Plan) -> World:
    """The world of a plan. Hosts tell their nominal rates, as daemons read them from their links;
    that some are really slower is not told."""
    seeded = any(host.seed for host in plan.hosts)
    origin_bytes_s = options.base_rate_bytes_s if seeded else plan.origin_bytes_s
    limits = PeerLimits()
    return World(
        WorldOptions(
            seed=options.seed,
            latency_ns=options.latency_ns,
            validate=False,
            hosts=tuple(
                HostSpec(
                    up_bytes_s=host.up_bytes_s / host.slowed,
                    down_bytes_s=host.down_bytes_s / host.slowed,
                    zone=host.zone,
                    rack=host.rack,
                    told_rate=True,
                )
                for host in plan.hosts
            ),
            zones=tuple(ZoneSpec(cut.in_bytes_s, cut.out_bytes_s) for cut in plan.zones),
            racks=tuple(ZoneSpec(cut.in_bytes_s, cut.out_bytes_s) for cut in plan.racks),
            origin=OriginSpec(rate_bytes_s=origin_bytes_s),
            task_sizes=plan.task_sizes,
            unit_bytes=options.unit_bytes,
            quantum_ns=options.quantum_ns,
            control_batch_ns=options.control_batch_ns,
            # As many units as there are pieces in a daemon's budget: a unit stands for pieces that
            # come and go one by one.
            peer_limits=replace(
                limits,
                in_flight_bytes_max=limits.in_flight_bytes_max
                * max(1, options.unit_bytes // PIECE_LENGTH_BYTES_MAX),
            ),
        )
    )


def fill_seeds(world: World, nodes: list[SimNode], plan: Plan) -> None:
    """Seeds read everything before the run; then the origin becomes what the plan says."""
    seeds = [node for node, host in zip(nodes, plan.hosts, strict=True) if host.seed]
    if not seeds:
        return
    for node in seeds:
        node.want()
    filled = world.run(until=lambda: all(node.ended for node in seeds), limit_s=SEEDING_LIMIT_S)
    assert filled, "the seeds could not be filled"
    world.run_for(1.0)
    if plan.origin_bytes_s > 0:
        world.network.set_rate(world.topology.origin_link, plan.origin_bytes_s)
    else:
        world.origin.up = False


def run(
    options: RunOptions, plan: Plan, limit_s: float, curve_step_s: float | None = None
) -> Outcome:
    """Runs the plan until every host that must finish has, or the limit."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    world = make_world(options, plan)
    nodes = list(world.nodes.values())
    world.run_for(CONNECTING_S)
    fill_seeds(world, nodes, plan)
    for node, host in zip(nodes, plan.hosts, strict=True):
        if host.slowed != 1.0:
            node.slow_down(host.slowed)
    start = Start(
        world.now_ns,
        np.array(world.network.link_bytes(world.now_ns)),
        world.scheduler_messages,
        world.events,
    )
    going = Run(options, plan, world, nodes, start)
    if plan.collections > 1:
        going.collections_s = [{} for _ in range(plan.collections)]
        going.look()
    if curve_step_s is not None:
        going.curves = Curves()
        going.sample(int(curve_step_s * SECOND_NS))
    going.begin()
    world.run(until=going.all_ended, limit_s=start.now_ns / SECOND_NS + limit_s)
    if plan.collections > 1:
        # A content is sealed a moment before its download is told to have ended.
        world.run_for(2 * LOOK_NS / SECOND_NS)
    return going.outcome(time.perf_counter() - wall_s, time.process_time() - cpu_s)
