"""What local clients ask origins for, with their credentials; and how one that has run out is
renewed while its download goes on.

A registry's token may last two minutes, a download hours. When an origin refuses a request whose
client is able to renew it, the client is told, and the attempt waits for a bounded time. So the
download stays one, and its host in the same swarm. Credentials never leave this host but to the
origin. Never asks an origin itself.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from peer.shell.origin.request import OriginRequest
from shoal.wire.errors import Reason
from shoal.wire.ids import SourceId

RENEWAL_TIMEOUT_S: Final = 20.0
"""For a client to come with a fresh right: below the scheduler's patience with a lease that makes
no progress."""

RENEWABLE: Final = frozenset({Reason.ORIGIN_UNAUTHORIZED, Reason.ORIGIN_FORBIDDEN})
"""What origins say of a right that has run out; object stores mostly answer 403."""

Key = tuple[SourceId, str]
"""A source, and the keyed hash of the credential that its client first gave."""


@dataclass(eq=False, slots=True)
class Renewer:
    """A client that can give fresh rights. `ask` tells it that one is needed; once for all of its
    requests, however many were refused."""

    ask: Callable[[Reason], bool]
    """Whether it was told."""
    pending: "asyncio.Future[None] | None" = field(default=None)


@dataclass(slots=True)
class _Entry:
    request: OriginRequest
    trusted: bool
    users: int
    renewers: list[Renewer]


class Rights:
    """Requests by source and credential. Belongs to the event loop's thread."""

    def __init__(self, timeout_s: float = RENEWAL_TIMEOUT_S) -> None:
        self._entries: dict[Key, _Entry] = {}
        self._timeout_s = timeout_s

    def add(
        self, key: Key, request: OriginRequest, renewer: Renewer | None, *, trusted: bool = False
    ) -> None:
        """A download wants it; to be taken back with `remove`. `trusted`: an operator named its
        origin. Several who show nothing share a key, whatever their URLs: then such a one is
        asked, since what it says is believed for all of them."""
        entry = self._entries.setdefault(key, _Entry(request, trusted, 0, []))
        if trusted and not entry.trusted:
            entry.request, entry.trusted = request, True
        entry.users += 1
        if renewer is not None and renewer not in entry.renewers:
            entry.renewers.append(renewer)

    def remove(self, key: Key, renewer: Renewer | None) -> None:
        """A download is over."""
        entry = self._entries[key]
        entry.users -= 1
        if not entry.users:
            del self._entries[key]
        elif renewer is not None and renewer in entry.renewers:
            entry.renewers.remove(renewer)
        if renewer is not None:
            _answered(renewer)

    def resolve(self, source_id: SourceId, credential: str) -> OriginRequest | None:
        """The request with the credential that a client gave for a source."""
        entry = self._entries.get((source_id, credential))
        return entry.request if entry is not None else None

    async def renewed(
        self, source_id: SourceId, credential: str, refused: OriginRequest, reason: Reason
    ) -> OriginRequest | None:
        """The request with a fresh right after the origin refused it as it was; None if nobody has
        one. Waits for the client for a bounded time."""
        entry = self._entries.get((source_id, credential))
        if entry is None or reason not in RENEWABLE:
            return None
        if entry.request == refused:
            if not entry.renewers:
                return None
            await self._ask(entry.renewers[0], reason)
        # The download may have ended meanwhile, or somebody else may have come with it.
        request = self.resolve(source_id, credential)
        return request if request != refused else None

    async def _ask(self, renewer: Renewer, reason: Reason) -> None:
        if renewer.pending is None:
            renewer.pending = asyncio.get_running_loop().create_future()
            if not renewer.ask(reason):
                _answered(renewer)
                return
        try:
            async with asyncio.timeout(self._timeout_s):
                await asyncio.shield(renewer.pending)
        except TimeoutError:
            # It may be asked again, for another attempt.
            _answered(renewer)

    def renew(self, keys: Iterable[Key], renewer: Renewer, authorization: str | None) -> None:
        """The client's answer: another Authorization for its requests that have one, or None for
        "there is none"."""
        for key in keys:
            entry = self._entries.get(key)
            if entry is not None and authorization is not None:
                headers = tuple(
                    (name, authorization if name.lower() == "authorization" else value)
                    for name, value in entry.request.headers
                )
                entry.request = replace(entry.request, headers=headers)
        _answered(renewer)


def _answered(renewer: Renewer) -> None:
    pending, renewer.pending = renewer.pending, None
    if pending is not None and not pending.done():
        pending.set_result(None)
