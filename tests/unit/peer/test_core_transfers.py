"""Parents, requests, uploads and the picker of a peer core."""

import random

import pytest

import peer.core.effects as fx
import peer.core.events as ev
import shoal.wire.control as msg
from peer.core.picker import Availability, pick, pick_random
from shoal.wire.errors import Reason
from shoal.wire.ids import ConnectionId, HostId, RequestId, TaskId
from shoal.wire.proof import swarm_proof
from tests.unit.peer.core_rig import (
    COLLECTION,
    PIECE,
    TASK,
    TOKEN,
    Rig,
    describe,
    digest_of,
    sealed_rig,
)

P1, P2 = HostId("p1"), HostId("p2")
C1 = ConnectionId(1)
CHILD = ConnectionId(50)
NONCE = b"n" * 16


# ---------------------------------------------------------------- requests to parents


def test_the_endgame_asks_twice_and_cancels_the_slower_copy() -> None:
    rig = Rig().start(1)
    rig.parent(1, held=1)
    first = rig.one(fx.FetchPiece)
    rig.parent(2, held=1)
    second = rig.one(fx.FetchPiece)
    assert second.piece == first.piece
    rig.parent(3, held=1)
    assert not rig.of(fx.FetchPiece), "no more copies than allowed"
    rig.fetched(second)
    assert rig.one(fx.CancelFetch).request_id == first.request_id
    rig.fetched(first)
    assert rig.task.peer_bytes == PIECE


def test_a_piece_from_the_origin_cancels_its_requests() -> None:
    rig = Rig().start()
    rig.parent(1, held=0)
    rig.lease(0, 1)
    read = rig.one(fx.ReadOrigin).request_id
    rig.feed(ev.ParentHave, connection_id=C1, task_id=TASK, new=0b10)
    rig.read(read, 1)
    assert rig.of(fx.CancelFetch)


def test_a_silent_parent_is_given_up_and_its_piece_asked_elsewhere() -> None:
    rig = Rig().start(2)
    rig.parent(1, held=0b01)
    first = rig.one(fx.FetchPiece)
    rig.tick(1900)
    assert not rig.of(fx.CancelFetch)
    rig.tick(200)
    assert rig.one(fx.CancelFetch).request_id == first.request_id
    assert rig.engine.state.links[P1].quarantined_until_ns > rig.now_ns
    rig.tick(100)
    blames = [b for report in rig.said(msg.Report, ever=True) for b in report.blames]
    assert [(b.host_id, b.reason) for b in blames] == [(P1, Reason.PEER_STALLED)]
    rig.tick(3000)
    assert rig.of(fx.FetchPiece), "every quarantine expires"


def test_a_slow_parent_that_sends_is_waited_for_but_not_for_ever() -> None:
    rig = Rig(request_timeout_max_ns=10_000_000_000).start(1)
    rig.parent(1, held=1)
    for _ in range(9):
        rig.tick(1000)
        assert not rig.of(fx.CancelFetch)
        rig.feed(ev.ParentActive, connection_id=C1)
    rig.feed(ev.ParentActive, connection_id=ConnectionId(99))
    rig.tick(1500)
    assert rig.of(fx.CancelFetch)


def test_patience_follows_the_measured_rate() -> None:
    rig = Rig(request_timeout_min_ns=1_000_000).start(4)
    rig.parent(1)
    rig.fetched(rig.of(fx.FetchPiece)[0])
    fetch = rig.engine.state.fetches[rig.of(fx.FetchPiece)[0].request_id]
    assert fetch.deadline_ns - rig.now_ns > 1_000_000


def test_the_memory_budget_bounds_requests_and_is_refilled() -> None:
    rig = Rig(in_flight_bytes_max=2 * PIECE, pipeline_pieces_min=8).start()
    rig.parent(1)
    fetches = rig.of(fx.FetchPiece)
    assert len(fetches) == 2
    rig.fetched(fetches[0])
    assert len(rig.of(fx.FetchPiece)) == 1


