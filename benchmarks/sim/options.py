"""What a simulated run is made of: hosts, links, origin, contents, faults. Plain values."""

import math
from dataclasses import dataclass, field, replace

from benchmarks.sim.faults import FaultPlan
from peer.core.limits import PeerLimits
from scheduler.core.limits import SchedulerLimits
from shoal.wire.limits import MILLISECOND_NS


@dataclass(frozen=True, slots=True)
class HostSpec:
    """One host's links in bytes per second, and where it stands."""

    up_bytes_s: float
    down_bytes_s: float
    zone: int | None = None
    rack: int | None = None
    told_rate: bool = False
    """Whether the host tells its rates to the scheduler (`HostInfo`)."""

    @property
    def label(self) -> str:
        """What the host calls its zone: the smallest place that it knows it is in."""
        parts = []
        if self.zone is not None:
            parts.append(f"zone-{self.zone}")
        if self.rack is not None:
            parts.append(f"rack-{self.rack}")
        return "/".join(parts)


@dataclass(frozen=True, slots=True)
class ZoneSpec:
    """The links between a zone (or a rack) and everything outside of it, in bytes per second."""

    in_bytes_s: float
    out_bytes_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginSpec:
    """The origin as its readers find it."""

    rate_bytes_s: float
    per_connection_bytes_s: float = math.inf
    connections_max: int = 10_000
    round_trip_ns: int | None = None
    """None: as long as between hosts."""


@dataclass(slots=True, kw_only=True)
class WorldOptions:
    """What a run is made of. Rates in bytes per second."""

    nodes: int = 0
    size_bytes: int = 0
    origin_rate_bytes_s: float = 0
    node_rate_bytes_s: float = 0
    seed: int = 1
    latency_ns: int = MILLISECOND_NS // 2
    with_scheduler: bool = True
    validate: bool = True
    content_digest: str | None = "sha256:" + "ab" * 32
    """None: contents are named by URL, and no digest is known."""
    peer_limits: PeerLimits = field(default_factory=PeerLimits)
    scheduler_limits: SchedulerLimits = field(default_factory=SchedulerLimits)
    hosts: tuple[HostSpec, ...] | None = None
    """None: `nodes` equal ones at `node_rate_bytes_s`."""
    zones: tuple[ZoneSpec, ...] = ()
    racks: tuple[ZoneSpec, ...] = ()
    origin: OriginSpec | None = None
    """None: one of `origin_rate_bytes_s` and nothing else to say about it."""
    task_sizes: tuple[int, ...] | None = None
    """None: one task of `size_bytes`; else one collection of these tasks, in this order."""
    unit_bytes: int | None = None
    """Pieces of this length instead of the usual ones: a swarm simulated by runs."""
    quantum_ns: int = MILLISECOND_NS
    """How often the rates of flows are computed anew, at most."""
    control_batch_ns: int = 0
    """If set: how often hosts report and the scheduler tells who holds what."""
    hash_bytes_s: float = math.inf
    disk_bytes_s: float = math.inf
    faults: FaultPlan = field(default_factory=FaultPlan)

    def host_specs(self) -> tuple[HostSpec, ...]:
        """The hosts that are there from the start."""
        if self.hosts is not None:
            return self.hosts
        return (self.plain_host(),) * self.nodes

    def plain_host(self) -> HostSpec:
        """A host like any other."""
        return HostSpec(self.node_rate_bytes_s, self.node_rate_bytes_s)

    def sizes(self) -> tuple[int, ...]:
        """The size of each task of the collection."""
        return (self.size_bytes,) if self.task_sizes is None else self.task_sizes

    def origin_spec(self) -> OriginSpec:
        """The origin with nothing left open."""
        spec = self.origin or OriginSpec(rate_bytes_s=self.origin_rate_bytes_s)
        if spec.round_trip_ns is None:
            spec = replace(spec, round_trip_ns=2 * self.latency_ns)
        return spec

    def limits_of_scheduler(self) -> SchedulerLimits:
        """The scheduler's limits with the intervals of `control_batch_ns`."""
        if not self.control_batch_ns:
            return self.scheduler_limits
        return replace(
            self.scheduler_limits,
            report_interval_min_ns=self.control_batch_ns,
            report_interval_max_ns=self.control_batch_ns,
            map_interval_ns=self.control_batch_ns,
        )
