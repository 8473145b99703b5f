"""The fluid network against a plain one, and what a swarm simulator relies on."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import inf, isclose

import numpy as np
import pytest

from benchmarks.sim.fluid import FluidNetwork
from benchmarks.sim.maxmin import fill, max_min_rates

QUANTUM_NS = 1_000_000
SECOND_NS = 1e9


@dataclass
class Plan:
    """One flow of a drawn case."""

    start_ns: int
    links: tuple[int, ...]
    size_bytes: int
    cap_bytes_s: float = inf


@dataclass
class Case:
    """Links (number 0 is none) and flows."""

    capacities: list[float]
    plans: list[Plan]


def draw_case(
    seed: int, flows: int, *, zeros: float = 0.0, last_start_ns: int = 20 * QUANTUM_NS
) -> Case:
    """Hosts with an up and a down link, in zones with a link in and a link out; some flows capped,
    some within one host's single link."""
    dice = random.Random(seed)
    capacities = [inf]

    def link(low: float, high: float) -> int:
        capacities.append(0.0 if dice.random() < zeros else dice.uniform(low, high))
        return len(capacities) - 1

    hosts = dice.randrange(2, 9)
    ups = [link(1e8, 4e8) for _ in range(hosts)]
    downs = [link(1e8, 4e8) for _ in range(hosts)]
    if dice.random() < 0.3:  # equal hosts: ties
        capacities[1:] = [2e8] * (2 * hosts)
    zones = dice.randrange(1, 4)
    ins = [link(2e8, 6e8) for _ in range(zones)]
    outs = [link(2e8, 6e8) for _ in range(zones)]
    plans = []
    for _ in range(flows):
        source, target = dice.randrange(hosts), dice.randrange(hosts)
        links: tuple[int, ...] = (ups[source], downs[target])
        if source % zones != target % zones:
            links = (links[0], outs[source % zones], ins[target % zones], links[1])
        elif dice.random() < 0.1:
            links = links[:1]
        cap = dice.uniform(1e6, 2e8) if dice.random() < 0.2 else inf
        size = dice.randrange(5_000_000, 30_000_000)
        plans.append(Plan(dice.randrange(last_start_ns), links, size, cap))
    return Case(capacities, plans)


@pytest.mark.parametrize("seed", range(10))
def test_vectorised_filling_equals_the_textbook(seed: int) -> None:
    for number in range(30):
        dice = random.Random(f"{seed}/{number}")
        case = draw_case(seed * 1000 + number, dice.randrange(1, 40), zeros=0.1 * (number % 2))
        caps = [min(plan.cap_bytes_s, 1e18) for plan in case.plans]
        matrix = np.zeros((4, len(caps)), np.int64)
        for flow, plan in enumerate(case.plans):
            matrix[: len(plan.links), flow] = plan.links
        rates, left = fill(np.array(case.capacities), matrix, np.array(caps))
        exact = max_min_rates(case.capacities, [plan.links for plan in case.plans], caps)
        assert rates.tolist() == pytest.approx(exact, rel=1e-6)
        for link in range(1, len(case.capacities)):
            used = sum(
                rate for rate, plan in zip(exact, case.plans, strict=True) if link in plan.links
            )
            assert left[link] == pytest.approx(case.capacities[link] - used, abs=1.0)


def test_the_textbook_on_a_known_case() -> None:
    """Three links in a row, one long flow and one short flow on each; one of them capped."""
    rates = max_min_rates([10.0, 4.0, 10.0], [(0, 1, 2), (0,), (1,), (2,)], [inf, inf, inf, 5.0])
    assert rates == [2.0, 8.0, 2.0, 5.0]


