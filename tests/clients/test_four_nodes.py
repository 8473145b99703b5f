"""Four nodes pull one image at the same time, each through its own mirror: for every client, each
blob leaves the registry once. Then again from the caches, while the registry gives out no blob. The
same with a model, for clients that take one.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.clients.client_rig import Buildah, Client, Containerd, Outcome, Podman, Skopeo
from tests.clients.images import Image, make_image, make_model
from tests.clients.mirror_rig import NOWHERE, Mirrors, mirrors_of
from tests.clients.newer_clients import (
    ContainerdInChunks,
    ContainerdLocal,
    ContainerdTwo,
    Crane,
    Docker,
    Oras,
    PodmanFive,
    SkopeoOf2026,
)
from tests.clients.recording_proxy import Fault
from tests.integration.swarm_rig import say

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

NODES = 4

SAME: tuple[type[Client], ...] = (
    Containerd,
    ContainerdTwo,
    ContainerdInChunks,
    Skopeo,
    SkopeoOf2026,
    Podman,
    PodmanFive,
    Docker,
    Oras,
)
MIXED: tuple[type[Client], ...] = (Containerd, ContainerdLocal, Buildah, Crane)


@pytest.fixture(scope="module")
def mirrors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mirrors]:
    """The same four nodes for all clients; what each pulls has been pulled by nobody before."""
    with mirrors_of(tmp_path_factory.mktemp("mirrors")) as made:
        made.add(NODES)
        yield made


@pytest.fixture(
    params=[*((kind,) * NODES for kind in SAME), MIXED],
    ids=lambda kinds: kinds[0].name if len(set(kinds)) == 1 else "mixed",
)
def clients(
    request: pytest.FixtureRequest, mirrors: Mirrors, tmp_path: Path
) -> Iterator[list[Client]]:
    """One for each node."""
    with ExitStack() as stack, ThreadPoolExecutor(NODES) as pool:
        made = [
            kind(tmp_path / f"client-{number}", NOWHERE)
            for number, kind in enumerate(request.param)
        ]
        yield list(pool.map(stack.enter_context, made))
    mirrors.proxy.heal()


def pull_everywhere(clients: list[Client], mirrors: Mirrors, content: Image, path: str) -> None:
    """All at once, and each has every byte. Begins the registry's record anew."""
    mirrors.proxy.forget()

    def pull(number: int) -> Outcome:
        client = clients[number]
        of_kind = client.pull_model if content.is_model else client.pull
        return of_kind(f"{client.registry}/{path}", mirrors.address(number))

    with ThreadPoolExecutor(NODES) as pool:
        outcomes = list(pool.map(pull, range(NODES)))
    for client, outcome in zip(clients, outcomes, strict=True):
        assert outcome.ok, f"{client.name}: {outcome.text}\n{mirrors.proxy.told()}"
        say(f"{client.name}: {content.size_bytes / 1e6:.1f} MB in {outcome.seconds:.2f} s")
        if content.is_model:
            client.check_model(content)
        else:
            client.check(content)


def test_each_blob_leaves_the_registry_once(
    clients: list[Client], mirrors: Mirrors, request: pytest.FixtureRequest
) -> None:
    seed = 100 + request.node.callspec.indices["clients"]
    contents = [make_image(seed)]
    if all(client.takes_models for client in clients):
        contents.append(make_model(seed))
    for content in contents:
        path = f"drawn/{'model' if content.is_model else 'image'}-{seed}:v1"
        mirrors.registry.push(content, path.removesuffix(":v1"))
        pull_everywhere(clients, mirrors, content, path)
        mirrors.check_read_once(content)
        # And again from the caches: the registry's word about the manifest is enough.
        for client in clients:
            client.forget(f"{client.registry}/{path}")
        mirrors.proxy.break_with(
            *(Fault(path="/blobs/", status=500, method=way) for way in ("GET", "HEAD"))
        )
        pull_everywhere(clients, mirrors, content, path)
        assert sum(mirrors.read_bytes(content).values()) == 0
        mirrors.proxy.heal()
