"""The piece port against children that do not behave, and under a store that fails."""

import asyncio
import logging
from pathlib import Path

import pytest

from peer.core import effects as fx
from peer.core import events as ev
from peer.shell.store.errors import StoreError
from peer.shell.transfer.port import PiecePort
from shoal.runtime.rates import RateLimiter
from shoal.wire.control import Address
from shoal.wire.errors import Reason, UsageError
from shoal.wire.frames import (
    Cancel,
    Close,
    Frame,
    Have,
    Hello,
    Open,
    Opened,
    Piece,
    Reject,
    Request,
    Withdraw,
    encode,
)
from shoal.wire.ids import ConnectionId, HostId
from tests.shell.raw_child import RawChild
from tests.shell.transfer_rig import (
    OTHER_TASK,
    PIECE_BYTES,
    TASK,
    HandClock,
    Parent,
    TinyStore,
    on_both_loops,
    some_content,
    turns_until,
)

CONTENT = some_content(24 * PIECE_BYTES)
HELLO = Hello(1, 1, "raw", bytes(16))


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ((Open(1, TASK, b"p"),), "Open before hello"),
        ((HELLO, HELLO), "second hello"),
        ((Hello(2, 9, "raw", bytes(16)),), "versions 2 to 9"),
        ((Hello(1, 1, "raw", b"short"),), "nonce has 5 bytes"),
        ((HELLO, Request(1, ((1, 0),))), "unknown channel 1"),
        ((HELLO, Close(3)), "unknown channel 3"),
        ((HELLO, Open(1, TASK, b"p"), Open(1, OTHER_TASK, b"p")), "opened twice"),
        ((HELLO, Open(1, TASK, b"p"), Open(2, TASK, b"p")), "opened twice"),
        ((HELLO, Opened(1, 1, b"")), "does not send Opened"),
        ((HELLO, Piece(1, 5, b"", 0, 1)), "does not send Piece"),
    ],
)
@on_both_loops
async def test_offences_close_the_connection_and_are_logged(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    said: tuple[Frame, ...],
    complaint: str,
) -> None:
    caplog.set_level(logging.INFO)
    async with Parent(tmp_path, CONTENT) as parent, RawChild(parent.address) as child:
        await child.send(*said)
        await child.closed()
        assert len(parent.port) == 0
        (record,) = caplog.records
        fields = record.__dict__["shoal_fields"]
        assert (fields["reason"], complaint in fields["detail"]) == ("peer-protocol", True)


@on_both_loops
async def test_the_answer_to_another_version_tells_our_own(tmp_path: Path) -> None:
    async with Parent(tmp_path, CONTENT) as parent, RawChild(parent.address) as child:
        await child.send(Hello(7, 7, "raw", bytes(16)))
        await child.closed()
        (hello,) = child.frames
        assert isinstance(hello, Hello)
        assert (hello.version_min, hello.version_max) == (1, 1)
        assert not parent.core.events, "the core never heard of it"


@on_both_loops
async def test_garbage_closes_the_connection(tmp_path: Path) -> None:
    async with Parent(tmp_path, CONTENT) as parent, RawChild(parent.address) as child:
        await child.greet()
        await child.send_bytes(b"GET / HTTP/1.1\r\n\r\n")
        await child.closed()
        assert len(parent.port) == 0


@on_both_loops
async def test_a_request_before_the_channel_is_open(tmp_path: Path) -> None:
    async with Parent(tmp_path, CONTENT) as parent, RawChild(parent.address) as child:
        parent.core.react.clear()  # The core takes its time with the answer.
        await child.greet()
        await child.send(Open(1, TASK, b"p"), Request(1, ((1, 0),)))
        await child.closed()
        assert [type(event) for event in parent.core.events] == [ev.ChildOpened, ev.ChildGone]


@on_both_loops
async def test_a_request_asked_twice_is_an_offence(tmp_path: Path) -> None:
    async with (
        Parent(tmp_path, CONTENT, serving=False) as parent,
        RawChild(parent.address) as child,
    ):
        await child.greet()
        await child.open(1, TASK)
        await child.send(Request(1, ((1, 0),)), Request(1, ((1, 1),)))
        await child.closed()
        assert len(parent.core.all(ev.ChildRequested)) == 1


