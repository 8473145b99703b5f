"""The parent's side: listens, and sends pieces straight from the page cache.

Carries out `AcceptChild`, `RefuseChild`, `Announce`, `Withdraw`, `ServePiece`, `SendBusy`,
`SendReject` and `DropChild`; a `ServePiece` is answered by exactly one `ServeEnded`. Who may have
what, and whose turn it is, is the core's decision.
"""

import asyncio
import secrets
import socket
import ssl
from collections.abc import Callable
from typing import Final, Protocol

from peer.core.effects import (
    AcceptChild,
    Announce,
    DropChild,
    RefuseChild,
    SendBusy,
    SendReject,
    ServePiece,
    Withdraw,
)
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
from peer.shell.transfer import sockets as net
from peer.shell.transfer.frame_receiver import Receiver
from peer.shell.transfer.socket_channel import Channel, Lent, OutgoingPiece
from shoal.runtime.clock import Clock
from shoal.runtime.tasks import Supervisor
from shoal.runtime.tls import common_name
from shoal.runtime.turns import Turns
from shoal.wire import bitfield, frames
from shoal.wire.control import Address
from shoal.wire.errors import ProtocolError, Reason
from shoal.wire.ids import ConnectionId, HostId, TaskId

HELLO_TIMEOUT_S: Final = 5.0
CONNECTIONS_MAX: Final = 2048
CHANNELS_MAX: Final = 10_000
ACCEPT_PAUSE_S: Final = 0.1
"""After a failed accept (no file descriptors): a pause rather than a busy loop."""


class LendingStore(Protocol):
    """The part of the content store that sending needs."""

    def lend(self, task_id: TaskId) -> Lent:
        """A file to send from. Raises StoreError."""
        ...


class _ChildConnection:
    """One connection from a child."""

    def __init__(
        self, port: "PiecePort", connection_id: ConnectionId, proven_name: str | None
    ) -> None:
        self.port = port
        self.proven_name = proven_name
        """What the certificate says, None without TLS."""
        self.connection_id = connection_id
        self.nonce = secrets.token_bytes(frames.NONCE_BYTES)
        self.host_id: HostId | None = None
        self.tasks: dict[int, TaskId] = {}
        self.numbers: dict[TaskId, int] = {}
        self.channel: Channel | None = None
        self.hello_timer: asyncio.TimerHandle | None = None
        self.receiver = Receiver(
            on_frame=self.on_frame, on_error=self.on_protocol_error, download_turns=None
        )

    def start(self, channel: Channel) -> None:
        self.channel = channel
        self.receiver.channel = channel
        self.hello_timer = asyncio.get_running_loop().call_later(
            HELLO_TIMEOUT_S, channel.close, "said nothing"
        )
        channel.start_reading()

    def send(self, frame: frames.Frame) -> None:
        if self.channel is not None:
            self.channel.send_frame(frames.encode(frame))

    def on_protocol_error(self, error: ProtocolError) -> None:
        if self.channel is not None:
            self.channel.close(str(error))

    def on_frame(self, frame: frames.Frame) -> None:
        if isinstance(frame, frames.Hello):
            self.on_hello(frame)
            return
        if self.host_id is None:
            raise ProtocolError("a frame before hello")
        now_ns = self.port.clock.now_ns()
        match frame:
            case frames.Open():
                self.on_open(frame, self.host_id)
            case frames.Close():
                task_id = self.tasks.pop(frame.channel, None)
                if task_id is not None and self.numbers.get(task_id) == frame.channel:
                    del self.numbers[task_id]
                    self.port.post(
                        ChildClosedTask(
                            now_ns=now_ns, connection_id=self.connection_id, task_id=task_id
                        )
                    )
            case frames.Request():
                self.on_request(frame)
            case frames.Cancel():
                self.port.post(
                    ChildCancelled(
                        now_ns=now_ns,
                        connection_id=self.connection_id,
                        requests=frame.request_ids,
                    )
                )
            case _:
                raise ProtocolError(f"{type(frame).__name__} from a child")

    def on_hello(self, hello: frames.Hello) -> None:
        if self.host_id is not None:
            raise ProtocolError("a second hello")
        # Ours is sent in any case: it tells a child of another version what we speak.
        self.send(
            frames.Hello(
                frames.PEER_VERSION_MIN,
                frames.PEER_VERSION_MAX,
                self.port.host_id,
                self.nonce,
            )
        )
        if hello.version_max < frames.PEER_VERSION_MIN or (
            hello.version_min > frames.PEER_VERSION_MAX
        ):
            if self.channel is not None:
                self.channel.send_now()
            raise ProtocolError("no common version")
        if self.proven_name is not None and self.proven_name != hello.host_id:
            raise ProtocolError("it is not the host of its certificate")
        self.host_id = HostId(hello.host_id)
        if self.hello_timer is not None:
            self.hello_timer.cancel()
            self.hello_timer = None

    def on_open(self, frame: frames.Open, host_id: HostId) -> None:
        task_id = TaskId(frame.task_id)
        if frame.channel in self.tasks or len(self.tasks) >= CHANNELS_MAX:
            raise ProtocolError(f"channel {frame.channel} cannot be opened")
        old = self.numbers.pop(task_id, None)
        if old is not None:
            del self.tasks[old]
        self.tasks[frame.channel] = task_id
        self.numbers[task_id] = frame.channel
        self.port.post(
            ChildOpened(
                now_ns=self.port.clock.now_ns(),
                connection_id=self.connection_id,
                host_id=host_id,
                task_id=task_id,
                nonce=self.nonce,
                proof=frame.proof,
            )
        )

    def on_request(self, frame: frames.Request) -> None:
        task_id = self.tasks.get(frame.channel)
        if task_id is None:
            for number, _ in frame.requests:
                self.send(frames.Reject(number, Reason.UNKNOWN_TASK))
            return
        self.port.post(
            ChildRequested(
                now_ns=self.port.clock.now_ns(),
                connection_id=self.connection_id,
                task_id=task_id,
                requests=frame.requests,
                wait=frame.wait,
            )
        )

    def on_closed(self, _detail: str) -> None:
        self.receiver.stop()
        if self.hello_timer is not None:
            self.hello_timer.cancel()
        self.port.closed(self)


