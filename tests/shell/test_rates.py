"""Rate limits of what moves pieces: bursts of 100 ms at most, however many connections there are,
and however late the event loop is."""

import asyncio
import os
import socket
from pathlib import Path
from typing import cast

import pytest

from peer.core.effects import ReadOrigin
from peer.shell.origin.pieces import PieceRun
from peer.shell.transfer.frame_receiver import Receiver
from peer.shell.transfer.socket_channel import Channel, OutgoingPiece
from shoal.runtime.rates import RateLimiter
from shoal.runtime.tasks import InlineOffload
from shoal.runtime.turns import Turns
from shoal.wire import frames
from shoal.wire.control import TaskDescriptor
from shoal.wire.errors import ProtocolError, Reason
from shoal.wire.geometry import Geometry
from shoal.wire.ids import LeaseNumber, RequestId, SourceId, TaskId
from shoal.wire.limits import MIB, MILLISECOND_NS
from tests.fakes.virtual_time import VirtualLoop, run_virtual
from tests.shell.pieces_rig import TinyStore

RATE_BYTES_S = 25_000_000
PIECE_BYTES = 1 * MIB

Moved = list[tuple[int, int]]
"""When, in nanoseconds, and how many bytes."""


def check(moved: Moved, of_each: list[int]) -> None:
    """Two virtual seconds, of which the loop stood still for a quarter of one: no window of 100 ms
    has more than the burst and the rate, nothing of the rest is lost, and all get the same beside
    the first burst."""
    most = inside = first = 0
    for when_ns, count in moved:
        inside += count
        while moved[first][0] < when_ns - 100 * MILLISECOND_NS:
            inside -= moved[first][1]
            first += 1
        most = max(most, inside)
    assert most <= 2 * RATE_BYTES_S // 10
    assert sum(of_each) == pytest.approx(RATE_BYTES_S * 1.95, rel=0.03)
    assert max(of_each) - min(of_each) <= RATE_BYTES_S // 10


async def two_seconds(loop: VirtualLoop) -> None:
    over = loop.create_future()
    loop.call_later(0.5, loop.stall, 0.25)
    loop.call_later(2.0, over.set_result, None)
    await over


class EndlessParent:
    """A channel with pieces in it, one behind the other, always ready to be read."""

    drained = False

    def __init__(self, loop: VirtualLoop, received: list[tuple[int, int]]) -> None:
        self._loop = loop
        self._received = received
        self._left = b""
        self._payload_bytes = 0
        self._reading = False
        self.closed = False
        self.total_bytes = 0

    def attach(self, receiver: Receiver) -> None:
        self._receiver = receiver
        receiver.channel = cast("Channel", self)
        self.start_reading()

    def start_reading(self) -> None:
        if not self._reading:
            self._reading = True
            self._loop.call_soon(self._ready)

    def pause_reading(self) -> None:
        self._reading = False

    def read_again_soon(self) -> None:
        pass

    def _ready(self) -> None:
        if self._reading:
            self._receiver.readable()
            self._loop.call_soon(self._ready)

    def receive_into(self, view: memoryview) -> int:
        if not self._left and not self._payload_bytes:
            self._left = frames.encode(frames.Piece(1, PIECE_BYTES, b"d" * 16, 1, 1))
            self._payload_bytes = PIECE_BYTES
        count = min(len(view), len(self._left))
        view[:count] = self._left[:count]
        self._left = self._left[count:]
        payload = min(len(view) - count, self._payload_bytes)
        self._payload_bytes -= payload
        self.total_bytes += count + payload
        self._received.append((self._loop.now_ns(), count + payload))
        return count + payload


def on_error(error: ProtocolError) -> None:
    raise error


@pytest.mark.parametrize("parents", [1, 24])
def test_what_is_received_from_many_parents(parents: int) -> None:
    loop = VirtualLoop()
    turns = Turns(RateLimiter(RATE_BYTES_S, loop))
    moved: Moved = []
    channels = [EndlessParent(loop, moved) for _ in range(parents)]

    async def scenario() -> None:
        for channel in channels:
            channel.attach(
                Receiver(on_frame=lambda frame: None, on_error=on_error, download_turns=turns)
            )
        await two_seconds(loop)
        for channel in channels:
            channel.closed = True
            channel.pause_reading()

    run_virtual(loop, scenario())
    check(moved, [channel.total_bytes for channel in channels])


