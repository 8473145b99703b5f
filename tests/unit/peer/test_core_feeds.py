"""Flow by the scheduler's plan: standing requests, parents that change, what is late, pulls."""

from typing import Any

import peer.core.effects as fx
import peer.core.events as ev
import shoal.wire.control as msg
from peer.core.feeds import PULLS_MIN, PULLS_PER_IDLE_STRIPE
from peer.core.state import Link
from peer.core.swarm_view import SwarmView, fold
from shoal.wire import bitfield
from shoal.wire.errors import Reason
from shoal.wire.ids import HostId
from tests.unit.peer.core_rig import COLLECTION, TASK, Rig

STANDING = 2
"""Standing requests of one stripe at a parent that was not measured yet."""


def planned(*feeds: str, pieces: int = 16, **limits: Any) -> Rig:
    """A host whose task flows by a plan, with connections to its parents; nobody holds anything."""
    rig = Rig(**limits).start(pieces)
    rig.plan(*feeds)
    for feed in dict.fromkeys(feeds):
        if feed:
            rig.connects(feed)
    return rig


def link(rig: Rig, name: str) -> Link:
    return rig.engine.state.links[HostId(name)]


def open_at(rig: Rig, name: str) -> list[int]:
    """The pieces that a parent was asked for and did not answer yet, in order."""
    fetches = rig.engine.state.fetches
    return [fetches[number].piece for number in link(rig, name).requests]


def request(rig: Rig, name: str, piece: int) -> fx.FetchPiece:
    """The open request for a piece at a parent."""
    (number,) = (
        number
        for number in link(rig, name).requests
        if rig.engine.state.fetches[number].piece == piece
    )
    return next(one for one in rig.all(fx.FetchPiece) if one.request_id == number)


def pulled_from(rig: Rig) -> list[str]:
    """The hosts that are to bring pieces although they are no parents."""
    return [one.host_id for one in rig.engine.state.links.values() if one.pulls]


def cancelled(rig: Rig) -> list[int]:
    """The pieces of the requests that the last event cancelled."""
    asked = {one.request_id: one.piece for one in rig.all(fx.FetchPiece)}
    return [asked[one.request_id] for one in rig.of(fx.CancelFetch)]


# ---------------------------------------------------------------- standing requests


def test_each_parent_is_asked_for_its_stripe_in_order_before_it_holds_anything() -> None:
    rig = planned("a", "b")
    assert open_at(rig, "a") == [0, 2]
    assert open_at(rig, "b") == [1, 3]
    assert all(one.wait for one in rig.all(fx.FetchPiece))
    rig.fetched(request(rig, "a", 0))
    assert open_at(rig, "a")[:2] == [2, 4]
    assert open_at(rig, "b") == [1, 3], "a parent is asked for its own stripe only"


def test_units_of_several_pieces_stay_together() -> None:
    rig = Rig().start(16)
    rig.plan("a", "b", unit_bytes=4 * rig.task.descriptor.geometry.piece_length_bytes)
    rig.connects("a")
    rig.connects("b")
    assert open_at(rig, "a") == [0, 1, 2, 3, 8, 9, 10, 11]
    assert open_at(rig, "b") == [4, 5, 6, 7, 12, 13, 14, 15]


def test_a_parent_that_feeds_two_stripes_is_asked_for_both() -> None:
    rig = planned("a", "b", "a")
    assert sorted(open_at(rig, "a")) == [0, 2, 3, 5]
    assert open_at(rig, "b") == [1, 4]


def test_standing_requests_take_none_of_the_memory_budget() -> None:
    rig = planned("a", "b", in_flight_bytes_max=1)
    assert rig.engine.state.in_flight_bytes == 0
    assert len(rig.engine.state.fetches) == 4


def test_what_is_held_or_being_read_is_not_asked_for() -> None:
    rig = Rig().start(8)
    rig.lease(0, 2)
    rig.plan("a", "b")
    rig.connects("a")
    rig.connects("b")
    assert open_at(rig, "a") == [2, 4]
    assert open_at(rig, "b") == [3, 5]


