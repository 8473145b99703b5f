"""A swarm whose peers each are a mirror for one real registry, which knows what was read of it.

Each peer has a listener for all registries and one for each alone, as private registries need it.
Starts real processes and ends them; judges only how often a blob left the registry.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from tests.clients.images import Blob, Image
from tests.clients.recording_proxy import RecordingProxy
from tests.clients.registry_rig import RecordedRegistry, recorded_registry
from tests.integration.swarm_rig import Swarm, wait_for_ready

RATE_BYTES_S: Final = 200_000_000
NAME: Final = "registry.test"
DOCKER_HUB: Final = "docker.io"
NAMES: Final = (NAME, DOCKER_HUB)
"""The one registry has two names, as Docker has mirrors for one name alone."""
NOWHERE: Final = dict.fromkeys(NAMES, "127.0.0.1:1")
"""For clients that are to find the registry through the mirror alone."""
LOOK_BYTES: Final = 16
"""A host's look at the size of a blob reads one byte of it."""


class Mirrors:
    """A registry, and a swarm whose peers each are a mirror for it."""

    def __init__(self, registry: RecordedRegistry, swarm: Swarm) -> None:
        self.registry = registry
        self.swarm = swarm

    @property
    def proxy(self) -> RecordingProxy:
        return self.registry.proxy

    def add(self, count: int, *, program: tuple[str, ...] = (), **settings: str) -> None:
        """Starts peers, side by side. `program` stands in for the shoal command; `settings`: more
        of the section `mirror`."""
        at = f"http://{self.proxy.address}"
        told = {
            "listen": "127.0.0.1:0",
            "upstreams": ",".join(f"{name}={at}" for name in NAMES),
            "default": DOCKER_HUB,
            "dedicated": ",".join(f"127.0.0.1:0={name}" for name in NAMES),
            **settings,
        }
        options = (
            *(part for key, value in told.items() for part in ("--set", f"mirror.{key}={value}")),
            # The storage that the registry redirects to.
            *("--set", "origin.internal_hosts=127.0.0.1"),
        )
        for number in range(len(self.swarm.peers), len(self.swarm.peers) + count):
            self.swarm.add_peer(f"peer-{number}", *program, options=options)
        self.swarm.wait_connected()

    def address(self, number: int, *, dedicated: str | None = None) -> str:
        """Where a peer's mirror listens: for all registries, or for the one that is named."""
        peer = self.swarm.peers[number]
        ready = wait_for_ready(peer.process, self.swarm.directory / f"{peer.name}.ready")
        return str(ready["mirrors"][0 if dedicated is None else 1 + NAMES.index(dedicated)])

    def read_bytes(self, image: Image) -> dict[str, int]:
        """What was read of each blob."""
        return {blob.digest: self.read_bytes_of(blob) for blob in image.blobs}

    def read_bytes_of(self, blob: Blob) -> int:
        """What was read of one, from the registry or from its storage."""
        proxy = self.proxy
        stored = [seen for seen in proxy.storage_seen if seen.path.endswith(f"/{blob.digest}")]
        return sum(seen.sent_bytes for seen in (*proxy.blob_reads(blob.digest), *stored))

    def check_read_once(self, image: Image) -> None:
        """Each blob left the registry once, whoever read it, in how many requests ever."""
        for blob in image.blobs:
            self.check_read_once_of(blob)

    def check_read_once_of(self, blob: Blob) -> None:
        """The same for one."""
        read, size = self.read_bytes_of(blob), len(blob.content)
        assert size <= read <= size + LOOK_BYTES, f"{read} of {size}\n{self.proxy.told()}"


@contextmanager
def mirrors_of(directory: Path) -> Iterator[Mirrors]:
    """A registry and a swarm without a peer."""
    with ExitStack() as stack:
        (directory / "registry").mkdir()
        registry = stack.enter_context(recorded_registry(directory / "registry"))
        swarm = stack.enter_context(Swarm(directory, RATE_BYTES_S))
        swarm.start_scheduler()
        yield Mirrors(registry, swarm)
