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
_UPLOAD: Final = re.compile(r"/v2/(.+)/blobs/uploads/([A-Za-z0-9._~%=+-]{0,1024})")


@dataclass(frozen=True, slots=True)
class Asked:
    """One legal path below `/v2/`."""

    registry: str
    """The registry that the path begins with, as `reg.example:5000`; "" for none."""
    repository: str
    place: str
    """`manifests`, `blobs`, `referrers`, `tags` or `uploads`."""
    reference: str
    """A tag, a digest, `list` for tags, or what the registry calls an upload; "" for a new one."""

    @property
    def is_digest(self) -> bool:
        """The reference is a digest: what it names never changes."""
        return ":" in self.reference

    @property
    def upstream_path(self) -> str:
        """The same path at the registry itself."""
        place = "blobs/uploads" if self.place == "uploads" else self.place
        return f"/v2/{self.repository}/{place}/{self.reference}"


def parse_path(path: str, registries: frozenset[str]) -> Asked | None:
    """Takes a decoded path apart; None if it is none of the protocol's for contents. `registries`:
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


def parse_upload(path: str, registries: frozenset[str]) -> Asked | None:
    """The same for the path of an upload, as it was sent: its last part is the registry's own
    name for the upload and is not decoded."""
    found = _UPLOAD.fullmatch(path)
    if found is None or found[2] in (".", ".."):
        return None
    registry, _, below = found[1].partition("/")
    repository = below if below and registry in registries else found[1]
    if not is_repository(repository):
        return None
    return Asked(registry if repository == below else "", repository, "uploads", found[2])


def is_registry_name(text: str) -> bool:
    """Whether a text can name a registry: a host with or without a port."""
    return bool(_HOST.fullmatch(text))