def test_the_channel_of_the_next_task_is_opened_ahead() -> None:
    rig = planned("a", pieces=4)
    assert len(rig.all(fx.OpenChannel)) == 1
    rig.fetched(request(rig, "a", 0))
    assert len(rig.all(fx.OpenChannel)) == 1, "once for each task"


# ---------------------------------------------------------------- parents that change


def test_a_new_parent_is_asked_for_what_the_old_one_does_not_have() -> None:
    rig = planned("a", "b")
    owed = request(rig, "b", 1)
    rig.feed(ev.ParentHave, connection_id=owed.connection_id, task_id=TASK, new=0b10)
    rig.plan("a", "c")
    assert cancelled(rig) == [3], "what it holds it sends"
    rig.connects("c")
    assert open_at(rig, "a") == [0, 2]
    assert open_at(rig, "c") == [3, 5]
    assert link(rig, "b").feeds == []


def test_a_parent_that_was_gone_and_is_named_again_is_asked_at_once() -> None:
    rig = planned("a", "b")
    rig.feed(ev.ParentClosed, connection_id=sum(map(ord, "a")), reason=Reason.PEER_LOST, detail="")
    assert link(rig, "a").quarantined_until_ns > rig.now_ns
    rig.plan("a", "b")
    assert rig.one(fx.Connect).host_id == "a"


def test_a_parent_that_sent_false_bytes_is_not_asked_again_because_it_is_named() -> None:
    rig = planned("a", "b")
    rig.fetch_fails(request(rig, "a", 0), Reason.PEER_CORRUPT)
    rig.plan("b", "a")
    assert link(rig, "a").quarantined_until_ns > rig.now_ns
    assert not open_at(rig, "a")


def test_a_lost_connection_does_not_wash_false_bytes_away() -> None:
    rig = planned("a", "b")
    rig.fetch_fails(request(rig, "a", 0), Reason.PEER_CORRUPT)
    until_ns = link(rig, "a").quarantined_until_ns
    rig.feed(ev.ParentClosed, connection_id=sum(map(ord, "a")), reason=Reason.PEER_LOST, detail="")
    rig.plan("a", "b")
    assert link(rig, "a").quarantined_until_ns >= until_ns
    assert not rig.of(fx.Connect)


def test_what_a_parent_refuses_is_not_asked_for_again_at_once() -> None:
    rig = planned("a", "b")
    rig.fetch_fails(request(rig, "a", 0), Reason.NOT_HELD)
    assert 0 not in open_at(rig, "a")
    rig.directory("h0")
    rig.map((0, 0b1))
    assert pulled_from(rig) == ["h0"], "its stripe is pulled meanwhile"
    rig.connects("h0", 0b1)
    rig.fetch_fails(request(rig, "h0", 0), Reason.NOT_HELD)
    rig.map((0, 0b1))
    assert not open_at(rig, "h0")
    rig.tick(550)
    assert 0 in open_at(rig, "a") + open_at(rig, "h0")


def test_those_that_feed_are_connected_before_any_others() -> None:
    rig = Rig(parents_max=2).start(8)
    rig.parent(1, held=0)
    rig.parent(2, held=0)
    rig.plan("a", "b")
    assert {one.host_id for one in rig.of(fx.Connect)} == {"a", "b"}


def test_a_parent_that_lets_nobody_pull_feeds_all_the_same() -> None:
    rig = planned("a", "")
    rig.directory("a")
    rig.map((0, 0b10))
    assert open_at(rig, "a") == [0, 2, 1], "two of its stripe, and a pull"
    pull = 1
    rig.fetch_fails(request(rig, "a", pull), Reason.PEER_BUSY, retry_after_ms=100)
    rig.fetched(request(rig, "a", 0))
    assert open_at(rig, "a")[:2] == [2, 4]
    assert pull not in open_at(rig, "a")


def test_a_parent_that_is_named_after_the_plan_feeds_as_well() -> None:
    rig = Rig().start(8)
    rig.tell(msg.Assigned(collection_id=COLLECTION, unit_bytes=1, parents=(HostId("p1"),)))
    rig.parent(1, held=0)
    assert open_at(rig, "p1")[:2] == [0, 1]


