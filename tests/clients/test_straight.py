"""Real clients pull straight from a real registry through the recording proxy.

No mirror of ours takes part: these tests prove that the rig tells the truth, and hold what the
clients do when a registry misbehaves, which is what a mirror has to live with.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.client_rig import CLIENTS, Client, Containerd, Skopeo, mounts_below
from tests.clients.gate import BasicGate, Gate, TokenGate
from tests.clients.images import Image, make_image, make_model, write_layout
from tests.clients.newer_clients import ContainerdTwo, Oras, SkopeoOf2026
from tests.clients.recording_proxy import Fault, RecordingProxy
from tests.clients.registry_rig import RecordedRegistry, recorded_registry
from tests.integration.swarm_rig import say

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

IMAGE = make_image()
NAMED = "registry.test/lib/img:v1"
CUT_BYTES = 2_000_000
"""Past the first mebibyte: with less than that nobody but containerd tries to go on."""
KINDS = (*CLIENTS, ContainerdTwo, SkopeoOf2026, Oras)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RecordedRegistry]:
    """One registry for all tests of this module."""
    with recorded_registry(tmp_path_factory.mktemp("registry")) as registry:
        registry.push(IMAGE, "lib/img")
        registry.push(IMAGE, "registry.test/lib/img")
        yield registry


@pytest.fixture
def proxy(started: RecordedRegistry) -> Iterator[RecordingProxy]:
    """Without faults, and with an empty record."""
    started.proxy.heal()
    started.proxy.forget()
    yield started.proxy
    started.proxy.heal()


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def client(
    request: pytest.FixtureRequest, tmp_path: Path, proxy: RecordingProxy
) -> Iterator[Client]:
    """Each client in turn; it knows a registry by a name that nobody else does."""
    kind: type[Client] = request.param
    with kind(tmp_path, {"registry.test": proxy.address}) as made:
        yield made
    assert mounts_below(tmp_path) == []


def read_once(proxy: RecordingProxy, image: Image) -> None:
    """Every blob came by one request and whole, and nothing else was sent of blobs."""
    for blob in image.blobs:
        reads = proxy.blob_reads(blob.digest)
        assert [(seen.status, seen.sent_bytes) for seen in reads] == [(200, len(blob.content))], (
            proxy.told()
        )


def test_every_blob_is_read_once(client: Client, proxy: RecordingProxy) -> None:
    outcome = client.pull(NAMED)
    assert outcome.ok, outcome.text
    say(f"{client.name}: {IMAGE.size_bytes / 1e6:.1f} MB in {outcome.seconds:.2f} s")
    client.check(IMAGE)
    if isinstance(client, Containerd):
        client.check_unpacked(IMAGE)
    read_once(proxy, IMAGE)
    client.forget(NAMED)
    proxy.forget()
    assert client.pull(NAMED).ok
    read_once(proxy, IMAGE)


def test_a_mirror_is_asked_in_place_of_the_registry(
    client: Client, started: RecordedRegistry, proxy: RecordingProxy
) -> None:
    # Any registry with the image at the path that the client asks for can stand in for a mirror.
    with RecordingProxy(started.registry.address) as mirror:
        outcome = client.pull(NAMED, mirror.address)
        assert outcome.ok, f"{outcome.text}\n{mirror.told()}"
        client.check(IMAGE)
        read_once(mirror, IMAGE)
        assert proxy.seen == []
        if isinstance(client, Containerd):
            assert all("ns=registry.test" in seen.query for seen in mirror.seen)
        else:
            assert all(
                seen.path == "/v2/" or seen.path.startswith("/v2/registry.test/lib/img/")
                for seen in mirror.seen
            )
        client.forget(NAMED)
        mirror.go_down()
        outcome = client.pull(NAMED, mirror.address)
        assert outcome.ok == client.knows_mirrors, outcome.text
        if outcome.ok:
            read_once(proxy, IMAGE)


def test_model_is_read_once(started: RecordedRegistry, tmp_path: Path) -> None:
    model = make_model()
    reference = started.push(model, "models/drawn")
    with Containerd(tmp_path / "containerd") as containerd, Skopeo(tmp_path / "skopeo") as skopeo:
        for client in (containerd, skopeo):
            started.proxy.heal()
            started.proxy.forget()
            outcome = client.pull_model(reference)
            assert outcome.ok, outcome.text
            client.check_model(model)
            read_once(started.proxy, model)


def test_corrupt_blob_is_refused(client: Client, proxy: RecordingProxy) -> None:
    proxy.break_with(Fault(path=IMAGE.largest.digest, corrupt_at=100_000))
    outcome = client.pull(NAMED)
    assert not outcome.ok, outcome.text
    assert proxy.blob_reads(IMAGE.largest.digest), outcome.text
    with pytest.raises((AssertionError, FileNotFoundError)):
        client.check(IMAGE)


def test_cut_blob_is_resumed_or_refused(client: Client, proxy: RecordingProxy) -> None:
    digest = IMAGE.largest.digest
    proxy.break_with(Fault(path=digest, cut_after_bytes=CUT_BYTES, times=1))
    outcome = client.pull(NAMED)
    reads = proxy.blob_reads(digest)
    say(f"{client.name} after a cut: {[str(seen) for seen in reads]}")
    assert reads[0].sent_bytes == CUT_BYTES
    resumed = [seen for seen in reads if seen.header("Range") is not None]
    # Clients of before 2023 give up; containerd has always gone on.
    assert outcome.ok == bool(resumed), f"{outcome.text}\n{proxy.told()}"
    assert outcome.ok or not isinstance(client, Containerd)
    if outcome.ok:
        assert [seen.status for seen in resumed] == [206]
        assert sum(seen.sent_bytes for seen in reads) == len(IMAGE.largest.content)
        client.check(IMAGE)


def test_missing_manifest_and_closed_ports_are_errors(
    client: Client, proxy: RecordingProxy
) -> None:
    proxy.break_with(
        *(Fault(path="/manifests/", method=way, status=404) for way in ("GET", "HEAD"))
    )
    assert not client.pull(NAMED).ok
    assert 404 in {seen.status for seen in proxy.seen}
    proxy.heal()
    proxy.go_down()
    try:
        proxy.forget()
        assert not client.pull(NAMED).ok
        assert proxy.seen == []
    finally:
        proxy.come_up()
    assert client.pull(NAMED).ok
    client.check(IMAGE)


def test_blobs_of_a_storage_with_signed_urls(client: Client, proxy: RecordingProxy) -> None:
    proxy.break_with(Fault(path="/blobs/", redirect=True))
    outcome = client.pull(NAMED)
    assert outcome.ok, outcome.text
    client.check(IMAGE)
    assert all(seen.status == 307 for blob in IMAGE.blobs for seen in proxy.blob_reads(blob.digest))
    assert sum(seen.sent_bytes for seen in proxy.storage_seen) == IMAGE.size_bytes
    assert not any(seen.header("Authorization") for seen in proxy.storage_seen)
    client.forget(NAMED)
    proxy.signed_for_s = -1.0
    try:
        assert not client.pull(NAMED).ok
        assert {seen.status for seen in proxy.storage_seen} == {200, 403}
    finally:
        proxy.signed_for_s = 60.0


@pytest.mark.parametrize(
    "gate", [BasicGate("ann", "secret"), TokenGate("ann", "secret")], ids=["basic", "token"]
)
def test_credentials_are_demanded(client: Client, proxy: RecordingProxy, gate: Gate) -> None:
    proxy.gate = gate
    client.login[proxy.address] = ("ann", "wrong")
    assert not client.pull(NAMED).ok
    assert {seen.status for seen in proxy.seen} == {401}, proxy.told()
    client.login[proxy.address] = ("ann", "secret")
    outcome = client.pull(NAMED)
    assert outcome.ok, f"{outcome.text}\n{proxy.told()}"
    client.check(IMAGE)
    read_once(proxy, IMAGE)


def test_tokens_are_given_to_everybody(client: Client, proxy: RecordingProxy) -> None:
    proxy.gate = gate = TokenGate()
    outcome = client.pull(NAMED)
    assert outcome.ok, f"{outcome.text}\n{proxy.told()}"
    client.check(IMAGE)
    assert gate.given >= 1


def test_delay_is_borne(client: Client, proxy: RecordingProxy) -> None:
    proxy.break_with(Fault(path=IMAGE.largest.digest, delay_s=1.0))
    outcome = client.pull(NAMED)
    assert outcome.ok, outcome.text
    assert outcome.seconds >= 1.0


def test_images_are_the_same_every_time(tmp_path: Path) -> None:
    assert make_image().manifest.digest == IMAGE.manifest.digest
    assert make_image(2).manifest.digest != IMAGE.manifest.digest
    assert make_model().manifest.digest == make_model().manifest.digest
    write_layout(IMAGE, tmp_path / "layout", "v1")
    with Skopeo(tmp_path / "skopeo") as skopeo:
        told = skopeo.call("skopeo", "inspect", "--raw", f"oci:{tmp_path / 'layout'}:v1")
    assert told.text.encode() == IMAGE.manifest.content
