"""What clients push and delete, passed through the mirror to a registry that tells what it got."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from peer.shell.mirror import bodies, relay, writes
from peer.shell.mirror.server import MirrorOptions, RegistryMirror
from peer.shell.mirror.upstreams import Upstream
from peer.shell.node import NodeOptions, PeerNode
from shoal.runtime.config_values import Endpoint
from shoal.wire.ids import HostId
from shoal.wire.limits import KIB, MIB, SECOND_NS
from tests.fakes.answers import digest_of
from tests.fakes.upstream_registry import FakeRegistry

NAME = "reg.example"
BLOB = b"pushed" * 50_000
UPLOADS = "/v2/lib/img/blobs/uploads/"

Answer = Callable[[web.Request], Any]


class Uploads(FakeRegistry):
    """Takes uploads too. `location`: where it sends its clients, with {host} for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.location = UPLOADS + "u1?_state=a%2Fb%3D&x=1"
        self.answers: dict[str, Answer] = {}
        """By method, in place of what it does by itself."""
        self.received: list[tuple[str, str, bytes]] = []
        """Method, path with its query, body."""
        self.receiving = 0
        """Bytes of a body that is on its way."""

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.method in self.answers:
            self.seen.append(request)
            answered: web.StreamResponse = await self.answers[request.method](request)
            return answered
        if request.method == "DELETE":
            self.seen.append(request)
            repository, _, reference = request.path.removeprefix("/v2/").rsplit("/", 2)
            self.manifests.pop((repository, reference), None)
            self.blobs.pop((repository, reference), None)
            return web.Response(status=202)
        if request.method in ("GET", "HEAD") and "/uploads/" not in request.path:
            return await super()._answer(request)
        self.seen.append(request)
        body = bytearray()
        async for chunk in request.content.iter_any():
            body += chunk
            self.receiving += len(chunk)
        self.received.append((request.method, request.raw_path, bytes(body)))
        headers = {"Docker-Upload-UUID": "u1", "Range": f"0-{max(0, len(body) - 1)}"}
        if request.method == "PUT":
            digest = digest_of(bytes(body))
            self.blobs["lib/img", digest] = bytes(body)
            headers |= {"OCI-Subject": "sha256:0", "Location": f"/v2/lib/img/blobs/{digest}"}
            return web.Response(status=201, headers=headers)
        headers["Location"] = self.location.format(host=self.url.removeprefix("http://"))
        return web.Response(status=202, headers=headers)


class Site:
    """A registry, a mirror that passes writes through, and a client."""

    def __init__(self, registry: Uploads, mirror: RegistryMirror) -> None:
        self.registry = registry
        self.mirror = mirror
        self.client = aiohttp.ClientSession(auto_decompress=False)

    def url(self, path: str, *, at: int = 0) -> str:
        return f"http://{self.mirror.addresses[at]}{path}"

    async def ask(
        self, method: str, path: str, *, at: int = 0, **options: Any
    ) -> tuple[int, aiohttp.ClientResponse, bytes]:
        # A location is used as it was told, no sign of it decoded.
        url = URL(self.url(path, at=at), encoded=True)
        async with self.client.request(method, url, allow_redirects=False, **options) as answer:
            return answer.status, answer, await answer.read()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    registry = Uploads()
    await registry.start()
    node = PeerNode(NodeOptions(host_id=HostId("h"), store_root=tmp_path / "store"))
    await node.start()
    mirror = RegistryMirror(
        MirrorOptions(
            listen=(Endpoint("127.0.0.1", 0),),
            dedicated=((Endpoint("127.0.0.1", 0), NAME),),
            upstreams=(Upstream(NAME, registry.url),),
            verdict_ttl_ns=60 * SECOND_NS,
            writes=True,
        ),
        start=node.downloads.start,
        unready=str,
        clock=node.clock,
    )
    await mirror.start()
    made = Site(registry, mirror)
    yield made
    await made.client.close()
    await mirror.close()
    await node.close()
    await registry.close()


# ---------------------------------------------------------------- uploads


