"""What every kind of origin does for a peer: tell size and validator, and give bytes in order.

HTTP is the first implementation; object stores, model hubs and OCI registries implement the same
Protocol. An origin makes one attempt at what it is asked and reports what came of it: whether and
when to try again is the core's decision. Nothing here imports an HTTP library, so that commands
which only build requests stay quick to start.
"""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from peer.shell.errors import OriginError
from peer.shell.origin.request import OriginRequest
from shoal.wire.errors import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginStat:
    """What an origin says of a content. `size_bytes` None: it does not tell before the end."""

    size_bytes: int | None
    validator: str | None
    """Changes whenever the bytes change; None if the origin has nothing of the kind."""
    ranges: bool
    """Whether a read may begin anywhere at no extra cost."""


class OriginBody(Protocol):
    """The bytes of one opened range, in order. Used by one coroutine at a time."""

    @property
    def size_bytes(self) -> int | None:
        """Size of the whole content as this answer tells it; None if it does not."""
        ...

    @property
    def skip_bytes(self) -> int:
        """How many bytes come before the start that was asked for, because the origin can't begin
        there. The reader receives them like all others and throws them away."""
        ...

    async def wait(self) -> bool:
        """Waits until `receive_into` has something to give at once; False at the end of the range.
        Raises OriginError as that does."""
        ...

    async def receive_into(self, view: memoryview) -> int:
        """Puts the next bytes into a prefix of a view that is not empty, and returns how many:
        0 only at the end of the range. Raises OriginError, also for a body that is too short."""
        ...

    async def finish(self) -> None:
        """To be called when all bytes of the range have come: raises OriginError if the origin
        goes on where it should have ended."""
        ...


class Origin(Protocol):
    """A kind of origin. Safe to use for many requests at once."""

    async def stat(self, request: OriginRequest) -> OriginStat:
        """Asks for size, validator and range support. Raises OriginError."""
        ...

    def open(
        self,
        request: OriginRequest,
        *,
        start_byte: int,
        end_byte: int | None,
        validator: str | None,
        size_bytes: int | None,
    ) -> AbstractAsyncContextManager[OriginBody]:
        """Opens the half-open byte range [start_byte, end_byte) for reading, `end_byte` None for
        the end of the content. Entering raises OriginError, with ORIGIN_CHANGED before any byte
        is given if validator or size are not (where given) those named."""
        ...

    async def close(self) -> None:
        """Ends all connections; what is being read fails."""
        ...


class Origins:
    """The origins of a daemon by URL scheme."""

    def __init__(self, by_scheme: Mapping[str, Origin]) -> None:
        self._by_scheme = dict(by_scheme)

    @property
    def schemes(self) -> tuple[str, ...]:
        """All schemes that can be read from, sorted."""
        return tuple(sorted(self._by_scheme))

    def of(self, request: OriginRequest) -> Origin:
        """The origin for a request. Raises OriginError for a scheme that nobody serves."""
        origin = self._by_scheme.get(request.scheme)
        if origin is None:
            raise OriginError(
                Reason.ORIGIN_INVALID,
                f"no origin for {request.scheme}:// URLs; there are {', '.join(self.schemes)}",
            )
        return origin

    async def close(self) -> None:
        """Closes every origin once."""
        for origin in {id(origin): origin for origin in self._by_scheme.values()}.values():
            await origin.close()
