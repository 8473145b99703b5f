"""Mutual TLS: who gets in, who does not, and errors that name the file."""

import asyncio
import contextlib
import ssl
from pathlib import Path

import pytest

from shoal.runtime.config_values import SecretFile
from shoal.runtime.grpc_tls import grpc_channel_credentials, grpc_server_credentials
from shoal.runtime.sections import TlsSection
from shoal.runtime.tls import (
    client_context,
    common_name,
    own_name,
    server_context,
)
from shoal.wire.errors import UsageError

CERTIFICATES = Path(__file__).parent / "certificates"


def section(host: str, ca: str = "trusted") -> TlsSection:
    return TlsSection(
        certificate=CERTIFICATES / f"{host}.pem",
        key=SecretFile(CERTIFICATES / f"{host}.key"),
        ca=CERTIFICATES / f"{ca}-ca.pem",
    )


async def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[str, str]:
    """Connects and returns (name of the client as the server sees it, and the other way)."""
    seen: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.set_result(common_name(writer.get_extra_info("ssl_object")))
        writer.write(b"!")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    listener = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=server)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=client, server_hostname="127.0.0.1"
        )
        try:
            # With TLS 1.3 a refused client learns it when it reads.
            await reader.readexactly(1)
            return await seen, common_name(writer.get_extra_info("ssl_object"))
        finally:
            writer.close()
            # The refusal was seen above; closing may tell it once more.
            with contextlib.suppress(OSError, ssl.SSLError):
                await writer.wait_closed()


async def test_both_sides_know_each_other_by_name() -> None:
    server, client = server_context(section("alpha")), client_context(section("beta"))
    assert await handshake(server, client) == ("beta", "alpha")


async def test_a_certificate_without_a_name_has_none() -> None:
    server, client = server_context(section("alpha")), client_context(section("nameless"))
    assert await handshake(server, client) == ("", "alpha")


async def test_a_host_of_another_ca_gets_nowhere() -> None:
    """Even with the right name: it is the signature that counts."""
    stranger = section("mallory", ca="trusted")
    with pytest.raises((ssl.SSLError, OSError, asyncio.IncompleteReadError)):
        await handshake(server_context(section("alpha")), client_context(stranger))
    with pytest.raises(ssl.SSLCertVerificationError):
        await handshake(server_context(stranger), client_context(section("beta")))


async def test_a_client_without_a_certificate_gets_nowhere() -> None:
    bare = ssl.create_default_context(cafile=str(CERTIFICATES / "trusted-ca.pem"))
    with pytest.raises((ssl.SSLError, OSError, asyncio.IncompleteReadError)):
        await handshake(server_context(section("alpha")), bare)


async def test_names_are_checked_where_asked() -> None:
    server = server_context(section("alpha"))
    client = client_context(section("beta"), check_name=True)
    assert (await handshake(server, client))[1] == "alpha"


def test_a_host_knows_its_own_name() -> None:
    assert own_name(section("alpha")) == "alpha"
    # Whoever signed it: that is for the others to judge.
    assert own_name(section("mallory", "trusted")) == "alpha"
    with pytest.raises(UsageError, match=r"nameless.pem: has no common name"):
        own_name(section("nameless"))


def test_errors_name_the_file(tmp_path: Path) -> None:
    good = section("alpha")
    missing = TlsSection(certificate=tmp_path / "none.pem", key=good.key, ca=good.ca)
    with pytest.raises(UsageError, match=r"tls.certificate .*none.pem: No such file"):
        server_context(missing)
    other_key = SecretFile(CERTIFICATES / "beta.key")
    mixed = TlsSection(certificate=good.certificate, key=other_key, ca=good.ca)
    with pytest.raises(UsageError, match=r"beta.key: not a PEM certificate and its own"):
        client_context(mixed)
    empty = tmp_path / "ca.pem"
    empty.write_text("nothing\n")
    with pytest.raises(UsageError, match=r"tls.ca .*holds no PEM certificate"):
        grpc_server_credentials(TlsSection(certificate=good.certificate, key=good.key, ca=empty))
    with pytest.raises(UsageError, match=r"needs tls.certificate"):
        grpc_channel_credentials(TlsSection())