def test_a_parent_that_is_met_before_it_is_named_feeds_its_stripe() -> None:
    rig = Rig().start(8)
    rig.tell(msg.Assigned(collection_id=COLLECTION, unit_bytes=1, parents=(HostId("h0"),)))
    rig.directory("h0")
    rig.map((0, 1))
    assert pulled_from(rig) == ["h0"]
    rig.connects("h0", 1)
    assert open_at(rig, "h0") == [0, 1, 2], "pulled is what it holds, awaited what it will"


def test_messages_for_collections_that_are_over_are_ignored() -> None:
    rig = planned("a")
    rig.unwant()
    rig.plan("b")
    rig.directory("a", "b")
    rig.map((0, 1))
    assert not rig.engine.state.collections


# ---------------------------------------------------------------- orphaned stripes


def test_a_stripe_without_a_parent_is_pulled_from_whoever_holds_it() -> None:
    rig = planned("", "b")
    rig.directory("h0", "h1")
    rig.map((0, 0b0011), (1, 0b0010))
    assert pulled_from(rig) == ["h0"], "the other one holds nothing of that stripe"
    rig.connects("h0", 0b0011)
    assert open_at(rig, "h0") == [0]
    assert not request(rig, "h0", 0).wait
    rig.fetched(request(rig, "h0", 0))
    assert rig.task.held == 1
    assert not rig.task.pulled
    assert not link(rig, "h0").pulls


def test_pulls_are_limited_and_more_are_made_as_they_end() -> None:
    rig = planned("", "b", pieces=32)
    rig.directory(*(f"h{number}" for number in range(8)))
    everything = (1 << 32) - 1
    rig.map(*((number, everything) for number in range(8)))
    pulled = pulled_from(rig)
    first = rig.task.pulled
    assert 1 <= len(pulled) <= first.bit_count() == 4
    assert not first & ~bitfield.stripe_mask(1, 32, 2, 0), "only the stripe without a parent"
    for name in pulled:
        rig.connects(name, everything)
    sent = [one for one in rig.all(fx.FetchPiece) if not one.wait]
    rig.fetched(sent[0])
    assert rig.task.pulled & ~first


def test_pulls_are_free_for_others_when_their_host_is_gone_or_never_comes_up() -> None:
    rig = planned("", "b")
    rig.directory("h0")
    rig.map((0, 1))
    assert rig.task.pulled == 1
    rig.feed(ev.ParentConnectFailed, host_id=HostId("h0"), reason=Reason.PEER_LOST, detail="")
    assert rig.task.pulled == 0
    rig.tick(1500)
    rig.map((0, 1))
    assert rig.task.pulled == 1, "quarantines end"
    connection = rig.connects("h0", 1)
    fetch = request(rig, "h0", 0)
    rig.fetch_fails(fetch, Reason.PEER_LOST)
    rig.feed(ev.ParentClosed, connection_id=connection, reason=Reason.PEER_LOST, detail="")
    assert rig.task.pulled == 0


def test_a_host_that_does_not_come_up_is_not_waited_for() -> None:
    rig = planned("", "b")
    rig.directory("h0")
    rig.map((0, 1))
    assert rig.task.pulled == 1
    rig.tick(2600)
    assert rig.task.pulled == 0 or link(rig, "h0").met_ns > rig.now_ns - 2_000_000_000


def test_holders_of_the_same_zone_come_first() -> None:
    for seed in range(8):
        rig = planned("", "b")
        for _ in range(seed):
            rig.engine.state.dice.random()
        names = [f"h{number}" for number in range(8)]
        rig.directory(*names, zones=dict.fromkeys(names[:7], "far"))
        rig.map(*((number, 1) for number in range(8)))
        assert pulled_from(rig) == ["h7"]


def test_this_host_and_unknown_numbers_are_no_holders() -> None:
    rig = planned("", "b")
    rig.directory("me")
    rig.map((0, 1), (5, 1))
    assert not rig.of(fx.Connect)
    assert rig.task.pulled == 0


