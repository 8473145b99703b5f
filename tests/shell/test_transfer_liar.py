"""A parent that lies, breaks off, stalls or cannot speak harms one connection, and no byte of it
reaches the store."""

from pathlib import Path

import pytest

from peer.core import effects as fx
from peer.core import events as ev
from shoal.wire.control import Address
from shoal.wire.digest import piece_digest
from shoal.wire.errors import Reason
from shoal.wire.ids import HostId
from tests.shell.liar import Liar, Lie
from tests.shell.transfer_rig import (
    PIECE_BYTES,
    TASK,
    Child,
    Parent,
    on_both_loops,
    some_content,
    turns_until,
)

CONTENT = some_content(3 * PIECE_BYTES)


def liar(lie: Lie) -> Liar:
    """A parent with one fault."""
    return Liar("parent", CONTENT, PIECE_BYTES, lie)


@on_both_loops
async def test_the_double_serves_right_when_told_to(tmp_path: Path) -> None:
    async with liar(Lie.NOTHING) as parent, Child(tmp_path, CONTENT) as child:
        connection = await child.connect(parent.address)
        await child.open(connection)
        for piece in range(3):
            child.fetch(connection, piece)
        await child.core.wait(ev.FetchEnded, 3)
        assert child.store.content() == CONTENT
        assert sorted(parent.requested) == [0, 1, 2]


@on_both_loops
async def test_corrupt_bytes_are_found_and_not_stored(tmp_path: Path) -> None:
    async with liar(Lie.CORRUPT) as parent, Child(tmp_path, CONTENT) as child:
        connection = await child.connect(parent.address)
        await child.open(connection)
        end = await child.ended(child.fetch(connection, 1))
        assert end.reason is Reason.PEER_CORRUPT
        assert end.digest == piece_digest("xxh3-128", child.piece(1))
        assert child.store.written == {}
        assert not child.core.all(ev.ParentClosed), "what follows for the parent is the core's"


@on_both_loops
async def test_a_header_against_the_list_is_told_at_once(tmp_path: Path) -> None:
    async with liar(Lie.FORGED) as parent, Child(tmp_path, CONTENT) as child:
        connection = await child.connect(parent.address)
        await child.open(connection)
        right = piece_digest("xxh3-128", child.piece(1))
        end = await child.ended(child.fetch(connection, 1, expected=right))
        assert end.reason is Reason.PEER_CONTRADICTED
        assert end.digest not in (b"", right)
        assert child.store.written == {}
        # Its payload was read and thrown away: the connection goes on.
        assert await child.reason(child.fetch(connection, 2)) is None, "no list, nothing to tell by"


@on_both_loops
async def test_another_epoch_is_not_held_and_no_lie(tmp_path: Path) -> None:
    async with liar(Lie.OLD_EPOCH) as parent, Child(tmp_path, CONTENT) as child:
        connection = await child.connect(parent.address)
        await child.open(connection)
        for piece in (0, 1):
            end = await child.ended(child.fetch(connection, piece))
            assert (end.reason, end.epoch) == (Reason.NOT_HELD, 2)
        assert child.store.written == {}
        assert not child.core.all(ev.ParentClosed)


@on_both_loops
async def test_rejections_and_reasons_that_are_not_a_parents_to_give(tmp_path: Path) -> None:
    async with (
        liar(Lie.CLAIMS) as claims,
        liar(Lie.BLAMES_DISK) as blames,
        Child(tmp_path, CONTENT) as child,
    ):
        for parent, reason in ((claims, Reason.NOT_HELD), (blames, Reason.PEER_REFUSED)):
            connection = await child.connect(parent.address)
            await child.open(connection)
            assert await child.reason(child.fetch(connection, 0)) is reason


