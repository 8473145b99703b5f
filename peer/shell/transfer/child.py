"""One connection from a child: what it asks, and what it is sent.

Checks that a child keeps to the protocol, tells the core what it asks for, and sends what the core
says. Every request of a child is answered exactly once on the wire, and every `ServePiece` by
exactly one `ServeEnded`, whatever the other does. Decides nothing about who is served.
"""

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from peer.core.effects import AcceptChild, RefuseChild, SendBusy, SendReject, ServePiece
from peer.core.events import (
    AnyEvent,
    ChildCancelled,
    ChildClosedTask,
    ChildGone,
    ChildOpened,
    ChildRequested,
    ServeEnded,
)
from peer.shell.store.errors import StoreError
from peer.shell.transfer.connection import Connection
from peer.shell.transfer.greeting import check_hello, new_hello
from peer.shell.transfer.outbound import LentFile, PieceJob
from peer.shell.transfer.pacing import Pacer
from peer.shell.transfer.stream import Stream
from shoal.runtime.clock import Clock
from shoal.wire import bitfield
from shoal.wire.errors import ProtocolError, Reason
from shoal.wire.frames import (
    Busy,
    Cancel,
    Close,
    Frame,
    Have,
    Hello,
    Open,
    Opened,
    Piece,
    Refused,
    Reject,
    Request,
    Withdraw,
    encode,
    have_frames,
)
from shoal.wire.ids import ConnectionId, HostId, TaskId
from shoal.wire.limits import SECOND_NS

CHANNELS_MAX: Final = 16_384
"""Tasks that one child has open at once: more than a whole collection."""

REQUESTS_OPEN_MAX: Final = 4096
"""Requests of one child without an answer: the core says "busy" long before."""

HELLO_TIMEOUT_NS: Final = 5 * SECOND_NS
STALL_TIMEOUT_NS: Final = 30 * SECOND_NS
"""A child that takes nothing of what is sent for so long is dropped."""


