"""A registry over loopback HTTP that can be told to misbehave, and that counts what is read."""

import asyncio
import base64
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from aiohttp import web

from tests.fakes.answers import begin_part, digest_of

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@dataclass
class FakeRegistry:
    """Repositories with blobs and manifests. `user`: who may read, as `name:password`."""

    user: str = ""
    down: bool = False
    blobs_down: bool = False
    cut_at: int | None = None
    corrupt: bool = False
    redirect: bool = False
    stalls_before: int = 0
    """Bodies of blobs that begin before this byte and are longer than a look wait for `go`."""
    go: asyncio.Event = field(default_factory=asyncio.Event)
    redirect_heads: bool = False
    strangers_to: str = ""
    """Where whoever has no right is redirected, or "here" for the page in place of an answer."""
    page: Callable[[web.Request], web.Response] | None = None
    query_token: str = ""
    """Lets in whoever has it as `token` in its query."""
    url: str = ""
    blobs: dict[tuple[str, str], bytes] = field(default_factory=dict)
    manifests: dict[tuple[str, str], bytes] = field(default_factory=dict)
    requests: Counter[str] = field(default_factory=Counter)
    blob_bytes: Counter[str] = field(default_factory=Counter)
    seen: list[web.Request] = field(default_factory=list)
    expect: Callable[[web.Request], Awaitable[None]] | None = None
    """What it does to a client that waits to be told to send its body; tells it to, if None."""
    _runner: web.AppRunner | None = None

    def push(self, repository: str, tag: str, *layers: bytes, config: bytes = b"{}") -> str:
        """Makes an image of layers; gives the digest of its manifest."""
        for blob in (config, *layers):
            self.blobs[repository, digest_of(blob)] = blob
        body = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": {"digest": digest_of(config), "size": len(config)},
                "layers": [{"digest": digest_of(layer), "size": len(layer)} for layer in layers],
            }
        ).encode()
        self.manifests[repository, tag] = self.manifests[repository, digest_of(body)] = body
        return digest_of(body)

    @property
    def authorization(self) -> str:
        """What its user shows."""
        return f"Basic {base64.b64encode(self.user.encode()).decode()}"

    async def start(self) -> None:
        """Listens."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer, expect_handler=self._expected)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def close(self) -> None:
        """Ends."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _expected(self, request: web.Request) -> None:
        if self.expect is not None:
            await self.expect(request)
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request)
        if self.down:
            return web.Response(status=500)
        if request.path.startswith("/storage/"):
            _, _, repository, digest = request.path.split("/", 3)
            return await self._blob(request, repository.replace("~", "/"), digest)
        if self.page is not None and request.path == self.strangers_to:
            return self.page(request)
        if self._is_stranger(request):
            if self.strangers_to == "here" and self.page is not None:
                return self.page(request)
            if self.strangers_to:
                raise web.HTTPFound(self.strangers_to)
            return web.json_response(
                {"errors": [{"code": "UNAUTHORIZED"}]},
                status=401,
                headers={"WWW-Authenticate": 'Basic realm="fake"'},
            )
        if request.path == "/v2/":
            return web.json_response({})
        repository, place, reference = request.path.removeprefix("/v2/").rsplit("/", 2)
        self.requests[f"{request.method} {place}"] += 1
        if place == "manifests":
            return self._manifest(repository, reference)
        if place == "blobs":
            if self.blobs_down:
                return web.Response(status=500)
            if self.redirect and (request.method == "GET" or self.redirect_heads):
                where = f"{self.url}/storage/{repository.replace('/', '~')}/{reference}"
                raise web.HTTPTemporaryRedirect(where)
            return await self._blob(request, repository, reference)
        return web.json_response({"place": place})

    def _is_stranger(self, request: web.Request) -> bool:
        if not self.user or (self.query_token and request.query.get("token") == self.query_token):
            return False
        return request.headers.get("Authorization") != self.authorization

    def _manifest(self, repository: str, reference: str) -> web.Response:
        body = self.manifests.get((repository, reference))
        if body is None:
            return web.json_response({"errors": [{"code": "MANIFEST_UNKNOWN"}]}, status=404)
        headers = {"Docker-Content-Digest": digest_of(body), "Content-Type": OCI_MANIFEST}
        return web.Response(body=body, headers=headers)

    async def _blob(self, request: web.Request, repository: str, digest: str) -> web.StreamResponse:
        blob = self.blobs.get((repository, digest))
        if blob is None:
            return web.json_response({"errors": [{"code": "BLOB_UNKNOWN"}]}, status=404)
        response, body = await begin_part(request, blob, {"ETag": f'"{digest}"'})
        if request.method == "HEAD":
            return response
        if self.corrupt:
            body = bytes([body[0] ^ 1]) + body[1:]
        if self.cut_at is not None:
            body = body[: self.cut_at]
        if (request.http_range.start or 0) < self.stalls_before and len(body) > 1:
            await self.go.wait()
        self.blob_bytes[digest] += len(body)
        await response.write(body)
        if self.cut_at is not None and request.transport is not None:
            request.transport.abort()
        return response