@on_both_loops
async def test_too_many_requests_are_an_offence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peer.shell.transfer.child.REQUESTS_OPEN_MAX", 10)
    async with (
        Parent(tmp_path, CONTENT, serving=False) as parent,
        RawChild(parent.address) as child,
    ):
        await child.greet()
        await child.open(1, TASK)
        await child.send(Request(1, tuple((number, 0) for number in range(10))))
        await parent.core.wait(ev.ChildRequested)
        await child.send(Request(1, ((10, 0),)))
        await child.closed()
        assert len(parent.core.all(ev.ChildRequested)) == 1


@on_both_loops
async def test_no_hello_in_time(tmp_path: Path) -> None:
    clock = HandClock()
    async with (
        Parent(tmp_path, CONTENT, clock=clock) as parent,
        RawChild(parent.address) as silent,
        RawChild(parent.address) as good,
    ):
        await good.greet()
        await turns_until(lambda: len(parent.port) == 2)
        clock.pass_s(4.9)
        parent.port.look_after()
        assert len(parent.port) == 2
        clock.pass_s(0.2)
        parent.port.look_after()
        await silent.closed()
        assert len(parent.port) == 1


@on_both_loops
async def test_no_more_connections_than_allowed(tmp_path: Path) -> None:
    async with Parent(tmp_path, CONTENT, connections_max=2) as parent:
        async with RawChild(parent.address) as one, RawChild(parent.address) as two:
            await one.greet()
            await two.greet()
            async with RawChild(parent.address) as three:
                await three.closed()
        await turns_until(lambda: len(parent.port) == 0)
        async with RawChild(parent.address) as four:
            await four.greet()


@on_both_loops
async def test_a_child_that_does_not_read_is_dropped_and_holds_up_nobody(tmp_path: Path) -> None:
    clock = HandClock()
    async with (
        Parent(tmp_path, CONTENT, clock=clock) as parent,
        RawChild(parent.address, host_id="slow", receive_buffer_bytes=4096) as slow,
        RawChild(parent.address, host_id="good") as good,
    ):
        await slow.greet()
        await slow.open(1, TASK)
        await slow.send(Request(1, tuple((number, number) for number in range(24))))
        await parent.core.wait(ev.ChildRequested)
        await good.greet()
        await good.open(1, TASK)
        await good.send(Request(1, tuple((number, number) for number in range(24))))
        await good.receive_pieces(24)
        # However long it takes, as long as bytes move.
        parent.port.look_after()
        for _ in range(4):
            sent_bytes = parent.port.sent_bytes
            while parent.port.sent_bytes == sent_bytes:
                await slow.read()
            clock.pass_s(20)
            parent.port.look_after()
        assert len(parent.port) == 2
        clock.pass_s(31)
        parent.port.look_after()
        clock.pass_s(31)
        parent.port.look_after()
        (gone,) = parent.core.all(ev.ChildGone)
        assert gone.connection_id == parent.core.all(ev.ChildOpened)[0].connection_id
        ends = [end.reason for end in parent.core.all(ev.ServeEnded)]
        assert len(ends) == 48
        assert set(ends) == {None, Reason.PEER_LOST}
        assert parent.core.index(ev.ChildGone) == len(parent.core.events) - 1
        assert parent.store.lent == 0


@on_both_loops
async def test_a_child_that_lets_frames_pile_up_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peer.shell.transfer.outbound.FRAMES_QUEUED_BYTES_MAX", 100_000)
    async with (
        Parent(tmp_path, CONTENT) as parent,
        RawChild(parent.address, receive_buffer_bytes=4096) as child,
    ):
        await child.greet()
        await child.open(1, TASK)
        (opened,) = parent.core.all(ev.ChildOpened)
        announce = fx.Announce(
            task_id=TASK,
            new=int.from_bytes(b"\x55" * 2000, "little"),
            connection_ids=(opened.connection_id,),
        )
        async with asyncio.timeout(20):
            while not parent.core.all(ev.ChildGone):
                parent.port.announce(announce)
                await asyncio.sleep(0)
        assert len(parent.port) == 0


