"""Names of what registries hold: `host[:port]/repository[:tag][@digest]`, as Docker reads them.

A name without a host is Docker Hub's, one of a single word lies in its `library`, and one without a
tag and digest means `latest`. Every UsageError says what would be right. Asks nobody anything.
"""

import ipaddress
import re
from typing import Final, NamedTuple

from shoal.wire.digest import parse_digest
from shoal.wire.errors import UsageError

DOCKER_HUB: Final = "docker.io"
DOCKER_HUB_NAMES: Final = frozenset(
    {"docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"}
)
DOCKER_HUB_SERVER: Final = "registry-1.docker.io"
"""Where the registry of `docker.io` answers."""

REFERENCE_CHARACTERS_MAX: Final = 1024
REPOSITORY_CHARACTERS_MAX: Final = 255
ALGORITHMS: Final = ("sha256", "sha512")
"""What registries name blobs by."""

_COMPONENT: Final = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
_REPOSITORY: Final = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_LABEL: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?")

FORM: Final = "write it as host/repository:tag or host/repository@sha256:<hex>"


class Reference(NamedTuple):
    """One artifact of a registry. `str()` gives the full form."""

    registry: str
    """Host and port as people write them: `docker.io`, `[::1]:5000`."""
    repository: str
    tag: str | None
    digest: str | None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.registry}/{self.repository}{tag}{digest}"

    @property
    def server(self) -> str:
        """Host and port that answer for the registry."""
        return DOCKER_HUB_SERVER if self.registry == DOCKER_HUB else self.registry

    @property
    def target(self) -> str:
        """What the manifest is asked for by: the digest where there is one, else the tag."""
        return self.digest or self.tag or "latest"

    def url(self, kind: str, name: str, *, plain_http: bool = False) -> str:
        """The URL of one of the repository's `manifests` or `blobs`."""
        scheme = "http" if plain_http else "https"
        return f"{scheme}://{self.server}/v2/{self.repository}/{kind}/{name}"


def parse_reference(text: str) -> Reference:
    """Reads a reference. Raises UsageError."""
    if not text or len(text) > REFERENCE_CHARACTERS_MAX:
        raise UsageError(
            f"reference of {len(text)} characters: {FORM}, {REFERENCE_CHARACTERS_MAX} at most"
        )
    if "://" in text:
        raise UsageError("reference with a scheme: leave it out (--plain-http asks without TLS)")
    name, at, digest_text = text.partition("@")
    digest = digest_of(digest_text) if at else None
    registry, rest = _split_registry(name)
    repository, colon, tag = rest.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise UsageError(
            f"tag {tag[:128]!r}: up to 128 letters, digits, dots, dashes and underscores"
        )
    if registry == DOCKER_HUB and "/" not in repository:
        repository = f"library/{repository}"
    if len(repository) > REPOSITORY_CHARACTERS_MAX or not _REPOSITORY.fullmatch(repository):
        raise UsageError(
            f"repository {repository[:255]!r}: lower-case letters and digits, "
            f"joined by single dots, dashes, underscores and slashes; {FORM}"
        )
    if not colon and digest is None:
        tag = "latest"
    return Reference(registry, repository, tag or None, digest)


def registry_name(host: str) -> str:
    """A registry's one name: Docker Hub has several."""
    return DOCKER_HUB if host in DOCKER_HUB_NAMES else host


def is_repository(text: str) -> bool:
    """Whether a text can name a repository."""
    return len(text) <= REPOSITORY_CHARACTERS_MAX and bool(_REPOSITORY.fullmatch(text))


def is_tag(text: str) -> bool:
    """Whether a text can be a tag."""
    return bool(_TAG.fullmatch(text))


def digest_of(text: str) -> str:
    """A blob's digest in its usual form. Raises UsageError."""
    digest = str(parse_digest(text))
    if not digest.startswith(ALGORITHMS):
        raise UsageError(f"digest {text[:80]!r}: registries name by sha256 or sha512")
    return digest


def _split_registry(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    is_host = first == "localhost" or any(mark in first for mark in ".:[") or first != first.lower()
    if not slash or not is_host:
        return DOCKER_HUB, name
    return registry_name(_registry(first)), rest


def _registry(text: str) -> str:
    if text.startswith("["):
        host, bracket, after = text[1:].partition("]")
        try:
            host = f"[{ipaddress.IPv6Address(host)}]"
        except ValueError:
            bracket = ""
        if not bracket or (after and not after.startswith(":")):
            raise UsageError(f"registry {text[:255]!r}: write an IPv6 address as [::1]:5000")
        colon, port = after[:1], after[1:]
    else:
        host, colon, port = text.lower().partition(":")
        if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in host.split(".")):
            raise UsageError(f"registry {text[:255]!r} is no host name: {FORM}")
    if colon and not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536):
        raise UsageError(f"registry {text[:255]!r}: its port is a number from 1 to 65535")
    return f"{host}:{int(port)}" if colon else host
