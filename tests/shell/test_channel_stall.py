"""When a reader that takes nothing is given up, by a clock that the test turns."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from peer.shell.transfer.socket_channel import STALL_TIMEOUT_S, Channel

FRAME = bytes(1 << 20)


class TurnedLoop:
    """The running loop with a clock and timers of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.now_s = 0.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now_s

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> asyncio.Handle:
        self.timers.append((self.now_s + delay_s, callback))
        return asyncio.Handle(callback, (), self._loop)

    def ring(self) -> None:
        """Goes on to the next timer's time."""
        self.now_s, callback = self.timers.pop(0)
        callback()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)


def full_channel() -> tuple[Channel, TurnedLoop, socket.socket, list[str]]:
    """A channel whose socket takes no more, its clock, the other end, and why it was closed."""
    here, there = socket.socketpair()
    here.setblocking(False)
    there.setblocking(False)
    closed: list[str] = []
    channel = Channel(here, upload_turns=None, on_readable=lambda: None, on_closed=closed.append)
    loop = TurnedLoop()
    channel._loop = loop  # type: ignore[assignment]
    channel.send_frame(FRAME)
    channel.send_now()
    return channel, loop, there, closed


def take_all(there: socket.socket) -> None:
    while True:
        try:
            if not there.recv(1 << 20):
                return
        except BlockingIOError:
            return


async def test_who_takes_nothing_is_given_up() -> None:
    _, loop, there, closed = full_channel()
    with there:
        assert len(loop.timers) == 1
        loop.ring()
        assert loop.now_s == STALL_TIMEOUT_S
        assert len(closed) == 1
        assert "took nothing" in closed[0]


async def test_one_timer_serves_a_socket_that_is_often_full() -> None:
    channel, loop, there, closed = full_channel()
    with there:
        for _ in range(5):
            loop.now_s += 1.0
            for _ in range(20):  # Until all of the frame is sent.
                take_all(there)
                channel.send_now()
            channel.send_frame(FRAME)
            channel.send_now()
        assert len(loop.timers) == 1
        loop.ring()
        assert not closed
        # Only so much later as the last one was taken later than the timer was set.
        loop.ring()
        assert loop.now_s == STALL_TIMEOUT_S + 5.0
        assert len(closed) == 1


async def test_the_timer_of_a_socket_that_is_not_full_ends() -> None:
    channel, loop, there, closed = full_channel()
    with there:
        for _ in range(20):
            take_all(there)
            channel.send_now()
        loop.ring()
        assert not loop.timers
        assert not closed
        channel.close("over")
