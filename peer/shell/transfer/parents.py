"""This host as a child: its connections to parents, and the pieces that come over them.

Carries out the core's `Connect`, `Disconnect`, `OpenChannel`, `CloseChannel`, `FetchPiece` and
`CancelFetch`, each of which is answered as its text says, whatever happens. Decides nothing.
"""

import asyncio
import ssl
from collections.abc import Callable
from typing import Final

from peer.core.effects import (
    CancelFetch,
    CloseChannel,
    Connect,
    Disconnect,
    FetchPiece,
    OpenChannel,
)
from peer.core.events import AnyEvent, FetchEnded, ParentConnected, ParentConnectFailed
from peer.shell.buffers import BufferPool
from peer.shell.transfer.dialing import Dialer
from peer.shell.transfer.inbound import SCRATCH_BYTES
from peer.shell.transfer.pacing import Pacer
from peer.shell.transfer.parent import ParentLink, Surroundings
from peer.shell.transfer.storing import PieceSink
from peer.shell.transfer.stream import StreamLost
from shoal.runtime.clock import Clock
from shoal.runtime.rates import RateLimiter
from shoal.runtime.tasks import Offload, Running, Supervisor
from shoal.wire.errors import Reason
from shoal.wire.ids import ConnectionId, HostId

CLOSE_TIMEOUT_S: Final = 10.0
"""Pieces being stored when the daemon ends get so long to end."""


class ParentConnections:
    """All connections to parents. Made and used on the event loop's thread. `next_connection_id`
    is shared with the piece port, so that no number is used twice; `post` may be called while a
    method runs, and may call methods. Close it before its supervisor. `ssl_context` None:
    plaintext."""

    def __init__(
        self,
        *,
        host_id: HostId,
        store: PieceSink,
        buffers: BufferPool,
        offload: Offload,
        download_limiter: RateLimiter,
        clock: Clock,
        post: Callable[[AnyEvent], None],
        supervisor: Supervisor,
        next_connection_id: Callable[[], ConnectionId],
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._clock = clock
        self._post = post
        self._supervisor = supervisor
        self._next_connection_id = next_connection_id
        self._pacer = Pacer(download_limiter, loop)
        # Frames alone are sent to parents, and frames are not counted.
        self._unpaced = Pacer(RateLimiter(0, clock), loop)
        around = Surroundings(
            host_id=host_id,
            store=store,
            buffers=buffers,
            offload=offload,
            supervisor=supervisor,
            clock=clock,
            post=post,
            loop=loop,
            receiving=self._pacer,
            sending=self._unpaced,
            scratch=memoryview(bytearray(SCRATCH_BYTES)),
        )
        self._dialer = Dialer(around, ssl_context, self._gone)
        self._links: dict[ConnectionId, ParentLink] = {}
        self._dialing: dict[int, tuple[HostId, Running]] = {}
        self._dials = 0
        self._received_bytes = 0
        self._all_gone = asyncio.Event()
        self._closed = False

    def __len__(self) -> int:
        """Connections that stand now."""
        return len(self._links)

    @property
    def received_bytes(self) -> int:
        """Payload received from parents since the start."""
        present = sum(link.connection.inbound.received_bytes for link in self._links.values())
        return self._received_bytes + present

    def connect(self, effect: Connect) -> None:
        """Begins to connect; `ParentConnected` or `ParentConnectFailed` is the end."""
        if self._closed:
            self._connect_failed(effect.host_id, Reason.SHUTTING_DOWN, "this host shuts down")
            return
        self._dials += 1
        dial = self._dials
        running = self._supervisor.spawn(self._connect(dial, effect), f"connect {effect.host_id}")
        self._dialing[dial] = (effect.host_id, running)

    async def _connect(self, dial: int, effect: Connect) -> None:
        try:
            link, round_trip_ns = await self._dialer.dial(effect.host_id, effect.addresses)
        except StreamLost as error:
            if self._dialing.pop(dial, None) is not None:
                self._connect_failed(effect.host_id, error.reason, str(error))
            return
        if self._dialing.pop(dial, None) is None:
            link.connection.close(Reason.CANCELLED, "this host shuts down")
        elif link.connection.closed:
            self._connect_failed(effect.host_id, Reason.PEER_LOST, "closed after the hello")
        else:
            connection_id = self._next_connection_id()
            link.adopt(connection_id)
            self._links[connection_id] = link
            self._post(
                ParentConnected(
                    now_ns=self._clock.now_ns(),
                    host_id=effect.host_id,
                    connection_id=connection_id,
                    round_trip_ns=round_trip_ns,
                )
            )

    def _connect_failed(self, host_id: HostId, reason: Reason, detail: str) -> None:
        now_ns = self._clock.now_ns()
        self._post(
            ParentConnectFailed(now_ns=now_ns, host_id=host_id, reason=reason, detail=detail)
        )

    def disconnect(self, effect: Disconnect) -> None:
        """Closes a connection; `ParentClosed` is the end."""
        link = self._links.get(effect.connection_id)
        if link is not None:
            link.connection.close(Reason.CANCELLED, "not needed any more")

    def open_channel(self, effect: OpenChannel) -> None:
        """Asks a parent for a task."""
        link = self._links.get(effect.connection_id)
        if link is not None:
            link.open_channel(effect)

    def close_channel(self, effect: CloseChannel) -> None:
        """Tells a parent that nothing more of a task is needed."""
        link = self._links.get(effect.connection_id)
        if link is not None:
            link.close_channel(effect.task_id)

    def fetch(self, effect: FetchPiece) -> None:
        """Asks for a piece; `FetchEnded` is the end, also on a connection that is gone."""
        link = self._links.get(effect.connection_id)
        if link is not None:
            link.fetch(effect)
            return
        self._post(
            FetchEnded(
                now_ns=self._clock.now_ns(),
                request_id=effect.request_id,
                reason=Reason.PEER_LOST,
                detail="the connection is closed",
            )
        )

    def cancel(self, effect: CancelFetch) -> None:
        """Gives up a request, which ends with CANCELLED unless it is being stored."""
        for link in self._links.values():
            if link.cancel(effect.request_id):
                return

    async def close(self) -> None:
        """Closes everything and waits until what is being stored has ended. Every effect has its
        answer then."""
        self._closed = True
        for host_id, running in self._dialing.values():
            running.cancel()
            self._connect_failed(host_id, Reason.SHUTTING_DOWN, "this host shuts down")
        self._dialing.clear()
        self._pacer.close()
        for link in list(self._links.values()):
            link.connection.close(Reason.SHUTTING_DOWN, "this host shuts down")
        if self._links:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._all_gone.wait()

    def _gone(self, link: ParentLink) -> None:
        self._received_bytes += link.connection.inbound.received_bytes
        del self._links[link.connection_id]
        if self._closed and not self._links:
            self._all_gone.set()