class Lender(Protocol):
    """Where the bytes are."""

    def lend(self, task_id: TaskId) -> LentFile:
        """The content's file. Raises StoreError."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PortSurroundings:
    """What all connections from children share."""

    host_id: HostId
    store: Lender
    clock: Clock
    post: Callable[[AnyEvent], None]
    loop: asyncio.AbstractEventLoop
    receiving: Pacer
    sending: Pacer
    scratch: memoryview


@dataclass(slots=True)
class _Channel:
    task_id: TaskId
    accepted: bool = False


class ChildLink:
    """The speaker of one connection from a child."""

    def __init__(
        self,
        connection_id: ConnectionId,
        stream: Stream,
        around: PortSurroundings,
        on_closed: Callable[["ChildLink", Reason, str], None],
    ) -> None:
        self.connection_id = connection_id
        self.host_id: HostId | None = None
        self._around = around
        self._on_closed = on_closed
        self._hello = new_hello(around.host_id)
        self._began_ns = around.clock.now_ns()
        self._stalled_since_ns: int | None = None
        self._channels: dict[int, _Channel] = {}
        self._numbers: dict[TaskId, int] = {}
        self._highest_number = 0
        self._open: dict[int, int] = {}
        """Requests without an answer, with their channels' numbers."""
        self._told = False
        """Whether the core knows of this child."""
        self.connection = Connection(
            stream,
            self,
            around.loop,
            receiving=around.receiving,
            sending=around.sending,
            scratch=around.scratch,
        )

    def connection_ready(self) -> None:
        """The child speaks first."""

    def look_after(self) -> None:
        """Drops the child if it did not greet in time or does not take what is sent. To be called
        every now and then."""
        now_ns = self._around.clock.now_ns()
        outbound = self.connection.outbound
        if self.host_id is None and now_ns - self._began_ns > HELLO_TIMEOUT_NS:
            self.connection.close(Reason.TIMEOUT, "no hello in time")
        elif outbound.moved or not self.connection.blocked:
            outbound.moved = False
            self._stalled_since_ns = None
        elif self._stalled_since_ns is None:
            self._stalled_since_ns = now_ns
        elif now_ns - self._stalled_since_ns > STALL_TIMEOUT_NS:
            self.connection.close(Reason.PEER_STALLED, "does not take what is sent")

    # ------------------------------------------------------------ frames

    def frame_received(self, frame: Frame) -> None:
        """What the child says."""
        if type(frame) is Hello:
            self._greeted(frame)
        elif self.host_id is None:
            raise ProtocolError(f"{type(frame).__name__} before hello")
        elif type(frame) is Request:
            self._requested(frame)
        elif type(frame) is Cancel:
            self._cancelled(frame.request_ids)
        elif type(frame) is Open:
            self._opened(frame)
        elif type(frame) is Close:
            self._closed_task(frame.channel)
        else:
            raise ProtocolError(f"a child does not send {type(frame).__name__}")

    def piece_announced(self, header: Piece) -> None:
        """A child sends no pieces."""
        raise ProtocolError("a child does not send Piece")

    def payload_complete(self) -> None:
        """Never happens: there is no payload."""
        raise AssertionError

    def _greeted(self, hello: Hello) -> None:
        if self.host_id is not None:
            raise ProtocolError("a second hello")
        # Answered also if it is not acceptable: so the child can say which version would be.
        self.connection.put(self._hello)
        self.connection.flush_now()
        check_hello(hello, self.connection.peer_name())
        self.host_id = HostId(hello.host_id)

    def _opened(self, frame: Open) -> None:
        task_id = TaskId(frame.task_id)
        if frame.channel <= self._highest_number or task_id in self._numbers:
            raise ProtocolError("a channel or its task is opened twice")
        if len(self._channels) >= CHANNELS_MAX:
            raise ProtocolError(f"more than {CHANNELS_MAX} channels")
        assert self.host_id is not None
        self._highest_number = frame.channel
        self._channels[frame.channel] = _Channel(task_id)
        self._numbers[task_id] = frame.channel
        self._told = True
        self._around.post(
            ChildOpened(
                now_ns=self._around.clock.now_ns(),
                connection_id=self.connection_id,
                host_id=self.host_id,
                task_id=task_id,
                nonce=self._hello.nonce,
                proof=frame.proof,
            )
        )

    def _closed_task(self, number: int) -> None:
        channel = self._channels.pop(number, None)
        if channel is None:
            self._check_number(number)
            return
        del self._numbers[channel.task_id]
        self._cancelled(tuple(one for one, where in self._open.items() if where == number))
        self._around.post(
            ChildClosedTask(
                now_ns=self._around.clock.now_ns(),
                connection_id=self.connection_id,
                task_id=channel.task_id,
            )
        )

    def _check_number(self, number: int) -> None:
        # One that was refused while the frame was on its way is no fault of the child.
        if not 0 < number <= self._highest_number:
            raise ProtocolError(f"unknown channel {number}")

    def _requested(self, frame: Request) -> None:
        channel = self._channels.get(frame.channel)
        if channel is None:
            self._check_number(frame.channel)
        elif not channel.accepted:
            raise ProtocolError("a request in a channel that is not open yet")
        for request, _ in frame.requests:
            if request in self._open:
                raise ProtocolError(f"request {request} is open already")
            self._open[request] = frame.channel
        if len(self._open) > REQUESTS_OPEN_MAX:
            raise ProtocolError(f"more than {REQUESTS_OPEN_MAX} requests without an answer")
        if channel is None:
            for request, _ in frame.requests:
                self._reject(request, Reason.PEER_REFUSED)
            return
        self._around.post(
            ChildRequested(
                now_ns=self._around.clock.now_ns(),
                connection_id=self.connection_id,
                task_id=channel.task_id,
                requests=frame.requests,
            )
        )

    def _cancelled(self, requests: tuple[int, ...]) -> None:
        known = tuple(request for request in requests if request in self._open)
        if not known:
            return  # The answers crossed them on the way.
        for request in known:
            job = self.connection.outbound.take_out(request)
            if job is not None:
                self._end_job(job, Reason.CANCELLED, "no longer wanted")
                self._reject(request, Reason.CANCELLED)
            elif not self.connection.outbound.is_sending(request):
                self._reject(request, Reason.CANCELLED)
        self._around.post(
            ChildCancelled(
                now_ns=self._around.clock.now_ns(),
                connection_id=self.connection_id,
                requests=known,
            )
        )

    # ------------------------------------------------------------ effects

    def accept(self, effect: AcceptChild) -> None:
        """Opens a task's channel and tells what is held."""
        number = self._numbers.get(effect.task_id)
        if number is not None:
            self._channels[number].accepted = True
            self.connection.put(Opened(number, effect.epoch, bitfield.to_bytes(effect.held)))

    def refuse(self, effect: RefuseChild) -> None:
        """Closes a task's channel; requests in it that did not begin are answered first."""
        number = self._numbers.pop(effect.task_id, None)
        if number is None:
            return
        del self._channels[number]
        for request in [one for one, where in self._open.items() if where == number]:
            job = self.connection.outbound.take_out(request)
            if job is not None:
                self._end_job(job, Reason.CANCELLED, "the channel was closed")
            if not self.connection.outbound.is_sending(request):
                self._reject(request, effect.reason)
        self.connection.put(Refused(number, effect.reason))

    def tell(
        self,
        kind: type[Have] | type[Withdraw],
        task_id: TaskId,
        stretches: list[tuple[int, int]],
        encoded: dict[int, list[bytes]],
    ) -> None:
        """Tells of pieces gained or lost. `encoded` keeps the frames by channel number, for the
        other children that are told the same."""
        number = self._numbers.get(task_id)
        if number is None or not self._channels[number].accepted:
            return
        frames = encoded.get(number)
        if frames is None:
            frames = [encode(frame) for frame in have_frames(number, stretches, kind)]
            encoded[number] = frames
        for frame in frames:
            self.connection.put_encoded(frame)

    def serve(self, effect: ServePiece) -> None:
        """Queues a piece; `ServeEnded` follows."""
        if effect.child_request not in self._open:
            self.serve_ended(effect, Reason.CANCELLED, "the request is not open any more")
            return
        try:
            lent = self._around.store.lend(effect.task_id)
        except StoreError as error:
            self._reject(effect.child_request, Reason.NOT_HELD)
            self.serve_ended(effect, error.reason, error.detail)
            return
        # Pages that are not in memory begin to come in while others are sent.
        os.posix_fadvise(lent.fd, effect.offset_bytes, effect.length_bytes, os.POSIX_FADV_WILLNEED)
        header = Piece(
            effect.child_request,
            effect.length_bytes,
            effect.record.digest,
            effect.record.lease_number,
            effect.epoch,
        )
        self.connection.put_piece(PieceJob(effect, encode(header), lent))

    def busy(self, effect: SendBusy) -> None:
        """Answers a request with "later"."""
        if self._open.pop(effect.child_request, None) is not None:
            self.connection.put(Busy(effect.child_request, effect.retry_after_ms))

    def reject(self, effect: SendReject) -> None:
        """Answers a request with "no"."""
        self._reject(effect.child_request, effect.reason)

    def _reject(self, request: int, reason: Reason) -> None:
        if self._open.pop(request, None) is not None:
            self.connection.put(Reject(request, reason))

    # ------------------------------------------------------------ how pieces end

    def piece_sent(self, job: PieceJob) -> None:
        """A piece was sent whole."""
        del self._open[job.effect.child_request]
        self._end_job(job, None, "")

    def piece_unreadable(self, job: PieceJob, detail: str) -> None:
        """Our file failed after the header had promised its bytes: there is no way back."""
        self._end_job(job, Reason.DISK_FAILED, f"piece {job.effect.piece}: {detail}")
        self.connection.close(Reason.DISK_FAILED, detail)

    def _end_job(self, job: PieceJob, reason: Reason | None, detail: str) -> None:
        job.lent.release()
        self.serve_ended(job.effect, reason, detail)

    def serve_ended(self, effect: ServePiece, reason: Reason | None, detail: str) -> None:
        """Answers a `ServePiece`."""
        self._around.post(serve_ended(self._around.clock, effect, reason, detail))

    def connection_closed(self, reason: Reason, detail: str) -> None:
        """Ends what was being sent, then the child."""
        self._open.clear()
        for job in self.connection.outbound.take_all():
            self._end_job(job, Reason.PEER_LOST, detail)
        if self._told:
            now_ns = self._around.clock.now_ns()
            self._around.post(ChildGone(now_ns=now_ns, connection_id=self.connection_id))
        self._on_closed(self, reason, detail)


def serve_ended(clock: Clock, effect: ServePiece, reason: Reason | None, detail: str) -> ServeEnded:
    """The answer to a `ServePiece`."""
    return ServeEnded(
        now_ns=clock.now_ns(),
        connection_id=effect.connection_id,
        child_request=effect.child_request,
        task_id=effect.task_id,
        piece=effect.piece,
        reason=reason,
        detail=detail,
    )
