"""What must be true of a world, and a run with faults in two phases: while they last nothing false
may happen, and when they are over everything must come to its end."""

import traceback
from dataclasses import dataclass, field

from benchmarks.sim.faults import FaultPlan
from benchmarks.sim.world import World
from shoal.wire.limits import SECOND_NS

QUIET_S = 5.0
"""How long a world runs on after its end: what was asked for must be answered by then."""

HEAD_START_S = 0.1
"""Until every host knows the scheduler."""

FAILURES = (AssertionError, LookupError, AttributeError, TypeError, ValueError, ArithmeticError)
"""How a core breaks down."""


def violations(world: World) -> list[str]:
    """What must not be, whatever went wrong before. Liars may do as they like."""
    found = list(world.broken)
    for node in world.nodes.values():
        found += [f"{node.host_id}: {what}" for what in node.ledger.broken if node.alive]
        for task_id, content in node.contents.items():
            # Until the digest of the whole has passed, anything may be false, and nobody knows.
            if content.sealed and content.false and content.descriptor.digest is not None:
                found.append(f"{node.host_id}: {content.false} false pieces in {task_id}")
    return found


def unanswered(world: World) -> list[str]:
    """What cores still wait for, long after the end of everything. Not for worlds with hosts that
    never answer."""
    return [
        f"{node.host_id}: {what} {key} was never answered"
        for node in world.nodes.values()
        if node.alive
        for key, what in node.ledger.open.items()
    ]


def unfinished(world: World) -> list[str]:
    """Hosts that want the content and do not have it."""
    found = []
    for node in world.nodes.values():
        if not node.wants:
            continue
        if not node.alive:
            found.append(f"{node.host_id}: is dead")
        elif not node.ended:
            held = node.held_bytes() / max(1, sum(task.size_bytes for task in world.tasks))
            found.append(f"{node.host_id}: has {held:.1%} and no end")
        elif node.reason is not None:
            found.append(f"{node.host_id}: failed with {node.reason}")
        elif any(content.false for content in node.contents.values()):
            found.append(f"{node.host_id}: ended well with something false")
    return found


@dataclass(slots=True, kw_only=True)
class FaultResult:
    """How a run with faults went."""

    safety: list[str] = field(default_factory=list)
    """What must never happen and did."""
    liveness: list[str] = field(default_factory=list)
    """What did not come to its end."""
    faults: dict[str, int] = field(default_factory=dict)
    """What went wrong, and how often."""
    ended_s: float = 0.0
    recovery_s: float = 0.0
    """From the last fault to the end; 0 if the end came first."""
    trace: str = ""

    @property
    def violations(self) -> list[str]:
        """All of them."""
        return self.safety + self.liveness

    @property
    def exit_code(self) -> int:
        """0 for a good run, 1 for broken safety, 2 for broken liveness."""
        if self.safety:
            return 1
        return 2 if self.liveness else 0


def patience_s(world: World) -> float:
    """How long after the last fault everything must have ended: the time that the bound needs
    many times over, and the longest of the waits that a core may have begun."""
    return 120.0 + 10 * world.bound_s()


def run_with_faults(world: World, plan: FaultPlan, *, limit_s: float | None = None) -> FaultResult:
    """Lets all hosts want the content of a fresh world while things go wrong by the plan, then
    lets them come to their end, at most `limit_s` after the last fault."""
    result = FaultResult()
    if world.faults is None and plan.any():
        world.install(plan)
    try:
        world.run_for(HEAD_START_S)
        for node in list(world.nodes.values()):
            if node.alive:
                node.want()
        world.run_for(max(0.0, (plan.end_ns - world.now_ns) / SECOND_NS))
        limit_s = patience_s(world) if limit_s is None else limit_s
        ended = world.run(until=world.all_done, limit_s=world.now_ns / SECOND_NS + limit_s)
        last_ns = max((node.ended_ns for node in world.nodes.values()), default=0)
        result.ended_s = (last_ns if ended else world.now_ns) / SECOND_NS
        result.recovery_s = max(0.0, result.ended_s - plan.end_ns / SECOND_NS)
        if ended:
            world.run_for(QUIET_S)
    except FAILURES:
        result.safety.append(traceback.format_exc())
    else:
        result.liveness = unfinished(world)
        if ended:
            result.safety += unanswered(world)
    result.safety += violations(world)
    result.faults = dict(world.faults.counts) if world.faults is not None else {}
    result.trace = world.trace_hash()
    return result
