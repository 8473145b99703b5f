"""Every scenario by its name: from options to a plan. `docs/benchmarks.md` lists them.

All draws come from one generator seeded by the run's seed, so a seed is a plan. Decides what
happens to a swarm, never how the swarm answers.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from benchmarks.scale.bounds import binding
from benchmarks.scale.options import RunOptions, format_rate
from benchmarks.scale.plan import Cut, Host, Plan
from shoal.wire.errors import UsageError

Builder = Callable[[RunOptions, Plan, random.Random], Plan]

MIX: Final = (0.5, 1.0, 2.0, 4.0)
SLOW_SHARE: Final = 0.01
SLOW_RATE: Final = 0.1
RACK_HOSTS: Final = 20
RACK_UPLINK_NODES: Final = 4.0
"""Uplink of a rack in rates of a node: oversubscribed 5 to 1."""
WIDE_NODES: Final = 4.0
NARROW_NODES: Final = 0.5
MOVING_SHARE: Final = 0.1
"""Hosts that crash, leave or come late."""
STAGGER_S: Final = 60.0
FLASH_ORIGIN: Final = 0.05
"""What is left of the origin's rate in the flash scenario."""


def build(options: RunOptions) -> Plan:
    """The plan of the options' scenario. Raises UsageError for a name that is none."""
    if options.scenario not in SCENARIOS:
        known = ", ".join(SCENARIOS)
        raise UsageError(f"no scenario {options.scenario!r}: one of {known}")
    dice = random.Random(f"{options.seed}/scenario/{options.scenario}")
    return SCENARIOS[options.scenario](options, equal(options), dice)


def equal(options: RunOptions) -> Plan:
    """All hosts want everything at once; with a mix of rates, hosts take turns in it."""
    rates = options.node_rates_bytes_s
    mixed = len(set(rates)) > 1
    hosts = tuple(
        Host(up_bytes_s=rate, down_bytes_s=rate, label=format_rate(rate) if mixed else "")
        for rate in (rates[index % len(rates)] for index in range(options.nodes))
    )
    told = ", ".join(format_rate(rate) for rate in rates)
    return Plan(
        definition=f"{options.nodes} hosts of {told} up and down want everything at once; "
        f"origin {format_rate(options.origin_rate_bytes_s)}",
        hosts=hosts,
        origin_bytes_s=options.origin_rate_bytes_s,
        task_sizes=options.layer_sizes,
    )


def _equal(options: RunOptions, plan: Plan, dice: random.Random) -> Plan:
    return plan


def _mixed(options: RunOptions, plan: Plan, dice: random.Random) -> Plan:
    if len(options.node_rates_bytes_s) > 1:
        return plan
    rate = options.node_rates_bytes_s[0]
    return equal(replace(options, node_rates_bytes_s=tuple(part * rate for part in MIX)))


def _slow(options: RunOptions, plan: Plan, dice: random.Random) -> Plan:
    count = max(1, round(SLOW_SHARE * options.nodes))
    slow = set(dice.sample(range(options.nodes), count))
    hosts = tuple(
        replace(
            host,
            up_bytes_s=host.up_bytes_s * SLOW_RATE,
            down_bytes_s=host.down_bytes_s * SLOW_RATE,
            label="slow",
            healthy=False,
            slowed=SLOW_RATE,
        )
        if index in slow
        else replace(host, label="healthy")
        for index, host in enumerate(plan.hosts)
    )
    told = f"; {count} of them at {SLOW_RATE:.0%} of the rate, which nobody is told"
    return replace(plan, definition=plan.definition + told, hosts=hosts)


def _asymmetric(options: RunOptions, plan: Plan, dice: random.Random) -> Plan:
    hosts = tuple(replace(host, up_bytes_s=host.down_bytes_s / 2) for host in plan.hosts)
    told = "; up is half of down"
    return replace(plan, definition=plan.definition + told, hosts=hosts)


