"""The registry mirror over a registry and a whole peer, as container runtimes use it."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import aiohttp
import pytest
from aiohttp import web

from peer.shell.mirror.relay import LOOP_HEADER
from peer.shell.mirror.routes import FALSE_NS
from peer.shell.mirror.server import MirrorOptions, RegistryMirror
from peer.shell.mirror.upstreams import Upstream
from peer.shell.node import NodeOptions, PeerNode
from shoal.runtime.clock import MonotonicClock
from shoal.runtime.config_values import Endpoint
from shoal.wire.errors import UsageError
from shoal.wire.ids import HostId
from shoal.wire.limits import MIB, SECOND_NS
from tests.fakes.answers import digest_of
from tests.fakes.upstream_registry import FakeRegistry

NAME = "reg.example"
LAYERS = tuple(Random(seed).randbytes(size) for seed, size in ((1, MIB + 5), (2, 70_000), (3, 1)))
DIGESTS = tuple(digest_of(layer) for layer in LAYERS)
BLOB = f"/v2/lib/img/blobs/{DIGESTS[0]}"


class Ahead:
    """The mirror's clock, which a test may put ahead."""

    def __init__(self) -> None:
        self._clock = MonotonicClock()
        self.ahead_ns = 0

    def now_ns(self) -> int:
        return self._clock.now_ns() + self.ahead_ns


class Site:
    """A registry, a peer with a mirror, and a client."""

    def __init__(
        self, registry: FakeRegistry, node: PeerNode, mirror: RegistryMirror, clock: Ahead
    ) -> None:
        self.clock = clock
        self.registry = registry
        self.node = node
        self.mirror = mirror
        self.client = aiohttp.ClientSession(auto_decompress=False)
        self.shown: dict[str, str] = {}
        self.unready = ""

    async def ask(
        self,
        path: str,
        method: str = "GET",
        headers: dict[str, str] | None = None,
        *,
        at: int = 0,
    ) -> tuple[int, aiohttp.ClientResponse, bytes]:
        url = f"http://{self.mirror.addresses[at]}{path}"
        sent = {**self.shown, **(headers or {})}
        async with self.client.request(method, url, headers=sent, allow_redirects=False) as answer:
            return answer.status, answer, await answer.read()

    async def pull(self) -> list[bytes]:
        """A manifest by tag, and all that it names, at once."""
        status, _, body = await self.ask("/v2/lib/img/manifests/v1")
        assert status == 200
        manifest = json.loads(body)
        digests = [manifest["config"]["digest"], *(each["digest"] for each in manifest["layers"])]
        answers = await asyncio.gather(*(self.ask(f"/v2/lib/img/blobs/{each}") for each in digests))
        assert [status for status, _, _ in answers] == [200] * len(digests)
        return [body for _, _, body in answers]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    registry = FakeRegistry()
    await registry.start()
    registry.push("lib/img", "v1", *LAYERS)
    node = PeerNode(NodeOptions(host_id=HostId("h"), store_root=tmp_path / "store"))
    await node.start()
    made: list[Site] = []
    clock = Ahead()
    mirror = RegistryMirror(
        MirrorOptions(
            listen=(Endpoint("127.0.0.1", 0),),
            dedicated=((Endpoint("127.0.0.1", 0), NAME),),
            upstreams=(Upstream(NAME, registry.url),),
            default=NAME,
            verdict_ttl_ns=60 * SECOND_NS,
        ),
        start=node.downloads.start,
        unready=lambda: made[0].unready,
        clock=clock,
    )
    await mirror.start()
    made.append(Site(registry, node, mirror, clock))
    yield made[0]
    await made[0].client.close()
    await mirror.close()
    await node.close()
    await registry.close()


# ---------------------------------------------------------------- pulls


