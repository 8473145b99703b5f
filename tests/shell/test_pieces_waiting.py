"""Standing requests on real sockets: asked for before the parent has the piece."""

import asyncio
import socket
from pathlib import Path

import pytest

from peer.core import effects as fx
from peer.core import events as ev
from peer.shell.transfer import socket_channel, sockets
from shoal.wire import frames
from shoal.wire.errors import Reason
from shoal.wire.ids import ConnectionId
from tests.shell.pieces_rig import (
    CHILD,
    PIECE_BYTES,
    TASK,
    WAIT_S,
    Rig,
    raw_child,
    rig_of,
    with_rig,
)


async def asked_to_wait(rig: Rig, count: int = 1) -> list[tuple[int, int, ConnectionId]]:
    """The standing requests at the parent, when so many are there: number, piece, connection."""
    async with asyncio.timeout(WAIT_S):
        turn = 0
        while True:
            found = [
                (number, piece, event.connection_id)
                for event in rig.at_parent.of(ev.ChildRequested)
                if event.wait
                for number, piece in event.requests
            ]
            if len(found) >= count:
                return found
            turn += 1
            await rig.at_parent.wait(ev.ChildRequested, turn)


@with_rig()
async def test_a_piece_comes_when_the_parent_has_it(rig: Rig) -> None:
    rig.serve = rig.serve_nothing
    connection_id = await rig.opened()
    standing = rig.fetch(connection_id, 3, wait=True)
    (waiting,) = await asked_to_wait(rig)
    assert waiting[:2] == (standing, 3)
    # Others pass it meanwhile, and it holds no memory.
    rig.serve = rig.serve_right
    assert (await rig.at_child.ended(rig.fetch(connection_id, 0))).reason is None
    assert rig.buffers.used_bytes == 0
    assert [end.request_id for end in rig.at_child.of(ev.FetchEnded)] != [standing]
    rig.serve_right(*waiting)
    assert (await rig.at_child.ended(standing)).reason is None
    assert rig.target.written == {0: rig.part(0), 3: rig.part(3)}


@with_rig()
async def test_only_standing_requests_say_that_they_wait(rig: Rig) -> None:
    connection_id = await rig.opened()
    requests = [rig.fetch(connection_id, piece, wait=piece % 2 == 1) for piece in range(4)]
    for request_id in requests:
        assert (await rig.at_child.ended(request_id)).reason is None
    asked = {event.wait: event.requests for event in rig.at_parent.of(ev.ChildRequested)}
    first, second, third, fourth = requests
    assert asked == {False: ((first, 0), (third, 2)), True: ((second, 1), (fourth, 3))}


@with_rig(pieces=8, memory_bytes=PIECE_BYTES)
async def test_more_may_wait_than_memory_holds(rig: Rig) -> None:
    rig.serve = rig.serve_nothing
    connection_id = await rig.opened()
    for piece in range(8):
        rig.fetch(connection_id, piece, wait=True)
    for waiting in await asked_to_wait(rig, 8):
        rig.serve_right(*waiting)
    await rig.at_child.wait(ev.FetchEnded, 8)
    assert rig.target.written == {piece: rig.part(piece) for piece in range(8)}
    assert rig.buffers.allocated_bytes <= PIECE_BYTES


@with_rig()
async def test_a_cancelled_standing_request_is_answered_and_the_next_one_served(rig: Rig) -> None:
    rig.serve = rig.serve_nothing
    connection_id = await rig.opened()
    standing = rig.fetch(connection_id, 1, wait=True)
    ((number, _, parent_id),) = await asked_to_wait(rig)
    rig.parents.cancel(fx.CancelFetch(request_id=standing))
    assert (await rig.at_child.ended(standing)).reason is Reason.CANCELLED
    assert (await rig.at_parent.wait(ev.ChildCancelled)).requests == (standing,)
    rig.port.reject(
        fx.SendReject(connection_id=parent_id, child_request=number, reason=Reason.CANCELLED)
    )
    again = rig.fetch(connection_id, 1, wait=True)
    waiting = (await asked_to_wait(rig, 2))[1]
    rig.serve_right(*waiting)
    assert (await rig.at_child.ended(again)).reason is None
    assert len(rig.at_child.of(ev.FetchEnded)) == 2


