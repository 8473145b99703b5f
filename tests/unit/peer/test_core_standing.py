"""Standing requests, from both ends: how a child waits for its parent, and a parent keeps them."""

import pytest

import peer.core.effects as fx
import peer.core.events as ev
import shoal.wire.control as msg
from peer.core.uploads import PULL_REST_NS, PULLING_MAX
from shoal.wire.errors import Reason
from shoal.wire.ids import ConnectionId, HostId, TaskId
from shoal.wire.proof import swarm_proof
from tests.unit.peer.core_rig import TASK, TOKEN, Rig, sealed_rig

CHILD = ConnectionId(50)
NONCE = b"n" * 16


def opens(rig: Rig, connection: int = 50) -> None:
    host = HostId(f"child{connection}")
    rig.feed(
        ev.ChildOpened,
        connection_id=ConnectionId(connection),
        host_id=host,
        task_id=TASK,
        nonce=NONCE,
        proof=swarm_proof(TOKEN, NONCE, host, TASK),
    )


def asks(rig: Rig, *requests: tuple[int, int], connection: int = 50, wait: bool = True) -> None:
    rig.feed(
        ev.ChildRequested,
        connection_id=ConnectionId(connection),
        task_id=TASK,
        requests=requests,
        wait=wait,
    )


def filling(**limits: int) -> Rig:
    """A host that fetches the task, with a child that may see it."""
    rig = Rig(**limits).start(8)  # type: ignore[arg-type]
    opens(rig)
    return rig


def brings(rig: Rig, piece: int) -> None:
    """A parent sends a piece, and the scheduler has not confirmed its digest yet."""
    if not rig.engine.state.links:
        rig.parent(1, held=0xFF)
    fetches = rig.engine.state.fetches
    (request,) = (number for number, fetch in fetches.items() if fetch.piece == piece)
    rig.fetched(next(one for one in rig.all(fx.FetchPiece) if one.request_id == request))


def reads(rig: Rig, first: int) -> None:
    """A piece is read from the origin here: nobody else has to confirm it."""
    rig.lease(first, 1, number=100 + first)
    rig.read(rig.all(fx.ReadOrigin)[-1].request_id, first)


# ---------------------------------------------------------------- the parent's end


def test_what_is_not_here_yet_is_sent_when_it_is_confirmed() -> None:
    rig = filling()
    rig.parent(1, held=0b1)
    asks(rig, (1, 0))
    assert not rig.effects, "it waits, and needs no answer"
    brings(rig, 0)
    assert not rig.all(fx.ServePiece), "nobody has confirmed it"
    rig.list_digests(0)
    served = rig.one(fx.ServePiece)
    assert (served.child_request, served.piece) == (1, 0)
    assert rig.engine.state.children[CHILD].waiting == {}


def test_a_piece_that_is_read_here_goes_to_all_who_wait_for_it() -> None:
    rig = filling()
    opens(rig, 51)
    asks(rig, (1, 3), (2, 4))
    asks(rig, (1, 3), connection=51)
    reads(rig, 3)
    assert [(one.connection_id, one.piece) for one in rig.of(fx.ServePiece)] == [(50, 3), (51, 3)]
    assert set(rig.engine.state.children[CHILD].waiting) == {2}


def test_without_waiting_what_is_not_here_is_refused() -> None:
    rig = filling()
    asks(rig, (1, 0), wait=False)
    assert rig.one(fx.SendReject).reason is Reason.NOT_HELD


def test_a_host_that_has_all_or_wants_nothing_keeps_nobody_waiting() -> None:
    rig = sealed_rig()
    opens(rig)
    asks(rig, (1, 9))
    assert rig.one(fx.SendReject).reason is Reason.NOT_HELD
    rig = filling()
    asks(rig, (1, 0))
    rig.unwant()
    assert rig.one(fx.SendReject).reason is Reason.NOT_HELD, "it will not come this way"
    asks(rig, (2, 0))
    assert rig.one(fx.SendReject).child_request == 2


def test_a_host_that_shuts_down_lets_go_of_all_who_wait() -> None:
    rig = filling()
    opens(rig, 51)
    asks(rig, (1, 0))
    asks(rig, (1, 5), connection=51)
    rig.feed(ev.ShutDown)
    assert len(rig.of(fx.SendReject)) == 2


def test_a_standing_request_can_be_cancelled_and_is_answered_once() -> None:
    rig = filling()
    asks(rig, (1, 0), (2, 1))
    rig.feed(ev.ChildCancelled, connection_id=CHILD, requests=(1, 9))
    assert [(one.child_request, one.reason) for one in rig.of(fx.SendReject)] == [
        (1, Reason.CANCELLED)
    ]
    reads(rig, 0)
    assert not rig.of(fx.ServePiece)
    reads(rig, 1)
    assert rig.one(fx.ServePiece).child_request == 2