async def test_an_image_is_pulled_and_each_blob_read_once(site: Site) -> None:
    assert await site.pull() == [b"{}", *LAYERS]
    for digest, layer in zip(DIGESTS, LAYERS, strict=True):
        # One byte more for the look at a blob's size.
        assert site.registry.blob_bytes[digest] <= len(layer) + 1
    before = dict(site.registry.blob_bytes)
    assert await site.pull() == [b"{}", *LAYERS]
    assert dict(site.registry.blob_bytes) == before, "from the cache"
    assert site.registry.requests["GET manifests"] == 2, "each pull is seen by the registry"


async def test_layers_of_a_manifest_are_one_download(site: Site) -> None:
    await site.ask("/v2/lib/img/manifests/v1")
    await asyncio.gather(site.ask(BLOB), site.ask(f"/v2/lib/img/blobs/{DIGESTS[1]}"))
    assert [len(one.sources) for one in site.node.driver.engine.state.collections.values()] == [4]


async def test_one_blob_of_an_image_is_fetched_alone(site: Site) -> None:
    await site.ask("/v2/lib/img/manifests/v1")
    await site.ask(BLOB)
    assert [len(one.sources) for one in site.node.driver.engine.state.collections.values()] == [1]
    assert set(site.registry.blob_bytes) == {DIGESTS[0]}
    assert (await site.ask(f"/v2/lib/img/blobs/{DIGESTS[1]}"))[2] == LAYERS[1]
    assert DIGESTS[2] in site.registry.blob_bytes, "a second one brings the rest"
    assert site.registry.blob_bytes[DIGESTS[0]] <= len(LAYERS[0]) + 1


async def test_a_blob_alone_is_served_too(site: Site) -> None:
    status, answer, body = await site.ask(BLOB)
    assert (status, body) == (200, LAYERS[0])
    assert answer.headers["Docker-Content-Digest"] == DIGESTS[0]
    assert answer.headers["Content-Length"] == str(len(LAYERS[0]))
    assert "Content-Encoding" not in answer.headers
    assert site.registry.requests["HEAD blobs"] == 1


async def test_many_readers_share_one_download(site: Site) -> None:
    answers = await asyncio.gather(*(site.ask(BLOB) for _ in range(40)))
    assert all(body == LAYERS[0] for _, _, body in answers)
    assert site.registry.blob_bytes[DIGESTS[0]] <= len(LAYERS[0]) + 1


async def test_a_head_tells_all_and_fetches_nothing(site: Site) -> None:
    status, answer, _ = await site.ask(BLOB, "HEAD")
    assert status == 200
    assert answer.headers["Content-Length"] == str(len(LAYERS[0]))
    assert answer.headers["Docker-Content-Digest"] == DIGESTS[0]
    status, answer, _ = await site.ask("/v2/lib/img/manifests/v1", "HEAD")
    assert status == 200
    assert answer.headers["Docker-Content-Digest"].startswith("sha256:")
    assert int(answer.headers["Content-Length"]) > 0
    assert not site.registry.blob_bytes


@pytest.mark.parametrize(
    ("asked", "first", "end"),
    [("bytes=0-", 0, MIB + 5), ("bytes=1000-1999", 1000, 2000), ("bytes=-7", MIB - 2, MIB + 5)],
)
@pytest.mark.parametrize("warm", [False, True])
async def test_ranges_are_answered_exactly(
    site: Site, asked: str, first: int, end: int, warm: bool
) -> None:
    if warm:
        await site.ask(BLOB)
    status, answer, body = await site.ask(BLOB, headers={"Range": asked})
    assert (status, body) == (206, LAYERS[0][first:end])
    assert answer.headers["Content-Range"] == f"bytes {first}-{end - 1}/{MIB + 5}"


async def test_several_ranges_are_answered_with_the_whole_and_none_with_416(site: Site) -> None:
    status, _, body = await site.ask(BLOB, headers={"Range": "bytes=0-1,4-5"})
    assert (status, body) == (200, LAYERS[0])
    status, answer, _ = await site.ask(BLOB, headers={"Range": f"bytes={2 * MIB}-"})
    assert status == 416
    assert answer.headers["Content-Range"] == f"bytes */{MIB + 5}"