@pytest.mark.parametrize(
    "location",
    [
        UPLOADS + "u1?_state=a%2Fb%3D&x=1",
        "http://{host}" + UPLOADS + "u1?_state=a%2Fb%3D",
        f"https://{NAME}{UPLOADS}u1?_state=x",
        "/v2/lib/img/blobs/upload/u1",
        "/artifacts/uploads/u%2F1?ns=mine&state=a+b",
        "u1",
    ],
)
@pytest.mark.parametrize(
    ("start", "at"),
    [(UPLOADS, 1), (f"/v2/{NAME}/lib/img/blobs/uploads/", 0), (f"{UPLOADS}?ns={NAME}", 0)],
)
async def test_a_blob_is_pushed_in_parts_wherever_the_registry_sends_its_client(
    site: Site, location: str, start: str, at: int
) -> None:
    site.registry.location = location
    status, answer, _ = await site.ask("POST", start, at=at)
    assert status == 202
    assert answer.headers["Docker-Upload-UUID"] == "u1"
    back = answer.headers["Location"]
    assert back.startswith("/v2/"), "to the mirror"
    status, answer, _ = await site.ask(
        "PATCH", back, at=at, data=BLOB, headers={"Content-Range": f"0-{len(BLOB) - 1}"}
    )
    assert (status, answer.headers["Range"]) == (202, f"0-{len(BLOB) - 1}")
    digest = digest_of(BLOB)
    back = answer.headers["Location"]
    join = "&" if "?" in back else "?"
    status, answer, _ = await site.ask("PUT", f"{back}{join}digest={digest}", at=at, data=BLOB)
    assert (status, answer.headers["OCI-Subject"]) == (201, "sha256:0")
    status, _, body = await site.ask("GET", answer.headers["Location"], at=at)
    assert (status, body) == (200, BLOB)
    assert [body for _, _, body in site.registry.received] == [b"", BLOB, BLOB]
    expected = location.removeprefix("http://{host}").removeprefix(f"https://{NAME}")
    expected = UPLOADS + "u1" if expected == "u1" else expected
    assert site.registry.received[1][:2] == ("PATCH", expected)
    assert site.registry.received[2][:2] == ("PUT", f"{expected}{join}digest={digest}")
    assert site.registry.seen[1].headers["Content-Range"] == f"0-{len(BLOB) - 1}"
    assert site.registry.seen[1].headers["Content-Length"] == str(len(BLOB))


async def test_a_location_at_a_storage_elsewhere_stays(site: Site) -> None:
    site.registry.location = "https://storage.example/put?sig=1"
    _, answer, _ = await site.ask("POST", UPLOADS, at=1)
    assert answer.headers["Location"] == "https://storage.example/put?sig=1"


async def test_only_what_the_registry_named_is_taken_back(site: Site) -> None:
    site.registry.location = "/artifacts/u1"
    _, answer, _ = await site.ask("POST", UPLOADS, at=1)
    back = answer.headers["Location"]
    seen = len(site.registry.seen)
    for forged in (back.replace("/artifacts/u1", "/admin"), f"/v2/_at/0/{NAME}/artifacts/u1"):
        assert (await site.ask("PATCH", forged, at=1, data=b"x"))[0] == 405
        assert (await site.ask("GET", forged, at=1))[0] == 404
    assert len(site.registry.seen) == seen


async def test_what_is_said_of_a_mount_passes(site: Site) -> None:
    query = f"mount={digest_of(BLOB)}&from=other%2Fimg"
    await site.ask("POST", f"{UPLOADS}?{query}&ns={NAME}", headers={"Authorization": "Basic eA=="})
    assert site.registry.received == [("POST", f"{UPLOADS}?{query}", b"")]
    assert site.registry.seen[0].headers["Authorization"] == "Basic eA=="
    assert site.registry.seen[0].headers["Content-Length"] == "0"


