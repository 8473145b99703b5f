"""The sending half of a connection: one queue of frames, one of pieces, never interleaved wrongly.

Frames go before the next queued piece, so that news never waits behind a queue of bytes; a piece
that began is sent to its end first. Decides the order on one connection and how much is sent in
one turn; who is served at all, and when, was decided elsewhere.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from peer.core.effects import ServePiece
from peer.shell.transfer.inbound import Wait
from peer.shell.transfer.pacing import QUANTUM_BYTES_MAX, Pacer, Turn
from peer.shell.transfer.stream import FileUnreadable, Stream
from shoal.wire.errors import ShoalError
from shoal.wire.limits import MIB

SEND_TURN_BYTES: Final = 1 * MIB
"""Sent on one connection before the others get their turn."""

FRAMES_QUEUED_BYTES_MAX: Final = 4 * MIB
"""Frames that wait for the other side to read. More is a side that does not read at all."""


class LentFile(Protocol):
    """A content's file, readable until it is given back."""

    @property
    def fd(self) -> int:
        """A read-only descriptor."""
        ...

    def release(self) -> None:
        """Gives it back."""
        ...


class QueueOverflow(ShoalError):
    """The other side let too many frames pile up."""


@dataclass(slots=True)
class PieceJob:
    """One piece to be sent."""

    effect: ServePiece
    header: bytes
    lent: LentFile
    sent_bytes: int = 0


class Sender(Protocol):
    """Told how pieces ended."""

    def piece_sent(self, job: PieceJob) -> None:
        """Handed to the kernel whole."""
        ...

    def piece_unreadable(self, job: PieceJob, detail: str) -> None:
        """Our own file failed in the middle of it: the connection is of no use any more."""
        ...


class Outbound:
    """Writes one connection."""

    def __init__(
        self,
        stream: Stream,
        sender: Sender,
        pacer: Pacer,
        wake: Callable[[], None],
        closed: Callable[[], bool],
    ) -> None:
        self._stream = stream
        self._sender = sender
        self._turn = Turn(pacer, wake)
        self._closed = closed
        self._rest = memoryview(b"")
        """Frames or a piece's header being sent now."""
        self._frames: deque[bytes] = deque()
        self._frames_bytes = 0
        self._jobs: deque[PieceJob] = deque()
        self._job: PieceJob | None = None
        self.sent_bytes = 0
        """Payload so far."""
        self.moved = False
        """Whether bytes left since this was last set to False."""

    @property
    def waiting(self) -> bool:
        """Whether anything is still to be sent."""
        return bool(self._rest or self._job or self._frames or self._jobs)

    def put(self, frame: bytes) -> None:
        """Queues a frame. Raises QueueOverflow."""
        self._frames.append(frame)
        self._frames_bytes += len(frame)
        if self._frames_bytes > FRAMES_QUEUED_BYTES_MAX:
            raise QueueOverflow(f"{self._frames_bytes} bytes of frames wait to be read")

    def put_piece(self, job: PieceJob) -> None:
        """Queues a piece. Bounded by the requests that the child may have open."""
        self._jobs.append(job)

    def take_out(self, child_request: int) -> PieceJob | None:
        """Takes a piece out of the queue unless it began."""
        for job in self._jobs:
            if job.effect.child_request == child_request:
                self._jobs.remove(job)
                return job
        return None

    def is_sending(self, child_request: int) -> bool:
        """Whether this very piece is on its way."""
        return self._job is not None and self._job.effect.child_request == child_request

    def take_all(self) -> list[PieceJob]:
        """Takes out every piece that was not sent whole: the connection is gone."""
        jobs = [self._job] if self._job is not None else []
        jobs += self._jobs
        self._job = None
        self._jobs.clear()
        return jobs

    def send_turn(self) -> Wait:
        """Sends until there is nothing more, nothing goes, or this connection's turn is over.
        Raises StreamLost."""
        budget = SEND_TURN_BYTES
        while not self._closed():
            if budget <= 0:
                return Wait.SOCKET
            if self._rest:
                sent = self._stream.send(self._rest, more=self._job is not None)
                if not sent:
                    return Wait.SOCKET
                self._rest = self._rest[sent:]
                self.moved = True
                budget -= sent
            elif self._job is not None:
                allowed = self._turn.allowance(self._slice_bytes(self._job))
                if not allowed:
                    return Wait.TURN
                sent = self._send_slice(self._job, allowed)
                if not sent:
                    return Wait.SOCKET
                budget -= sent
            elif self._frames:
                self._rest = memoryview(b"".join(self._frames))
                self._frames.clear()
                self._frames_bytes = 0
            elif self._jobs:
                # The header waits for its payload's turn: it would only keep frames waiting.
                if not self._turn.allowance(self._slice_bytes(self._jobs[0])):
                    return Wait.TURN
                self._job = self._jobs.popleft()
                self._rest = memoryview(self._job.header)
            else:
                return Wait.NOTHING
        return Wait.NOTHING

    def _slice_bytes(self, job: PieceJob) -> int:
        return min(QUANTUM_BYTES_MAX, job.effect.length_bytes - job.sent_bytes)

    def _send_slice(self, job: PieceJob, allowed: int) -> int:
        offset = job.effect.offset_bytes + job.sent_bytes
        try:
            sent = self._stream.send_file(job.lent.fd, offset, allowed)
        except FileUnreadable as error:
            self._job = None
            self._sender.piece_unreadable(job, str(error))
            return 0
        if sent:
            self._turn.used(sent)
            self.moved = True
            self.sent_bytes += sent
            job.sent_bytes += sent
            if job.sent_bytes == job.effect.length_bytes:
                self._job = None
                self._sender.piece_sent(job)
        return sent
