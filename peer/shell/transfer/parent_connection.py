"""One connection to a parent: frames become events, requests become frames, pieces find buffers.

Belongs to `ParentConnections`, which finds it by its id and keeps what arrived. Whom to ask for
what is the core's decision.
"""

import asyncio
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from peer.core.effects import FetchPiece
from peer.core.events import (
    ParentActive,
    ParentHave,
    ParentOpened,
    ParentRefused,
    ParentWithdrew,
)
from peer.shell.buffers import PieceBuffer
from peer.shell.transfer.frame_receiver import PayloadTarget, Receiver
from peer.shell.transfer.socket_channel import Channel
from shoal.wire import bitfield, frames
from shoal.wire.errors import ProtocolError, Reason
from shoal.wire.ids import HostId, RequestId, TaskId
from shoal.wire.limits import MILLISECOND_NS, REQUESTS_PER_FRAME_MAX

if TYPE_CHECKING:
    from peer.shell.transfer.child_side import ParentConnections

ACTIVE_INTERVAL_NS: Final = 500 * MILLISECOND_NS
CANCELLED_MAX: Final = 1024
"""Cancelled requests whose answer is still awaited, per connection."""

PARENTS_WORD: Final = {
    Reason.NOT_HELD: Reason.NOT_HELD,
    Reason.UNKNOWN_TASK: Reason.UNKNOWN_TASK,
    Reason.UNAUTHORIZED: Reason.UNAUTHORIZED,
    Reason.OVERLOADED: Reason.NOT_HELD,
    Reason.SHUTTING_DOWN: Reason.NOT_HELD,
    Reason.PEER_REFUSED: Reason.NOT_HELD,
}
"""What a parent may give as the reason of a `Reject`, and what it comes to: not from there. Any
other one is a breach of the protocol; passed on, it would be taken for a failure of this host."""