def test_when_the_task_fails_all_who_wait_are_told() -> None:
    rig = filling()
    asks(rig, (1, 0), (2, 5))
    rig.feed(ev.StoreFailed, task_id=TASK, reason=Reason.DISK_FULL, detail="full")
    assert {one.child_request for one in rig.of(fx.SendReject)} == {1, 2}


def test_a_child_that_closes_the_task_or_goes_waits_no_more() -> None:
    rig = filling()
    asks(rig, (1, 0))
    rig.feed(ev.ChildClosedTask, connection_id=CHILD, task_id=TASK)
    assert rig.one(fx.SendReject).child_request == 1
    opens(rig, 51)
    asks(rig, (1, 0), connection=51)
    rig.feed(ev.ChildGone, connection_id=ConnectionId(51))
    assert not rig.effects
    reads(rig, 0)
    assert not rig.of(fx.ServePiece)


def test_standing_requests_are_bounded_and_their_numbers_used_once() -> None:
    rig = filling(upload_queue_pieces_max=2)
    asks(rig, (1, 0), (2, 1), (3, 2))
    assert rig.one(fx.SendBusy).child_request == 3
    asks(rig, (1, 4))
    assert rig.one(fx.DropChild).reason is Reason.PEER_PROTOCOL


def test_what_is_here_and_what_is_awaited_share_the_queue_of_a_child() -> None:
    rig = filling(upload_queue_pieces_max=2, serving_max=1)
    reads(rig, 0)
    asks(rig, (1, 0), (2, 0), (3, 5), (4, 6))
    assert rig.one(fx.ServePiece).child_request == 1
    assert [one.child_request for one in rig.of(fx.SendBusy)] == [3, 4]


# ---------------------------------------------------------------- children that come early


@pytest.mark.parametrize("late", ["task", "token"])
def test_a_child_that_comes_a_moment_too_early_is_let_in(late: str) -> None:
    rig = Rig()
    rig.up()
    rig.want()
    if late == "task":
        rig.tell(msg.SwarmToken(task_id=TASK, token=TOKEN, ttl_ms=60_000))
    opens(rig)
    assert not rig.effects
    rig.described()
    rig.open()
    if late == "token":
        assert not rig.of(fx.AcceptChild)
        rig.tell(msg.SwarmToken(task_id=TASK, token=TOKEN, ttl_ms=60_000))
    assert rig.one(fx.AcceptChild).connection_id == CHILD


def test_a_child_that_goes_while_it_is_early_gets_no_answer() -> None:
    rig = Rig()
    rig.up()
    opens(rig)
    opens(rig, 51)
    rig.feed(ev.ChildGone, connection_id=CHILD)
    rig.feed(ev.ChildClosedTask, connection_id=ConnectionId(51), task_id=TASK)
    rig.tick(2000)
    assert not rig.of(fx.RefuseChild)


def test_without_a_scheduler_nothing_will_come_that_is_not_here() -> None:
    rig = Rig(scheduler=False)
    opens(rig)
    assert rig.one(fx.RefuseChild).reason is Reason.UNAUTHORIZED


# ---------------------------------------------------------------- the child's end


def planned(**limits: int) -> Rig:
    rig = Rig(**limits).start(16)  # type: ignore[arg-type]
    rig.plan("a", "b")
    rig.connects("a", number=1)
    rig.connects("b", number=2)
    return rig


def test_a_parent_that_has_nothing_itself_is_waited_for() -> None:
    rig = planned()
    rig.tick(60_000)
    assert not rig.all(fx.CancelFetch)
    link = rig.engine.state.links[HostId("a")]
    assert link.quarantined_until_ns == 0
    assert not [b for report in rig.said(msg.Report, ever=True) for b in report.blames]


def test_a_parent_that_has_a_piece_and_does_not_send_it_is_stalled() -> None:
    rig = planned()
    rig.feed(ev.ParentHave, connection_id=ConnectionId(1), task_id=TASK, new=0b1)
    rig.tick(5000)
    asked = {one.request_id: one.piece for one in rig.all(fx.FetchPiece)}
    gone = [asked[one.request_id] for one in rig.all(fx.CancelFetch)]
    assert gone[0] == 0
    assert rig.engine.state.links[HostId("a")].strikes
    assert not rig.engine.state.links[HostId("b")].strikes


def test_a_parent_that_gives_a_task_up_is_not_asked_for_it_again_at_once() -> None:
    rig = planned()
    fetches = [one for one in rig.all(fx.FetchPiece) if one.connection_id == 1]
    for one in fetches:
        rig.fetch_fails(one, Reason.NOT_HELD)
    assert rig.engine.state.links[HostId("a")].strikes == 0


def test_a_busy_parent_of_a_stripe_is_asked_again_later() -> None:
    rig = planned()
    first = next(one for one in rig.all(fx.FetchPiece) if one.connection_id == 1)
    rig.fetch_fails(first, Reason.PEER_BUSY, retry_after_ms=100)
    assert not [one for one in rig.of(fx.FetchPiece) if one.connection_id == 1]
    rig.tick(150)
    again = [one for one in rig.of(fx.FetchPiece) if one.connection_id == 1]
    assert again
    assert again[0].piece == first.piece
    assert TaskId(again[0].task_id) == TASK


# ---------------------------------------------------------------- pulls beside the plan


def planned_parent(children: int) -> Rig:
    """A host of a planned swarm that holds piece 0, and hosts that it does not feed."""
    rig = filling()
    for number in range(1, children):
        opens(rig, CHILD + number)
    rig.plan("feed")
    reads(rig, 0)
    return rig


def test_few_hosts_pull_at_once_where_a_plan_holds() -> None:
    rig = planned_parent(PULLING_MAX + 2)
    for number in range(PULLING_MAX):
        asks(rig, (1, 0), connection=CHILD + number, wait=False)
        assert rig.one(fx.ServePiece).connection_id == CHILD + number
    late = CHILD + PULLING_MAX
    asks(rig, (1, 0), connection=late, wait=False)
    assert rig.one(fx.SendBusy).connection_id == late
    rig.feed(ev.ChildGone, connection_id=CHILD)
    asks(rig, (2, 0), connection=late, wait=False)
    assert rig.one(fx.ServePiece).connection_id == late, "a place is free again"
    asks(rig, (1, 0), connection=late + 1)
    assert rig.one(fx.ServePiece).connection_id == late + 1, "whom it feeds it always feeds"


def test_a_pull_that_was_sent_or_cancelled_makes_room() -> None:
    rig = planned_parent(PULLING_MAX + 1)
    for number in range(PULLING_MAX):
        asks(rig, (1, 0), (2, 0), (3, 0), connection=CHILD + number, wait=False)
    served = next(one for one in rig.all(fx.ServePiece) if one.connection_id == CHILD)
    late = CHILD + PULLING_MAX
    for request in (1, 2):
        rig.feed(
            ev.ServeEnded,
            connection_id=CHILD,
            child_request=request,
            task_id=TASK,
            piece=served.piece,
            reason=None,
        )
    asks(rig, (1, 0), connection=late, wait=False)
    assert rig.of(fx.SendBusy), "the third is still being sent"
    rig.feed(
        ev.ServeEnded, connection_id=CHILD, child_request=3, task_id=TASK, piece=0, reason=None
    )
    asks(rig, (2, 0), connection=late, wait=False)
    assert rig.of(fx.ServePiece)


def test_pulls_come_behind_what_is_sent_to_those_who_are_fed() -> None:
    rig = planned_parent(4)
    asks(rig, (1, 0), (2, 1))
    asks(rig, (1, 0), connection=CHILD + 1, wait=False)
    assert rig.one(fx.ServePiece).connection_id == CHILD + 1, "a little is always given"
    asks(rig, (1, 0), connection=CHILD + 2, wait=False)
    assert rig.one(fx.SendBusy).connection_id == CHILD + 2
    rig.feed(
        ev.ServeEnded, connection_id=CHILD, child_request=1, task_id=TASK, piece=0, reason=None
    )
    asks(rig, (2, 0), connection=CHILD + 2, wait=False)
    assert rig.one(fx.ServePiece).connection_id == CHILD + 2, "the fed wait for what is not here"
    asks(rig, (3, 0))
    rig.feed(ev.ChildGone, connection_id=CHILD + 1)
    asks(rig, (1, 0), connection=CHILD + 3, wait=False)
    assert rig.of(fx.SendBusy)
    rig.tick(PULL_REST_NS // 1_000_000)
    asks(rig, (2, 0), connection=CHILD + 3, wait=False)
    assert rig.one(fx.ServePiece).connection_id == CHILD + 3


def test_without_a_plan_all_may_ask_for_what_is_here() -> None:
    rig = filling()
    for number in range(1, PULLING_MAX + 3):
        opens(rig, CHILD + number)
    reads(rig, 0)
    for number in range(PULLING_MAX + 3):
        asks(rig, (1, 0), connection=CHILD + number, wait=False)
        assert rig.of(fx.ServePiece)
