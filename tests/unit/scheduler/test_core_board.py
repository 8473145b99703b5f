"""What a swarm is told of itself: plans, directories and maps, against what is true."""

import itertools
import math
from dataclasses import dataclass, field

from hypothesis import example, given
from hypothesis import strategies as st

from scheduler.core.board import Board
from scheduler.core.limits import SchedulerLimits
from scheduler.core.overlay import STRIPES
from shoal.wire import bitfield
from shoal.wire import control as msg
from shoal.wire.ids import HostId, collection_of, source_of_url
from shoal.wire.limits import MAP_UNITS_TARGET, MILLISECOND_NS, SECOND_NS, UNIT_BYTES_MIN
from tests.unit.scheduler.core_rig import (
    DIGEST_TASK,
    PIECE_BYTES,
    Rig,
    descriptor_of,
    join_of,
    member,
)

UNITS = 6
UNIT_PIECES = UNIT_BYTES_MIN // PIECE_BYTES
PIECES = UNITS * UNIT_PIECES
ALL = (1 << PIECES) - 1


def unit(*numbers: int) -> int:
    """The pieces of units."""
    pieces = 0
    for number in numbers:
        pieces |= bitfield.mask_of(number * UNIT_PIECES, UNIT_PIECES)
    return pieces


@dataclass
class Receiver:
    """What one host makes of all that it was told, in the simplest way."""

    assigned: list[msg.Assigned] = field(default_factory=list)
    directory: dict[int, msg.Parent] = field(default_factory=dict)
    holders: dict[int, int] = field(default_factory=dict)
    covered: int = 0
    spread: int = 0
    maps: int = 0

    def hear(self, rig: Rig, name: str) -> None:
        """Takes in everything since the last time."""
        self.assigned += rig.got(name, msg.Assigned)
        for page in rig.got(name, msg.Directory):
            for number, host in enumerate(page.hosts, page.first):
                assert self.directory.get(number, host).host_id == host.host_id, "used twice"
                self.directory[number] = host
        for news in rig.got(name, msg.SwarmMap):
            self.maps += 1
            assert news.unit_bytes == UNIT_BYTES_MIN
            if news.full:
                self.holders.clear()
            for gone in news.gone:
                self.holders.pop(gone, None)
            for change in news.changes:
                assert change.task == 0
                assert change.host in self.directory, "a host of which nobody was told"
                self.holders[change.host] = self.holders.get(change.host, 0) | change.units
            for _, covered in news.covered:
                self.covered = covered
            for _, spread in news.spread:
                self.spread = spread

    def named(self) -> dict[str, int]:
        """By host: the units that it is known to hold."""
        found: dict[str, int] = {}
        for number, units in self.holders.items():
            name = self.directory[number].host_id
            assert not (units and found.get(name)), "counted under two numbers"
            found[name] = found.get(name, 0) | units
        return {name: units for name, units in found.items() if units}


def board(rig: Rig) -> Board:
    return rig.engine._swarms.boards[rig.collection()]


def swarm(count: int, limits: SchedulerLimits | None = None) -> Rig:
    rig = Rig(limits)
    rig.start(*(f"h{number}" for number in range(count)), pieces=PIECES)
    rig.wait(1)
    return rig


# ---------------------------------------------------------------- what is told, and to whom


def test_changes_are_told_to_all_as_one_object_and_only_whole_units() -> None:
    rig = swarm(5)
    rig.got("h1", msg.SwarmMap)
    rig.got("h2", msg.SwarmMap)
    rig.hold("h0", unit(1) | 1)
    rig.wait(1)
    (to_one,) = rig.got("h1", msg.SwarmMap)
    (to_two,) = rig.got("h2", msg.SwarmMap)
    assert to_one is to_two, "serialised once"
    assert [change.units for change in to_one.changes] == [0b10]
    assert not to_one.full
    rig.hold("h0", unit(0))
    rig.wait(1)
    (news,) = rig.got("h1", msg.SwarmMap)
    assert [change.units for change in news.changes] == [0b01], "what was told is not told again"
    rig.wait(5)
    assert not rig.got("h1", msg.SwarmMap), "nothing is told while nothing changes"


