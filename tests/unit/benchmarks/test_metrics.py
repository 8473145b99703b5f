"""Numbers of reports from made-up records."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.scale import report
from benchmarks.scale.__main__ import main
from benchmarks.scale.metrics import Outcome, percentile, summarise
from benchmarks.scale.options import RunOptions
from benchmarks.scale.plan import Cut, Host, Plan

REQUIRED = {
    "nodes", "size_bytes", "seed", "policy", "bound_s", "makespan_s", "makespan_over_bound",
    "utilisation", "p50_s", "p99_s", "p999_s", "origin_copies", "zone_copies_max",
    "rack_copies_max", "scheduler_messages_per_host_s", "wall_s", "events", "cpu_s", "scenario",
    "slowest_over_p50", "class_ratios", "trace_hash", "commit", "options",
}  # fmt: skip


def outcome(ended: list[float | None], **changes: object) -> Outcome:
    count = len(ended)
    record: dict[str, object] = {
        "started_s": [0.0] * count,
        "ended_s": ended,
        "origin_bytes": 100.0,
        "up_bytes": np.full(count, 50.0),
        "down_bytes": np.full(count, 100.0),
        "events": 7,
        "wall_s": 0.1,
        "cpu_s": 0.1,
        "trace_hash": "ab",
    }
    return Outcome(**(record | changes))  # type: ignore[arg-type]


def plan(*hosts: Host, **changes: object) -> Plan:
    return Plan(
        definition="made up",
        hosts=hosts,
        origin_bytes_s=10.0,
        task_sizes=(100,),
        **changes,  # type: ignore[arg-type]
    )


def equal(count: int) -> tuple[Host, ...]:
    return (Host(up_bytes_s=10.0, down_bytes_s=10.0),) * count


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(value) for value in range(1, 501)]
    assert percentile(values, 0.5) == 250
    assert percentile(values, 0.99) == 495
    assert percentile(values, 0.999) == 500
    assert percentile([3.0], 0.5) == 3.0


def test_a_run_of_equal_hosts() -> None:
    record = outcome([10.0, 12.5], scheduler_messages=50)
    result = summarise(RunOptions(nodes=2), plan(*equal(2)), record)
    assert result["bound_s"] == 10.0
    assert result["makespan_s"] == 12.5
    assert result["makespan_over_bound"] == 1.25
    assert result["utilisation"] == pytest.approx(100 / (10 * 12.5))
    assert result["upload_share"] == pytest.approx(200 / (30 * 12.5))
    assert result["origin_copies"] == 1.0
    assert result["slowest_over_p50"] == 1.25
    assert result["scheduler_messages_per_host_s"] == pytest.approx(50 / 2 / 12.5)
    assert result["zone_copies_max"] is None
    assert {*result, "commit"} >= REQUIRED


def test_times_count_from_each_hosts_own_arrival() -> None:
    late = Host(up_bytes_s=10.0, down_bytes_s=10.0, arrives_s=5.0)
    record = outcome([10.0, 17.0], started_s=[0.0, 5.0])
    result = summarise(RunOptions(nodes=2), plan(equal(1)[0], late), record)
    assert (result["p50_s"], result["p99_s"]) == (10.0, 12.0)
    assert result["makespan_s"] == 17.0
    assert result["makespan_over_bound"] == pytest.approx(17 / 15)


def test_slow_hosts_do_not_count_as_the_tail_of_healthy_ones() -> None:
    slow = Host(up_bytes_s=1.0, down_bytes_s=1.0, label="slow", healthy=False, slowed=0.1)
    good = [Host(up_bytes_s=10.0, down_bytes_s=10.0, label="healthy")] * 2
    result = summarise(RunOptions(nodes=3), plan(*good, slow), outcome([10.0, 11.0, 105.0]))
    assert result["slowest_over_p50"] == pytest.approx(1.1)
    assert result["class_ratios"] == {"healthy": pytest.approx(1.1), "slow": pytest.approx(1.05)}


def test_the_link_that_binds_is_the_one_whose_use_is_told() -> None:
    zones = (Cut(in_bytes_s=5.0, out_bytes_s=5.0),)
    hosts = (Host(up_bytes_s=10.0, down_bytes_s=10.0, zone=0),) * 2
    record = outcome([24.0, 25.0], zone_in_bytes=[110.0])
    result = summarise(RunOptions(nodes=2), plan(*hosts, zones=zones), record)
    assert result["bound_by"] == "zone 0"
    assert result["utilisation"] == pytest.approx(110 / (5 * 25))
    assert result["zone_copies_max"] == pytest.approx(1.1)


def test_downlinks_count_while_their_host_is_there() -> None:
    late = Host(up_bytes_s=10.0, down_bytes_s=10.0, arrives_s=5.0)
    record = outcome([10.0, 17.5], started_s=[0.0, 5.0])
    result = summarise(RunOptions(nodes=2), plan(equal(1)[0], late), record)
    assert result["bound_by"] == "download"
    assert result["utilisation"] == pytest.approx(100 / (10 * 12.5))


def test_a_run_that_did_not_finish_has_no_makespan() -> None:
    record = outcome([10.0, None], failures={"time limit": 1})
    result = summarise(RunOptions(nodes=2), plan(*equal(2)), record)
    assert result["makespan_s"] is None
    assert result["makespan_over_bound"] is None
    assert result["unfinished"] == 1
    assert "1 hosts did not finish: time limit (1)" in report.table([{**result, "commit": "c"}])


def test_the_table_begins_with_what_it_takes_to_repeat_the_run() -> None:
    result = summarise(RunOptions(nodes=2, seed=7), plan(*equal(2)), outcome([10.0, 10.0]))
    result["commit"] = report.commit()
    first = report.table([result]).splitlines()[0]
    assert first.startswith(f"seed 7, commit {result['commit']}, nodes 2, size 64GiB")
    assert json.loads(report.as_json([result], many=False))["seed"] == 7
    assert len(json.loads(report.as_json([result, result], many=True))) == 2


def test_stored_runs_become_a_table_for_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = summarise(RunOptions(nodes=2, seed=7), plan(*equal(2)), outcome([10.0, 10.0]))
    result["commit"] = "c"
    one, many = tmp_path / "one.json", tmp_path / "many.json"
    one.write_text(report.as_json([result], many=False))
    many.write_text(report.as_json([result, result], many=True))
    assert main(["results", str(one), str(many)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 3
    assert lines[2].startswith("| equal, 2 nodes, 100, seed 7 | ours | 10.00 |")
    one.write_text("")
    assert main(["results", str(one)]) == 2
    assert "--json" in capsys.readouterr().err
