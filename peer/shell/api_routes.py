"""The routes of the local API: what each request does and who may make it.

A client is known by the user id that the kernel reports. The daemon writes files only for its own
user and for root; everybody else is told where to read the content, and may read only contents
that a request of their own was answered with. No route polls or sleeps. Decides nothing about
downloading.
"""

import asyncio
import json
import os
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final

from aiohttp import web

from peer.shell.api_events import follow_as_asked
from peer.shell.api_json import (
    decode_digests,
    decode_renewal,
    decode_request,
    encode_event,
    encode_swarm,
    encode_task,
)
from peer.shell.api_types import (
    ContentStream,
    Download,
    Downloads,
    LentContent,
    Ready,
    RightNeeded,
)
from peer.shell.errors import DownloadError
from shoal.runtime.clock import Clock
from shoal.runtime.tasks import Offload
from shoal.wire.control import Demand
from shoal.wire.errors import Reason, UsageError
from shoal.wire.limits import MIB, SECOND_NS

CONTENT_CHUNK_BYTES: Final = MIB
"""Large enough that a chunk costs far more in the kernel than in Python."""

GRANTS_MAX: Final = 4096
GRANT_TTL_NS: Final = 600 * SECOND_NS
"""Another user's right to read a content outlives its download by so much."""

STREAM_OUTCOMES_MAX: Final = 256
"""Ends of streams that are remembered, so that a client can ask why one broke off."""

TASK_ID_HEADER: Final = "X-Shoal-Task-Id"
STREAM_ID_HEADER: Final = "X-Shoal-Stream-Id"
DIGEST_HEADER: Final = "X-Shoal-Digest"

_STATUS_OF_REASON: Final = {
    Reason.UNKNOWN_TASK: 404,
    Reason.NOT_HELD: 409,
    Reason.UNAUTHORIZED: 403,
    Reason.OVERLOADED: 503,
    Reason.NO_SCHEDULER: 503,
    Reason.SHUTTING_DOWN: 503,
    Reason.TIMEOUT: 504,
}