def test_the_pipeline_is_bounded() -> None:
    rig = Rig(pipeline_pieces_max=3).start(64)
    rig.parent(1, held=(1 << 64) - 1)
    for _ in range(20):
        rig.fetched(
            next(
                f
                for f in rig.log
                if isinstance(f, fx.FetchPiece) and f.request_id in rig.engine.state.fetches
            )
        )
    assert len(rig.engine.state.fetches) == 3


def test_a_busy_parent_is_asked_again_when_it_said() -> None:
    rig = Rig().start(1)
    rig.parent(1, held=1)
    rig.fetch_fails(rig.one(fx.FetchPiece), Reason.PEER_BUSY, retry_after_ms=100)
    assert not rig.of(fx.FetchPiece)
    rig.tick(150)
    assert rig.of(fx.FetchPiece)


def test_a_parent_that_does_not_hold_a_piece_is_not_asked_for_it_again() -> None:
    rig = Rig().start(1)
    rig.parent(1, held=1)
    rig.fetch_fails(rig.one(fx.FetchPiece), Reason.NOT_HELD)
    assert not rig.of(fx.FetchPiece)
    rig.feed(ev.ParentHave, connection_id=C1, task_id=TASK, new=1)
    fetch = rig.one(fx.FetchPiece)
    rig.feed(ev.ParentWithdrew, connection_id=C1, task_id=TASK, gone=1)
    rig.fetch_fails(fetch, Reason.NOT_HELD)
    assert rig.task.availability.available == 0


@pytest.mark.parametrize("reason", [Reason.PEER_CORRUPT, Reason.PEER_CONTRADICTED])
def test_false_bytes_are_blamed(reason: Reason) -> None:
    rig = Rig().start(1)
    rig.parent(1, held=1)
    rig.fetch_fails(rig.one(fx.FetchPiece), reason)
    assert [n.kind for n in rig.of(fx.Noted)] == ["blamed", "quarantined"]


@pytest.mark.parametrize("reason", [Reason.PEER_PROTOCOL, Reason.PEER_STALLED, Reason.PEER_LOST])
def test_other_failures_do_not_lose_the_piece(reason: Reason) -> None:
    rig = Rig().start(1)
    rig.parent(1, held=1)
    rig.fetch_fails(rig.one(fx.FetchPiece), reason)
    rig.tick(60_000)
    assert len(rig.all(fx.FetchPiece)) > 1


def test_answers_of_another_epoch_or_after_the_end_are_not_kept() -> None:
    rig = Rig().start(2)
    rig.parent(1, held=0b11)
    first, _ = rig.of(fx.FetchPiece)
    rig.feed(ev.FetchEnded, request_id=first.request_id, reason=None, digest=digest_of(0), epoch=7)
    assert rig.task.held == 0
    rig.feed(ev.FetchEnded, request_id=RequestId(999), reason=None)
    assert rig.task.held == 0


def test_strikes_double_the_quarantine_and_are_forgotten() -> None:
    rig = Rig(strike_memory_ns=50_000_000_000).start()
    rig.parent(1, held=0)
    link = rig.engine.state.links[P1]
    rig.feed(ev.ParentClosed, connection_id=C1, reason=Reason.PEER_LOST, detail="")
    for _ in range(3):
        rig.tick(20_000)
        rig.feed(ev.ParentConnectFailed, host_id=P1, reason=Reason.PEER_LOST, detail="")
    assert link.strikes == 4
    rig.tick(60_000)
    rig.feed(ev.ParentConnectFailed, host_id=P1, reason=Reason.PEER_LOST, detail="")
    assert link.strikes == 1
    rig.feed(ev.ParentConnectFailed, host_id=P1, reason=Reason.PEER_LOST, detail="late")
    assert link.strikes == 1


def test_a_parent_nobody_names_is_forgotten_with_its_strikes() -> None:
    rig = Rig(strike_memory_ns=5_000_000_000).start()
    rig.parent(1, held=0)
    rig.feed(ev.ParentClosed, connection_id=C1, reason=Reason.PEER_LOST, detail="")
    rig.tell(msg.Parents(collection_id=COLLECTION, removed=(P1, P2)))
    assert P1 in rig.engine.state.links
    rig.tick(6_000)
    rig.parent(2, held=0)
    assert P1 not in rig.engine.state.links


