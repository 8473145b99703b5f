"""The simulated world itself: links, origin, disks, collections, and that its checks see what they
are for."""

import pytest

from benchmarks.sim.checks import violations
from benchmarks.sim.ledger import Ledger
from benchmarks.sim.origin import SOURCE_ID
from benchmarks.sim.world import HostSpec, OriginSpec, SimNode, World, WorldOptions, ZoneSpec
from peer.core import effects as fx
from peer.core import events as ev
from shoal.wire.errors import Reason
from shoal.wire.ids import HostId, RequestId
from shoal.wire.limits import KIB, MIB, MILLISECOND_NS, SECOND_NS

MB = 1_000_000
TRUE_DIGEST = "sha256:" + "ab" * 32


def finished(options: WorldOptions) -> World:
    world = World(options)
    world.run_for(0.1)
    for node in world.nodes.values():
        node.want()
    assert world.run(until=world.all_done, limit_s=300), "the swarm did not come to an end"
    for node in world.nodes.values():
        assert node.reason is None
        assert node.held_bytes() == sum(options.sizes())
        assert all(content.sealed and not content.false for content in node.contents.values())
    assert not world.broken
    return world


def spent_s(world: World) -> float:
    return world.makespan_s() - min(node.started_ns for node in world.nodes.values()) / SECOND_NS


def test_a_lone_host_reads_at_the_rate_of_the_origin() -> None:
    world = finished(
        WorldOptions(
            nodes=1, size_bytes=50 * MB, origin_rate_bytes_s=25 * MB, node_rate_bytes_s=100 * MB
        )
    )
    assert spent_s(world) == pytest.approx(2.0, rel=0.02)
    assert world.origin_bytes == 50 * MB


def test_one_connection_to_the_origin_has_its_own_limit() -> None:
    """Two reads run at once at most here, each at a tenth of the origin's rate."""
    origin = OriginSpec(
        rate_bytes_s=25 * MB, per_connection_bytes_s=2.5 * MB, connections_max=2, round_trip_ns=0
    )
    world = finished(
        WorldOptions(nodes=3, size_bytes=10 * MB, node_rate_bytes_s=100 * MB, origin=origin)
    )
    assert world.origin.connections_peak == 2
    assert spent_s(world) == pytest.approx(2.0, rel=0.1)
    assert world.bound_s() == pytest.approx(2.0)
    assert world.origin.connections == 0


def test_what_a_broken_read_brought_is_counted() -> None:
    world = World(
        WorldOptions(
            nodes=1,
            size_bytes=MIB,
            origin_rate_bytes_s=MIB,
            node_rate_bytes_s=10 * MIB,
            unit_bytes=MIB,
        )
    )
    world.run_for(0.1)
    (node,) = world.nodes.values()
    node.want()
    world.run_for(0.5)
    node.crash()
    assert 0.4 * MIB < world.origin_bytes < 0.5 * MIB
    node.restart()
    assert world.run(until=world.all_done, limit_s=60)
    assert 1.4 < world.origin_copies() < 1.5
    assert world.origin.reads == {(0, 0): 1}
    assert world.origin.read_bytes == {(0, 0): world.origin_bytes}


def test_a_collection_of_many_tasks_ends_as_one() -> None:
    sizes = (3 * MIB, 0, 1, 256 * KIB, 5 * MIB + 7)
    world = finished(
        WorldOptions(
            nodes=4, task_sizes=sizes, origin_rate_bytes_s=25 * MB, node_rate_bytes_s=25 * MB
        )
    )
    assert all(len(node.disk) == len(sizes) for node in world.nodes.values())
    assert world.origin_copies() == 1.0
    assert set(world.origin.reads.values()) == {1}
    digests = {world.origin.digest(0, task) for task in range(len(sizes))}
    assert len(digests) == len(sizes)


def test_a_swarm_may_be_cut_as_coarse_as_one_likes() -> None:
    world = finished(
        WorldOptions(
            nodes=2,
            size_bytes=10 * MIB,
            origin_rate_bytes_s=25 * MB,
            node_rate_bytes_s=25 * MB,
            unit_bytes=4 * MIB,
        )
    )
    for node in world.nodes.values():
        (pieces,) = node.disk.values()
        assert sorted(pieces) == [0, 1, 2]


def test_hashing_and_writing_take_their_time() -> None:
    common = {
        "nodes": 1,
        "size_bytes": 20 * MB,
        "origin_rate_bytes_s": 100 * MB,
        "node_rate_bytes_s": 100 * MB,
    }
    for changes in ({"hash_bytes_s": 10 * MB}, {"disk_bytes_s": 10 * MB}):
        world = finished(WorldOptions(**common, **changes))  # type: ignore[arg-type]
        assert spent_s(world) == pytest.approx(2.0, rel=0.05)
        assert world.bound_s() == pytest.approx(2.0)


