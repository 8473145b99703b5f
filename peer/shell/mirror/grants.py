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

_Key = tuple[str, str, str, str]


class Grants:
    """Verdicts of registries. `wall_clock`: seconds since 1970, for the end of tokens."""

    def __init__(self, clock: Clock, wall_clock: Callable[[], float], ttl_ns: int) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._ttl_ns = ttl_ns
        self._key = secrets.token_bytes(32)
        self._until_ns: OrderedDict[_Key, int] = OrderedDict()

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
            key = (credential, upstream, repository, digest)
            self._until_ns[key] = until_ns
            self._until_ns.move_to_end(key)
        while len(self._until_ns) > GRANTS_MAX:
            self._until_ns.popitem(last=False)

    def allows(self, authorization: str, upstream: str, repository: str, digest: str) -> bool:
        """Whether the registry said yes lately."""
        key = (self.credential(authorization), upstream, repository, digest)
        return self._until_ns.get(key, 0) > self._clock.now_ns()


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
