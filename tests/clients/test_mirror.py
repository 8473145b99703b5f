"""Real clients pull through the registry mirrors of a swarm, from a real registry behind a proxy
that counts what is read and can be told to misbehave.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.clients.client_rig import CLIENTS, Client, Containerd, Skopeo
from tests.clients.gate import BasicGate
from tests.clients.images import Image, make_image, make_model
from tests.clients.recording_proxy import Fault, RecordingProxy
from tests.clients.registry_rig import RecordedRegistry, recorded_registry
from tests.integration.swarm_rig import Swarm, say, wait_for, wait_for_ready

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

NODES = 4
RATE_BYTES_S = 200_000_000
NAME = "registry.test"
IMAGE = make_image(seed=7)
NAMED = f"{NAME}/lib/img:v1"
LOOK_BYTES = 16
"""A host's look at the size of a blob reads one byte of it."""


class Mirrors:
    """A registry, and a swarm whose peers each are a mirror for it."""

    def __init__(self, registry: RecordedRegistry, swarm: Swarm) -> None:
        self.registry = registry
        self.swarm = swarm

    @property
    def proxy(self) -> RecordingProxy:
        return self.registry.proxy

    def add(self, count: int) -> None:
        """Starts peers, side by side."""
        options = (
            *("--set", "mirror.listen=127.0.0.1:0"),
            *("--set", f"mirror.upstreams={NAME}=http://{self.proxy.address}"),
            *("--set", f"mirror.default={NAME}"),
            *("--set", f"mirror.dedicated=127.0.0.1:0={NAME}"),
            # The storage that the registry redirects to.
            *("--set", "origin.internal_hosts=127.0.0.1"),
        )
        for number in range(len(self.swarm.peers), len(self.swarm.peers) + count):
            self.swarm.add_peer(f"peer-{number}", options=options)
        self.swarm.wait_connected()

    def address(self, number: int, *, dedicated: bool = False) -> str:
        """Where a peer's mirror listens: for all registries, or for the one."""
        peer = self.swarm.peers[number]
        ready = wait_for_ready(peer.process, self.swarm.directory / f"{peer.name}.ready")
        return str(ready["mirrors"][dedicated])

    def read_bytes(self, image: Image) -> dict[str, int]:
        """What was read of each blob."""
        return {
            blob.digest: sum(seen.sent_bytes for seen in self.proxy.blob_reads(blob.digest))
            for blob in image.blobs
        }

    def check_read_once(self, image: Image) -> None:
        """Each blob left the registry once, whoever read it, in how many requests ever."""
        for blob in image.blobs:
            read = self.read_bytes(image)[blob.digest]
            size = len(blob.content)
            assert size <= read <= size + LOOK_BYTES, f"{read} of {size}\n{self.proxy.told()}"


@pytest.fixture
def mirrors(tmp_path: Path) -> Iterator[Mirrors]:
    with ExitStack() as stack:
        (tmp_path / "registry").mkdir()
        registry = stack.enter_context(recorded_registry(tmp_path / "registry"))
        registry.push(IMAGE, "lib/img")
        swarm = stack.enter_context(Swarm(tmp_path, RATE_BYTES_S))
        swarm.start_scheduler()
        registry.proxy.forget()
        yield Mirrors(registry, swarm)


def test_four_kinds_of_clients_on_four_nodes_read_each_blob_once(
    mirrors: Mirrors, tmp_path: Path
) -> None:
    mirrors.add(NODES)
    with ExitStack() as stack:
        clients: list[Client] = [
            stack.enter_context(kind(tmp_path / kind.name, {NAME: "127.0.0.1:1"}))
            for kind in CLIENTS
        ]
        assert len(clients) == NODES
        with ThreadPoolExecutor(NODES) as pool:
            outcomes = list(
                pool.map(
                    lambda pair: pair[1].pull(NAMED, mirrors.address(pair[0])), enumerate(clients)
                )
            )
        for client, outcome in zip(clients, outcomes, strict=True):
            assert outcome.ok, f"{client.name}: {outcome.text}\n{mirrors.proxy.told()}"
            say(f"{client.name}: {outcome.seconds:.2f} s")
            client.check(IMAGE)
        mirrors.check_read_once(IMAGE)
        # And again, from the cache, while the registry gives out no blob.
        mirrors.proxy.break_with(Fault(path="/blobs/", status=500, method="GET"))
        mirrors.proxy.forget()
        for number, client in enumerate(clients):
            client.forget(NAMED)
            outcome = client.pull(NAMED, mirrors.address(number))
            assert outcome.ok, f"{client.name}: {outcome.text}\n{mirrors.proxy.told()}"
            client.check(IMAGE)
        assert sum(mirrors.read_bytes(IMAGE).values()) == 0


