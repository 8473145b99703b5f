"""URLs from users: checked, shown without secrets, and named without signatures.

Turns what a user typed into an `OriginRequest`, and a URL into the form that people see
(`display_url`) and the form that names a source (`identity_url`). Every UsageError raised here
says what would be right and shows no more of a URL than `display_url` does. Asks nobody anything.
"""

import base64
import hmac
import ipaddress
import re
import string
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, quote, unquote, unquote_plus, urljoin, urlsplit

from peer.shell.origin.request import OriginRequest
from peer.shell.origin.signatures import looks_like_credential, signature_names
from shoal.wire.errors import UsageError
from shoal.wire.ids import fingerprint

SCHEMES: Final = {"http": 80, "https": 443}
"""Schemes that can be read from, with their default ports."""

URL_CHARACTERS_MAX: Final = 16 * 1024
"""Servers refuse request lines far shorter than this; signed URLs stay under 4 KiB."""

HEADERS_MAX: Final = 64
HEADER_CHARACTERS_MAX: Final = 16 * 1024

_UNRESERVED: Final = frozenset(string.ascii_letters + string.digits + "-._~")
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
"""A header's name (RFC 9110, section 5.6.2)."""
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_ESCAPE: Final = re.compile(r"%([0-9A-Fa-f]{2})")
_LONE_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")

_OWN_HEADERS: Final = {
    "range": "shoal decides itself which bytes it reads",
    "if-range": "shoal compares validators itself",
    "host": "it follows from the URL",
    "accept-encoding": "content is always read as it is stored",
    "connection": "shoal keeps its own connections",
    "content-length": "a request for content has no body",
    "transfer-encoding": "a request for content has no body",
    "te": "shoal keeps its own connections",
    "upgrade": "shoal keeps its own connections",
    "keep-alive": "shoal keeps its own connections",
    "expect": "a request for content has no body",
}
"""Headers that a user can't set, and why."""

_HARMLESS_HEADERS: Final = frozenset(
    {"accept", "accept-language", "cache-control", "pragma", "referer", "user-agent"}
)
"""Headers that give no right. Every other one that a user sends counts as a credential."""


def origin_request(
    url: str,
    headers: Iterable[tuple[str, str]] = (),
    *,
    insecure_skip_verify: bool = False,
    ca_file: Path | None = None,
    authorities: str = "",
) -> OriginRequest:
    """The request for a URL that a user gave. User info in the URL becomes an Authorization
    header, unless the user gave one too. Raises UsageError."""
    parts = _split(url)
    checked = check_headers(headers)
    if parts.username is not None and not any(
        name.lower() == "authorization" for name, _ in checked
    ):
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        basic = base64.b64encode(pair.encode()).decode()
        checked = (*checked, ("Authorization", f"Basic {basic}"))
    return OriginRequest(
        url=_join(parts.scheme, _authority(parts), _legal(parts.path) or "/", _legal(parts.query)),
        headers=checked,
        insecure_skip_verify=insecure_skip_verify,
        ca_file=ca_file,
        authorities=authorities,
    )


def parse_header(line: str) -> tuple[str, str]:
    """Reads `Name: value` as the command line takes it. Raises UsageError, value not shown."""
    name, colon, value = line.partition(":")
    if not colon:
        raise UsageError("header without a colon: write it as 'Name: value'")
    return check_headers([(name.strip(), value.strip())])[0]


