"""How long a plan holds without its scheduler, and what a root reads of its stripe."""

import peer.core.effects as fx
import peer.core.events as ev
import shoal.wire.control as msg
from peer.core.origin_reads import AHEAD_UNITS_MAX
from shoal.wire.ids import HostId
from tests.unit.peer.core_rig import COLLECTION, PIECE, TASK, TOKEN, Rig, describe
from tests.unit.peer.test_core_feeds import link, open_at, planned, request

# ---------------------------------------------------------------- without a scheduler


def test_without_a_scheduler_a_plan_holds_for_the_grace_time() -> None:
    rig = planned("a", "b")
    rig.feed(ev.SchedulerDown, session=1)
    rig.tick(1_900)
    rig.fetched(request(rig, "a", 0))
    assert open_at(rig, "a") == [2, 4]
    rig.tick(200)
    assert rig.engine.state.collections[COLLECTION].feeds == ()
    assert link(rig, "a").feeds == link(rig, "b").feeds == []
    assert link(rig, "a").pulls == {}


def test_the_next_scheduler_has_the_grace_time_to_make_a_plan() -> None:
    rig = planned("a", "b")
    rig.feed(ev.SchedulerDown, session=1)
    rig.tick(1_000)
    rig.up(session=2)
    rig.tick(1_900)
    assert link(rig, "a").feeds
    rig.tick(200)
    assert rig.engine.state.collections[COLLECTION].feeds == ()


def test_a_plan_of_the_next_scheduler_lasts() -> None:
    rig = planned("a", "b")
    rig.feed(ev.SchedulerDown, session=1)
    rig.up(session=2)
    rig.tell(
        msg.Assigned(
            collection_id=COLLECTION, unit_bytes=PIECE, parents=(HostId("b"), HostId("a"))
        ),
        session=2,
    )
    rig.tick(5_000)
    assert open_at(rig, "b") == [0, 2]
    assert open_at(rig, "a") == [1, 3]


def test_a_session_in_which_no_scheduler_spoke_does_not_prolong_a_plan() -> None:
    rig = planned("a", "b")
    rig.feed(ev.SchedulerDown, session=1)
    for session in range(2, 10):
        rig.tick(400)
        rig.feed(ev.SchedulerUp, session=session)
        rig.feed(ev.SchedulerDown, session=session)
    assert rig.engine.state.on_our_own
    assert rig.engine.state.collections[COLLECTION].feeds == ()


def test_when_a_plan_is_over_its_requests_are_too() -> None:
    rig = planned("a", "b", pieces=4)
    rig.feed(ev.SchedulerDown, session=1)
    assert open_at(rig, "a")
    rig.tick(2_000)
    assert not open_at(rig, "a")
    assert rig.task.flying_mask == 0
    rig.tick(2_100)
    assert rig.all(fx.ReadOrigin), "nobody else has it"


def test_the_end_of_the_grace_time_is_not_missed() -> None:
    rig = planned("a", "b")
    rig.feed(ev.SchedulerDown, session=1)
    rig.feed(ev.ParentActive, after_ms=2_000, connection_id=sum(map(ord, "a")))
    assert rig.engine.state.collections[COLLECTION].feeds == ()


def test_what_came_within_the_grace_time_is_read_when_it_is_over() -> None:
    rig = Rig()
    rig.up()
    rig.want(demand=msg.Demand.STREAMING)
    rig.described(describe(8))
    rig.tell(msg.SwarmToken(task_id=TASK, token=TOKEN, ttl_ms=60_000))
    rig.open()
    rig.plan("a", "")
    rig.connects("a")
    rig.feed(ev.SchedulerDown, session=1)
    rig.fetched(request(rig, "a", 0))
    assert not rig.all(fx.PiecesReadable)
    rig.tick(2_000)
    assert rig.all(fx.PiecesReadable)


def test_parents_that_only_the_last_scheduler_named_are_let_go() -> None:
    rig = planned("a", "b")
    rig.parent(7, held=0)
    rig.feed(ev.SchedulerDown, session=1)
    rig.up(session=2)
    named = (msg.Parent(host_id=HostId("c"), addresses=(msg.Address("10.0.0.1", 9),)),)
    rig.tell(
        msg.Parents(collection_id=COLLECTION, added=named),
        msg.Assigned(collection_id=COLLECTION, unit_bytes=PIECE, parents=(HostId("c"),)),
        session=2,
    )
    rig.tick(2_000)
    assert list(rig.engine.state.collections[COLLECTION].parents) == ["c"]
    assert {one.connection_id for one in rig.all(fx.Disconnect)} >= {7}


# ---------------------------------------------------------------- roots


def test_a_root_that_is_far_ahead_of_its_feeds_reads_one_lease_after_the_other() -> None:
    rig = planned("", "b", pieces=64)
    pieces = [2 * number for number in range(AHEAD_UNITS_MAX + 2)]
    for number, piece in enumerate(pieces[:-2]):
        rig.lease(piece, 1, number=100 + number)
        (read,) = rig.of(fx.ReadOrigin)
        rig.read(read.request_id, piece)
        rig.read_ends(read.request_id)
    rig.lease(pieces[-2], 1, number=200)
    (first,) = rig.of(fx.ReadOrigin)
    rig.lease(pieces[-1], 1, number=201)
    assert not rig.of(fx.ReadOrigin), "its feeds have all of its link but one read's part"
    rig.read(first.request_id, pieces[-2])
    rig.read_ends(first.request_id)
    assert rig.one(fx.ReadOrigin).first_piece == pieces[-1]


def test_a_root_that_is_fed_as_much_as_it_reads_reads_several_leases_at_once() -> None:
    rig = planned("", "b", pieces=64)
    for number in range(4):
        rig.lease(2 * number, 1, number=100 + number)
        assert len(rig.of(fx.ReadOrigin)) == 1


def test_who_reads_every_stripe_is_ahead_of_nothing() -> None:
    rig = planned("", "", pieces=64)
    assert rig.engine.state.planned(rig.task)
    for number in range(3):
        rig.lease(4 * number, 4, number=100 + number)
        assert len(rig.of(fx.ReadOrigin)) == 1