def _zones(nodes_rate: float) -> Builder:
    def build_zones(options: RunOptions, plan: Plan, dice: random.Random) -> Plan:
        rate = nodes_rate * options.base_rate_bytes_s
        count = min(options.zones, options.nodes)
        hosts = tuple(
            replace(host, zone=index * count // options.nodes)
            for index, host in enumerate(plan.hosts)
        )
        told = f"; {count} zones, each linked to the rest by {format_rate(rate)} in and out, "
        return replace(
            plan,
            definition=plan.definition + told + "the origin outside of all",
            hosts=hosts,
            zones=(Cut(in_bytes_s=rate, out_bytes_s=rate),) * count,
        )

    return build_zones


def _racks(options: RunOptions, plan: Plan, dice: random.Random) -> Plan:
    rate = RACK_UPLINK_NODES * options.base_rate_bytes_s
    count = -(-options.nodes // RACK_HOSTS)
    hosts = tuple(replace(host, rack=index // RACK_HOSTS) for index, host in enumerate(plan.hosts))
    told = f"; racks of {RACK_HOSTS}, each linked to the rest by {format_rate(rate)} in and out"
    return replace(
        plan,
        definition=plan.definition + told,
        hosts=hosts,
        racks=(Cut(in_bytes_s=rate, out_bytes_s=rate),) * count,
    )


def _some(options: RunOptions, dice: random.Random) -> list[int]:
    """The hosts that crash, leave or come late; never all of them."""
    count = min(max(1, round(MOVING_SHARE * options.nodes)), options.nodes - 1)
    return sorted(dice.sample(range(options.nodes), count))


def _changed(plan: Plan, changes: dict[int, Host], told: str, **more: object) -> Plan:
    classes = any(host.label for host in changes.values())
    others = "others" if classes else ""
    hosts = tuple(
        changes.get(index, replace(host, label=host.label or others))
        for index, host in enumerate(plan.hosts)
    )
    return replace(plan, definition=plan.definition + told, hosts=hosts, **more)  # type: ignore[arg-type]


def _churn(options: RunOptions, plan: Plan, dice: random.Random) -> Plan:
    bound_s = binding(plan).seconds
    away_s = min(3.0, bound_s / 5)
    changes = {}
    for index in _some(options, dice):
        start_s = dice.uniform(0.25, 0.75) * bound_s
        away = ((start_s, start_s + dice.uniform(0.5, 1.0) * away_s),)
        changes[index] = replace(plan.hosts[index], away=away, label="crashed")
    down_s = min(1.0, bound_s / 20)
    return _changed(
        plan,
        changes,
        f"; {len(changes)} of them crash in the middle half of the bound and are back after at "
        f"most {away_s:.3g} s with their disk; the scheduler is away at 1/3 and 2/3 of the bound "
        f"for {down_s:.3g} s and comes back without memory",
        scheduler_down=tuple((at * bound_s, at * bound_s + down_s) for at in (1 / 3, 2 / 3)),
    )


def _stagger(options: RunOptions, plan: Plan, dice: random.Random) -> Plan:
    window_s = min(STAGGER_S, binding(plan).seconds)
    times = [0.0, *sorted(dice.uniform(0, window_s) for _ in plan.hosts[1:])]
    hosts = tuple(
        replace(host, arrives_s=time) for host, time in zip(plan.hosts, times, strict=True)
    )
    told = f"; they come at drawn times in {window_s:.3g} s, the first one at 0"
    return replace(plan, definition=plan.definition + told, hosts=hosts)


def _flash(options: RunOptions, plan: Plan, dice: random.Random) -> Plan:
    if options.nodes < 2:
        raise UsageError("the flash scenario needs --nodes of at least 2")
    rate = min(plan.origin_bytes_s, FLASH_ORIGIN * options.base_rate_bytes_s)
    told = f"; one host has everything already, and the origin is down to {format_rate(rate)}"
    seed = {0: replace(plan.hosts[0], seed=True)}
    return _changed(plan, seed, told, origin_bytes_s=rate)


def _late(options: RunOptions, plan: Plan, dice: random.Random) -> Plan:
    at_s = binding(plan).seconds / 2
    late = _some(options, dice)
    told = f"; {len(late)} of them come only after {at_s:.3g} s, half the bound"
    changes = {index: replace(plan.hosts[index], arrives_s=at_s, label="late") for index in late}
    return _changed(plan, changes, told)


def _leave(options: RunOptions, plan: Plan, dice: random.Random) -> Plan:
    at_s = binding(plan).seconds / 2
    leaving = _some(options, dice)
    told = f"; {len(leaving)} of them leave for good after {at_s:.3g} s, half the bound"
    changes = {index: replace(plan.hosts[index], leaves_s=at_s) for index in leaving}
    return _changed(plan, changes, told)


def _priorities(options: RunOptions, plan: Plan, dice: random.Random) -> Plan:
    count = max(3, options.layers)
    sizes = replace(options, layers=count).layer_sizes
    told = f"; the content is {count} collections, wanted at once with falling urgency"
    return replace(plan, definition=plan.definition + told, task_sizes=sizes, collections=count)


SCENARIOS: Final[dict[str, Builder]] = {
    "equal": _equal,
    "mixed": _mixed,
    "slow1pct": _slow,
    "asymmetric": _asymmetric,
    "zones": _zones(WIDE_NODES),
    "zones-narrow": _zones(NARROW_NODES),
    "racks": _racks,
    "churn": _churn,
    "stagger": _stagger,
    "flash": _flash,
    "late": _late,
    "leave": _leave,
    "priorities": _priorities,
}
