"""The matrix of requests with real clients: they pull through the mirrors of a swarm, from a real
registry behind a proxy that counts what is read and can be told to misbehave. A clean pull by every
client is in `test_four_nodes`, what needs daemons of its own in `test_mirror_daemons`.
"""

import http.client
import json
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.clients.client_rig import Client, Containerd, Skopeo
from tests.clients.gate import BasicGate, Gate, TokenGate
from tests.clients.images import OCI_MANIFEST, Image, make_image
from tests.clients.mirror_rig import DOCKER_HUB, NAME, NOWHERE, Mirrors, mirrors_of
from tests.clients.newer_clients import (
    ContainerdInChunks,
    ContainerdTwo,
    Docker,
    Oras,
    SkopeoOf2026,
)
from tests.clients.recording_proxy import Fault, RecordingProxy
from tests.integration.swarm_rig import say, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

KINDS: tuple[type[Client], ...] = (
    Containerd,
    ContainerdTwo,
    Skopeo,
    SkopeoOf2026,
    Docker,
    Oras,
)
"""One of each library in each version: podman and buildah do as skopeo does."""
GOING_ON = [kind for kind in KINDS if kind.knows_mirrors and kind is not Docker]
"""Docker goes on to Docker Hub alone."""
WITH_CREDENTIALS = [kind for kind in KINDS if kind is not Docker]
"""Docker sends none to a mirror."""
CUT_BYTES = 2_000_000
"""Past the first mebibyte: with less than that nobody but containerd tries to go on."""


def name_of(kind: type[Client]) -> str:
    return kind.name


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mirrors]:
    """Two nodes for all tests of this module."""
    with mirrors_of(tmp_path_factory.mktemp("mirrors")) as made:
        made.add(2)
        yield made


@pytest.fixture
def mirrors(started: Mirrors) -> Iterator[Mirrors]:
    """Without faults, and with an empty record."""
    started.proxy.heal()
    started.proxy.forget()
    yield started
    started.proxy.heal()


@pytest.fixture
def image(mirrors: Mirrors, request: pytest.FixtureRequest) -> Image:
    """Of each test its own: nobody has a byte of it. It is `lib/SEED:v1`."""
    made = make_image(zlib.crc32(request.node.nodeid.encode()))
    mirrors.registry.push(made, path_of(made))
    return made


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """For what a test starts."""
    with ExitStack() as made:
        yield made


@pytest.fixture(params=KINDS, ids=name_of)
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Client]:
    """Finds the registry through the mirror alone."""
    kind: type[Client] = request.param
    with kind(tmp_path / "client", NOWHERE) as made:
        yield made


def path_of(image: Image) -> str:
    return f"lib/{image.manifest.digest[7:19]}"


def named(client: Client, image: Image) -> str:
    return f"{client.registry}/{path_of(image)}:v1"


def must_pull(client: Client, image: Image, mirror: str, told: RecordingProxy) -> None:
    outcome = client.pull(named(client, image), mirror)
    assert outcome.ok, f"{client.name}: {outcome.text}\n{told.told()}"
    client.check(image)


def must_not_pull(client: Client, image: Image, mirror: str) -> None:
    client.forget(named(client, image))
    outcome = client.pull(named(client, image), mirror)
    assert not outcome.ok, outcome.text
    with pytest.raises((AssertionError, FileNotFoundError)):
        client.check(image)


def break_blobs(proxy: RecordingProxy, path: str, status: int) -> None:
    """No blob whose path contains `path` is given out any more, nor a word about it."""
    proxy.break_with(*(Fault(path=path, status=status, method=way) for way in ("GET", "HEAD")))


# ------------------------------------------------------------ what others hold, and what nobody has


def test_what_a_peer_holds_comes_from_there(client: Client, mirrors: Mirrors, image: Image) -> None:
    must_pull(client, image, mirrors.address(0), mirrors.proxy)
    client.forget(named(client, image))
    mirrors.proxy.break_with(Fault(path="/blobs/", status=500))
    mirrors.proxy.forget()
    must_pull(client, image, mirrors.address(1), mirrors.proxy)
    assert sum(mirrors.read_bytes(image).values()) == 0