def test_a_parent_elsewhere_begins_clean() -> None:
    rig = Rig().start()
    rig.parent(1, held=0)
    moved = msg.Parent(host_id=P1, addresses=(msg.Address("10.0.0.2", 9),))
    me = msg.Parent(host_id=HostId("me"), addresses=())
    rig.tell(msg.Parents(collection_id=COLLECTION, added=(moved, me)))
    assert rig.one(fx.Disconnect).connection_id == C1
    assert HostId("me") not in rig.engine.state.links
    rig.feed(ev.ParentClosed, connection_id=C1, reason=Reason.CANCELLED, detail="")
    assert rig.one(fx.Connect).addresses == moved.addresses
    again = msg.Parent(host_id=P1, addresses=())
    rig.tell(msg.Parents(collection_id=COLLECTION, added=(again,)))
    assert not rig.of(fx.Disconnect)


def test_news_of_connections_and_channels_that_are_gone_is_ignored() -> None:
    rig = Rig().start()
    rig.feed(ev.ParentConnected, host_id=P1, connection_id=C1, round_trip_ns=1)
    assert rig.of(fx.Disconnect)
    rig.feed(ev.ParentOpened, connection_id=C1, task_id=TASK, epoch=1, held=1)
    rig.feed(ev.ParentRefused, connection_id=C1, task_id=TASK, reason=Reason.UNAUTHORIZED)
    rig.feed(ev.ParentHave, connection_id=C1, task_id=TASK, new=1)
    rig.feed(ev.ParentWithdrew, connection_id=C1, task_id=TASK, gone=1)
    rig.feed(ev.ParentClosed, connection_id=C1, reason=Reason.PEER_LOST, detail="")
    rig.parent(2, held=1)
    rig.feed(ev.ParentHave, connection_id=ConnectionId(2), task_id=TaskId("0"), new=1)
    assert rig.task.availability.count(0) == 1
    assert rig.task.availability.count(1) == 0


def test_a_refusal_is_asked_again_later() -> None:
    rig = Rig().start()
    rig.parent(1, held=1)
    rig.feed(ev.ParentRefused, connection_id=C1, task_id=TASK, reason=Reason.UNKNOWN_TASK)
    rig.feed(ev.ParentHave, connection_id=C1, task_id=TASK, new=1)
    rig.parent(2, held=0)
    assert not rig.of(fx.OpenChannel)
    rig.tick(2500)
    assert rig.of(fx.OpenChannel)


def test_no_channel_without_a_token_and_no_more_parents_than_allowed() -> None:
    rig = Rig(parents_max=1)
    rig.up()
    rig.want()
    rig.described()
    rig.open()
    rig.parent(1)
    assert not rig.all(fx.OpenChannel)
    rig.parent(2)
    assert len(rig.all(fx.Connect)) == 1
    rig.tell(msg.SwarmToken(task_id=TASK, token=TOKEN, ttl_ms=1000))
    assert rig.one(fx.OpenChannel).token == TOKEN


def test_a_sealed_task_closes_its_channels_and_a_leaver_its_connections() -> None:
    rig = Rig().start(1)
    rig.parent(1, held=1)
    rig.fetched(rig.one(fx.FetchPiece))
    assert rig.of(fx.CloseChannel)
    rig.hash()
    rig.seal()
    assert rig.of(fx.Disconnect)
    rig.unwant()
    rig.tell(msg.Parents(collection_id=COLLECTION))
    assert not rig.engine.state.collections


# ---------------------------------------------------------------- serving children


def child_opens(rig: Rig, connection: int = 50, token: bytes = TOKEN) -> None:
    host = HostId(f"child{connection}")
    rig.feed(
        ev.ChildOpened,
        connection_id=ConnectionId(connection),
        host_id=host,
        task_id=TASK,
        nonce=NONCE,
        proof=swarm_proof(token, NONCE, host, TASK),
    )


def ask(rig: Rig, *requests: tuple[int, int], connection: int = 50) -> None:
    rig.feed(
        ev.ChildRequested, connection_id=ConnectionId(connection), task_id=TASK, requests=requests
    )


