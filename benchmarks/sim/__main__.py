"""`python -m benchmarks.sim --seed N`: one world with the faults of that seed.

Prints first what one needs to run it again. Exit codes: 0 all is well, 1 something happened that
must never happen, 2 something did not end, 3 the same seed gave two different runs.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.sim.checks import FaultResult, run_with_faults
from benchmarks.sim.faults import FaultPlan
from benchmarks.sim.world import World, WorldOptions
from shoal.wire.limits import KIB, MIB

NONDETERMINISM = 3


def commit() -> str:
    """The commit that runs, with a plus sign if files differ from it."""
    said = subprocess.run(
        ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return said.stdout.strip() or "unknown"


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """What the user wants."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sim", description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--nodes", type=int, default=6)
    parser.add_argument("--size", type=float, default=16, metavar="MIB", help="MiB of each task")
    parser.add_argument("--tasks", type=int, default=1, help="tasks of the collection")
    parser.add_argument("--rate", type=int, default=25_000_000, help="of every link, in bytes/s")
    parser.add_argument("--unit", type=int, default=0, metavar="KIB", help="piece length")
    parser.add_argument("--span", type=float, default=2.0, help="faults last so many bounds")
    parser.add_argument("--no-faults", action="store_true")
    parser.add_argument("--no-scheduler", action="store_true")
    parser.add_argument("--no-validate", action="store_true", help="faster, and sees less")
    parser.add_argument("--once", action="store_true", help="do not run it again to compare")
    return parser.parse_args(words)


def run(chosen: argparse.Namespace) -> FaultResult:
    """One run of the seed in a fresh world."""
    options = WorldOptions(
        nodes=chosen.nodes,
        task_sizes=(int(chosen.size * MIB),) * chosen.tasks,
        origin_rate_bytes_s=chosen.rate,
        node_rate_bytes_s=chosen.rate,
        seed=chosen.seed,
        unit_bytes=chosen.unit * KIB or None,
        with_scheduler=not chosen.no_scheduler,
        validate=not chosen.no_validate,
    )
    world = World(options)
    plan = FaultPlan()
    if not chosen.no_faults:
        span_s = chosen.span * world.bound_s()
        plan = FaultPlan.draw(chosen.seed, hosts=chosen.nodes, span_s=span_s)
    return run_with_faults(world, plan)


def main(words: Sequence[str] | None = None) -> int:
    """Runs it, tells how it went, and returns the exit code."""
    chosen = arguments(words)
    told = " ".join(f"{name}={value}" for name, value in sorted(vars(chosen).items()))
    say(f"seed {chosen.seed} commit {commit()} options {told}")
    result = run(chosen)
    happened = ", ".join(f"{count} {what}" for what, count in sorted(result.faults.items()))
    say(f"faults: {happened or 'none'}")
    say(f"ended at {result.ended_s:.3f} s, {result.recovery_s:.3f} s after the last fault")
    say(f"trace {result.trace}")
    for what in result.safety:
        say(f"safety: {what}")
    for what in result.liveness:
        say(f"liveness: {what}")
    if result.exit_code == 0 and not chosen.once and run(chosen).trace != result.trace:
        say("nondeterminism: a second run of the same seed had another trace")
        return NONDETERMINISM
    return result.exit_code


def say(line: str) -> None:
    """One line for people."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
