"""Bounds of plans that can be reckoned by hand, and that no scenario lacks one."""

import math

import pytest

from benchmarks.scale.bounds import Capacity, binding, class_bounds, terms, wait
from benchmarks.scale.options import RunOptions
from benchmarks.scale.plan import Cut, Host, Plan
from benchmarks.scale.scenarios import SCENARIOS, build
from shoal.wire.errors import UsageError
from shoal.wire.limits import GIB


def host(rate: float = 10.0, **changes: object) -> Host:
    return Host(up_bytes_s=rate, down_bytes_s=rate, **changes)  # type: ignore[arg-type]


def plan(*hosts: Host, origin: float = 10.0, size: int = 100, **changes: object) -> Plan:
    return Plan(
        definition="",
        hosts=hosts,
        origin_bytes_s=origin,
        task_sizes=(size,),
        **changes,  # type: ignore[arg-type]
    )


def bound(of: Plan) -> tuple[float, str]:
    term = binding(of)
    return term.seconds, term.name


def test_equal_hosts_need_one_copy_however_many_they_are() -> None:
    for count in (1, 2, 100):
        assert bound(plan(*[host()] * count)) == (10.0, "origin")


def test_a_slow_origin_a_slow_host_and_scarce_uploads_each_decide() -> None:
    assert bound(plan(host(), host(), origin=2.0)) == (50.0, "origin")
    assert bound(plan(host(), host(4.0))) == (25.0, "download")
    scarce = Host(up_bytes_s=5.0, down_bytes_s=10.0)
    seconds, name = bound(plan(*[scarce] * 9))
    assert name == "uploads"
    assert seconds == pytest.approx(9 * 100 / (10 + 9 * 5))


def test_who_comes_late_is_done_late() -> None:
    assert bound(plan(host(), host(arrives_s=7.0))) == (17.0, "download")


def test_uploads_of_hosts_that_are_not_there_do_not_count() -> None:
    # Two hosts from 0, two from 10 on; the origin sends 10 per second, each host 1.
    weak = [Host(up_bytes_s=1.0, down_bytes_s=100.0, arrives_s=time) for time in (0, 0, 10, 10)]
    # 400 bytes: 120 until 10, then 14 per second. Those after 10 need 200 after 10.
    assert bound(plan(*weak))[0] == pytest.approx(10 + 280 / 14)


def test_a_crashed_host_neither_sends_nor_receives() -> None:
    seconds, name = bound(plan(host(), host(away=((5.0, 8.0),))))
    assert (seconds, name) == (13.0, "download")


def test_who_leaves_need_not_finish() -> None:
    assert bound(plan(host(), host(1.0, leaves_s=5.0)))[0] == 10.0


def test_a_seed_stands_for_the_origin() -> None:
    assert bound(plan(host(seed=True), host(), origin=0.0)) == (10.0, "origin")
    assert bound(plan(host(seed=True), host(), host(), host(), origin=0.0))[0] == 10.0
    assert bound(plan(host(2.0, seed=True), host(), origin=3.0)) == (20.0, "origin")
    assert math.isinf(bound(plan(host(), origin=0.0))[0])


def test_a_narrow_zone_needs_one_copy_through_its_link() -> None:
    zones = (Cut(in_bytes_s=5.0, out_bytes_s=5.0),) * 2
    members = [host(zone=number) for number in (0, 0, 1, 1)]
    assert bound(plan(*members, zones=zones)) == (20.0, "zone 0")


def test_one_copy_into_each_zone_has_to_come_from_somewhere() -> None:
    zones = (Cut(in_bytes_s=50.0, out_bytes_s=1.0),) * 4
    members = [host(100.0, zone=number) for number in range(4)]
    found = {term.name: term.seconds for term in terms(plan(*members, zones=zones, size=100))}
    assert found["zones together"] == pytest.approx(4 * 100 / (10 + 4))


def test_each_class_has_its_own_bound() -> None:
    hosts = [host(5.0, label="slow"), host(10.0, label="fast"), host(40.0, label="faster")]
    bounds = class_bounds(plan(*hosts, origin=20.0))
    assert bounds == {"slow": 20.0, "fast": 10.0, "faster": 5.0}
    assert class_bounds(plan(host(), host())) == {}


def test_a_class_waits_for_the_uploads_that_serve_it_and_all_faster_ones() -> None:
    weak = [Host(up_bytes_s=0.0, down_bytes_s=100.0, label="fast") for _ in range(3)]
    slow = Host(up_bytes_s=0.0, down_bytes_s=50.0, label="slow")
    assert class_bounds(plan(*weak, slow)) == {"fast": 30.0, "slow": 40.0}


def test_capacity_is_the_integral_of_what_is_there() -> None:
    capacity = Capacity([(2.0, ((0.0, 5.0),)), (1.0, ((3.0, math.inf),))])
    assert [capacity.carried(time) for time in (0, 3, 5, 7)] == [0, 6, 12, 14]
    assert [capacity.when(count) for count in (0, 6, 12, 14)] == [0, 3, 5, 7]
    assert Capacity([(1.0, ((0.0, 2.0),))]).when(3.0) == math.inf
    assert wait([0.0, 4.0], 5.0, Capacity([(1.0, ((0.0, math.inf),))])) == 10.0


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("nodes", [2, 23])
def test_every_scenario_is_a_plan_with_a_finite_bound(name: str, nodes: int) -> None:
    options = RunOptions(nodes=nodes, size_bytes=GIB, scenario=name)
    made = build(options)
    assert 0 < binding(made).seconds < math.inf
    assert made == build(options), "a seed is a plan"
    assert len(made.hosts) == nodes
    assert sum(made.task_sizes) == GIB
    assert made.definition
    times = [fault.at_s for fault in made.faults()]
    assert times == sorted(times)


def test_an_unknown_scenario_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="no scenario 'flood': one of equal"):
        build(RunOptions(scenario="flood"))


def test_narrow_zones_bind_and_wide_ones_do_not() -> None:
    narrow = build(RunOptions(nodes=40, scenario="zones-narrow"))
    wide = build(RunOptions(nodes=40, scenario="zones"))
    assert binding(narrow).name == "zone 0"
    assert binding(narrow).seconds == pytest.approx(2 * binding(wide).seconds)
