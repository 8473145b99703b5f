"""A reverse proxy in front of a registry that writes down every request and misbehaves on demand.

Runs on a thread of its own with three ports on loopback: the registry itself, a blob storage to
which it may redirect with signed URLs, and a token service. What it does to a request is said by
faults and by a gate, both of which may be changed while it runs. It never caches.
"""

import asyncio
import hashlib
import hmac
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
from aiohttp import web

from tests.clients.gate import Gate, Refusal
from tests.fakes.loop_thread import LoopThread

CHUNK_BYTES: Final = 64 * 1024
BODY_BYTES_MAX: Final = 256 * 1024 * 1024
SIGNED_FOR_S: Final = 60.0

_HOP: Final = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade"}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong with requests whose path contains `path`."""

    path: str
    method: str = "GET"
    times: int | None = None
    """For the first so many requests that fit; always when it is None."""
    status: int | None = None
    """Answered in place of what the registry would say."""
    headers: tuple[tuple[str, str], ...] = ()
    """Of that answer."""
    cut_after_bytes: int | None = None
    """The connection is closed after so many bytes of the body."""
    corrupt_at: int | None = None
    """The byte at this place of what is sent is another one."""
    delay_s: float = 0.0
    """Before the answer begins."""
    redirect: bool = False
    """To the storage, with a signed URL."""


@dataclass
class Seen:
    """A request as it came, and what it got."""

    method: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...]
    """As they came: a repeated header is there more than once."""
    status: int = 0
    """0 until the answer begins."""
    sent_bytes: int = 0
    """Of the body of the answer."""

    def header(self, name: str) -> str | None:
        """All values joined by commas; None if there is none."""
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        return ", ".join(values) if values else None

    def __str__(self) -> str:
        query = f"?{self.query}" if self.query else ""
        span = f" [{self.header('Range')}]" if self.header("Range") else ""
        return f"{self.method} {self.path}{query}{span} {self.status} {self.sent_bytes}"


@dataclass
class _Rule:
    fault: Fault
    used: int = field(default=0)

    def takes(self, request: web.Request) -> bool:
        fault = self.fault
        if request.method != fault.method or fault.path not in request.path:
            return False
        if fault.times is not None and self.used >= fault.times:
            return False
        self.used += 1
        return True


