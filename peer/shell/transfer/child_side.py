"""The child's side of connections: asks parents for pieces, receives, verifies and writes them.

Carries out `Connect`, `Disconnect`, `OpenChannel`, `CloseChannel`, `FetchPiece` and `CancelFetch`;
every one that has an answer gets exactly one. Whom to ask for what is the core's decision.
"""

import asyncio
import ssl
from collections.abc import Callable
from functools import partial
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
    ParentClosed,
    ParentConnected,
    ParentConnectFailed,
    PieceRecord,
)
from peer.shell.buffers import BufferPool
from peer.shell.store.errors import StoreError
from peer.shell.transfer import sockets as net
from peer.shell.transfer.parent_connection import Arrival, NotGreetedError, ParentConnection
from peer.shell.transfer.socket_channel import Channel
from shoal.runtime.clock import Clock
from shoal.runtime.tasks import Offload, Supervisor
from shoal.runtime.tls import common_name
from shoal.runtime.turns import Turns
from shoal.wire import frames
from shoal.wire.control import Address
from shoal.wire.errors import Reason
from shoal.wire.ids import ConnectionId, HostId, LeaseNumber, RequestId, TaskId
from shoal.wire.piece_digest import piece_digest
from shoal.wire.proof import swarm_proof

CONNECT_TIMEOUT_S: Final = 3.0


class PieceStore(Protocol):
    """The part of the content store that receiving needs."""

    def write_piece(
        self, task_id: TaskId, piece: int, epoch: int, data: memoryview, record: PieceRecord
    ) -> None:
        """Writes a verified piece. Raises StoreError."""
        ...


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
        self._connections: dict[ConnectionId, ParentConnection] = {}
        self._of_request: dict[RequestId, ParentConnection] = {}

    # ------------------------------------------------------------ connections

    def connect(self, effect: Connect) -> None:
        """Answered by `ParentConnected` or `ParentConnectFailed`."""
        self.supervisor.spawn(self._connect(effect), f"connect {effect.host_id}")

    async def _connect(self, effect: Connect) -> None:
        reason, detail = Reason.PEER_LOST, "the host told no address"
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                connection = await net.race(
                    [partial(self._greet, effect, address) for address in effect.addresses],
                    failures=(OSError, NotGreetedError),
                    discard=lambda late: late.close(Reason.CANCELLED, "another one was faster"),
                )
        except TimeoutError:
            reason, detail = Reason.PEER_STALLED, f"no answer in {CONNECT_TIMEOUT_S:.0f} s"
        except NotGreetedError as error:
            reason, detail = error.reason, str(error)
        except OSError as error:
            detail = error.strerror or str(error)
        else:
            if connection.open:
                self._connected(connection)
                return
            # Lost between its hello and this turn of the loop: nobody would tell of its end.
            reason, detail = connection.end_reason, "closed right after hello"
        self.post(
            ParentConnectFailed(
                now_ns=self.clock.now_ns(), host_id=effect.host_id, reason=reason, detail=detail
            )
        )

    def _connected(self, connection: ParentConnection) -> None:
        self._connections[connection.connection_id] = connection
        now_ns = self.clock.now_ns()
        self.post(
            ParentConnected(
                now_ns=now_ns,
                host_id=connection.host_id,
                connection_id=connection.connection_id,
                round_trip_ns=now_ns - connection.started_ns,
            )
        )

    async def _greet(self, effect: Connect, address: Address) -> ParentConnection:
        """Connects to one address and waits for the right hello. Raises OSError and
        NotGreetedError; the socket is closed then, and when it is cancelled."""
        sock = await net.connect((address.ip, address.port))
        connection = ParentConnection(self, effect.host_id, self.clock.now_ns())
        try:
            if self._ssl_context is not None:
                sock = secured = await net.start_tls(
                    sock, self._ssl_context, server_side=False, server_name=None
                )
                proven = common_name(secured)
                if proven != effect.host_id:
                    raise NotGreetedError(Reason.PEER_PROTOCOL, f"its certificate is of {proven!r}")
            channel = Channel(
                sock,
                upload_turns=None,
                on_readable=connection.receiver.readable,
                on_closed=connection.on_closed,
            )
            connection.start(channel)
            await connection.greeted
        except BaseException:
            connection.greeted.cancel()
            connection.close(Reason.CANCELLED, "given up")
            sock.close()
            raise
        return connection

    def disconnect(self, effect: Disconnect) -> None:
        """Answered by the ends of its requests, then `ParentClosed`."""
        connection = self._connections.get(effect.connection_id)
        if connection is not None:
            connection.close(Reason.CANCELLED, "no longer needed")

    def closed(self, connection: ParentConnection, detail: str) -> None:
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

    def keep(self, arrival: Arrival) -> None:
        """Verifies and writes a piece beside the loop, then ends its request."""
        self._offload.start(partial(self._kept, arrival), self._verify_and_write, arrival)

    def _kept(self, arrival: Arrival, right: bool | None, error: BaseException | None) -> None:
        effect, header = arrival.effect, arrival.header
        arrival.buffer.release()
        reason: Reason | None = None
        detail = ""
        if isinstance(error, StoreError):
            reason, detail = error.reason, str(error)
        elif error is not None:
            self.supervisor.fail(error)
            return
        elif not right:
            reason = Reason.PEER_CORRUPT
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

    def _verify_and_write(self, arrival: Arrival) -> bool:
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