def test_a_newcomer_is_told_everything_once() -> None:
    rig = swarm(5)
    rig.hold("h0", unit(0, 1))
    rig.hold("h1", unit(1))
    rig.hold("h2", unit(1))
    rig.wait(1)
    rig.connect("new", join_of(member()))
    rig.wait(1)
    pages = rig.got("new", msg.Directory)
    assert (pages[0].first, len(pages)) == (0, 1)
    (full,) = rig.got("new", msg.SwarmMap)
    assert full.full
    assert full.covered == ((0, 0b11),)
    assert full.spread == ((0, 0b10),), "three of six"
    rig.hold("h2", unit(3))
    rig.wait(1)
    (news,) = rig.got("new", msg.SwarmMap)
    assert not news.full


def test_everybody_is_told_of_a_newcomer_in_the_directory() -> None:
    rig = swarm(5)
    rig.got("h0", msg.Directory)
    rig.connect("new", join_of(member()))
    rig.wait(1)
    (page,) = rig.got("h0", msg.Directory)
    assert page.first == 5
    assert [host.host_id for host in page.hosts] == ["new"]


def test_a_plan_is_told_when_it_changes_only() -> None:
    rig = swarm(8)
    for number in range(8):
        assert rig.got(f"h{number}", msg.Assigned)
    rig.hold("h3", unit(2))
    rig.wait(2)
    assert not any(rig.got(f"h{number}", msg.Assigned) for number in range(8))
    rig.leave("h7")
    rig.wait(1)
    told = [rig.got(f"h{number}", msg.Assigned) for number in range(7)]
    assert any(told)
    for messages in told:
        assert all("h7" not in message.parents for message in messages)


def test_messages_come_the_more_rarely_the_more_hosts_there_are() -> None:
    limits = SchedulerLimits(push_interval_per_host_ns=20 * MILLISECOND_NS)
    for count, apart_ns in ((5, 100), (10, 200), (40, 250)):
        rig = swarm(count, limits)
        times = []
        rig.hold("h0", unit(0))
        for step in range(2000):
            rig.wait(0.001)
            if rig.got("h1", msg.SwarmMap):
                times.append(step)
                rig.hold("h0", unit(len(times)))
            if len(times) == 4:
                break
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert all(abs(gap - apart_ns) <= 2 for gap in gaps), (count, gaps)


def test_half_of_the_swarm_grows_with_it() -> None:
    rig = swarm(1)
    listener = Receiver()
    rig.hold("h0", unit(0))
    rig.wait(1)
    listener.hear(rig, "h0")
    assert listener.spread == 0b1
    for number in range(1, 4):
        rig.connect(f"h{number}", join_of(member()))
    rig.wait(1)
    listener.hear(rig, "h0")
    assert listener.spread == 0, "one of four"


def test_half_of_the_swarm_is_half_of_all_who_are_in_it() -> None:
    rig = swarm(6)
    for name, units in (("h0", (0, 1)), ("h1", (0,)), ("h2", (0, 2)), ("h3", (3,))):
        rig.hold(name, unit(*units))
    rig.hold("h4", 1)
    rig.disconnect("h5")
    rig.wait(11)
    rig.hold("h0", unit(5))
    rig.wait(1)
    heard = rig.got("h1", msg.SwarmMap)[-1]
    assert heard.covered == ((0, 0b101111),)
    assert heard.spread == ((0, 0b000001),), "three of five"


# ---------------------------------------------------------------- hosts that go and come


def test_what_a_host_that_is_gone_held_counts_no_more() -> None:
    rig = swarm(5)
    listener = Receiver()
    rig.hold("h0", unit(0))
    rig.hold("h1", unit(1))
    rig.wait(1)
    listener.hear(rig, "h2")
    assert listener.named() == {"h0": 0b01, "h1": 0b10}
    assert listener.covered == 0b11
    rig.disconnect("h0")
    rig.wait(1)
    listener.hear(rig, "h2")
    assert listener.named() == {"h1": 0b10}
    assert listener.covered == 0b10, "nobody else holds the unit"


def test_a_host_at_another_address_gets_another_number_and_the_old_one_is_void() -> None:
    rig = swarm(5)
    listener = Receiver()
    rig.hold("h0", unit(0, 1))
    rig.wait(1)
    listener.hear(rig, "h2")
    (old,) = listener.holders
    held = msg.Holding(descriptor=descriptor_of(PIECES), held=unit(0), sealed=False)
    rig.connect("h0", join_of(member()), holdings=(held,), port=2, generation=2)
    rig.wait(1)
    listener.hear(rig, "h2")
    assert listener.named() == {"h0": 0b01}
    (new,) = (number for number, units in listener.holders.items() if units)
    assert new != old
    assert listener.directory[new].addresses == (msg.Address("10.0.0.1", 2),)


