"""Requests that write, and uploads, passed through to the registry: pushes and deletions.

A registry's answer goes back as it is, but for where it sends its client next, which leads through
the mirror. Keeps nothing of what passes; whoever remembers something about what was written here is
told so. Decides which methods a path has, and nothing about who may use them: that is the
registry's word.
"""

from collections.abc import Callable
from typing import Final

from aiohttp import web

from peer.shell.mirror.answers import refusal
from peer.shell.mirror.bodies import BodyFailedError, hand_back
from peer.shell.mirror.locations import Locations
from peer.shell.mirror.paths import Asked, parse_path, parse_upload
from peer.shell.mirror.relay import Relay, told_headers
from peer.shell.mirror.upstreams import Upstream

_METHODS: Final = {
    "manifests": frozenset({"PUT", "DELETE"}),
    "blobs": frozenset({"DELETE"}),
    "uploads": frozenset({"GET", "HEAD", "POST", "PATCH", "PUT", "DELETE"}),
}
READING: Final = frozenset({"GET", "HEAD"})
AT_ONCE_MAX: Final = 64
"""Requests that write, each with a connection of its own; more are refused, so that pushes leave
connections to those who read."""


def asked_to_write(method: str, path: str, registries: frozenset[str]) -> Asked | None:
    """What a request that does not read contents is about; None for what is none of the
    protocol's. `path` as it was sent."""
    asked = parse_upload(path, registries)
    if asked is None and method not in READING:
        asked = parse_path(path, registries)
    if asked is None or method not in _METHODS.get(asked.place, frozenset()):
        return None
    return asked


class Writes:
    """Passes them through. `changed`: is told of a registry, a repository and a digest that may be
    there no longer, or anew."""

    def __init__(
        self, relay: Relay, locations: Locations, changed: Callable[[Upstream, str, str], None]
    ) -> None:
        self._relay = relay
        self._locations = locations
        self._changed = changed
        self._running = 0

    async def pass_on(
        self, http: web.Request, upstream: Upstream, path: str, query: str, named: str
    ) -> web.StreamResponse:
        """Any request to a path of the registry. Raises UpstreamFailedError."""
        if self._running >= AT_ONCE_MAX:
            return refusal(503, "UNAVAILABLE", f"this mirror has {AT_ONCE_MAX} writes running")
        self._running += 1
        try:
            async with self._relay.send(upstream, path, http, query=query) as (answer, body):
                headers = told_headers(answer.headers.items())
                if location := headers.get("Location"):
                    headers["Location"] = self._locations.inward(location, upstream, path, named)
                return await hand_back(http, answer, headers, whole=body.ended)
        except BodyFailedError as error:
            refused = refusal(error.status, "BLOB_UPLOAD_INVALID", str(error))
            refused.force_close()
            return refused
        finally:
            self._running -= 1

    async def write(
        self, http: web.Request, upstream: Upstream, asked: Asked, query: str, named: str
    ) -> web.StreamResponse:
        """A request of the protocol. Raises UpstreamFailedError."""
        changes = asked.reference if asked.place in ("manifests", "blobs") else ""
        if asked.place == "uploads":
            changes = http.query.get("digest", "")
        try:
            return await self.pass_on(http, upstream, asked.upstream_path, query, named)
        finally:
            # Whatever came of it: that an answer is missing does not mean that nothing was done.
            if changes:
                self._changed(upstream, asked.repository, changes)
