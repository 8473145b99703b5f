"""The rows of the matrix of requests that need daemons of their own: one that lies, and a registry
that is gone altogether.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.clients.client_rig import Client, Containerd
from tests.clients.images import make_image
from tests.clients.mirror_rig import NOWHERE, Mirrors, mirrors_of
from tests.clients.newer_clients import ContainerdTwo, Docker, Oras, SkopeoOf2026
from tests.clients.recording_proxy import Fault, RecordingProxy
from tests.integration.swarm_rig import wait_for
from tests.integration.test_swarm_liar import LIAR_PROGRAM

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

IMAGE = make_image(seed=11)
PATH = "lib/img"
KINDS: tuple[type[Client], ...] = (Containerd, ContainerdTwo, SkopeoOf2026, Docker, Oras)


@pytest.fixture
def mirrors(tmp_path: Path) -> Iterator[Mirrors]:
    with mirrors_of(tmp_path) as made:
        made.registry.push(IMAGE, PATH)
        yield made


@pytest.fixture
def clients(tmp_path: Path) -> Iterator[list[Client]]:
    """One of each kind, for one node; they find the registry through the mirror alone."""
    with ExitStack() as stack:
        yield [stack.enter_context(kind(tmp_path / kind.name, NOWHERE)) for kind in KINDS]


def test_a_peer_that_lies_harms_no_client(mirrors: Mirrors, clients: list[Client]) -> None:
    mirrors.add(1, program=(LIAR_PROGRAM, "bytes"))
    liar, first = mirrors.swarm.peers[0], clients[0]
    # Its own client gets the truth, and so it holds the image.
    outcome = first.pull(f"{first.registry}/{PATH}:v1", mirrors.address(0))
    assert outcome.ok, outcome.text
    first.forget(f"{first.registry}/{PATH}:v1")
    mirrors.add(1)
    for client in clients:
        outcome = client.pull(f"{client.registry}/{PATH}:v1", mirrors.address(1))
        assert outcome.ok, f"{client.name}: {outcome.text}\n{mirrors.proxy.told()}"
        client.check(IMAGE)
    assert "lied about" in liar.process.log.read_text(), "nobody asked the liar for anything"
    assert mirrors.swarm.blamed() == {liar.name}


def test_a_registry_that_is_gone(mirrors: Mirrors, clients: list[Client]) -> None:
    mirrors.add(1)
    mirrors.add(1, verdict_ttl="1s")
    for number, client in ((number, client) for number in (0, 1) for client in clients):
        by_digest = f"{client.registry}/{PATH}@{IMAGE.manifest.digest}"
        at = mirrors.address(number)
        outcome = client.pull(by_digest, at)
        assert outcome.ok, f"{client.name}: {outcome.text}\n{mirrors.proxy.told()}"
        client.forget(by_digest)
    mirrors.proxy.go_down()
    for client in clients:
        by_digest = f"{client.registry}/{PATH}@{IMAGE.manifest.digest}"
        outcome = client.pull(by_digest, mirrors.address(0))
        assert outcome.ok, f"{client.name}: {outcome.text}"
        client.check(IMAGE)
        client.forget(by_digest)
        # What a tag stands for only the registry knows.
        assert not client.pull(f"{client.registry}/{PATH}:v1", mirrors.address(0)).ok

        def refused(client: Client = client, named: str = by_digest) -> bool:
            client.forget(named)
            return not client.pull(named, mirrors.address(1)).ok

        wait_for(refused, "the registry's yes of before counts no longer")


@pytest.mark.parametrize("kind", [Containerd, ContainerdTwo])
def test_a_daemon_that_is_killed_in_mid_pull(
    mirrors: Mirrors, tmp_path: Path, kind: type[Client]
) -> None:
    """Who chooses anew for each request goes on at the registry; a daemon that is back serves."""
    mirrors.add(1)
    peer, digest = mirrors.swarm.peers[0], IMAGE.largest.digest
    named = f"{kind.registry}/{PATH}:v1"
    with (
        RecordingProxy(mirrors.registry.registry.address) as straight,
        kind(tmp_path / kind.name, dict.fromkeys(NOWHERE, straight.address)) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        mirrors.proxy.break_with(Fault(path=digest, delay_s=30.0))
        pulling = pool.submit(client.pull, named, mirrors.address(0))
        wait_for(lambda: bool(mirrors.proxy.blob_reads(digest)), "the registry is asked")
        peer.process.kill()
        outcome = pulling.result()
        assert outcome.ok, f"{outcome.text}\n{straight.told()}\n{mirrors.proxy.told()}"
        client.check(IMAGE)
        client.forget(named)
        mirrors.proxy.heal()
        straight.forget()
        peer.restart()
        peer.wait_connected()
        outcome = client.pull(named, mirrors.address(0))
        assert outcome.ok, f"{outcome.text}\n{mirrors.proxy.told()}"
        client.check(IMAGE)
        assert straight.seen == [], "the client went past the mirror"