async def test_a_body_without_a_length_passes_in_chunks(site: Site) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for at in range(0, len(BLOB), 64 * KIB):
            yield BLOB[at : at + 64 * KIB]

    assert (await site.ask("PATCH", f"{UPLOADS}u1", at=1, data=parts()))[0] == 202
    assert site.registry.received[0][2] == BLOB
    assert site.registry.seen[0].headers["Transfer-Encoding"] == "chunked"


async def test_a_long_list_goes_on_through_the_mirror(site: Site) -> None:
    async def page(request: web.Request) -> web.Response:
        del request
        link = '</v2/lib/img/tags/list?n=1&last=a>; rel="next"'
        return web.json_response({"tags": ["a"]}, headers={"Link": link})

    site.registry.answers["GET"] = page
    _, answer, _ = await site.ask("GET", f"/v2/{NAME}/lib/img/tags/list?n=1")
    assert answer.headers["Link"] == f'</v2/{NAME}/lib/img/tags/list?n=1&last=a>; rel="next"'


# ---------------------------------------------------------------- what is remembered


async def test_a_manifest_that_was_deleted_is_given_out_no_longer(site: Site) -> None:
    digest = site.registry.push("lib/img", "v1", b"layer")
    path = f"/v2/lib/img/manifests/{digest}"
    assert (await site.ask("GET", path, at=1))[0] == 200
    assert (await site.ask("DELETE", path, at=1))[0] == 202
    assert (await site.ask("GET", path, at=1))[0] == 404
    await site.registry.close()
    assert (await site.ask("GET", path, at=1))[0] == 503, "nor while the registry is away"


async def test_a_blob_that_was_deleted_is_asked_for_again(site: Site) -> None:
    site.registry.push("lib/img", "v1", b"layer")
    path = f"/v2/lib/img/blobs/{digest_of(b'layer')}"
    assert (await site.ask("GET", "/v2/lib/img/manifests/v1", at=1))[0] == 200
    assert (await site.ask("GET", path, at=1))[0] == 200
    assert (await site.ask("DELETE", path, at=1))[0] == 202
    assert (await site.ask("GET", path, at=1))[0] == 404


async def test_a_false_blob_that_is_pushed_anew_is_served_at_once(site: Site) -> None:
    site.registry.push("lib/img", "v1", BLOB)
    path, site.registry.corrupt = f"/v2/lib/img/blobs/{digest_of(BLOB)}", True
    with pytest.raises(aiohttp.ClientError):
        await site.ask("GET", path, at=1)
    assert (await site.ask("GET", path, at=1))[0] == 503
    site.registry.corrupt = False
    put = await site.ask("PUT", f"{UPLOADS}u1?digest={digest_of(BLOB)}", at=1, data=BLOB)
    assert put[0] == 201
    assert (await site.ask("GET", path, at=1))[0] == 200


# ---------------------------------------------------------------- what goes wrong


async def test_what_nobody_writes_to_is_405(site: Site) -> None:
    for method, path in (
        ("POST", "/v2/lib/img/manifests/v1"),
        ("PUT", "/v2/lib/img/tags/list"),
        ("DELETE", "/v2/"),
        ("PUT", f"/v2/lib/img/blobs/{digest_of(BLOB)}"),
        ("PATCH", "/v2/lib/img/blobs/uploads/.."),
        ("OPTIONS", UPLOADS),
    ):
        assert (await site.ask(method, path, at=1))[0] == 405, (method, path)
    assert (await site.ask("POST", UPLOADS))[0] == 403, "no registry is named"
    assert not site.registry.seen


