"""What a scenario comes to: hosts, cuts, the origin, and what happens when. Data only."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One host. Rates in bytes per second, times in seconds from the start of the run."""

    up_bytes_s: float
    down_bytes_s: float
    zone: int | None = None
    rack: int | None = None
    label: str = ""
    """Its class, where the scenario has several; classes are reported on their own."""
    healthy: bool = True
    """False for a host that is slow by the scenario, whose tail is not the system's doing."""
    arrives_s: float = 0.0
    leaves_s: float | None = None
    """It leaves for good without having to finish."""
    away: tuple[tuple[float, float], ...] = ()
    """(from, to): crashes and comes back with its disk."""
    seed: bool = False
    """It has everything from the beginning and wants nothing."""
    slowed: float = 1.0
    """The share of its nominal rates that it really has. The rates here are the real ones; what
    a host tells of itself is the nominal ones."""

    @property
    def must_finish(self) -> bool:
        """Whether the run waits for it."""
        return not self.seed and self.leaves_s is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """The links of a zone or rack to the rest of the world."""

    in_bytes_s: float
    out_bytes_s: float


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that happens at a time."""

    at_s: float
    kind: Literal["crash", "restart", "leave", "kill_scheduler", "start_scheduler"]
    host: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A run, ready to be built by any policy."""

    definition: str
    """One sentence: what the scenario is, with its numbers."""
    hosts: tuple[Host, ...]
    origin_bytes_s: float
    """0: the origin is gone."""
    task_sizes: tuple[int, ...]
    zones: tuple[Cut, ...] = ()
    racks: tuple[Cut, ...] = ()
    scheduler_down: tuple[tuple[float, float], ...] = ()
    collections: int = 1
    """With more than one, each task is a collection of its own and hosts want all of them at
    once, the later ones with less urgency."""

    @property
    def size_bytes(self) -> int:
        """Everything that one host wants."""
        return sum(self.task_sizes)

    def faults(self) -> list[Fault]:
        """Everything that happens, in order of time."""
        found = []
        for index, host in enumerate(self.hosts):
            for start_s, end_s in host.away:
                found += [Fault(start_s, "crash", index), Fault(end_s, "restart", index)]
            if host.leaves_s is not None:
                found.append(Fault(host.leaves_s, "leave", index))
        for start_s, end_s in self.scheduler_down:
            found += [Fault(start_s, "kill_scheduler"), Fault(end_s, "start_scheduler")]
        return sorted(found, key=lambda fault: fault.at_s)