async def test_the_registry_is_named_in_every_way(site: Site) -> None:
    manifest = "/v2/lib/img/manifests/v1"
    for path, headers in (
        (f"{manifest}?ns={NAME}", {}),
        (f"/v2/{NAME}/lib/img/manifests/v1", {}),
        (manifest, {"X-Dragonfly-Registry": f"https://{NAME}"}),
        (manifest, {}),
    ):
        assert (await site.ask(path, headers=headers))[0] == 200
    assert (await site.ask(manifest, at=1))[0] == 200
    assert all("ns=" not in request.query_string for request in site.registry.seen)


# ---------------------------------------------------------------- who may


async def test_a_private_blob_is_refused_without_its_credential_though_it_is_here(
    site: Site,
) -> None:
    site.registry.user = "alice:secret"
    site.shown = {"Authorization": site.registry.authorization}
    assert await site.pull() == [b"{}", *LAYERS]
    for shown in ({}, {"Authorization": "Basic d3Jvbmc6d3Jvbmc="}, {"Authorization": "Bearer x"}):
        site.shown = shown
        for path in (BLOB, f"/v2/{NAME}/lib/img/blobs/{DIGESTS[0]}", "/v2/lib/img/manifests/v1"):
            for method in ("GET", "HEAD"):
                status, answer, body = await site.ask(path, method)
                assert status == 401
                assert answer.headers["WWW-Authenticate"] == 'Basic realm="fake"'
                assert LAYERS[0][:100] not in body
    assert (await site.ask("/v2/", at=1))[0] == 401, "who stands for a registry asks it"


async def test_a_cached_blob_of_another_repository_is_not_given_out(site: Site) -> None:
    site.registry.push("other/img", "v1", b"other")
    await site.pull()
    status, _, body = await site.ask(f"/v2/other/img/blobs/{DIGESTS[0]}")
    assert status == 404
    assert json.loads(body)["errors"][0]["code"] == "BLOB_UNKNOWN"


async def test_with_a_fresh_verdict_blobs_come_while_the_registry_is_away(site: Site) -> None:
    digest = site.registry.push("lib/img", "v1", *LAYERS)
    await site.ask(f"/v2/lib/img/manifests/{digest}")
    await site.pull()
    site.registry.down = True
    assert (await site.ask(BLOB))[2] == LAYERS[0]
    assert (await site.ask(BLOB, "HEAD"))[0] == 200
    assert (await site.ask("/v2/lib/img/manifests/v1"))[0] == 500, "tags are the registry's word"
    await site.registry.close()
    assert (await site.ask("/v2/lib/img/manifests/v1"))[0] == 503
    assert (await site.ask(f"/v2/lib/img/manifests/{digest}"))[0] == 200
    site.shown = {"Authorization": "Basic eA=="}
    assert (await site.ask(BLOB))[0] == 503, "nobody said yes to this one"
    assert (await site.ask(f"/v2/lib/img/manifests/{digest}"))[0] == 503


async def test_no_request_makes_it_ask_elsewhere(site: Site) -> None:
    for path, headers in (
        ("/v2/lib/img/manifests/v1?ns=169.254.169.254", {}),
        ("/v2/lib/img/manifests/v1", {"X-Dragonfly-Registry": "http://127.0.0.1:22"}),
    ):
        status, _, body = await site.ask(path, headers=headers)
        assert status == 403
        assert "mirror.upstreams" in json.loads(body)["errors"][0]["message"]
    assert not site.registry.seen


async def test_a_mirror_of_a_mirror_is_told_as_a_loop(site: Site) -> None:
    assert (await site.ask("/v2/lib/img/manifests/v1", headers={LOOP_HEADER: "1"}))[0] == 508


# ---------------------------------------------------------------- what goes wrong


