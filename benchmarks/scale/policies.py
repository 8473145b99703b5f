"""Every policy by its name, and the running of one. Each takes a plan and gives the same record."""

from collections.abc import Callable
from typing import Any, Final

from benchmarks.scale.baselines.dragonfly import Dragonfly, DragonflyLatest
from benchmarks.scale.baselines.kraken import Kraken
from benchmarks.scale.baselines.origin_only import OriginOnly
from benchmarks.scale.baselines.whole_file import Spegel, WholeFile
from benchmarks.scale.bounds import binding
from benchmarks.scale.metrics import Outcome, summarise
from benchmarks.scale.options import RunOptions
from benchmarks.scale.plan import Plan
from shoal.wire.errors import UsageError

Runner = Callable[[RunOptions, Plan, float, float | None], Outcome]
"""Options, plan, limit in simulated seconds, step of curves in seconds or None."""


def _ours(options: RunOptions, plan: Plan, limit_s: float, step_s: float | None) -> Outcome:
    from benchmarks.scale import ours

    return ours.run(options, plan, limit_s, step_s)


def _model(model: Callable[[RunOptions, Plan], Any]) -> Runner:
    def run_model(options: RunOptions, plan: Plan, limit_s: float, step_s: float | None) -> Outcome:
        outcome: Outcome = model(options, plan).run(limit_s, step_s)
        return outcome

    return run_model


POLICIES: Final[dict[str, Runner]] = {
    "ours": _ours,
    "dragonfly": _model(Dragonfly),
    "dragonfly-latest": _model(DragonflyLatest),
    "kraken": _model(Kraken),
    "whole-file": _model(WholeFile),
    "spegel": _model(Spegel),
    "origin-only": _model(OriginOnly),
}
COMPARED: Final = tuple(POLICIES)


def time_limit_s(options: RunOptions, plan: Plan) -> float:
    """When a run is given up: later than even every host reading the origin alone would take."""
    if options.limit_s is not None:
        return options.limit_s
    alone_s = len(plan.hosts) * plan.size_bytes / max(plan.origin_bytes_s, 1.0)
    bound_s = binding(plan).seconds
    return 60 + bound_s + max(20 * bound_s, 1.5 * min(alone_s, 5000 * bound_s))


def run(
    options: RunOptions, plan: Plan, step_s: float | None = None
) -> tuple[dict[str, Any], Outcome]:
    """Runs the options' policy on a plan. Raises UsageError for a policy that is none."""
    runner = POLICIES.get(options.policy)
    if runner is None:
        known = ", ".join(POLICIES)
        raise UsageError(f"no policy {options.policy!r}: one of {known}")
    outcome = runner(options, plan, time_limit_s(options, plan), step_s)
    return summarise(options, plan, outcome), outcome
