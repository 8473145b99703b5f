"""URLs as users want them: with headers, named without signatures, and what in them is a right.

Turns what a user typed into an `OriginRequest`, and a URL into the form that names a source
(`identity_url`). Every UsageError raised here says what would be right and shows no secret. Asks
nobody anything.
"""

import base64
import hmac
import re
import string
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final
from urllib.parse import unquote, unquote_plus, urlsplit

from peer.shell.origin.places import PlaceRules
from peer.shell.origin.request import OriginRequest
from peer.shell.origin.signatures import looks_like_credential, signature_names
from peer.shell.urls import authority_of, join_url, legal_text, split_url
from shoal.wire.errors import UsageError
from shoal.wire.ids import fingerprint

HEADERS_MAX: Final = 64
HEADER_CHARACTERS_MAX: Final = 16 * 1024

_UNRESERVED: Final = frozenset(string.ascii_letters + string.digits + "-._~")
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
"""A header's name (RFC 9110, section 5.6.2)."""
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_ESCAPE: Final = re.compile(r"%([0-9A-Fa-f]{2})")

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
    places: PlaceRules | None = None,
) -> OriginRequest:
    """The request for a URL that a user gave. User info in the URL becomes an Authorization
    header, unless the user gave one too. Raises UsageError."""
    parts = split_url(url)
    checked = check_headers(headers)
    if parts.username is not None and not any(
        name.lower() == "authorization" for name, _ in checked
    ):
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        basic = base64.b64encode(pair.encode()).decode()
        checked = (*checked, ("Authorization", f"Basic {basic}"))
    return OriginRequest(
        url=join_url(
            parts.scheme,
            authority_of(parts),
            legal_text(parts.path) or "/",
            legal_text(parts.query),
        ),
        headers=checked,
        insecure_skip_verify=insecure_skip_verify,
        ca_file=ca_file,
        authorities=authorities,
        places=places,
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


def identity_url(url: str, filtered_query_params: Collection[str] = ()) -> str:
    """A URL as it names a source, the same on every host whoever signed it.

    Scheme and host in lower case, no default port, no user info, no fragment; parameters of known
    signatures and those named are left out, the others are sorted by name (those of one name keep
    their order, which can matter); percent-encoding as RFC 3986, section 6.2.2 normalises it.
    Raises UsageError.
    """
    parts = split_url(url)
    pairs = [pair for pair in legal_text(parts.query).split("&") if pair]
    removed = signature_names({_name(pair) for pair in pairs})
    removed |= {name.lower() for name in filtered_query_params}
    kept = sorted(
        (_normal(pair) for pair in pairs if _name(pair) not in removed),
        key=lambda pair: pair.partition("=")[0],
    )
    path = _normal(legal_text(parts.path)) or "/"
    return join_url(parts.scheme, authority_of(parts), path, "&".join(kept))


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


def _normal(text: str) -> str:
    """Decodes what needs no encoding and writes the rest with upper-case digits."""

    def one(match: re.Match[str]) -> str:
        character = chr(int(match[1], 16))
        return character if character in _UNRESERVED else match[0].upper()

    return _ESCAPE.sub(one, text)


def _name(pair: str) -> str:
    return unquote_plus(pair.partition("=")[0]).lower()
