"""The forward proxy's listeners, from start to close.

Owns sockets and the parts of the proxy; what a request gets is in `peer.shell.proxy.routes`, what
becomes of a tunnel in `peer.shell.proxy.connects`.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from aiohttp import web

from peer.shell.api_routes import break_off
from peer.shell.api_types import DownloadRequest
from peer.shell.mirror.pulls import Collection
from peer.shell.proxy.connects import Connects
from peer.shell.proxy.front import Front
from peer.shell.proxy.passing import Passing
from peer.shell.proxy.policy import Policy
from peer.shell.proxy.routes import AnswerOfMirror, ProxyCounters, ProxyRoutes
from peer.shell.proxy.swarm import SwarmReads
from peer.shell.proxy.targets import Target, TargetError
from shoal.runtime.config_values import Endpoint, SecretFile
from shoal.wire.errors import UsageError

CLOSE_GRACE_S: Final = 5.0
BACKLOG: Final = 1024
CLIENTS_MAX: Final = 2048
KEEPALIVE_S: Final = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyOptions:
    """What a proxy is made of."""

    listen: tuple[Endpoint, ...]
    policy: Policy
    ca_cert: Path | None = None
    ca_key: SecretFile | None = None
    ca_file: Path | None = None
    """Trusted for origins beside the system's own."""


class ForwardProxy:
    """One proxy. `start` listens, `close` ends every request and tunnel."""

    def __init__(
        self,
        options: ProxyOptions,
        *,
        start: Callable[[DownloadRequest], Collection],
        mirror: AnswerOfMirror | None,
        unready: Callable[[], str],
    ) -> None:
        self._options = options
        # By this name a request that comes again is known.
        pseudonym = f"shoal-{secrets.token_hex(4)}"
        self._counters = ProxyCounters()
        self._passing = Passing(
            places=options.policy.places, ca_file=options.ca_file, pseudonym=pseudonym
        )
        self._swarm = SwarmReads(start=start, unready=unready)
        self._routes = ProxyRoutes(
            policy=options.policy,
            passing=self._passing,
            swarm=self._swarm,
            mirror=mirror,
            pseudonym=pseudonym,
            counters=self._counters,
        )
        self._fronts: set[Front] = set()
        self._opened: dict[asyncio.BaseProtocol, Target] = {}
        """What connections within opened TLS were made for."""
        self._runner: web.AppRunner | None = None
        self._connects: Connects | None = None
        self._servers: list[asyncio.Server] = []
        self.addresses: list[Endpoint] = []
        """Where it listens in fact, in the order of the options."""

    def counters(self) -> Mapping[str, int]:
        """What it counts, for metrics."""
        counted = asdict(self._counters)
        counted |= {f"swarm_{name}": n for name, n in asdict(self._swarm.counters).items()}
        counted["passed_bytes"] = self._passing.passed_bytes
        return {f"proxy_{name}_total": value for name, value in counted.items()} | {
            "proxy_connections": len(self._fronts)
        }

    async def start(self) -> None:
        """Listens. Raises UsageError."""
        options = self._options
        await self._passing.start()
        contexts = None
        if options.ca_cert is not None and options.ca_key is not None:
            # The library behind it is heavy to load: only for those who open TLS.
            from peer.shell.proxy.contexts import Contexts, load_authority

            contexts = Contexts(load_authority(options.ca_cert, options.ca_key))
        self._connects = Connects(
            policy=options.policy,
            contexts=contexts,
            inside=self._handler_inside,
            outside=self._forget_inside,
            counters=self._counters,
        )
        application = web.Application(middlewares=[self._answer])
        self._runner = web.AppRunner(
            application,
            access_log=None,
            handle_signals=False,
            # A client that goes stops what nobody else wants.
            handler_cancellation=True,
            shutdown_timeout=CLOSE_GRACE_S,
            keepalive_timeout=KEEPALIVE_S,
            # A body passes as it is.
            auto_decompress=False,
        )
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        for endpoint in options.listen:
            try:
                server = await loop.create_server(
                    lambda: Front(self), endpoint.host, endpoint.port, backlog=BACKLOG
                )
            except OSError as error:
                raise UsageError(f"proxy: cannot listen at {endpoint}: {error.strerror}") from error
            self._servers.append(server)
            self.addresses.append(Endpoint(endpoint.host, server.sockets[0].getsockname()[1]))

    @web.middleware
    async def _answer(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        del handler  # there are no routes: every path is some origin's
        try:
            return await self._routes.answer(request, self._opened.get(request.protocol))
        except ConnectionError:
            # Clients go when they like; nobody is there to be told, and nothing is wrong.
            self._counters.left_by_client += 1
            break_off(request)
            return web.Response(status=503)

    # ------------------------------------------------------------ connections of clients

    def opened(self, front: Front) -> bool:
        """A client has come. False: there are too many."""
        if len(self._fronts) >= CLIENTS_MAX:
            self._counters.overloaded += 1
            return False
        self._fronts.add(front)
        return True

    def closed(self, front: Front) -> None:
        """It is gone."""
        self._fronts.discard(front)

    def http(self) -> asyncio.Protocol:
        """A handler for one connection of HTTP."""
        assert self._runner is not None
        assert self._runner.server is not None
        return self._runner.server()

    def _handler_inside(self, target: Target) -> asyncio.Protocol:
        handler = self.http()
        self._opened[handler] = target
        return handler

    def _forget_inside(self, handler: asyncio.Protocol) -> None:
        self._opened.pop(handler, None)

    def connect(self, front: Front, target: Target, data: bytes) -> None:
        """A client asks for a tunnel."""
        assert self._connects is not None
        self._connects.take(front, target, data, lambda: self.closed(front))

    def misread(self, front: Front, error: TargetError) -> None:
        """A client asks for a tunnel in a way that cannot be read."""
        self._counters.refused += 1
        front.refuse(400, str(error))

    # ------------------------------------------------------------ end

    async def close(self) -> None:
        """Takes no new connections, gives running requests a moment, then ends everything. Safe to
        call twice."""
        servers, self._servers = self._servers, []
        for server in servers:
            server.close()
        if self._runner is not None:
            await self._runner.cleanup()
        if self._connects is not None:
            await self._connects.close()
        for front in list(self._fronts):
            front.transport.abort()
        await self._passing.close()
