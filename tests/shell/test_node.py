"""Whole peers in one process, with a scheduler and an origin: what a download comes to."""

import asyncio
import contextlib
import hashlib
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from aiohttp import web

from peer.shell import node as node_module
from peer.shell.api_types import (
    Delivered,
    Done,
    DownloadEvent,
    DownloadRequest,
    Failed,
    WantedUrl,
)
from peer.shell.errors import DownloadError
from peer.shell.node import NodeOptions, PeerNode
from peer.shell.store.content import ContentStore
from peer.shell.store.errors import StoreError
from scheduler.shell.config import SchedulerConfig, StatusSection
from scheduler.shell.daemon import SchedulerDaemon
from shoal.runtime.config_values import Endpoint
from shoal.runtime.control_codec import decode_host_batch
from shoal.v1 import control_pb2 as pb
from shoal.wire.control import Address, HostMessage
from shoal.wire.errors import Reason, UsageError
from shoal.wire.ids import HostId, TaskId
from shoal.wire.limits import KIB, MIB

WAIT_S = 20.0
CONTENT = Random(5).randbytes(3 * MIB + 17)
SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
WRONG = f"sha256:{'0' * 64}"


class Origin:
    """Serves one content with ranges; `gate` holds its bodies back."""

    def __init__(self) -> None:
        self.url = ""
        self.requests = 0
        self.asked = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        part, status = request.http_range, 200
        headers = {"ETag": '"v1"', "Accept-Ranges": "bytes"}
        body = CONTENT[part]
        if part.start is not None:
            start = part.start
            headers["Content-Range"] = f"bytes {start}-{start + len(body) - 1}/{len(CONTENT)}"
            status = 206
        response = web.StreamResponse(status=status, headers=headers)
        response.content_length = len(body)
        await response.prepare(request)
        if request.method == "GET":
            await response.write(body[:1])
            self.asked.set()
            await self.gate.wait()
            await response.write(body[1:])
        return response