def test_a_miss_is_the_registrys_own_word(
    client: Client, mirrors: Mirrors, image: Image, stack: ExitStack
) -> None:
    watched = stack.enter_context(RecordingProxy(mirrors.address(0)))
    nothing = f"{client.registry}/lib/nothing:v1"
    assert not client.pull(nothing, watched.address).ok
    answers = {seen.status for seen in watched.seen if "/manifests/" in seen.path}
    assert answers == {404}, watched.told()
    break_blobs(mirrors.proxy, image.largest.digest, 404)
    must_not_pull(client, image, watched.address)
    answers = {seen.status for seen in watched.blob_reads(image.largest.digest)}
    assert answers == {404}, watched.told()


@pytest.fixture
def straight(client: Client, mirrors: Mirrors, stack: ExitStack) -> RecordingProxy:
    """The same registry, sound, where the client finds it without the mirror."""
    made = stack.enter_context(RecordingProxy(mirrors.registry.registry.address))
    client.places = {NAME: made.address}
    return made


@pytest.mark.parametrize("client", GOING_ON, indirect=True, ids=name_of)
def test_a_registry_that_fails_behind_the_mirror_is_asked_straight(
    client: Client, mirrors: Mirrors, image: Image, straight: RecordingProxy, stack: ExitStack
) -> None:
    watched = stack.enter_context(RecordingProxy(mirrors.address(0)))
    mirrors.proxy.break_with(
        *(Fault(path="/manifests/", status=502, method=way) for way in ("GET", "HEAD"))
    )
    must_pull(client, image, watched.address, straight)
    answers = {seen.status for seen in watched.seen if "/manifests/" in seen.path}
    # Neither 429, which makes clients ask again, nor 404, which would be a lie.
    assert answers <= {502, 503}, watched.told()


@pytest.mark.parametrize("client", GOING_ON, indirect=True, ids=name_of)
def test_a_blob_that_the_mirror_cannot_bring_is_a_503(
    client: Client, mirrors: Mirrors, image: Image, straight: RecordingProxy, stack: ExitStack
) -> None:
    watched = stack.enter_context(RecordingProxy(mirrors.address(0)))
    break_blobs(mirrors.proxy, image.largest.digest, 500)
    outcome = client.pull(named(client, image), watched.address)
    answers = {seen.status for seen in watched.blob_reads(image.largest.digest)}
    assert answers == {503}, watched.told()
    # Only containerd chooses anew for each request.
    assert outcome.ok == isinstance(client, Containerd), outcome.text
    assert bool(straight.blob_reads(image.largest.digest)) == outcome.ok


def test_passing_errors_cut_bodies_and_storage_elsewhere_are_the_mirrors_business(
    client: Client, mirrors: Mirrors, image: Image
) -> None:
    digest = image.largest.digest
    mirrors.proxy.break_with(
        Fault(path=digest, status=503, times=1),
        Fault(path=digest, cut_after_bytes=1_000_000, times=2),
        Fault(path="/blobs/", redirect=True),
    )
    must_pull(client, image, mirrors.address(0), mirrors.proxy)
    assert mirrors.proxy.storage_seen
    assert not any(seen.header("Authorization") for seen in mirrors.proxy.storage_seen)


def test_false_bytes_are_never_taken_for_the_blob(
    client: Client, mirrors: Mirrors, image: Image
) -> None:
    mirrors.proxy.break_with(Fault(path=image.largest.digest, corrupt_at=100_000))
    must_not_pull(client, image, mirrors.address(0))
    mirrors.proxy.heal()
    # For a few seconds the mirror remembers that the bytes were false.
    wait_for(lambda: client.pull(named(client, image), mirrors.address(0)).ok, "a right pull")
    client.check(image)


# ------------------------------------------------------------ between client and mirror