async def test_a_registry_that_is_away_is_503_and_asked_once(site: Site) -> None:
    async def cut(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    site.registry.answers |= {"PUT": cut, "DELETE": cut}
    # An open connection that dies is what libraries like to repeat a request for.
    await site.ask("POST", UPLOADS, at=1)
    for method, path in (("PUT", f"{UPLOADS}u1?digest=x"), ("DELETE", "/v2/lib/img/manifests/v1")):
        before = len(site.registry.seen)
        assert (await site.ask(method, path, at=1))[0] == 503
        assert len(site.registry.seen) == before + 1
    await site.registry.close()
    status, _, body = await site.ask("PATCH", f"{UPLOADS}u1", at=1, data=BLOB)
    assert status == 503
    assert json.loads(body)["errors"][0]["code"] == "UNAVAILABLE"


async def test_a_registry_that_reads_slowly_makes_the_client_wait(site: Site) -> None:
    go_on, sent = asyncio.Event(), 0

    async def slow(request: web.Request) -> web.Response:
        await go_on.wait()
        return web.Response(text=hashlib.sha256(await request.read()).hexdigest())

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1024):
            sent += 64 * KIB
            yield bytes(64 * KIB)

    site.registry.answers["PATCH"] = slow
    running = asyncio.create_task(site.ask("PATCH", f"{UPLOADS}u1", at=1, data=endless()))
    last = -1
    while sent != last or not sent:
        # Nothing moves any longer when all buffers on the way are full.
        last = sent
        await asyncio.sleep(0.2)
    assert sent < 32 * MIB, "what is on its way is bounded"
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    go_on.set()


async def test_a_client_that_stands_still_is_told_so(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "IDLE_S", 0.2)
    reader, writer = await _connect(site)
    writer.write(_head(f"PATCH {UPLOADS}u1", "Content-Length: 10") + b"abc")
    assert b" 408 " in await reader.readline()
    writer.close()


async def test_a_registry_that_answers_nothing_is_given_up(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "COMMIT_TIMEOUT_S", 0.2)

    async def silent(request: web.Request) -> web.Response:
        await request.read()
        await asyncio.sleep(5)
        return web.Response()

    site.registry.answers["PUT"] = silent
    assert (await site.ask("PUT", f"{UPLOADS}u1?digest=x", at=1, data=b"x"))[0] == 503


async def test_so_many_writes_at_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writes, "AT_ONCE_MAX", 1)
    began, go_on = asyncio.Event(), asyncio.Event()

    async def slow(request: web.Request) -> web.Response:
        began.set()
        await go_on.wait()
        return web.Response(status=201)

    site.registry.answers["PUT"] = slow
    running = asyncio.create_task(site.ask("PUT", f"{UPLOADS}u1", at=1))
    await began.wait()
    assert (await site.ask("PUT", f"{UPLOADS}u1", at=1))[0] == 503
    go_on.set()
    assert (await running)[0] == 201
    assert (await site.ask("PUT", f"{UPLOADS}u1", at=1))[0] == 201


# ---------------------------------------------------------------- 100 Continue


async def test_a_client_sends_its_body_when_the_registry_wants_it(site: Site) -> None:
    reader, writer = await _connect(site)
    writer.write(_head(f"PATCH {UPLOADS}u1", "Content-Length: 3", "Expect: 100-continue"))
    assert await reader.readline() == b"HTTP/1.1 100 Continue\r\n"
    assert site.registry.seen, "the registry was asked first"
    assert await reader.readline() == b"\r\n"
    writer.write(b"abc")
    assert b" 202 " in await reader.readline()
    assert site.registry.received[0][2] == b"abc"
    writer.close()


async def test_a_client_that_is_refused_never_sends_its_body(site: Site) -> None:
    async def stranger(expecting: web.Request) -> None:
        assert expecting.headers["Expect"] == "100-continue"
        raise web.HTTPUnauthorized(headers={"WWW-Authenticate": "Basic"})

    # What the registry answers before it has said to go on.
    site.registry.expect = stranger
    reader, writer = await _connect(site)
    writer.write(_head(f"PATCH {UPLOADS}u1", "Content-Length: 3", "Expect: 100-continue"))
    assert b" 401 " in await reader.readline()
    headers = (await reader.readuntil(b"\r\n\r\n")).lower()
    assert b"www-authenticate: basic" in headers
    assert b"connection: close" in headers
    writer.close()


async def _connect(site: Site) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    where = site.mirror.addresses[1]
    return await asyncio.open_connection(where.host, where.port)


def _head(line: str, *headers: str) -> bytes:
    return "\r\n".join((f"{line} HTTP/1.1", "Host: mirror", *headers, "", "")).encode()
