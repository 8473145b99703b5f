"""One connection between peers: a non-blocking socket, plain or TLS, read and written by callbacks.

Owns its socket instead of an asyncio transport, because bytes must not pass through Python
objects: payload is received straight into piece buffers and sent with sendfile. What is sent is
paid at the upload limit first, in turns with all other connections. Works on asyncio's own loop
and on uvloop. Knows frames only as bytes; decides nothing.
"""

import asyncio
import errno
import os
import socket
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from shoal.runtime.turns import Turn, Turns
from shoal.wire.errors import Reason
from shoal.wire.limits import KIB, MIB

SLICE_BYTES: Final = 256 * KIB
"""The most that is sent or received in one turn: no connection keeps the loop from the others for
long."""

FRAMES_BYTES_MAX: Final = 4 * MIB
"""Small frames waiting for a slow reader before its connection is given up."""

STALL_TIMEOUT_S: Final = 30.0
"""A reader that takes nothing for so long is gone."""

TURNS_MAX: Final = 4
"""Receive calls in one turn of a connection."""

TOO_SHORT: Final = "the stored file is shorter than its piece"


class _UnreadableError(Exception):
    """The file that is to be sent does not give its bytes."""


class Lent(Protocol):
    """A file lent by the store for sending."""

    @property
    def fd(self) -> int:
        """A descriptor open for reading."""
        ...

    def release(self) -> None:
        """Gives the file back."""
        ...


@dataclass(slots=True)
class OutgoingPiece:
    """A piece to be sent: its header, then a range of a lent file."""

    header: bytes
    lent: Lent
    offset_bytes: int
    remaining_bytes: int
    on_end: Callable[[Reason | None, str], None]
    """Called once: with None when everything was handed to the kernel, else with what failed: our
    own disk, or the connection."""
    begun: bool = False
    """From its header's first byte to its payload's last nothing else may be sent."""


