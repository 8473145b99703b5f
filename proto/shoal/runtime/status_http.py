"""Health checks and metrics over HTTP: /healthz, /readyz, /metrics and pages of the daemon's own.

Read-only and without secrets. Bounded in every direction: so many connections, so long each, one
request per connection, no request body. Decides nothing: whether the daemon is ready is for its
owner to say.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from aiohttp import web

from shoal.runtime.config_values import Endpoint
from shoal.runtime.metrics import CONTENT_TYPE, Metrics
from shoal.wire.errors import UsageError

CONNECTIONS_MAX: Final = 32
"""A scraper, an orchestrator's probes and a few curious people."""

CONNECTION_LIFE_S: Final = 15.0
"""Nobody needs longer for one request; an idle connection is not kept."""

SHUTDOWN_S: Final = 0.1
"""How long answers that are being written may still take."""


Page = Callable[[Mapping[str, str]], Awaitable[bytes | None]]
"""From the query to JSON; None: too busy to answer now."""


class StatusServer:
    """The status endpoints of one daemon. `not_ready` tells why the daemon is not ready, "" that
    it is; `pages` are more endpoints, by their paths."""

    def __init__(
        self,
        listen: Endpoint,
        metrics: Metrics,
        not_ready: Callable[[], str],
        *,
        pages: Mapping[str, Page] | None = None,
        connections_max: int = CONNECTIONS_MAX,
        connection_life_s: float = CONNECTION_LIFE_S,
    ) -> None:
        self._listen = listen
        self._metrics = metrics
        self._not_ready = not_ready
        self._pages = dict(pages or {})
        self._connections_max = connections_max
        self._connection_life_s = connection_life_s
        self._http = web.Server(
            self._answer, access_log=None, keepalive_timeout=1.0, max_line_size=2048
        )
        self._server: asyncio.Server | None = None
        self._open: dict[_Connection, None] = {}

    @property
    def address(self) -> Endpoint:
        """Where it listens in fact. Only after `start`."""
        assert self._server is not None, "not started"
        host, port = self._server.sockets[0].getsockname()[:2]
        return Endpoint(host, port)

    async def start(self) -> None:
        """Begins to listen. Raises UsageError if the endpoint cannot be listened on."""
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                self._connection, self._listen.host, self._listen.port, backlog=CONNECTIONS_MAX
            )
        except OSError as error:
            raise UsageError(
                f"status.listen = {self._listen}: cannot listen there: {error.strerror or error}"
            ) from None

    async def close(self) -> None:
        """Stops listening and closes every connection. Safe to call twice."""
        if self._server is not None:
            self._server.close()
            await self._http.shutdown(SHUTDOWN_S)
            for connection in list(self._open):
                connection.expire()

    def _connection(self) -> "_Connection":
        return _Connection(self._http(), self._open, self._connections_max, self._connection_life_s)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        page = self._pages.get(request.path)
        if page is not None and request.method in ("GET", "HEAD"):
            body = await page(request.query)
            response = web.Response(status=503, text="busy, ask again\n")
            if body is not None:
                response = web.Response(body=body, content_type="application/json")
        else:
            response = self._response(request.method, request.path)
        response.headers["Cache-Control"] = "no-store"
        response.force_close()
        return response

    def _response(self, method: str, path: str) -> web.Response:
        if method not in ("GET", "HEAD"):
            return web.Response(status=405, text="only GET\n", headers={"Allow": "GET, HEAD"})
        if path == "/healthz":
            return web.Response(text="ok\n")
        if path == "/readyz":
            reason = self._not_ready()
            return web.Response(status=503 if reason else 200, text=f"{reason or 'ready'}\n")
        if path == "/metrics":
            body = self._metrics.render()
            return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})
        names = ", ".join(["/healthz", "/readyz", "/metrics", *self._pages])
        return web.Response(status=404, text=f"here are {names}\n")


class _Connection(asyncio.Protocol):
    """One connection: aiohttp's handler behind a limit of number and time."""

    def __init__(
        self,
        inner: web.RequestHandler,
        others: dict["_Connection", None],
        connections_max: int,
        life_s: float,
    ) -> None:
        self._inner = inner
        self._open = others
        self._connections_max = connections_max
        self._life_s = life_s
        self._transport: asyncio.BaseTransport | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def expire(self) -> None:
        """Its time is over."""
        if isinstance(self._transport, asyncio.WriteTransport):
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        if len(self._open) >= self._connections_max:
            self.expire()
            return
        self._open[self] = None
        self._deadline = asyncio.get_running_loop().call_later(self._life_s, self.expire)
        self._inner.connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._deadline is None:
            return
        self._deadline.cancel()
        self._open.pop(self, None)
        self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deadline is not None:
            self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        if self._deadline is not None:
            self._inner.eof_received()
        return None

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()
