"""Parts of the forward proxy alone: certificates, resolving, tunnels, configuration, command."""

import asyncio
import datetime
import ssl
from pathlib import Path
from socket import AF_INET, AddressFamily

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from cryptography import x509

from peer.cli import proxy as command
from peer.shell.config import PeerConfig
from peer.shell.origin.places import PlaceRules, parse_network
from peer.shell.origin.resolving import CheckedResolver, PlaceRefusedError
from peer.shell.proxy.certificates import Authority, make_ca
from peer.shell.proxy.contexts import CONTEXTS_MAX, RENEW_BEFORE, Contexts, load_authority
from peer.shell.proxy.tunnels import Idle, TunnelEnd, dial
from shoal.runtime import config as configuration
from shoal.runtime.config_values import SecretFile
from shoal.wire.errors import UsageError

NOW = datetime.datetime.now(datetime.UTC)
CA = make_ca("test", [], NOW)

# ---------------------------------------------------------------- certificates


def handshake(ca: bytes, context: ssl.SSLContext, host: str) -> None:
    """Both sides in memory. Raises SSLError when the client does not believe."""
    trusting = ssl.create_default_context(cadata=ca.decode())
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(to_client, to_server, server_hostname=host)
    server = context.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(3):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert client.version() is not None


@pytest.mark.parametrize("host", ["reg.example", "10.0.0.1", "::1", "a." * 40 + "example"])
async def test_a_minted_certificate_is_believed_for_its_host_alone(host: str) -> None:
    contexts = Contexts(Authority(CA.certificate, CA.key))
    context = await contexts.of(host)
    handshake(CA.certificate, context, host)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(CA.certificate, context, "other.example")
    other = make_ca("other", [], NOW)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(other.certificate, context, host)


async def test_a_ca_for_some_hosts_speaks_for_no_other() -> None:
    made = make_ca("narrow", ["reg.example", "10.0.0.1"], NOW)
    contexts = Contexts(Authority(made.certificate, made.key))
    for host in ("reg.example", "a.reg.example", "10.0.0.1"):
        handshake(made.certificate, await contexts.of(host), host)
    names = make_ca("names", ["reg.example"], NOW)
    addresses = make_ca("addresses", ["10.0.0.1"], NOW)
    for ca in (made, names, addresses):
        contexts = Contexts(Authority(ca.certificate, ca.key))
        for host in ("other.example", "10.0.0.2", "::1"):
            context = await contexts.of(host)
            with pytest.raises(ssl.SSLCertVerificationError, match="subtree"):
                handshake(ca.certificate, context, host)


async def test_certificates_are_kept_and_renewed_and_bounded() -> None:
    clock = [NOW]
    contexts = Contexts(Authority(CA.certificate, CA.key), lambda: clock[0])
    first = await contexts.of("a.example")
    again = await asyncio.gather(*(contexts.of("b.example") for _ in range(5)))
    assert contexts.minted == 2
    assert all(each is again[0] for each in again)
    assert await contexts.of("a.example") is first
    clock[0] += datetime.timedelta(hours=24) - RENEW_BEFORE
    assert await contexts.of("a.example") is not first
    for number in range(CONTEXTS_MAX + 1):
        await contexts.of(f"{number}.example")
    minted = contexts.minted
    await contexts.of("0.example")
    assert contexts.minted == minted + 1, "the oldest was forgotten"
    clock[0] += datetime.timedelta(days=6 * 365)
    with pytest.raises(UsageError, match="make a new one"):
        await contexts.of("a.example")


def test_a_minted_certificate_does_not_outlive_its_ca() -> None:
    authority = Authority(CA.certificate, CA.key)
    ca = x509.load_pem_x509_certificate(CA.certificate)
    late = ca.not_valid_after_utc - datetime.timedelta(minutes=1)
    minted = authority.mint("a.example", late)
    found = x509.load_pem_x509_certificate(minted.certificate)
    assert found.not_valid_after_utc == ca.not_valid_after_utc
    assert found.not_valid_before_utc < late
    assert "PRIVATE" not in repr(minted)


def test_files_that_are_no_ca_are_told(tmp_path: Path) -> None:
    other = make_ca("other", [], NOW)
    leaf = Authority(CA.certificate, CA.key).mint("a.example", NOW)
    for certificate, key, what in (
        (b"x", CA.key, "no certificate"),
        (CA.certificate, b"x", "no private key"),
        (CA.certificate, other.key, "not the key"),
        (leaf.certificate, leaf.key, "is no CA"),
    ):
        with pytest.raises(UsageError, match=what):
            Authority(certificate, key)
    (tmp_path / "ca.pem").write_bytes(CA.certificate)
    path = tmp_path / "key.pem"
    with pytest.raises(UsageError, match=r"key\.pem: No such file"):
        load_authority(tmp_path / "ca.pem", SecretFile(path))
    path.write_bytes(CA.key)
    path.chmod(0o640)
    with pytest.raises(UsageError, match="chmod 600"):
        load_authority(tmp_path / "ca.pem", SecretFile(path))
    path.chmod(0o600)
    load_authority(tmp_path / "ca.pem", SecretFile(path))