@on_both_loops
async def test_news_goes_before_the_next_queued_piece(tmp_path: Path) -> None:
    async with (
        Parent(tmp_path, CONTENT, serving=False) as parent,
        RawChild(parent.address, receive_buffer_bytes=4096) as child,
    ):
        await child.greet()
        await child.open(1, TASK)
        await child.send(Request(1, tuple((number, number) for number in range(20))))
        (asked,) = await parent.core.wait(ev.ChildRequested)
        for request, piece in asked.requests:
            parent.serve(asked.connection_id, request, piece)
        # As many as the kernel takes are on their way; then comes the news.
        await turns_until(lambda: parent.port.sent_bytes > 0)
        to = (asked.connection_id,)
        parent.port.announce(fx.Announce(task_id=TASK, new=0b110, connection_ids=to))
        parent.port.withdraw(fx.Withdraw(task_id=TASK, gone=0b1, connection_ids=to))
        sent = len(parent.core.all(ev.ServeEnded))
        await child.receive_pieces(20)
        kinds = [type(frame) for frame in child.frames]
        assert kinds[: kinds.index(Have)].count(Piece) <= sent + 1
        assert kinds[kinds.index(Have) + 1] is Withdraw
        assert sent + 1 < 20, "otherwise this test shows nothing"


@on_both_loops
async def test_cancels_reach_what_is_queued(tmp_path: Path) -> None:
    async with (
        Parent(tmp_path, CONTENT, serving=False) as parent,
        RawChild(parent.address, receive_buffer_bytes=4096) as child,
    ):
        await child.greet()
        await child.open(1, TASK)
        await child.send(Request(1, tuple((number, number) for number in range(20))))
        (asked,) = await parent.core.wait(ev.ChildRequested)
        for request, piece in asked.requests[:19]:
            parent.serve(asked.connection_id, request, piece)
        # Number 19 still waits in the core, 18 in the port; 0 is being sent; 77 never was.
        await turns_until(lambda: parent.port.sent_bytes > 0)
        await child.send(Cancel((0, 18, 19, 77)))
        (cancelled,) = await parent.core.wait(ev.ChildCancelled)
        assert cancelled.requests[-2:] == (18, 19)
        parent.serve(asked.connection_id, 19, 19)
        await child.receive_pieces(18)
        await turns_until(lambda: len(parent.core.all(ev.ServeEnded)) == 20)
        ends = {end.child_request: end.reason for end in parent.core.all(ev.ServeEnded)}
        assert ends == dict.fromkeys(range(18)) | {
            18: Reason.CANCELLED,
            19: Reason.CANCELLED,
        }
        rejected = [frame for frame in child.frames if isinstance(frame, Reject)]
        assert rejected == [Reject(18, Reason.CANCELLED), Reject(19, Reason.CANCELLED)]


@on_both_loops
async def test_a_closed_task_answers_its_requests(tmp_path: Path) -> None:
    async with (
        Parent(tmp_path, CONTENT, serving=False) as parent,
        RawChild(parent.address) as child,
    ):
        await child.greet()
        await child.open(1, TASK)
        await child.send(Request(1, ((5, 0), (6, 1))), Close(1), Close(1))
        await parent.core.wait(ev.ChildClosedTask)
        (cancelled,) = parent.core.all(ev.ChildCancelled)
        assert cancelled.requests == (5, 6)
        # The core may not know yet, and tells or serves all the same: nothing is sent.
        to = cancelled.connection_id
        parent.port.announce(fx.Announce(task_id=TASK, new=1, connection_ids=(to,)))
        parent.port.accept(fx.AcceptChild(connection_id=to, task_id=TASK, epoch=1, held=1))
        parent.serve(to, 5, 0)
        assert parent.core.all(ev.ServeEnded)[0].reason is Reason.CANCELLED
        await child.open(2, TASK)
        assert child.frames[2:] == [
            Reject(5, Reason.CANCELLED),
            Reject(6, Reason.CANCELLED),
            child.frames[-1],
        ]


