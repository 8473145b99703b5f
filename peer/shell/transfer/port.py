"""This host as a parent: the port on which children fetch pieces.

Listens, bounds how many connect, and carries out the core's effects for children. Decides nothing
about who may see or gets what; it only drops children that do not greet, do not read or break the
protocol.
"""

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from typing import Final

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
from peer.core.events import AnyEvent
from peer.shell.transfer.child import ChildLink, Lender, PortSurroundings, serve_ended
from peer.shell.transfer.inbound import SCRATCH_BYTES
from peer.shell.transfer.pacing import Pacer
from peer.shell.transfer.stream import PlainStream, Stream, TlsStream
from shoal.runtime import net
from shoal.runtime.clock import Clock
from shoal.runtime.logs import Log
from shoal.runtime.rates import RateLimiter
from shoal.wire import bitfield, frames
from shoal.wire.control import Address
from shoal.wire.errors import Reason, UsageError
from shoal.wire.ids import ConnectionId, HostId, TaskId

ACCEPTS_PER_TURN: Final = 64
ACCEPT_PAUSE_S: Final = 1.0
"""After the process ran out of descriptors: some may be free again by then."""

SWEEP_INTERVAL_S: Final = 1.0

_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class PiecePort:
    """All connections from children. Made and used on the event loop's thread. Listens on every
    address of `listen` (IP and port; port 0: any free one); `ssl_context` None: plaintext. `post`
    may be called while a method runs, and may call methods."""

    def __init__(
        self,
        *,
        host_id: HostId,
        listen: tuple[tuple[str, int], ...],
        store: Lender,
        upload_limiter: RateLimiter,
        clock: Clock,
        post: Callable[[AnyEvent], None],
        next_connection_id: Callable[[], ConnectionId],
        connections_max: int = 1024,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._listen_on = tuple(Address(ip, port) for ip, port in listen)
        self._loop = loop
        self._clock = clock
        self._post = post
        self._next_connection_id = next_connection_id
        self._connections_max = connections_max
        self._ssl_context = ssl_context
        self._log = Log(__name__)
        self._pacer = Pacer(upload_limiter, loop)
        self._around = PortSurroundings(
            host_id=host_id,
            store=store,
            clock=clock,
            post=post,
            loop=loop,
            # Children send frames alone, and frames are not counted.
            receiving=Pacer(RateLimiter(0, clock), loop),
            sending=self._pacer,
            scratch=memoryview(bytearray(SCRATCH_BYTES)),
        )
        self._listeners: list[socket.socket] = []
        self._links: dict[ConnectionId, ChildLink] = {}
        self._sent_bytes = 0
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._accept_timers: dict[socket.socket, asyncio.TimerHandle] = {}
        self._closed = False

    def __len__(self) -> int:
        """Connections that stand now."""
        return len(self._links)

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where it listens, with the ports that were chosen."""
        return tuple(net.local_address(listener) for listener in self._listeners)

    @property
    def sent_bytes(self) -> int:
        """Payload sent to children since the start."""
        present = sum(link.connection.outbound.sent_bytes for link in self._links.values())
        return self._sent_bytes + present

    async def start(self) -> None:
        """Begins to listen on all addresses. Raises UsageError if one of them cannot be had."""
        try:
            for address in self._listen_on:
                self._listeners.append(net.listen(address))
        except UsageError:
            for listener in self._listeners:
                listener.close()
            self._listeners.clear()
            raise
        for listener in self._listeners:
            self._loop.add_reader(listener.fileno(), self._accept, listener)
        self._plan_sweep()

    async def close(self) -> None:
        """Stops listening and closes every connection. Every effect has its answer then."""
        self._closed = True
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        for timer in self._accept_timers.values():
            timer.cancel()
        for listener in self._listeners:
            self._loop.remove_reader(listener.fileno())
            listener.close()
        self._listeners.clear()
        self._pacer.close()
        for link in list(self._links.values()):
            link.connection.close(Reason.SHUTTING_DOWN, "this host shuts down")

    # ------------------------------------------------------------ effects

    def accept(self, effect: AcceptChild) -> None:
        """Opens a task's channel for a child."""
        link = self._links.get(effect.connection_id)
        if link is not None:
            link.accept(effect)

    def refuse(self, effect: RefuseChild) -> None:
        """Closes a task's channel for a child."""
        link = self._links.get(effect.connection_id)
        if link is not None:
            link.refuse(effect)

    def announce(self, effect: Announce) -> None:
        """Tells children of new pieces."""
        self._tell(frames.Have, effect.task_id, effect.new, effect.connection_ids)

    def withdraw(self, effect: Withdraw) -> None:
        """Tells children of pieces that are no longer held."""
        self._tell(frames.Withdraw, effect.task_id, effect.gone, effect.connection_ids)

    def _tell(
        self,
        kind: type[frames.Have] | type[frames.Withdraw],
        task_id: TaskId,
        mask: int,
        connection_ids: tuple[ConnectionId, ...],
    ) -> None:
        stretches = bitfield.ranges(mask)
        encoded: dict[int, list[bytes]] = {}
        for connection_id in connection_ids:
            link = self._links.get(connection_id)
            if link is not None:
                link.tell(kind, task_id, stretches, encoded)

    def serve(self, effect: ServePiece) -> None:
        """Sends a piece; `ServeEnded` is the end, also for a child that is gone."""
        link = self._links.get(effect.connection_id)
        if link is not None:
            link.serve(effect)
        else:
            self._post(serve_ended(self._clock, effect, Reason.PEER_LOST, "the child is gone"))

    def busy(self, effect: SendBusy) -> None:
        """Tells a child to ask again later."""
        link = self._links.get(effect.connection_id)
        if link is not None:
            link.busy(effect)

    def reject(self, effect: SendReject) -> None:
        """Tells a child that it will not get a piece here."""
        link = self._links.get(effect.connection_id)
        if link is not None:
            link.reject(effect)

    def drop(self, effect: DropChild) -> None:
        """Closes a child's connection."""
        link = self._links.get(effect.connection_id)
        if link is not None:
            link.connection.close(effect.reason, "dropped by this host")

    # ------------------------------------------------------------ connections

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                accepted, _ = listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._pause_accepting(listener, error)
                    return
                continue  # That one connection died while it waited.
            if len(self._links) >= self._connections_max:
                accepted.close()
                self._log.warning("too many children", limit=self._connections_max)
            else:
                self._welcome(accepted)

    def _pause_accepting(self, listener: socket.socket, error: OSError) -> None:
        self._log.warning(
            "cannot accept children: raise the limit of open files (LimitNOFILE)",
            error=net.why(error),
        )
        self._loop.remove_reader(listener.fileno())
        self._accept_timers[listener] = self._loop.call_later(
            ACCEPT_PAUSE_S, self._resume_accepting, listener
        )

    def _resume_accepting(self, listener: socket.socket) -> None:
        del self._accept_timers[listener]
        self._loop.add_reader(listener.fileno(), self._accept, listener)

    def _welcome(self, accepted: socket.socket) -> None:
        try:
            accepted.settimeout(0)
            net.tune(accepted)
            stream: Stream
            if self._ssl_context is None:
                stream = PlainStream(accepted)
            else:
                stream = TlsStream(accepted, self._ssl_context, server_side=True)
        except OSError as error:
            accepted.close()
            self._log.debug("a child was gone at once", error=net.why(error))
            return
        connection_id = self._next_connection_id()
        link = ChildLink(connection_id, stream, self._around, self._gone)
        self._links[connection_id] = link
        link.connection.start()

    def _gone(self, link: ChildLink, reason: Reason, detail: str) -> None:
        self._sent_bytes += link.connection.outbound.sent_bytes
        del self._links[link.connection_id]
        if reason in (Reason.PEER_LOST, Reason.SHUTTING_DOWN):
            return
        self._log.info("child dropped", host=link.host_id, reason=reason.value, detail=detail)

    def _plan_sweep(self) -> None:
        self._sweep_timer = self._loop.call_later(SWEEP_INTERVAL_S, self._sweep)

    def _sweep(self) -> None:
        self.look_after()
        self._plan_sweep()

    def look_after(self) -> None:
        """Drops children that did not greet in time or take nothing of what is sent. Runs by
        itself every second."""
        for link in list(self._links.values()):
            link.look_after()