def check_headers(headers: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """The headers as they are, if a user may send them. Raises UsageError that shows no value."""
    checked = tuple(headers)
    if len(checked) > HEADERS_MAX:
        raise UsageError(f"{len(checked)} headers: {HEADERS_MAX} at most")
    for name, value in checked:
        if not _TOKEN.fullmatch(name):
            raise UsageError("header whose name has illegal characters: write it as 'Name: value'")
        if (why := _OWN_HEADERS.get(name.lower())) is not None:
            raise UsageError(f"header {name}: leave it out, {why}")
        if len(value) > HEADER_CHARACTERS_MAX:
            raise UsageError(f"header {name}: longer than {HEADER_CHARACTERS_MAX} characters")
        if _CONTROL.search(value):
            raise UsageError(f"header {name}: its value has a line break or control character")
    return checked


def display_url(url: str) -> str:
    """A URL without user info, query and fragment: for people and logs. Raises UsageError."""
    parts = _split(url)
    return _join(parts.scheme, _authority(parts), _legal(parts.path) or "/", "")


def identity_url(url: str, filtered_query_params: Collection[str] = ()) -> str:
    """A URL as it names a source, the same on every host whoever signed it.

    Scheme and host in lower case, no default port, no user info, no fragment; parameters of known
    signatures and those named are left out, the others are sorted by name (those of one name keep
    their order, which can matter); percent-encoding as RFC 3986, section 6.2.2 normalises it.
    Raises UsageError.
    """
    parts = _split(url)
    pairs = [pair for pair in _legal(parts.query).split("&") if pair]
    removed = signature_names({_name(pair) for pair in pairs})
    removed |= {name.lower() for name in filtered_query_params}
    kept = sorted(
        (_normal(pair) for pair in pairs if _name(pair) not in removed),
        key=lambda pair: pair.partition("=")[0],
    )
    path = _normal(_legal(parts.path)) or "/"
    return _join(parts.scheme, _authority(parts), path, "&".join(kept))


def is_anonymous(request: OriginRequest, filtered_query_params: Collection[str] = ()) -> bool:
    """Whether anybody could make this request: it has no header that may be a credential, and its
    URL has no signature, no parameter that the user wants left out, and none that looks like a
    credential. In doubt it is not anonymous."""
    return not _credential_parts(request, filtered_query_params)


def credential_of(
    request: OriginRequest, key: bytes, filtered_query_params: Collection[str] = ()
) -> str:
    """A keyed hash (HMAC-SHA256, hex) of everything in a request that may be a credential, "" for
    an anonymous request. Equal for equal credentials; nothing can be learnt from it without the
    key, which must never leave the process."""
    parts = _credential_parts(request, filtered_query_params)
    if not parts:
        return ""
    return hmac.new(key, fingerprint("credential", *parts).encode(), "sha256").hexdigest()


def _credential_parts(request: OriginRequest, filtered: Collection[str]) -> list[str]:
    """Names and values, in turn, of what may be a credential."""
    found: list[str] = []
    for name, value in request.headers:
        if name.lower() not in _HARMLESS_HEADERS:
            found += [name.lower(), value]
    parts = urlsplit(request.url)
    if parts.username is not None:
        found += ["user info", parts.netloc.rpartition("@")[0]]
    pairs = [pair for pair in parts.query.split("&") if pair]
    names = {_name(pair) for pair in pairs}
    secret = signature_names(names) | {name.lower() for name in filtered}
    for pair in pairs:
        if _name(pair) in secret or looks_like_credential(_name(pair)):
            found += ["query", pair]
    return found


def redirect_url(base: str, location: str) -> str:
    """Where a redirect leads (RFC 3986, section 5), without user info and fragment. Raises
    UsageError for what is no URL that can be read from."""
    try:
        joined = urljoin(base, location.strip().replace(" ", "%20"))
    except ValueError:
        raise UsageError("redirect whose target can't be read") from None
    parts = _split(joined)
    return _join(parts.scheme, _authority(parts), _legal(parts.path) or "/", _legal(parts.query))


def place_of(url: str) -> tuple[str, str, int]:
    """Scheme, host and port: credentials are for one place only. For a URL made in this module."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or SCHEMES[parts.scheme]


def _split(url: str) -> SplitResult:
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


def _authority(parts: SplitResult) -> str:
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


def _join(scheme: str, authority: str, path: str, query: str) -> str:
    return f"{scheme}://{authority}{path}" + (f"?{query}" if query else "")


def _legal(text: str) -> str:
    """Encodes what may not stand in a URL, and leaves the rest to the letter: a signature covers
    the very spelling."""
    return quote(
        _LONE_PERCENT.sub("%25", text), safe="%/:@!$&'()*+,;=-._~?[]", errors="surrogateescape"
    )


def _normal(text: str) -> str:
    """Decodes what needs no encoding and writes the rest with upper-case digits."""

    def one(match: re.Match[str]) -> str:
        character = chr(int(match[1], 16))
        return character if character in _UNRESERVED else match[0].upper()

    return _ESCAPE.sub(one, text)


def _name(pair: str) -> str:
    return unquote_plus(pair.partition("=")[0]).lower()
