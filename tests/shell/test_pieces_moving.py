"""Pieces between two hosts on real sockets, on both event loops, plain and with TLS."""

import asyncio
import errno
import os

import pytest

from peer.core import effects as fx
from peer.core import events as ev
from peer.shell.store.errors import StoreError
from shoal.wire.errors import Reason
from shoal.wire.ids import ConnectionId
from shoal.wire.limits import KIB, MIB
from shoal.wire.piece_digest import piece_digest
from tests.shell.pieces_rig import PIECE_BYTES, TASK, Rig, with_rig


@with_rig()
async def test_a_piece_moves_with_its_record(rig: Rig) -> None:
    connection_id = await rig.opened()
    ended = await rig.at_child.ended(rig.fetch(connection_id, 2))
    digest = piece_digest("xxh3-128", rig.part(2))
    assert (ended.reason, ended.digest, ended.lease_number, ended.epoch) == (None, digest, 9, 1)
    assert rig.target.written == {2: rig.part(2)}
    assert rig.target.records[2] == ev.PieceRecord(digest, ended.lease_number, read_here=False)
    served = await rig.at_parent.wait(ev.ServeEnded)
    assert (served.piece, served.reason) == (2, None)
    assert rig.port.sent_bytes == rig.parents.received_bytes == PIECE_BYTES
    assert rig.at_child.of(ev.ParentOpened)[0].held == 0b1111


@with_rig(pieces=60, piece_bytes=100 * KIB + 1)
async def test_many_pieces_move_at_once(rig: Rig) -> None:
    connection_id = await rig.opened()
    for piece in range(60):
        rig.fetch(connection_id, piece)
    await rig.at_child.wait(ev.FetchEnded, 60)
    assert {ended.reason for ended in rig.at_child.of(ev.FetchEnded)} == {None}
    assert rig.target.written == {piece: rig.part(piece) for piece in range(60)}


@with_rig(pieces=4, piece_bytes=8 * MIB)
async def test_news_while_a_piece_is_on_its_way_come_after_it(rig: Rig) -> None:
    """Frames and payload share a connection: news must never end up inside of a piece."""
    connection_id = await rig.opened()
    parent_id = rig.at_parent.of(ev.ChildOpened)[0].connection_id
    announcing = True

    def announce() -> None:
        if announcing:
            rig.port.announce(fx.Announce(task_id=TASK, new=0b1010, connection_ids=(parent_id,)))
            asyncio.get_running_loop().call_soon(announce)

    announce()
    for piece in range(4):
        rig.fetch(connection_id, piece)
    await rig.at_child.wait(ev.FetchEnded, 4)
    announcing = False
    assert [ended.reason for ended in rig.at_child.of(ev.FetchEnded)] == [None] * 4
    assert rig.target.written == {piece: rig.part(piece) for piece in range(4)}
    assert rig.at_child.of(ev.ParentHave)[0].new == 0b1010


@with_rig(pieces=8, memory_bytes=PIECE_BYTES)
async def test_pieces_wait_for_memory_and_all_arrive(rig: Rig) -> None:
    first, second = await rig.opened(), await rig.opened()
    for piece in range(8):
        rig.fetch((first, second)[piece % 2], piece)
    await rig.at_child.wait(ev.FetchEnded, 8)
    assert rig.target.written == {piece: rig.part(piece) for piece in range(8)}
    assert rig.buffers.allocated_bytes <= PIECE_BYTES