class EndlessBody:
    """An origin's answer that never has to be waited for."""

    size_bytes = None
    skip_bytes = 0

    def __init__(self, loop: VirtualLoop, moved: Moved) -> None:
        self._loop = loop
        self._moved = moved
        self.total_bytes = 0

    async def wait(self) -> bool:
        return True

    async def receive_into(self, view: memoryview) -> int:
        self._moved.append((self._loop.now_ns(), len(view)))
        self.total_bytes += len(view)
        return len(view)

    async def finish(self) -> None:
        pass


class Memory:
    """A buffer, and the pool that it comes from."""

    def __init__(self, length_bytes: int = 0) -> None:
        self.view = memoryview(bytearray(length_bytes))

    async def acquire(self, length_bytes: int) -> "Memory":
        return Memory(length_bytes)

    def release(self) -> None:
        pass


def test_what_is_read_from_an_origin_over_many_connections(tmp_path: Path) -> None:
    loop = VirtualLoop()
    turns = Turns(RateLimiter(RATE_BYTES_S, loop))
    moved: Moved = []
    bodies = [EndlessBody(loop, moved) for _ in range(8)]
    effect = ReadOrigin(
        request_id=RequestId(1),
        source_id=SourceId("a" * 64),
        credential="",
        descriptor=TaskDescriptor(
            task_id=TaskId("b" * 64),
            source_id=SourceId("a" * 64),
            geometry=Geometry(size_bytes=None, piece_length_bytes=PIECE_BYTES, run_pieces=1),
            digest=None,
            validator=None,
            ranges=False,
        ),
        first_piece=0,
        piece_count=None,
        lease_number=LeaseNumber(1),
    )

    async def read(number: int) -> None:
        run = PieceRun(
            effect,
            store=TinyStore(tmp_path / f"target{number}"),
            buffers=Memory(),
            offload=InlineOffload(),
            turns=turns,
            stored=lambda piece, digest, length_bytes: None,
        )
        try:
            await run.run(bodies[number])
        finally:
            await run.settle()

    async def scenario() -> None:
        reads = [asyncio.create_task(read(number)) for number in range(len(bodies))]
        await two_seconds(loop)
        for each in reads:
            each.cancel()
        await asyncio.wait(reads)
        assert all(each.cancelled() for each in reads)

    run_virtual(loop, scenario())
    check(moved, [body.total_bytes for body in bodies])


class LentZeros:
    """A sparse file that many loans share."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def release(self) -> None:
        pass


@pytest.mark.parametrize("children", [1, 24])
def test_what_is_sent_to_many_children(
    children: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = VirtualLoop()
    turns = Turns(RateLimiter(RATE_BYTES_S, loop))
    moved: Moved = []
    of_each = dict.fromkeys(range(children), 0)
    numbers: dict[int, int] = {}
    real_sendfile = os.sendfile

    def sendfile(out: int, lent: int, offset: int, count: int) -> int:
        sent = real_sendfile(out, lent, offset, count)
        moved.append((loop.now_ns(), sent))
        of_each[numbers[out]] += sent
        return sent

    monkeypatch.setattr(os, "sendfile", sendfile)
    path = tmp_path / "zeros"
    path.touch()
    os.truncate(path, PIECE_BYTES)
    descriptor = os.open(path, os.O_RDONLY)
    pairs = [socket.socketpair() for _ in range(children)]
    scratch = bytearray(MIB)

    async def scenario() -> None:
        channels = []
        for number, (ours, theirs) in enumerate(pairs):
            ours.settimeout(0)
            theirs.settimeout(0)
            numbers[ours.fileno()] = number
            loop.add_reader(theirs.fileno(), theirs.recv_into, scratch)
            channel = Channel(
                ours,
                upload_turns=turns,
                on_readable=lambda: None,
                on_closed=lambda detail: None,
            )
            channels.append(channel)
            send_on(channel)
        await two_seconds(loop)
        for channel in channels:
            channel.close("over")
        for _, theirs in pairs:
            loop.remove_reader(theirs.fileno())
            theirs.close()

    def send_on(channel: Channel) -> None:
        def on_end(reason: Reason | None, _detail: str) -> None:
            if reason is None:
                send_on(channel)

        channel.send_piece(OutgoingPiece(b"header", LentZeros(descriptor), 0, PIECE_BYTES, on_end))

    run_virtual(loop, scenario())
    os.close(descriptor)
    check(moved, list(of_each.values()))
