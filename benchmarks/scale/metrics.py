"""From what a run recorded to the numbers that are reported. Every policy goes through here.

`docs/benchmarks.md` defines each number.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.scale.bounds import (
    Term,
    binding,
    class_bounds,
    own_term,
    presence,
    upload_capacity,
)
from benchmarks.scale.options import RunOptions
from benchmarks.scale.plan import Plan


@dataclass(slots=True)
class Curves:
    """Cumulative bytes through every host's links and the origin's, sampled for pictures."""

    times_s: list[float] = field(default_factory=list)
    up_bytes: list[NDArray[np.float64]] = field(default_factory=list)
    down_bytes: list[NDArray[np.float64]] = field(default_factory=list)
    origin_bytes: list[float] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What a policy's run recorded. Times in seconds from the start; lists are by host."""

    started_s: list[float | None]
    ended_s: list[float | None]
    """None: it never had everything."""
    failures: dict[str, int] = field(default_factory=dict)
    origin_bytes: float
    up_bytes: Sequence[float] | NDArray[np.float64]
    down_bytes: Sequence[float] | NDArray[np.float64]
    zone_in_bytes: list[float] = field(default_factory=list)
    rack_in_bytes: list[float] = field(default_factory=list)
    collections_s: list[float | None] = field(default_factory=list)
    """When the last host had each collection, where there are several and it was recorded."""
    scheduler_messages: int = 0
    events: int
    wall_s: float
    cpu_s: float
    trace_hash: str
    curves: Curves | None = None


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered) - 1e-9) - 1)]


def summarise(options: RunOptions, plan: Plan, outcome: Outcome) -> dict[str, Any]:
    """One JSON object of a run."""
    term = binding(plan)
    waiting = [index for index, host in enumerate(plan.hosts) if host.must_finish]
    spans = {
        index: ended - started
        for index in waiting
        if (ended := outcome.ended_s[index]) is not None
        and (started := outcome.started_s[index]) is not None
    }
    unfinished = len(waiting) - len(spans)
    makespan = None
    if not unfinished:
        makespan = max(outcome.ended_s[index] or 0.0 for index in waiting)
    size = plan.size_bytes
    times = list(spans.values())
    healthy = [span for index, span in spans.items() if plan.hosts[index].healthy]
    return {
        "nodes": options.nodes,
        "size_bytes": size,
        "seed": options.seed,
        "policy": options.policy,
        "scenario": options.scenario,
        "definition": plan.definition,
        "bound_s": term.seconds,
        "bound_by": term.name,
        "makespan_s": makespan,
        "makespan_over_bound": makespan / term.seconds if makespan is not None else None,
        "utilisation": utilisation(plan, outcome, term, makespan),
        "upload_share": upload_share(plan, outcome, makespan),
        "p50_s": percentile(times, 0.5) if times else None,
        "p99_s": percentile(times, 0.99) if times else None,
        "p999_s": percentile(times, 0.999) if times else None,
        "slowest_over_p50": max(healthy) / percentile(healthy, 0.5) if healthy else None,
        "class_ratios": class_ratios(plan, outcome),
        "origin_copies": outcome.origin_bytes / size,
        "zone_copies_max": max(outcome.zone_in_bytes) / size if outcome.zone_in_bytes else None,
        "rack_copies_max": max(outcome.rack_in_bytes) / size if outcome.rack_in_bytes else None,
        "scheduler_messages_per_host_s": (
            outcome.scheduler_messages / len(plan.hosts) / makespan if makespan else None
        ),
        "collections_s": outcome.collections_s,
        "unfinished": unfinished,
        "failures": outcome.failures,
        "wall_s": outcome.wall_s,
        "cpu_s": outcome.cpu_s,
        "events": outcome.events,
        "trace_hash": outcome.trace_hash,
        "options": options.told(),
    }


def class_ratios(plan: Plan, outcome: Outcome) -> dict[str, float | None]:
    """Each class's slowest over the class's own bound; None while one of it has not finished."""
    ratios: dict[str, float | None] = {}
    for label, bound_s in class_bounds(plan).items():
        ended = [
            time
            for host, time in zip(plan.hosts, outcome.ended_s, strict=True)
            if host.label == label and host.must_finish
        ]
        done = [time for time in ended if time is not None]
        ratios[label] = max(done) / bound_s if len(done) == len(ended) else None
    return ratios


def upload_share(plan: Plan, outcome: Outcome, makespan: float | None) -> float | None:
    """What the origin and all hosts sent over what they could have sent in the makespan."""
    if not makespan:
        return None
    sent = outcome.origin_bytes + float(np.sum(np.asarray(outcome.up_bytes)))
    return sent / upload_capacity(plan).carried(makespan)


def utilisation(plan: Plan, outcome: Outcome, term: Term, makespan: float | None) -> float | None:
    """The busy share, over the makespan, of the link or cut that decides the bound."""
    if not makespan:
        return None
    if term.kind == "origin":
        seeds = [index for index, host in enumerate(plan.hosts) if host.seed]
        rate = plan.origin_bytes_s + sum(plan.hosts[index].up_bytes_s for index in seeds)
        sent = outcome.origin_bytes + sum(float(outcome.up_bytes[index]) for index in seeds)
        return sent / (rate * makespan)
    if term.kind == "download":
        return _download_utilisation(plan, outcome, term, makespan)
    if term.kind == "zone":
        moved = outcome.zone_in_bytes[term.index]
        return moved / (plan.zones[term.index].in_bytes_s * makespan)
    if term.kind == "rack":
        moved = outcome.rack_in_bytes[term.index]
        return moved / (plan.racks[term.index].in_bytes_s * makespan)
    return upload_share(plan, outcome, makespan)


def _download_utilisation(plan: Plan, outcome: Outcome, term: Term, makespan: float) -> float:
    """Of the downlinks that are the slowest by the bound, together, while their host is there."""
    moved = possible = 0.0
    for index, host in enumerate(plan.hosts):
        slowest = host.must_finish and own_term(host, plan.size_bytes) >= term.seconds * (1 - 1e-9)
        if slowest:
            moved += float(outcome.down_bytes[index])
            there = sum(max(0.0, min(stop, makespan) - begin) for begin, stop in presence(host))
            possible += host.down_bytes_s * there
    return moved / possible
