"""One connection between peers: a non-blocking socket, plain or TLS, read and written by callbacks.

Owns its socket instead of an asyncio transport, because bytes must not pass through Python
objects: payload is received straight into piece buffers and sent with sendfile. Works on asyncio's
own loop and on uvloop. Knows frames only as bytes; decides nothing.
"""

import asyncio
import os
import socket
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from shoal.runtime.rates import RateLimiter
from shoal.wire.limits import KIB, MIB

SLICE_BYTES: Final = 256 * KIB
"""The most that is sent or received in one turn: rate limits hold to that, and no connection keeps
the loop from the others for long."""

FRAMES_BYTES_MAX: Final = 4 * MIB
"""Small frames waiting for a slow reader before its connection is given up."""

STALL_TIMEOUT_S: Final = 30.0
"""A reader that takes nothing for so long is gone."""

TURNS_MAX: Final = 4
"""Receive calls in one turn of a connection."""


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
    on_end: Callable[[str | None], None]
    """Called once: with None when everything was handed to the kernel, else with what failed."""
    begun: bool = False
    """From its header's first byte to its payload's last nothing else may be sent."""


class Channel:
    """The connection. `on_readable` is called when bytes may be there; `on_closed(detail)` once,
    when the connection is gone for whatever reason."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        upload_limiter: RateLimiter | None,
        on_readable: Callable[[], None],
        on_closed: Callable[[str], None],
    ) -> None:
        self._sock = sock
        self._tls = isinstance(sock, ssl.SSLSocket)
        self._loop = asyncio.get_running_loop()
        self._limiter = upload_limiter
        self._on_readable = on_readable
        self._on_closed = on_closed
        self._frames: deque[memoryview] = deque()
        self._frames_bytes = 0
        self._pieces: deque[OutgoingPiece] = deque()
        self._paid_bytes = 0
        """Taken from the rate limit and not yet sent."""
        self._chunk: memoryview | None = None
        """TLS: bytes read from the file that the socket has not taken yet."""
        self._writing = False
        self._reading = False
        self._resume: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._pump_planned = False
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
            piece.on_end("the connection is closed")
            return
        self._pieces.append(piece)
        self._plan_pump()

    def send_now(self) -> None:
        """Sends what fits without waiting for the loop's next turn: before a close, for example."""
        self._pump()

    def _plan_pump(self) -> None:
        # Frames of one turn of the loop go out together.
        if not self._pump_planned and not self._writing and self._resume is None:
            self._pump_planned = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_planned = False
        if self.closed or self._resume is not None:
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
            self._restart_stall_timer()
        elif not blocked and self._writing:
            self._writing = False
            self._loop.remove_writer(self._sock.fileno())
        if not blocked and self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _restart_stall_timer(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
        self._stall = self._loop.call_later(
            STALL_TIMEOUT_S, self.close, f"took nothing for {STALL_TIMEOUT_S:.0f} s"
        )

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
            if self._stall is not None:
                self._restart_stall_timer()
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
        """Sends up to one slice of a piece; False if the rate limit says wait."""
        count = min(SLICE_BYTES, piece.remaining_bytes)
        if self._limiter is not None and self._paid_bytes < count:
            wait_s = self._limiter.try_take(count - self._paid_bytes)
            self._paid_bytes = count
            if wait_s > 0.0:
                self._watch_writable(blocked=False)
                self._resume = self._loop.call_later(wait_s, self._go_on)
                return False
        piece.begun = True
        # Not among the other frames: those that are queued meanwhile must wait for the payload.
        while piece.header:
            piece.header = piece.header[self._sock.send(piece.header) :]
        self._send_payload(piece, count)
        return True

    def _go_on(self) -> None:
        self._resume = None
        self._pump()

    def _send_payload(self, piece: OutgoingPiece, count: int) -> None:
        if self._tls:
            sent = self._send_tls(piece, count)
        else:
            sent = os.sendfile(self._sock.fileno(), piece.lent.fd, piece.offset_bytes, count)
        if sent == 0:
            self.close("the stored file is shorter than its piece")
            return
        piece.offset_bytes += sent
        piece.remaining_bytes -= sent
        self._paid_bytes = max(0, self._paid_bytes - sent)
        if piece.remaining_bytes == 0:
            self._pieces.popleft()
            piece.lent.release()
            piece.on_end(None)

    def _send_tls(self, piece: OutgoingPiece, count: int) -> int:
        # Python 3.11's TLS has no sendfile; a write that was refused must be repeated as it was.
        if self._chunk is None:
            self._chunk = memoryview(os.pread(piece.lent.fd, count, piece.offset_bytes))
            if not self._chunk:
                return 0
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
        for handle in (self._resume, self._stall):
            if handle is not None:
                handle.cancel()
        self._sock.close()
        self._frames.clear()
        while self._pieces:
            piece = self._pieces.popleft()
            piece.lent.release()
            piece.on_end(detail)
        self._on_closed(detail)