@dataclass
class Driver:
    """Runs a network on a virtual clock. Notes ends and counts the steps."""

    network: FluidNetwork
    now_ns: int = 0
    ends: list[tuple[int, int]] = field(default_factory=list)
    steps: int = 0

    def done(self, name: int) -> Callable[[int], None]:
        """Notes the end of a flow under a name."""
        return lambda finish_ns: self.ends.append((name, finish_ns))

    def run(self, until_ns: float = inf) -> None:
        """Advances up to a time, or until nothing moves."""
        while (next_ns := self.network.next_ns()) is not None and next_ns <= until_ns:
            self.now_ns = max(self.now_ns, next_ns)
            self.network.advance(self.now_ns)
            self.steps += 1
            assert self.steps < 100_000
        if until_ns < inf:
            self.now_ns = int(until_ns)


def make(*capacities: float, quantum_ns: int = QUANTUM_NS) -> tuple[Driver, list[int]]:
    """A network with links."""
    network = FluidNetwork(quantum_ns=quantum_ns)
    return Driver(network), [network.add_link(capacity) for capacity in capacities]


def run_case(case: Case) -> Driver:
    """Plays the starts of a case and runs it to its end."""
    driver, links = make(*case.capacities[1:])
    assert links == list(range(1, len(case.capacities)))
    for number in sorted(range(len(case.plans)), key=lambda index: case.plans[index].start_ns):
        plan = case.plans[number]
        driver.run(plan.start_ns)
        driver.network.start(
            plan.start_ns, plan.links, plan.size_bytes, driver.done(number), plan.cap_bytes_s
        )
    driver.run()
    return driver


def exact_ends_s(case: Case) -> dict[int, float]:
    """The ends of a case whose rates are computed anew at each start and end."""
    waiting = sorted(range(len(case.plans)), key=lambda index: -case.plans[index].start_ns)
    left: dict[int, float] = {}
    ends: dict[int, float] = {}
    now_s = 0.0
    while waiting or left:
        plans = [case.plans[flow] for flow in left]
        rates = max_min_rates(
            case.capacities, [plan.links for plan in plans], [plan.cap_bytes_s for plan in plans]
        )
        next_s = case.plans[waiting[-1]].start_ns / SECOND_NS if waiting else inf
        for flow, rate in zip(left, rates, strict=True):
            if now_s + left[flow] / rate <= next_s:
                next_s = now_s + left[flow] / rate
        for flow, rate in zip(list(left), rates, strict=True):
            left[flow] -= rate * (next_s - now_s)
            if left[flow] < 1e-3:
                ends[flow] = next_s
                del left[flow]
        now_s = next_s
        while waiting and case.plans[waiting[-1]].start_ns / SECOND_NS <= now_s:
            flow = waiting.pop()
            left[flow] = case.plans[flow].size_bytes
    return ends


@pytest.mark.parametrize("seed", range(12))
def test_quantised_times_are_close_to_exact_ones(seed: int) -> None:
    case = draw_case(seed, 40)
    driver = run_case(case)
    exact = exact_ends_s(case)
    assert len(driver.ends) == len(exact) == 40
    makespan_s = max(exact.values())
    assert isclose(driver.now_ns / SECOND_NS, makespan_s, rel_tol=0.005)
    quantum_s = QUANTUM_NS / SECOND_NS
    errors = []
    for flow, end_ns in driver.ends:
        duration_s = exact[flow] - case.plans[flow].start_ns / SECOND_NS
        assert duration_s >= 20 * quantum_s
        errors.append(abs(end_ns / SECOND_NS - exact[flow]))
        # A quantum of a link's rate, divided by the rate of a slow flow, is more than a quantum.
        assert errors[-1] <= 2 * quantum_s + 0.03 * duration_s
    assert sum(errors) <= len(errors) * quantum_s


@pytest.mark.parametrize("seed", range(5))
def test_bytes_are_conserved(seed: int) -> None:
    case = draw_case(seed, 60)
    driver = run_case(case)
    want = [0.0] * len(case.capacities)
    for plan in case.plans:
        for link in plan.links:
            want[link] += plan.size_bytes
    assert driver.network.link_bytes(driver.now_ns).tolist() == want
    assert driver.network.active == 0