async def test_what_the_registry_lacks_is_404_and_what_fails_is_503(site: Site) -> None:
    assert (await site.ask("/v2/lib/img/manifests/none"))[0] == 404
    assert (await site.ask("/v2/lib/img/blobs/sha256:" + "0" * 64))[0] == 404
    assert (await site.ask("/v2/lib/img/manifests/sha256:bad"))[0] == 404
    site.registry.blobs_down = True
    assert (await site.ask(BLOB))[0] == 503
    site.registry.blobs_down = False
    site.unready = "draining"
    assert (await site.ask(BLOB))[0] == 503
    assert (await site.ask(BLOB, "DELETE"))[0] == 405


async def test_false_bytes_are_never_sent_as_a_whole(site: Site) -> None:
    site.registry.corrupt = True
    with pytest.raises(aiohttp.ClientError):
        await site.ask(BLOB)
    site.registry.corrupt = False
    assert (await site.ask(BLOB))[0] == 503, "or clients would ask for the last bytes for ever"
    site.clock.ahead_ns += FALSE_NS
    assert (await site.ask(BLOB))[2] == LAYERS[0], "a later reader gets the right ones"


async def test_a_body_that_is_cut_is_read_on(site: Site) -> None:
    site.registry.cut_at = 600_000
    reading = asyncio.create_task(site.ask(BLOB))
    while not site.registry.blob_bytes[DIGESTS[0]] > 500_000:  # noqa: ASYNC110 - the fake's counter
        await asyncio.sleep(0.01)
    site.registry.cut_at = None
    assert (await reading)[2] == LAYERS[0]


async def test_a_redirect_to_storage_is_followed_without_the_credential(site: Site) -> None:
    site.registry.user, site.registry.redirect = "alice:secret", True
    site.shown = {"Authorization": site.registry.authorization}
    assert (await site.ask(BLOB))[2] == LAYERS[0]


async def test_other_answers_of_the_registry_pass_through(site: Site) -> None:
    status, _, body = await site.ask("/v2/lib/img/tags/list?n=5")
    assert (status, json.loads(body)) == (200, {"place": "tags"})
    assert site.registry.seen[-1].query_string == "n=5"
    assert (await site.ask(f"/v2/lib/img/referrers/{DIGESTS[0]}"))[0] == 200
    assert (await site.ask("/v2/"))[0] == 200


async def test_a_client_that_goes_leaves_no_reader(site: Site) -> None:
    site.registry.cut_at = 1000
    reading = asyncio.create_task(site.ask(BLOB))
    while not site.registry.blob_bytes[DIGESTS[0]]:  # noqa: ASYNC110 - the fake's counter
        await asyncio.sleep(0.01)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    site.registry.cut_at = None
    assert (await site.ask(BLOB))[2] == LAYERS[0]


async def test_a_place_that_is_taken_is_a_clear_error(site: Site) -> None:
    taken = site.mirror.addresses[0]
    options = MirrorOptions(
        listen=(taken,), upstreams=(Upstream(NAME, site.registry.url),), verdict_ttl_ns=SECOND_NS
    )
    second = RegistryMirror(
        options, start=site.node.downloads.start, unready=str, clock=site.node.clock
    )
    with pytest.raises(UsageError, match="cannot listen"):
        await second.start()
    await second.close()


@pytest.mark.parametrize("content", ["no certificate", None])
async def test_certificates_that_cannot_be_read_are_an_error_at_start(
    site: Site, tmp_path: Path, content: str | None
) -> None:
    ca_file = tmp_path / "ca.pem"
    if content is not None:
        ca_file.write_text(content)
    options = MirrorOptions(
        listen=(Endpoint("127.0.0.1", 0),),
        upstreams=(Upstream(NAME, site.registry.url),),
        verdict_ttl_ns=SECOND_NS,
        ca_file=ca_file,
    )
    mirror = RegistryMirror(
        options, start=site.node.downloads.start, unready=str, clock=site.node.clock
    )
    with pytest.raises(UsageError, match=r"origin\.ca_file.*ca\.pem"):
        await mirror.start()
    await mirror.close()


# ---------------------------------------------------------------- what is no yes