class RecordingProxy(LoopThread):
    """In front of the registry at `upstream` (host:port). To be used as a context manager."""

    def __init__(self, upstream: str) -> None:
        super().__init__()
        self.seen: list[Seen] = []
        """Of the registry's port."""
        self.storage_seen: list[Seen] = []
        """Of the storage's port."""
        self.gate: Gate | None = None
        """Whom to let in; everybody when it is None."""
        self.signed_for_s = SIGNED_FOR_S
        """How long a signed URL holds. Below zero it has expired when it is given out."""
        self.port = 0
        self.storage_port = 0
        self.token_port = 0
        self._upstream = upstream
        self._rules: list[_Rule] = []
        self._secret = b"drawn once"
        self._runners: list[web.AppRunner] = []
        self._session: aiohttp.ClientSession | None = None

    # What a test says and asks.

    @property
    def address(self) -> str:
        """Of the registry, as clients see it."""
        return f"127.0.0.1:{self.port}"

    @property
    def realm(self) -> str:
        """URL of the token service."""
        return f"http://127.0.0.1:{self.token_port}/token"

    def break_with(self, *faults: Fault) -> None:
        """Adds faults. The first that fits a request counts."""
        self._rules += [_Rule(fault) for fault in faults]

    def heal(self) -> None:
        """Forgets all faults and opens the gate."""
        self._rules = []
        self.gate = None

    def forget(self) -> None:
        """Begins the record anew."""
        self.seen, self.storage_seen = [], []

    def expire_signatures(self) -> None:
        """No signed URL that was given out is taken from now on."""
        self._secret = hashlib.sha256(self._secret).digest()

    def go_down(self) -> None:
        """Closes its ports and connections: the next one to connect is refused."""
        self.call(self._close_ports())

    def come_up(self) -> None:
        """Listens again, at the same ports."""
        self.call(self._open_ports())

    def count(self) -> "Counter[tuple[str, str, int]]":
        """How many requests there were, by method, path and status."""
        return Counter((seen.method, seen.path, seen.status) for seen in self.seen)

    def sent_bytes(self) -> "Counter[tuple[str, str, int]]":
        """Bytes of bodies, by method, path and status."""
        total: Counter[tuple[str, str, int]] = Counter()
        for seen in self.seen:
            total[seen.method, seen.path, seen.status] += seen.sent_bytes
        return total

    def blob_reads(self, digest: str) -> list[Seen]:
        """GET requests for a blob that were not refused for lack of a credential."""
        return [
            seen
            for seen in self.seen
            if seen.method == "GET"
            and seen.path.endswith(f"/blobs/{digest}")
            and seen.status != 401
        ]

    def told(self) -> str:
        """The record, one request per line."""
        return "\n".join(str(seen) for seen in (*self.seen, *self.storage_seen))

    # Its life.

    async def start(self) -> None:
        """Opens its ports."""
        self._session = aiohttp.ClientSession(
            auto_decompress=False, timeout=aiohttp.ClientTimeout(total=60, connect=10)
        )
        await self._open_ports()

    async def close(self) -> None:
        """Closes them and its connections."""
        await self._close_ports()
        if self._session is not None:
            await self._session.close()

    async def _open_ports(self) -> None:
        assert not self._runners, "it is up"
        self.port = await self._listen(self._registry, self.port)
        self.storage_port = await self._listen(self._storage, self.storage_port)
        self.token_port = await self._listen(self._tokens, self.token_port)

    async def _close_ports(self) -> None:
        runners, self._runners = self._runners, []
        for runner in runners:
            await runner.cleanup()

    async def _listen(
        self, handler: Callable[[web.Request], Coroutine[Any, Any, web.StreamResponse]], port: int
    ) -> int:
        application = web.Application(client_max_size=BODY_BYTES_MAX)
        application.router.add_route("*", "/{path:.*}", handler)
        runner = web.AppRunner(
            application, access_log=None, shutdown_timeout=0.1, handler_cancellation=True
        )
        await runner.setup()
        self._runners.append(runner)
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        return int(runner.addresses[0][1])

    # What it answers.

    async def _tokens(self, request: web.Request) -> web.StreamResponse:
        if self.gate is None:
            return web.Response(status=404)
        form = {key: str(value) for key, value in (await request.post()).items()}
        refused = self.gate.answer_token({**request.query, **form}, request.headers)
        return web.json_response(refused.body, status=refused.status)

    async def _registry(self, request: web.Request) -> web.StreamResponse:
        seen = _seen(request)
        self.seen.append(seen)
        refusal = self._refusal(request)
        if refusal is not None:
            seen.status = refusal.status
            return web.json_response(refusal.body, status=refusal.status, headers=refusal.headers)
        rule = next((rule for rule in self._rules if rule.takes(request)), None)
        fault = rule.fault if rule is not None else Fault(path="")
        if fault.delay_s:
            await asyncio.sleep(fault.delay_s)
        if fault.status is not None:
            seen.status = fault.status
            body = {"errors": [{"code": "UNKNOWN", "message": "said by a test"}]}
            return web.json_response(body, status=fault.status, headers=fault.headers)
        if fault.redirect:
            seen.status = 307
            return web.Response(status=307, headers={"Location": self._signed(request.path)})
        return await self._forward(request, seen, fault)

    async def _storage(self, request: web.Request) -> web.StreamResponse:
        seen = _seen(request)
        self.storage_seen.append(seen)
        try:
            expires_s = float(request.query.get("expires", "0"))
        except ValueError:
            expires_s = 0.0
        signature = self._signature(request.path, request.query.get("expires", ""))
        if expires_s < time.time() or not hmac.compare_digest(
            signature, request.query.get("signature", "")
        ):
            seen.status = 403
            return web.Response(status=403, text="the signature does not hold")
        return await self._forward(request, seen, Fault(path=""))

    def _refusal(self, request: web.Request) -> Refusal | None:
        if self.gate is None:
            return None
        return self.gate.refusal(request.path, request.headers.get("Authorization"), self.realm)

    def _signature(self, path: str, expires: str) -> str:
        return hmac.new(self._secret, f"{path} {expires}".encode(), "sha256").hexdigest()

    def _signed(self, path: str) -> str:
        expires = f"{time.time() + self.signed_for_s:.3f}"
        query = f"expires={expires}&signature={self._signature(path, expires)}"
        return f"http://127.0.0.1:{self.storage_port}{path}?{query}"

    async def _forward(self, request: web.Request, seen: Seen, fault: Fault) -> web.StreamResponse:
        assert self._session is not None
        headers = [
            (key, value)
            for key, value in request.headers.items()
            if key.lower() not in _HOP | {"authorization"}
        ]
        try:
            async with self._session.request(
                request.method,
                f"http://{self._upstream}{request.raw_path}",
                headers=headers,
                data=request.content if request.can_read_body else None,
                allow_redirects=False,
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            ) as answer:
                return await _relay(request, seen, fault, answer)
        except aiohttp.ClientConnectorError:
            seen.status = 502
            return web.Response(status=502, text="the registry does not listen")


def _seen(request: web.Request) -> Seen:
    # The gate's secrets stay out of what is printed when a test fails: nothing prints headers.
    return Seen(request.method, request.path, request.query_string, tuple(request.headers.items()))


async def _relay(
    request: web.Request, seen: Seen, fault: Fault, answer: aiohttp.ClientResponse
) -> web.StreamResponse:
    """Passes an answer on, with what the fault does to its body."""
    response = web.StreamResponse(status=answer.status)
    for key, value in answer.headers.items():
        if key.lower() not in _HOP:
            response.headers.add(key, value)
    seen.status = answer.status
    await response.prepare(request)
    if request.method == "HEAD":
        return response
    try:
        async for chunk in answer.content.iter_chunked(CHUNK_BYTES):
            chunk = _corrupted(chunk, seen.sent_bytes, fault.corrupt_at)
            if fault.cut_after_bytes is not None:
                chunk = chunk[: fault.cut_after_bytes - seen.sent_bytes]
            if chunk:
                seen.sent_bytes += len(chunk)
                await response.write(chunk)
            if seen.sent_bytes == fault.cut_after_bytes:
                if request.transport is not None:
                    request.transport.close()
                return response
        await response.write_eof()
    except ConnectionError:
        # The client went away. What it was sent until then is in the record.
        pass
    return response


def _corrupted(chunk: bytes, begin: int, at: int | None) -> bytes:
    if at is None or not begin <= at < begin + len(chunk):
        return chunk
    place = at - begin
    return chunk[:place] + bytes((chunk[place] ^ 0xFF,)) + chunk[place + 1 :]