def test_bytes_on_the_way_and_of_cancelled_flows_count() -> None:
    driver, (up, down, other) = make(1e9, 2e9, 1e9)
    network = driver.network
    first = network.start(0, (up, down), 10**9, driver.done(1))
    second = network.start(0, (other, down), 10**9, driver.done(2))
    driver.run(250_000_000)
    assert network.moved_bytes(250_000_000, first) == pytest.approx(2.5e8)
    assert network.cancel(250_000_000, second) == pytest.approx(2.5e8)
    assert network.active == 1
    assert network.link_bytes(250_000_000) == pytest.approx([0.0, 2.5e8, 5e8, 2.5e8])
    driver.run()
    assert driver.ends == [(1, 1_000_000_000)]
    assert network.link_bytes(driver.now_ns) == pytest.approx([0.0, 1e9, 1.25e9, 2.5e8])
    with pytest.raises(KeyError):
        network.cancel(driver.now_ns, second)


def test_successors_lose_no_time() -> None:
    """Chains of flows far shorter than a quantum keep two links busy to the nanosecond."""
    driver, (up, near, far) = make(2e9, 1e9, 1e9)
    network = driver.network
    finish: dict[int, int] = {}

    def follow(link: int, rest: int, now_ns: int) -> None:
        def done(finish_ns: int) -> None:
            finish[link] = finish_ns
            if rest > 1:
                follow(link, rest - 1, finish_ns)

        network.start(now_ns, (up, link), 12_345, done)

    follow(near, 1000, 0)
    follow(far, 1000, 0)
    driver.run()
    assert finish == {near: 12_345_000, far: 12_345_000}
    assert network.recomputations <= 14


def test_flows_that_end_together_give_back_before_the_first_is_told() -> None:
    """The sender of one pair and the receiver of the other are free for one another at once."""
    driver, (up_a, up_b, down_a, down_b) = make(1e9, 1e9, 1e9, 1e9)
    network = driver.network

    def swap(finish_ns: int) -> None:
        network.start(finish_ns, (up_a, down_b), 1000, driver.done(3))

    network.start(0, (up_a, down_a), 1000, swap)
    network.start(0, (up_b, down_b), 1000, driver.done(2))
    driver.run()
    assert driver.ends == [(2, 1000), (3, 2000)]


def test_ends_are_told_by_time_then_by_start() -> None:
    driver, links = make(1e9, 1e9, 1e9)
    for name, link in enumerate([2, 0, 1]):
        driver.network.start(0, (links[link],), 5000 if link else 4000, driver.done(name))
    driver.network.advance(10_000)
    assert driver.ends == [(1, 4000), (0, 5000), (2, 5000)]


def test_a_callback_may_cancel_a_flow_that_ended_with_it() -> None:
    driver, (one, two) = make(1e9, 1e9)
    network = driver.network
    cancelled: list[float] = []
    network.start(0, (one,), 1000, lambda now_ns: cancelled.append(network.cancel(now_ns, second)))
    second = network.start(0, (two,), 1000, driver.done(2))
    driver.run()
    assert cancelled == [1000.0]
    assert not driver.ends


def test_nothing_to_move_ends_at_once() -> None:
    driver, (dead,) = make(0.0)
    driver.network.start(7, (dead,), 0, driver.done(1))
    assert driver.network.next_ns() == 7
    driver.network.advance(7)
    assert driver.ends == [(1, 7)]
    assert driver.network.next_ns() is None


def test_a_dead_link_stalls_without_spinning_and_comes_back() -> None:
    driver, (up, down) = make(0.0, 1e9)
    network = driver.network
    network.start(0, (up, down), 1_000_000, driver.done(1))
    driver.run()
    assert driver.steps == 1
    assert network.active == 1
    network.set_rate(up, 1e9)
    network.advance(5 * QUANTUM_NS)
    driver.run()
    assert driver.ends == [(1, 6 * QUANTUM_NS)]


