"""Resolves names to addresses that may be connected to.

Each address is judged, and the connection goes to one that was judged: a name that is resolved
again between check and use would lead anywhere. Knows no URL.
"""

import errno
import socket

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from peer.shell.origin.places import PlaceRules, as_address


class PlaceRefusedError(OSError):
    """A name leads only to addresses that may not be connected to."""

    def __init__(self, host: str) -> None:
        super().__init__(errno.EACCES, f"{host} is at an address that is not allowed")


class CheckedResolver(AbstractResolver):
    """Resolves names to what the rules allow, and addresses to themselves. `inner` asks."""

    def __init__(self, rules: PlaceRules, inner: AbstractResolver | None = None) -> None:
        self._rules = rules
        self._inner = inner

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Allowed addresses, at least one. Raises PlaceRefusedError; OSError for a name that
        does not exist."""
        if self._inner is None:
            self._inner = ThreadedResolver()
        found = await self._inner.resolve(host, port, family)
        if as_address(host) is not None:
            allowed = found if self._rules.allows_host(host, port) else []
        else:
            allowed = [each for each in found if self._rules.allows(each["host"])]
        if not allowed:
            raise PlaceRefusedError(host)
        return allowed

    async def close(self) -> None:
        """Ends what it asks with."""
        if self._inner is not None:
            await self._inner.close()
