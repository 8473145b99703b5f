"""The least time in which link rates allow a plan to be done: the fluid bound, over every cut.

A cut is a set of hosts and what can enter it: each host of the set must receive everything after
its arrival, and nothing arrives faster than the links into the set and the uplinks inside it
carry. No schedule, however clever, is faster than the slowest cut; latency, pieces and decisions
count as nothing here, so a real run is always above. `docs/benchmarks.md` has the formulas.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.scale.plan import Cut, Host, Plan

Intervals = tuple[tuple[float, float], ...]
Supply = tuple[float, Intervals]
"""Bytes per second, and when."""

ALWAYS: Intervals = ((0.0, float("inf")),)


@dataclass(frozen=True, slots=True)
class Term:
    """One cut's bound. `kind` is origin, download, uploads, zone or rack; `index` the zone's or
    rack's number."""

    seconds: float
    kind: str
    index: int = -1

    @property
    def name(self) -> str:
        """As reports name it."""
        return self.kind if self.index < 0 else f"{self.kind} {self.index}"


def presence(host: Host) -> Intervals:
    """When a host is there."""
    start = 0.0 if host.seed else host.arrives_s
    end = float("inf") if host.leaves_s is None else host.leaves_s
    found = []
    for away_s, back_s in sorted(host.away):
        found.append((start, away_s))
        start = back_s
    found.append((start, end))
    return tuple((begin, stop) for begin, stop in found if stop > begin)


class Capacity:
    """How many bytes some links can have carried by any time."""

    def __init__(self, supplies: Iterable[Supply]) -> None:
        changes: dict[float, float] = {0.0: 0.0}
        for rate, intervals in supplies:
            for begin, stop in intervals:
                changes[begin] = changes.get(begin, 0.0) + rate
                if stop != float("inf"):
                    changes[stop] = changes.get(stop, 0.0) - rate
        self.times: NDArray[np.float64] = np.array(sorted(changes))
        self.rates = np.maximum(np.cumsum([changes[time] for time in self.times]), 0.0)
        steps = self.rates[:-1] * np.diff(self.times)
        self.bytes: NDArray[np.float64] = np.concatenate(([0.0], np.cumsum(steps)))

    def carried(self, time_s: float) -> float:
        """Bytes that can have been carried from the start until a time."""
        place = int(np.searchsorted(self.times, time_s, side="right")) - 1
        return float(self.bytes[place] + self.rates[place] * (time_s - self.times[place]))

    def when(self, count: float) -> float:
        """The earliest time at which so many bytes can have been carried; inf if never."""
        place = max(0, int(np.searchsorted(self.bytes, count, side="left")) - 1)
        while place + 1 < len(self.times) and self.bytes[place + 1] < count:
            place += 1
        if count <= self.bytes[place]:
            return float(self.times[place])
        rate = float(self.rates[place])
        missing = count - float(self.bytes[place])
        return float(self.times[place]) + missing / rate if rate > 0 else float("inf")


def wait(demands: Sequence[float], size: float, capacity: Capacity) -> float:
    """When every demand (the time from which on one copy must come in) can be met: whoever
    arrives at or after any moment needs what is carried after that moment."""
    latest = 0.0
    ordered = sorted(demands)
    for index, start in enumerate(ordered):
        if index and start == ordered[index - 1]:
            continue
        copies = len(ordered) - index
        latest = max(latest, capacity.when(copies * size + capacity.carried(start)))
    return latest


def own_term(host: Host, size: float) -> float:
    """When a host can have everything if only its own downlink counts."""
    return Capacity([(host.down_bytes_s, presence(host))]).when(size)


def uplinks(hosts: Iterable[Host]) -> list[Supply]:
    """What hosts can send."""
    return [(host.up_bytes_s, presence(host)) for host in hosts]


def upload_capacity(plan: Plan) -> Capacity:
    """What the origin and all hosts can send."""
    return Capacity([(plan.origin_bytes_s, ALWAYS), *uplinks(plan.hosts)])


def origin_term(plan: Plan) -> Term:
    """One copy has to leave the origin, or whoever has it from the beginning."""
    demands = [host.arrives_s for host in plan.hosts if host.must_finish]
    seeds = uplinks(host for host in plan.hosts if host.seed)
    capacity = Capacity([(plan.origin_bytes_s, ALWAYS), *seeds])
    return Term(wait(sorted(demands)[:1], plan.size_bytes, capacity), "origin")


def cut_terms(plan: Plan, kind: str, cuts: Sequence[Cut]) -> list[Term]:
    """Of each zone or rack: one copy through its link, and all its hosts from its link and one
    another; together: one copy into each of them from the origin and from others' links."""
    found, entering, exits = [], 0, [(plan.origin_bytes_s, ALWAYS)]
    for index, cut in enumerate(cuts):
        members = [host for host in plan.hosts if getattr(host, kind) == index]
        demands = sorted(host.arrives_s for host in members if host.must_finish)
        exits.append((min(cut.out_bytes_s, sum(host.up_bytes_s for host in members)), ALWAYS))
        if not demands:
            continue
        link: Supply = (cut.in_bytes_s, ALWAYS)
        seconds = wait(demands, plan.size_bytes, Capacity([link, *uplinks(members)]))
        if not any(host.seed for host in members):
            entering += 1
            seconds = max(seconds, wait(demands[:1], plan.size_bytes, Capacity([link])))
        found.append(Term(seconds, kind, index))
    if entering:
        found.append(Term(Capacity(exits).when(entering * plan.size_bytes), f"{kind}s together"))
    return found


def terms(plan: Plan) -> list[Term]:
    """Every term of the bound, the origin's first."""
    waiting = [host for host in plan.hosts if host.must_finish]
    size = plan.size_bytes
    demands = [host.arrives_s for host in waiting]
    return [
        origin_term(plan),
        Term(max(own_term(host, size) for host in waiting), "download"),
        Term(wait(demands, size, upload_capacity(plan)), "uploads"),
        *cut_terms(plan, "zone", plan.zones),
        *cut_terms(plan, "rack", plan.racks),
    ]


def binding(plan: Plan) -> Term:
    """The term that decides; the first of equal ones."""
    found = terms(plan)
    highest = max(term.seconds for term in found)
    return next(term for term in found if term.seconds >= highest * (1 - 1e-9))


def class_bounds(plan: Plan) -> dict[str, float]:
    """Each class's own bound: the origin, its slowest download, and the uploads that it takes to
    serve it and every host at least as fast. All classes can reach theirs in one run."""
    waiting = [host for host in plan.hosts if host.must_finish]
    labels = list(dict.fromkeys(host.label for host in waiting))
    if len(labels) < 2:
        return {}
    capacity, origin = upload_capacity(plan), origin_term(plan).seconds
    cuts = [*cut_terms(plan, "zone", plan.zones), *cut_terms(plan, "rack", plan.racks)]
    bounds = {}
    for label in labels:
        members = [host for host in waiting if host.label == label]
        slowest = min(host.down_bytes_s for host in members)
        served = [host.arrives_s for host in waiting if host.down_bytes_s >= slowest]
        own = [own_term(host, plan.size_bytes) for host in members]
        through = [
            term.seconds
            for term in cuts
            if any(getattr(host, term.kind, None) == term.index for host in members)
        ]
        uploads = wait(served, plan.size_bytes, capacity)
        bounds[label] = max(origin, uploads, *own, *through)
    return bounds