class PiecePort:
    """Where children come to."""

    def __init__(
        self,
        *,
        host_id: HostId,
        listen: tuple[tuple[str, int], ...],
        store: LendingStore,
        upload_turns: Turns | None,
        clock: Clock,
        post: Callable[[AnyEvent], None],
        supervisor: Supervisor,
        next_connection_id: Callable[[], ConnectionId],
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self.host_id = host_id
        self.clock = clock
        self.post = post
        self.sent_bytes = 0
        self._listen = listen
        self._store = store
        self._turns = upload_turns
        self._supervisor = supervisor
        self._next_connection_id = next_connection_id
        self._ssl_context = ssl_context
        self._listeners: list[socket.socket] = []
        self._connections: dict[ConnectionId, _ChildConnection] = {}
        self._handshakes = 0

    async def start(self) -> None:
        """Begins to listen. Raises OSError if an address cannot be had."""
        for ip, port in self._listen:
            listener = net.listen(ip, port)
            self._listeners.append(listener)
            self._supervisor.spawn(self._accept(listener), f"piece port {ip}")

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where it listens, with the ports that were picked."""
        return tuple(
            Address(listener.getsockname()[0], listener.getsockname()[1])
            for listener in self._listeners
        )

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError:
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            if len(self._connections) + self._handshakes >= CONNECTIONS_MAX:
                sock.close()
                continue
            net.prepare(sock)
            if self._ssl_context is None:
                self._begin(sock, None)
            else:
                self._supervisor.spawn(self._handshake(sock, self._ssl_context), "tls handshake")

    async def _handshake(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self._handshakes += 1
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                wrapped = await net.start_tls(sock, context, server_side=True, server_name=None)
        except (OSError, TimeoutError):
            return  # A client that cannot shake hands gets nothing, and harms nobody.
        finally:
            self._handshakes -= 1
        self._begin(wrapped, common_name(wrapped))

    def _begin(self, sock: socket.socket, proven_name: str | None) -> None:
        connection = _ChildConnection(self, self._next_connection_id(), proven_name)
        self._connections[connection.connection_id] = connection
        connection.start(
            Channel(
                sock,
                upload_turns=self._turns,
                on_readable=connection.receiver.readable,
                on_closed=connection.on_closed,
            )
        )

    def closed(self, connection: _ChildConnection) -> None:
        """A connection ended."""
        if self._connections.pop(connection.connection_id, None) is not None:
            # Behind the ends of its pieces, which wait for the next turn of the loop too.
            asyncio.get_running_loop().call_soon(self._post_gone, connection.connection_id)

    def _post_gone(self, connection_id: ConnectionId) -> None:
        self.post(ChildGone(now_ns=self.clock.now_ns(), connection_id=connection_id))

    async def close(self) -> None:
        """Stops listening and closes every connection."""
        for listener in self._listeners:
            listener.close()
        for connection in list(self._connections.values()):
            if connection.channel is not None:
                connection.channel.close("stopping")

    # ------------------------------------------------------------ effects

    def _find(
        self, connection_id: ConnectionId, task_id: TaskId
    ) -> tuple[_ChildConnection, int] | None:
        connection = self._connections.get(connection_id)
        number = None if connection is None else connection.numbers.get(task_id)
        if connection is None or number is None:
            return None
        return connection, number

    def accept(self, effect: AcceptChild) -> None:
        """Opens a channel."""
        found = self._find(effect.connection_id, effect.task_id)
        if found is not None:
            connection, number = found
            bitmap = bitfield.to_bytes(effect.held)
            connection.send(frames.Opened(number, effect.epoch, bitmap))

    def refuse(self, effect: RefuseChild) -> None:
        """Closes a channel."""
        found = self._find(effect.connection_id, effect.task_id)
        if found is not None:
            connection, number = found
            del connection.numbers[effect.task_id]
            del connection.tasks[number]
            connection.send(frames.Refused(number, effect.reason))

    def announce(self, effect: Announce) -> None:
        """Tells children of new pieces."""
        self._tell(effect.connection_ids, effect.task_id, effect.new, frames.Have)

    def withdraw(self, effect: Withdraw) -> None:
        """Tells children of pieces that are gone."""
        self._tell(effect.connection_ids, effect.task_id, effect.gone, frames.Withdraw)

    def _tell(
        self,
        connection_ids: tuple[ConnectionId, ...],
        task_id: TaskId,
        mask: int,
        kind: type[frames.Have] | type[frames.Withdraw],
    ) -> None:
        stretches = bitfield.ranges(mask)
        for connection_id in connection_ids:
            found = self._find(connection_id, task_id)
            if found is not None:
                connection, number = found
                for frame in frames.have_frames(number, stretches, kind):
                    connection.send(frame)

    def busy(self, effect: SendBusy) -> None:
        """Answers a request with "not now"."""
        connection = self._connections.get(effect.connection_id)
        if connection is not None:
            connection.send(frames.Busy(effect.child_request, effect.retry_after_ms))

    def reject(self, effect: SendReject) -> None:
        """Answers a request with "not from me"."""
        connection = self._connections.get(effect.connection_id)
        if connection is not None:
            connection.send(frames.Reject(effect.child_request, effect.reason))

    def drop(self, effect: DropChild) -> None:
        """Closes a child's connection."""
        connection = self._connections.get(effect.connection_id)
        if connection is not None and connection.channel is not None:
            channel = connection.channel
            asyncio.get_running_loop().call_soon(channel.close, effect.reason.value)

    def serve(self, effect: ServePiece) -> None:
        """Answered by `ServeEnded`."""
        connection = self._connections.get(effect.connection_id)
        if connection is None or connection.channel is None:
            self._served(effect, Reason.PEER_LOST, "the child is gone")
            return
        try:
            lent = self._store.lend(effect.task_id)
        except StoreError as error:
            connection.send(frames.Reject(effect.child_request, Reason.NOT_HELD))
            self._served(effect, Reason.DISK_FAILED, str(error))
            return
        header = frames.Piece(
            effect.child_request,
            effect.length_bytes,
            effect.record.digest,
            effect.record.lease_number,
            effect.epoch,
        )

        def on_end(reason: Reason | None, detail: str) -> None:
            if reason is None:
                self.sent_bytes += effect.length_bytes
            self._served(effect, reason, detail)

        connection.channel.send_piece(
            OutgoingPiece(
                header=frames.encode(header),
                lent=lent,
                offset_bytes=effect.offset_bytes,
                remaining_bytes=effect.length_bytes,
                on_end=on_end,
            )
        )

    def _served(self, effect: ServePiece, reason: Reason | None, detail: str) -> None:
        # Never from within the core's own turn.
        asyncio.get_running_loop().call_soon(self._post_served, effect, reason, detail)

    def _post_served(self, effect: ServePiece, reason: Reason | None, detail: str) -> None:
        self.post(
            ServeEnded(
                now_ns=self.clock.now_ns(),
                connection_id=effect.connection_id,
                child_request=effect.child_request,
                task_id=effect.task_id,
                piece=effect.piece,
                reason=reason,
                detail=detail,
            )
        )