def test_a_link_that_dies_stops_its_flows_within_a_quantum() -> None:
    driver, (up, down) = make(1e9, 1e9)
    network = driver.network
    flow = network.start(0, (up, down), 10_000_000, driver.done(1))
    driver.run(2 * QUANTUM_NS + 5)
    network.set_rate(up, 0.0)
    driver.network.advance(2 * QUANTUM_NS + 5)
    assert network.next_ns() is None
    assert network.moved_bytes(50 * QUANTUM_NS, flow) == pytest.approx(2_000_005)


def test_infinite_links_and_caps() -> None:
    driver, (wide, narrow) = make(inf, 1e9)
    network = driver.network
    network.start(0, (wide,), 10**9, driver.done(1))
    network.start(0, (wide, narrow), 1_000_000, driver.done(2), 1e8)
    network.start(0, (wide, narrow), 9_000_000, driver.done(3))
    driver.run()
    assert driver.ends == [(1, 1), (2, 10_000_000), (3, 10_000_000)]


@pytest.mark.parametrize("seed", range(3))
def test_equal_runs_are_equal(seed: int) -> None:
    case = draw_case(seed, 60)
    first, second = run_case(case), run_case(case)
    assert first.ends == second.ends
    assert first.network.recomputations == second.network.recomputations


def test_rates_are_computed_once_per_quantum_and_only_after_changes() -> None:
    driver, (up, down) = make(1e9, 1e9)
    network = driver.network
    for name in range(10):
        driver.run(name * QUANTUM_NS // 10)
        network.start(driver.now_ns, (up, down), 100_000_000, driver.done(name))
    driver.run(400 * QUANTUM_NS)
    network.set_rate(up, 1e9)  # as it was
    driver.run(900 * QUANTUM_NS)
    assert network.recomputations == 2


@pytest.mark.parametrize("seed", range(8))
def test_no_link_carries_more_than_it_can(seed: int) -> None:
    """Random starts, cancellations and link changes. After each step the links' bytes are those of
    the flows, and no more than the links' highest rates so far allow."""
    dice = random.Random(seed)
    case = draw_case(seed, 300)
    driver, links = make(*case.capacities[1:])
    network = driver.network
    ended = [0.0] * len(case.capacities)
    active: dict[int, tuple[int, Plan]] = {}
    allowed = list(case.capacities)
    before = network.link_bytes(0)

    def count(number: int, moved_bytes: float, _: int = 0) -> None:
        for link in active.pop(number)[1].links:
            ended[link] += moved_bytes

    for number, plan in enumerate(case.plans):
        step_ns = dice.randrange(3 * QUANTUM_NS)
        driver.run(driver.now_ns + step_ns)
        network.advance(driver.now_ns)
        expected = list(ended)
        for flow, other in active.values():
            for link in other.links:
                expected[link] += network.moved_bytes(driver.now_ns, flow)
        moved = network.link_bytes(driver.now_ns)
        assert moved == pytest.approx(expected, abs=1e-3)
        # Ends are rounded up, so the bytes of the last nanosecond may count a step later.
        most = np.array(allowed) * ((step_ns + 2) / SECOND_NS)
        assert (moved[1:] - before[1:] <= most[1:]).all()
        before = moved
        kind = dice.random()
        if kind < 0.7:
            done = partial(count, number, plan.size_bytes)
            flow = network.start(driver.now_ns, plan.links, plan.size_bytes, done)
            active[number] = (flow, plan)
        elif kind < 0.85 and active:
            chosen = dice.choice(list(active))
            count(chosen, network.cancel(driver.now_ns, active[chosen][0]))
        else:
            link = dice.choice(links)
            rate = dice.choice([0.0, 1e8, 3e8])
            network.set_rate(link, rate)
            allowed[link] = max(allowed[link], rate)
        assert network.active == len(active)
