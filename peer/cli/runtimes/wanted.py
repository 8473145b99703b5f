"""What a runtime is to be told: the mirror, the registries, and the plan of edits that follows.

Checks what the user named on the command line, and is the vocabulary of the runtimes' modules.
Pure: planners see the files of the machine through the `Reader` that they are given.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol
from urllib.parse import urlsplit

from shoal.wire.errors import ShoalError, UsageError

MIRROR_URL: Final = "http://127.0.0.1:4004"
"""Where the daemon's mirror listens unless the user says otherwise: on this host alone."""

DOCKER_HUB: Final = "docker.io"
EVERY_REGISTRY: Final = "_default"

_URL = re.compile(r"https?://(?:[\w.-]+|\[[0-9A-Fa-f:]+\])(?::\d+)?(?:/[\w./~%-]*)?", re.ASCII)
_NAME = re.compile(
    r"(?:[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\])(?::\d{1,5})?", re.ASCII
)
_LOCAL = re.compile(r"(?:localhost|127\.[\d.]+|\[::1\])(?::\d+)?")


class Refused(ShoalError):
    """A file of this machine can't be edited or put back; the text says why and what to do."""


@dataclass(frozen=True)
class Mirror:
    """The daemon's registry mirror: its URL without a slash at the end."""

    url: str
    dedicated: bool = False
    """Its listener stands for one registry, which a path there does not name."""

    @property
    def place(self) -> str:
        """Host, port and path, without the scheme."""
        return self.url.partition("://")[2]

    @property
    def plain(self) -> bool:
        """Whether it speaks HTTP without TLS."""
        return self.url.startswith("http:")


@dataclass(frozen=True)
class Registry:
    """A registry as images name it, and the URL behind it if the user told one."""

    name: str
    told_url: str | None = None

    @property
    def url(self) -> str:
        """Where the registry itself is."""
        if self.told_url is not None:
            return self.told_url
        if self.name == DOCKER_HUB:
            return "https://registry-1.docker.io"
        return f"{'http' if _LOCAL.fullmatch(self.name) else 'https'}://{self.name}"


class Reader(Protocol):
    """The files of the machine, by the paths that the runtime knows them by."""

    def read(self, path: str) -> str | None:
        """A file's text; None if there is none. Raises Refused if it is no text."""

    def names(self, path: str) -> list[str]:
        """What lies in a directory, sorted; nothing if there is none."""


@dataclass(frozen=True)
class Edit:
    """One file as it is (None: it is not there) and as it is to be."""

    path: str
    before: str | None
    after: str


@dataclass
class Plan:
    """All edits of one command, and what the user should know beside them."""

    edits: list[Edit] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


Planner = Callable[[Reader, Mirror, Sequence[Registry]], Plan]


def mirror_of(text: str, *, dedicated: bool = False) -> Mirror:
    """The mirror of `--mirror`. Raises UsageError."""
    return Mirror(_url_of("--mirror", text), dedicated)


def registries_of(texts: Sequence[str], mirror: Mirror) -> list[Registry]:
    """The registries of `--registry NAME[=URL]`, each once. Raises UsageError."""
    found: dict[str, Registry] = {}
    for text in texts:
        name, separator, url = text.partition("=")
        if name == EVERY_REGISTRY and separator:
            raise UsageError(f"--registry {EVERY_REGISTRY} stands for many registries: give no URL")
        if name != EVERY_REGISTRY and not _NAME.fullmatch(name):
            raise UsageError(
                f"--registry {_shown(name)}: name a registry as images do, like docker.io or "
                "reg.example:5000"
            )
        told = _url_of(f"--registry {name}", url) if separator else None
        registry = Registry(name, told)
        if registry.url == mirror.url or registry.name == mirror.place:
            raise UsageError(
                f"--registry {name}: that is the mirror itself; name what is behind it"
            )
        if found.setdefault(name, registry) != registry:
            raise UsageError(f"--registry {name} has two URLs: give one")
    if mirror.dedicated and (len(found) != 1 or EVERY_REGISTRY in found):
        raise UsageError("--dedicated: name the one registry that the mirror's listener stands for")
    return list(found.values())


def _url_of(option: str, text: str) -> str:
    if "@" in text:
        raise UsageError(f"{option}: a URL here must hold no user and no password")
    if not _URL.fullmatch(text):
        raise UsageError(
            f"{option} {_shown(text)}: write it like http://127.0.0.1:4004 or https://reg.example"
        )
    try:
        port = urlsplit(text).port
    except ValueError:
        port = 0
    if port == 0:
        raise UsageError(f"{option} {text}: a port is a number from 1 to 65535")
    return text.rstrip("/")


def _shown(text: str) -> str:
    """What a user wrote, without the part that could be a secret."""
    return repr(text.partition("?")[0])
