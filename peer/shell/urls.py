"""URLs that can be read from: checked, taken apart, put together, and followed.

Every UsageError raised here says what would be right and shows no more of a URL than `display_url`
does. What a user wants with a URL is in `peer.shell.wanted_urls`. Asks nobody anything.
"""

import ipaddress
import re
from typing import Final
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from shoal.wire.errors import UsageError

SCHEMES: Final = {"http": 80, "https": 443}
"""Schemes that can be read from, with their default ports."""

URL_CHARACTERS_MAX: Final = 16 * 1024
"""Servers refuse request lines far shorter than this; signed URLs stay under 4 KiB."""

_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_LONE_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")


def display_url(url: str) -> str:
    """A URL without user info, query and fragment: for people and logs. Raises UsageError."""
    parts = split_url(url)
    return join_url(parts.scheme, authority_of(parts), legal_text(parts.path) or "/", "")


def redirect_url(base: str, location: str) -> str:
    """Where a redirect leads (RFC 3986, section 5), without user info and fragment. Raises
    UsageError for what is no URL that can be read from."""
    try:
        joined = urljoin(base, location.strip().replace(" ", "%20"))
    except ValueError:
        raise UsageError("redirect whose target can't be read") from None
    parts = split_url(joined)
    return join_url(
        parts.scheme, authority_of(parts), legal_text(parts.path) or "/", legal_text(parts.query)
    )


def place_of(url: str) -> tuple[str, str, int]:
    """Scheme, host and port: credentials are for one place only. For a URL that was
    made of checked parts."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or SCHEMES[parts.scheme]


def split_url(url: str) -> SplitResult:
    """The parts of a URL that can be read from. Raises UsageError."""
    if len(url) > URL_CHARACTERS_MAX:
        raise UsageError(f"URL of {len(url)} characters: {URL_CHARACTERS_MAX} at most")
    if any(character <= " " or character == "\x7f" for character in url):
        raise UsageError("URL with a space, line break or control character: write it as %20 etc.")
    scheme, separator, _ = url.partition("://")
    if not separator or not scheme.isascii() or not scheme.isalnum():
        raise UsageError("URL without a scheme: write it as https://host/path")
    if scheme.lower() not in SCHEMES:
        known = " or ".join(f"{name}://" for name in SCHEMES)
        raise UsageError(f"URL scheme {scheme[:20]!r} can't be read from: give an {known} URL")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise UsageError(
            "URL whose host or port can't be read: write it as https://host:port/path, "
            "an IPv6 address in brackets"
        ) from None
    if port == 0:
        raise UsageError("URL with port 0: give a port from 1 to 65535")
    return parts


def authority_of(parts: SplitResult) -> str:
    """Host and port in their one form, without user info. Raises UsageError."""
    host = parts.hostname or ""
    if ":" in host:
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise UsageError("URL whose IPv6 address can't be read") from None
        host = f"[{host}]"
    else:
        host = _host_name(host)
    port = parts.port
    return host if port is None or port == SCHEMES[parts.scheme] else f"{host}:{port}"


def _host_name(host: str) -> str:
    try:
        name = host if host.isascii() else host.encode("idna").decode()
    except UnicodeError:
        name = ""
    name = name.lower()
    labels = name.removesuffix(".").split(".")
    if len(name) > 254 or not all(_LABEL.fullmatch(label) for label in labels):
        raise UsageError("URL without a proper host name: write it as https://host/path")
    return name


def join_url(scheme: str, authority: str, path: str, query: str) -> str:
    """A URL of its parts."""
    return f"{scheme}://{authority}{path}" + (f"?{query}" if query else "")


def legal_text(text: str) -> str:
    """Encodes what may not stand in a URL, and leaves the rest to the letter: a signature covers
    the very spelling."""
    return quote(
        _LONE_PERCENT.sub("%25", text), safe="%/:@!$&'()*+,;=-._~?[]", errors="surrogateescape"
    )
