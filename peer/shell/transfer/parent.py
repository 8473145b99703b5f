"""One connection to a parent: channels, requests, and pieces that arrive.

Carries out the core's effects on this connection and tells it what the parent says. Every request
ends in exactly one `FetchEnded`, and no bytes are stored that do not match their header. Decides
nothing: which piece is asked for, and what a failure means for the parent, is the core's business.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from peer.core.effects import FetchPiece, OpenChannel
from peer.core.events import (
    AnyEvent,
    FetchEnded,
    ParentClosed,
    ParentHave,
    ParentOpened,
    ParentRefused,
    ParentWithdrew,
)
from peer.shell.buffers import BufferPool, PieceBuffer
from peer.shell.store.errors import StoreError
from peer.shell.transfer.connection import Connection
from peer.shell.transfer.greeting import check_hello, new_hello
from peer.shell.transfer.outbound import PieceJob
from peer.shell.transfer.pacing import Pacer
from peer.shell.transfer.storing import PieceSink, verify_and_write
from peer.shell.transfer.stream import Stream, StreamLost
from shoal.runtime.clock import Clock
from shoal.runtime.tasks import Offload, Running, Supervisor
from shoal.wire import bitfield
from shoal.wire.digest import PIECE_ALGORITHMS, swarm_proof
from shoal.wire.errors import ProtocolError, Reason, UsageError
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
)
from shoal.wire.ids import ConnectionId, HostId, LeaseNumber, RequestId, TaskId
from shoal.wire.limits import REQUESTS_PER_FRAME_MAX

ABANDONED_MAX: Final = 4096
"""Cancelled requests that the parent has not answered yet. More is a parent that never answers."""

_REFUSALS: Final = frozenset(
    {
        Reason.NOT_HELD,
        Reason.UNKNOWN_TASK,
        Reason.UNAUTHORIZED,
        Reason.SHUTTING_DOWN,
        Reason.OVERLOADED,
        Reason.PEER_REFUSED,
    }
)
"""What a parent may give as its reason; another one (a full disk, say) is not its to tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What all connections to parents share."""

    host_id: HostId
    store: PieceSink
    buffers: BufferPool
    offload: Offload
    supervisor: Supervisor
    clock: Clock
    post: Callable[[AnyEvent], None]
    loop: asyncio.AbstractEventLoop
    receiving: Pacer
    sending: Pacer
    scratch: memoryview


class _Phase(Enum):
    PLANNED = auto()  # The frame that asks for it leaves in this turn of the loop.
    ASKED = auto()
    RECEIVING = auto()
    STORING = auto()


@dataclass(slots=True)
class _Fetch:
    effect: FetchPiece
    phase: _Phase = _Phase.PLANNED


@dataclass(slots=True)
class _Receipt:
    """The piece whose payload is arriving."""

    header: Piece
    fetch: _Fetch
    buffer: PieceBuffer | None = None
    waiting: Running | None = None


@dataclass(frozen=True, slots=True)
class _Channel:
    number: int
    task_id: TaskId
    piece_count_max: int


class ParentLink:
    """The speaker of one connection to a parent."""

    def __init__(
        self,
        expected: HostId,
        stream: Stream,
        around: Surroundings,
        on_closed: Callable[["ParentLink"], None],
    ) -> None:
        self._expected = expected
        self._around = around
        self._on_closed = on_closed
        self._connection_id: ConnectionId | None = None
        self._greeted: asyncio.Future[None] = around.loop.create_future()
        self._nonce = b""
        self._hello_sent_ns = 0
        self.hello_round_trip_ns = 0
        self._channels: dict[int, _Channel] = {}
        self._numbers: dict[TaskId, int] = {}
        self._next_number = 1
        self._fetches: dict[RequestId, _Fetch] = {}
        self._abandoned: dict[int, None] = {}
        self._asks: dict[int, list[tuple[int, int]]] = {}
        self._cancels: list[int] = []
        self._asking_planned = False
        self._receipt: _Receipt | None = None
        self._storing = 0
        self._end: tuple[Reason, str] | None = None
        self._settled = False
        self.connection = Connection(
            stream,
            self,
            around.loop,
            receiving=around.receiving,
            sending=around.sending,
            scratch=around.scratch,
        )

    # ------------------------------------------------------------ coming up

    async def greet(self) -> None:
        """Handshake and hello. Raises StreamLost; the connection is closed then. The caller
        bounds the time."""
        self.connection.start()
        try:
            await self._greeted
        except asyncio.CancelledError:
            self.connection.close(Reason.CANCELLED, "not needed any more")
            raise

    def adopt(self, connection_id: ConnectionId) -> None:
        """From now on the core knows this connection by its number."""
        self._connection_id = connection_id

    @property
    def connection_id(self) -> ConnectionId:
        """Its number, once it has one."""
        assert self._connection_id is not None
        return self._connection_id

    def connection_ready(self) -> None:
        """Greets."""
        self._hello_sent_ns = self._around.clock.now_ns()
        self.connection.put(new_hello(self._around.host_id))

    def _hello(self, hello: Hello) -> None:
        if self._nonce:
            raise ProtocolError("a second hello")
        check_hello(hello, self.connection.peer_name())
        if hello.host_id != self._expected:
            raise ProtocolError(f"host {hello.host_id!r} answered instead of {self._expected!r}")
        self._nonce = hello.nonce
        self.hello_round_trip_ns = self._around.clock.now_ns() - self._hello_sent_ns
        if not self._greeted.done():
            self._greeted.set_result(None)

    # ------------------------------------------------------------ effects

    def open_channel(self, effect: OpenChannel) -> None:
        """Asks for a task."""
        if self._end is not None or effect.task_id in self._numbers:
            return
        number = self._next_number
        self._next_number += 1
        self._channels[number] = _Channel(number, effect.task_id, effect.piece_count_max)
        self._numbers[effect.task_id] = number
        proof = swarm_proof(effect.token, self._nonce, self._around.host_id, effect.task_id)
        self.connection.put(Open(number, effect.task_id, proof))

    def close_channel(self, task_id: TaskId) -> None:
        """Needs nothing more of a task; requests for its pieces that are open end."""
        number = self._numbers.pop(task_id, None)
        if number is None or self._end is not None:
            return
        del self._channels[number]
        for request_id, fetch in list(self._fetches.items()):
            if fetch.effect.task_id == task_id:
                self.cancel(request_id)
        self._send_asks()
        self.connection.put(Close(number))

    def fetch(self, effect: FetchPiece) -> None:
        """Asks for a piece; requests of one turn of the loop leave in one frame."""
        if self._end is not None:
            self.answer(effect.request_id, Reason.PEER_LOST, "the connection is closed")
            return
        number = self._numbers.get(effect.task_id)
        if number is None:
            self.answer(effect.request_id, Reason.PEER_REFUSED, "the task's channel is not open")
            return
        self._fetches[effect.request_id] = _Fetch(effect)
        self._asks.setdefault(number, []).append((effect.request_id, effect.piece))
        self._plan_asking()

    def cancel(self, request_id: RequestId) -> bool:
        """Gives up a request; False if it is not of this connection. One that is being stored
        ends by itself."""
        fetch = self._fetches.get(request_id)
        if fetch is None:
            return False
        if fetch.phase is _Phase.STORING:
            return True
        if fetch.phase is _Phase.PLANNED:
            ask = (request_id, fetch.effect.piece)
            for asks in self._asks.values():
                if ask in asks:
                    asks.remove(ask)
        elif fetch.phase is _Phase.RECEIVING:
            self._forget_receipt()  # The parent has answered: the rest is only read.
        else:
            self._abandoned[request_id] = None
            self._cancels.append(request_id)
        self._plan_asking()
        self._finish(request_id, Reason.CANCELLED)
        if len(self._abandoned) > ABANDONED_MAX:
            self.connection.close(Reason.PEER_STALLED, "does not answer cancelled requests")
        return True

    def _plan_asking(self) -> None:
        if not self._asking_planned:
            self._asking_planned = True
            self._around.loop.call_soon(self._asking)

    def _asking(self) -> None:
        self._asking_planned = False
        self._send_asks()

    def _send_asks(self) -> None:
        asks, self._asks = self._asks, {}
        cancels, self._cancels = self._cancels, []
        for number, requests in asks.items():
            for request_id, _ in requests:
                self._fetches[RequestId(request_id)].phase = _Phase.ASKED
            for start in range(0, len(requests), REQUESTS_PER_FRAME_MAX):
                part = requests[start : start + REQUESTS_PER_FRAME_MAX]
                self.connection.put(Request(number, tuple(part)))
        for start in range(0, len(cancels), REQUESTS_PER_FRAME_MAX):
            self.connection.put(Cancel(tuple(cancels[start : start + REQUESTS_PER_FRAME_MAX])))

    # ------------------------------------------------------------ frames

    def frame_received(self, frame: Frame) -> None:
        """What the parent says."""
        if type(frame) is Hello:
            self._hello(frame)
        elif not self._nonce:
            raise ProtocolError(f"{type(frame).__name__} before hello")
        elif type(frame) is Busy:
            self._answered(frame.request_id, Reason.PEER_BUSY, frame.retry_after_ms)
        elif type(frame) is Reject:
            reason = frame.reason if frame.reason in _REFUSALS else Reason.PEER_REFUSED
            self._answered(frame.request_id, reason, 0)
        elif isinstance(frame, Opened | Have | Withdraw | Refused):
            channel = self._channel(frame.channel)
            if channel is not None:
                self._channel_news(channel, frame)
        else:
            raise ProtocolError(f"a parent does not send {type(frame).__name__}")

    def _channel(self, number: int) -> _Channel | None:
        channel = self._channels.get(number)
        if channel is None and not 0 < number < self._next_number:
            raise ProtocolError(f"unknown channel {number}")
        return channel  # None: closed while the frame was on its way.

    def _channel_news(self, channel: _Channel, frame: Opened | Have | Withdraw | Refused) -> None:
        count_max = channel.piece_count_max
        event: AnyEvent
        match frame:
            case Opened():
                event = ParentOpened(
                    now_ns=self._around.clock.now_ns(),
                    connection_id=self.connection_id,
                    task_id=channel.task_id,
                    epoch=frame.epoch,
                    held=bitfield.from_bytes(frame.bitmap, count_max),
                )
            case Have():
                event = ParentHave(
                    now_ns=self._around.clock.now_ns(),
                    connection_id=self.connection_id,
                    task_id=channel.task_id,
                    new=bitfield.from_ranges(frame.ranges, count_max),
                )
            case Withdraw():
                event = ParentWithdrew(
                    now_ns=self._around.clock.now_ns(),
                    connection_id=self.connection_id,
                    task_id=channel.task_id,
                    gone=bitfield.from_ranges(frame.ranges, count_max),
                )
            case Refused():
                # Requests in this channel are still answered one by one.
                del self._channels[channel.number]
                del self._numbers[channel.task_id]
                event = ParentRefused(
                    now_ns=self._around.clock.now_ns(),
                    connection_id=self.connection_id,
                    task_id=channel.task_id,
                    reason=frame.reason if frame.reason in _REFUSALS else Reason.PEER_REFUSED,
                )
        self._around.post(event)

    def _answered(self, request_id: int, reason: Reason, retry_after_ms: int) -> None:
        if self._was_abandoned(request_id):
            return
        fetch = self._fetches.get(RequestId(request_id))
        if fetch is None or fetch.phase is not _Phase.ASKED:
            raise ProtocolError(f"an answer to request {request_id}, which is not open")
        self._finish(fetch.effect.request_id, reason, retry_after_ms=retry_after_ms)

    def _was_abandoned(self, request_id: int) -> bool:
        if request_id in self._abandoned:
            del self._abandoned[request_id]
            return True
        return False

    # ------------------------------------------------------------ pieces

    def piece_announced(self, header: Piece) -> None:
        """Checks a piece's header and finds memory for its payload."""
        if not self._nonce:
            raise ProtocolError("Piece before hello")
        if self._was_abandoned(header.request_id):
            self.connection.inbound.discard()
            return
        fetch = self._fetches.get(RequestId(header.request_id))
        if fetch is None or fetch.phase is not _Phase.ASKED:
            raise ProtocolError(f"a piece for request {header.request_id}, which is not open")
        effect = fetch.effect
        if header.length_bytes != effect.length_bytes or len(header.digest) != PIECE_ALGORITHMS.get(
            effect.algorithm, len(header.digest)
        ):
            detail = f"piece {effect.piece}: wrong length of its bytes or of its digest"
            self._finish(effect.request_id, Reason.PEER_PROTOCOL, detail, header)
            raise ProtocolError(detail)
        # Epoch 0: the parent holds the piece without anybody's word on its digest.
        if header.epoch != effect.epoch and (header.epoch or not effect.provisional):
            # No lie: the news of the new epoch reaches hosts at different times.
            self._reject(effect, Reason.NOT_HELD, f"the parent holds epoch {header.epoch}", header)
        elif effect.expected and header.digest != effect.expected:
            detail = f"piece {effect.piece}: the header contradicts the listed digest"
            self._reject(effect, Reason.PEER_CONTRADICTED, detail, header)
        else:
            fetch.phase = _Phase.RECEIVING
            self._receipt = _Receipt(header, fetch)
            self._find_buffer(self._receipt)

    def _reject(self, effect: FetchPiece, reason: Reason, detail: str, header: Piece) -> None:
        self.connection.inbound.discard()
        self._finish(effect.request_id, reason, detail, header)

    def _find_buffer(self, receipt: _Receipt) -> None:
        receipt.buffer = self._around.buffers.try_acquire(receipt.header.length_bytes)
        if receipt.buffer is not None:
            self.connection.inbound.accept(receipt.buffer.view)
            return
        receipt.waiting = self._around.supervisor.spawn(
            self._wait_for_buffer(receipt), "wait for a piece buffer"
        )

    async def _wait_for_buffer(self, receipt: _Receipt) -> None:
        buffer = await self._around.buffers.acquire(receipt.header.length_bytes)
        receipt.waiting = None
        if self._receipt is not receipt:
            buffer.release()
            return
        receipt.buffer = buffer
        self.connection.inbound.accept(buffer.view)
        self.connection.resume_reading()

    def _forget_receipt(self) -> None:
        """The payload that is arriving is not wanted any more."""
        receipt, self._receipt = self._receipt, None
        if receipt is None:
            return
        waited = receipt.waiting is not None
        if receipt.waiting is not None:
            receipt.waiting.cancel()
        self.connection.inbound.discard()
        if receipt.buffer is not None:
            receipt.buffer.release()
        if waited:
            self._around.loop.call_soon(self.connection.resume_reading)

    def payload_complete(self) -> None:
        """Has a received piece verified and written."""
        receipt, self._receipt = self._receipt, None
        if receipt is None:
            return
        assert receipt.buffer is not None
        receipt.fetch.phase = _Phase.STORING
        self._storing += 1
        self._around.supervisor.spawn(
            self._store(receipt.header, receipt.fetch.effect, receipt.buffer), "store a piece"
        )

    async def _store(self, header: Piece, effect: FetchPiece, buffer: PieceBuffer) -> None:
        reason: Reason | None
        around = self._around
        try:
            good = await around.offload(verify_and_write, around.store, effect, header, buffer.view)
            reason, detail = (None, "") if good else (Reason.PEER_CORRUPT, "wrong bytes")
        except StoreError as error:
            reason, detail = error.reason, error.detail
        except UsageError as error:
            reason, detail = Reason.DISK_FAILED, str(error)
        # Cancelled (the daemon ends), a thread may still read the buffer: it is not given back.
        buffer.release()
        self._storing -= 1
        self._finish(effect.request_id, reason, detail, header)
        self._settle()

    # ------------------------------------------------------------ ending

    def answer(self, request_id: RequestId, reason: Reason, detail: str) -> None:
        """Ends a request that was never begun."""
        now_ns = self._around.clock.now_ns()
        self._around.post(
            FetchEnded(now_ns=now_ns, request_id=request_id, reason=reason, detail=detail)
        )

    def _finish(
        self,
        request_id: RequestId,
        reason: Reason | None,
        detail: str = "",
        header: Piece | None = None,
        *,
        retry_after_ms: int = 0,
    ) -> None:
        del self._fetches[request_id]
        self._around.post(
            FetchEnded(
                now_ns=self._around.clock.now_ns(),
                request_id=request_id,
                reason=reason,
                digest=b"" if header is None else header.digest,
                lease_number=LeaseNumber(0 if header is None else header.lease_number),
                epoch=0 if header is None else header.epoch,
                retry_after_ms=retry_after_ms,
                detail=detail,
            )
        )

    def connection_closed(self, reason: Reason, detail: str) -> None:
        """Ends what is open; what is being stored ends by itself, and the connection after it."""
        self._end = (reason, detail)
        if not self._greeted.done():
            self._greeted.set_exception(StreamLost(reason, detail))
        self._asks.clear()
        self._cancels.clear()
        self._abandoned.clear()
        self._forget_receipt()
        for request_id in list(self._fetches):
            # The core may have cancelled it meanwhile: an answer makes it act at once.
            fetch = self._fetches.get(request_id)
            if fetch is not None and fetch.phase is not _Phase.STORING:
                self._finish(request_id, Reason.PEER_LOST, detail)
        self._settle()

    def _settle(self) -> None:
        if self._end is None or self._storing or self._connection_id is None or self._settled:
            return
        self._settled = True
        reason, detail = self._end
        self._around.post(
            ParentClosed(
                now_ns=self._around.clock.now_ns(),
                connection_id=self._connection_id,
                reason=reason,
                detail=detail,
            )
        )
        self._on_closed(self)

    # ------------------------------------------------------------ never as a child

    def piece_sent(self, job: PieceJob) -> None:
        """A child sends no pieces."""
        raise AssertionError(job)

    def piece_unreadable(self, job: PieceJob, detail: str) -> None:
        """A child sends no pieces."""
        raise AssertionError(job, detail)
