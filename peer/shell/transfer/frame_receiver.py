"""Reads frames and payload from a channel. Shared by both sides of a connection.

The owner says where each piece's payload goes: a buffer, nowhere (it is read and dropped), or
"wait" while there is no memory. Where a rate limit holds, it is paid before anything is read, in
turns with all other connections. Decides nothing about frames.
"""

from collections.abc import Callable
from typing import Final, Protocol

from peer.shell.transfer.socket_channel import SLICE_BYTES, TURNS_MAX, Channel
from shoal.runtime.turns import Turn, Turns
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
        download_turns: Turns | None,
        on_activity: Callable[[], None] | None = None,
    ) -> None:
        self._on_frame = on_frame
        self._on_error = on_error
        self._turns = download_turns
        self._on_activity = on_activity
        self._decoder = FrameDecoder()
        self._scratch = memoryview(bytearray(SCRATCH_BYTES))
        self._target: PayloadTarget | None = None
        self._filled_bytes = 0
        self._held = False
        self._turn: Turn | None = None
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
            if not self._held and self._turn is None:
                self.channel.start_reading()

    def stop(self) -> None:
        """The channel is closed."""
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        self._target = None

    def readable(self) -> None:
        """The channel's `on_readable`."""
        channel = self.channel
        assert channel is not None
        if channel.closed or self._held or self._turn is not None:
            return
        paid = SLICE_BYTES if self._turns is None else self._turns.take(SLICE_BYTES)
        if not paid:
            self._wait_for_turn(channel)
        elif self._read(channel, paid):
            channel.read_again_soon()

    def _wait_for_turn(self, channel: Channel) -> None:
        assert self._turns is not None
        channel.pause_reading()
        self._turn = self._turns.wait(SLICE_BYTES, self._my_turn)

    def _my_turn(self, paid: int) -> None:
        self._turn = None
        channel = self.channel
        assert channel is not None
        more = self._read(channel, paid)
        if channel.closed or self._held:
            return
        if more:
            self._wait_for_turn(channel)
        else:
            channel.start_reading()

    def _read(self, channel: Channel, paid: int) -> bool:
        """Reads what was paid for; whether there may be more."""
        taken = 0
        more = True
        for _ in range(TURNS_MAX):
            if taken >= paid or channel.closed or self._held:
                break
            count = self._receive(channel, paid - taken)
            if not count:
                more = False
                break
            taken += count
            if channel.drained:
                more = False
                break
        if self._turns is not None:
            self._turns.settle(paid, taken)
        if taken and self._on_activity is not None and self._decoder.payload_remaining_bytes:
            self._on_activity()
        return more

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
        count = channel.receive_into(self._scratch[:room_bytes])
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
