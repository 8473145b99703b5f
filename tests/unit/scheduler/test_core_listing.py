"""Of whom a large swarm is told: bounded, and still enough to find whatever anybody holds."""

from scheduler.core.limits import SchedulerLimits
from scheduler.core.listing import Listing
from shoal.wire import control as msg
from shoal.wire.ids import HostId
from shoal.wire.limits import MILLISECOND_NS
from tests.unit.scheduler.core_rig import DIGEST_TASK, Rig, join_of, member
from tests.unit.scheduler.test_core_board import PIECES, Receiver, board, swarm, unit

FEW = SchedulerLimits(map_hosts_usual=4, map_zone_hosts=1, map_hosts_max=8)


def listed(rig: Rig) -> list[str]:
    return list(board(rig).listing.numbers)


def test_numbers_of_hosts_are_told_in_runs_and_never_twice() -> None:
    listing = Listing()
    hosts = [msg.Parent(host_id=HostId(f"h{number}"), addresses=()) for number in range(6)]
    for host in hosts[:5]:
        listing.add(host)
    listing.remove(HostId("h2"))
    listing.remove(HostId("h2"))
    assert listing.news() == [(0, tuple(hosts[:2])), (3, tuple(hosts[3:5]))]
    assert listing.news() == []
    listing.add(hosts[5])
    listing.add(hosts[2])
    assert listing.news() == [(5, (hosts[5], hosts[2]))]
    assert [first for first, _ in listing.everything()] == [0, 3]


def test_a_swarm_is_told_of_few_and_of_some_of_every_zone() -> None:
    rig = Rig(FEW)
    for number in range(20):
        rig.connect(f"h{number}", join_of(member()), zone=f"z{number // 10}")
    rig.answer("h0", pieces=PIECES)
    rig.wait(1)
    assert listed(rig)[:4] == ["h0", "h1", "h2", "h3"]
    assert "h10" in listed(rig), "the first one of the other zone"
    listener = Receiver()
    listener.hear(rig, "h19")
    assert len(listener.directory) == len(listed(rig)) <= FEW.map_hosts_max


def test_the_roots_are_always_listed() -> None:
    rig = Rig(FEW)
    for number in range(8):
        rig.connect(f"h{number}", join_of(member()), upload_rate_bytes_s=1000)
    for number in range(4):
        rig.connect(f"strong{number}", join_of(member()), upload_rate_bytes_s=4000)
    rig.answer("h0", pieces=PIECES)
    rig.wait(1)
    assert board(rig).overlay.roots == [f"strong{number}" for number in range(4)]
    assert set(board(rig).overlay.roots) <= set(listed(rig))


def test_whoever_alone_holds_something_for_a_while_is_listed() -> None:
    rig = swarm(12, FEW)
    listener = Receiver()
    rig.hold("h11", unit(2))
    rig.wait(0.5)
    listener.hear(rig, "h1")
    assert listener.covered == 0, "nobody would know where to look for it"
    rig.wait(3)
    listener.hear(rig, "h1")
    assert listener.named() == {"h11": 0b100}
    assert listener.covered == 0b100
    rig.hold("h11", unit(3))
    rig.wait(1)
    listener.hear(rig, "h1")
    assert listener.named() == {"h11": 0b1100}
    newcomer = Receiver()
    rig.connect("new", join_of(member()))
    rig.wait(1)
    newcomer.hear(rig, "new")
    assert newcomer.named() == {"h11": 0b1100}


def test_what_is_on_its_way_lists_nobody() -> None:
    rig = swarm(12, FEW)
    for number in range(5):
        rig.hold("h11", unit(number))
        rig.wait(0.3)
        rig.hold("h0", unit(number))
        rig.wait(0.7)
    assert "h11" not in listed(rig)


def test_time_does_not_stop_being_asked_for_while_a_unit_is_lone_and_then_does() -> None:
    rig = swarm(12, FEW)
    rig.hold("h11", unit(2))
    rig.wait(5)
    assert "h11" in listed(rig)
    rig.wait(5)
    assert board(rig).due_ns is None


def test_those_who_are_not_listed_count_for_what_is_spread() -> None:
    rig = swarm(12, FEW)
    listener = Receiver()
    rig.hold("h0", unit(0, 1))
    for number in range(6, 12):
        rig.hold(f"h{number}", unit(0))
    rig.wait(1)
    listener.hear(rig, "h1")
    assert listener.spread == 0b01
    for number in range(6, 11):
        rig.hold(f"h{number}", unit(1))
    rig.wait(1)
    listener.hear(rig, "h1")
    assert listener.spread == 0b11, "told although no listed host holds more"


def test_a_host_from_which_there_is_nothing_to_be_had_gives_its_place_up() -> None:
    rig = swarm(12, SchedulerLimits(map_hosts_usual=8, map_zone_hosts=0))
    rig.hold("h6", unit(0))
    rig.leave("h5")
    rig.leave("h6")
    rig.disconnect("h7")
    rig.wait(1)
    assert listed(rig) == ["h0", "h1", "h2", "h3", "h4", "h6"]
    rig.send("h6", msg.Withdrawn(task_id=DIGEST_TASK, generation=1))
    rig.wait(1)
    assert listed(rig) == ["h0", "h1", "h2", "h3", "h4"]
    rig.connect("new", join_of(member()))
    rig.wait(1)
    assert "new" in listed(rig)


def test_a_crowd_is_placed_together_and_a_lone_newcomer_at_once() -> None:
    limits = SchedulerLimits(push_interval_per_host_ns=5 * MILLISECOND_NS)
    rig = swarm(20, limits)
    for number in range(20):
        rig.got(f"h{number}", msg.Assigned)
    rig.connect("lone", join_of(member()))
    assert len(rig.got("lone", msg.Assigned)) == 1
    rig.wait(1)
    before = [len(rig.got(f"h{number}", msg.SwarmMap)) for number in range(20)]
    assert before
    for number in range(30):
        rig.connect(f"crowd{number}", join_of(member()))
        rig.wait(0.005)
    rig.wait(1)
    for number in range(20):
        assert len(rig.got(f"h{number}", msg.Directory)) <= 3, "not one for each handful"
    for number in range(30):
        assert 1 <= len(rig.got(f"crowd{number}", msg.Assigned)) <= 2


def test_newcomers_of_a_large_swarm_may_be_those_who_can_read() -> None:
    rig = Rig()
    for number in range(20):
        rig.connect(f"h{number}", join_of(member(origin_allowed=number == 0)))
    rig.answer("h0", pieces=PIECES)
    rig.wait(1)
    assert rig.granted("h0")
    rig.disconnect("h0")
    rig.wait(3)
    rig.connect("reader", join_of(member()))
    rig.wait(1)
    assert rig.granted("reader")