def serve_ends(rig: Rig, number: int, piece: int, reason: Reason | None = None) -> None:
    rig.feed(
        ev.ServeEnded,
        connection_id=CHILD,
        child_request=number,
        task_id=TASK,
        piece=piece,
        reason=reason,
        detail="",
    )


def test_only_a_child_with_a_good_token_is_let_in() -> None:
    rig = sealed_rig()
    child_opens(rig, token=b"x" * 32)
    assert rig.one(fx.RefuseChild).reason is Reason.UNAUTHORIZED
    child_opens(rig)
    assert rig.one(fx.AcceptChild).held == 0b1111
    rig.tick(61_000)
    child_opens(rig)
    assert rig.one(fx.RefuseChild).reason is Reason.UNAUTHORIZED


def test_a_task_not_here_and_a_child_too_many_are_refused() -> None:
    rig = Rig(children_max=1)
    rig.up()
    rig.tell(msg.SwarmToken(task_id=TASK, token=TOKEN, ttl_ms=60_000))
    child_opens(rig)
    rig.tick(900)
    assert not rig.of(fx.RefuseChild), "this host may be about to be told of the task"
    rig.tick(200)
    assert rig.one(fx.RefuseChild).reason is Reason.UNKNOWN_TASK
    child_opens(rig, 51)
    assert rig.one(fx.RefuseChild).reason is Reason.OVERLOADED
    ask(rig, (1, 0))
    assert rig.one(fx.SendReject).reason is Reason.UNKNOWN_TASK


def test_a_full_queue_says_busy_and_every_request_has_one_answer() -> None:
    rig = sealed_rig(upload_queue_pieces_max=1, serving_max=1)
    child_opens(rig)
    ask(rig, (1, 0))
    assert rig.one(fx.ServePiece).piece == 0
    ask(rig, (2, 1), (3, 2), (4, 9))
    assert rig.one(fx.SendBusy).child_request == 3
    assert rig.one(fx.SendReject).child_request == 4
    rig.feed(ev.ChildCancelled, connection_id=CHILD, requests=(2, 1))
    assert rig.one(fx.SendReject).reason is Reason.CANCELLED
    rig.feed(ev.ChildCancelled, connection_id=ConnectionId(8), requests=(2,))
    serve_ends(rig, 1, 0)
    assert rig.engine.state.children[CHILD].served_bytes == PIECE


def test_a_request_number_used_twice_drops_the_child() -> None:
    rig = sealed_rig()
    child_opens(rig)
    ask(rig, (1, 0), (1, 1))
    assert rig.one(fx.DropChild).reason is Reason.PEER_PROTOCOL
    rig.feed(ev.ChildGone, connection_id=CHILD)
    rig.feed(ev.ChildGone, connection_id=CHILD)
    serve_ends(rig, 1, 0)
    assert not rig.engine.state.children


def test_children_take_turns() -> None:
    rig = sealed_rig(serving_max=3)
    child_opens(rig, 50)
    child_opens(rig, 51)
    ask(rig, (1, 0), (2, 1), (3, 2), (4, 3))
    ask(rig, (1, 0), (2, 1), connection=51)
    served = [effect.connection_id for effect in rig.all(fx.ServePiece)]
    assert served == [50, 50, 51]
    serve_ends(rig, 1, 0)
    assert rig.one(fx.ServePiece).connection_id == 51


def test_an_unreadable_piece_has_the_store_look_again() -> None:
    rig = sealed_rig()
    child_opens(rig)
    ask(rig, (1, 0), (2, 1), (3, 2))
    serve_ends(rig, 1, 0, Reason.DISK_FAILED)
    assert "piece-unreadable" in [noted.kind for noted in rig.of(fx.Noted)]
    assert rig.one(fx.Withdraw).gone == 0b1111
    assert rig.of(fx.OpenTask)
    assert rig.one(fx.SendReject).child_request == 3, "it went away while it waited"
    serve_ends(rig, 2, 1, Reason.DISK_FAILED)
    assert not rig.of(fx.OpenTask), "it is being looked at already"
    rig.open(0b1110)
    rig.list_digests(1, 2, 3)
    rig.tick(10)
    assert rig.all(fx.Announce)[-1].new == 0b1110


