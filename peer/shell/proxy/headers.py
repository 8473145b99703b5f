"""Headers between a client, the proxy and an origin: what ends here and what goes on. Pure.

Source: RFC 9110, sections 7.6.1 (Connection), 7.6.3 (Via), 11.7 (authentication of proxies).
"""

from collections.abc import Iterable, Mapping
from typing import Final

from multidict import CIMultiDict

from peer.shell.proxy.rules import DRAGONFLY

_OF_THE_CONNECTION: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-authentication-info",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_OF_THE_REQUEST: Final = frozenset({"host", "expect"})
"""What follows from the URL, and what was answered here already."""

_DECIDED_BY_SHOAL: Final = frozenset(
    {"accept-encoding", "content-length", "if-range", "range", "via"}
)
"""What a download through the swarm does not take from a client."""

_CONDITIONS: Final = (
    "If-Match",
    "If-None-Match",
    "If-Modified-Since",
    "If-Unmodified-Since",
    "If-Range",
)


def asked_headers(headers: Mapping[str, str], pseudonym: str) -> CIMultiDict[str]:
    """What of a client's request goes on to its origin."""
    return _going_on(headers.items(), _OF_THE_REQUEST, pseudonym)


def told_headers(headers: Iterable[tuple[str, str]], pseudonym: str) -> CIMultiDict[str]:
    """What of an origin's answer its client is told."""
    return _going_on(headers, frozenset(), pseudonym)


def credential_headers(headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """What of a client's request a download on its behalf is made with."""
    going = _going_on(headers.items(), _OF_THE_REQUEST | _DECIDED_BY_SHOAL, "")
    return tuple(going.items())


def is_conditional(headers: Mapping[str, str]) -> bool:
    """Whether the answer depends on what the client has already."""
    return any(name in headers for name in _CONDITIONS)


def passed(via: str, pseudonym: str) -> bool:
    """Whether a request with this Via has been here before: a loop."""
    return any(part.strip().partition(" ")[2].split(" ")[0] == pseudonym for part in via.split(","))


def _going_on(
    headers: Iterable[tuple[str, str]], kept_here: frozenset[str], pseudonym: str
) -> CIMultiDict[str]:
    given = list(headers)
    named = {
        word.strip().lower()
        for name, value in given
        if name.lower() == "connection"
        for word in value.split(",")
    }
    own: CIMultiDict[str] = CIMultiDict()
    for name, value in given:
        lower = name.lower()
        if (
            lower not in _OF_THE_CONNECTION
            and lower not in kept_here
            and lower not in named
            and not lower.startswith(DRAGONFLY)
        ):
            own.add(name, value)
    if pseudonym:
        own.add("Via", f"1.1 {pseudonym}")
    return own