@with_rig()
async def test_a_standing_request_cancelled_in_the_same_turn_is_never_sent(rig: Rig) -> None:
    connection_id = await rig.opened()
    standing = rig.fetch(connection_id, 1, wait=True)
    plain = rig.fetch(connection_id, 1)
    rig.parents.cancel(fx.CancelFetch(request_id=standing))
    assert (await rig.at_child.ended(plain)).reason is None
    assert (await rig.at_child.ended(standing)).reason is Reason.CANCELLED
    assert [event.wait for event in rig.at_parent.of(ev.ChildRequested)] == [False]
    assert rig.at_parent.of(ev.ChildCancelled) == []


@pytest.mark.parametrize("by_parent", [True, False])
@with_rig()
async def test_the_end_of_a_connection_ends_what_waits(rig: Rig, by_parent: bool) -> None:
    rig.serve = rig.serve_nothing
    connection_id = await rig.opened()
    requests = [rig.fetch(connection_id, piece, wait=True) for piece in range(3)]
    parent_id = (await asked_to_wait(rig, 3))[0][2]
    if by_parent:
        await rig.port.close()
    else:
        rig.parents.disconnect(fx.Disconnect(connection_id=connection_id))
    await rig.at_child.wait(ev.ParentClosed)
    ends = rig.at_child.of(ev.FetchEnded)
    assert [(end.request_id, end.reason) for end in ends] == [
        (request_id, Reason.PEER_LOST) for request_id in requests
    ]
    assert (await rig.at_parent.wait(ev.ChildGone)).connection_id == parent_id
    # The piece comes too late: whoever wants to send it is told.
    rig.serve_right(requests[0], 0, parent_id)
    assert (await rig.at_parent.wait(ev.ServeEnded)).reason is Reason.PEER_LOST


@with_rig()
async def test_what_waits_on_a_closed_channel_is_still_answered(rig: Rig) -> None:
    rig.serve = rig.serve_nothing
    connection_id = await rig.opened()
    standing = rig.fetch(connection_id, 1, wait=True)
    ((number, _, parent_id),) = await asked_to_wait(rig)
    rig.parents.close_channel(fx.CloseChannel(connection_id=connection_id, task_id=TASK))
    await rig.at_parent.wait(ev.ChildClosedTask)
    rig.port.reject(
        fx.SendReject(connection_id=parent_id, child_request=number, reason=Reason.NOT_HELD)
    )
    assert (await rig.at_child.ended(standing)).reason is Reason.NOT_HELD
    assert rig.at_child.of(ev.ParentClosed) == []


async def test_a_quiet_connection_lasts_while_requests_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_channel, "STALL_TIMEOUT_S", 0.05)
    async with rig_of(tmp_path) as rig:
        rig.serve = rig.serve_nothing
        connection_id = await rig.opened()
        standing = rig.fetch(connection_id, 1, wait=True)
        (waiting,) = await asked_to_wait(rig)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await rig.at_child.wait(ev.ParentClosed)
        assert rig.at_child.of(ev.FetchEnded) == []
        assert rig.at_child.of(ev.ParentActive) == []
        rig.serve_right(*waiting)
        assert (await rig.at_child.ended(standing)).reason is None


def test_a_host_that_is_gone_is_missed_even_by_who_only_waits() -> None:
    with socket.socket() as sock:
        sockets.prepare(sock)
        keepalive_s = sum(
            sock.getsockopt(socket.IPPROTO_TCP, option) * times
            for option, times in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 3))
        )
        silence_ms = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    assert 0 < keepalive_s * 1000 <= silence_ms <= 30_000


async def test_a_child_of_an_older_version_does_not_wait(tmp_path: Path) -> None:
    async with rig_of(tmp_path) as rig, raw_child(rig.port.addresses[0]) as child:
        child.hello()
        child.send(frames.Open(1, TASK, b""))
        # The frame as it was: three fields, the kind among them.
        child.writer.write(bytes.fromhex("00000006 93 07 01 92 64 00"))
        assert (await rig.at_parent.wait(ev.ChildOpened)).host_id == CHILD
        asked = await rig.at_parent.wait(ev.ChildRequested)
        assert (asked.requests, asked.wait) == (((100, 0),), False)
