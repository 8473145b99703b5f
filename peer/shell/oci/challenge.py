"""What a server asks for with 401: the challenges of `WWW-Authenticate` (RFC 9110, section 11.6.1).

Reads Bearer and Basic, alone or several in one header, and leaves out what it does not know. Holds
no credential and asks nobody.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple
from urllib.parse import urlsplit

HEADER_CHARACTERS_MAX: Final = 8 * 1024
"""Longer ones are cut: a challenge has a few hundred characters."""

_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_PARAMETER: Final = re.compile(rf'\s*({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN}[^\s,]*))')
_SCHEME: Final = re.compile(rf"\s*({_TOKEN})(?=\s|,|$)(?!\s*=)")


class Challenge(NamedTuple):
    """One way to be let in. `scheme` is in lower case, as the parameters' names are."""

    scheme: str
    parameters: Mapping[str, str]

    @property
    def realm(self) -> str:
        """For Bearer: the URL of the token service."""
        return self.parameters.get("realm", "")


def parse_challenges(headers: Iterable[str]) -> tuple[Challenge, ...]:
    """Every challenge of all `WWW-Authenticate` headers, in order."""
    found: list[tuple[str, dict[str, str]]] = []
    for header in headers:
        text = header[:HEADER_CHARACTERS_MAX]
        at = 0
        while at < len(text):
            # A parameter first: `realm="x"` is never a scheme, but a scheme looks like a name.
            if (parameter := _PARAMETER.match(text, at)) and found:
                name, quoted, plain = parameter.groups()
                value = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else plain
                found[-1][1].setdefault(name.lower(), value)
                at = parameter.end()
            elif scheme := _SCHEME.match(text, at):
                found.append((scheme[1].lower(), {}))
                at = scheme.end()
            else:
                at += 1
    return tuple(Challenge(scheme, parameters) for scheme, parameters in found)


def best_challenge(challenges: Iterable[Challenge]) -> Challenge | None:
    """The one to answer: Bearer with a proper token service, else Basic."""
    usable = tuple(challenges)
    for each in usable:
        if each.scheme == "bearer" and _is_url(each.realm):
            return each
    return next((each for each in usable if each.scheme == "basic"), None)


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc
