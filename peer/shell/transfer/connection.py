"""One connection between two hosts: a socket, its two halves, and when each may go on.

Watches the socket's readiness, runs the halves' turns, and closes once and for all when one of
them fails. Decides nothing about what is said; the speaker of the connection does.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

from peer.shell.transfer.inbound import Inbound, Receiver, Wait
from peer.shell.transfer.outbound import Outbound, PieceJob, QueueOverflow, Sender
from peer.shell.transfer.pacing import Pacer
from peer.shell.transfer.stream import Stream, StreamLost
from shoal.wire.errors import ProtocolError, Reason
from shoal.wire.frames import Frame, encode


class Speaker(Receiver, Sender, Protocol):
    """Speaks for this host on one connection."""

    def connection_ready(self) -> None:
        """The connection stands; frames may be sent."""
        ...

    def connection_closed(self, reason: Reason, detail: str) -> None:
        """The connection is gone. Called once."""
        ...


class Connection:
    """A connection that this daemon owns. Belongs to the event loop's thread."""

    def __init__(
        self,
        stream: Stream,
        speaker: Speaker,
        loop: asyncio.AbstractEventLoop,
        *,
        receiving: Pacer,
        sending: Pacer,
        scratch: memoryview,
    ) -> None:
        self._stream = stream
        self._speaker = speaker
        self._loop = loop
        self._fd = stream.fileno()
        self._shaken = False
        self._closed = False
        self._reading = False
        self._writing = False
        self._flush_planned = False
        self.blocked = False
        """Whether what is to be sent waits for the other side to take it."""
        self.inbound = Inbound(
            stream, speaker, receiving, self.resume_reading, lambda: self._closed, scratch
        )
        self.outbound = Outbound(stream, speaker, sending, self._guarded_send, lambda: self._closed)

    @property
    def closed(self) -> bool:
        """Whether it is gone."""
        return self._closed

    def peer_name(self) -> str | None:
        """The host id that the other side's certificate proved, None without one."""
        return self._stream.peer_name()

    def start(self) -> None:
        """Begins with the handshake, if there is one; `connection_ready` follows."""
        self._guard(self._shake)

    def put(self, frame: Frame) -> None:
        """Queues a frame; frames of one turn of the loop leave together."""
        self.put_encoded(encode(frame))

    def put_encoded(self, frame: bytes) -> None:
        """`put` for a frame that goes to several connections."""
        if self._closed:
            return
        try:
            self.outbound.put(frame)
        except QueueOverflow as error:
            self.close(Reason.PEER_STALLED, str(error))
            return
        self._plan_flush()

    def put_piece(self, job: PieceJob) -> None:
        """Queues a piece."""
        self.outbound.put_piece(job)
        self._plan_flush()

    def flush_now(self) -> None:
        """Sends what goes at once: before a close that tells the other side why."""
        self._guard(self._send)

    def resume_reading(self) -> None:
        """What the receiving half waited for is there."""
        if not self._closed:
            self._guard(self._read)

    def close(self, reason: Reason, detail: str) -> None:
        """Closes the connection. Does nothing when it is closed already."""
        if self._closed:
            return
        self._closed = True
        self._watch(reading=False)
        self._watch_writing(writing=False)
        self._stream.close()
        self._speaker.connection_closed(reason, detail)

    # ------------------------------------------------------------ readiness

    def _guard(self, action: Callable[[], None]) -> None:
        if self._closed:
            return
        try:
            action()
        except ProtocolError as error:
            self.close(Reason.PEER_PROTOCOL, str(error))
        except StreamLost as error:
            self.close(error.reason, str(error))

    def _readable(self) -> None:
        self._guard(self._on_readable)

    def _writable(self) -> None:
        self._guard(self._on_writable)

    def _on_readable(self) -> None:
        if not self._shaken:
            self._shake()
            return
        if self._stream.write_wants_read:
            self._send()
        if not self._closed:
            self._read()

    def _on_writable(self) -> None:
        if not self._shaken:
            self._shake()
            return
        if self._stream.read_wants_write:
            self._read()
        if not self._closed:
            self._send()

    def _shake(self) -> None:
        if not self._stream.handshake():
            self._watch(reading=True)
            self._watch_writing(writing=self._stream.read_wants_write)
            return
        self._shaken = True
        self._watch_writing(writing=False)
        self._speaker.connection_ready()
        # TLS may have taken in frames together with the handshake's end.
        if not self._closed:
            self._read()

    def _read(self) -> None:
        wait = self.inbound.read_turn()
        if self._closed:
            return
        self._watch(reading=wait is Wait.SOCKET)
        if wait is Wait.AGAIN:
            self._loop.call_soon(self.resume_reading)
        elif self._stream.read_wants_write:
            self._watch_writing(writing=True)

    def _guarded_send(self) -> None:
        self._guard(self._send)

    def _plan_flush(self) -> None:
        # A half that waits for the socket or its turn is woken by that.
        if self._shaken and not self._flush_planned and not self._writing:
            self._flush_planned = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_planned = False
        self._guard(self._send)

    def _send(self) -> None:
        wait = self.outbound.send_turn()
        if self._closed:
            return
        stream = self._stream
        self.blocked = wait is Wait.SOCKET
        self._watch_writing(
            writing=(self.blocked and not stream.write_wants_read) or stream.read_wants_write
        )

    def _watch(self, *, reading: bool) -> None:
        if reading is not self._reading:
            self._reading = reading
            if reading:
                self._loop.add_reader(self._fd, self._readable)
            else:
                self._loop.remove_reader(self._fd)

    def _watch_writing(self, *, writing: bool) -> None:
        if writing is not self._writing:
            self._writing = writing
            if writing:
                self._loop.add_writer(self._fd, self._writable)
            else:
                self._loop.remove_writer(self._fd)
