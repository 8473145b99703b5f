"""What a request path of the OCI distribution protocol asks for. Pure; knows no upstream.

Source: OCI distribution specification 1.1, section "API", with its grammar of names and tags.
"""

import re
from dataclasses import dataclass
from typing import Final

from peer.shell.oci.reference import is_repository, is_tag
from shoal.wire.digest import parse_digest
from shoal.wire.errors import UsageError

_HOST: Final = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
)
_PLACES: Final = ("manifests", "blobs", "referrers", "tags")


@dataclass(frozen=True, slots=True)
class Asked:
    """One legal path below `/v2/`."""

    registry: str
    """The registry that the path begins with, as `reg.example:5000`; "" for none."""
    repository: str
    place: str
    """`manifests`, `blobs`, `referrers` or `tags`."""
    reference: str
    """A tag, a digest, or `list` for tags."""

    @property
    def is_digest(self) -> bool:
        """The reference is a digest: what it names never changes."""
        return ":" in self.reference

    @property
    def upstream_path(self) -> str:
        """The same path at the registry itself."""
        return f"/v2/{self.repository}/{self.place}/{self.reference}"


def parse_path(path: str, registries: frozenset[str]) -> Asked | None:
    """Takes a decoded path apart; None if it is none of the protocol's for reading. `registries`:
    names that a path may begin with, which then are not a part of the repository."""
    if not path.startswith("/v2/"):
        return None
    parts = path.removeprefix("/v2/").split("/")
    if len(parts) < 3 or parts[-2] not in _PLACES:
        return None
    place, reference, name = parts[-2], parts[-1], parts[:-2]
    registry = ""
    if len(name) > 1 and name[0] in registries:
        registry, name = name[0], name[1:]
    repository = "/".join(name)
    if not is_repository(repository):
        return None
    if place == "tags":
        return Asked(registry, repository, place, reference) if reference == "list" else None
    if place == "manifests" and ":" not in reference:
        return Asked(registry, repository, place, reference) if is_tag(reference) else None
    try:
        digest = str(parse_digest(reference))
    except UsageError:
        return None
    return Asked(registry, repository, place, digest) if digest == reference else None


def is_registry_name(text: str) -> bool:
    """Whether a text can name a registry: a host with or without a port."""
    return bool(_HOST.fullmatch(text))