@pytest.fixture
async def origin() -> AsyncIterator[Origin]:
    made = Origin()
    app = web.Application()
    app.router.add_get("/model", made.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/model"
    yield made
    made.gate.set()
    await runner.cleanup()


@pytest.fixture
async def scheduler() -> AsyncIterator[str]:
    config = SchedulerConfig(listen=Endpoint("127.0.0.1", 0), status=StatusSection(listen=None))
    daemon = SchedulerDaemon(config, process_metrics=False)
    await daemon.start()
    yield str(daemon.address)
    await daemon.close()


@contextlib.asynccontextmanager
async def node_of(root: Path, name: str, *schedulers: str) -> AsyncIterator[PeerNode]:
    node = PeerNode(
        NodeOptions(host_id=HostId(name), store_root=root / name, schedulers=schedulers)
    )
    try:
        await node.start()
        async with asyncio.timeout(WAIT_S):
            while schedulers and not node.driver.engine.state.scheduled:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        yield node
    finally:
        await node.close()
    assert node.supervisor.failure is None


def asking(
    url: str, output: Path | None = None, *, digest: str | None = SHA256, to_source: bool = True
) -> DownloadRequest:
    return DownloadRequest(
        urls=(WantedUrl(url=url, digest=digest),),
        outputs=(output,),
        piece_length_bytes=256 * KIB,
        disable_back_to_source=not to_source,
    )


async def outcome(node: PeerNode, request: DownloadRequest) -> list[DownloadEvent]:
    download = node.downloads.start(request)
    async with asyncio.timeout(WAIT_S):
        events = [event async for event in download.events()]
    await download.close()
    return events


class Upkeep:
    """What a node does for its store, as often as it can; syncs wait for `disk`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *syncs: StoreError) -> None:
        self.calls: list[str] = []
        self.ended = 0
        """Syncs."""
        self.disk = threading.Event()
        self._failures = list(syncs)
        self._news = threading.Condition()
        for name in ("FLUSH_INTERVAL_S", "SYNC_INTERVAL_S", "EVICT_INTERVAL_S"):
            monkeypatch.setattr(node_module, name, 0.0)
        monkeypatch.setattr(ContentStore, "flush", lambda _: self._called("flush"))
        monkeypatch.setattr(ContentStore, "sync_some", lambda _: self._sync())
        monkeypatch.setattr(ContentStore, "candidates_to_evict", lambda *_: self._evict())

    def _called(self, name: str) -> None:
        with self._news:
            self.calls.append(name)
            self._news.notify_all()

    def _sync(self) -> bool:
        self._called("sync")
        assert self.disk.wait(WAIT_S)
        self.ended += 1
        if self._failures:
            raise self._failures.pop(0)
        return False

    def _evict(self) -> list[TaskId]:
        self._called("evict")
        return []

    async def wait(self, name: str, count: int) -> None:
        """Until something was done so often."""

        def wait() -> bool:
            with self._news:
                return self._news.wait_for(lambda: self.calls.count(name) >= count, WAIT_S)

        assert await asyncio.to_thread(wait)


async def test_a_slow_disk_holds_up_syncs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upkeep = Upkeep(monkeypatch)
    async with node_of(tmp_path, "one"):
        try:
            await upkeep.wait("sync", 1)
            for name in ("flush", "evict"):
                await upkeep.wait(name, upkeep.calls.count(name) + 5)
            assert upkeep.calls.count("sync") == 1
        finally:
            upkeep.disk.set()
        await upkeep.wait("sync", 2)


async def test_a_disk_that_fails_is_asked_again_and_its_failures_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    upkeep = Upkeep(monkeypatch, StoreError(Reason.DISK_FAILED, "syncing x: it broke"))
    upkeep.disk.set()
    async with node_of(tmp_path, "one"):
        await upkeep.wait("sync", 3)
    (record,) = caplog.records
    assert record.shoal_fields == {  # type: ignore[attr-defined]
        "part": "sync",
        "detail": "syncing x: it broke",
    }


@pytest.mark.parametrize("work", ["flush", "sync_some", "candidates_to_evict"])
async def test_a_defect_in_the_upkeep_ends_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: str
) -> None:
    upkeep = Upkeep(monkeypatch)
    upkeep.disk.set()

    def broken(*_: object) -> None:
        raise KeyError(work)

    monkeypatch.setattr(ContentStore, work, broken)
    node = PeerNode(NodeOptions(host_id=HostId("one"), store_root=tmp_path / "one"))
    try:
        await node.start()
        async with asyncio.timeout(WAIT_S):
            with pytest.raises(KeyError, match=work):
                await node.supervisor.wait_failed()
    finally:
        await node.close()


async def test_a_node_ends_after_the_sync_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upkeep = Upkeep(monkeypatch)
    close = ContentStore.close

    def closing(store: ContentStore) -> None:
        close(store)
        threading.Timer(0.05, upkeep.disk.set).start()

    monkeypatch.setattr(ContentStore, "close", closing)
    async with node_of(tmp_path, "one"):
        await upkeep.wait("sync", 1)
    assert upkeep.ended == upkeep.calls.count("sync") == 1
    assert not [each.name for each in threading.enumerate() if each.name.startswith("upkeep")]


@pytest.mark.slow
async def test_a_swarm_downloads_right(tmp_path: Path, origin: Origin, scheduler: str) -> None:
    async with (
        node_of(tmp_path, "one", scheduler) as one,
        node_of(tmp_path, "two", scheduler) as two,
    ):
        first = await outcome(one, asking(origin.url, tmp_path / "a"))
        second = await outcome(two, asking(origin.url, tmp_path / "b"))
    assert isinstance(first[-1], Done)
    assert first[-1].origin_bytes == len(CONTENT)
    assert isinstance(second[-1], Done)
    assert (second[-1].origin_bytes, second[-1].peer_bytes) == (0, len(CONTENT))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == CONTENT


def waiting_for(node: PeerNode) -> int:
    """Standing requests at a node."""
    return sum(len(child.waiting) for child in node.driver.engine.state.children.values())


@pytest.mark.slow
async def test_what_a_parent_does_not_hold_yet_is_sent_when_it_does(
    tmp_path: Path, origin: Origin, scheduler: str
) -> None:
    origin.gate.clear()
    async with (
        node_of(tmp_path, "one", scheduler) as one,
        node_of(tmp_path, "two", scheduler) as two,
    ):
        first = asyncio.create_task(outcome(one, asking(origin.url, tmp_path / "a")))
        await origin.asked.wait()
        second = asyncio.create_task(outcome(two, asking(origin.url, tmp_path / "b")))
        async with asyncio.timeout(WAIT_S):
            while not waiting_for(one) + waiting_for(two):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        origin.gate.set()
        ends = [(await first)[-1], (await second)[-1]]
        assert waiting_for(one) == waiting_for(two) == 0
    assert isinstance(ends[0], Done)
    assert isinstance(ends[1], Done)
    assert ends[0].origin_bytes + ends[1].origin_bytes == len(CONTENT)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == CONTENT


async def test_a_stream_is_the_content_in_order(tmp_path: Path, origin: Origin) -> None:
    async with node_of(tmp_path, "one") as node, asyncio.timeout(WAIT_S):
        stream = await node.downloads.stream(asking(origin.url))
        assert b"".join([chunk async for chunk in stream.chunks()]) == CONTENT
        await stream.close()


async def test_a_stream_with_a_wrong_digest_never_completes(tmp_path: Path, origin: Origin) -> None:
    async with node_of(tmp_path, "one") as node, asyncio.timeout(WAIT_S):
        stream = await node.downloads.stream(asking(origin.url, digest=WRONG))
        read = bytearray()
        with pytest.raises(DownloadError) as raised:  # noqa: PT012 - the loop is what raises
            async for chunk in stream.chunks():
                read += chunk
        await stream.close()
    assert raised.value.reason is Reason.DIGEST_MISMATCH
    assert CONTENT.startswith(read)
    assert len(read) < len(CONTENT)


async def test_a_wrong_digest_leaves_no_file(tmp_path: Path, origin: Origin) -> None:
    async with node_of(tmp_path, "one") as node:
        events = await outcome(node, asking(origin.url, tmp_path / "a", digest=WRONG))
    assert isinstance(events[-1], Failed)
    assert events[-1].reason is Reason.DIGEST_MISMATCH
    assert not (tmp_path / "a").exists()
    assert not any(isinstance(event, Delivered | Done) for event in events)


async def test_a_removed_task_is_gone(tmp_path: Path, origin: Origin) -> None:
    async with node_of(tmp_path, "one") as node:
        await outcome(node, asking(origin.url))
        (task,) = await node.downloads.tasks()
        assert (task.sealed, task.held_bytes) == (True, len(CONTENT))
        async with asyncio.timeout(WAIT_S):
            await node.downloads.remove(task.task_id)
        assert await node.downloads.tasks() == ()
        with pytest.raises(DownloadError) as raised:
            await node.downloads.lend(task.task_id)
        assert raised.value.reason is Reason.UNKNOWN_TASK


async def test_a_restarted_node_keeps_its_content(tmp_path: Path, origin: Origin) -> None:
    async with node_of(tmp_path, "one") as node:
        await outcome(node, asking(origin.url))
    async with node_of(tmp_path, "one") as node:
        events = await outcome(node, asking(origin.url, tmp_path / "a"))
    assert isinstance(events[-1], Done)
    # The origin may be asked what it has, but nothing is read from it again.
    assert (events[-1].origin_bytes, events[-1].peer_bytes) == (0, 0)
    assert (tmp_path / "a").read_bytes() == CONTENT


async def test_without_the_origin_and_without_holders_there_is_no_source(
    tmp_path: Path, origin: Origin
) -> None:
    async with node_of(tmp_path, "one") as node:
        events = await outcome(node, asking(origin.url, to_source=False))
    assert isinstance(events[-1], Failed)
    assert events[-1].reason is Reason.NO_SOURCE
    assert origin.requests == 0


async def test_shutting_down_within_a_download_is_quick(tmp_path: Path, origin: Origin) -> None:
    origin.gate.clear()
    async with node_of(tmp_path, "one") as node:
        node.downloads.start(asking(origin.url, tmp_path / "a"))
        async with asyncio.timeout(WAIT_S):
            await origin.asked.wait()
        began = time.monotonic()
        await node.close()
        assert time.monotonic() - began < 2.0
    assert not (tmp_path / "a").exists()


# ---------------------------------------------------------------- what the swarm holds


async def test_a_node_tells_what_the_swarm_holds(
    tmp_path: Path, origin: Origin, scheduler: str
) -> None:
    async with (
        node_of(tmp_path, "one", scheduler) as one,
        node_of(tmp_path, "two", scheduler) as two,
        asyncio.timeout(WAIT_S),
    ):
        await outcome(one, replace(asking(origin.url), piece_length_bytes=None))
        # What one has told and what two asks come on streams of their own.
        while True:
            told = await two.downloads.swarm((SHA256, WRONG))
            if told.contents[0].whole_hosts:
                break
            await asyncio.sleep(0.01)
    held, nothing = told.contents
    assert (held.digest, held.hosts, held.covered_bytes) == (SHA256, 1, len(CONTENT))
    assert held.size_bytes == len(CONTENT)
    assert (nothing.digest, nothing.hosts, nothing.covered_bytes) == (WRONG, 0, 0)
    assert (told.hosts, told.whole_hosts) == (1, 0)


async def test_more_than_one_question_is_not_counted_together(
    tmp_path: Path, scheduler: str
) -> None:
    digests = tuple(f"sha256:{number:064x}" for number in range(1025))
    async with node_of(tmp_path, "one", scheduler) as node, asyncio.timeout(WAIT_S):
        told = await node.downloads.swarm(digests)
    assert tuple(content.digest for content in told.contents) == digests
    assert (told.hosts, told.whole_hosts) == (None, None)


async def why_unknown(node: PeerNode) -> Reason:
    """Why a node cannot tell what the swarm holds."""
    async with asyncio.timeout(WAIT_S):
        with pytest.raises(DownloadError) as raised:
            await node.downloads.swarm((SHA256,))
    return raised.value.reason


async def test_a_node_without_a_scheduler_knows_nothing_of_a_swarm(tmp_path: Path) -> None:
    async with node_of(tmp_path, "one") as node:
        assert await why_unknown(node) is Reason.NO_SCHEDULER


@pytest.mark.slow
async def test_a_scheduler_of_an_older_version_reads_over_the_question(
    tmp_path: Path, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_as_before(
        batch: pb.HostBatch, unknown: Callable[[], None] | None = None
    ) -> tuple[HostMessage, ...]:
        for message in batch.messages:
            if message.WhichOneof("kind") == "holders_wanted":
                # What it is to a reader who does not know the field.
                message.ClearField("holders_wanted")
        return decode_host_batch(batch, unknown)

    monkeypatch.setattr("scheduler.shell.server.decode_host_batch", read_as_before)
    async with node_of(tmp_path, "one", scheduler) as node:
        began_s = time.monotonic()
        assert await why_unknown(node) is Reason.TIMEOUT
        assert time.monotonic() - began_s < 5.0
        assert node.driver.engine.state.scheduled, "the stream goes on"


# ---------------------------------------------------------------- addresses


async def test_other_hosts_are_never_told_all_addresses(tmp_path: Path) -> None:
    options = NodeOptions(
        host_id=HostId("a"),
        store_root=tmp_path / "a",
        listen=(("0.0.0.0", 0),),
        schedulers=("127.0.0.1:1",),
    )
    node = PeerNode(options)
    try:
        with pytest.raises(UsageError, match=r"set piece\.advertise"):
            await node.start()
    finally:
        await node.close()


async def test_an_advertised_port_of_zero_is_the_one_listened_on(tmp_path: Path) -> None:
    options = NodeOptions(
        host_id=HostId("a"),
        store_root=tmp_path / "a",
        listen=(("127.0.0.1", 0),),
        advertise=(Address("192.0.2.1", 0), Address("192.0.2.2", 7)),
    )
    node = PeerNode(options)
    try:
        await node.start()
        port = node.port.addresses[0].port
        assert node.driver.engine.state.host.addresses == (
            Address("192.0.2.1", port),
            Address("192.0.2.2", 7),
        )
    finally:
        await node.close()
