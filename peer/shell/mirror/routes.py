"""What the mirror does with each request of a container runtime or registry client.

Manifests, tags and referrers go to the registry each time. A blob comes through the swarm, after
the registry has let this client have it, and is sent while it arrives. Decides who is let read and
what is asked of whom; fetches nothing itself.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import aiohttp
from aiohttp import web

from peer.shell.content_answer import answer_content
from peer.shell.errors import DownloadError
from peer.shell.mirror.answers import VERSION_HEADERS, blob_headers, head, refusal, refusal_of
from peer.shell.mirror.bodies import hand_back
from peer.shell.mirror.grants import Grants
from peer.shell.mirror.images import MANIFEST_BYTES_MAX, Image, ImageBook, Manifest, digest_of
from peer.shell.mirror.locations import Locations
from peer.shell.mirror.paths import Asked, parse_path
from peer.shell.mirror.pulls import Pull, Pulls
from peer.shell.mirror.relay import (
    LOOP_HEADER,
    Relay,
    UpstreamFailedError,
    told_headers,
    without_range,
)
from peer.shell.mirror.upstreams import Upstream, UpstreamRefusedError, Upstreams
from peer.shell.mirror.verdicts import MirrorRequest, Verdicts, Yes
from peer.shell.mirror.writes import READING, Writes, asked_to_write
from peer.shell.origin.base import OriginStat
from peer.shell.origin.request import OriginRequest
from peer.shell.streams import RevokedError, RunningContent
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


class MirrorRoutes:
    """Answers requests. `unready()`: why no blob can be served now, "" if one can."""

    def __init__(
        self,
        *,
        upstreams: Upstreams,
        relay: Relay,
        stat: Callable[[OriginRequest], Awaitable[OriginStat]],
        grants: Grants,
        pulls: Pulls,
        unready: Callable[[], str],
        clock: Clock,
        writes: bool = False,
    ) -> None:
        self._upstreams = upstreams
        self._relay = relay
        self._locations = Locations()
        self._writes = Writes(relay, self._locations, self._changed) if writes else None
        self._grants = grants
        self._verdicts = Verdicts(relay, grants, stat)
        self._pulls = pulls
        self._unready = unready
        self._clock = clock
        self._images = ImageBook()
        self._false: OrderedDict[str, tuple[int, DownloadError]] = OrderedDict()
        """Blobs that were false lately, until when they are refused, and why."""
        self._log = Log("peer.shell.mirror")
        self.counters = MirrorCounters()

    async def answer(
        self, http: web.Request, listener: str, *, fixed: bool = False
    ) -> web.StreamResponse:
        """Any request. `listener`: the registry that whoever listens here stands for, "" if
        several. `fixed`: it was asked for by its own address, so that neither a path nor a query
        names another one."""
        self.counters.requests += 1
        if LOOP_HEADER in http.headers:
            return refusal(508, "UNSUPPORTED", "this request has passed a mirror already: a loop")
        if http.method not in READING and self._writes is None:
            return refusal(405, "UNSUPPORTED", "this mirror is for reading: see mirror.writes")
        try:
            written = await self._written(http, listener, fixed=fixed)
            if written is not None:
                return written
            if http.path in ("/v2/", "/v2"):
                return await self._ping(http, listener)
            asked = parse_path(http.path, self._prefixes(fixed))
            if asked is None:
                return refusal(404, "NAME_INVALID", "no path of the distribution protocol")
            request = self._request(http, asked, listener, fixed=fixed)
            if asked.place == "blobs" and asked.reference.startswith(f"{SWARM_ALGORITHM}:"):
                return await self._blob(request)
            if asked.place == "manifests":
                return await self._manifest(request)
            return await self._pass_through(request)
        except UpstreamRefusedError as error:
            return refusal(403, "DENIED", str(error))
        except UpstreamFailedError as error:
            return refusal(503, "UNAVAILABLE", str(error))

    def _prefixes(self, fixed: bool) -> frozenset[str]:
        """Registries that a path may name."""
        return frozenset() if fixed else self._upstreams.names

    def _request(
        self, http: web.Request, asked: Asked, listener: str, *, fixed: bool
    ) -> MirrorRequest:
        header = http.headers.get("X-Dragonfly-Registry", "")
        namespace = "" if fixed else http.query.get("ns", "")
        upstream = self._upstreams.choose(
            header=header, namespace=namespace, prefix=asked.registry, listener=listener
        )
        told = bool(header or namespace or asked.registry)
        return MirrorRequest(http, asked, upstream, upstream.name if told else "")

    async def _written(
        self, http: web.Request, listener: str, *, fixed: bool
    ) -> web.StreamResponse | None:
        """The answer to a request that writes, or goes where a registry sent its client; None for
        any other."""
        if self._writes is None:
            return None
        path, query = http.rel_url.raw_path, http.rel_url.raw_query_string
        if (sealed := self._locations.opened(path)) is not None:
            upstream = self._upstreams.choose(prefix=sealed[0])
            return await self._writes.pass_on(http, upstream, sealed[1], query, upstream.name)
        asked = asked_to_write(http.method, path, self._prefixes(fixed))
        if asked is None:
            if http.method in READING:
                return None
            return refusal(405, "UNSUPPORTED", f"nothing takes {http.method} at this path")
        request = self._request(http, asked, listener, fixed=fixed)
        return await self._writes.write(http, request.upstream, asked, _query(http), request.named)

    def _changed(self, upstream: Upstream, repository: str, digest: str) -> None:
        """Somebody wrote: what is remembered of it may not be so any longer."""
        self._images.forget(f"{upstream.name}/{repository}", digest)
        self._grants.forget(upstream.name, repository, digest)
        self._false.pop(digest, None)

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

    async def _pass_through(self, request: MirrorRequest) -> web.StreamResponse:
        async with self._relay.ask(
            request.upstream,
            request.http.method,
            request.asked.upstream_path,
            query=_query(request.http),
            headers=request.http.headers,
        ) as answer:
            headers = told_headers(answer.headers.items())
            where = (request.upstream, request.asked.upstream_path, request.named)
            if location := headers.get("Location"):
                headers["Location"] = self._locations.inward(location, *where)
            if link := headers.get("Link"):
                headers["Link"] = self._locations.link_inward(link, *where)
            return await hand_back(request.http, answer, headers)

    async def _manifest(self, request: MirrorRequest) -> web.StreamResponse:
        asked = request.asked
        try:
            async with self._relay.ask(
                request.upstream,
                request.http.method,
                asked.upstream_path,
                query=_query(request.http),
                headers=without_range(request.http.headers),
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
            return head(answer.status, headers, int(length) if length.isdigit() else None)
        if answer.status == 200:
            if asked.is_digest and digest_of(body, asked.reference.partition(":")[0]) != (
                asked.reference
            ):
                return refusal(503, "UNAVAILABLE", f"{request.upstream.name} sent another manifest")
            if not _query(request.http):  # It may have a credential in it, which is not a key here.
                self._seen(request, body, answer.headers.get("Content-Type", ""))
        elif 400 <= answer.status < 500 and answer.status != 429:
            self._verdicts.refused(request)
        headers.popall("Content-Length", None)
        return web.Response(status=answer.status, headers=headers, body=body)

    def _seen(self, request: MirrorRequest, body: bytes, media_type: str) -> None:
        """The registry lets this client have a manifest, and so what it names."""
        manifest = Manifest(digest_of(body), media_type, body)
        image = self._images.note(request.place, manifest)
        granted = (manifest.digest, *(image.blobs if image is not None else ()))
        self._grants.grant(
            request.authorization, request.upstream.name, request.asked.repository, granted
        )

    def _kept_manifest(self, request: MirrorRequest) -> web.StreamResponse | None:
        """A manifest by digest while its registry is away, for whom it lately let have it."""
        kept = self._images.manifest(request.place, request.asked.reference)
        if kept is None or not self._verdicts.granted(request):
            return None
        headers = {"Docker-Content-Digest": kept.digest, "Content-Type": kept.media_type}
        if request.http.method == "HEAD":
            return head(200, {**VERSION_HEADERS, **headers}, len(kept.body))
        return web.Response(headers={**VERSION_HEADERS, **headers}, body=kept.body)

    # ------------------------------------------------------------ through the swarm

    async def _blob(self, request: MirrorRequest) -> web.StreamResponse:
        told: Yes | None = None
        if request.http.method == "HEAD" or not self._verdicts.granted(request):
            answer = await self._verdicts.ask(request)
            if isinstance(answer, web.StreamResponse):
                self.counters.refused += answer.status >= 400
                return answer
            told = answer
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
                return await self._send(request, pull, content, told)
        except (DownloadError, UsageError) as error:
            if isinstance(error, UsageError):
                return refusal(400, "UNSUPPORTED", str(error))
            self._failed(pull, blob, error)
            return refusal_of(error)

    def _failed(self, pull: Pull, blob: str, error: DownloadError) -> None:
        self.counters.failed += 1
        if isinstance(error, RevokedError):
            return  # What is read anew is for whoever comes back for it.
        self._pulls.fails(pull, blob)
        if error.reason is Reason.DIGEST_MISMATCH:
            self._false[blob] = (self._clock.now_ns() + FALSE_NS, error)
            self._false.move_to_end(blob)
            if len(self._false) > FALSE_MAX:
                self._false.popitem(last=False)

    async def _send(
        self, request: MirrorRequest, pull: Pull, content: RunningContent, told: Yes | None
    ) -> web.StreamResponse:
        size = (await content.known()).geometry.size_bytes
        if told is not None:
            if size is not None and told.size_bytes not in (None, size):
                self.counters.refused += 1
                what = f"{request.upstream.name} has something else of {told.size_bytes} bytes"
                return refusal(503, "UNAVAILABLE", what)
            self._verdicts.accepted(request)

        def broke_off(error: DownloadError) -> None:
            # What came is not the whole: the client must not take it for that.
            self._log.warning("a blob broke off", blob=request.asked.reference, reason=str(error))
            self._failed(pull, request.asked.reference, error)

        return await answer_content(
            request.http,
            content,
            blob_headers(request.asked.reference),
            sent=self._count,
            broke_off=broke_off,
        )

    def _count(self, sent_bytes: int) -> None:
        self.counters.blob_bytes += sent_bytes


def _query(http: web.Request) -> str:
    """The query without what is said to the mirror alone."""
    parts = http.rel_url.raw_query_string.split("&")
    return "&".join(part for part in parts if part and not part.startswith("ns="))


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