@on_both_loops
async def test_a_store_that_fails_to_lend(tmp_path: Path) -> None:
    async with Parent(tmp_path, CONTENT) as parent, RawChild(parent.address) as child:
        await child.greet()
        await child.open(1, TASK)
        parent.store.broken = StoreError(Reason.DISK_FAILED, "it hums")
        await child.send(Request(1, ((5, 0),)))
        assert await child.receive(Reject) == Reject(5, Reason.NOT_HELD)
        (end,) = parent.core.all(ev.ServeEnded)
        assert (end.reason, end.detail, end.piece) == (Reason.DISK_FAILED, "it hums", 0)


@on_both_loops
async def test_a_file_that_lost_its_end(tmp_path: Path) -> None:
    async with Parent(tmp_path, CONTENT) as parent, RawChild(parent.address) as child:
        await child.greet()
        await child.open(1, TASK)
        parent.store.shorten(TASK, PIECE_BYTES + 100)
        await child.send(Request(1, ((5, 1), (6, 0))))
        await child.closed()
        first, second = parent.core.all(ev.ServeEnded)
        assert (first.child_request, first.reason) == (5, Reason.DISK_FAILED)
        assert "shorter than the content" in first.detail
        assert (second.child_request, second.reason) == (6, Reason.PEER_LOST)
        assert child.pieces == []


@on_both_loops
async def test_a_child_lost_while_it_is_served(tmp_path: Path) -> None:
    async with Parent(tmp_path, CONTENT) as parent:
        async with RawChild(parent.address, receive_buffer_bytes=4096) as child:
            await child.greet()
            await child.open(1, TASK)
            await child.send(Request(1, tuple((number, number) for number in range(24))))
            await parent.core.wait(ev.ChildRequested)
        await parent.core.wait(ev.ChildGone)
        assert len(parent.core.all(ev.ServeEnded)) == 24
        assert parent.core.index(ev.ChildGone) == len(parent.core.events) - 1


@on_both_loops
async def test_a_dropped_child(tmp_path: Path) -> None:
    async with (
        Parent(tmp_path, CONTENT, serving=False) as parent,
        RawChild(parent.address) as child,
    ):
        await child.greet()
        await child.open(1, TASK)
        (opened,) = parent.core.all(ev.ChildOpened)
        parent.port.drop(
            fx.DropChild(connection_id=opened.connection_id, reason=Reason.UNAUTHORIZED)
        )
        await child.closed()
        assert [gone.connection_id for gone in parent.core.all(ev.ChildGone)] == [
            opened.connection_id
        ]


@on_both_loops
async def test_frames_in_the_smallest_portions(tmp_path: Path) -> None:
    async with Parent(tmp_path, CONTENT) as parent, RawChild(parent.address) as child:
        for byte in encode(HELLO) + encode(Open(1, TASK, b"p")):
            await child.send_bytes(bytes([byte]))
        await child.receive(Opened)
        for byte in encode(Request(1, ((1, 3), (2, 23)))):
            await child.send_bytes(bytes([byte]))
        (_, third), (_, last) = await child.receive_pieces(2)
        assert third == CONTENT[3 * PIECE_BYTES : 4 * PIECE_BYTES]
        assert last == CONTENT[23 * PIECE_BYTES :]


async def test_an_address_that_is_taken_is_a_clear_error(tmp_path: Path) -> None:
    async with Parent(tmp_path / "1", CONTENT) as first:
        taken = first.address
        store = TinyStore(tmp_path / "2")
        for ip, port, complaint in (
            (taken.ip, taken.port, "another process has it"),
            ("192.0.2.1", 0, "no such address"),
        ):
            second = PiecePort(
                host_id=HostId("second"),
                listen=(("127.0.0.1", 0), (ip, port)),
                store=store,
                upload_limiter=RateLimiter(0, first.clock),
                clock=first.clock,
                post=first.core.post,
                next_connection_id=lambda: ConnectionId(1),
            )
            with pytest.raises(UsageError, match=complaint):
                await second.start()
            assert second.addresses == (), "nothing half open is left"
            await second.close()
        assert isinstance(taken, Address)