def page(request: web.Request) -> web.Response:
    """What a proxy for signing in sends to everybody."""
    del request
    return web.Response(text="<html>who are you?</html>", content_type="text/html")


async def test_being_sent_to_a_page_for_signing_in_is_no_yes(site: Site) -> None:
    site.registry.user = "alice:secret"
    site.shown = {"Authorization": site.registry.authorization}
    assert await site.pull() == [b"{}", *LAYERS]
    site.registry.strangers_to, site.registry.page = "/login", page
    for shown in ({}, {"Authorization": "Basic d3Jvbmc6d3Jvbmc="}):
        site.shown = shown
        for method in ("GET", "HEAD"):
            status, answer, body = await site.ask(BLOB, method)
            assert status in (302, 401, 403, 503), method
            assert answer.headers.get("Content-Length") != str(len(LAYERS[0]))
            assert LAYERS[0][:100] not in body
    site.registry.strangers_to = ""
    assert (await site.ask(BLOB))[0] == 401, "nor is anything remembered of it"


async def test_a_page_for_signing_in_in_place_of_a_blob_is_no_yes(site: Site) -> None:
    site.registry.user = "alice:secret"
    site.shown = {"Authorization": site.registry.authorization}
    assert await site.pull() == [b"{}", *LAYERS]
    site.registry.strangers_to, site.registry.page = "here", page
    site.shown = {}
    for _ in range(2):
        status, _, body = await site.ask(BLOB)
        assert status in (401, 403, 503)
        assert LAYERS[0][:100] not in body


async def test_a_registry_that_redirects_to_its_storage_says_yes(site: Site) -> None:
    site.registry.user, site.registry.redirect = "alice:secret", True
    site.registry.redirect_heads = True
    site.shown = {"Authorization": site.registry.authorization}
    status, answer, _ = await site.ask(BLOB, "HEAD")
    assert (status, answer.headers["Content-Length"]) == (200, str(len(LAYERS[0])))
    assert (await site.ask(BLOB))[2] == LAYERS[0]
    site.shown = {}
    assert (await site.ask(BLOB))[0] == 401


async def test_a_manifest_that_names_a_foreign_blob_opens_nothing(site: Site) -> None:
    # As some registries take it: whoever may push names whatever it likes.
    site.registry.user = "alice:secret"
    site.shown = {"Authorization": site.registry.authorization}
    assert await site.pull() == [b"{}", *LAYERS]
    site.registry.user = ""
    manifest = site.registry.manifests["lib/img", "v1"]
    site.registry.manifests["mallory/img", "v1"] = manifest
    for shown in ({}, {"Authorization": "Basic bWFsbG9yeTp4"}):
        site.shown = shown
        assert (await site.ask("/v2/mallory/img/manifests/v1"))[0] == 200
        for digest, layer in zip(DIGESTS, LAYERS, strict=True):
            status, _, body = await site.ask(f"/v2/mallory/img/blobs/{digest}")
            assert status != 200
            assert layer[:100] not in body or len(layer) < 2


async def test_a_credential_in_a_query_opens_nothing_for_others(site: Site) -> None:
    site.registry.user = "alice:secret"
    site.registry.query_token = "t0ken"
    assert (await site.ask("/v2/lib/img/manifests/v1?token=t0ken"))[0] == 200
    assert (await site.ask(BLOB))[0] == 401


async def test_a_no_ends_what_a_yes_began(site: Site) -> None:
    site.registry.user = "alice:secret"
    digest = site.registry.push("lib/img", "v1", *LAYERS)
    manifest = f"/v2/lib/img/manifests/{digest}"
    site.shown = {"Authorization": site.registry.authorization}
    await site.pull()
    assert (await site.ask(manifest))[0] == 200
    site.registry.user = "alice:changed"
    assert (await site.ask(manifest))[0] == 401
    assert (await site.ask(BLOB, "HEAD"))[0] == 401
    await site.registry.close()
    assert (await site.ask(manifest))[0] == 503
    assert (await site.ask(BLOB))[0] == 503
