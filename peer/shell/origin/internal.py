"""Where a server may send us: anywhere public, and to the internal hosts that an operator lists.

A user may name any address; a redirect may not. Decides; connects nothing itself.
"""

from collections.abc import Iterable
from urllib.parse import urlsplit

from peer.shell.origin.places import Network, PlaceRules, as_address, parse_network
from shoal.wire.errors import UsageError


class InternalHosts:
    """The internal hosts that a redirect may lead to all the same: addresses, networks as
    10.1.0.0/16, and names, each with or without a port. Raises UsageError."""

    def __init__(self, listed: Iterable[str] = ()) -> None:
        networks: list[Network] = []
        self._names: set[tuple[str, int | None]] = set()
        for text in listed:
            plain = text.strip("[]")
            if "/" in text or as_address(plain) is not None:
                networks.append(parse_network(plain))
            else:
                self._names.add(_name(text))
        self.places = PlaceRules(tuple(networks))
        """What a redirect to any other host may lead to."""

    def names(self, url: str) -> bool:
        """Whether the host of a URL is listed by name, whatever it resolves to."""
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".")
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
        return (host, None) in self._names or (host, port) in self._names


def _name(text: str) -> tuple[str, int | None]:
    wrong = UsageError(f"{text!r}: write a host, host:port, an address or a network as 10.1.0.0/16")
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise wrong from None
    if not host or text != parts.netloc or "/" in text or "@" in text or not host.isascii():
        raise wrong
    return host.rstrip("."), port
