"""Whom the registry has let read what, for a short time.

A cached content is served only to a client whose own credential the registry has accepted for that
content in that repository. Credentials are kept as keyed hashes. Never asks anybody.
"""

import base64
import hashlib
import json
import secrets
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from shoal.runtime.clock import Clock
from shoal.wire.limits import SECOND_NS

GRANTS_MAX: Final = 65_536
TOKEN_BYTES_MAX: Final = 64 * 1024
"""Of a token that is looked into for its end; a longer one is good for no time at all."""

_Place = tuple[str, str, str]
"""Registry, repository, digest."""


class Grants:
    """Verdicts of registries. `wall_clock`: seconds since 1970, for the end of tokens."""

    def __init__(self, clock: Clock, wall_clock: Callable[[], float], ttl_ns: int) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._ttl_ns = ttl_ns
        self._key = secrets.token_bytes(32)
        self._until_ns: OrderedDict[_Place, dict[str, int]] = OrderedDict()
        """By credential. The place that was granted longest ago is forgotten first."""
        self.count = 0
        """How many are remembered."""

    def credential(self, authorization: str) -> str:
        """What a client's `Authorization` is known by; "" for none."""
        if not authorization:
            return ""
        hasher = hashlib.blake2b(authorization.encode(), key=self._key, digest_size=16)
        return hasher.hexdigest()

    def grant(
        self, authorization: str, upstream: str, repository: str, digests: tuple[str, ...]
    ) -> None:
        """The registry has answered a request for these with yes."""
        ttl_ns = self._ttl_ns
        left_s = token_seconds_left(authorization, self._wall_clock())
        if left_s is not None:
            ttl_ns = min(ttl_ns, int(left_s * SECOND_NS))
        if ttl_ns <= 0:
            return
        until_ns = self._clock.now_ns() + ttl_ns
        credential = self.credential(authorization)
        for digest in digests:
            place = (upstream, repository, digest)
            granted = self._until_ns.setdefault(place, {})
            self.count += credential not in granted
            granted[credential] = until_ns
            self._until_ns.move_to_end(place)
        while self.count > GRANTS_MAX:
            _, dropped = self._until_ns.popitem(last=False)
            self.count -= len(dropped)

    def revoke(self, authorization: str, upstream: str, repository: str, digest: str) -> None:
        """The registry has answered this credential with no."""
        place = (upstream, repository, digest)
        granted = self._until_ns.get(place, {})
        if granted.pop(self.credential(authorization), None) is not None:
            self.count -= 1
            if not granted:
                del self._until_ns[place]

    def forget(self, upstream: str, repository: str, digest: str) -> None:
        """Nobody's right holds any longer: what it was for may be gone."""
        self.count -= len(self._until_ns.pop((upstream, repository, digest), {}))

    def allows(self, authorization: str, upstream: str, repository: str, digest: str) -> bool:
        """Whether the registry said yes lately."""
        granted = self._until_ns.get((upstream, repository, digest))
        if granted is None:
            return False
        return granted.get(self.credential(authorization), 0) > self._clock.now_ns()


def token_seconds_left(authorization: str, now_s: float) -> float | None:
    """How long a bearer token is still good by its own word (RFC 7519, `exp`); None if it does
    not say."""
    scheme, _, token = authorization.partition(" ")
    parts = token.strip().split(".")
    if scheme.lower() != "bearer" or len(parts) != 3:
        return None
    if len(token) > TOKEN_BYTES_MAX:
        return 0.0
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except ValueError:
        return None
    expires_s = claims.get("exp") if isinstance(claims, dict) else None
    return expires_s - now_s if isinstance(expires_s, int | float) else None