def test_a_small_swarm_is_told_first_news_soon_and_what_follows_at_leisure() -> None:
    limits = SchedulerLimits()
    rig = swarm(5, limits)
    rig.wait(1)
    rig.got("h4", msg.SwarmMap)
    told_ns = []
    begun_ns = rig.now_ns
    for number in range(3 * UNITS):  # One unit every ten milliseconds.
        rig.hold(f"h{number // UNITS}", unit(number % UNITS))
        rig.wait(0.01)
        if rig.got("h4", msg.SwarmMap):
            told_ns.append(rig.now_ns)
    first_ns, *later_ns = told_ns
    assert first_ns - begun_ns <= limits.push_first_ns + 10 * MILLISECOND_NS
    pauses_ns = [after - before for before, after in itertools.pairwise([first_ns, *later_ns])]
    assert pauses_ns
    assert min(pauses_ns) >= limits.push_interval_min_ns
    assert max(pauses_ns) <= limits.push_interval_min_ns + 10 * MILLISECOND_NS


def test_a_newcomer_that_is_away_before_it_was_told_anything_is_told_nothing() -> None:
    rig = swarm(5, SchedulerLimits(push_interval_min_ns=SECOND_NS, map_interval_ns=SECOND_NS))
    rig.connect("new", join_of(member()))
    rig.disconnect("new")
    rig.wait(2)
    assert HostId("new") not in board(rig).overlay
    rig.connect("new", join_of(member()), generation=2)
    rig.wait(2)
    assert rig.got("new", msg.SwarmMap)[0].full


def test_a_host_that_is_back_is_told_everything_anew() -> None:
    rig = swarm(5)
    rig.hold("h1", unit(1))
    rig.wait(1)
    rig.connect("h0", join_of(member()), generation=2)
    rig.wait(1)
    again = Receiver()
    again.hear(rig, "h0")
    assert len(again.directory) == 5
    assert again.named() == {"h1": 0b10}
    assert len(again.assigned[-1].parents) == STRIPES


def test_a_host_that_has_all_and_leaves_goes_on_feeding_until_it_deletes_it() -> None:
    rig = swarm(8)
    rig.hold("h0", ALL)
    rig.leave("h0")
    rig.wait(1)
    assert HostId("h0") in board(rig).overlay
    rig.send("h0", msg.Withdrawn(task_id=DIGEST_TASK, generation=1))
    rig.wait(1)
    assert HostId("h0") not in board(rig).overlay, "nobody waits for what will not come"
    for number in range(1, 8):
        assert "h0" not in board(rig).overlay.feeds(HostId(f"h{number}"))


def test_a_host_with_a_part_that_leaves_feeds_nobody() -> None:
    rig = swarm(8)
    rig.hold("h0", unit(0, 1))
    rig.leave("h0")
    assert HostId("h0") not in board(rig).overlay
    rig.leave("h1")
    rig.wait(1)
    assert len(board(rig).overlay) == 6


def test_hosts_beyond_the_directory_are_fed_and_not_told_of() -> None:
    rig = swarm(6, SchedulerLimits(map_hosts_max=4))
    rig.hold("h5", unit(0))
    rig.hold("h1", unit(1))
    rig.wait(1)
    listener = Receiver()
    listener.hear(rig, "h5")
    assert len(listener.directory) == 4
    assert listener.named() == {"h1": 0b10}
    assert len(listener.assigned[-1].parents) == STRIPES
    rig.disconnect("h5")
    rig.wait(11)


def test_progress_is_judged_of_several_reports_of_each_host() -> None:
    limits = SchedulerLimits(report_interval_min_ns=SECOND_NS, report_interval_max_ns=SECOND_NS)
    for chosen, apart_s in ((limits, 4), (None, 1)):
        rig = swarm(8, chosen)
        judged: dict[int, None] = {}
        for step in range(100):
            rig.hold("h1", 1 << step)
            rig.wait(0.1)
            judged[board(rig).flow.since_ns] = None
        gaps = [later - earlier for earlier, later in itertools.pairwise(judged)]
        assert min(gaps) >= apart_s * SECOND_NS, (apart_s, gaps)
        assert max(gaps) <= (apart_s + 1) * SECOND_NS, (apart_s, gaps)


# ---------------------------------------------------------------- units