@with_rig()
async def test_corrupt_bytes_are_found_and_not_written(rig: Rig) -> None:
    wrong = bytearray(rig.source.content)
    wrong[PIECE_BYTES // 2] ^= 1
    rig.source.path.write_bytes(wrong)
    connection_id = await rig.opened()
    ended = await rig.at_child.ended(rig.fetch(connection_id, 0))
    assert ended.reason is Reason.PEER_CORRUPT
    assert rig.target.written == {}
    # The connection lives on: what to do with such a parent is the core's decision.
    assert (await rig.at_child.ended(rig.fetch(connection_id, 1))).reason is None


@with_rig()
async def test_a_digest_other_than_expected_is_a_contradiction(rig: Rig) -> None:
    connection_id = await rig.opened()
    ended = await rig.at_child.ended(rig.fetch(connection_id, 0, expected=b"x" * 16))
    assert ended.reason is Reason.PEER_CONTRADICTED
    right = piece_digest("xxh3-128", rig.part(1))
    assert (await rig.at_child.ended(rig.fetch(connection_id, 1, expected=right))).reason is None
    assert set(rig.target.written) == {1}


@pytest.mark.parametrize(
    ("said", "provisional", "reason"),
    [(2, False, Reason.NOT_HELD), (2, True, Reason.NOT_HELD), (0, False, Reason.NOT_HELD),
     (0, True, None)],
)  # fmt: skip
@with_rig()
async def test_the_epoch_must_be_the_one_asked_for(
    rig: Rig, said: int, provisional: bool, reason: Reason | None
) -> None:
    def serve(number: int, piece: int, connection_id: ConnectionId) -> None:
        rig.serve_right(number, piece, connection_id, epoch=said)

    rig.serve = serve
    connection_id = await rig.opened()
    ended = await rig.at_child.ended(rig.fetch(connection_id, 0, provisional=provisional))
    assert ended.reason is reason
    assert set(rig.target.written) == ({0} if reason is None else set())


@with_rig()
async def test_a_full_disk_ends_the_request_alone(rig: Rig) -> None:
    connection_id = await rig.opened()
    rig.target.failure = StoreError(Reason.DISK_FULL, "no room")
    ended = await rig.at_child.ended(rig.fetch(connection_id, 0))
    assert ended.reason is Reason.DISK_FULL
    rig.target.failure = None
    assert (await rig.at_child.ended(rig.fetch(connection_id, 0))).reason is None


@with_rig()
async def test_a_piece_that_cannot_be_lent_is_rejected(rig: Rig) -> None:
    connection_id = await rig.opened()
    rig.source.failure = StoreError(Reason.UNKNOWN_TASK, "gone")
    ended = await rig.at_child.ended(rig.fetch(connection_id, 0))
    assert ended.reason is Reason.NOT_HELD
    assert (await rig.at_parent.wait(ev.ServeEnded)).reason is Reason.DISK_FAILED


@with_rig(pieces=2)
async def test_a_stored_file_that_is_too_short_is_a_failure_of_this_disk(rig: Rig) -> None:
    os.truncate(rig.source.path, PIECE_BYTES + 1000)
    connection_id = await rig.opened()
    request_id = rig.fetch(connection_id, 1)
    served = await rig.at_parent.wait(ev.ServeEnded)
    assert (served.piece, served.reason) == (1, Reason.DISK_FAILED)
    assert "shorter" in served.detail
    # Its header was sent already: only an end of the connection can tell the child.
    assert (await rig.at_child.ended(request_id)).reason is Reason.PEER_LOST
    await rig.at_parent.wait(ev.ChildGone)


@with_rig(pieces=2)
async def test_a_stored_file_that_cannot_be_read_is_a_failure_of_this_disk(rig: Rig) -> None:
    def broken(*_arguments: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    connection_id = await rig.opened()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sendfile", broken)
        patch.setattr(os, "pread", broken)
        request_id = rig.fetch(connection_id, 1)
        served = await rig.at_parent.wait(ev.ServeEnded)
    assert (served.piece, served.reason) == (1, Reason.DISK_FAILED)
    assert (await rig.at_child.ended(request_id)).reason is Reason.PEER_LOST


# ---------------------------------------------------------------- cancelling


@with_rig()
async def test_a_cancelled_request_ends_at_once_and_the_parent_is_told(rig: Rig) -> None:
    rig.serve = rig.serve_nothing
    connection_id = await rig.opened()
    request_id = rig.fetch(connection_id)
    asked = await rig.at_parent.wait(ev.ChildRequested)
    rig.parents.cancel(fx.CancelFetch(request_id=request_id))
    assert (await rig.at_child.ended(request_id)).reason is Reason.CANCELLED
    assert (await rig.at_parent.wait(ev.ChildCancelled)).requests == (request_id,)
    # What the parent still says to it is not a breach of the protocol.
    rig.port.reject(
        fx.SendReject(
            connection_id=asked.connection_id, child_request=request_id, reason=Reason.CANCELLED
        )
    )
    rig.serve = rig.serve_right
    assert (await rig.at_child.ended(rig.fetch(connection_id, 1))).reason is None
    assert len(rig.at_child.of(ev.FetchEnded)) == 2


@with_rig()
async def test_a_request_cancelled_in_the_same_turn_is_never_sent(rig: Rig) -> None:
    connection_id = await rig.opened()
    request_id = rig.fetch(connection_id)
    rig.parents.cancel(fx.CancelFetch(request_id=request_id))
    other = rig.fetch(connection_id, 1)
    assert (await rig.at_child.ended(other)).reason is None
    assert (await rig.at_child.ended(request_id)).reason is Reason.CANCELLED
    assert rig.at_parent.of(ev.ChildRequested)[0].requests == ((other, 1),)


@with_rig(piece_bytes=2 * MIB, upload_bytes_s=8 * MIB)
async def test_the_rest_of_a_piece_cancelled_on_its_way_is_dropped(rig: Rig) -> None:
    connection_id = await rig.opened()
    request_id = rig.fetch(connection_id)
    await rig.first_bytes()
    rig.parents.cancel(fx.CancelFetch(request_id=request_id))
    assert (await rig.at_child.ended(request_id)).reason is Reason.CANCELLED
    assert (await rig.at_child.ended(rig.fetch(connection_id, 1))).reason is None
    assert set(rig.target.written) == {1}
    assert len(rig.at_child.of(ev.FetchEnded)) == 2


@with_rig()
async def test_a_cancelled_piece_that_comes_all_the_same_is_dropped(rig: Rig) -> None:
    rig.serve = rig.serve_nothing
    connection_id = await rig.opened()
    request_id = rig.fetch(connection_id)
    asked = await rig.at_parent.wait(ev.ChildRequested)
    rig.parents.cancel(fx.CancelFetch(request_id=request_id))
    rig.serve_right(request_id, 0, asked.connection_id)
    rig.serve = rig.serve_right
    assert (await rig.at_child.ended(rig.fetch(connection_id, 1))).reason is None
    assert set(rig.target.written) == {1}


# ---------------------------------------------------------------- news


@with_rig()
async def test_news_and_refusals_reach_the_child(rig: Rig) -> None:
    rig.serve = rig.serve_nothing
    connection_id = await rig.opened()
    first, second = rig.fetch(connection_id, 0), rig.fetch(connection_id, 1)
    asked = await rig.at_parent.wait(ev.ChildRequested)
    parent_id = asked.connection_id
    assert asked.requests == ((first, 0), (second, 1))
    rig.port.busy(fx.SendBusy(connection_id=parent_id, child_request=first, retry_after_ms=70))
    rig.port.reject(
        fx.SendReject(connection_id=parent_id, child_request=second, reason=Reason.NOT_HELD)
    )
    rig.port.announce(fx.Announce(task_id=TASK, new=0b101, connection_ids=(parent_id,)))
    rig.port.withdraw(fx.Withdraw(task_id=TASK, gone=0b100, connection_ids=(parent_id,)))
    rig.port.refuse(
        fx.RefuseChild(connection_id=parent_id, task_id=TASK, reason=Reason.UNAUTHORIZED)
    )
    refused = await rig.at_child.wait(ev.ParentRefused)
    assert refused.reason is Reason.UNAUTHORIZED
    busy = await rig.at_child.ended(first)
    assert (busy.reason, busy.retry_after_ms) == (Reason.PEER_BUSY, 70)
    assert (await rig.at_child.ended(second)).reason is Reason.NOT_HELD
    assert rig.at_child.of(ev.ParentHave)[0].new == 0b101
    assert rig.at_child.of(ev.ParentWithdrew)[0].gone == 0b100
    # The channel is closed now, so a request has nowhere to go.
    assert (await rig.at_child.ended(rig.fetch(connection_id))).reason is Reason.PEER_LOST


@with_rig()
async def test_a_closed_channel_is_told_to_the_parent(rig: Rig) -> None:
    connection_id = await rig.opened()
    rig.parents.close_channel(fx.CloseChannel(connection_id=connection_id, task_id=TASK))
    assert (await rig.at_parent.wait(ev.ChildClosedTask)).task_id == TASK
    rig.open(connection_id)
    await rig.at_child.wait(ev.ParentOpened, 2)
    assert (await rig.at_child.ended(rig.fetch(connection_id))).reason is None


# ---------------------------------------------------------------- loss


@with_rig()
async def test_a_lost_connection_ends_every_request_once_and_then_itself(rig: Rig) -> None:
    rig.serve = rig.serve_nothing
    connection_id = await rig.opened()
    requests = [rig.fetch(connection_id, piece) for piece in range(4)]
    asked = await rig.at_parent.wait(ev.ChildRequested)
    rig.port.drop(fx.DropChild(connection_id=asked.connection_id, reason=Reason.UNAUTHORIZED))
    closed = await rig.at_child.wait(ev.ParentClosed)
    ends = rig.at_child.of(ev.FetchEnded)
    assert [(end.request_id, end.reason) for end in ends] == [
        (request_id, Reason.PEER_LOST) for request_id in requests
    ]
    assert rig.at_child.seen[-1] is closed
    assert closed.reason is Reason.PEER_LOST
    await rig.at_parent.wait(ev.ChildGone)
    # Asking a dead connection is answered as well.
    late = rig.fetch(connection_id)
    assert (await rig.at_child.ended(late)).reason is Reason.PEER_LOST


@with_rig(piece_bytes=4 * MIB, upload_bytes_s=4 * MIB)
async def test_a_connection_lost_within_a_piece_gives_its_memory_back(rig: Rig) -> None:
    connection_id = await rig.opened()
    request_id = rig.fetch(connection_id)
    await rig.first_bytes()
    rig.parents.disconnect(fx.Disconnect(connection_id=connection_id))
    assert (await rig.at_child.ended(request_id)).reason is Reason.PEER_LOST
    assert (await rig.at_child.wait(ev.ParentClosed)).reason is Reason.CANCELLED
    assert rig.buffers.used_bytes == 0
    assert (await rig.at_parent.wait(ev.ServeEnded)).reason is Reason.PEER_LOST
    await rig.at_parent.wait(ev.ChildGone)
    kinds = [type(event) for event in rig.at_parent.seen]
    assert kinds.index(ev.ServeEnded) < kinds.index(ev.ChildGone)


@with_rig()
async def test_serving_a_child_that_is_gone_is_answered(rig: Rig) -> None:
    rig.serve_right(1, 0, ConnectionId(12345))
    ended = await rig.at_parent.wait(ev.ServeEnded)
    assert (ended.reason, ended.child_request) == (Reason.PEER_LOST, 1)