def test_who_can_goes_on_where_the_mirrors_answer_was_cut(
    client: Client, mirrors: Mirrors, image: Image, stack: ExitStack
) -> None:
    digest = image.largest.digest
    watched = stack.enter_context(RecordingProxy(mirrors.address(0)))
    watched.break_with(Fault(path=digest, cut_after_bytes=CUT_BYTES, times=1))
    outcome = client.pull(named(client, image), watched.address)
    reads = watched.blob_reads(digest)
    say(f"{client.name} after a cut: {[str(seen) for seen in reads]}")
    assert reads[0].sent_bytes == CUT_BYTES
    resumed = [seen for seen in reads if seen.header("Range") is not None]
    assert outcome.ok == bool(resumed), f"{outcome.text}\n{watched.told()}"
    assert outcome.ok or not isinstance(client, Containerd | SkopeoOf2026 | Docker)
    if outcome.ok:
        assert [seen.status for seen in resumed] == [206]
        client.check(image)
        mirrors.check_read_once(image)


def test_chunks_that_are_read_side_by_side_by_ranges_without_an_end(
    tmp_path: Path, mirrors: Mirrors, image: Image, stack: ExitStack
) -> None:
    watched = stack.enter_context(RecordingProxy(mirrors.address(0)))
    client = stack.enter_context(ContainerdInChunks(tmp_path / "client", NOWHERE))
    must_pull(client, image, watched.address, watched)
    reads = watched.blob_reads(image.largest.digest)
    spans = {seen.header("Range") for seen in reads}
    assert len(spans) > 4, watched.told()
    assert all(span is not None and span.endswith("-") for span in spans)
    assert {seen.status for seen in reads} == {206}
    mirrors.check_read_once(image)


# ------------------------------------------------------------ who may read


@pytest.mark.parametrize("client", WITH_CREDENTIALS, indirect=True, ids=name_of)
@pytest.mark.parametrize("gate", ["basic", "token"])
def test_a_wrong_credential_is_refused_though_the_cache_is_warm(
    client: Client, mirrors: Mirrors, image: Image, gate: str
) -> None:
    made: Gate = (BasicGate if gate == "basic" else TokenGate)("ann", "secret")
    mirrors.proxy.gate = made
    # Skopeo and its like learn at the root of a listener that credentials are wanted, and compute
    # from the path what they ask a token for.
    client.dedicated = True
    at = mirrors.address(0, dedicated=NAME)
    client.login[at] = ("ann", "secret")
    must_pull(client, image, at, mirrors.proxy)
    mirrors.check_read_once(image)
    for login in ({at: ("ann", "wrong")}, {}):
        client.login = login
        must_not_pull(client, image, at)


def test_docker_gets_tokens_that_everybody_gets_from_a_listener_for_docker_hub(
    tmp_path: Path, mirrors: Mirrors, image: Image, stack: ExitStack
) -> None:
    client = stack.enter_context(Docker(tmp_path / "client", NOWHERE))
    mirrors.proxy.gate = gate = TokenGate()
    # A listener for all registries cannot tell at its root whose tokens are wanted.
    must_not_pull(client, image, mirrors.address(0))
    must_pull(client, image, mirrors.address(0, dedicated=DOCKER_HUB), mirrors.proxy)
    assert gate.given >= 1
    mirrors.check_read_once(image)


def test_no_verdict_outlives_its_token(mirrors: Mirrors, image: Image) -> None:
    mirrors.proxy.gate = TokenGate(holds_s=3.0)
    scope = f"repository:{path_of(image)}:pull"
    realm = urlsplit(mirrors.proxy.realm)
    status, body = get(realm.netloc, f"{realm.path}?service=registry.test&scope={scope}")
    assert status == 200
    token = json.loads(body)["token"]
    manifest = f"/v2/{path_of(image)}/manifests/v1"
    blob = f"/v2/{path_of(image)}/blobs/{image.largest.digest}"
    at = mirrors.address(0, dedicated=NAME)
    assert get(at, manifest, token)[0] == 200
    assert get(at, blob, token) == (200, image.largest.content)
    mirrors.check_read_once_of(image.largest)
    wait_for(lambda: get(at, blob, token)[0] == 401, "the token has expired")
    assert get(at, blob)[0] == 401


def get(address: str, path: str, token: str | None = None) -> tuple[int, bytes]:
    """Status and body."""
    connection = http.client.HTTPConnection(address, timeout=20)
    try:
        headers = {"Accept": f"{OCI_MANIFEST}, */*"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()
