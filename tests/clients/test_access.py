"""Every door through which cached private bytes could leave a node, tried without a credential,
with a wrong one, with another user's right one and with one that has ended. At each door whoever
has the right one gets in, so that a closed door is closed to the others and not to everybody.
"""

import base64
import hashlib
import http.client
import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from peer.cli.local_client import LocalClient
from shoal.wire import frames
from shoal.wire.errors import Reason
from tests.clients.gate import Gate, Refusal
from tests.clients.images import OCI_MANIFEST, Image, make_image
from tests.clients.registry_rig import RecordedRegistry, recorded_registry
from tests.conftest import require_root, require_tool
from tests.integration.swarm_rig import Peer, Swarm, say, wait_for, wait_for_ready

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

NAME = "registry.test"
PRIVATE, OTHER = "lib/private", "lib/other"
SECRET = make_image(seed=21, layers=2)
FOREIGN = make_image(seed=22, layers=1)
ASK_S = 20.0
HOLDS_S = 15
"""For verdicts and tokens that end within a test: long enough for a few requests before."""
NOBODY = 65534


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def token(until_s: float, name: str = "alice") -> str:
    """A bearer token that says when it ends; its registry knows it as a whole."""
    parts: tuple[dict[str, object], ...] = ({"alg": "none"}, {"sub": name, "exp": until_s}, {})
    coded = (base64.urlsafe_b64encode(json.dumps(each).encode()) for each in parts)
    return "Bearer " + ".".join(each.decode().rstrip("=") for each in coded)


ALICE, BOB = basic("alice", "right"), basic("bob", "right")
STRANGERS = {
    "nobody": "",
    "a wrong password": basic("alice", "wrong"),
    "no credential at all": "Basic ???",
    "a token nobody gave": "Bearer opaque",
    "a token that has ended": token(1.0),
    "bob, who may read something else": BOB,
}


class Users(Gate):
    """Who may read which repository, by the whole header."""

    def __init__(self) -> None:
        self.may = {ALICE: {PRIVATE}, BOB: {OTHER}}

    def refusal(self, path: str, authorization: str | None, realm: str) -> Refusal | None:
        """401 for whoever is not known, 403 for whoever may not read this."""
        del realm
        repositories = self.may.get(authorization or "")
        if repositories is None:
            challenge = {"WWW-Authenticate": 'Basic realm="test"'}
            return Refusal(401, {"errors": [{"code": "UNAUTHORIZED"}]}, challenge)
        if path != "/v2/" and not any(path.startswith(f"/v2/{each}/") for each in repositories):
            return Refusal(403, {"errors": [{"code": "DENIED"}]})
        return None


@dataclass(frozen=True)
class Door:
    """One way to name the registry to a mirror."""

    name: str
    listener: int
    before: str = ""
    query: str = ""
    header: str = ""

    def path(self, below: str) -> str:
        return f"/v2/{self.before}{below}{self.query}"


DOORS = (
    Door("default", 0),
    Door("ns", 0, query=f"?ns={NAME}"),
    Door("header", 0, header=f"http://{NAME}"),
    Door("prefix", 0, before=f"{NAME}/"),
    Door("listener", 1),
)