def test_links_that_were_met_for_pulls_make_room_for_others() -> None:
    rig = planned("", "b", parents_max=2)
    rig.directory("h0", "h1")
    rig.map((0, 1))
    rig.connects("h0", 1)
    rig.fetched(request(rig, "h0", 0))
    rig.map((1, 0b100))
    assert rig.of(fx.Disconnect), "h0 is not needed any more"


def test_room_is_not_made_by_letting_a_parent_go() -> None:
    rig = planned("", "b", "c", parents_max=2)
    rig.directory("h0")
    rig.map((0, 1))
    assert not rig.of(fx.Disconnect)
    assert HostId("h0") not in rig.engine.state.links


# ---------------------------------------------------------------- what is late


def test_what_half_of_the_swarm_had_for_long_is_had_from_elsewhere() -> None:
    rig = planned("a", "b")
    rig.directory("h0")
    late = 1 << 8
    rig.map((0, late | 1), spread=late | 1)
    assert not rig.task.pulled
    rig.tick(900)
    assert not rig.task.pulled
    rig.tick(700)
    assert rig.task.pulled == late
    assert open_at(rig, "a") == [0, 2], "what is on its way is left to it"
    rig.connects("h0", late | 1)
    assert open_at(rig, "h0") == [8]


def test_a_stripe_that_lags_behind_the_others_is_had_from_elsewhere() -> None:
    rig = planned("a", "b")
    rig.directory("h0")
    rig.map((0, 0b1))
    for _ in range(6):
        rig.tick(300)
        rig.fetched(request(rig, "b", open_at(rig, "b")[0]))
    rig.tick(300)
    assert rig.task.pulled == 1, "although its parent was asked for it"
    assert open_at(rig, "a") == [2, 4]
    rig.connects("h0", 1)
    assert open_at(rig, "h0") == [0]


def test_what_a_new_parent_was_just_asked_for_is_left_to_it() -> None:
    rig = planned("a", "b", pieces=32)
    rig.directory("h0")
    rig.map((0, bitfield.mask_of(0, 32)), spread=0)
    for _ in range(6):
        rig.tick(300)
        rig.fetched(request(rig, "b", open_at(rig, "b")[0]))
    assert rig.task.pulled, "a brings nothing"
    rig.plan("c", "b")
    rig.connects("c")
    asked = open_at(rig, "c")
    assert asked
    for _ in range(3):
        # Nothing came from the new parent yet, so that its rate is not known.
        rig.tick(300)
        rig.fetched(request(rig, "b", open_at(rig, "b")[0]))
        assert open_at(rig, "c") == asked, "it is on its way, and would come twice"


def test_what_few_hosts_have_is_waited_for() -> None:
    rig = planned("a", "b")
    rig.directory("h0")
    rig.map((0, 0b1), spread=0)
    for _ in range(20):
        rig.tick(300)
        for name in "ab":
            rig.fetched(request(rig, name, open_at(rig, name)[0]))
        if rig.task.complete:
            break
        assert rig.task.pulled == 0


def test_a_pulled_piece_that_comes_another_way_is_not_asked_for_again() -> None:
    rig = planned("", "b")
    rig.directory("h0")
    rig.map((0, 0b1))
    assert rig.task.pulled == 1
    rig.lease(0, 1)
    rig.read(rig.all(fx.ReadOrigin)[-1].request_id, 0)
    assert rig.task.held & 1
    assert rig.task.pulled == 0
    rig.connects("h0", 1)
    assert not rig.of(fx.FetchPiece)


def test_no_piece_is_pulled_from_two_hosts() -> None:
    rig = Rig().start(8)
    length = rig.task.descriptor.geometry.piece_length_bytes
    rig.lease(0, 1)
    read = rig.one(fx.ReadOrigin).request_id
    rig.plan("", "b", unit_bytes=4 * length)
    rig.directory("h0", "h1")
    rig.map((0, 0b1), unit_bytes=4 * length)
    assert link(rig, "h0").pulls == {TASK: 0b1110}, "a read brings the first piece of the unit"
    rig.read_ends(read, Reason.ORIGIN_FORBIDDEN)
    rig.map((1, 0b1), gone=(0,), unit_bytes=4 * length)
    assert link(rig, "h0").pulls == {TASK: 0b1110}
    assert link(rig, "h1").pulls == {TASK: 0b0001}