def test_units_become_longer_as_the_collection_is_found_to_be_larger() -> None:
    rig = Rig()
    urls = [source_of_url(f"http://origin/{number}", "", "", None) for number in range(2)]
    members = tuple(
        msg.Member(
            source_id=source,
            task_id=None,
            digest=None,
            display_url="",
            piece_length_bytes=None,
            anonymous=True,
        )
        for source in urls
    )
    names = [f"h{number}" for number in range(6)]
    for name in names:
        rig.connect(name, msg.Join(collection_id=collection_of(tuple(urls)), members=members))

    asked = {name: [wanted.source_id for wanted in rig.got(name, msg.StatWanted)] for name in names}

    def tell(source: int, size_bytes: int) -> None:
        name = next(name for name, wanted in asked.items() if urls[source] in wanted)
        rig.send(
            name,
            msg.StatAnswer(
                source_id=urls[source],
                outcome=None,
                size_bytes=size_bytes,
                validator='"v"',
                ranges=True,
            ),
        )

    tell(0, 64 * UNIT_BYTES_MIN)
    rig.wait(1)
    task = next(iter(rig.engine.state.tasks.values()))
    rig.send(
        "h0",
        msg.Report(
            progress=(
                msg.Progress(
                    task_id=task.task_id, epoch=1, new=task.descriptor.geometry.all_pieces
                ),
            )
        ),
    )
    rig.wait(1)
    before = {name: rig.got(name, msg.Assigned)[-1].unit_bytes for name in names}
    assert set(before.values()) == {UNIT_BYTES_MIN}
    for name in names:
        rig.got(name, msg.SwarmMap)
    tell(1, 4 * MAP_UNITS_TARGET * UNIT_BYTES_MIN)
    rig.wait(1)
    for name in names:
        assert rig.got(name, msg.Assigned)[-1].unit_bytes > UNIT_BYTES_MIN
        first = rig.got(name, msg.SwarmMap)[0]
        assert first.full, "what was told in other units is void"
        assert first.unit_bytes > UNIT_BYTES_MIN
        assert first.changes


# ---------------------------------------------------------------- against the truth

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("hold"), st.integers(0, 5), st.integers(1, (1 << UNITS) - 1)),
        st.tuples(st.just("join"), st.integers(0, 5), st.just(0)),
        st.tuples(st.just("leave"), st.integers(0, 5), st.just(0)),
        st.tuples(st.just("back"), st.integers(0, 5), st.integers(1, 3)),
        st.tuples(st.just("drop"), st.integers(0, 5), st.just(0)),
        st.tuples(st.just("wait"), st.just(0), st.integers(0, 12)),
    ),
    max_size=25,
)


@given(STEPS)
@example([("back", 0, 1), ("hold", 0, 3), ("wait", 0, 1), ("back", 0, 2), ("hold", 0, 1)])
@example([("back", 0, 1), ("hold", 0, 3), ("wait", 0, 1), ("drop", 0, 0)])
def test_every_member_knows_what_is_true(steps: list[tuple[str, int, int]]) -> None:
    rig = Rig()
    rig.start("watcher", pieces=PIECES)
    held: dict[str, int] = {}
    generation = 1
    watcher = Receiver()
    for step, which, value in steps:
        name = f"h{which}"
        known = name in rig.sessions and rig.engine.state.sessions.get(rig.sessions[name])
        if step == "wait":
            rig.wait(value)
        elif step == "back":
            generation += 1
            rig.connect(name, join_of(member()), generation=generation, port=value)
            held.pop(name, None)
        elif not known:
            continue
        elif step == "hold":
            pieces = bitfield.pieces_of_units(value, UNIT_PIECES, PIECES)
            rig.hold(name, pieces)
            held[name] = held.get(name, 0) | value
        elif step == "join":
            rig.join(name)
        elif step == "leave":
            rig.leave(name)
        else:
            rig.disconnect(name)
            held.pop(name, None)
    rig.wait(2)
    watcher.hear(rig, "watcher")
    held = {name: units for name, units in held.items() if units}
    assert watcher.named() == held
    covered, count = 0, [0] * UNITS
    for units in held.values():
        covered |= units
        for number in range(UNITS):
            count[number] += units >> number & 1
    assert watcher.covered == covered
    half = max(1, math.ceil(max(len(board(rig).overlay), len(held)) / 2))
    spread = [number for number in range(UNITS) if count[number] >= half]
    expected = sum(1 << number for number in spread)
    assert watcher.spread == expected
    later = Receiver()
    rig.connect("later", join_of(member()))
    rig.wait(2)
    later.hear(rig, "later")
    assert later.named() == held, "newcomers hear the same"
    assert later.covered == covered