class NotGreetedError(Exception):
    """The connection ended before the parent had said a right hello."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Arrival:
    """A piece on its way into a buffer."""

    def __init__(
        self,
        effect: FetchPiece,
        header: frames.Piece,
        buffer: PieceBuffer,
        on_finished: Callable[["Arrival"], None],
    ) -> None:
        self.effect = effect
        self.header = header
        self.buffer = buffer
        self.view = buffer.view
        self._on_finished = on_finished
        self.whole = False

    def finished(self) -> None:
        """All bytes are there."""
        self.whole = True
        self._on_finished(self)


class ParentConnection:
    """One connection to a parent."""

    def __init__(self, owner: "ParentConnections", host_id: HostId, started_ns: int) -> None:
        self.owner = owner
        self.host_id = host_id
        self.connection_id = owner.next_connection_id()
        self.started_ns = started_ns
        self.nonce: bytes | None = None
        self.channel: Channel | None = None
        self.tasks: dict[int, tuple[TaskId, int]] = {}
        """Task and bound of piece numbers by channel number."""
        self.numbers: dict[TaskId, int] = {}
        self.requests: dict[int, FetchPiece] = {}
        self.cancelled: dict[int, None] = {}
        self.arrivals: dict[int, Arrival] = {}
        self.arriving: Arrival | None = None
        self.outgoing: dict[tuple[int, bool], list[tuple[int, int]]] = {}
        """Requests of this turn by channel number and whether they are standing ones."""
        self.cancels: list[int] = []
        self.flush_planned = False
        self.end_reason = Reason.PEER_LOST
        self.next_number = 0
        self.greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.receiver = Receiver(
            on_frame=self.on_frame,
            on_error=self.on_protocol_error,
            download_turns=owner.download_turns,
            on_activity=self.on_activity,
        )
        self.told_active_ns = started_ns

    def start(self, channel: Channel) -> None:
        self.channel = channel
        self.receiver.channel = channel
        hello = frames.Hello(
            frames.PEER_VERSION_MIN,
            frames.PEER_VERSION_MAX,
            self.owner.host_id,
            secrets.token_bytes(frames.NONCE_BYTES),
        )
        channel.send_frame(frames.encode(hello))
        channel.start_reading()

    @property
    def open(self) -> bool:
        """Whether it stands."""
        return self.channel is not None and not self.channel.closed

    def send(self, frame: frames.Frame) -> None:
        if self.channel is not None:
            self.channel.send_frame(frames.encode(frame))

    def close(self, reason: Reason, detail: str) -> None:
        self.end_reason = reason
        if self.channel is not None:
            self.channel.close(detail)

    # ------------------------------------------------------------ frames

    def on_protocol_error(self, error: ProtocolError) -> None:
        self.close(Reason.PEER_PROTOCOL, str(error))

    def on_frame(self, frame: frames.Frame) -> PayloadTarget | None:
        if isinstance(frame, frames.Hello):
            self.on_hello(frame)
            return None
        if self.nonce is None:
            raise ProtocolError("a frame before hello")
        match frame:
            case frames.Piece():
                return self.on_piece(frame)
            case frames.Have() | frames.Withdraw() | frames.Opened() | frames.Refused():
                self.on_news(frame)
            case frames.Busy():
                self.end_request(frame.request_id, Reason.PEER_BUSY, frame.retry_after_ms)
            case frames.Reject():
                self.end_request(
                    frame.request_id, PARENTS_WORD.get(frame.reason, Reason.PEER_PROTOCOL)
                )
            case _:
                raise ProtocolError(f"{type(frame).__name__} from a parent")
        return None

    def on_hello(self, hello: frames.Hello) -> None:
        if self.nonce is not None:
            raise ProtocolError("a second hello")
        if hello.host_id != self.host_id:
            raise ProtocolError(f"host {hello.host_id} answered instead of {self.host_id}")
        if hello.version_max < frames.PEER_VERSION_MIN or (
            hello.version_min > frames.PEER_VERSION_MAX
        ):
            raise ProtocolError(
                f"it speaks versions {hello.version_min} to {hello.version_max}, we "
                f"{frames.PEER_VERSION_MIN} to {frames.PEER_VERSION_MAX}"
            )
        self.nonce = hello.nonce
        if not self.greeted.done():
            self.greeted.set_result(None)

    def on_news(
        self, frame: frames.Have | frames.Withdraw | frames.Opened | frames.Refused
    ) -> None:
        known = self.tasks.get(frame.channel)
        if known is None:
            return  # News of a channel that was closed meanwhile.
        task_id, bound = known
        now_ns = self.owner.clock.now_ns()
        match frame:
            case frames.Have():
                self.owner.post(
                    ParentHave(
                        now_ns=now_ns,
                        connection_id=self.connection_id,
                        task_id=task_id,
                        new=bitfield.from_ranges(frame.ranges, bound),
                    )
                )
            case frames.Withdraw():
                self.owner.post(
                    ParentWithdrew(
                        now_ns=now_ns,
                        connection_id=self.connection_id,
                        task_id=task_id,
                        gone=bitfield.from_ranges(frame.ranges, bound),
                    )
                )
            case frames.Opened():
                self.owner.post(
                    ParentOpened(
                        now_ns=now_ns,
                        connection_id=self.connection_id,
                        task_id=task_id,
                        epoch=frame.epoch,
                        held=bitfield.from_bytes(frame.bitmap, bound),
                    )
                )
            case frames.Refused():
                self.forget_channel(task_id)
                self.owner.post(
                    ParentRefused(
                        now_ns=now_ns,
                        connection_id=self.connection_id,
                        task_id=task_id,
                        reason=frame.reason,
                    )
                )

    def forget_channel(self, task_id: TaskId) -> None:
        number = self.numbers.pop(task_id, None)
        if number is not None:
            del self.tasks[number]

    def on_activity(self) -> None:
        """Payload came and its piece is not whole yet: a slow parent is not a stalled one."""
        now_ns = self.owner.clock.now_ns()
        if now_ns - self.told_active_ns >= ACTIVE_INTERVAL_NS:
            self.told_active_ns = now_ns
            self.owner.post(ParentActive(now_ns=now_ns, connection_id=self.connection_id))

    def end_request(self, number: int, reason: Reason, retry_after_ms: int = 0) -> None:
        if self.cancelled.pop(number, 0) is None:
            return
        effect = self.requests.pop(number, None)
        if effect is None or number in self.arrivals:
            raise ProtocolError(f"an answer to request {number}, which is not open")
        self.owner.end(effect.request_id, reason, retry_after_ms=retry_after_ms)

    # ------------------------------------------------------------ pieces

    def on_piece(self, header: frames.Piece) -> PayloadTarget | None:
        if self.cancelled.pop(header.request_id, 0) is None:
            return None  # It was on its way already: read and dropped.
        effect = self.requests.get(header.request_id)
        if effect is None or header.request_id in self.arrivals:
            raise ProtocolError(f"a piece for request {header.request_id}, which is not open")
        if header.length_bytes != effect.length_bytes:
            raise ProtocolError(
                f"piece {effect.piece} has {effect.length_bytes} bytes, not {header.length_bytes}"
            )
        refusal = None
        if header.epoch != effect.epoch and (header.epoch or not effect.provisional):
            refusal = Reason.NOT_HELD
        elif effect.expected and header.digest != effect.expected:
            refusal = Reason.PEER_CONTRADICTED
        if refusal is not None:
            del self.requests[header.request_id]
            self.owner.end(effect.request_id, refusal)
            return None
        buffer = self.owner.buffers.try_acquire(header.length_bytes)
        if buffer is not None:
            return self.arrive(effect, header, buffer)
        self.receiver.hold()
        self.owner.supervisor.spawn(self.wait_for_buffer(effect, header), "piece buffer")
        return None

    def arrive(
        self, effect: FetchPiece, header: frames.Piece, buffer: PieceBuffer
    ) -> PayloadTarget:
        arrival = Arrival(effect, header, buffer, self.on_arrived)
        self.arrivals[header.request_id] = arrival
        return arrival

    async def wait_for_buffer(self, effect: FetchPiece, header: frames.Piece) -> None:
        buffer = await self.owner.buffers.acquire(header.length_bytes)
        channel = self.channel
        gone = channel is None or channel.closed
        if gone or header.request_id not in self.requests:
            buffer.release()
            if not gone:
                self.cancelled.pop(header.request_id, None)
                self.receiver.go_on(None)
            return
        self.receiver.go_on(self.arrive(effect, header, buffer))

    def on_arrived(self, arrival: Arrival) -> None:
        del self.arrivals[arrival.header.request_id]
        if self.requests.pop(arrival.header.request_id, None) is None:
            self.cancelled.pop(arrival.header.request_id, None)
            arrival.buffer.release()
            return
        self.owner.keep(arrival)

    # ------------------------------------------------------------ requests

    def request(self, effect: FetchPiece, number: int) -> None:
        self.requests[effect.request_id] = effect
        requests = self.outgoing.setdefault((number, effect.wait), [])
        requests.append((effect.request_id, effect.piece))
        self.plan_flush()

    def cancel(self, request_id: RequestId) -> bool:
        effect = self.requests.pop(request_id, None)
        if effect is None:
            return False
        number = self.numbers.get(effect.task_id)
        unsent = self.outgoing.get((number, effect.wait), []) if number is not None else []
        pair = (int(effect.request_id), effect.piece)
        if pair in unsent:
            unsent.remove(pair)
        else:
            self.cancelled[request_id] = None
            if len(self.cancelled) > CANCELLED_MAX:
                self.close(Reason.PEER_STALLED, "does not answer cancelled requests")
                return True
            if request_id not in self.arrivals:
                self.cancels.append(request_id)
                self.plan_flush()
        return True

    def plan_flush(self) -> None:
        if not self.flush_planned:
            self.flush_planned = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Requests of one turn of the loop share a frame."""
        self.flush_planned = False
        for (number, wait), requests in self.outgoing.items():
            for start in range(0, len(requests), REQUESTS_PER_FRAME_MAX):
                part = tuple(requests[start : start + REQUESTS_PER_FRAME_MAX])
                self.send(frames.Request(number, part, wait))
        self.outgoing.clear()
        for start in range(0, len(self.cancels), REQUESTS_PER_FRAME_MAX):
            self.send(frames.Cancel(tuple(self.cancels[start : start + REQUESTS_PER_FRAME_MAX])))
        self.cancels.clear()

    def on_closed(self, detail: str) -> None:
        self.receiver.stop()
        if not self.greeted.done():
            reason = self.end_reason
            self.greeted.set_exception(NotGreetedError(reason, detail))
            return
        for arrival in self.arrivals.values():
            arrival.buffer.release()
        self.arrivals.clear()
        for effect in list(self.requests.values()):
            self.owner.end(effect.request_id, Reason.PEER_LOST)
        self.requests.clear()
        self.owner.closed(self, detail)