# ---------------------------------------------------------------- searching


def test_parts_of_units_are_searched_for_piece_by_piece() -> None:
    rig = Rig().start(8)
    unit_bytes = 4 * rig.task.descriptor.geometry.piece_length_bytes
    rig.plan("", unit_bytes=unit_bytes)
    rig.directory("h0")
    rig.map((0, 0), unit_bytes=unit_bytes)
    rig.tick(600)
    assert not rig.of(fx.Connect), "what was told a moment ago may still come by its own way"
    rig.tick(600)
    connection = rig.connects("h0")
    rig.tick(600)
    assert rig.one(fx.OpenChannel).connection_id == connection
    rig.feed(ev.ParentOpened, connection_id=connection, task_id=TASK, epoch=1, held=0b0110)
    assert sorted(open_at(rig, "h0")) == [1, 2], "no whole unit, and yet two pieces"


# ---------------------------------------------------------------- views


def test_a_view_follows_changes_and_begins_anew_with_a_full_map() -> None:
    def news(
        changes: tuple[msg.HostRuns, ...], gone: tuple[int, ...] = (), *, full: bool = False
    ) -> msg.SwarmMap:
        return msg.SwarmMap(
            collection_id=COLLECTION,
            unit_bytes=1,
            full=full,
            gone=gone,
            changes=changes,
            covered=((0, 0b11),),
            spread=((1, 0b1),),
        )

    empty = SwarmView()
    one = fold(empty, news((msg.HostRuns(0, 0, 0b01), msg.HostRuns(1, 0, 0b10))))
    assert one.holders == {0: {0: 0b01, 1: 0b10}}
    two = fold(one, news((msg.HostRuns(0, 0, 0b10),), gone=(0,)))
    assert two.holders == {0: {0: 0b10, 1: 0b10}}, "gone first, then what is new"
    assert one.holders == {0: {0: 0b01, 1: 0b10}}, "views never change"
    three = fold(two, news((msg.HostRuns(4, 2, 0b1),), full=True))
    assert three.holders == {2: {4: 0b1}}
    assert (three.covered, three.spread) == ({0: 0b11}, {1: 0b1})


def test_receivers_of_one_map_share_its_view() -> None:
    news = msg.SwarmMap(collection_id=COLLECTION, unit_bytes=1, full=False)
    view, other = SwarmView(), SwarmView({0: {0: 1}})
    assert fold(view, news) is fold(view, news)
    assert fold(other, news) is not fold(view, news)
    for _ in range(20):
        fold(SwarmView(), news)
    assert len(news.memo) <= 8


def test_a_holder_that_is_busy_is_asked_for_nothing_more_and_others_are() -> None:
    rig = planned("", "b")
    rig.directory("h0", "h1")
    rig.map((0, 0b1))
    rig.connects("h0", 1)
    (pull,) = open_at(rig, "h0")
    rig.feed(
        ev.FetchEnded,
        request_id=request(rig, "h0", pull).request_id,
        reason=Reason.PEER_BUSY,
        retry_after_ms=100,
    )
    assert rig.task.pulled == 0, "no other host has it"
    assert open_at(rig, "h0") == []
    rig.map((1, 0b1))
    assert pulled_from(rig) == ["h1"]


def test_pulls_are_bounded_though_all_come_from_one_holder() -> None:
    rig = planned("", "", pieces=32)
    rig.directory("h0")
    rig.map((0, (1 << 32) - 1))
    first = rig.task.pulled.bit_count()
    assert first == PULLS_MIN + 2 * PULLS_PER_IDLE_STRIPE
    for _ in range(5):
        rig.map((0, (1 << 32) - 1))
    assert rig.task.pulled.bit_count() == first
