"""Which requests go through the swarm, which pass by it, and where they go instead. Pure.

A rule is one line: what to do, options, and a regular expression that is searched for in the URL
without its query. The first rule that matches decides.

    swarm blobs/sha256.*
    direct \\.json$
    swarm tls redirect=hub.internal:8443 ^http://hub\\.example/

The words `X-Dragonfly-...` are the request headers that clients of Dragonfly's proxy know.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from peer.shell.proxy.targets import HostPattern, Target, TargetError, parse_pattern, parse_target
from peer.shell.urls import SCHEMES
from shoal.wire.errors import ShoalError, UsageError
from shoal.wire.geometry import check_piece_length

DRAGONFLY: Final = "x-dragonfly-"
"""Begins every header that is said to the proxy and to nobody else."""

NAME_CHARACTERS_MAX: Final = 256
FILTERED_MAX: Final = 64

Action = Literal["swarm", "direct"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule."""

    action: Action
    pattern: re.Pattern[str]
    tls: bool = False
    """Ask over https whatever the client said."""
    redirect: str = ""
    """Ask this host instead, `host` or `host:port`."""

    def applied(self, target: Target) -> Target:
        """Where a request that matches goes."""
        scheme = "https" if self.tls else target.scheme
        if self.redirect:
            return parse_target(self.redirect, scheme)
        if scheme != target.scheme and target.port == SCHEMES[target.scheme]:
            return Target(scheme, target.host, SCHEMES[scheme])
        return replace(target, scheme=scheme)

    @property
    def listed(self) -> HostPattern | None:
        """The host that the rule sends requests to, which is listed by that."""
        return parse_pattern(self.redirect) if self.redirect else None


def parse_rule(text: str) -> Rule:
    """A rule from its line. Raises UsageError."""
    words = text.split()
    if len(words) < 2 or words[0] not in ("swarm", "direct"):
        raise UsageError(
            f"{text!r} is no rule: write swarm or direct, then tls or redirect=HOST if you want "
            "them, then a regular expression for URLs"
        )
    tls, redirect = False, ""
    for word in words[1:-1]:
        name, _, value = word.partition("=")
        if word == "tls":
            tls = True
        elif name == "redirect" and _is_host(value):
            redirect = value
        else:
            raise UsageError(
                f"{text!r}: {word} is neither tls nor redirect=HOST[:PORT]; a regular expression "
                "has no white space, write \\s"
            )
    try:
        pattern = re.compile(words[-1])
    except re.error as error:
        raise UsageError(f"{text!r}: the regular expression is wrong: {error}") from None
    return Rule("swarm" if words[0] == "swarm" else "direct", pattern, tls, redirect)


def _is_host(text: str) -> bool:
    try:
        parse_target(text, "https")
    except TargetError:
        return False
    return True


def rule_for(rules: Iterable[Rule], url: str) -> Rule | None:
    """The first rule that matches a URL; its query is not looked at, it may hold a signature."""
    plain = url.partition("?")[0]
    return next((rule for rule in rules if rule.pattern.search(plain)), None)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a request says about how it is to be fetched."""

    swarm: bool = False
    """Through the swarm whatever the rules say."""
    tag: str = ""
    application: str = ""
    priority: int = 0
    filtered_query_params: tuple[str, ...] = ()
    piece_length_bytes: int | None = None


def wishes_of(headers: Mapping[str, str]) -> Wishes:
    """Reads the Dragonfly headers of a request. Those that would write files or change what an
    answer is are not honoured; what makes no sense is ignored, as it is there."""

    def text(name: str) -> str:
        return headers.get(f"X-Dragonfly-{name}", "").strip()[:NAME_CHARACTERS_MAX]

    priority, length = text("Priority"), text("Piece-Length")
    filtered = tuple(part.strip() for part in text("Filtered-Query-Params").split(","))
    return Wishes(
        swarm=text("Use-P2P").lower() == "true",
        tag=text("Tag"),
        application=text("Application"),
        priority=int(priority) if re.fullmatch(r"[0-9]{1,3}", priority) else 0,
        filtered_query_params=tuple(part for part in filtered if part)[:FILTERED_MAX],
        piece_length_bytes=_piece_length(length),
    )


def _piece_length(text: str) -> int | None:
    if not re.fullmatch(r"[0-9]{1,12}", text):
        return None
    try:
        check_piece_length(int(text))
    except ShoalError:
        return None
    return int(text)