def test_a_failure_to_read_a_removed_task_does_nothing() -> None:
    rig = sealed_rig()
    rig.feed(
        ev.ServeEnded,
        connection_id=CHILD,
        child_request=1,
        task_id=TaskId("0"),
        piece=0,
        reason=Reason.NOT_HELD,
    )
    assert not rig.effects


def test_what_is_served_is_not_removed_and_listeners_hear_of_a_removal() -> None:
    rig = sealed_rig()
    child_opens(rig)
    ask(rig, (1, 0), (2, 1), (3, 2))
    rig.feed(ev.Remove, request_id=RequestId(70), task_id=TASK)
    assert rig.one(fx.RemoveEnded).reason is Reason.OVERLOADED
    for number, piece in ((1, 0), (2, 1), (3, 2)):
        serve_ends(rig, number, piece)
    rig.feed(ev.Remove, request_id=RequestId(71), task_id=TASK)
    order = [type(effect) for effect in rig.effects]
    assert order.index(fx.Withdraw) < order.index(fx.RemoveTask)
    ask(rig, (4, 0))
    assert rig.one(fx.SendReject).reason is Reason.UNKNOWN_TASK


def test_a_child_that_closed_the_task_hears_no_more_of_it() -> None:
    rig = Rig().start()
    child_opens(rig, 50)
    child_opens(rig, 51)
    rig.feed(ev.ChildClosedTask, connection_id=CHILD, task_id=TASK)
    rig.feed(ev.ChildClosedTask, connection_id=ConnectionId(9), task_id=TASK)
    rig.lease()
    rig.read(rig.one(fx.ReadOrigin).request_id, 0)
    rig.tick(10)
    assert rig.all(fx.Announce)[-1].connection_ids == (ConnectionId(51),)


def test_a_failed_task_is_closed_to_its_children() -> None:
    rig = Rig().start()
    child_opens(rig)
    rig.feed(ev.StoreFailed, task_id=TASK, reason=Reason.DISK_FULL, detail="full")
    assert rig.one(fx.RefuseChild).reason is Reason.NOT_HELD


def test_tokens_of_a_task_are_bounded_newest_kept() -> None:
    rig = sealed_rig()
    for number in range(6):
        rig.tell(msg.SwarmToken(task_id=TASK, token=b"%032d" % number, ttl_ms=60_000))
    child_opens(rig, token=TOKEN)
    assert rig.of(fx.RefuseChild)
    child_opens(rig, token=b"%032d" % 5)
    assert rig.of(fx.AcceptChild)


# ---------------------------------------------------------------- the picker


def test_the_rarest_come_first_and_counts_follow() -> None:
    seen = Availability()
    seen.add(0b111)
    seen.add(0b011)
    seen.add(0b001)
    assert [seen.count(piece) for piece in range(4)] == [3, 2, 1, 0]
    assert seen.rarest(0b011) == 0b010
    assert seen.rarest(0b1000) == 0b1000
    assert pick(0b111, seen, random.Random(1), in_order=True) == 0
    assert pick(0b111, seen, random.Random(1), in_order=False) == 2
    seen.remove(0b011)
    assert [seen.count(piece) for piece in range(3)] == [2, 1, 1]
    seen.remove(0b111)
    seen.remove(0b001)
    assert seen.available == 0
    with pytest.raises(AssertionError, match="nobody held"):
        seen.remove(1)


@pytest.mark.parametrize("mask", [1 << 900, 1 | 1 << 500 | 1 << 999, (1 << 40) - 1])
def test_every_piece_of_a_sparse_mask_is_drawn(mask: int) -> None:
    dice = random.Random(2)
    drawn = 0
    for _ in range(400):
        piece = pick_random(mask, dice)
        assert mask >> piece & 1
        drawn |= 1 << piece
    assert drawn == mask


def test_an_unknown_size_has_no_endgame() -> None:
    rig = Rig().start(None)
    rig.parent(1, held=1)
    rig.parent(2, held=1)
    assert len(rig.all(fx.FetchPiece)) == 1
    assert describe(None).geometry.size_bytes is None
