"""The receiving half of a connection: frames to whoever understands them, payload into buffers.

Frames are read into a small buffer; once a `Piece` header is there, the rest of its payload is
received straight into the memory that the receiver gives. Decides how much is read in one turn,
and nothing about what it means.
"""

from collections.abc import Callable
from enum import Enum, auto
from typing import Final, Protocol

from peer.shell.transfer.pacing import Pacer, Turn
from peer.shell.transfer.stream import Stream
from shoal.wire.frames import Frame, FrameDecoder, Piece
from shoal.wire.limits import KIB

READ_TURN_BYTES: Final = 256 * KIB
"""Read from one connection before the others get their turn."""

FRAME_READ_BYTES: Final = 4 * KIB
"""Read at once while frames are expected: this much of a payload at most is copied once more."""

SCRATCH_BYTES: Final = 64 * KIB


class Wait(Enum):
    """What a half of a connection needs before it can go on."""

    SOCKET = auto()
    """The socket must become ready."""
    TURN = auto()
    """Nothing from the socket: it will be woken."""
    NOTHING = auto()
    """There is nothing to do."""
    AGAIN = auto()
    """It has more to do at once, after the others."""


class Receiver(Protocol):
    """Understands what arrives. Its methods may raise ProtocolError."""

    def frame_received(self, frame: Frame) -> None:
        """A frame other than `Piece`."""
        ...

    def piece_announced(self, header: Piece) -> None:
        """A piece's header. Payload waits until `Inbound.accept` or `Inbound.discard`."""
        ...

    def payload_complete(self) -> None:
        """All payload of the last header was received or discarded."""
        ...


class Inbound:
    """Reads one connection. `closed` tells whether the connection was closed meanwhile."""

    def __init__(
        self,
        stream: Stream,
        receiver: Receiver,
        pacer: Pacer,
        wake: Callable[[], None],
        closed: Callable[[], bool],
        scratch: memoryview,
    ) -> None:
        self._stream = stream
        self._receiver = receiver
        self._turn = Turn(pacer, wake)
        self._closed = closed
        self._scratch = scratch
        """Where discarded payload goes; shared, because nobody reads it."""
        self._decoder = FrameDecoder()
        self._target: memoryview | None = None
        self._filled = 0
        self._discarding = False
        self.received_bytes = 0
        """Payload so far."""

    def accept(self, target: memoryview) -> None:
        """The payload goes here; `target` has exactly its length."""
        assert len(target) == self._decoder.payload_remaining_bytes
        self._target = target
        self._filled = 0

    def discard(self) -> None:
        """What is still to come of the payload is read and forgotten."""
        self._target = None
        self._discarding = True

    def read_turn(self) -> Wait:
        """Reads and hands on until there is nothing more, or this connection's turn is over.
        Raises StreamLost, ProtocolError."""
        budget = READ_TURN_BYTES
        while True:
            self._parse()
            if self._closed():
                return Wait.NOTHING
            payload = self._decoder.payload_remaining_bytes > 0
            if payload and self._target is None and not self._discarding:
                return Wait.TURN
            if budget <= 0:
                return Wait.AGAIN if self._stream.pending() else Wait.SOCKET
            if payload:
                asked = self._turn.allowance(self._next_payload_bytes(budget))
                if not asked:
                    return Wait.TURN
                got = self._stream.receive_into(self._payload_target(asked))
                if got is not None:
                    self._decoder.payload_received(got)
                    self._payload_moved(got)
            else:
                asked = FRAME_READ_BYTES
                got = self._stream.receive_into(self._scratch[:asked])
                if got is not None:
                    self._decoder.feed(self._scratch[:got])
            if got is None:
                return Wait.SOCKET
            if got < asked and self._stream.short_read_is_last:
                budget = 0
            budget -= got

    def _parse(self) -> None:
        decoder = self._decoder
        while not self._closed():
            if decoder.payload_remaining_bytes:
                if self._target is None and not self._discarding:
                    return
                moved = decoder.take_payload(self._payload_target(FRAME_READ_BYTES))
                if not moved:
                    return
                self._payload_moved(moved)
                continue
            frame = decoder.next_frame()
            if frame is None:
                return
            if type(frame) is Piece:
                self._receiver.piece_announced(frame)
                if not frame.length_bytes:
                    self._end_payload()
            else:
                self._receiver.frame_received(frame)

    def _next_payload_bytes(self, budget: int) -> int:
        remaining = self._decoder.payload_remaining_bytes
        if self._discarding:
            return min(remaining, budget, len(self._scratch))
        return min(remaining, budget)

    def _payload_target(self, count: int) -> memoryview:
        if self._target is None:
            return self._scratch[:count]
        return self._target[self._filled : self._filled + count]

    def _payload_moved(self, count: int) -> None:
        self._turn.used(count)
        self.received_bytes += count
        self._filled += count
        if not self._decoder.payload_remaining_bytes:
            self._end_payload()

    def _end_payload(self) -> None:
        self._target = None
        self._discarding = False
        self._receiver.payload_complete()
