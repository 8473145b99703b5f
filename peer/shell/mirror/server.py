"""The registry mirror's listeners, from start to close.

Owns sockets and the parts of the mirror; what a request gets is in `peer.shell.mirror.routes`.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from aiohttp import web

from peer.shell.api_types import DownloadRequest
from peer.shell.mirror.grants import Grants
from peer.shell.mirror.pulls import Collection, Pulls
from peer.shell.mirror.relay import Relay
from peer.shell.mirror.routes import MirrorRoutes
from peer.shell.mirror.upstreams import Upstream, Upstreams
from peer.shell.origin.http import HttpOptions, HttpOrigin
from peer.shell.origin.internal import InternalHosts
from shoal.runtime.clock import Clock
from shoal.runtime.config_values import Endpoint
from shoal.wire.errors import UsageError

CLOSE_GRACE_S: Final = 5.0
BACKLOG: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorOptions:
    """What a mirror is made of."""

    listen: tuple[Endpoint, ...]
    dedicated: tuple[tuple[Endpoint, str], ...] = ()
    """Listeners that each stand for one registry."""
    upstreams: tuple[Upstream, ...]
    default: str = ""
    verdict_ttl_ns: int
    writes: bool = False
    """Whether what clients push and delete is passed through."""
    ca_file: Path | None = None
    internal_hosts: InternalHosts = field(default_factory=InternalHosts)
    """Internal hosts that registries may redirect to."""


class RegistryMirror:
    """One mirror. `start` listens, `close` ends every request."""

    def __init__(
        self,
        options: MirrorOptions,
        *,
        start: Callable[[DownloadRequest], Collection],
        unready: Callable[[], str],
        clock: Clock,
        is_here: Callable[[str], bool] = lambda digest: False,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._options = options
        self._upstreams = Upstreams(options.upstreams, options.default)
        for endpoint, name in options.dedicated:
            if name not in self._upstreams.names:
                raise UsageError(f"{endpoint}={name}: list {name} among mirror.upstreams")
        self._relay = Relay(ca_file=options.ca_file)
        self._storage = HttpOrigin(
            HttpOptions(ca_file=options.ca_file, internal_hosts=options.internal_hosts)
        )
        self._pulls = Pulls(start, is_here)
        self._routes = MirrorRoutes(
            upstreams=self._upstreams,
            relay=self._relay,
            stat=self._storage.stat,
            grants=Grants(clock, wall_clock, options.verdict_ttl_ns),
            pulls=self._pulls,
            unready=unready,
            clock=clock,
            writes=options.writes,
        )
        self._runners: list[web.AppRunner] = []
        self.addresses: list[Endpoint] = []
        """Where it listens in fact, in the order of the options, dedicated listeners last."""

    def counters(self) -> Mapping[str, int]:
        """What it counts, for metrics."""
        return {
            f"mirror_{name}_total": value for name, value in asdict(self._routes.counters).items()
        }

    async def answer(
        self, request: web.Request, registry: str, *, fixed: bool
    ) -> web.StreamResponse:
        """Answers a request that came to somebody else; see `MirrorRoutes.answer`."""
        return await self._routes.answer(request, registry, fixed=fixed)

    async def start(self) -> None:
        """Listens. Raises UsageError."""
        await self._relay.start()
        listeners = [(endpoint, "") for endpoint in self._options.listen]
        for endpoint, registry in (*listeners, *self._options.dedicated):
            self.addresses.append(await self._listen(endpoint, registry))

    async def _listen(self, endpoint: Endpoint, registry: str) -> Endpoint:
        async def answer(request: web.Request) -> web.StreamResponse:
            return await self._routes.answer(request, registry)

        application = web.Application()
        application.router.add_route("*", "/{path:.*}", answer, expect_handler=_go_on_later)
        runner = web.AppRunner(
            application,
            access_log=None,
            handle_signals=False,
            # A client that goes stops what nobody else wants.
            handler_cancellation=True,
            shutdown_timeout=CLOSE_GRACE_S,
        )
        await runner.setup()
        self._runners.append(runner)
        try:
            await web.TCPSite(runner, endpoint.host, endpoint.port, backlog=BACKLOG).start()
        except OSError as error:
            raise UsageError(f"mirror: cannot listen at {endpoint}: {error.strerror}") from error
        return Endpoint(endpoint.host, runner.addresses[0][1])

    async def close(self) -> None:
        """Takes no new requests, gives running ones a moment, then ends them. Safe to call
        twice."""
        runners, self._runners = self._runners, []
        await asyncio.gather(*(runner.cleanup() for runner in runners))
        await self._pulls.close()
        await self._relay.close()
        await self._storage.close()


async def _go_on_later(request: web.Request) -> None:
    """A client that asks before it sends a body is told to go on by whoever takes the body."""
    expected = request.headers.get("Expect", "")
    if expected.lower() != "100-continue":
        raise web.HTTPExpectationFailed(text="the mirror knows Expect: 100-continue alone")
