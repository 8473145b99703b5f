"""What becomes of CONNECT requests: a plain tunnel, or TLS that is opened here.

One task per tunnel, from the request to the end of both connections. Where it may go is the
policy's decision; what is said within opened TLS is answered elsewhere.
"""

import asyncio
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from aiohttp.abc import AbstractResolver

from peer.shell.origin.places import PlaceRules
from peer.shell.origin.resolving import CheckedResolver, PlaceRefusedError
from peer.shell.proxy.front import Front, HandedOver
from peer.shell.proxy.policy import Policy, RefusedError, refused_place
from peer.shell.proxy.routes import ProxyCounters
from peer.shell.proxy.targets import Target, TargetError
from peer.shell.proxy.tunnels import CONNECT_TIMEOUT_S, IDLE_S, Idle, TunnelEnd, dial
from shoal.runtime.logs import Log
from shoal.wire.errors import UsageError

if TYPE_CHECKING:
    from peer.shell.proxy.contexts import Contexts

TUNNELS_MAX: Final = 512
HANDSHAKE_TIMEOUT_S: Final = 10.0
ESTABLISHED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"


class Connects:
    """Keeps tunnels. `contexts`: for TLS that is opened, None without a CA. `inside` gives a
    handler for what is said within it, `outside` takes that back at the end."""

    def __init__(
        self,
        *,
        policy: Policy,
        contexts: "Contexts | None",
        inside: Callable[[Target], asyncio.Protocol],
        outside: Callable[[asyncio.Protocol], None],
        counters: ProxyCounters,
        resolver: Callable[[PlaceRules], AbstractResolver] = CheckedResolver,
        idle_s: float = IDLE_S,
    ) -> None:
        self._policy = policy
        self._contexts = contexts
        self._inside = inside
        self._outside = outside
        self._counters = counters
        self._resolver = resolver
        self._idle_s = idle_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._log = Log("peer.shell.proxy")

    def take(self, front: Front, target: Target, data: bytes, over: Callable[[], None]) -> None:
        """Begins a tunnel. `over` is called once the client's connection has ended."""
        task = asyncio.get_running_loop().create_task(self._run(front, target, data, over))
        self._tasks.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._log.error("a tunnel failed", reason=repr(error))

    async def _run(
        self, front: Front, target: Target, data: bytes, over: Callable[[], None]
    ) -> None:
        try:
            self._policy.check(target)
            if len(self._tasks) > TUNNELS_MAX:
                self._counters.overloaded += 1
                front.refuse(503, f"{TUNNELS_MAX} tunnels are open already")
            elif self._contexts is not None and self._policy.intercepts(target):
                await self._open(front, target, data, self._contexts)
            else:
                await self._tunnel(front, target, data)
        except RefusedError as error:
            self._counters.refused += 1
            front.refuse(403, str(error))
        except TargetError as error:
            self._counters.refused += 1
            front.refuse(400, str(error))
        finally:
            # Whatever became of it, nothing of the client's connection stays.
            front.transport.close()
            over()

    # ------------------------------------------------------------ plain

    async def _tunnel(self, front: Front, target: Target, data: bytes) -> None:
        idle = Idle(self._idle_s)

        def moved(count: int) -> None:
            idle.moved()
            self._counters.tunnel_bytes += count

        resolver = self._resolver(self._policy.places_of(target))
        try:
            there = await dial(resolver, target.host, target.port, lambda: TunnelEnd(moved))
        except PlaceRefusedError:
            raise RefusedError(refused_place(target)) from None
        except TimeoutError:
            self._counters.unreachable += 1
            front.refuse(504, f"no connection to {target.authority} in {CONNECT_TIMEOUT_S:g} s")
            return
        except OSError as error:
            self._counters.unreachable += 1
            why = error.strerror or type(error).__name__
            front.refuse(502, f"no connection to {target.authority}: {why}")
            return
        finally:
            await resolver.close()
        self._counters.tunnels += 1
        here = TunnelEnd(moved)
        client = front.transport
        try:
            client.set_protocol(here)
            here.connection_made(client)
            here.write(ESTABLISHED)
            there.write(data)
            here.tie(there)
            if await idle.wait_for(here.ended):
                await idle.wait_for(there.ended)
        finally:
            here.abort()
            there.abort()

    # ------------------------------------------------------------ opened

    async def _open(self, front: Front, target: Target, data: bytes, contexts: "Contexts") -> None:
        if data:
            raise TargetError("the client speaks TLS before it was told that it may")
        try:
            context = await contexts.of(target.host)
        except UsageError as error:
            self._log.error("no certificate can be made", host=target.host, reason=str(error))
            front.refuse(502, str(error))
            return
        handler = self._inside(target)
        try:
            await self._serve(front.transport, target, handler, context)
        finally:
            self._outside(handler)

    async def _serve(
        self,
        client: asyncio.Transport,
        target: Target,
        handler: asyncio.Protocol,
        context: ssl.SSLContext,
    ) -> None:
        ended = asyncio.Event()
        handed = HandedOver(handler, ended.set)
        client.write(ESTABLISHED)
        try:
            transport = await asyncio.get_running_loop().start_tls(
                client,
                handed,
                context,
                server_side=True,
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
            )
        except (ssl.SSLError, OSError) as error:
            self._counters.intercept_failed += 1
            reason = getattr(error, "reason", None) or type(error).__name__
            self._log.info("a client refused TLS", host=target.host, reason=str(reason))
            return
        if transport is None:
            return
        self._counters.intercepted += 1
        handed.begin(transport)
        try:
            await ended.wait()
        finally:
            transport.abort()

    async def close(self) -> None:
        """Ends all tunnels. Safe to call twice."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
