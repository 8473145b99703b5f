"""What registries say of their clients' rights to contents: asked, remembered, taken back.

A yes is an answer that can be of that content alone: its size is told, and so is its digest where
the answer has one. A redirect is none, and neither is a page that some proxy answers everything
with. Sends no content.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web
from multidict import CIMultiDict

from peer.shell.errors import DownloadError, OriginError
from peer.shell.mirror.answers import blob_headers, head, refusal, refusal_of
from peer.shell.mirror.grants import Grants
from peer.shell.mirror.paths import Asked
from peer.shell.mirror.relay import Relay, UpstreamFailedError, told_headers, without_range
from peer.shell.mirror.upstreams import Upstream
from peer.shell.origin.base import OriginStat
from peer.shell.origin.request import OriginRequest
from shoal.wire.errors import TRANSIENT_ORIGIN


@dataclass(frozen=True, slots=True)
class MirrorRequest:
    """A request whose registry is known."""

    http: web.Request
    asked: Asked
    upstream: Upstream
    named: str
    """The registry as paths of this client have to name it; "" if its listener does."""

    @property
    def authorization(self) -> str:
        """The client's credential."""
        return self.http.headers.get("Authorization", "")

    @property
    def place(self) -> str:
        """The repository among all registries."""
        return f"{self.upstream.name}/{self.asked.repository}"


@dataclass(frozen=True, slots=True)
class Yes:
    """A registry lets a client have a blob."""

    size_bytes: int | None
    """As it tells it: what is sent has to have it, or it was a yes to something else."""


class Verdicts:
    """Asks for them through a relay, and keeps them among grants. `stat` follows redirects."""

    def __init__(
        self,
        relay: Relay,
        grants: Grants,
        stat: Callable[[OriginRequest], Awaitable[OriginStat]],
    ) -> None:
        self._relay = relay
        self._grants = grants
        self._stat = stat

    def granted(self, request: MirrorRequest) -> bool:
        """Whether the registry said yes lately."""
        return self._grants.allows(
            request.authorization,
            request.upstream.name,
            request.asked.repository,
            request.asked.reference,
        )

    def accepted(self, request: MirrorRequest) -> None:
        """The registry says yes."""
        asked = request.asked
        self._grants.grant(
            request.authorization, request.upstream.name, asked.repository, (asked.reference,)
        )

    def refused(self, request: MirrorRequest) -> None:
        """The registry says no: what it said before counts no longer."""
        asked = request.asked
        where = (request.upstream.name, asked.repository, asked.reference)
        self._grants.revoke(request.authorization, *where)

    async def ask(self, request: MirrorRequest) -> web.StreamResponse | Yes | None:
        """Asks the registry whether this client may have a blob. Its answer, if it says no or is
        all that the client wants; None if it is away and had said yes lately. Raises
        UpstreamFailedError."""
        try:
            status, headers = await self._asked(request)
        except UpstreamFailedError:
            if self.granted(request):
                return None
            raise
        length = headers.popall("Content-Length", [""])[0]
        if status >= 400:
            self.refused(request)
            return _no(request, status, headers)
        size = int(length) if length.isdigit() else None
        if status != 200:
            try:
                stat = await self._stat_there(request)
            except OriginError as error:
                if error.reason in TRANSIENT_ORIGIN and self.granted(request):
                    return None
                self.refused(request)
                return refusal_of(DownloadError(error.reason, error.detail))
            if request.http.method == "HEAD" and not stat.ranges:
                return head(status, headers, None)  # Who knows what is there.
            size = stat.size_bytes
        told = headers.get("Docker-Content-Digest", "")
        if told != request.asked.reference and (told or size is None):
            # A page for signing in, say, which some proxies answer everything with.
            return refusal(503, "UNAVAILABLE", f"{request.upstream.name} names no such blob")
        if request.http.method != "HEAD":
            return Yes(size)
        return head(200, {**blob_headers(request.asked.reference), "Accept-Ranges": "bytes"}, size)

    async def _asked(self, request: MirrorRequest) -> tuple[int, CIMultiDict[str]]:
        """Status and headers of the registry's answer. Raises UpstreamFailedError."""
        async with self._relay.ask(
            request.upstream,
            "HEAD",
            request.asked.upstream_path,
            headers=without_range(request.http.headers),
        ) as answer:
            status, headers = answer.status, told_headers(answer.headers.items())
        if status >= 500 or status == 429:
            raise UpstreamFailedError(f"{request.upstream.name} answers {status}")
        return status, headers

    async def _stat_there(self, request: MirrorRequest) -> OriginStat:
        """What is where the registry redirects to. That it redirects is no yes: some send whoever
        has no right to a page for signing in. Raises OriginError."""
        authorization = request.authorization
        return await self._stat(
            OriginRequest(
                f"{request.upstream.url}{request.asked.upstream_path}",
                (("Authorization", authorization),) if authorization else (),
            )
        )


def _no(request: MirrorRequest, status: int, headers: CIMultiDict[str]) -> web.Response:
    name = request.upstream.name
    if status == 404:
        return refusal(404, "BLOB_UNKNOWN", f"{name} has no such blob")
    # The challenge is what clients need; a HEAD had no body to pass on.
    answered = refusal(status, "UNAUTHORIZED", f"{name} does not allow it")
    for key, value in headers.items():
        if key.lower() != "content-type":
            answered.headers.add(key, value)
    return answered
