"""Headers between a client, the proxy and an origin: what ends here and what goes on. Pure.

Source: RFC 9110, sections 7.6.3 (Via) and 11.7 (authentication of proxies).
"""

from collections.abc import Iterable, Mapping
from typing import Final

from multidict import CIMultiDict

from peer.shell.http_passing import going_on
from peer.shell.proxy.rules import DRAGONFLY

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
    own = CIMultiDict(
        (name, value)
        for name, value in going_on(headers, kept_here).items()
        if not name.lower().startswith(DRAGONFLY)
    )
    if pseudonym:
        own.add("Via", f"1.1 {pseudonym}")
    return own