def test_the_command_makes_a_ca_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "new" / "ca"
    asked = ["ca", "--out", str(directory), "--host", "reg.example", "--host", "[::1]"]
    assert command.run("proxy", asked) == 0
    shown = capsys.readouterr().out
    assert "PRIVATE" not in shown
    assert (directory / "ca-key.pem").stat().st_mode & 0o777 == 0o600
    load_authority(directory / "ca.pem", SecretFile(directory / "ca-key.pem"))
    kept = (directory / "ca-key.pem").read_bytes()
    assert command.run("proxy", asked) == 2
    assert "exists" in capsys.readouterr().err
    assert (directory / "ca-key.pem").read_bytes() == kept
    assert command.run("proxy", ["ca", "--out", str(tmp_path), "--host", "*.example"]) == 2
    assert "--host *.example" in capsys.readouterr().err


# ---------------------------------------------------------------- resolving


class Rebinding(AbstractResolver):
    """A name that is elsewhere each time it is asked for."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)

    async def resolve(
        self, host: str, port: int = 0, family: AddressFamily = AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=each, port=port, family=family, proto=0, flags=0)
            for each in self.answers.pop(0).split()
        ]

    async def close(self) -> None:
        """Nothing to end."""


async def test_names_lead_only_to_what_was_judged() -> None:
    """The connection goes to an address of the one answer that was judged."""
    accepted: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accepted.put(writer)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    rules = PlaceRules((parse_network("127.0.0.1/32"),))
    resolver = CheckedResolver(rules, Rebinding("10.0.0.1 127.0.0.1", "10.0.0.1"))
    end = await dial(resolver, "name.example", port, lambda: TunnelEnd(lambda _: None))
    (await accepted.get()).close()
    end.abort()
    await end.ended.wait()
    with pytest.raises(PlaceRefusedError):
        await dial(resolver, "name.example", port, lambda: TunnelEnd(lambda _: None))
    server.close()
    await server.wait_closed()


# ---------------------------------------------------------------- tunnels


class FakeTransport(asyncio.Transport):
    """Notes what is done to it."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[str] = []

    def pause_reading(self) -> None:
        self.done.append("pause")

    def resume_reading(self) -> None:
        self.done.append("resume")

    def write(self, data: object) -> None:
        self.done.append(f"write {data!r}")

    def write_eof(self) -> None:
        self.done.append("eof")

    def is_closing(self) -> bool:
        return "close" in self.done

    def close(self) -> None:
        self.done.append("close")


async def test_a_tunnel_reads_no_more_than_the_other_side_takes() -> None:
    moved: list[int] = []
    ends = [TunnelEnd(moved.append) for _ in range(2)]
    transports = [FakeTransport() for _ in range(2)]
    for end, transport in zip(ends, transports, strict=True):
        end.connection_made(transport)
    assert [transport.done for transport in transports] == [["pause"]] * 2
    ends[0].tie(ends[1])
    ends[0].data_received(b"abc")
    ends[1].pause_writing()
    assert transports[0].done == ["pause", "resume", "pause"]
    ends[1].resume_writing()
    assert transports[0].done[-1] == "resume"
    assert ends[0].eof_received(), "it may still be sent to"
    assert transports[1].done == ["pause", "resume", "write b'abc'", "eof"]
    assert not ends[1].eof_received(), "both have ended"
    ends[0].connection_lost(None)
    assert transports[1].done[-1] == "close"
    assert moved == [3]


async def test_a_tunnel_without_a_byte_ends() -> None:
    never = asyncio.Event()
    idle = Idle(0.02)
    assert not await idle.wait_for(never)
    never.set()
    assert await idle.wait_for(never)


# ---------------------------------------------------------------- configuration


def load(**settings: str) -> PeerConfig:
    flags = {f"proxy.{name}": value for name, value in settings.items()}
    return configuration.load(PeerConfig, None, {}, flags)


def test_a_proxy_is_for_this_host_unless_told_otherwise() -> None:
    assert not load().proxy.enabled
    assert load(listen="127.0.0.1:4005,[::1]:4005", allow="*").proxy.enabled
    with pytest.raises(UsageError, match="allow_remote"):
        load(listen="0.0.0.0:4005")
    assert load(listen="0.0.0.0:4005", allow_remote="true", allow="a.example").proxy.enabled
    with pytest.raises(UsageError, match="open relay"):
        load(listen="0.0.0.0:4005", allow_remote="true", allow="*:80")


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"allow": "http://a"}, "is no host"),
        ({"intercept": "a.example"}, "ca_cert, ca_key not set"),
        ({"networks": "10.0.0.1/8"}, "is no network"),
        ({"rules": "swarm ("}, "regular expression"),
        ({"ca_cert": "/a", "ca_key": "/b"}, "intercept not set"),
    ],
)
def test_a_configuration_that_could_not_work_is_told(settings: dict[str, str], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        load(**settings)