class Grants:
    """Which user may read which content, for a while. Forgets the oldest when full."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until_ns: OrderedDict[tuple[int, str], int] = OrderedDict()

    def grant(self, uid: int, task_id: str) -> None:
        """From now on, for `GRANT_TTL_NS`."""
        self._until_ns[uid, task_id] = self._clock.now_ns() + GRANT_TTL_NS
        self._until_ns.move_to_end((uid, task_id))
        if len(self._until_ns) > GRANTS_MAX:
            self._until_ns.popitem(last=False)

    def allows(self, uid: int, task_id: str) -> bool:
        """Whether a grant is still valid."""
        return self._until_ns.get((uid, task_id), 0) > self._clock.now_ns()


class ApiRoutes:
    """Handlers of all routes. `identify` tells the user at the end of a connected socket."""

    def __init__(
        self,
        downloads: Downloads,
        *,
        offload: Offload,
        clock: Clock,
        daemon_uid: int,
        identify: Callable[[int], int],
    ) -> None:
        self._downloads = downloads
        self._offload = offload
        self._clock = clock
        self._daemon_uid = daemon_uid
        self._identify = identify
        self._grants = Grants(clock)
        self._stream_outcomes: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._renewable: dict[str, tuple[int, Download]] = {}
        """By a name that only their client is told: its user, and the download."""

    def table(self) -> list[web.RouteDef]:
        """Every route."""
        return [
            web.post("/v1/downloads", self.post_download),
            web.post("/v1/downloads/{download}/authorization", self.post_authorization),
            web.post("/v1/stream", self.post_stream),
            web.get("/v1/streams/{stream_id}", self.get_stream_outcome),
            web.get("/v1/status", self.get_status),
            web.get("/v1/tasks", self.get_tasks),
            web.get("/v1/tasks/{task_id}/content", self.get_content),
            web.delete("/v1/tasks/{task_id}", self.delete_task),
            web.post("/v1/swarm", self.post_swarm),
        ]

    @web.middleware
    async def errors_to_json(
        self,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        """Answers every expected error with `{"error": {"reason", "detail"}}`."""
        try:
            return await handler(request)
        except UsageError as error:
            return _error(400, "usage", str(error))
        except DownloadError as error:
            return _error(_STATUS_OF_REASON.get(error.reason, 500), error.reason, error.detail)
        except web.HTTPException as error:
            if error.status < 400:
                raise
            return _error(error.status, "usage", f"{request.method} {request.path}: {error.reason}")

    # ------------------------------------------------------------ downloads

    async def post_download(self, request: web.Request) -> web.StreamResponse:
        """`POST /v1/downloads`: runs a download and answers with its events, one per line."""
        wanted = decode_request(await _json_body(request))
        uid = self._uid_of(request)
        if not self._is_trusted(uid):
            wanted = replace(wanted, outputs=(None,) * len(wanted.urls))
        download = self._downloads.start(wanted)
        name = secrets.token_urlsafe(16)
        if wanted.renewable:
            self._renewable[name] = uid, download
        try:
            response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
            await response.prepare(request)
            async with aclosing(follow_as_asked(download, wanted)) as events:
                async for event in events:
                    if isinstance(event, Ready):
                        self._grants.grant(uid, event.task_id)
                    told = encode_event(event)
                    if isinstance(event, RightNeeded):
                        told["download"] = name
                    await response.write(json.dumps(told).encode() + b"\n")
            await response.write_eof()
        finally:
            self._renewable.pop(name, None)
            await download.close()
        return response

    async def post_authorization(self, request: web.Request) -> web.StreamResponse:
        """`POST /v1/downloads/{download}/authorization`: the answer to an event `unauthorized`,
        which names the download. Only for the user who began it."""
        authorization = decode_renewal(await _json_body(request))
        uid, download = self._renewable.get(request.match_info["download"], (None, None))
        if download is None or uid != self._uid_of(request):
            return _error(404, "unknown-download", "no such download of yours is running")
        download.renew(authorization)
        return web.json_response({})

    async def post_stream(self, request: web.Request) -> web.StreamResponse:
        """`POST /v1/stream`: answers with the content of one URL, in order, while it arrives. A
        failure after the first byte breaks the connection off; `GET /v1/streams/{id}` then tells
        the reason."""
        wanted = decode_request(await _json_body(request))
        if len(wanted.urls) != 1 or wanted.outputs != (None,):
            raise UsageError("a stream has one url and no output")
        wanted = replace(wanted, demand=Demand.STREAMING)
        deadline = None
        if wanted.timeout_ms:
            deadline = asyncio.get_running_loop().time() + wanted.timeout_ms / 1000
        late = DownloadError(Reason.TIMEOUT, f"not done after {wanted.timeout_ms} ms")
        try:
            async with asyncio.timeout_at(deadline):
                stream = await self._downloads.stream(wanted)
        except TimeoutError:
            raise late from None
        try:
            response, stream_id = _stream_response(stream)
            try:
                async with asyncio.timeout_at(deadline):
                    await response.prepare(request)
                    async for chunk in stream.chunks():
                        await response.write(chunk)
                    # Before the end: a client that asks right behind it must find the outcome.
                    self._note_outcome(stream_id, stream, None)
                    await response.write_eof()
            except TimeoutError:
                self._note_outcome(stream_id, stream, late)
                break_off(request)
            except DownloadError as error:
                self._note_outcome(stream_id, stream, error)
                break_off(request)
            return response
        finally:
            await stream.close()

    def _note_outcome(
        self, stream_id: str, stream: ContentStream, error: DownloadError | None
    ) -> None:
        progress = stream.progress()
        self._stream_outcomes[stream_id] = {
            "task_id": stream.task_id,
            "digest": stream.digest,
            "ok": error is None,
            "reason": error and str(error.reason),
            "detail": error.detail if error else "",
            "size": progress.size_bytes,
            "origin_bytes": progress.origin_bytes,
            "peer_bytes": progress.peer_bytes,
        }
        if len(self._stream_outcomes) > STREAM_OUTCOMES_MAX:
            self._stream_outcomes.popitem(last=False)

    async def get_stream_outcome(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/streams/{stream_id}`: how a stream ended. The id is a secret of its client."""
        outcome = self._stream_outcomes.get(request.match_info["stream_id"])
        if outcome is None:
            return _error(404, "unknown-stream", "no such stream has ended lately")
        return web.json_response(outcome)

    # ------------------------------------------------------------ contents and tasks

    async def get_content(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/tasks/{task_id}/content`: a whole, verified content or one range of it."""
        task_id = request.match_info["task_id"]
        uid = self._uid_of(request)
        if not self._is_trusted(uid) and not self._grants.allows(uid, task_id):
            raise DownloadError(
                Reason.UNAUTHORIZED, "download it first: a cached content is private to its users"
            )
        with await self._downloads.lend(task_id) as content:
            return await self._send_content(request, task_id, content)

    async def _send_content(
        self, request: web.Request, task_id: str, content: LentContent
    ) -> web.StreamResponse:
        size = content.size_bytes
        headers = {
            "Content-Type": "application/octet-stream",
            "Accept-Ranges": "bytes",
            "ETag": f'"{content.digest}"',
            TASK_ID_HEADER: task_id,
            DIGEST_HEADER: content.digest,
        }
        try:
            first, end, _step = request.http_range.indices(size)
        except ValueError:
            raise UsageError("Range: one range of bytes is supported, as in bytes=0-99") from None
        partial = "Range" in request.headers
        if partial and first >= end:
            headers["Content-Range"] = f"bytes */{size}"
            return web.Response(status=416, headers=headers)
        if partial:
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{size}"
        response = web.StreamResponse(status=206 if partial else 200, headers=headers)
        response.content_length = end - first
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        while first < end:
            wanted = min(CONTENT_CHUNK_BYTES, end - first)
            chunk = await self._offload(os.pread, content.fd, wanted, first)
            if not chunk:
                break_off(request)
                return response
            await response.write(chunk)
            first += len(chunk)
        await response.write_eof()
        return response

    async def get_tasks(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/tasks`: everything in the store."""
        del request
        tasks = await self._downloads.tasks()
        return web.json_response({"tasks": [encode_task(task) for task in tasks]})

    async def post_swarm(self, request: web.Request) -> web.StreamResponse:
        """`POST /v1/swarm`: how much of each content in `{"digests": [...]}` the swarm holds, this
        host included, and on how many hosts: `{"hosts", "whole_hosts", "contents": [{"digest",
        "hosts", "whole_hosts", "covered_bytes", "size"}]}`, one entry for each digest, in order.
        `hosts` (that hold something of any) and `whole_hosts` (that have all) of more than 1,024
        contents are null, `size` is null until the scheduler knows it. 503 `no-scheduler` or
        `overloaded` and 504 `timeout`: it is not known. Like `GET /v1/tasks` for all who may
        connect: numbers about what one can name by its digest."""
        digests = decode_digests(await _json_body(request))
        return web.json_response(encode_swarm(await self._downloads.swarm(digests)))

    async def delete_task(self, request: web.Request) -> web.StreamResponse:
        """`DELETE /v1/tasks/{task_id}`: removes a task that is not in use."""
        if not self._is_trusted(self._uid_of(request)):
            raise DownloadError(Reason.UNAUTHORIZED, "only the daemon's user and root may remove")
        await self._downloads.remove(request.match_info["task_id"])
        return web.Response(status=204)

    async def get_status(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/status`: what the daemon is and does."""
        del request
        return web.json_response(self._downloads.status())

    # ------------------------------------------------------------ who asks

    def _uid_of(self, request: web.Request) -> int:
        transport = request.transport
        if transport is None:
            raise DownloadError(Reason.UNAUTHORIZED, "the connection is gone")
        return self._identify(transport.get_extra_info("socket").fileno())

    def _is_trusted(self, uid: int) -> bool:
        return uid in (0, self._daemon_uid)


def _error(status: int, reason: str, detail: str) -> web.Response:
    return web.json_response({"error": {"reason": str(reason), "detail": detail}}, status=status)


def _stream_response(stream: ContentStream) -> tuple[web.StreamResponse, str]:
    """The head of the answer that carries a stream, and the stream's new id."""
    stream_id = secrets.token_hex(16)
    headers = {
        "Content-Type": "application/octet-stream",
        TASK_ID_HEADER: stream.task_id,
        STREAM_ID_HEADER: stream_id,
    }
    if stream.digest is not None:
        headers[DIGEST_HEADER] = stream.digest
    response = web.StreamResponse(headers=headers)
    response.content_length = stream.size_bytes
    return response, stream_id


async def _json_body(request: web.Request) -> object:
    try:
        body: object = json.loads(await request.read())
    except ValueError as error:
        # The text of the error names a place in the body and never quotes it.
        raise UsageError(f"the body is not JSON: {error}") from None
    return body


def break_off(request: web.Request) -> None:
    """Breaks the connection off, so that nobody takes what was sent for the whole."""
    if request.transport is not None:
        request.transport.abort()
