"""Which registry a request means, and whether it may be asked at all. Pure.

Clients say it in several ways: with a header (`X-Dragonfly-Registry`), with the query parameter
`ns` (containerd), by the first part of the path (registries.conf), or by the listener that they
talk to. Only registries that the configuration lists are ever asked: a name in a request never
makes this host connect anywhere else.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from peer.shell.mirror.paths import is_registry_name
from peer.shell.oci.reference import DOCKER_HUB, DOCKER_HUB_SERVER, registry_name
from shoal.wire.errors import UsageError


class UpstreamRefusedError(Exception):
    """A request names a registry that this mirror is not for; the text is fit for its client."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """A registry."""

    name: str
    """As images name it, `reg.example:5000`."""
    url: str
    """Where it is, without a path."""


def parse_upstream(text: str) -> Upstream:
    """`reg.example`, or `reg.example=http://10.0.0.5:5000`. Raises UsageError."""
    name, _, url = (part.strip() for part in text.partition("="))
    name = registry_name(name)
    if not is_registry_name(name):
        raise UsageError(f"{text!r}: write a registry as reg.example:5000 or as name=URL")
    url = url or f"https://{DOCKER_HUB_SERVER if name == DOCKER_HUB else name}"
    parts = urlsplit(url)
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or parts.path not in ("", "/")
        or parts.query
        or parts.username
    ):
        raise UsageError(f"{text!r}: the URL of a registry is http(s)://host[:port] and no more")
    return Upstream(name, f"{parts.scheme}://{parts.netloc}")


class Upstreams:
    """The registries of one mirror. `default`: of requests that name none, "" for none."""

    def __init__(self, upstreams: Iterable[Upstream], default: str = "") -> None:
        self._by_name = {upstream.name: upstream for upstream in upstreams}
        self._default = registry_name(default)
        if self._default and self._default not in self._by_name:
            raise UsageError(f"default = {default}: list it among the upstreams")

    @property
    def names(self) -> frozenset[str]:
        """As images name them."""
        return frozenset(self._by_name)

    def choose(
        self, *, header: str = "", namespace: str = "", prefix: str = "", listener: str = ""
    ) -> Upstream:
        """The registry of a request, the first of what names one. Raises
        UpstreamRefusedError."""
        named = _name_of(header) if header else namespace or prefix or listener or self._default
        if not named:
            raise UpstreamRefusedError("the request names no registry, and there is no default")
        found = self._by_name.get(registry_name(named))
        if found is None:
            shown = named if is_registry_name(named) else "what the request names"
            raise UpstreamRefusedError(
                f"{shown} is not among this mirror's upstreams: add it to mirror.upstreams"
            )
        return found


def _name_of(url: str) -> str:
    return urlsplit(url if "://" in url else f"//{url}").netloc
