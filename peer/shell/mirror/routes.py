"""What the mirror does with each request of a container runtime or registry client.

Manifests, tags and referrers go to the registry each time. A blob comes through the swarm, after
the registry has let this client have it, and is sent while it arrives. Decides who is let read and
what is asked of whom; fetches nothing itself.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from peer.shell.api_routes import break_off
from peer.shell.api_types import DownloadError
from peer.shell.mirror.answers import VERSION_HEADERS, refusal, refusal_of
from peer.shell.mirror.grants import Grants
from peer.shell.mirror.images import MANIFEST_BYTES_MAX, Image, ImageBook, Manifest, digest_of
from peer.shell.mirror.paths import Asked, parse_path
from peer.shell.mirror.pulls import Pull, Pulls
from peer.shell.mirror.ranges import Unsatisfiable, parse_range
from peer.shell.mirror.relay import LOOP_HEADER, Relay, UpstreamFailedError, told_headers
from peer.shell.mirror.upstreams import Upstream, UpstreamRefusedError, Upstreams
from peer.shell.sending import can_send
from peer.shell.streams import RunningContent
from shoal.runtime.clock import Clock
from shoal.runtime.logs import Log
from shoal.wire.errors import Reason, UsageError
from shoal.wire.limits import SECOND_NS

FALSE_NS: Final = 5 * SECOND_NS
FALSE_MAX: Final = 1024
"""A blob whose bytes did not fit its digest is refused for a while: a client that goes on where a
body broke off would come back for its last bytes without end."""

CHUNK_BYTES: Final = 256 * 1024
SWARM_ALGORITHM: Final = "sha256"
"""Of blobs that go through the swarm; others pass through from their registry."""


@dataclass(slots=True)
class MirrorCounters:
    """What the mirror counts, for metrics."""

    requests: int = 0
    blobs: int = 0
    blob_bytes: int = 0
    refused: int = 0
    """Blobs that the registry did not let a client have."""
    failed: int = 0
    """Blobs that broke off or could not be begun."""


@dataclass(frozen=True, slots=True)
class _Request:
    """A request whose registry is known."""

    http: web.Request
    asked: Asked
    upstream: Upstream

    @property
    def authorization(self) -> str:
        return self.http.headers.get("Authorization", "")

    @property
    def place(self) -> str:
        """The repository among all registries."""
        return f"{self.upstream.name}/{self.asked.repository}"


class MirrorRoutes:
    """Answers requests. `unready()`: why no blob can be served now, "" if one can."""

    def __init__(
        self,
        *,
        upstreams: Upstreams,
        relay: Relay,
        grants: Grants,
        pulls: Pulls,
        unready: Callable[[], str],
        clock: Clock,
    ) -> None:
        self._upstreams = upstreams
        self._relay = relay
        self._grants = grants
        self._pulls = pulls
        self._unready = unready
        self._clock = clock
        self._images = ImageBook()
        self._false: OrderedDict[str, tuple[int, DownloadError]] = OrderedDict()
        """Blobs that were false lately, until when they are refused, and why."""
        self._log = Log("peer.shell.mirror")
        self.counters = MirrorCounters()

    async def answer(self, http: web.Request, listener: str) -> web.StreamResponse:
        """Any request. `listener`: the registry that whoever listens here stands for, "" if
        several."""
        self.counters.requests += 1
        if LOOP_HEADER in http.headers:
            return refusal(508, "UNSUPPORTED", "this request has passed a mirror already: a loop")
        if http.method not in ("GET", "HEAD"):
            return refusal(405, "UNSUPPORTED", "this mirror is for reading")
        try:
            if http.path in ("/v2/", "/v2"):
                return await self._ping(http, listener)
            asked = parse_path(http.path, self._upstreams.names)
            if asked is None:
                return refusal(404, "NAME_INVALID", "no path of the distribution protocol")
            upstream = self._upstreams.choose(
                header=http.headers.get("X-Dragonfly-Registry", ""),
                namespace=http.query.get("ns", ""),
                prefix=asked.registry,
                listener=listener,
            )
            request = _Request(http, asked, upstream)
            if asked.place == "blobs" and asked.reference.startswith(f"{SWARM_ALGORITHM}:"):
                return await self._blob(request)
            if asked.place == "manifests":
                return await self._manifest(request)
            return await self._pass_through(request)
        except UpstreamRefusedError as error:
            return refusal(403, "DENIED", str(error))
        except UpstreamFailedError as error:
            return refusal(503, "UNAVAILABLE", str(error))

    # ------------------------------------------------------------ from the registry

    async def _ping(self, http: web.Request, listener: str) -> web.StreamResponse:
        if not listener:
            return web.json_response({}, headers=VERSION_HEADERS)
        upstream = self._upstreams.choose(listener=listener)
        async with self._relay.ask(upstream, "GET", "/v2/", headers=http.headers) as answer:
            body = await _bounded(answer)
            return web.Response(
                status=answer.status, headers=told_headers(answer.headers.items()), body=body
            )

    async def _pass_through(self, request: _Request) -> web.StreamResponse:
        async with self._relay.ask(
            request.upstream,
            request.http.method,
            request.asked.upstream_path,
            query=_query(request.http),
            headers=request.http.headers,
        ) as answer:
            response = web.StreamResponse(
                status=answer.status, headers=told_headers(answer.headers.items())
            )
            await response.prepare(request.http)
            try:
                async for chunk in answer.content.iter_chunked(CHUNK_BYTES):
                    await response.write(chunk)
            except (aiohttp.ClientError, TimeoutError):
                break_off(request.http)
                return response
            await response.write_eof()
            return response

    async def _manifest(self, request: _Request) -> web.StreamResponse:
        asked = request.asked
        try:
            async with self._relay.ask(
                request.upstream,
                request.http.method,
                asked.upstream_path,
                query=_query(request.http),
                headers=_without_range(request.http.headers),
            ) as answer:
                body = await _bounded(answer)
        except UpstreamFailedError:
            kept = self._kept_manifest(request)
            if kept is None:
                raise
            return kept
        headers = told_headers(answer.headers.items())
        if request.http.method == "HEAD":
            length = headers.popall("Content-Length", [""])[0]
            return _head(answer.status, headers, int(length) if length.isdigit() else None)
        if answer.status == 200:
            if asked.is_digest and digest_of(body, asked.reference.partition(":")[0]) != (
                asked.reference
            ):
                return refusal(503, "UNAVAILABLE", f"{request.upstream.name} sent another manifest")
            self._seen(request, body, answer.headers.get("Content-Type", ""))
        headers.popall("Content-Length", None)
        return web.Response(status=answer.status, headers=headers, body=body)

    def _seen(self, request: _Request, body: bytes, media_type: str) -> None:
        """The registry lets this client have a manifest, and so what it names."""
        manifest = Manifest(digest_of(body), media_type, body)
        image = self._images.note(request.place, manifest)
        granted = (manifest.digest, *(image.blobs if image is not None else ()))
        self._grants.grant(
            request.authorization, request.upstream.name, request.asked.repository, granted
        )

    def _kept_manifest(self, request: _Request) -> web.StreamResponse | None:
        """A manifest by digest while its registry is away, for whom it lately let have it."""
        kept = self._images.manifest(request.place, request.asked.reference)
        if kept is None or not self._granted(request):
            return None
        headers = {"Docker-Content-Digest": kept.digest, "Content-Type": kept.media_type}
        if request.http.method == "HEAD":
            return _head(200, {**VERSION_HEADERS, **headers}, len(kept.body))
        return web.Response(headers={**VERSION_HEADERS, **headers}, body=kept.body)

    # ------------------------------------------------------------ through the swarm

    def _granted(self, request: _Request) -> bool:
        return self._grants.allows(
            request.authorization,
            request.upstream.name,
            request.asked.repository,
            request.asked.reference,
        )

    async def _blob(self, request: _Request) -> web.StreamResponse:
        if request.http.method == "HEAD" or not self._granted(request):
            told = await self._ask_for_blob(request)
            if told is not None:
                self.counters.refused += told.status >= 400
                return told
        if reason := self._unready():
            return refusal(503, "UNAVAILABLE", f"this mirror is {reason}")
        blob = request.asked.reference
        until_ns, error = self._false.get(blob, (0, None))
        if error is not None and self._clock.now_ns() < until_ns:
            return refusal_of(error)
        image = self._images.image_of(request.place, blob) or Image(blob, (blob,))
        blobs = tuple(each for each in image.blobs if each.startswith(f"{SWARM_ALGORITHM}:"))
        pull = Pull(
            request.upstream,
            request.asked.repository,
            blobs,
            self._grants.credential(request.authorization),
        )
        self.counters.blobs += 1
        try:
            part = "Range" in request.http.headers
            async with self._pulls.reading(pull, blob, request.authorization, part=part) as content:
                return await self._send(request, pull, content)
        except (DownloadError, UsageError) as error:
            if isinstance(error, UsageError):
                return refusal(400, "UNSUPPORTED", str(error))
            self._failed(pull, blob, error)
            return refusal_of(error)

    def _failed(self, pull: Pull, blob: str, error: DownloadError) -> None:
        self.counters.failed += 1
        self._pulls.fails(pull, blob)
        if error.reason is Reason.DIGEST_MISMATCH:
            self._false[blob] = (self._clock.now_ns() + FALSE_NS, error)
            self._false.move_to_end(blob)
            if len(self._false) > FALSE_MAX:
                self._false.popitem(last=False)

    async def _ask_for_blob(self, request: _Request) -> web.StreamResponse | None:
        """Asks the registry whether this client may have a blob. Its answer, if it says no or is
        all that the client wants; None if the content is to be sent."""
        try:
            async with self._relay.ask(
                request.upstream,
                "HEAD",
                request.asked.upstream_path,
                headers=_without_range(request.http.headers),
            ) as answer:
                status, headers = answer.status, told_headers(answer.headers.items())
            if status >= 500 or status == 429:
                raise UpstreamFailedError(f"{request.upstream.name} answers {status}")
        except UpstreamFailedError:
            if self._granted(request):
                return None
            raise
        length = headers.popall("Content-Length", [""])[0]
        if status < 400:
            self._grants.grant(
                request.authorization,
                request.upstream.name,
                request.asked.repository,
                (request.asked.reference,),
            )
            if request.http.method == "HEAD" and status == 200 and length.isdigit():
                told = {**_blob_headers(request.asked.reference), "Accept-Ranges": "bytes"}
                return _head(200, told, int(length))
            return None
        if status == 404:
            return refusal(404, "BLOB_UNKNOWN", f"{request.upstream.name} has no such blob")
        # The challenge is what clients need; a HEAD had no body to pass on.
        answered = refusal(status, "UNAUTHORIZED", f"{request.upstream.name} does not allow it")
        for name, value in headers.items():
            if name.lower() != "content-type":
                answered.headers.add(name, value)
        return answered

    async def _send(
        self, request: _Request, pull: Pull, content: RunningContent
    ) -> web.StreamResponse:
        http = request.http
        descriptor = await content.known()
        size = descriptor.geometry.size_bytes
        headers = _blob_headers(request.asked.reference)
        first, end, status = 0, size, 200
        if size is not None:
            headers["Accept-Ranges"] = "bytes"
            try:
                found = parse_range(http.headers.get("Range"), size)
            except Unsatisfiable:
                return web.Response(
                    status=416, headers={**headers, "Content-Range": f"bytes */{size}"}
                )
            if found is not None:
                first, end, status = found.start, found.end, 206
                headers["Content-Range"] = f"bytes {first}-{found.end - 1}/{size}"
        response = web.StreamResponse(status=status, headers=headers)
        if end is not None:
            response.content_length = end - first
        await response.prepare(http)
        if http.method == "HEAD":
            return response
        try:
            if can_send(http.transport):
                assert http.transport is not None
                await content.send(http.transport, first, end, self._count)
            else:
                async with aclosing(content.chunks(first, end)) as chunks:
                    async for chunk in chunks:
                        await response.write(chunk)
                        self._count(len(chunk))
            await response.write_eof()
        except DownloadError as error:
            # What came is not the whole: the client must not take it for that.
            self._log.warning("a blob broke off", blob=request.asked.reference, reason=str(error))
            self._failed(pull, request.asked.reference, error)
            break_off(http)
        except (ConnectionError, asyncio.CancelledError):
            break_off(http)
            raise
        return response

    def _count(self, sent_bytes: int) -> None:
        self.counters.blob_bytes += sent_bytes


def _head(status: int, headers: Mapping[str, str], length_bytes: int | None) -> web.StreamResponse:
    """An answer to HEAD: the length of a body that is not sent."""
    response = web.StreamResponse(status=status, headers=headers)
    response.content_length = length_bytes
    return response


def _blob_headers(digest: str) -> dict[str, str]:
    return {
        **VERSION_HEADERS,
        "Content-Type": "application/octet-stream",
        "Docker-Content-Digest": digest,
        "ETag": f'"{digest}"',
    }


def _query(http: web.Request) -> str:
    """The query without what is said to the mirror alone."""
    parts = http.rel_url.raw_query_string.split("&")
    return "&".join(part for part in parts if part and not part.startswith("ns="))


def _without_range(headers: Mapping[str, str]) -> CIMultiDict[str]:
    own = CIMultiDict(headers)
    own.popall("Range", None)
    return own


async def _bounded(answer: aiohttp.ClientResponse) -> bytes:
    """A small body. Raises UpstreamFailedError."""
    body = bytearray()
    try:
        async for chunk in answer.content.iter_chunked(CHUNK_BYTES):
            body += chunk
            if len(body) > MANIFEST_BYTES_MAX:
                raise UpstreamFailedError(f"an answer is longer than {MANIFEST_BYTES_MAX} bytes")
    except (aiohttp.ClientError, TimeoutError) as error:
        raise UpstreamFailedError(f"the answer broke off: {type(error).__name__}") from error
    return bytes(body)
