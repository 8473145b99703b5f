"""The child's side of connections: asks parents for pieces, receives, verifies and writes them.

Carries out `Connect`, `Disconnect`, `OpenChannel`, `CloseChannel`, `FetchPiece` and `CancelFetch`;
every one that has an answer gets exactly one. Whom to ask for what is the core's decision.
"""

import asyncio
import secrets
import ssl
from collections.abc import Callable
from typing import Final, Protocol

from peer.core.effects import (
    CancelFetch,
    CloseChannel,
    Connect,
    Disconnect,
    FetchPiece,
    OpenChannel,
)
from peer.core.events import (
    AnyEvent,
    FetchEnded,
    ParentActive,
    ParentClosed,
    ParentConnected,
    ParentConnectFailed,
    ParentHave,
    ParentOpened,
    ParentRefused,
    ParentWithdrew,
    PieceRecord,
)
from peer.shell.buffers import BufferPool, PieceBuffer
from peer.shell.store.errors import StoreError
from peer.shell.transfer import sockets as net
from peer.shell.transfer.frame_receiver import PayloadTarget, Receiver
from peer.shell.transfer.socket_channel import Channel
from shoal.runtime.clock import Clock
from shoal.runtime.tasks import Offload, Supervisor
from shoal.runtime.tls import common_name
from shoal.runtime.turns import Turns
from shoal.wire import bitfield, frames
from shoal.wire.digest import piece_digest, swarm_proof
from shoal.wire.errors import ProtocolError, Reason
from shoal.wire.ids import ConnectionId, HostId, LeaseNumber, RequestId, TaskId
from shoal.wire.limits import MILLISECOND_NS, REQUESTS_PER_FRAME_MAX

CONNECT_TIMEOUT_S: Final = 3.0
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


class PieceStore(Protocol):
    """The part of the content store that receiving needs."""

    def write_piece(
        self, task_id: TaskId, piece: int, epoch: int, data: memoryview, record: PieceRecord
    ) -> None:
        """Writes a verified piece. Raises StoreError."""
        ...


