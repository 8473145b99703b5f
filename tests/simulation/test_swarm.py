"""Whole swarms of production cores in a virtual world: safety at every step, progress to the end.

Every run validates both cores after every event; the world knows the truth about each piece.
"""

import pytest

from benchmarks.sim.world import World, WorldOptions
from shoal.wire.control import Demand
from shoal.wire.errors import Reason
from shoal.wire.ids import HostId
from shoal.wire.limits import KIB, MIB

MB = 1_000_000


def make_world(nodes: int = 4, size_bytes: int = 8 * MIB, **changes: object) -> World:
    options = WorldOptions(
        nodes=nodes,
        size_bytes=size_bytes,
        origin_rate_bytes_s=25 * MB,
        node_rate_bytes_s=25 * MB,
        **changes,  # type: ignore[arg-type]
    )
    world = World(options)
    world.run_for(0.1)
    return world


def want_all(world: World) -> None:
    for node in world.nodes.values():
        node.want()


def finish(world: World, limit_s: float = 120.0) -> None:
    assert world.run(until=world.all_done, limit_s=limit_s), "the swarm did not come to an end"


def assert_all_right(world: World) -> None:
    for node in world.nodes.values():
        if not node.wants or not node.alive:
            continue
        assert node.reason is None, f"{node.host_id} failed: {node.reason}"
        (pieces,) = node.disk.values()
        for piece, record in pieces.items():
            assert record.digest == world.origin.digest(piece), "a false piece was kept"


@pytest.mark.parametrize("nodes", [1, 2, 3, 8])
def test_one_copy_from_the_origin_near_the_bound(nodes: int) -> None:
    world = make_world(nodes, 128 * MIB, validate=False)
    start_s = world.now_ns / 1e9
    want_all(world)
    finish(world)
    assert_all_right(world)
    assert world.origin_copies() == 1.0
    assert world.origin.stats == 1
    assert (world.makespan_s() - start_s) / world.bound_s() < 1.10


def test_a_seed_and_order_give_the_same_run() -> None:
    def trace() -> tuple[int, int, list[int]]:
        world = make_world(4, validate=False)
        want_all(world)
        finish(world)
        return world.events, world.now_ns, [node.ended_ns for node in world.nodes.values()]

    assert trace() == trace()


