"""Real clients that know no more than HTTPS_PROXY pull from a real registry with TLS, through the
proxies of a swarm that open it. The registry's own log tells what was read.
"""

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.clients.client_rig import CALL_S, PULL_S, Containerd, Outcome, Skopeo
from tests.clients.images import make_image, push
from tests.clients.registry_rig import bare_environment, plain_registry
from tests.clients.tls_registry import PASSWORD, USER, TlsRegistry
from tests.conftest import require_tool
from tests.integration.swarm_rig import ROOT, Origin, Swarm, say, wait_for_ready

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

RATE_BYTES_S = 200_000_000
NAME = "registry.test"
IMAGE = make_image(seed=11)
NAMED = f"{NAME}/lib/img:v1"
LOOK_BYTES = 16
"""A host's look at the size of a blob reads one byte of it."""


class ProxiedSkopeo(Skopeo):
    """Knows a registry by its name alone, and the proxy from its environment."""

    def pull(self, reference: str, mirror: str | None = None) -> Outcome:
        """Copies manifest, config and layers as they are, with TLS verified."""
        registries = self.directory / "registries.conf"
        registries.write_text('short-name-mode = "disabled"\n')
        return self.call(
            *self._program,
            *("--registries-conf", str(registries)),
            *("--policy", str(self.write_policy())),
            *("--tmpdir", str(self.directory)),
            "copy",
            *("--src-authfile", str(self.write_login())),
            f"docker://{reference}",
            f"dir:{self._output}",
            timeout_s=PULL_S,
        )


class ProxiedContainerd(Containerd):
    """The same with `ctr`, without any folder of hosts."""

    def pull(self, reference: str, mirror: str | None = None) -> Outcome:
        """Reads all blobs and unpacks the layers."""
        user = self.login.get(NAME)
        return self._run(
            *("images", "pull", "--snapshotter", "native", "--platform", "linux/amd64"),
            *(("--user", ":".join(user)) if user is not None else ()),
            reference,
            timeout_s=PULL_S,
        )


class Proxies:
    """A registry with TLS, and a swarm whose peers each are a proxy that opens it."""

    def __init__(self, directory: Path, registry: TlsRegistry, swarm: Swarm) -> None:
        self.directory = directory
        self.registry = registry
        self.swarm = swarm
        self.ca = directory / "proxy-ca"
        command = ("proxy", "ca", "--out", str(self.ca), "--host", NAME)
        subprocess.run(
            [sys.executable, "-m", "peer.cli", *command],
            check=True,
            timeout=CALL_S,
            cwd=ROOT,
            env=swarm.environment(),
            stdout=subprocess.DEVNULL,
        )

    def add(self, count: int, *options: str) -> None:
        """Starts peers, side by side."""
        settings = (
            "proxy.listen=127.0.0.1:0",
            f"mirror.upstreams={NAME}=https://{self.registry.address}",
            f"origin.ca_file={self.registry.ca}",
            f"proxy.intercept={NAME}",
            f"proxy.ca_cert={self.ca / 'ca.pem'}",
            f"proxy.ca_key={self.ca / 'ca-key.pem'}",
            *options,
        )
        arguments = tuple(word for setting in settings for word in ("--set", setting))
        for _ in range(count):
            self.swarm.add_peer(f"peer-{len(self.swarm.peers)}", options=arguments)
        self.swarm.wait_connected()

    def address(self, number: int) -> str:
        """Where a peer's proxy listens."""
        peer = self.swarm.peers[number]
        ready = wait_for_ready(peer.process, self.swarm.directory / f"{peer.name}.ready")
        return str(ready["proxies"][0])

    def environment(self, number: int) -> dict[str, str]:
        """What a tool is told."""
        return {
            "HTTP_PROXY": f"http://{self.address(number)}",
            "HTTPS_PROXY": f"http://{self.address(number)}",
            "SSL_CERT_FILE": str(self.ca / "ca.pem"),
        }

    def told(self) -> str:
        """The logs."""
        tails = [peer.process.tail() for peer in self.swarm.peers]
        return "\n".join((self.registry.told(), *tails))


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """Of a registry that has the image."""
    with plain_registry(tmp_path / "plain") as registry:
        push(IMAGE, registry.address, "lib/img", "v1")
    return tmp_path / "plain" / "storage"


@pytest.fixture
def proxies(tmp_path: Path, storage: Path, request: pytest.FixtureRequest) -> Iterator[Proxies]:
    with ExitStack() as stack:
        private = bool(getattr(request, "param", False))
        registry = stack.enter_context(TlsRegistry(tmp_path / "tls", storage, private=private))
        swarm = stack.enter_context(Swarm(tmp_path, RATE_BYTES_S))
        swarm.start_scheduler()
        yield Proxies(tmp_path, registry, swarm)


