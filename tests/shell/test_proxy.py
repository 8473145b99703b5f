"""The forward proxy over a whole peer: who is served, by whom, and what passes through."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import uvloop

from peer.shell.api_types import DownloadRequest
from peer.shell.mirror.pulls import Collection
from peer.shell.proxy.policy import Policy
from peer.shell.proxy.server import ForwardProxy
from shoal.wire.errors import UsageError
from tests.shell.proxy_rig import (
    BLOB,
    DIGEST,
    LAYER,
    MANIFEST,
    MODEL,
    NAME,
    ProxySite,
    options_of,
    proxy_site,
    write_ca,
)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[ProxySite]:
    async with proxy_site(tmp_path, networks=("127.0.0.0/8", "::1/128")) as made:
        yield made


@pytest.fixture
async def strict(tmp_path: Path) -> AsyncIterator[ProxySite]:
    """No private network is listed, only addresses."""
    async with proxy_site(tmp_path, allow=("localhost", "*")) as made:
        yield made


# ---------------------------------------------------------------- registries


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_an_image_comes_by_the_mirrors_rules(site: ProxySite, scheme: str) -> None:
    base = f"{scheme}://{NAME}"
    manifest = json.loads((await site.ask(base + MANIFEST)).body)
    assert manifest["layers"][0]["digest"] == DIGEST
    for _ in range(2):
        answer = await site.ask(base + BLOB)
        assert (answer.status, answer.body) == (200, LAYER)
        assert answer.headers["Docker-Content-Digest"] == DIGEST
    assert site.registry.blob_bytes[DIGEST] <= len(LAYER) + 1, "read once"
    ranged = await site.ask(base + BLOB, headers={"Range": "bytes=10-19"})
    assert (ranged.status, ranged.body) == (206, LAYER[10:20])
    assert site.count("registry_requests") == 4
    assert site.count("intercepted") == (1 if scheme == "https" else 0)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_private_blob_is_refused_without_its_credential_though_it_is_here(
    site: ProxySite, scheme: str
) -> None:
    site.registry.user = "alice:secret"
    url = f"{scheme}://{NAME}{BLOB}"
    right = {"Authorization": site.registry.authorization}
    assert (await site.ask(url, headers=right)).body == LAYER
    for headers in ({}, {"Authorization": "Basic d3Jvbmc6d3Jvbmc="}, {"Authorization": "Bearer x"}):
        for method in ("GET", "HEAD"):
            answer = await site.ask(url, method, headers=headers)
            assert answer.status == 401
            assert answer.headers["WWW-Authenticate"] == 'Basic realm="fake"'
            assert LAYER[:100] not in answer.body
    assert (await site.ask(f"{scheme}://{NAME}/v2/")).status == 401, "the registry's own word"


async def test_neither_path_nor_query_leads_to_another_registry(site: ProxySite) -> None:
    """A repository may be called like a registry."""
    site.registry.push(f"{NAME}/img", "v1", b"x")
    answer = await site.ask(f"http://{NAME}/v2/{NAME}/img/manifests/v1?ns=other.example")
    assert answer.status == 200
    assert site.registry.seen[-1].path == f"/v2/{NAME}/img/manifests/v1"


async def test_one_port_is_a_mirror_too(site: ProxySite) -> None:
    base = f"http://{site.address}"
    for headers in ({"X-Dragonfly-Registry": f"https://{NAME}"}, {}):
        url = base + BLOB + ("" if headers else f"?ns={NAME}")
        async with site.client.get(url, headers=headers) as answer:
            assert await answer.read() == LAYER
    async with site.client.get(base + BLOB, headers={"X-Dragonfly-Registry": "x.test"}) as answer:
        assert answer.status == 403
    async with site.client.get(base + "/") as answer:
        assert answer.status == 400
        assert "HTTP_PROXY" in await answer.text()


async def test_writes_to_a_registry_pass_through(tmp_path: Path) -> None:
    async with proxy_site(tmp_path) as site:
        for base in (site.registry.url, f"http://{NAME}", f"https://{NAME}"):
            answer = await site.ask(f"{base}/v2/lib/img/blobs/uploads", "POST", data=b"x")
            assert answer.status == 404
        assert site.registry.requests["POST blobs"] == 3
        assert site.count("passed") == 3


# ---------------------------------------------------------------- through the swarm


def model_url(site: ProxySite, scheme: str) -> str:
    if scheme == "http":
        return f"{site.plain.url}/models/a"
    return f"https://localhost:{site.secure.port}/models/a"


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_what_a_rule_names_is_read_once(site: ProxySite, scheme: str) -> None:
    origin = site.plain if scheme == "http" else site.secure
    url = model_url(site, scheme)
    answers = await asyncio.gather(*(site.ask(f"{url}?X-Amz-Signature={n}") for n in range(5)))
    assert [answer.body == MODEL for answer in answers] == [True] * 5
    assert (await site.ask(url)).body == MODEL
    assert origin.sent_bytes["/models/a"] <= len(MODEL) + 16, "read once, beside looks at its size"
    ranged = await site.ask(url, headers={"Range": "bytes=-7"})
    assert (ranged.status, ranged.body) == (206, MODEL[-7:])
    size = len(MODEL)
    assert ranged.headers["Content-Range"] == f"bytes {size - 7}-{size - 1}/{size}"
    assert (await site.ask(url, headers={"Range": f"bytes={size}-"})).status == 416
    assert site.count("swarm_reads") == 8


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_private_url_is_refused_without_its_credential_though_it_is_here(
    site: ProxySite, scheme: str
) -> None:
    origin = site.plain if scheme == "http" else site.secure
    origin.token = "secret"
    url = model_url(site, scheme)
    assert (await site.ask(url, headers={"Authorization": "Bearer secret"})).body == MODEL
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": "a=b"}):
        answer = await site.ask(url, headers=headers)
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"] == 'Bearer realm="https://token.test"'
        assert answer.body == b"who are you?", "what the origin itself says"
    assert (await site.ask(url, headers={"Authorization": "Bearer secret"})).body == MODEL


async def test_the_swarm_can_be_asked_for_and_conditions_are_the_origins(site: ProxySite) -> None:
    url = f"{site.plain.url}/other"
    etag = (await site.ask(url)).headers["ETag"]
    assert site.count("swarm_reads") == 0
    wanted = {"X-Dragonfly-Use-P2P": "true", "X-Dragonfly-Output-Path": "/tmp/never"}
    answer = await site.ask(url, headers=wanted)
    assert answer.body == b"other"
    assert answer.headers["X-Shoal-Task-Id"]
    assert site.count("swarm_reads") == 1
    assert (await site.ask(url, headers={**wanted, "If-None-Match": etag})).status == 304
    assert not any("Dragonfly" in name for request in site.plain.seen for name in request.headers)


async def test_without_a_daemon_that_is_ready_the_origin_answers(site: ProxySite) -> None:
    site.unready[0] = "draining"
    assert (await site.ask(model_url(site, "http"))).body == MODEL
    assert site.count("swarm_left") == 1


async def test_a_download_that_is_cut_is_read_on_or_broken_off(site: ProxySite) -> None:
    site.plain.cut = True
    reading = asyncio.create_task(site.ask(model_url(site, "http")))
    while not site.plain.sent_bytes["/models/a"] > 1000:  # noqa: ASYNC110 - the fake's counter
        await asyncio.sleep(0.01)
    site.plain.cut = False
    assert (await reading).body == MODEL


async def test_rules_lead_elsewhere(tmp_path: Path) -> None:
    async with proxy_site(tmp_path / "first") as other:
        rules = (
            r"direct /models/a\.json$",
            f"swarm tls redirect=127.0.0.1:{other.secure.port} ^http://hub.example/",
        )
        async with proxy_site(tmp_path / "second", rules=rules) as site:
            answer = await site.ask("http://hub.example/other")
            assert answer.status == 502, "the other's CA is not trusted here"
            assert "certificate" in answer.body.decode()
            site.plain.files["/models/a.json"] = b"{}"
            assert (await site.ask(f"{site.plain.url}/models/a.json")).body == b"{}"
            assert site.count("swarm_reads") == 0


# ---------------------------------------------------------------- passing through


async def test_the_rest_passes_unchanged(site: ProxySite) -> None:
    body = bytes(range(256)) * 4000
    answer = await site.ask(
        f"{site.plain.url}/echo?b=%2f&a=1",
        "PUT",
        data=body,
        headers={
            "X-Own": "1",
            "Proxy-Authorization": "Basic c2VjcmV0",
            "Proxy-Connection": "keep-alive",
            "Connection": "X-Named",
            "X-Named": "1",
            "Content-Encoding": "gzip",
        },
    )
    assert (answer.status, answer.body) == (207, body)
    assert answer.headers.getall("Set-Cookie") == ["a=1", "b=2"]
    assert answer.headers["Content-Encoding"] == "identity"
    assert "X-Hop" not in answer.headers
    seen = site.plain.seen[-1]
    assert seen.raw_path == "/echo?b=%2f&a=1"
    assert seen.headers["X-Own"] == "1"
    assert seen.headers["Host"] == f"127.0.0.1:{site.plain.port}"
    assert seen.headers["Content-Length"] == str(len(body))
    for gone in ("Proxy-Authorization", "Proxy-Connection", "X-Named"):
        assert gone not in seen.headers
    assert seen.headers["Via"].startswith("1.1 shoal-")


async def test_errors_and_heads_of_origins_are_their_own(site: ProxySite) -> None:
    answer = await site.ask(f"{site.plain.url}/nothing")
    assert (answer.status, answer.body) == (404, b"no such file")
    answer = await site.ask(f"{site.plain.url}/models/a", "HEAD")
    assert answer.headers["Content-Length"] == str(len(MODEL))
    site.plain.redirect = "http://elsewhere.example/"
    answer = await site.ask(f"{site.plain.url}/other")
    assert (answer.status, answer.headers["Location"]) == (302, "http://elsewhere.example/")
    site.plain.redirect, site.plain.cut = "", True
    with pytest.raises(aiohttp.ClientPayloadError):
        await site.ask(f"{site.plain.url}/other")
    await site.plain.close()
    answer = await site.ask(f"{site.plain.url}/other")
    assert answer.status == 502
    assert answer.headers["X-Shoal-Error"] == "proxy"


async def test_a_client_that_goes_ends_its_request(site: ProxySite) -> None:
    asking = asyncio.create_task(site.ask(f"{site.plain.url}/slow"))
    while not site.plain.seen:  # noqa: ASYNC110 - the fake's list
        await asyncio.sleep(0.01)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    transport = site.plain.seen[-1].protocol
    while transport.transport is not None:  # noqa: ASYNC110 - the end of a connection
        await asyncio.sleep(0.01)


async def test_a_request_that_comes_again_is_a_loop(site: ProxySite) -> None:
    """A rule that sends requests to the proxy itself."""
    await site.ask(f"{site.plain.url}/other")
    via = site.plain.seen[-1].headers["Via"]
    answer = await site.ask(f"{site.plain.url}/other", headers={"Via": f"1.0 other, {via}"})
    assert answer.status == 508


# ---------------------------------------------------------------- what is refused


async def test_private_addresses_are_refused_however_they_are_written(strict: ProxySite) -> None:
    port = strict.plain.port
    for url in (
        "http://127.0.0.1:1/",
        f"http://127.1:{port}/other",
        f"http://2130706433:{port}/other",
        f"http://0x7f000001:{port}/other",
        f"http://[::ffff:127.0.0.1]:{port}/other",
        "http://169.254.169.254/latest/meta-data",
        "http://localhost/other",
        f"http://user:password@127.0.0.1:{port}/other",
        f"ftp://127.0.0.1:{port}/other",
        "*",
    ):
        for wish in ("", "X-Dragonfly-Use-P2P: true\r\n"):
            head = f"GET {url} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{wish}\r\n"
            answer = await strict.send(head.encode())
            assert answer.split(b" ")[1] in (b"400", b"403"), answer
    assert not strict.plain.seen


async def test_a_name_that_leads_here_is_refused_everywhere(tmp_path: Path) -> None:
    async with proxy_site(tmp_path) as first:
        port = first.plain.port
        async with proxy_site(tmp_path / "second", allow=(f"localhost:{port}",)) as site:
            for headers in ({}, {"X-Dragonfly-Use-P2P": "true"}):
                asked = await site.ask(f"http://localhost:{port}/other", headers=headers)
                assert asked.status == 403
                assert b"proxy.networks" in asked.body
            answer = await site.send(f"CONNECT localhost:{port} HTTP/1.1\r\n\r\n".encode())
            assert answer.startswith(b"HTTP/1.1 403 ")
            assert b"proxy.networks" in answer
        assert not first.plain.seen


async def test_a_redirect_does_not_lead_the_swarm_to_what_is_not_allowed(strict: ProxySite) -> None:
    strict.plain.redirect = f"http://localhost:{strict.secure.port}/models/a"
    answer = await strict.ask(f"{strict.plain.url}/models/a")
    assert answer.status == 302, "left to the client, whose next request is judged again"
    assert not strict.secure.seen
    strict.plain.redirect = f"http://127.1:{strict.secure.port}/models/a"
    assert (await strict.ask(f"{strict.plain.url}/models/a?2")).status == 302
    assert not strict.secure.seen


async def test_what_is_no_proper_connect_is_told(site: ProxySite) -> None:
    for head in (
        b"CONNECT 127.0.0.1 HTTP/1.1\r\n\r\n",
        b"CONNECT http://127.0.0.1:1/ HTTP/1.1\r\n\r\n",
        b"CONNECT 127.0.0.1:99999 HTTP/1.1\r\n\r\n",
        b"CONNECT 127.0.0.1:1 HTTP/2.0\r\n\r\n",
        b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nbad line\r\n\r\n",
        b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nX: " + b"y" * 20_000,
    ):
        answer = await site.send(head)
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert b"shoal proxy: " in answer
    assert site.count("refused") == 6
    # A client that uses one connection for both, as none does.
    answer = await site.send(
        f"GET {site.plain.url}/other HTTP/1.1\r\nHost: x\r\n\r\n"
        "CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    )
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"HTTP/1.1 400 " in answer


async def test_tunnels_go_to_listed_places_alone(site: ProxySite) -> None:
    for place in ("other.example:443", "127.0.0.1:22", f"{NAME}:22", "169.254.169.254:80"):
        told = await site.send(f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n\r\n".encode())
        assert told.startswith(b"HTTP/1.1 403 Forbidden\r\n")
        assert b"proxy.allow" in told
    assert site.count("refused") == 4
    assert site.count("tunnels") == 0


# ---------------------------------------------------------------- tunnels


async def test_a_tunnel_is_between_client_and_origin_alone(site: ProxySite) -> None:
    answer = await site.ask(f"{site.secure.url}/models/a", trust=site.straight)
    assert answer.body == MODEL, "with the origin's own certificate"
    assert "Via" not in site.secure.seen[-1].headers
    assert (site.count("tunnels"), site.count("intercepted")) == (1, 0)
    assert site.count("tunnel_bytes") > len(MODEL)
    await site.secure.close()
    raw = await site.send(f"CONNECT 127.0.0.1:{site.secure.port} HTTP/1.1\r\n\r\n".encode())
    assert raw.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")


async def test_a_tunnel_hands_on_ends_and_what_came_early(tmp_path: Path) -> None:
    """Bytes right behind the request, and a client that sends no more but reads on."""

    async def answer_at_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"got " + await reader.read())
        writer.close()

    server = await asyncio.start_server(answer_at_the_end, "127.0.0.1", 0)
    place = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, proxy_site(tmp_path, allow=(place,)) as site:
        reader, writer = await asyncio.open_connection(site.address.host, site.address.port)
        writer.write(f"CONNECT {place} HTTP/1.1\r\n\r\nearly".encode())
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 200 Connection established\r\n\r\n"
        writer.write(b" and late")
        writer.write_eof()
        assert await reader.read() == b"got early and late"
        writer.close()


# ---------------------------------------------------------------- opened TLS


async def test_within_opened_tls_all_goes_as_outside(site: ProxySite) -> None:
    base = f"https://localhost:{site.secure.port}"
    answer = await site.ask(f"{base}/echo", "POST", data=b"hello")
    assert (answer.status, answer.body) == (207, b"hello")
    assert site.secure.seen[-1].headers["Host"] == f"localhost:{site.secure.port}"
    assert (await site.ask(f"{base}/nothing")).status == 404
    assert site.count("intercepted") == 1, "a connection that is kept"
    with pytest.raises(aiohttp.ClientConnectorCertificateError):
        await site.ask(f"{base}/other", trust=site.straight)
    while not site.count("intercept_failed"):  # noqa: ASYNC110 - the proxy's counter
        await asyncio.sleep(0.01)


async def test_a_host_within_tls_is_the_one_that_was_connected_to(site: ProxySite) -> None:
    url = f"https://localhost:{site.secure.port}/other"
    assert (await site.ask(url, headers={"Host": "inner.example"})).status == 400
    assert not site.secure.seen


async def test_opened_tls_is_no_weaker_behind_the_proxy(tmp_path: Path) -> None:
    async with proxy_site(tmp_path / "first") as other:
        networks = ("127.0.0.0/8", "::1/128")
        allow = (f"127.0.0.1:{other.secure.port}",)
        async with proxy_site(tmp_path / "second", networks=networks, allow=allow) as site:
            absolute = (
                f"GET {other.secure.url}/other HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            )
            answer = await site.send(absolute.encode())
            assert answer.startswith(b"HTTP/1.1 502 ")
            assert b"certificate" in answer, "an authority that this site does not trust"


async def test_closing_ends_everything(tmp_path: Path) -> None:
    async with proxy_site(tmp_path, networks=("127.0.0.0/8", "::1/128")) as site:
        tunnel, writer = await asyncio.open_connection(site.address.host, site.address.port)
        writer.write(f"CONNECT 127.0.0.1:{site.plain.port} HTTP/1.1\r\n\r\n".encode())
        await tunnel.readuntil(b"\r\n\r\n")
        await site.ask(f"https://localhost:{site.secure.port}/other")
        assert site.proxy.counters()["proxy_connections"] == 2
        await site.proxy.close()
        assert await tunnel.read() == b""
        writer.close()
        assert site.proxy.counters()["proxy_connections"] == 0
        await site.proxy.close()


def test_under_the_daemons_own_loop(tmp_path: Path) -> None:
    """Its transports have ways of their own: tunnels, opened TLS, and what is broken off."""

    async def scenario() -> None:
        async with proxy_site(tmp_path, networks=("127.0.0.0/8", "::1/128")) as site:
            assert (await site.ask(f"https://{NAME}{BLOB}")).body == LAYER
            assert (await site.ask(f"http://{NAME}{BLOB}")).body == LAYER
            opened = f"https://localhost:{site.secure.port}/models/a"
            plain = f"{site.secure.url}/models/a"
            for _ in range(2):
                assert (await site.ask(opened)).body == MODEL
                assert (await site.ask(plain, trust=site.straight)).body == MODEL
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await site.ask(opened, trust=site.straight)
            answer = await site.send(b"CONNECT 127.0.0.1:1 HTTP/1.1\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 403 ")
            place = f"127.0.0.1:{site.plain.port}"
            head = f"CONNECT {place} HTTP/1.1\r\n\r\nGET /other HTTP/1.1\r\nHost: x\r\n"
            answer = await site.send(f"{head}Connection: close\r\n\r\n".encode())
            assert answer.endswith(b"other")
            site.secure.cut = True
            with pytest.raises(aiohttp.ClientPayloadError):
                await site.ask(f"https://localhost:{site.secure.port}/other")

    uvloop.run(scenario())


@pytest.mark.parametrize("content", ["no certificate", None])
async def test_certificates_of_origins_that_cannot_be_read_are_an_error_at_start(
    tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "origin-ca.pem").write_text(content)
    write_ca(tmp_path)
    proxy = ForwardProxy(
        options_of(tmp_path, Policy(allow=[], intercept=[], networks=[], rules=[], upstreams=[])),
        start=refuse,
        mirror=None,
        unready=str,
    )
    with pytest.raises(UsageError, match=r"origin\.ca_file.*origin-ca\.pem"):
        await proxy.start()
    await proxy.close()


def refuse(request: DownloadRequest) -> Collection:
    raise UsageError("nothing is downloaded here")
