"""Reading frames from a real socket: how often it is asked."""

import asyncio
import socket

from peer.shell.transfer.frame_receiver import PayloadTarget, Receiver
from peer.shell.transfer.socket_channel import Channel
from shoal.wire import frames
from shoal.wire.errors import ProtocolError


class AskedSocket(socket.socket):
    """Counts how often it is asked for bytes."""

    asked = 0

    def recv_into(self, *arguments: object, **named: object) -> int:
        self.asked += 1
        return super().recv_into(*arguments, **named)  # type: ignore[arg-type]


def on_error(error: ProtocolError) -> None:
    raise error


async def test_a_socket_that_gave_all_it_had_is_not_asked_again() -> None:
    ours, theirs = socket.socketpair()
    sock = AskedSocket(fileno=ours.detach())
    sock.setblocking(False)
    arrived = asyncio.Event()
    seen: list[frames.Frame] = []

    def on_frame(frame: frames.Frame) -> PayloadTarget | None:
        seen.append(frame)
        arrived.set()
        return None

    receiver = Receiver(on_frame=on_frame, on_error=on_error, download_turns=None)
    channel = Channel(
        sock,
        upload_turns=None,
        on_readable=receiver.readable,
        on_closed=lambda detail: arrived.set(),
    )
    receiver.channel = channel
    channel.start_reading()
    try:
        for number in range(1, 4):
            arrived.clear()
            theirs.sendall(frames.encode(frames.Close(number)))
            await asyncio.wait_for(arrived.wait(), 5.0)
            assert sock.asked == number
        assert seen == [frames.Close(1), frames.Close(2), frames.Close(3)]
        arrived.clear()
        theirs.close()
        await asyncio.wait_for(arrived.wait(), 5.0)
        assert channel.closed
    finally:
        channel.close("the test is over")
        theirs.close()
