"""A seed is a run: two fresh processes that hash strings differently see the same events."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def trace_of(seed: int, hash_seed: int) -> str:
    words = ["--seed", str(seed), "--nodes", "5", "--size", "4", "--tasks", "2", "--once"]
    told = subprocess.run(
        [sys.executable, "-m", "benchmarks.sim", *words],
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'proto'}",
            "PYTHONHASHSEED": str(hash_seed),
        },
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    (trace,) = (line for line in told.stdout.splitlines() if line.startswith("trace "))
    return trace


@pytest.mark.slow
def test_the_same_events_in_processes_that_hash_strings_differently() -> None:
    assert trace_of(1, hash_seed=1) == trace_of(1, hash_seed=2)
    assert trace_of(1, hash_seed=1) != trace_of(2, hash_seed=1)
