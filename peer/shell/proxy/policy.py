"""Whom the proxy may be used to reach, and how each request is answered. Pure.

Only hosts that the configuration lists are reached, on the ports that it lists: a proxy that goes
anywhere for anybody is an open relay, and a way around every firewall that trusts this host.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from peer.shell.mirror.paths import parse_path
from peer.shell.mirror.upstreams import Upstream
from peer.shell.origin.places import Network, PlaceRules, as_address
from peer.shell.proxy.headers import is_conditional
from peer.shell.proxy.rules import Rule, Wishes, rule_for
from peer.shell.proxy.targets import HostPattern, Target, parse_absolute, parse_pattern

_READING: Final = ("GET", "HEAD")

Way = Literal["registry", "swarm", "pass"]


class RefusedError(Exception):
    """A request may not go where it wants; the text is fit for its client."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a request is answered."""

    way: Way
    """By the mirror's rules for registries, through the swarm as a URL, or by its origin alone."""
    target: Target
    """Where it goes, which a rule may have changed."""
    registry: str = ""
    """The registry, as images name it."""


class Policy:
    """What the configuration says. `allow`, `intercept`: hosts. `networks`: addresses beside
    public ones that their names may have. `upstreams`: the mirror's registries."""

    def __init__(
        self,
        *,
        allow: Iterable[HostPattern] = (),
        intercept: Iterable[HostPattern] = (),
        networks: Iterable[Network] = (),
        rules: Iterable[Rule] = (),
        upstreams: Iterable[Upstream] = (),
    ) -> None:
        self._intercept = tuple(intercept)
        self._rules = tuple(rules)
        self.places = PlaceRules(tuple(networks))
        self._registries = [
            (parse_pattern(upstream.name), parse_absolute(upstream.url)[0], upstream.name)
            for upstream in upstreams
        ]
        redirects = (rule.listed for rule in self._rules)
        self._listed = (
            *allow,
            *self._intercept,
            *(pattern for pattern in redirects if pattern is not None),
            *(pattern for pattern, _, _ in self._registries),
            *(HostPattern(there.host, there.port) for _, there, _ in self._registries),
        )

    def check(self, target: Target) -> None:
        """Raises RefusedError unless a target is listed. Where its name leads is for
        `places_of` to say, once it is resolved."""
        if not any(pattern.covers(target) for pattern in self._listed):
            raise RefusedError(
                f"{_shown(target)} is not among the hosts of this proxy: add it to proxy.allow"
            )
        if not self.places_of(target).allows_host(target.host, target.port):
            raise RefusedError(
                f"{_shown(target)} is not a public address: add it to proxy.allow by itself, or "
                "its network to proxy.networks"
            )

    def places_of(self, target: Target) -> PlaceRules:
        """Which addresses a connection for a target may go to. An address that is listed itself is
        allowed to whoever asks for that very address, not to names that lead to it."""
        if as_address(target.host) is None or not any(
            pattern.host == target.host and pattern.covers(target) for pattern in self._listed
        ):
            return self.places
        return PlaceRules(self.places.networks, (target.host, target.port))

    def intercepts(self, target: Target) -> bool:
        """Whether TLS to a target is to be opened."""
        return any(pattern.covers(target) for pattern in self._intercept)

    def registry_at(self, target: Target) -> tuple[str, Target]:
        """The registry that a target is, as images name it, and where that is; "" and the same
        target for none. A name may stand for a place that only the configuration knows."""
        for pattern, there, name in self._registries:
            if pattern.covers(target) or (there.host, there.port) == (target.host, target.port):
                return name, there
        return "", target

    def plan(
        self,
        method: str,
        target: Target,
        path: str,
        rest: str,
        wishes: Wishes,
        headers: Mapping[str, str],
    ) -> Plan:
        """How to answer a request. `path`: decoded; `rest`: path and query to the letter."""
        rule = rule_for(self._rules, target.url + rest)
        if rule is not None:
            target = rule.applied(target)
        registry, target = self.registry_at(target)
        if rule is not None and rule.action == "direct":
            return Plan("pass", target)
        if (
            registry
            and method in _READING
            and (path in ("/v2", "/v2/") or parse_path(path, frozenset()) is not None)
        ):
            return Plan("registry", target, registry)
        wanted = rule is not None or wishes.swarm
        if method == "GET" and wanted and not is_conditional(headers):
            return Plan("swarm", target)
        return Plan("pass", target)


def refused_place(target: Target) -> str:
    """What to say when a name turns out to lead to addresses that are not allowed."""
    return (
        f"{_shown(target)} is at a private address or one of this host: if you want it reached, "
        "add its network to proxy.networks"
    )


def _shown(target: Target) -> str:
    host = f"[{target.host}]" if ":" in target.host else target.host
    return f"{host}:{target.port}"