class House:
    """A registry with two private repositories, and peers that are mirrors for it."""

    def __init__(self, directory: Path, registry: RecordedRegistry, swarm: Swarm) -> None:
        self.directory = directory
        self.registry = registry
        self.swarm = swarm
        self.users = Users()
        registry.proxy.gate = self.users

    def add(self, *options: str, socket_path: Path | None = None) -> Peer:
        """Starts a peer with a mirror."""
        own = ("--socket", str(socket_path)) if socket_path is not None else ()
        peer = self.swarm.add_peer(
            f"peer-{len(self.swarm.peers)}",
            options=(
                *("--set", "mirror.listen=127.0.0.1:0"),
                *("--set", f"mirror.upstreams={NAME}=http://{self.registry.proxy.address}"),
                *("--set", f"mirror.default={NAME}"),
                *("--set", f"mirror.dedicated=127.0.0.1:0={NAME}"),
                *options,
                *own,
            ),
        )
        if socket_path is not None:
            peer.client = LocalClient(socket_path)
        self.swarm.wait_connected()
        return peer

    def ready(self, peer: Peer) -> dict[str, object]:
        return wait_for_ready(peer.process, self.swarm.directory / f"{peer.name}.ready")

    def ask(
        self,
        peer: Peer,
        door: Door,
        below: str,
        authorization: str,
        method: str = "GET",
        **headers: str,
    ) -> tuple[int, dict[str, str], bytes]:
        mirrors = self.ready(peer)["mirrors"]
        assert isinstance(mirrors, list)
        connection = http.client.HTTPConnection(str(mirrors[door.listener]), timeout=ASK_S)
        headers["Accept"] = f"{OCI_MANIFEST}, */*"
        if authorization:
            headers["Authorization"] = authorization
        if door.header:
            headers["X-Dragonfly-Registry"] = door.header
        try:
            connection.request(method, door.path(below), headers=headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def status(self, peer: Peer, below: str, authorization: str) -> int:
        return self.ask(peer, DOORS[0], below, authorization)[0]

    def warm(self, peer: Peer, authorization: str = ALICE) -> None:
        """Everything of the private image is in the peer's cache."""
        manifest = f"{PRIVATE}/manifests/{SECRET.manifest.digest}"
        for below in (manifest, *(f"{PRIVATE}/blobs/{blob.digest}" for blob in SECRET.blobs)):
            assert self.status(peer, below, authorization) == 200, self.registry.proxy.told()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with ExitStack() as stack:
        (tmp_path / "registry").mkdir()
        registry = stack.enter_context(recorded_registry(tmp_path / "registry"))
        registry.push(SECRET, PRIVATE)
        registry.push(FOREIGN, OTHER)
        swarm = stack.enter_context(Swarm(tmp_path, 200_000_000))
        swarm.start_scheduler()
        yield House(tmp_path, registry, swarm)


def leaks(image: Image, headers: dict[str, str], body: bytes) -> bool:
    """Whether an answer has bytes of an image in it, or tells how many there are."""
    contents = [blob.content for blob in (image.manifest, *image.blobs)]
    lengths = {str(len(content)) for content in contents}
    told = {value.rpartition("/")[2] for key, value in headers.items() if key == "Content-Range"}
    if told & lengths or headers.get("Content-Length") in lengths:
        return True
    return any(len(body) >= 32 and content.find(body[:32]) >= 0 for content in contents)


# ---------------------------------------------------------------- the mirror


def test_no_door_of_the_mirror_opens_to_a_stranger(house: House) -> None:
    peer = house.add()
    house.warm(peer)
    house.registry.proxy.forget()
    blob, manifest = SECRET.largest.digest, SECRET.manifest.digest
    wants: list[tuple[str, str, dict[str, str], int]] = [
        ("GET", f"{PRIVATE}/blobs/{blob}", {}, 200),
        ("HEAD", f"{PRIVATE}/blobs/{blob}", {}, 200),
        ("GET", f"{PRIVATE}/blobs/{blob}", {"Range": "bytes=0-99"}, 206),
        ("GET", f"{PRIVATE}/blobs/{blob}", {"Range": "bytes=5-"}, 206),
        ("GET", f"{PRIVATE}/blobs/{blob}", {"Range": "bytes=-64"}, 206),
        ("GET", f"{PRIVATE}/blobs/{SECRET.config.digest}", {}, 200),
        ("GET", f"{PRIVATE}/manifests/{manifest}", {}, 200),
        ("HEAD", f"{PRIVATE}/manifests/{manifest}", {}, 200),
        ("GET", f"{PRIVATE}/manifests/v1", {}, 200),
    ]
    tried = 0
    for door in DOORS:
        for method, below, headers, good in wants:
            for who, authorization in STRANGERS.items():
                what = f"{who} at {door.name}: {method} {below} {headers}"
                status, told, body = house.ask(peer, door, below, authorization, method, **headers)
                assert status in (401, 403, 404), f"{status} for {what}"
                assert not leaks(SECRET, told, body), what
                tried += 1
            # And in between whoever may.
            status, told, body = house.ask(peer, door, below, ALICE, method, **headers)
            assert status == good, f"{status} for alice at {door.name}: {method} {below}"
            assert leaks(SECRET, told, body)
    say(f"{tried} requests of strangers at {len(DOORS)} doors refused\n")


def test_a_digest_opens_nothing_under_another_repositorys_name(house: House) -> None:
    peer = house.add()
    house.warm(peer)
    assert house.status(peer, f"{OTHER}/manifests/v1", BOB) == 200
    assert house.status(peer, f"{OTHER}/blobs/{FOREIGN.largest.digest}", BOB) == 200
    for door in DOORS:
        for blob in (SECRET.manifest, *SECRET.blobs):
            for place in ("blobs", "manifests"):
                for authorization in (BOB, ALICE, ""):
                    below = f"{OTHER}/{place}/{blob.digest}"
                    status, told, body = house.ask(peer, door, below, authorization)
                    assert status in (401, 403, 404), (status, door.name, below)
                    assert not leaks(SECRET, told, body)


def test_a_verdict_and_a_token_end(house: House) -> None:
    with_verdict = house.add("--set", f"mirror.verdict_ttl={HOLDS_S}s")
    with_token = house.add("--set", "mirror.verdict_ttl=10m")
    blob = f"{PRIVATE}/blobs/{SECRET.largest.digest}"
    manifest = f"{PRIVATE}/manifests/{SECRET.manifest.digest}"
    ends_s = time.time() + HOLDS_S
    short = token(ends_s)
    house.users.may[short] = {PRIVATE}
    house.warm(with_token, short)
    house.warm(with_verdict, ALICE)
    house.registry.proxy.go_down()
    for peer, authorization in ((with_verdict, ALICE), (with_token, short)):
        for below in (blob, manifest):
            assert house.status(peer, below, authorization) == 200, "the verdict still counts"
    for peer in (with_verdict, with_token):
        for below in (blob, manifest):
            for who, stranger in STRANGERS.items():
                assert house.status(peer, below, stranger) == 503, who
    for peer, authorization in ((with_verdict, ALICE), (with_token, short)):
        for below in (blob, manifest):
            wait_for(
                lambda peer=peer, below=below, authorization=authorization: (  # type: ignore[misc]
                    house.status(peer, below, authorization) == 503
                ),
                f"the right to {below} ends",
            )
    assert time.time() >= ends_s
    house.registry.proxy.come_up()
    del house.users.may[short], house.users.may[ALICE]
    for peer, authorization in ((with_verdict, ALICE), (with_token, short)):
        for below in (blob, manifest):
            assert house.status(peer, below, authorization) == 401


# ---------------------------------------------------------------- the local API


@dataclass(frozen=True)
class Stranger:
    """Another user of the machine, who asks the daemon's socket with curl."""

    curl: str
    socket_path: Path

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, bytes, int]:
        """Status, 0 for none; body; exit code of curl."""
        data = ("--data-binary", json.dumps(body)) if body is not None else ()
        done = subprocess.run(
            [
                *(self.curl, "-s", "-S", "--max-time", str(ASK_S), "--noproxy", "*"),
                *("--unix-socket", str(self.socket_path), "-X", method),
                *("-w", "\n%{http_code}", *data, f"http://shoal{path}"),
            ],
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        text, _, status = done.stdout.rpartition(b"\n")
        return int(status or b"0"), text, done.returncode


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """Where another user may look for a socket."""
    with tempfile.TemporaryDirectory(prefix="access-") as path:
        os.chmod(path, 0o755)
        yield Path(path)


def stranger_at(socket_path: Path) -> Stranger:
    require_root()
    return Stranger(require_tool("curl"), socket_path)


def test_another_user_does_not_reach_the_socket(house: House, open_directory: Path) -> None:
    stranger = stranger_at(open_directory / "api" / "peer.sock")
    house.add(socket_path=stranger.socket_path)
    os.chmod(stranger.socket_path.parent, 0o755)
    status, _, code = stranger.ask("GET", "/v1/status")
    assert (status, code) == (0, 7), "connecting is refused by the socket's mode"


def test_another_user_of_the_group_gets_no_foreign_content(
    house: House, open_directory: Path
) -> None:
    stranger = stranger_at(open_directory / "api" / "peer.sock")
    peer = house.add("--set", "api.group=nogroup", socket_path=stranger.socket_path)
    house.warm(peer)
    assert stranger.ask("GET", "/v1/status")[0] == 200
    digest = SECRET.largest.digest
    tasks = peer.client.get_json("/v1/tasks")["tasks"]
    task = next(task["task_id"] for task in tasks if task["digest"] == digest)
    content = f"/v1/tasks/{task}/content"
    url = f"http://{house.registry.proxy.address}/v2/{PRIVATE}/blobs/{digest}"
    # Another place that says yes to everybody, but has something else.
    elsewhere = f"http://{house.registry.registry.address}/v2/"

    def wanted(where: str, authorization: str) -> dict[str, object]:
        headers = [["Authorization", authorization]] if authorization else []
        return {"urls": [{"url": where, "headers": headers, "digest": digest}], "outputs": [None]}

    cases = [(url, authorization) for authorization in STRANGERS.values()]
    for where, authorization in (*cases, (elsewhere, ""), (elsewhere, BOB)):
        assert stranger.ask("GET", content)[0] == 403
        status, body, _ = stranger.ask("POST", "/v1/stream", wanted(where, authorization))
        assert not leaks(SECRET, {}, body), (where, authorization)
        assert status >= 400, (where, authorization, body[:100])
        status, body, _ = stranger.ask("POST", "/v1/downloads", wanted(where, authorization))
        last = json.loads(body.splitlines()[-1])
        assert (status, last["event"]) == (200, "failed"), (where, last)
        assert stranger.ask("GET", content)[0] == 403
    assert stranger.ask("DELETE", f"/v1/tasks/{task}")[0] == 403
    # With a right of their own they get it.
    status, body, _ = stranger.ask("POST", "/v1/stream", wanted(url, ALICE))
    assert (status, hashlib.sha256(body).hexdigest()) == (200, digest.removeprefix("sha256:"))


# ---------------------------------------------------------------- the piece port


class Child:
    """A host that wants pieces, and has no token."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=ASK_S)
        self._decoder = frames.FrameDecoder()
        self.send(frames.Hello(1, 1, "stranger", os.urandom(16)))

    def __enter__(self) -> "Child":
        assert isinstance(self.next(), frames.Hello)
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, frame: frames.Frame) -> None:
        self._socket.sendall(frames.encode(frame))

    def next(self) -> frames.Frame:
        while (found := self._decoder.next_frame()) is None:
            data = self._socket.recv(65536)
            assert data, "closed"
            self._decoder.feed(data)
        return found


def test_the_piece_port_gives_nothing_without_a_token(house: House) -> None:
    peer = house.add()
    house.warm(peer)
    port = house.ready(peer)["piece_port"]
    assert isinstance(port, int)
    tasks = [task["task_id"] for task in peer.client.get_json("/v1/tasks")["tasks"]]
    assert len(tasks) == len(SECRET.blobs)
    for task in tasks:
        for proof in (b"", bytes(32), os.urandom(32)):
            with Child(port) as child:
                child.send(frames.Open(1, task, proof))
                refused = child.next()
                assert isinstance(refused, frames.Refused), refused
                assert refused.reason is Reason.UNAUTHORIZED
                # Nor for whoever does not care.
                child.send(frames.Request(1, ((7, 0),)))
                answer = child.next()
                assert isinstance(answer, frames.Reject), answer
