"""A seed is a run: two fresh processes that hash strings differently see the same events."""

import pytest

from benchmarks.sim.determinism import trace_at_scale, trace_of


@pytest.mark.slow
def test_the_same_events_in_processes_that_hash_strings_differently() -> None:
    assert trace_of(1, hash_seed=1) == trace_of(1, hash_seed=2)
    assert trace_of(1, hash_seed=1) != trace_of(2, hash_seed=1)


@pytest.mark.slow
def test_the_same_events_in_a_scenario() -> None:
    assert trace_at_scale(1, hash_seed=1) == trace_at_scale(1, hash_seed=2)
