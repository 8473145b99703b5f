"""A whole peer with a proxy, a registry, a web server plain and with TLS, and clients."""

import asyncio
import datetime
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import trustme
from yarl import URL

from peer.shell.mirror.server import MirrorOptions, RegistryMirror
from peer.shell.mirror.upstreams import Upstream
from peer.shell.node import NodeOptions, PeerNode
from peer.shell.origin.http import HttpOptions
from peer.shell.origin.places import parse_network
from peer.shell.proxy.certificates import make_ca
from peer.shell.proxy.policy import Policy
from peer.shell.proxy.rules import parse_rule
from peer.shell.proxy.server import ForwardProxy, ProxyOptions
from peer.shell.proxy.targets import parse_pattern
from shoal.runtime.config_values import Endpoint, SecretFile
from shoal.wire.ids import HostId
from shoal.wire.limits import MIB, SECOND_NS
from tests.fakes.answers import digest_of
from tests.fakes.upstream_registry import FakeRegistry
from tests.fakes.web_origin import WebOrigin

NAME = "reg.example"
LAYER = Random(5).randbytes(MIB + 5)
DIGEST = digest_of(LAYER)
BLOB = f"/v2/lib/img/blobs/{DIGEST}"
MANIFEST = "/v2/lib/img/manifests/v1"
MODEL = Random(6).randbytes(3 * MIB + 11)


@dataclass
class Answer:
    """What a client was told."""

    status: int
    headers: Any
    body: bytes


@dataclass
class ProxySite:
    """Everything."""

    registry: FakeRegistry
    plain: WebOrigin
    secure: WebOrigin
    node: PeerNode
    mirror: RegistryMirror
    proxy: ForwardProxy
    trusting: ssl.SSLContext
    """Of clients that trust the proxy's CA and no other."""
    straight: ssl.SSLContext
    """Of clients that trust the web server's CA and no other."""
    client: aiohttp.ClientSession
    unready: list[str] = field(default_factory=lambda: [""])

    @property
    def address(self) -> Endpoint:
        """Where the proxy listens."""
        return self.proxy.addresses[0]

    async def ask(
        self,
        url: str,
        method: str = "GET",
        headers: dict[str, str] | None = None,
        *,
        data: Any = None,
        trust: ssl.SSLContext | None = None,
    ) -> Answer:
        """Through the proxy, plainly or with CONNECT, as the URL wants."""
        async with self.client.request(
            method,
            URL(url, encoded=True),
            headers=headers,
            data=data,
            proxy=f"http://{self.address}",
            ssl=trust or self.trusting,
            allow_redirects=False,
        ) as answer:
            return Answer(answer.status, answer.headers, await answer.read())

    async def send(self, request: bytes) -> bytes:
        """Raw bytes to the proxy, and all that comes back until the end of the connection."""
        reader, writer = await asyncio.open_connection(self.address.host, self.address.port)
        try:
            writer.write(request)
            return await reader.read()
        finally:
            writer.close()

    def count(self, name: str) -> int:
        """One of the proxy's counters."""
        return self.proxy.counters()[f"proxy_{name}_total"]


async def web_origins(stack: AsyncExitStack, root: Path) -> tuple[WebOrigin, WebOrigin]:
    """One plain and one with TLS, whose CA is written down."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(root / "origin-ca.pem"))
    plain, secure = WebOrigin(), WebOrigin(context=context)
    for origin in (plain, secure):
        origin.files["/models/a"] = MODEL
        origin.files["/other"] = b"other"
        await origin.start()
        stack.push_async_callback(origin.close)
    return plain, secure


def write_ca(root: Path) -> None:
    """The proxy's."""
    made = make_ca("test", [], datetime.datetime.now(datetime.UTC))
    (root / "ca.pem").write_bytes(made.certificate)
    (root / "ca-key.pem").touch(mode=0o600)
    (root / "ca-key.pem").write_bytes(made.key)


def options_of(root: Path, policy: Policy) -> ProxyOptions:
    """With the files of a site."""
    return ProxyOptions(
        listen=(Endpoint("127.0.0.1", 0),),
        policy=policy,
        ca_cert=root / "ca.pem",
        ca_key=SecretFile(root / "ca-key.pem"),
        ca_file=root / "origin-ca.pem",
    )


@asynccontextmanager
async def proxy_site(
    root: Path,
    *,
    rules: tuple[str, ...] = ("swarm /models/",),
    networks: tuple[str, ...] = (),
    allow: tuple[str, ...] = (),
) -> AsyncIterator[ProxySite]:
    """Everything, started."""
    async with AsyncExitStack() as stack:
        registry = FakeRegistry()
        await registry.start()
        stack.push_async_callback(registry.close)
        registry.push("lib/img", "v1", LAYER)
        root.mkdir(exist_ok=True)
        plain, secure = await web_origins(stack, root)
        write_ca(root)
        node = PeerNode(
            NodeOptions(
                host_id=HostId("h"),
                store_root=root / "store",
                http=HttpOptions(ca_file=root / "origin-ca.pem"),
            )
        )
        await node.start()
        stack.push_async_callback(node.close)
        upstreams = (Upstream(NAME, registry.url),)
        unready = [""]
        mirror = RegistryMirror(
            MirrorOptions(listen=(), upstreams=upstreams, verdict_ttl_ns=60 * SECOND_NS),
            start=node.downloads.start,
            unready=lambda: unready[0],
            clock=node.clock,
        )
        await mirror.start()
        stack.push_async_callback(mirror.close)
        hosts = (f"127.0.0.1:{plain.port}", f"127.0.0.1:{secure.port}", *allow)
        policy = Policy(
            allow=[parse_pattern(text) for text in hosts],
            intercept=[parse_pattern(text) for text in (NAME, f"localhost:{secure.port}")],
            networks=[parse_network(text) for text in networks],
            rules=[parse_rule(text) for text in rules],
            upstreams=upstreams,
        )
        proxy = ForwardProxy(
            options_of(root, policy),
            start=node.downloads.start,
            mirror=mirror.answer,
            unready=lambda: unready[0],
        )
        await proxy.start()
        stack.push_async_callback(proxy.close)
        client = aiohttp.ClientSession(auto_decompress=False)
        stack.push_async_callback(client.close)
        yield ProxySite(
            registry,
            plain,
            secure,
            node,
            mirror,
            proxy,
            ssl.create_default_context(cafile=str(root / "ca.pem")),
            ssl.create_default_context(cafile=str(root / "origin-ca.pem")),
            client,
            unready,
        )
