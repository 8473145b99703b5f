"""What a request to a proxy is for: absolute URLs, CONNECT requests, and patterns of hosts. Pure.

Source: RFC 9112, section 3.2 (forms of a request's target), RFC 9110, section 9.3.6 (CONNECT).
"""

import re
from dataclasses import dataclass
from typing import Final

from peer.shell.origin.places import as_address
from peer.shell.urls import SCHEMES
from shoal.wire.errors import UsageError

HEAD_BYTES_MAX: Final = 16 * 1024
"""Of a CONNECT request with all its headers; real ones have some hundred bytes."""

_NAME: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_.-]{0,251}[a-z0-9_])?")
_PORT: Final = re.compile(r"[0-9]{1,5}")
_ABSOLUTE: Final = re.compile(r"(https?)://([^/?#\\]*)((?:[/?][^#]*)?)", re.IGNORECASE | re.ASCII)
_CONNECT: Final = re.compile(r"CONNECT ([!-~]+) HTTP/1\.[01]", re.ASCII)
_FIELD: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[^\x00\r\n]*", re.ASCII)
_ENDS_IN_PORT: Final = re.compile(r":[0-9]+\Z")


class TargetError(Exception):
    """A request's target cannot be read; the text is fit for its client."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a request goes."""

    scheme: str
    """`http` or `https`; what goes through CONNECT counts as https."""
    host: str
    """In lower case, an IPv6 address without brackets."""
    port: int

    @property
    def authority(self) -> str:
        """Host and port, the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == SCHEMES[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """As a URL without a path."""
        return f"{self.scheme}://{self.authority}"


def parse_target(authority: str, scheme: str) -> Target:
    """A target from `host`, `host:port` or `[v6]:port`. Raises TargetError."""
    host, port = _split(authority.lower())
    if host is None or port == 0:
        raise TargetError("the request's host cannot be read: write it as host:port")
    return Target(scheme, host, SCHEMES[scheme] if port is None else port)


def parse_absolute(text: str) -> tuple[Target, str]:
    """The target of `http://host/path?query`, and the rest to the letter. Raises TargetError."""
    found = _ABSOLUTE.fullmatch(text)
    if found is None:
        raise TargetError("the request names no http:// or https:// URL")
    if "@" in found[2]:
        raise TargetError("a URL with user and password: send them as Authorization")
    target = parse_target(found[2], found[1].lower())
    rest = found[3] or "/"
    return target, rest if rest.startswith("/") else f"/{rest}"


def parse_connect(head: bytes) -> Target:
    """Where a CONNECT request goes, from all before its empty line. Raises TargetError."""
    lines = head.decode("latin-1").split("\r\n")
    found = _CONNECT.fullmatch(lines[0])
    if found is None:
        raise TargetError("this is not a proper CONNECT request")
    if not all(_FIELD.fullmatch(line) for line in lines[1:]):
        raise TargetError("a header of the CONNECT request cannot be read")
    if not _ENDS_IN_PORT.search(found[1]):
        raise TargetError("CONNECT without a port: write host:port")
    return parse_target(found[1], "https")


@dataclass(frozen=True, slots=True)
class HostPattern:
    """Hosts that are listed."""

    host: str
    """A name, an IP address, `*.domain` for all names below one, or `*`."""
    port: int | None
    """None for the port of the scheme."""

    def covers(self, target: Target) -> bool:
        """Whether a target is meant."""
        wanted = SCHEMES[target.scheme] if self.port is None else self.port
        if target.port != wanted:
            return False
        if self.host == "*":
            return True
        if self.host.startswith("*."):
            return target.host.endswith(self.host[1:])
        return target.host == self.host


def parse_pattern(text: str) -> HostPattern:
    """`reg.example`, `reg.example:5000`, `*.example`, `*`, `[::1]:8080`. Raises UsageError."""
    plain = text.strip().lower()
    head, below = ("*.", plain[2:]) if plain.startswith("*.") else ("", plain)
    if below == "*" or below.startswith("*:"):
        port = below[2:] or "none"
        if below == "*":
            return HostPattern("*", None)
        if _PORT.fullmatch(port) and 0 < int(port) <= 65535:
            return HostPattern("*", int(port))
    host, number = _split(below)
    if host is None or number == 0 or (head and as_address(host) is not None):
        raise UsageError(
            f"{text!r} is no host: write it as reg.example, reg.example:5000, *.example or *"
        )
    return HostPattern(head + host, number)


def _split(authority: str) -> tuple[str | None, int | None]:
    """Host and port; no host if it cannot be read, no port if there is none."""
    if authority.startswith("["):
        host, bracket, rest = authority[1:].partition("]")
        address = as_address(host)
        if not bracket or address is None or ":" not in host or "%" in host:
            return None, None
        host = str(address)
    else:
        host, colon, port = authority.partition(":")
        rest = colon + port
        host = host.removesuffix(".")
        if not _NAME.fullmatch(host) or ".." in host:
            return None, None
    if not rest:
        return host, None
    if not rest.startswith(":") or not _PORT.fullmatch(rest[1:]) or int(rest[1:]) > 65535:
        return None, None
    return host, int(rest[1:])