def test_bytes_between_zones_pass_their_links() -> None:
    """Two zones of two racks; what one rack link lets through bounds the whole."""
    hosts = tuple(
        HostSpec(100 * MB, 100 * MB, zone=number // 4, rack=number // 2, told_rate=True)
        for number in range(8)
    )
    slow, fast = ZoneSpec(5 * MB, 100 * MB), ZoneSpec(100 * MB, 100 * MB)
    options = WorldOptions(
        hosts=hosts,
        zones=(fast, fast),
        racks=(fast, fast, fast, slow),
        validate=False,
        size_bytes=10 * MB,
        origin_rate_bytes_s=100 * MB,
    )
    world = finished(options)
    assert world.bound_s() == pytest.approx(2.0)
    assert spent_s(world) >= 2.0
    for zone in range(2):
        assert 10 * MB <= world.zone_in_bytes(zone) <= 40 * MB
    for rack in range(4):
        assert 10 * MB - 1 <= world.rack_in_bytes(rack) <= 20 * MB + 1
    into_hosts = sum(
        world.network.link_bytes(world.now_ns)[node.down_link] for node in world.nodes.values()
    )
    out_of_hosts = sum(
        world.network.link_bytes(world.now_ns)[node.up_link] for node in world.nodes.values()
    )
    assert into_hosts == pytest.approx(out_of_hosts + world.origin_bytes)


def test_racks_of_one_zone_do_not_use_the_links_of_the_zone() -> None:
    hosts = tuple(HostSpec(MB, MB, zone=0, rack=number) for number in range(2))
    world = World(
        WorldOptions(
            hosts=hosts,
            zones=(ZoneSpec(MB, MB),),
            racks=(ZoneSpec(MB, MB), ZoneSpec(MB, MB)),
            size_bytes=1,
            origin_rate_bytes_s=MB,
        )
    )
    one, other = world.nodes.values()
    (rack_in, _), (zone_in, _) = world.topology.racks[1], world.topology.zones[0]
    rack_out = world.topology.racks[0][1]
    assert world.topology.path(one, other) == (one.up_link, rack_out, rack_in, other.down_link)
    origin_path = (world.topology.origin_link, zone_in, rack_in, other.down_link)
    assert world.topology.origin_path(other) == origin_path


def test_control_batches_follow_the_option() -> None:
    quick, slow = (
        finished(
            WorldOptions(
                nodes=4,
                size_bytes=40 * MIB,
                origin_rate_bytes_s=25 * MB,
                node_rate_bytes_s=25 * MB,
                control_batch_ns=batch * MILLISECOND_NS,
                validate=False,
            )
        )
        for batch in (50, 400)
    )
    assert slow.scheduler_messages < quick.scheduler_messages
    total = sum(quick.scheduler_message_count(host_id) for host_id in quick.nodes)
    assert total == quick.scheduler_messages


def test_a_host_that_leaves_is_gone_in_good_order() -> None:
    world = World(
        WorldOptions(
            nodes=4, size_bytes=16 * MIB, origin_rate_bytes_s=25 * MB, node_rate_bytes_s=25 * MB
        )
    )
    world.run_for(0.1)
    for node in world.nodes.values():
        node.want()
    world.run_for(0.3)
    world.nodes[HostId("node-1")].leave()
    assert world.run(until=world.all_done, limit_s=60)
    assert [node.reason is None for node in world.nodes.values()] == [True, False, True, True]
    assert not world.nodes[HostId("node-1")].alive


def test_a_false_content_that_is_sealed_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashing is broken here: it finds everything right."""
    monkeypatch.setattr(SimNode, "content_digest", lambda node, content: TRUE_DIGEST)
    world = World(
        WorldOptions(
            nodes=2,
            size_bytes=MIB,
            origin_rate_bytes_s=25 * MB,
            node_rate_bytes_s=25 * MB,
            content_digest=TRUE_DIGEST,
        )
    )
    world.run_for(0.1)
    for node in world.nodes.values():
        node.lie = "origin"
        node.want()
    assert world.run(until=world.all_done, limit_s=60)
    assert any("seals" in what for what in world.broken)
    assert any("false pieces" in what for what in violations(world))


def test_the_ledger_sees_what_is_asked_or_answered_twice() -> None:
    ledger = Ledger()
    effect = fx.StatOrigin(request_id=RequestId(7), source_id=SOURCE_ID, credential="")
    answer = ev.StatEnded(now_ns=0, request_id=RequestId(7), reason=Reason.ORIGIN_FAILED)
    ledger.ask(7, effect)
    ledger.answer(answer)
    assert (ledger.open, ledger.broken) == ({}, [])
    ledger.answer(answer)
    ledger.ask(7, effect)
    ledger.ask(7, effect)
    assert len(ledger.broken) == 2
    assert list(ledger.open) == [7]
