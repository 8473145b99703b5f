"""The mirror while a blob arrives: ranges, several readers, readers that go."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random

import aiohttp
import pytest

from peer.shell import content_answer
from peer.shell.mirror.server import MirrorOptions, RegistryMirror
from peer.shell.mirror.upstreams import Upstream
from peer.shell.node import NodeOptions, PeerNode
from shoal.runtime.config_values import Endpoint
from shoal.wire.ids import HostId
from shoal.wire.limits import MIB, SECOND_NS
from tests.fakes.answers import digest_of
from tests.fakes.upstream_registry import FakeRegistry

SIZE = 80 * MIB
FIRST_READS = 64 * MIB
"""Where a node on its own has begun to read at first, several stretches at once."""
LAYER = Random(5).randbytes(MIB) * (SIZE // MIB)
DIGEST = digest_of(LAYER)
BLOB = f"/v2/lib/img/blobs/{DIGEST}"
WAIT_S = 20.0


class Site:
    """A registry with one layer, a peer with a mirror, and a client."""

    def __init__(self, registry: FakeRegistry, node: PeerNode, mirror: RegistryMirror) -> None:
        self.registry = registry
        self.node = node
        self.url = f"http://{mirror.addresses[0]}{BLOB}"
        self.client = aiohttp.ClientSession()

    async def get(self, asked: str = "") -> bytes:
        headers = {"Range": asked} if asked else {}
        async with self.client.get(self.url, headers=headers) as answer:
            assert answer.status == (206 if asked else 200)
            return await answer.read()

    async def first_of(self, asked: str, count: int) -> bytes:
        """The first bytes of an answer, whose connection is then closed."""
        async with self.client.get(self.url, headers={"Range": asked}) as answer:
            body = await answer.content.readexactly(count)
            answer.close()
            return body

    @property
    def read_bytes(self) -> int:
        return self.registry.blob_bytes[DIGEST]


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not what():  # noqa: ASYNC110 - counters of a daemon
            await asyncio.sleep(0.01)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    registry = FakeRegistry()
    await registry.start()
    registry.push("lib/img", "v1", LAYER)
    node = PeerNode(NodeOptions(host_id=HostId("h"), store_root=tmp_path / "store"))
    await node.start()
    mirror = RegistryMirror(
        MirrorOptions(
            listen=(Endpoint("127.0.0.1", 0),),
            upstreams=(Upstream("reg.example", registry.url),),
            default="reg.example",
            verdict_ttl_ns=60 * SECOND_NS,
        ),
        start=node.downloads.start,
        unready=str,
        clock=node.clock,
        is_here=node.downloads.is_here,
    )
    await mirror.start()
    made = Site(registry, node, mirror)
    yield made
    registry.go.set()
    await made.client.close()
    await mirror.close()
    await node.close()
    await registry.close()


@pytest.mark.slow
async def test_a_range_does_not_wait_for_what_comes_before_it(site: Site) -> None:
    site.registry.stalls_before = FIRST_READS
    whole = asyncio.create_task(site.get())
    await until(lambda: len(site.registry.seen) >= 5)
    start = FIRST_READS + 5 * MIB + 17
    async with asyncio.timeout(WAIT_S):
        assert await site.get(f"bytes={start}-{start + 99_999}") == LAYER[start : start + 100_000]
    assert not whole.done()
    site.registry.go.set()
    assert await whole == LAYER
    assert SIZE <= site.read_bytes <= SIZE + 1, "each byte left the registry once"


@pytest.mark.slow
async def test_chunks_are_fetched_side_by_side_and_each_connection_is_closed(site: Site) -> None:
    chunk = 4 * MIB
    starts = range(0, SIZE, chunk)
    limit = asyncio.Semaphore(4)

    async def fetch(start: int) -> bytes:
        async with limit:
            return await site.first_of(f"bytes={start}-", min(chunk, SIZE - start))

    chunks = await asyncio.gather(*(fetch(start) for start in starts))
    assert b"".join(chunks) == LAYER
    assert SIZE <= site.read_bytes <= SIZE + 1


@pytest.mark.slow
async def test_a_reader_that_goes_after_one_chunk_does_not_bring_it_all(site: Site) -> None:
    site.registry.stalls_before = FIRST_READS - 1
    start = FIRST_READS
    assert await site.first_of(f"bytes={start}-", MIB) == LAYER[start : start + MIB]
    await until(lambda: not site.node.downloads.status()["downloads"])
    assert site.read_bytes < SIZE // 2
    site.registry.stalls_before = 0
    assert await site.get() == LAYER, "what came is kept, and the rest is read later"


@pytest.mark.slow
async def test_a_range_to_the_end_waits_for_the_digest(site: Site) -> None:
    site.registry.corrupt = True
    with pytest.raises(aiohttp.ClientPayloadError):
        await site.get(f"bytes={SIZE - 5}-")


@pytest.mark.slow
@pytest.mark.parametrize("warm", [False, True])
async def test_connections_that_take_no_files_are_written_to(
    site: Site, monkeypatch: pytest.MonkeyPatch, warm: bool
) -> None:
    if warm:
        await site.get()
    monkeypatch.setattr(content_answer, "can_send", lambda transport: False)
    assert await site.get() == LAYER
    assert await site.get("bytes=5-1048580") == LAYER[5:1048581]


@pytest.mark.slow
async def test_clients_that_do_not_read_hold_up_nobody(site: Site) -> None:
    await site.get()
    slow = [await site.client.get(site.url) for _ in range(8)]
    assert await site.get() == LAYER
    for answer in slow:
        assert await answer.read() == LAYER
        answer.release()
