"""A web server over loopback, plain or with TLS, that counts what is read and may be private."""

import asyncio
import ssl
from collections import Counter
from dataclasses import dataclass, field

from aiohttp import web

from tests.fakes.answers import begin_part


@dataclass
class WebOrigin:
    """Files by path, each with an ETag; `/echo` tells what was asked. `token`: who may read."""

    files: dict[str, bytes] = field(default_factory=dict)
    token: str = ""
    context: ssl.SSLContext | None = None
    cut: bool = False
    redirect: str = ""
    requests: Counter[str] = field(default_factory=Counter)
    sent_bytes: Counter[str] = field(default_factory=Counter)
    seen: list[web.Request] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    slow: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0
    _runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """As an address."""
        return f"http{'s' if self.context else ''}://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listens."""
        app = web.Application(client_max_size=0)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, auto_decompress=False)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self.context).start()
        self.port = self._runner.addresses[0][1]

    async def close(self) -> None:
        """Ends."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request)
        self.requests[request.method] += 1
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            challenge = {"WWW-Authenticate": 'Bearer realm="https://token.test"'}
            return web.Response(status=401, text="who are you?", headers=challenge)
        if request.path == "/echo":
            self.bodies.append(await request.read())
            answer = web.Response(
                status=207,
                reason="Quite Fine",
                body=self.bodies[-1],
                headers={"Content-Encoding": "identity", "Connection": "X-Hop", "X-Hop": "1"},
            )
            answer.headers.add("Set-Cookie", "a=1")
            answer.headers.add("Set-Cookie", "b=2")
            return answer
        if request.path == "/slow":
            await self.slow.wait()
            return web.Response(text="late")
        if self.redirect:
            return web.Response(status=302, headers={"Location": self.redirect})
        return await self._file(request)

    async def _file(self, request: web.Request) -> web.StreamResponse:
        content = self.files.get(request.path)
        if content is None:
            return web.Response(status=404, text="no such file")
        etag = f'"{abs(hash(content)):x}"'
        if request.headers.get("If-None-Match") == etag:
            return web.Response(status=304, headers={"ETag": etag})
        response, body = await begin_part(request, content, {"ETag": etag})
        if request.method == "HEAD":
            return response
        if self.cut:
            body = body[: len(body) // 2]
        self.sent_bytes[request.path] += len(body)
        await response.write(body)
        if self.cut and request.transport is not None:
            request.transport.abort()
        return response
