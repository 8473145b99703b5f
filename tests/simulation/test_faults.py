"""Faults: that a plan is what its seed says, and that swarms live through what is drawn."""

import random

import pytest

from benchmarks.sim import __main__ as command
from benchmarks.sim.checks import FaultResult, run_with_faults
from benchmarks.sim.faults import Fault, FaultPlan, Kind, _Draw
from benchmarks.sim.world import World, WorldOptions
from shoal.wire.limits import MIB, MILLISECOND_NS, SECOND_NS

MB = 1_000_000


def make_world(nodes: int = 5, size_bytes: int = 8 * MIB, seed: int = 1) -> World:
    return World(
        WorldOptions(
            nodes=nodes,
            size_bytes=size_bytes,
            origin_rate_bytes_s=25 * MB,
            node_rate_bytes_s=25 * MB,
            seed=seed,
        )
    )


def run(plan: FaultPlan, **changes: int) -> FaultResult:
    result = run_with_faults(make_world(**changes), plan)
    assert result.violations == []
    return result


def test_a_seed_means_one_plan() -> None:
    assert FaultPlan.draw(7, hosts=8, span_s=3) == FaultPlan.draw(7, hosts=8, span_s=3)
    assert len({str(FaultPlan.draw(seed, hosts=8, span_s=3)) for seed in range(20)}) == 20


def test_what_one_kind_draws_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = FaultPlan.draw(11, hosts=20, span_s=3)
    monkeypatch.setattr(_Draw, "_gone", lambda draw: [])
    after = FaultPlan.draw(11, hosts=20, span_s=3)
    lasting = [fault for fault in before.faults if fault.lasts_ns is not None]
    assert lasting
    assert list(after.faults) == lasting
    assert after.lost_chance == before.lost_chance


@pytest.mark.parametrize("kind", list(Kind))
def test_each_kind_of_fault(kind: Kind) -> None:
    lasts_ns = None if kind is Kind.LEAVE else 300 * MILLISECOND_NS
    fault = Fault(250 * MILLISECOND_NS, kind, host=1, lasts_ns=lasts_ns, share=0.1)
    result = run(FaultPlan(end_ns=SECOND_NS, faults=(fault,)))
    assert result.faults == {kind.value: 1}


def test_a_host_that_never_comes_back_is_not_waited_for() -> None:
    fault = Fault(250 * MILLISECOND_NS, Kind.CRASH, host=0)
    assert run(FaultPlan(end_ns=SECOND_NS, faults=(fault,))).faults == {"crash": 1}


def test_lost_and_late_control_messages_delay_and_nothing_else() -> None:
    plan = FaultPlan(seed=3, end_ns=3 * SECOND_NS, lost_chance=0.05, late_chance=0.3)
    result = run(plan)
    assert result.faults["lost"] > 0
    assert result.faults["late"] > 0


def test_turned_bits_are_fetched_again_and_end_with_the_faults() -> None:
    result = run(FaultPlan(seed=3, end_ns=2 * SECOND_NS, flip_chance=0.1))
    assert result.faults["flip"] > 0


def test_a_breakdown_of_a_core_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world(2)
    node = next(iter(world.nodes.values()))
    monkeypatch.setattr(node.engine, "validate", lambda: 1 // 0)
    result = run_with_faults(world, FaultPlan())
    assert result.exit_code == 1
    assert "ZeroDivisionError" in result.safety[0]


def test_a_swarm_that_does_not_end_is_a_violation() -> None:
    world = make_world(2)
    world.origin.up = False
    assert run_with_faults(world, FaultPlan(), limit_s=0.5).exit_code == 2


def test_the_command_tells_first_how_to_run_it_again(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--seed", "5", "--nodes", "3", "--size", "2"]
    assert command.main(words) == 0
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith("seed 5 commit ")
    assert "nodes=3" in first
    assert last.startswith("trace ")


def test_the_command_sees_a_run_that_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = random.Random(1)
    monkeypatch.setattr(command, "run", lambda chosen: FaultResult(trace=str(draws.random())))
    assert command.main(["--seed", "5"]) == command.NONDETERMINISM


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_swarms_live_through_what_is_drawn(seed: int) -> None:
    world = make_world(6, seed=seed)
    plan = FaultPlan.draw(seed, hosts=6, span_s=2 * world.bound_s())
    assert run_with_faults(world, plan).violations == []