class Channel:
    """The connection. `on_readable` is called when bytes may be there; `on_closed(detail)` once,
    when the connection is gone for whatever reason."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        upload_turns: Turns | None,
        on_readable: Callable[[], None],
        on_closed: Callable[[str], None],
    ) -> None:
        self._sock = sock
        self._tls = isinstance(sock, ssl.SSLSocket)
        self._loop = asyncio.get_running_loop()
        self._turns = upload_turns
        self._on_readable = on_readable
        self._on_closed = on_closed
        self._frames: deque[memoryview] = deque()
        self._frames_bytes = 0
        self._pieces: deque[OutgoingPiece] = deque()
        self._paid_bytes = 0
        """What may be sent in this turn."""
        self._chunk: memoryview | None = None
        """TLS: bytes read from the file that the socket has not taken yet."""
        self._writing = False
        self._reading = False
        self._turn: Turn | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._took_s = 0.0
        """When the socket last took anything, while it is full."""
        self._pump_planned = False
        self.drained = False
        """The last receive call took all that was there: asking again now would find nothing."""
        self.closed = False

    # ------------------------------------------------------------ reading

    def start_reading(self) -> None:
        """Calls `on_readable` whenever bytes may be there."""
        if not self.closed and not self._reading:
            self._reading = True
            self._loop.add_reader(self._sock.fileno(), self._on_readable)
            if self._tls:
                # Bytes that TLS has decrypted already do not make the socket readable.
                self._loop.call_soon(self._kick)

    def _kick(self) -> None:
        if self._reading and not self.closed:
            self._on_readable()

    def pause_reading(self) -> None:
        """Leaves bytes in the kernel, so that the sender slows down."""
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._sock.fileno())

    def read_again_soon(self) -> None:
        """There may be more: come back after the others had their turn."""
        if self._tls and self._reading:
            self._loop.call_soon(self._kick)

    def receive_into(self, target: memoryview) -> int | None:
        """Bytes received, None if there are none now. Closes itself at the end of the stream or
        on an error, and then returns 0."""
        try:
            count = self._sock.recv_into(target)
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError):
            return None
        except ssl.SSLWantWriteError:
            return None
        except OSError as error:
            self.close(f"connection broke: {error.strerror or type(error).__name__}")
            return 0
        if count == 0:
            self.close("closed by the other side")
        # TLS gives out one record at a time, however much there is.
        self.drained = count < len(target) and not self._tls
        return count

    # ------------------------------------------------------------ writing

    @property
    def waiting_pieces(self) -> int:
        """Pieces that are queued or being sent."""
        return len(self._pieces)

    def send_frame(self, frame: bytes) -> None:
        """Queues a small frame; it goes out before the next piece."""
        if self.closed:
            return
        self._frames.append(memoryview(frame))
        self._frames_bytes += len(frame)
        if self._frames_bytes > FRAMES_BYTES_MAX:
            self.close("does not read what it is sent")
            return
        self._plan_pump()

    def send_piece(self, piece: OutgoingPiece) -> None:
        """Queues a piece. Its `on_end` is called in any case."""
        if self.closed:
            piece.lent.release()
            piece.on_end(Reason.PEER_LOST, "the connection is closed")
            return
        self._pieces.append(piece)
        self._plan_pump()

    def send_now(self) -> None:
        """Sends what fits without waiting for the loop's next turn: before a close, for example."""
        self._pump()

    def _plan_pump(self) -> None:
        # Frames of one turn of the loop go out together.
        if not self._pump_planned and not self._writing and self._turn is None:
            self._pump_planned = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_planned = False
        if self.closed or self._turn is not None:
            return
        try:
            blocked = self._send_what_fits()
        except (BlockingIOError, InterruptedError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            blocked = True
        except OSError as error:
            self.close(f"connection broke: {error.strerror or type(error).__name__}")
            return
        if self.closed:
            return
        self._watch_writable(blocked=blocked)

    def _watch_writable(self, *, blocked: bool) -> None:
        if blocked and not self._writing:
            self._writing = True
            self._loop.add_writer(self._sock.fileno(), self._pump)
            self._took_s = self._loop.time()
            if self._stall is None:
                self._stall = self._loop.call_later(STALL_TIMEOUT_S, self._look_for_stall)
        elif not blocked and self._writing:
            self._writing = False
            self._loop.remove_writer(self._sock.fileno())

    def _look_for_stall(self) -> None:
        """A socket is full and empty again many times a second: its timer is left alone meanwhile,
        and looks when it rings whether anything was taken."""
        self._stall = None
        if not self._writing:
            return
        left_s = self._took_s + STALL_TIMEOUT_S - self._loop.time()
        if left_s <= 0:
            self.close(f"took nothing for {STALL_TIMEOUT_S:.0f} s")
        else:
            self._stall = self._loop.call_later(left_s, self._look_for_stall)

    def _send_what_fits(self) -> bool:
        """Sends until the socket is full (True), a rate limit says wait, or nothing is left."""
        for _ in range(2 * TURNS_MAX):
            in_piece = bool(self._pieces) and self._pieces[0].begun
            if self._frames and not in_piece:
                self._send_frames()
            elif self._pieces:
                if not self._send_slice(self._pieces[0]):
                    return False
            else:
                return False
            if self._writing:
                self._took_s = self._loop.time()
        # Others have their turn first.
        if self._frames or self._pieces:
            self._pump_planned = True
            self._loop.call_soon(self._pump)
        return False

    def _send_frames(self) -> None:
        while self._frames:
            frame = self._frames[0]
            sent = self._sock.send(frame)
            self._frames_bytes -= sent
            if sent < len(frame):
                self._frames[0] = frame[sent:]
                raise BlockingIOError
            self._frames.popleft()

    def _send_slice(self, piece: OutgoingPiece) -> bool:
        """Sends up to one slice of a piece; False if it must wait for a turn or is closed."""
        if not self._paid_bytes:
            count = min(SLICE_BYTES, piece.remaining_bytes)
            self._paid_bytes = count if self._turns is None else self._turns.take(count)
            if not self._paid_bytes and count:
                assert self._turns is not None
                self._watch_writable(blocked=False)
                self._turn = self._turns.wait(count, self._my_turn)
                return False
        try:
            piece.begun = True
            # Not among the other frames: those that are queued meanwhile must wait for the payload.
            while piece.header:
                piece.header = piece.header[self._sock.send(piece.header) :]
            return self._send_payload(piece)
        finally:
            self._settle()

    def _settle(self) -> None:
        """Gives back what was paid and not sent. TLS sends a refused write as it was, so it may
        have sent more than was paid this time; that is paid now."""
        paid, self._paid_bytes = self._paid_bytes, 0
        if self._turns is not None and paid:
            self._turns.settle(paid, 0)

    def _my_turn(self, paid: int) -> None:
        self._turn = None
        self._paid_bytes = paid
        try:
            self._pump()
        finally:
            self._settle()

    def _send_payload(self, piece: OutgoingPiece) -> bool:
        """Sends what was paid for; False if the connection had to be closed."""
        while piece.remaining_bytes and self._paid_bytes > 0:
            count = min(self._paid_bytes, piece.remaining_bytes)
            try:
                sent = (self._send_tls if self._tls else self._send_plain)(piece, count)
            except _UnreadableError as error:
                # The child has the header and waits for bytes that are not there.
                self._end_piece(Reason.DISK_FAILED, str(error))
                self.close(str(error))
                return False
            piece.offset_bytes += sent
            piece.remaining_bytes -= sent
            self._paid_bytes -= sent
        if piece.remaining_bytes == 0:
            self._end_piece(None, "")
        return True

    def _end_piece(self, reason: Reason | None, detail: str) -> None:
        piece = self._pieces.popleft()
        piece.lent.release()
        piece.on_end(reason, detail)

    def _send_plain(self, piece: OutgoingPiece, count: int) -> int:
        try:
            sent = os.sendfile(self._sock.fileno(), piece.lent.fd, piece.offset_bytes, count)
        except OSError as error:
            if error.errno == errno.EIO:  # Sockets know no such error.
                raise _UnreadableError(f"the stored file: {error.strerror}") from None
            raise
        if sent == 0:
            raise _UnreadableError(TOO_SHORT)
        return sent

    def _send_tls(self, piece: OutgoingPiece, count: int) -> int:
        # Python 3.11's TLS has no sendfile; a write that was refused must be repeated as it was.
        if self._chunk is None:
            try:
                self._chunk = memoryview(os.pread(piece.lent.fd, count, piece.offset_bytes))
            except OSError as error:
                raise _UnreadableError(f"the stored file: {error.strerror}") from None
            if not self._chunk:
                raise _UnreadableError(TOO_SHORT)
        sent = self._sock.send(self._chunk)
        # One TLS record goes at a time: the rest is not read again.
        self._chunk = self._chunk[sent:] or None
        return sent

    # ------------------------------------------------------------ the end

    def close(self, detail: str) -> None:
        """Closes the connection; everything queued ends. Safe to call twice."""
        if self.closed:
            return
        self.closed = True
        self.pause_reading()
        if self._writing:
            self._loop.remove_writer(self._sock.fileno())
        for waits in (self._turn, self._stall):
            if waits is not None:
                waits.cancel()
        self._sock.close()
        self._frames.clear()
        while self._pieces:
            self._end_piece(Reason.PEER_LOST, detail)
        self._on_closed(detail)
