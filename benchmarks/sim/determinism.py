"""`python -m benchmarks.sim.determinism --seeds 20`: is a seed a run?

Runs every seed twice, each time in a fresh process that hashes strings differently, and compares
the hashes of what happened. Half of the seeds are swarms with drawn faults, half are scenarios of
the benchmark at scale. Exit codes: 0 all are equal, 3 some differ.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.sim.__main__ import NONDETERMINISM, say

ROOT: Final = Path(__file__).parents[2]
TIMEOUT_S: Final = 300.0
FAULTS: Final = ("--nodes", "5", "--size", "4", "--tasks", "2", "--once")
SCALE: Final = ("--nodes", "24", "--size", "512MiB", "--json")
SCENARIOS: Final = ("churn", "zones", "mixed", "slow1pct", "stagger")


def trace_of(seed: int, hash_seed: int) -> str:
    """The trace hash of a small swarm with the faults of this seed, from a fresh process. Raises
    CalledProcessError if the run fails and TimeoutExpired if it does not end."""
    for line in _output("benchmarks.sim", hash_seed, "--seed", str(seed), *FAULTS).splitlines():
        if line.startswith("trace "):
            return line
    raise AssertionError("benchmarks.sim prints its trace")


def trace_at_scale(seed: int, hash_seed: int) -> str:
    """The trace hash of a scenario with this seed, from a fresh process. Raises as `trace_of`."""
    scenario = SCENARIOS[seed % len(SCENARIOS)]
    told = _output(
        "benchmarks.scale", hash_seed, "--seed", str(seed), "--scenario", scenario, *SCALE
    )
    return f"{scenario} {json.loads(told)['trace_hash']}"


def _output(module: str, hash_seed: int, *words: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'proto'}",
            "PYTHONHASHSEED": str(hash_seed),
        },
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
    ).stdout


def main(words: Sequence[str] | None = None) -> int:
    """Compares, a line per seed, and returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sim.determinism")
    parser.add_argument("--seeds", type=int, default=20)
    chosen = parser.parse_args(words)
    differing = 0
    for seed in range(1, chosen.seeds + 1):
        trace = trace_of if seed % 2 else trace_at_scale
        first, second = trace(seed, 2 * seed), trace(seed, 2 * seed + 1)
        differing += first != second
        say(f"seed {seed}: {first} {'equal' if first == second else 'DIFFERS: ' + second}")
    say(f"{chosen.seeds - differing} of {chosen.seeds} seeds gave equal traces")
    return NONDETERMINISM if differing else 0


if __name__ == "__main__":
    sys.exit(main())
