"""Reads frames and payload from a channel. Shared by both sides of a connection.

The owner says where each piece's payload goes: a buffer, nowhere (it is read and dropped), or
"wait" while there is no memory. Decides nothing about frames.
"""

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from peer.shell.transfer.socket_channel import SLICE_BYTES, TURNS_MAX, Channel
from shoal.runtime.rates import RateLimiter
from shoal.wire.errors import ProtocolError
from shoal.wire.frames import Frame, FrameDecoder, Piece
from shoal.wire.limits import KIB

SCRATCH_BYTES: Final = 64 * KIB
"""Room for frames. Larger would make more payload take the way through the decoder's copy."""


class PayloadTarget(Protocol):
    """Where a piece's payload goes."""

    view: memoryview

    def finished(self) -> None:
        """All of it is there."""
        ...


class Receiver:
    """`on_frame(frame)` gets every frame; for a `Piece` it returns the payload's target, or None
    to drop the payload; it may call `hold()` first and `go_on(target)` later."""

    def __init__(
        self,
        *,
        on_frame: Callable[[Frame], PayloadTarget | None],
        on_error: Callable[[ProtocolError], None],
        download_limiter: RateLimiter | None,
        on_activity: Callable[[], None] | None = None,
    ) -> None:
        self._on_frame = on_frame
        self._on_error = on_error
        self._limiter = download_limiter
        self._on_activity = on_activity
        self._decoder = FrameDecoder()
        self._scratch = memoryview(bytearray(SCRATCH_BYTES))
        self._target: PayloadTarget | None = None
        self._filled_bytes = 0
        self._held = False
        self._resume: asyncio.TimerHandle | None = None
        self.channel: Channel | None = None

    def hold(self) -> None:
        """Reads nothing more until `go_on`."""
        assert self.channel is not None
        self._held = True
        self.channel.pause_reading()

    def go_on(self, target: PayloadTarget | None) -> None:
        """The payload that was waited with goes here."""
        assert self.channel is not None
        self._held = False
        self._target = target
        self._filled_bytes = 0
        if not self.channel.closed:
            self._run_frames()
            if not self._held and self._resume is None:
                self.channel.start_reading()

    def stop(self) -> None:
        """The channel is closed."""
        if self._resume is not None:
            self._resume.cancel()
            self._resume = None
        self._target = None

    def readable(self) -> None:
        """The channel's `on_readable`."""
        channel = self.channel
        assert channel is not None
        taken = 0
        for _ in range(TURNS_MAX):
            if channel.closed or self._held:
                break
            count = self._receive(channel, SLICE_BYTES - taken)
            if not count:
                break
            taken += count
            if taken >= SLICE_BYTES:
                channel.read_again_soon()
                break
        else:
            channel.read_again_soon()
        if taken and self._on_activity is not None and self._decoder.payload_remaining_bytes:
            self._on_activity()
        if taken and self._limiter is not None and not channel.closed:
            wait_s = self._limiter.try_take(taken)
            if wait_s > 0.0:
                channel.pause_reading()
                loop = asyncio.get_running_loop()
                self._resume = loop.call_later(wait_s, self._rested)

    def _rested(self) -> None:
        self._resume = None
        if self.channel is not None and not self._held:
            self.channel.start_reading()

    def _receive(self, channel: Channel, room_bytes: int) -> int | None:
        decoder = self._decoder
        remaining = decoder.payload_remaining_bytes
        if remaining:
            if self._target is not None:
                start = self._filled_bytes
                view = self._target.view[start : start + min(room_bytes, remaining)]
            else:
                view = self._scratch[: min(room_bytes, remaining)]
            count = channel.receive_into(view)
            if count:
                decoder.payload_received(count)
                self._filled_bytes += count
                if not decoder.payload_remaining_bytes:
                    self._payload_done()
            return count
        count = channel.receive_into(self._scratch)
        if count:
            decoder.feed(self._scratch[:count])
            self._run_frames()
        return count

    def _run_frames(self) -> None:
        """Hands out frames and buffered payload until more bytes are needed."""
        decoder = self._decoder
        try:
            while not self._held:
                if decoder.payload_remaining_bytes:
                    self._take_buffered()
                    if decoder.payload_remaining_bytes:
                        return
                    self._payload_done()
                    continue
                frame = decoder.next_frame()
                if frame is None or (self.channel is not None and self.channel.closed):
                    return
                target = self._on_frame(frame)
                if type(frame) is Piece and not self._held:
                    self._target = target
                    self._filled_bytes = 0
                    if not frame.length_bytes:
                        self._payload_done()
        except ProtocolError as error:
            self._on_error(error)

    def _take_buffered(self) -> None:
        decoder = self._decoder
        while decoder.payload_remaining_bytes and decoder.buffered_bytes:
            if self._target is not None:
                count = decoder.take_payload(self._target.view[self._filled_bytes :])
            else:
                count = decoder.take_payload(self._scratch)
            self._filled_bytes += count
            if not count:
                return

    def _payload_done(self) -> None:
        target, self._target = self._target, None
        self._filled_bytes = 0
        if target is not None:
            target.finished()