@pytest.fixture(params=CLIENTS, ids=lambda kind: kind.name)
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Client]:
    kind: type[Client] = request.param
    with kind(tmp_path / "client", {NAME: "127.0.0.1:1"}) as made:
        yield made


def test_a_wrong_credential_is_refused_though_the_cache_is_warm(
    client: Client, mirrors: Mirrors
) -> None:
    mirrors.proxy.gate = BasicGate("ann", "secret")
    mirrors.add(1)
    # Skopeo and its like learn at the root of a listener that credentials are wanted.
    at = mirrors.address(0, dedicated=True)
    client.login[at] = client.login[f"{at}/{NAME}"] = ("ann", "secret")
    outcome = client.pull(NAMED, at)
    assert outcome.ok, f"{outcome.text}\n{mirrors.proxy.told()}"
    client.check(IMAGE)
    mirrors.check_read_once(IMAGE)
    for login in ({at: ("ann", "wrong"), f"{at}/{NAME}": ("ann", "wrong")}, {}):
        client.forget(NAMED)
        client.login = login
        outcome = client.pull(NAMED, at)
        assert not outcome.ok, outcome.text
        with pytest.raises((AssertionError, FileNotFoundError)):
            client.check(IMAGE)


def test_a_cut_body_and_storage_elsewhere_are_the_mirrors_business(
    client: Client, mirrors: Mirrors
) -> None:
    digest = IMAGE.largest.digest
    mirrors.proxy.break_with(
        Fault(path=digest, method="GET", cut_after_bytes=1_000_000, times=2),
        Fault(path="/blobs/", redirect=True),
    )
    mirrors.add(1)
    outcome = client.pull(NAMED, mirrors.address(0))
    assert outcome.ok, f"{outcome.text}\n{mirrors.proxy.told()}"
    client.check(IMAGE)
    assert not any(seen.header("Authorization") for seen in mirrors.proxy.storage_seen)


def test_false_bytes_are_never_taken_for_the_blob(client: Client, mirrors: Mirrors) -> None:
    mirrors.proxy.break_with(Fault(path=IMAGE.largest.digest, method="GET", corrupt_at=100_000))
    mirrors.add(1)
    outcome = client.pull(NAMED, mirrors.address(0))
    assert not outcome.ok, outcome.text
    with pytest.raises((AssertionError, FileNotFoundError)):
        client.check(IMAGE)
    mirrors.proxy.heal()
    # For a few seconds the mirror remembers that the bytes were false.
    wait_for(lambda: client.pull(NAMED, mirrors.address(0)).ok, "a right pull")
    client.check(IMAGE)


def test_a_model_is_read_once_by_two_kinds_of_clients(mirrors: Mirrors, tmp_path: Path) -> None:
    model = make_model(seed=3)
    mirrors.registry.push(model, "models/drawn")
    named = f"{NAME}/models/drawn:v1"
    mirrors.proxy.forget()
    mirrors.add(2)
    places = {NAME: "127.0.0.1:1"}
    with (
        Containerd(tmp_path / "containerd", places) as containerd,
        Skopeo(tmp_path / "skopeo", places) as skopeo,
    ):
        for number, (client, pull) in enumerate(
            ((containerd, containerd.fetch), (skopeo, skopeo.pull))
        ):
            outcome = pull(named, mirrors.address(number))
            assert outcome.ok, f"{outcome.text}\n{mirrors.proxy.told()}"
            client.check(model)
        mirrors.check_read_once(model)