def test_a_second_node_reads_no_blob_of_the_registry_again(
    proxies: Proxies, tmp_path: Path
) -> None:
    proxies.add(2)
    skopeo, containerd = ProxiedSkopeo(tmp_path / "skopeo"), ProxiedContainerd(tmp_path / "ctr")
    skopeo.environment |= proxies.environment(0)
    containerd.environment |= proxies.environment(1)
    with skopeo, containerd:
        outcome = skopeo.pull(NAMED)
        assert outcome.ok, f"{outcome.text}\n{proxies.told()}"
        skopeo.check(IMAGE)
        read = proxies.registry.read_bytes()
        for blob in IMAGE.blobs:
            size = len(blob.content)
            assert size <= read[blob.digest] <= size + LOOK_BYTES, proxies.told()
        proxies.registry.forget()
        outcome = containerd.pull(NAMED)
        assert outcome.ok, f"{outcome.text}\n{proxies.told()}"
        containerd.check(IMAGE)
        containerd.check_unpacked(IMAGE)
    read = proxies.registry.read_bytes()
    assert sum(read.values()) <= LOOK_BYTES * len(IMAGE.blobs), proxies.told()
    manifests = proxies.registry.requests("GET", "/manifests/")
    assert manifests >= 1, "its audit sees every pull"
    say(f"the second node read {sum(read.values())} bytes of blobs and {manifests} manifests")


@pytest.mark.parametrize("proxies", [True], indirect=True)
@pytest.mark.parametrize("kind", [ProxiedSkopeo, ProxiedContainerd])
def test_a_wrong_credential_is_refused_though_the_cache_is_warm(
    proxies: Proxies, tmp_path: Path, kind: type[ProxiedSkopeo | ProxiedContainerd]
) -> None:
    proxies.add(1)
    client = kind(tmp_path / "client")
    client.environment |= proxies.environment(0)
    with client:
        client.login[NAME] = (USER, PASSWORD)
        outcome = client.pull(NAMED)
        assert outcome.ok, f"{outcome.text}\n{proxies.told()}"
        client.check(IMAGE)
        for login in ({NAME: (USER, "wrong")}, {}):
            client.forget(NAMED)
            client.login = login
            outcome = client.pull(NAMED)
            assert not outcome.ok
            assert any(word in outcome.text.lower() for word in ("unauthorized", "authentication"))
    # And without a client's own caution: each blob straight, in the clear and within opened TLS.
    for scheme in ("http", "https"):
        for shown in ("", f"{USER}:wrong", f"{USER}:{PASSWORD}"):
            url = f"{scheme}://{NAME}/v2/lib/img/blobs/{IMAGE.largest.digest}"
            code, body = curl(proxies, url, shown)
            assert (code == "200") == (shown == f"{USER}:{PASSWORD}"), (scheme, shown, code)
            assert (body == IMAGE.largest.content) == (code == "200")
            assert code in ("200", "401")


def curl(proxies: Proxies, url: str, shown: str = "", *options: str) -> tuple[str, bytes]:
    """The status and the body. What is shown goes in by a file, as it should."""
    body = proxies.directory / "body"
    body.unlink(missing_ok=True)
    secret = proxies.directory / "curlrc"
    basic = base64.b64encode(shown.encode()).decode()
    secret.write_text(f'header = "Authorization: Basic {basic}"\n' if shown else "")
    done = subprocess.run(
        [
            require_tool("curl"), "-q", "-sS", "-x", f"http://{proxies.address(0)}",
            "--cacert", str(proxies.ca / "ca.pem"), "-o", str(body), "-w", "%{http_code}",
            "-K", str(secret), *options, url,
        ],
        capture_output=True,
        timeout=CALL_S,
        env=bare_environment(proxies.directory / "curl"),
        cwd=proxies.directory,
    )  # fmt: skip
    told = f"{done.stderr.decode()}\n{proxies.told()}"
    assert done.returncode == 0, told
    return done.stdout.decode(), body.read_bytes() if body.exists() else b""


def test_curl_gets_urls_through_the_swarm_and_tunnels_past_it(proxies: Proxies) -> None:
    content = bytes(range(256)) * 8192
    with Origin(content) as origin:
        place = origin.url.removeprefix("http://").partition("/")[0]
        proxies.add(
            2, f"proxy.allow={place},{proxies.registry.address}", r"proxy.rules=swarm ^http://127"
        )
        for _ in range(2):
            assert curl(proxies, origin.url) == ("200", content)
        assert origin.sent_bytes <= len(content) + LOOK_BYTES
        # Not among the hosts whose TLS is opened: the registry's own certificate is seen.
        ping = f"https://{proxies.registry.address}/v2/"
        code, body = curl(proxies, ping, "", "--cacert", str(proxies.registry.ca))
        assert (code, json.loads(body)) == ("200", {})
        code, body = curl(proxies, "http://127.0.0.1:1/")
        assert code == "403"
        assert b"proxy.allow" in body