@on_both_loops
async def test_a_stalled_piece_can_be_given_up(tmp_path: Path) -> None:
    async with liar(Lie.STALL) as parent, Child(tmp_path, CONTENT) as child:
        connection = await child.connect(parent.address)
        await child.open(connection)
        request = child.fetch(connection, 0)
        await _half_a_piece(child)
        child.cancel(request)
        assert await child.reason(request) is Reason.CANCELLED
        assert child.buffers.used_bytes == 0
        child.connections.disconnect(fx.Disconnect(connection_id=connection))
        await child.core.wait(ev.ParentClosed)


async def _half_a_piece(child: Child) -> None:
    await turns_until(lambda: child.connections.received_bytes == PIECE_BYTES // 2)


@on_both_loops
async def test_lost_in_the_middle_of_a_piece(tmp_path: Path) -> None:
    async with liar(Lie.BREAKS_OFF) as parent, Child(tmp_path, CONTENT) as child:
        connection = await child.connect(parent.address)
        await child.open(connection)
        requests = [child.fetch(connection, piece) for piece in range(3)]
        (closed,) = await child.core.wait(ev.ParentClosed)
        assert closed.reason is Reason.PEER_LOST
        for request in requests:
            assert await child.reason(request) is Reason.PEER_LOST
        assert child.core.index(ev.ParentClosed) == len(child.core.events) - 1
        assert child.store.written == {}
        assert len(child.connections) == 0


@pytest.mark.parametrize(
    ("lie", "own_end", "complaint"),
    [
        (Lie.WRONG_LENGTH, Reason.PEER_PROTOCOL, "wrong length"),
        (Lie.SHORT_DIGEST, Reason.PEER_PROTOCOL, "wrong length"),
        (Lie.UNSOLICITED, Reason.PEER_LOST, "not open"),
        (Lie.UNKNOWN_CHANNEL, Reason.PEER_LOST, "unknown channel"),
        (Lie.BEYOND_THE_END, Reason.PEER_LOST, "out of bounds"),
        (Lie.GARBAGE, Reason.PEER_LOST, "frame"),
        (Lie.HUGE_FRAME, Reason.PEER_LOST, "frame of"),
    ],
)
@on_both_loops
async def test_a_broken_protocol_closes_the_connection(
    tmp_path: Path, lie: Lie, own_end: Reason, complaint: str
) -> None:
    async with (
        liar(lie) as parent,
        Parent(tmp_path / "p", CONTENT, host_id="honest") as honest,
        Child(tmp_path / "c", CONTENT) as child,
    ):
        good = await child.connect(honest.address, host_id="honest")
        await child.open(good)
        bad = await child.connect(parent.address)
        await child.open(bad)
        request, other = child.fetch(bad, 0), child.fetch(good, 1)
        (closed,) = await child.core.wait(ev.ParentClosed)
        assert (closed.connection_id, closed.reason) == (bad, Reason.PEER_PROTOCOL)
        assert complaint in closed.detail
        assert await child.reason(request) is own_end
        assert await child.reason(other) is None, "nobody else is harmed"
        assert list(child.store.written) == [(TASK, 1)]


@on_both_loops
async def test_a_second_copy_is_an_offence(tmp_path: Path) -> None:
    async with liar(Lie.TWICE) as parent, Child(tmp_path, CONTENT) as child:
        connection = await child.connect(parent.address)
        await child.open(connection)
        request = child.fetch(connection, 0)
        (closed,) = await child.core.wait(ev.ParentClosed)
        assert closed.reason is Reason.PEER_PROTOCOL
        assert await child.reason(request) is None
        assert list(child.store.written) == [(TASK, 0)]


@on_both_loops
async def test_a_flood_is_only_slow(tmp_path: Path) -> None:
    async with liar(Lie.FLOOD) as parent, Child(tmp_path, CONTENT) as child:
        connection = await child.connect(parent.address)
        await child.open(connection)
        assert await child.reason(child.fetch(connection, 0)) is None


@pytest.mark.parametrize(
    ("lie", "reason", "complaint"),
    [
        (Lie.OTHER_HOST, Reason.PEER_PROTOCOL, "'somebody-else' answered instead of 'parent'"),
        (Lie.OTHER_VERSION, Reason.PEER_PROTOCOL, "versions 9 to 9"),
    ],
)
@on_both_loops
async def test_a_wrong_hello_fails_the_connect(
    tmp_path: Path, lie: Lie, reason: Reason, complaint: str
) -> None:
    async with liar(lie) as parent, Child(tmp_path, CONTENT) as child:
        child.connections.connect(fx.Connect(host_id=HostId("parent"), addresses=(parent.address,)))
        (failed,) = await child.core.wait(ev.ParentConnectFailed)
        assert (failed.host_id, failed.reason) == ("parent", reason)
        assert complaint in failed.detail
        assert len(child.connections) == 0


@on_both_loops
async def test_the_right_host_is_found_behind_a_wrong_one(tmp_path: Path) -> None:
    async with (
        liar(Lie.OTHER_HOST) as wrong,
        liar(Lie.NO_HELLO) as silent,
        Parent(tmp_path / "p", CONTENT) as parent,
        Child(tmp_path / "c", CONTENT) as child,
    ):
        connection = await child.connect(wrong.address, silent.address, parent.address)
        await child.open(connection)
        assert len(parent.port) == 1


@on_both_loops
async def test_a_second_hello_is_an_offence(tmp_path: Path) -> None:
    async with liar(Lie.SECOND_HELLO) as parent, Child(tmp_path, CONTENT) as child:
        child.connections.connect(fx.Connect(host_id=HostId("parent"), addresses=(parent.address,)))
        # Both hellos may come at once, before the connection is known by a number.
        await child.core.until(
            lambda: bool(child.core.all(ev.ParentClosed) or child.core.all(ev.ParentConnectFailed))
        )
        assert len(child.connections) == 0


@on_both_loops
async def test_nobody_there(tmp_path: Path) -> None:
    async with Child(tmp_path, CONTENT) as child:
        for addresses in ((Address("127.0.0.1", 1), Address("::1", 1)), ()):
            child.connections.connect(fx.Connect(host_id=HostId("parent"), addresses=addresses))
        refused, nowhere = await child.core.wait(ev.ParentConnectFailed, 2)
        if not nowhere.detail.startswith("host"):
            refused, nowhere = nowhere, refused
        assert refused.reason is nowhere.reason is Reason.PEER_LOST
        assert "127.0.0.1:1: Connection refused" in refused.detail
        assert "[::1]:1" in refused.detail
        assert "has no address" in nowhere.detail


@on_both_loops
async def test_a_parent_that_refuses(tmp_path: Path) -> None:
    async with liar(Lie.REFUSES) as parent, Child(tmp_path, CONTENT) as child:
        connection = await child.connect(parent.address)
        child.ask_to_open(connection)
        (refused,) = await child.core.wait(ev.ParentRefused)
        assert (refused.task_id, refused.reason) == (TASK, Reason.UNAUTHORIZED)
        assert await child.reason(child.fetch(connection, 0)) is Reason.PEER_REFUSED


@on_both_loops
async def test_a_parent_that_never_answers_what_was_cancelled_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peer.shell.transfer.parent.ABANDONED_MAX", 5)
    async with liar(Lie.SILENT) as parent, Child(tmp_path, CONTENT) as child:
        connection = await child.connect(parent.address)
        await child.open(connection)
        requests = [child.fetch(connection, 0) for _ in range(6)]
        await turns_until(lambda: len(parent.requested) == 6)
        for request in requests:
            child.cancel(request)
        (closed,) = await child.core.wait(ev.ParentClosed)
        assert closed.reason is Reason.PEER_STALLED
        assert {end.reason for end in child.core.all(ev.FetchEnded)} == {Reason.CANCELLED}
