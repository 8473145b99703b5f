"""Tiny runs of every policy and scenario of the scale benchmark; one model against its source."""

import json
from pathlib import Path

import pytest

from benchmarks.scale import plot
from benchmarks.scale.__main__ import main
from benchmarks.scale.baselines.dragonfly import Dragonfly, DragonflyLatest
from benchmarks.scale.options import RunOptions
from benchmarks.scale.plan import Plan
from benchmarks.scale.policies import POLICIES, run
from benchmarks.scale.scenarios import SCENARIOS, build
from shoal.wire.limits import GIB, MIB


def tiny(**changes: object) -> RunOptions:
    options: dict[str, object] = {"nodes": 6, "size_bytes": 128 * MIB, "unit_bytes": 8 * MIB}
    return RunOptions(**(options | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_brings_everything_to_everybody(policy: str) -> None:
    options = tiny(policy=policy)
    plan = build(options)
    result, outcome = run(options, plan)
    assert not result["failures"]
    assert result["makespan_over_bound"] >= 1.0
    assert result["origin_copies"] > 0.999
    assert min(outcome.down_bytes) >= 0.999 * plan.size_bytes
    again, _ = run(options, plan)
    assert again["trace_hash"] == result["trace_hash"], "a seed is a run"


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_scenario_runs_with_our_cores(scenario: str) -> None:
    options = tiny(scenario=scenario, zones=2)
    result, _ = run(options, build(options))
    assert not result["failures"]
    assert result["makespan_over_bound"] >= 0.999


@pytest.mark.parametrize("scenario", ["churn", "leave", "flash", "stagger", "zones-narrow"])
@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "ours"])
def test_models_survive_what_scenarios_do(policy: str, scenario: str) -> None:
    options = tiny(policy=policy, scenario=scenario, nodes=12, zones=2, layers=2)
    result, _ = run(options, build(options))
    assert not result["failures"]
    assert result["makespan_over_bound"] >= 0.999


def test_reading_the_origin_alone_costs_a_copy_per_host() -> None:
    options = tiny(policy="origin-only")
    result, _ = run(options, build(options))
    assert result["origin_copies"] == pytest.approx(6)
    assert result["makespan_over_bound"] == pytest.approx(6, rel=0.02)


def test_whole_files_double_each_round() -> None:
    options = tiny(policy="whole-file", nodes=15)
    result, _ = run(options, build(options))
    assert result["makespan_over_bound"] == pytest.approx(4, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "published_s", "tolerance"), [(Dragonfly, 50, 0.12), (DragonflyLatest, 87, 0.12)]
)
def test_the_model_of_dragonfly_stays_calibrated_to_the_published_fan_out(
    model: type[Dragonfly], published_s: float, tolerance: float
) -> None:
    # 10 peers, 30 GiB, 1 GiB/s, 16 pieces at a time.
    options = RunOptions(
        nodes=10,
        size_bytes=30 * GIB,
        node_rates_bytes_s=(float(GIB),),
        origin_rate_bytes_s=float(GIB),
        policy="dragonfly",
    )
    swarm = model(options, build(options))
    swarm.concurrent_pieces = 16
    ended = swarm.run(1000).ended_s
    assert max(time or 0.0 for time in ended) == pytest.approx(published_s, rel=tolerance)


def test_the_command_prints_one_object_or_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--nodes", "5", "--size", "64MiB", "--policy", "kraken"]
    assert main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["policy"] == "kraken"
    assert result["commit"]
    assert main(words) == 0
    assert capsys.readouterr().out.startswith("seed 1, commit ")


@pytest.mark.slow
def test_all_policies_are_compared_with_and_without_zones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--nodes", "4", "--zones", "2", "--size", "64MiB", "--compare", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert [result["policy"] for result in results] == 2 * list(POLICIES)
    assert all(result["zone_copies_max"] for result in results[len(POLICIES) :])


def test_a_comparison_in_one_scenario_is_one_table(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--nodes", "2", "--size", "16MiB", "--compare", "--scenario", "late"]
    assert main(words) == 0
    assert capsys.readouterr().out.count("seed 1, commit ") == 1


@pytest.mark.parametrize("nodes", [1, 2])
def test_many_small_layers_wait_for_nothing(nodes: int) -> None:
    options = RunOptions(nodes=nodes, size_bytes=7 * MIB, layers=7, unit_bytes=8 * MIB)
    result, _ = run(options, build(options), None)
    assert result["makespan_s"] < 1.0


def test_wrong_usage_is_told_and_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--policy", "magic"]) == 2
    assert "no policy 'magic': one of ours" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_can_be_drawn(tmp_path: Path) -> None:
    options = tiny(policy="kraken")
    plan: Plan = build(options)
    result, outcome = run(options, plan, 0.005)
    result["commit"] = "none"
    plot.draw(tmp_path / "run.png", plan, outcome, result)
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
