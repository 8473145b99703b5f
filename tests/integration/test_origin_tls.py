"""HTTPS origins: who is trusted, who is not, and that TLS errors say so without secrets."""

import asyncio
import ssl
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from peer.shell.errors import OriginError
from peer.shell.origin.internal import InternalHosts
from peer.shell.origin.request import OriginRequest
from shoal.wire.errors import Reason
from tests.integration.origin_rig import http_origin, read_range
from tests.integration.origin_server import OriginServer, Resource

CONTENT = bytes(range(256)) * 4000
HOSTS = InternalHosts(["127.0.0.1"])


@dataclass(frozen=True)
class Authority:
    """A CA made for these tests."""

    ca_file: Path
    good: ssl.SSLContext
    """For 127.0.0.1 and localhost."""
    other_name: ssl.SSLContext
    """For a host that this is not."""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    ca = trustme.CA()
    ca_file = tmp_path_factory.mktemp("tls") / "ca.pem"
    ca.cert_pem.write_to_path(ca_file)

    def server_context(*names: str) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        ca.issue_cert(*names).configure_cert(context)
        return context

    return Authority(
        ca_file, server_context("127.0.0.1", "localhost"), server_context("example.org")
    )


@pytest.mark.parametrize("by", ["request", "options", "skip"])
async def test_trusted_origin(authority: Authority, by: str) -> None:
    async with (
        OriginServer(tls=authority.good) as server,
        http_origin(ca_file=authority.ca_file if by == "options" else None) as origin,
    ):
        server.put("/f", Resource(content=CONTENT))
        request = OriginRequest(
            server.url("/f"),
            ca_file=authority.ca_file if by == "request" else None,
            insecure_skip_verify=by == "skip",
        )
        stat = await origin.stat(request)
        assert stat.size_bytes == len(CONTENT)
        read = await read_range(origin, request, start_byte=1, size_bytes=stat.size_bytes)
        assert read == CONTENT[1:]
        assert server.connections == 1


async def test_unknown_authority(authority: Authority) -> None:
    async with OriginServer(tls=authority.good) as server, http_origin() as origin:
        with pytest.raises(OriginError) as caught:
            await origin.stat(OriginRequest(server.url("/secret?sig=s3cr3t")))
        assert server.total_requests == 0
    assert caught.value.reason is Reason.ORIGIN_INVALID
    assert "the certificate of 127.0.0.1" in caught.value.detail
    assert "secret" not in caught.value.detail


async def test_certificate_of_another_host(authority: Authority) -> None:
    async with OriginServer(tls=authority.other_name) as server, http_origin() as origin:
        request = OriginRequest(server.url("/f"), ca_file=authority.ca_file)
        with pytest.raises(OriginError) as caught:
            await origin.stat(request)
    assert caught.value.reason is Reason.ORIGIN_INVALID
    assert "certificate" in caught.value.detail


async def test_https_to_a_port_that_speaks_http() -> None:
    async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    async with (
        await asyncio.start_server(refuse, "127.0.0.1", 0) as server,
        http_origin() as origin,
    ):
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(OriginError) as caught:
            await origin.stat(OriginRequest(f"https://127.0.0.1:{port}/f"))
    assert caught.value.reason is Reason.ORIGIN_FAILED
    assert "TLS with 127.0.0.1" in caught.value.detail


@pytest.mark.parametrize("content", [None, "not a certificate"])
async def test_ca_file_that_cannot_be_read(tmp_path: Path, content: str | None) -> None:
    ca_file = tmp_path / "ca.pem"
    if content is not None:
        ca_file.write_text(content)
    async with http_origin() as origin:
        with pytest.raises(OriginError) as caught:
            await origin.stat(OriginRequest("https://127.0.0.1:1/", ca_file=ca_file))
    assert caught.value.reason is Reason.ORIGIN_INVALID
    assert str(ca_file) in caught.value.detail


@pytest.mark.parametrize("allowed", [False, True])
async def test_redirect_to_plain_http(authority: Authority, allowed: bool) -> None:
    async with (
        OriginServer(tls=authority.good) as secure,
        OriginServer() as plain,
        http_origin(
            ca_file=authority.ca_file, allow_downgrade=allowed, internal_hosts=HOSTS
        ) as origin,
    ):
        plain.put("/f", Resource(content=CONTENT))
        secure.put("/f", Resource(redirect=plain.url("/f")))
        request = OriginRequest(secure.url("/f"), (("Authorization", "mine"),))
        if allowed:
            assert (await origin.stat(request)).size_bytes == len(CONTENT)
            assert "authorization" not in plain.requests["/f"][0].headers
        else:
            with pytest.raises(OriginError) as caught:
                await origin.stat(request)
            assert caught.value.reason is Reason.ORIGIN_INVALID
            assert "plain http" in caught.value.detail
            assert plain.total_requests == 0


async def test_redirect_from_http_to_https_is_fine(authority: Authority) -> None:
    async with (
        OriginServer(tls=authority.good) as secure,
        OriginServer() as plain,
        http_origin(ca_file=authority.ca_file, internal_hosts=HOSTS) as origin,
    ):
        secure.put("/f", Resource(content=CONTENT))
        plain.put("/f", Resource(redirect=secure.url("/f")))
        request = OriginRequest(plain.url("/f"), (("X-Token", "mine"),))
        assert (await origin.stat(request)).size_bytes == len(CONTENT)
        assert "x-token" not in secure.requests["/f"][0].headers
