"""A small registry in its own thread: manifests, blobs, a token service, and a second port that
blobs may be redirected to.

`users` turns on bearer tokens (good for `token_chunks` sent chunks each, or `token_life_s`
seconds), `basic` Basic instead.
Counts what it was asked for. Ranges work; nothing can be pushed over HTTP.
"""

import asyncio
import base64
import json
import ssl
import time
from collections import Counter
from typing import Any

from aiohttp import web

from tests.fakes.answers import begin_part, digest_of
from tests.fakes.loop_thread import LoopThread

REPOSITORY = "team/model"
CHUNK_BYTES = 256 * 1024


class Registry(LoopThread):
    """Serves `team/model` until the `with` block ends."""

    def __init__(self, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        super().__init__()
        self._host = host
        self._tls = tls
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, tuple[str, bytes]] = {}
        self.users: dict[str, str] = {}
        self.basic = False
        self.token_chunks: int | None = None
        self.token_life_s: float | None = None
        self.tokens_max: int | None = None
        """The token service gives no more than so many."""
        self.expired_status = 401
        """What is said of a token that has run out."""
        self.redirects = False
        self.asked: Counter[str] = Counter()
        self.sent_bytes: Counter[str] = Counter()
        """Of each blob, whoever asked."""
        self.tokens: dict[str, tuple[int, float]] = {}
        """By token: what was sent before it was given, and when that was."""
        self.leaked = 0
        """Requests to the second port that came with an Authorization."""
        self.slow_s = 0.0
        self.sent_chunks = 0
        self.port = self.other_port = 0
        self._runners: list[web.AppRunner] = []

    @property
    def reference(self) -> str:
        """Host, repository and tag."""
        return f"{self._at(self.port)}/{REPOSITORY}:v1"

    def _at(self, port: int) -> str:
        return f"[{self._host}]:{port}" if ":" in self._host else f"{self._host}:{port}"

    def _url(self, port: int, path: str) -> str:
        return f"{'https' if self._tls else 'http'}://{self._at(port)}/{path}"

    def layer(self, body: bytes, media_type: str, **annotations: str) -> dict[str, Any]:
        """Stores a blob; its descriptor. Underscores in names of annotations stand for dots."""
        digest = digest_of(body)
        self.blobs[digest] = body
        described: dict[str, Any] = {
            "mediaType": media_type, "digest": digest, "size": len(body),
        }  # fmt: skip
        if annotations:
            described["annotations"] = {
                name.replace("_", "."): text for name, text in annotations.items()
            }
        return described

    def tag(self, manifest: dict[str, Any], tag: str = "v1") -> str:
        """Stores a manifest or index; its digest."""
        body = json.dumps(manifest).encode()
        for name in (tag, digest_of(body)):
            self.manifests[name] = manifest["mediaType"], body
        return digest_of(body)

    async def start(self) -> None:
        """Listens on both ports."""
        first, second = web.Application(), web.Application()
        first.add_routes(
            [
                web.get(f"/v2/{REPOSITORY}/manifests/{{name}}", self._manifest),
                web.get(f"/v2/{REPOSITORY}/blobs/{{digest}}", self._blob),
                web.get("/token", self._token),
            ]
        )
        second.add_routes([web.get("/{digest}", self._elsewhere)])
        ports = []
        for app in (first, second):
            runner = web.AppRunner(app, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, self._host, 0, ssl_context=self._tls).start()
            self._runners.append(runner)
            ports.append(runner.addresses[0][1])
        self.port, self.other_port = ports

    async def close(self) -> None:
        """Ends."""
        for runner in self._runners:
            await runner.cleanup()

    def _check(self, request: web.Request) -> None:
        if not self.users:
            return
        header = request.headers.get("Authorization", "")
        if self.basic:
            if not self._is_user(header):
                raise web.HTTPUnauthorized(headers={"WWW-Authenticate": 'Basic realm="registry"'})
            return
        token = header.removeprefix("Bearer ")
        issued = self.tokens.get(token)
        if issued is not None and self._has_run_out(*issued):
            self.asked["run out"] += 1
            if self.expired_status != 401:
                raise web.HTTPForbidden
            issued = None
        if issued is None:
            raise web.HTTPUnauthorized(
                headers={
                    "WWW-Authenticate": f'Bearer realm="{self._url(self.port, "token")}",'
                    f'service="registry",scope="repository:{REPOSITORY}:pull"'
                }
            )

    def _has_run_out(self, sent_chunks: int, given_s: float) -> bool:
        limit, life_s = self.token_chunks, self.token_life_s
        return (limit is not None and self.sent_chunks - sent_chunks >= limit) or (
            life_s is not None and time.monotonic() - given_s >= life_s
        )

    def _is_user(self, header: str) -> bool:
        pairs = [f"{name}:{secret}".encode() for name, secret in self.users.items()]
        return header in [f"Basic {base64.b64encode(pair).decode()}" for pair in pairs]

    async def _token(self, request: web.Request) -> web.Response:
        self.asked["token"] += 1
        spent = self.tokens_max is not None and len(self.tokens) >= self.tokens_max
        if spent or not self._is_user(request.headers.get("Authorization", "")):
            raise web.HTTPUnauthorized
        token = f"token-{len(self.tokens)}"
        self.tokens[token] = self.sent_chunks, time.monotonic()
        return web.json_response({"token": token, "expires_in": int(self.token_life_s or 300)})

    async def _manifest(self, request: web.Request) -> web.Response:
        self._check(request)
        name = request.match_info["name"]
        self.asked["manifest"] += 1
        if name not in self.manifests:
            raise web.HTTPNotFound
        media_type, body = self.manifests[name]
        return web.Response(
            body=body, content_type=media_type, headers={"Docker-Content-Digest": digest_of(body)}
        )

    async def _blob(self, request: web.Request) -> web.StreamResponse:
        self._check(request)
        digest = request.match_info["digest"]
        if digest not in self.blobs:
            raise web.HTTPNotFound
        if self.redirects:
            raise web.HTTPTemporaryRedirect(self._url(self.other_port, digest))
        return await self._send(request, digest)

    async def _elsewhere(self, request: web.Request) -> web.StreamResponse:
        self.leaked += "Authorization" in request.headers
        return await self._send(request, request.match_info["digest"])

    async def _send(self, request: web.Request, digest: str) -> web.StreamResponse:
        response, body = await begin_part(request, self.blobs[digest])
        if request.method == "GET":
            for at in range(0, len(body), CHUNK_BYTES):
                chunk = body[at : at + CHUNK_BYTES]
                self.asked[digest] += 1
                self.sent_chunks += 1
                if self.slow_s:
                    await asyncio.sleep(self.slow_s)
                await response.write(chunk)
                self.sent_bytes[digest] += len(chunk)
        await response.write_eof()
        return response
