"""Where a registry sends its client next, told so that the client comes back through the mirror.

Rewrites `Location` and `Link`: what lies at the registry's own host becomes a path of the mirror,
with its query as it was, for that is the registry's own state; what lies elsewhere (an object
storage) stays. A path that is none of the protocol's, as some registries use for uploads, is
sealed: the mirror takes back only paths that the registry itself has named. Pure.
"""

import hmac
import re
import secrets
from typing import Final
from urllib.parse import unquote, urljoin, urlsplit

from peer.shell.mirror.paths import parse_path, parse_upload
from peer.shell.mirror.upstreams import Upstream

_SEALED: Final = "/v2/_at/"
"""No repository begins with an underscore."""
_LINK: Final = re.compile(r"<([^<>]*)>")
_NAMESPACE: Final = re.compile(r"(?:^|&)ns=")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


class Locations:
    """Rewrites for one mirror. What it sealed is good as long as it lives."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def inward(self, location: str, upstream: Upstream, path: str, named: str) -> str:
        """A `Location` in the answer to a request for `path`. `named`: the registry's name if
        requests have to say it in their path, "" if the listener says it."""
        try:
            parts = urlsplit(urljoin(f"{upstream.url}{path}", location))
            if _host(parts.scheme, parts.netloc) not in _hosts(upstream):
                return location
        except ValueError:
            return location
        query = f"?{parts.query}" if parts.query else ""
        nobody: frozenset[str] = frozenset()
        plain = parse_upload(parts.path, nobody) or parse_path(unquote(parts.path), nobody)
        # In a plain path `ns` is said to the mirror.
        if plain and not _NAMESPACE.search(parts.query):
            below = parts.path.removeprefix("/v2")
            return f"/v2{'/' + named if named else ''}{below}{query}"
        return (
            f"{_SEALED}{self._seal(upstream.name, parts.path)}/{upstream.name}{parts.path}{query}"
        )

    def link_inward(self, link: str, upstream: Upstream, path: str, named: str) -> str:
        """The same for a `Link`, which says where the next page of a list is."""
        return _LINK.sub(lambda found: f"<{self.inward(found[1], upstream, path, named)}>", link)

    def opened(self, path: str) -> tuple[str, str] | None:
        """Registry and path of a sealed path, None for any other."""
        if not path.startswith(_SEALED):
            return None
        seal, _, rest = path.removeprefix(_SEALED).partition("/")
        name, slash, below = rest.partition("/")
        found = (name, slash + below)
        return found if hmac.compare_digest(seal.encode(), self._seal(*found).encode()) else None

    def _seal(self, name: str, path: str) -> str:
        return hmac.digest(self._key, f"{name} {path}".encode(), "sha256").hex()[:32]


def _hosts(upstream: Upstream) -> tuple[tuple[str, int | None], ...]:
    """Under which a registry may speak of itself: where it is, and how images name it."""
    parts = urlsplit(upstream.url)
    return _host(parts.scheme, parts.netloc), _host("https", upstream.name)


def _host(scheme: str, authority: str) -> tuple[str, int | None]:
    """Host and port, None for the usual one: whether it speaks TLS is not always known behind a
    balancer."""
    parts = urlsplit(f"//{authority}")
    return parts.hostname or "", None if parts.port == _DEFAULT_PORTS.get(scheme) else parts.port