class _Arrival:
    """A piece on its way into a buffer."""

    def __init__(
        self,
        effect: FetchPiece,
        header: frames.Piece,
        buffer: PieceBuffer,
        on_finished: Callable[["_Arrival"], None],
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


class _ParentConnection:
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
        self.arrivals: dict[int, _Arrival] = {}
        self.arriving: _Arrival | None = None
        self.outgoing: dict[int, list[tuple[int, int]]] = {}
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
        arrival = _Arrival(effect, header, buffer, self.on_arrived)
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

    def on_arrived(self, arrival: _Arrival) -> None:
        del self.arrivals[arrival.header.request_id]
        if self.requests.pop(arrival.header.request_id, None) is None:
            self.cancelled.pop(arrival.header.request_id, None)
            arrival.buffer.release()
            return
        self.owner.supervisor.spawn(self.owner.keep(arrival), "keep piece")

    # ------------------------------------------------------------ requests

    def request(self, effect: FetchPiece, number: int) -> None:
        self.requests[effect.request_id] = effect
        self.outgoing.setdefault(number, []).append((effect.request_id, effect.piece))
        self.plan_flush()

    def cancel(self, request_id: RequestId) -> bool:
        effect = self.requests.pop(request_id, None)
        if effect is None:
            return False
        number = self.numbers.get(effect.task_id)
        unsent = self.outgoing.get(number, []) if number is not None else []
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
        for number, requests in self.outgoing.items():
            for start in range(0, len(requests), REQUESTS_PER_FRAME_MAX):
                part = tuple(requests[start : start + REQUESTS_PER_FRAME_MAX])
                self.send(frames.Request(number, part))
        self.outgoing.clear()
        for start in range(0, len(self.cancels), REQUESTS_PER_FRAME_MAX):
            self.send(frames.Cancel(tuple(self.cancels[start : start + REQUESTS_PER_FRAME_MAX])))
        self.cancels.clear()

    def on_closed(self, detail: str) -> None:
        self.receiver.stop()
        if not self.greeted.done():
            reason = self.end_reason
            self.greeted.set_exception(_NotGreeted(reason, detail))
            return
        for arrival in self.arrivals.values():
            arrival.buffer.release()
        self.arrivals.clear()
        for effect in list(self.requests.values()):
            self.owner.end(effect.request_id, Reason.PEER_LOST)
        self.requests.clear()
        self.owner.closed(self, detail)


class _NotGreeted(Exception):
    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class ParentConnections:
    """Connections to parents."""

    def __init__(
        self,
        *,
        host_id: HostId,
        store: PieceStore,
        buffers: BufferPool,
        offload: Offload,
        download_turns: Turns | None,
        clock: Clock,
        post: Callable[[AnyEvent], None],
        supervisor: Supervisor,
        next_connection_id: Callable[[], ConnectionId],
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self.host_id = host_id
        self.buffers = buffers
        self.download_turns = download_turns
        self.clock = clock
        self.post = post
        self.supervisor = supervisor
        self.next_connection_id = next_connection_id
        self.received_bytes = 0
        self._store = store
        self._offload = offload
        self._ssl_context = ssl_context
        self._connections: dict[ConnectionId, _ParentConnection] = {}
        self._of_request: dict[RequestId, _ParentConnection] = {}

    # ------------------------------------------------------------ connections

    def connect(self, effect: Connect) -> None:
        """Answered by `ParentConnected` or `ParentConnectFailed`."""
        self.supervisor.spawn(self._connect(effect), f"connect {effect.host_id}")

    async def _connect(self, effect: Connect) -> None:
        connection = _ParentConnection(self, effect.host_id, self.clock.now_ns())
        reason, detail = Reason.PEER_LOST, "no address"
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._greet(connection, effect)
        except TimeoutError:
            reason, detail = Reason.PEER_STALLED, f"no answer in {CONNECT_TIMEOUT_S:.0f} s"
        except _NotGreeted as error:
            reason, detail = error.reason, str(error)
        except OSError as error:
            detail = error.strerror or type(error).__name__
        except asyncio.CancelledError:
            # The daemon stops: nobody is told, but the socket must not stay open.
            connection.greeted.cancel()
            connection.close(Reason.SHUTTING_DOWN, "stopping")
            raise
        else:
            self._connections[connection.connection_id] = connection
            now_ns = self.clock.now_ns()
            self.post(
                ParentConnected(
                    now_ns=now_ns,
                    host_id=effect.host_id,
                    connection_id=connection.connection_id,
                    round_trip_ns=now_ns - connection.started_ns,
                )
            )
            return
        connection.greeted.cancel()
        if connection.channel is not None and not connection.channel.closed:
            connection.channel.close(detail)
        self.post(
            ParentConnectFailed(
                now_ns=self.clock.now_ns(), host_id=effect.host_id, reason=reason, detail=detail
            )
        )

    async def _greet(self, connection: _ParentConnection, effect: Connect) -> None:
        if not effect.addresses:
            raise OSError("the host told no address")
        sock = await net.connect_any(
            tuple((address.ip, address.port) for address in effect.addresses)
        )
        connection.started_ns = self.clock.now_ns()
        if self._ssl_context is not None:
            secured = await net.start_tls(
                sock, self._ssl_context, server_side=False, server_name=None
            )
            proven = common_name(secured)
            if proven != effect.host_id:
                secured.close()
                raise _NotGreeted(Reason.PEER_PROTOCOL, f"its certificate is of {proven!r}")
            sock = secured
        channel = Channel(
            sock,
            upload_turns=None,
            on_readable=connection.receiver.readable,
            on_closed=connection.on_closed,
        )
        connection.start(channel)
        await connection.greeted
        if channel.closed:
            # Lost between its hello and this turn of the loop: nobody would tell of its end.
            raise _NotGreeted(connection.end_reason, "closed right after hello")

    def disconnect(self, effect: Disconnect) -> None:
        """Answered by the ends of its requests, then `ParentClosed`."""
        connection = self._connections.get(effect.connection_id)
        if connection is not None:
            connection.close(Reason.CANCELLED, "no longer needed")

    def closed(self, connection: _ParentConnection, detail: str) -> None:
        """A connection ended."""
        if self._connections.pop(connection.connection_id, None) is not None:
            self.post(
                ParentClosed(
                    now_ns=self.clock.now_ns(),
                    connection_id=connection.connection_id,
                    reason=connection.end_reason,
                    detail=detail,
                )
            )

    # ------------------------------------------------------------ channels

    def open_channel(self, effect: OpenChannel) -> None:
        """Answered by `ParentOpened` or `ParentRefused`."""
        connection = self._connections.get(effect.connection_id)
        if connection is None:
            return
        assert connection.nonce is not None
        connection.forget_channel(effect.task_id)
        connection.next_number += 1
        number = connection.next_number
        connection.tasks[number] = (effect.task_id, effect.piece_count_max)
        connection.numbers[effect.task_id] = number
        proof = swarm_proof(effect.token, connection.nonce, self.host_id, effect.task_id)
        connection.send(frames.Open(number, effect.task_id, proof))

    def close_channel(self, effect: CloseChannel) -> None:
        """Has no answer."""
        connection = self._connections.get(effect.connection_id)
        if connection is None:
            return
        number = connection.numbers.get(effect.task_id)
        if number is not None:
            connection.forget_channel(effect.task_id)
            connection.send(frames.Close(number))

    # ------------------------------------------------------------ pieces

    def fetch(self, effect: FetchPiece) -> None:
        """Answered by `FetchEnded`."""
        connection = self._connections.get(effect.connection_id)
        number = None if connection is None else connection.numbers.get(effect.task_id)
        if connection is None or number is None:
            self.end_soon(effect.request_id, Reason.PEER_LOST)
            return
        self._of_request[effect.request_id] = connection
        connection.request(effect, number)

    def cancel(self, effect: CancelFetch) -> None:
        """The request ends as cancelled at once; a late piece is read and dropped."""
        connection = self._of_request.get(effect.request_id)
        if connection is not None and connection.cancel(effect.request_id):
            self.end_soon(effect.request_id, Reason.CANCELLED)

    def end_soon(self, request_id: RequestId, reason: Reason) -> None:
        """Ends a request from within the core's own turn."""
        asyncio.get_running_loop().call_soon(self.end, request_id, reason)

    def end(self, request_id: RequestId, reason: Reason, *, retry_after_ms: int = 0) -> None:
        """The one end of a request that brought no piece."""
        self._of_request.pop(request_id, None)
        self.post(
            FetchEnded(
                now_ns=self.clock.now_ns(),
                request_id=request_id,
                reason=reason,
                retry_after_ms=retry_after_ms,
            )
        )

    async def keep(self, arrival: _Arrival) -> None:
        """Verifies and writes a piece beside the loop, then ends its request."""
        effect, header = arrival.effect, arrival.header
        reason: Reason | None = None
        detail = ""
        try:
            right = await self._offload(self._verify_and_write, arrival)
            reason = None if right else Reason.PEER_CORRUPT
        except StoreError as error:
            reason, detail = error.reason, str(error)
        finally:
            arrival.buffer.release()
        self.received_bytes += effect.length_bytes
        self._of_request.pop(effect.request_id, None)
        self.post(
            FetchEnded(
                now_ns=self.clock.now_ns(),
                request_id=effect.request_id,
                reason=reason,
                digest=header.digest,
                lease_number=LeaseNumber(header.lease_number),
                epoch=header.epoch,
                detail=detail,
            )
        )

    def _verify_and_write(self, arrival: _Arrival) -> bool:
        effect, header = arrival.effect, arrival.header
        if piece_digest(effect.algorithm, arrival.view) != header.digest:
            return False
        record = PieceRecord(header.digest, LeaseNumber(header.lease_number), read_here=False)
        self._store.write_piece(effect.task_id, effect.piece, effect.epoch, arrival.view, record)
        return True

    async def close(self) -> None:
        """Closes every connection."""
        for connection in list(self._connections.values()):
            connection.close(Reason.SHUTTING_DOWN, "stopping")