@pytest.mark.parametrize("size_bytes", [0, 1, 256 * KIB, 256 * KIB + 1])
@pytest.mark.parametrize("known_size", [True, False])
@pytest.mark.parametrize("scheduler", [True, False])
def test_small_and_odd_sizes(size_bytes: int, known_size: bool, scheduler: bool) -> None:
    world = make_world(2, size_bytes, with_scheduler=scheduler)
    world.origin.known_size = known_size
    want_all(world)
    finish(world)
    assert_all_right(world)
    for node in world.nodes.values():
        (pieces,) = node.disk.values()
        assert len(pieces) == -(-size_bytes // (256 * KIB if known_size else MIB))


@pytest.mark.parametrize("ranges", [True, False])
def test_an_origin_of_unknown_size_is_read_once_by_one_host(ranges: bool) -> None:
    world = make_world(4, 10 * MIB + 5)
    world.origin.known_size = False
    world.origin.ranges = ranges
    want_all(world)
    finish(world)
    assert_all_right(world)
    assert world.origin_copies() == 1.0
    assert sum(1 for node in world.nodes.values() if node.origin_bytes) == 1


def test_an_origin_without_ranges_is_read_once_by_one_host() -> None:
    world = make_world(4, 10 * MIB + 5)
    world.origin.ranges = False
    want_all(world)
    finish(world)
    assert_all_right(world)
    assert world.origin_copies() == 1.0


def test_without_a_scheduler_each_host_helps_itself() -> None:
    world = make_world(2, with_scheduler=False)
    want_all(world)
    finish(world)
    assert_all_right(world)
    assert world.origin_copies() == 2.0


def test_a_late_host_gets_everything_from_the_others_with_the_origin_gone() -> None:
    world = make_world(3)
    want_all(world)
    finish(world)
    world.origin.up = False
    late = world.add_node("late")
    world.run_for(0.1)
    late.want()
    finish(world)
    assert_all_right(world)
    assert late.origin_bytes == 0


def test_a_late_host_gets_a_plain_url_from_the_others_with_the_origin_gone() -> None:
    world = make_world(3, content_digest=None)
    want_all(world)
    finish(world)
    world.run_for(30)
    world.origin.up = False
    late = world.add_node("late")
    world.run_for(0.1)
    late.want()
    finish(world)
    assert_all_right(world)


@pytest.mark.parametrize("lie", ["bytes", "header"])
def test_a_liar_is_named_and_nobody_else(lie: str) -> None:
    world = make_world(8)
    liar = world.nodes[HostId("node-3")]
    liar.lie = lie
    want_all(world)
    finish(world)
    assert_all_right(world)
    blamed = {whom for _, whom in world.blamed}
    assert blamed == {"node-3"}
    assert ("scheduler", "node-3") in world.blamed


def test_a_leaseholder_that_lies_voids_the_epoch_and_is_named() -> None:
    world = make_world(4)
    world.nodes[HostId("node-1")].lie = "origin"
    want_all(world)
    finish(world)
    for node in world.nodes.values():
        if not node.lie:
            assert node.reason is None
    assert {whom for _, whom in world.blamed} == {"node-1"}


def second_epoch(world: World, *, away: HostId) -> None:
    """Runs until a void epoch is being read again, which the host that is away missed. It holds
    pieces of the void one."""
    liar = world.nodes[HostId("node-1")]
    liar.lie = "origin"
    want_all(world)
    assert world.run(until=lambda: len(held_by(world, away)) >= 4, limit_s=5)
    world.nodes[away].crash()
    others = [node for node in world.nodes.values() if node.host_id != away]
    assert world.run(until=lambda: epoch_of(world) == 2, limit_s=20)
    liar.lie = ""  # Its memory was bad for a moment.
    assert world.run(
        until=lambda: all(
            content.descriptor.epoch == 2 and len(content.pieces) >= 4
            for node in others
            for content in node.contents.values()
        ),
        limit_s=20,
    )


def held_by(world: World, host_id: HostId) -> dict[int, object]:
    return {n: r for pieces in world.nodes[host_id].disk.values() for n, r in pieces.items()}


def epoch_of(world: World) -> int:
    assert world.scheduler is not None
    return max((task.descriptor.epoch for task in world.scheduler.state.tasks.values()), default=0)


@pytest.mark.parametrize("first", ["old", "new", "late"])
def test_a_void_epoch_stays_void_when_the_scheduler_comes_back(first: str) -> None:
    away = HostId("node-0")
    world = make_world(4, 16 * MIB)
    second_epoch(world, away=away)
    held = {host_id: len(held_by(world, host_id)) for host_id in world.nodes}
    world.kill_scheduler()
    if first == "old":
        world.nodes[away].restart()  # Its stream is the first: hosts come in this order.
    world.start_scheduler()
    if first != "old":
        world.run_for(0.1 if first == "new" else 3)
        world.nodes[away].restart()
    finish(world)
    for host_id, node in world.nodes.items():
        assert node.reason is None
        assert host_id == away or len(held_by(world, host_id)) >= held[host_id]
    # The void epoch, what was read of the next one, and no more.
    assert world.origin_copies() <= 2.1
    assert max(world.control.counts.values()) < 2_000, "leases go back and forth"


def test_a_void_epoch_that_was_told_alone_is_void_when_others_come_back() -> None:
    """The scheduler comes back when only the host is there that missed the void, and hosts with
    the newer epoch come when leases of the older one are out."""
    away = HostId("node-0")
    world = make_world(4, 16 * MIB)
    second_epoch(world, away=away)
    world.kill_scheduler()
    others = [node for node in world.nodes.values() if node.host_id != away]
    for node in others:
        node.crash()
    world.nodes[away].restart()
    world.start_scheduler()
    world.run_for(1.2)
    assert epoch_of(world) == 1
    for node in others:
        node.restart()
    finish(world)
    assert epoch_of(world) == 2
    assert {node.reason for node in world.nodes.values()} == {None}
    assert max(world.control.counts.values()) < 2_000, "leases go back and forth"


def test_a_wrong_digest_from_the_user_fails_with_that_reason() -> None:
    world = make_world(2)
    for node in world.nodes.values():
        node.lie = "origin"  # Both read the same bytes, and both find them wrong.
    want_all(world)
    finish(world)
    for node in world.nodes.values():
        assert node.reason is Reason.DIGEST_MISMATCH


def test_a_stalled_parent_does_not_hold_the_tail() -> None:
    world = make_world(6)
    world.nodes[HostId("node-2")].lie = "stall"
    start_s = world.now_ns / 1e9
    want_all(world)
    finish(world)
    assert_all_right(world)
    assert world.makespan_s() - start_s < 15


def test_a_slow_parent_does_not_hold_the_tail() -> None:
    world = make_world(6, 16 * MIB)
    world.nodes[HostId("node-2")].rate_bytes_s = 100_000
    start_s = world.now_ns / 1e9
    for node in world.nodes.values():
        node.want(origin_allowed=node.host_id != "node-2")
    assert world.run(
        until=lambda: all(n.ended for n in world.nodes.values() if n.host_id != "node-2"),
        limit_s=60,
    )
    healthy = [n.ended_ns / 1e9 - start_s for n in world.nodes.values() if n.host_id != "node-2"]
    assert max(healthy) < 6 * world.bound_s()


@pytest.mark.parametrize("when_s", [0.1, 0.3, 0.6])
def test_a_crash_and_return_lose_nothing_that_was_written(when_s: float) -> None:
    world = make_world(4, 16 * MIB)
    want_all(world)
    world.run_for(when_s)
    victim = world.nodes[HostId("node-1")]
    held = sum(len(pieces) for pieces in victim.disk.values())
    victim.crash()
    world.run_for(0.5)
    victim.ended = False
    victim.restart()
    assert sum(len(pieces) for pieces in victim.disk.values()) >= held
    finish(world)
    assert_all_right(world)
    assert world.origin_copies() <= 1.2


def test_a_host_that_dies_for_good_is_replaced() -> None:
    world = make_world(4, 16 * MIB)
    want_all(world)
    world.run_for(0.3)
    world.nodes[HostId("node-0")].crash()
    finish(world)
    assert_all_right(world)


@pytest.mark.parametrize("back", [True, False])
def test_transfers_go_on_without_the_scheduler(back: bool) -> None:
    world = make_world(4, 32 * MIB)
    want_all(world)
    world.run_for(0.6)
    held = {n.host_id: sum(len(p) for p in n.disk.values()) for n in world.nodes.values()}
    world.kill_scheduler()
    if back:
        world.run_for(0.5)
        world.start_scheduler()
    finish(world)
    assert_all_right(world)
    for node in world.nodes.values():
        assert sum(len(pieces) for pieces in node.disk.values()) >= held[node.host_id]
    assert world.origin_copies() <= (1.1 if back else 4.0)


def test_a_scheduler_that_comes_back_knows_who_holds_what() -> None:
    world = make_world(3)
    want_all(world)
    finish(world)
    world.kill_scheduler()
    world.start_scheduler()
    world.run_for(1)
    late = world.add_node("late")
    world.run_for(0.2)
    late.want()
    finish(world)
    assert_all_right(world)
    assert late.origin_bytes == 0


def test_an_origin_that_changes_is_never_mixed() -> None:
    world = make_world(2, 16 * MIB, content_digest=None)
    want_all(world)
    world.run_for(0.2)
    world.origin.validator = "v2"
    finish(world)
    for node in world.nodes.values():
        assert node.reason is Reason.ORIGIN_CHANGED


def test_an_origin_that_is_down_at_first_is_asked_again() -> None:
    world = make_world(2)
    world.origin.up = False
    want_all(world)
    world.run_for(0.5)
    world.origin.up = True
    finish(world)
    assert_all_right(world)


@pytest.mark.parametrize("scheduler", [True, False])
def test_an_origin_that_stays_down_ends_the_download(scheduler: bool) -> None:
    world = make_world(2, with_scheduler=scheduler)
    world.origin.up = False
    want_all(world)
    finish(world)
    for node in world.nodes.values():
        assert node.reason is Reason.ORIGIN_FAILED


@pytest.mark.parametrize("scheduler", [True, False])
def test_an_origin_that_dies_in_the_middle_ends_the_download(scheduler: bool) -> None:
    world = make_world(2, 16 * MIB, with_scheduler=scheduler)
    want_all(world)
    world.run_for(0.2)
    world.origin.up = False
    finish(world, 300)
    for node in world.nodes.values():
        assert node.reason in (Reason.ORIGIN_FAILED, Reason.NO_SOURCE)


def test_a_host_that_must_not_use_the_origin_gets_it_from_others() -> None:
    world = make_world(3)
    first, *others = world.nodes.values()
    first.want()
    for node in others:
        node.want(origin_allowed=False)
    finish(world)
    assert_all_right(world)
    assert all(node.origin_bytes == 0 for node in others)


def test_nobody_may_use_the_origin_and_nobody_has_it() -> None:
    world = make_world(2)
    for node in world.nodes.values():
        node.want(origin_allowed=False)
    finish(world)
    for node in world.nodes.values():
        assert node.reason is Reason.NO_SOURCE


def test_private_content_is_asked_for_with_each_credential() -> None:
    world = make_world(3)
    for node in world.nodes.values():
        node.want(credential=f"secret of {node.host_id}")
    finish(world)
    assert_all_right(world)
    assert world.origin.stats >= 3
    assert world.origin_copies() == 1.0


@pytest.mark.parametrize("demand", [Demand.STREAMING, Demand.BACKGROUND])
def test_other_demands_end_as_well(demand: Demand) -> None:
    world = make_world(3)
    for node in world.nodes.values():
        node.want(demand)
    finish(world)
    assert_all_right(world)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_churn(seed: int) -> None:
    """Crashes, a liar and scheduler restarts at drawn moments; then everything must end well."""
    world = make_world(5, 8 * MIB, seed=seed)
    world.nodes[HostId("node-4")].lie = ("", "bytes", "header", "stall")[seed % 4]
    want_all(world)
    for _ in range(6):
        world.run_for(0.02 + 0.15 * world.random.random())
        kind = world.random.random()
        if kind < 0.3:
            world.kill_scheduler()
            world.run_for(0.3 * world.random.random())
            world.start_scheduler()
        elif kind < 0.8:
            victim = list(world.nodes.values())[int(world.random.random() * 4)]
            if victim.alive and not victim.ended:
                victim.crash()
                world.run_for(0.2 * world.random.random())
                victim.restart()
    finish(world, 400)
    assert_all_right(world)
    assert {whom for _, whom in world.blamed} <= {"node-4"}
