"""The scheduler daemon: embedded and as a process, its health, its end."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import aiohttp
import grpc
import pytest

from scheduler.core.events import AnyEvent, FromHost
from scheduler.shell.config import SchedulerConfig, StatusSection
from scheduler.shell.daemon import SchedulerDaemon
from shoal.runtime.config_values import Endpoint
from shoal.runtime.grpc_tls import grpc_channel_credentials
from shoal.wire.control import Welcome
from shoal.wire.errors import UsageError
from tests.shell.control_rig import FakeEngine, connected, hello
from tests.shell.pieces_rig import section

ANY_PORT = Endpoint("127.0.0.1", 0)
CONFIG = SchedulerConfig(listen=ANY_PORT, status=StatusSection(listen=ANY_PORT), scheduler_id="s1")


@pytest.fixture
async def daemon() -> AsyncIterator[SchedulerDaemon]:
    daemon = SchedulerDaemon(CONFIG)
    await daemon.start()
    yield daemon
    await daemon.close()


async def fetch(daemon: SchedulerDaemon, path: str) -> tuple[int, str]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{daemon.status_address}{path}") as response,
    ):
        return response.status, await response.text()


async def test_a_host_is_welcomed_by_the_real_core(daemon: SchedulerDaemon) -> None:
    async with connected(daemon.address) as host:
        await host.send(hello("h1"))
        batch = await host.read()
    assert batch is not None
    assert isinstance(batch[0], Welcome)
    assert batch[0].scheduler_id == "s1"


async def test_the_graph_is_beside_the_metrics(daemon: SchedulerDaemon) -> None:
    assert await fetch(daemon, "/graph") == (200, '{"collections": []}')
    assert await fetch(daemon, "/graph?summary=1") == (200, '{"collections": []}')


async def test_a_host_cannot_pose_as_another() -> None:
    daemon = SchedulerDaemon(replace(CONFIG, tls=section("alpha")))
    await daemon.start()
    try:
        credentials = grpc_channel_credentials(section("beta"))
        async with connected(daemon.address, credentials) as host:
            await host.send(hello("gamma"))
            code, detail = await host.ended()
            assert code is grpc.StatusCode.PERMISSION_DENIED
            assert detail.startswith("unauthorized: ")
            assert "'beta'" in detail
        async with connected(daemon.address, credentials) as host:
            await host.send(hello("beta"))
            batch = await host.read()
            assert batch is not None
            assert isinstance(batch[0], Welcome)
    finally:
        await daemon.close()


async def test_health_and_metrics(daemon: SchedulerDaemon) -> None:
    async with connected(daemon.address) as host:
        await host.send(hello("h1"))
        await host.read()
        assert await fetch(daemon, "/healthz") == (200, "ok\n")
        assert await fetch(daemon, "/readyz") == (200, "ready\n")
        _, metrics = await fetch(daemon, "/metrics")
    assert "shoal_scheduler_sessions 1.0" in metrics
    assert "shoal_scheduler_hosts_connected 1.0" in metrics
    assert "shoal_scheduler_batches_received_total 1.0" in metrics


async def test_it_is_not_ready_before_and_after() -> None:
    daemon = SchedulerDaemon(CONFIG)
    assert daemon.not_ready() == "starting"
    await daemon.start()
    assert daemon.not_ready() == ""
    await daemon.close()
    assert daemon.not_ready() == "draining"
    await daemon.close()


async def test_two_in_one_process() -> None:
    first, second = SchedulerDaemon(CONFIG), SchedulerDaemon(CONFIG)
    await first.start()
    await second.start()
    assert first.address != second.address
    await first.close()
    await second.close()


async def test_a_port_in_use_leaves_nothing_running(daemon: SchedulerDaemon) -> None:
    taken = SchedulerConfig(listen=ANY_PORT, status=StatusSection(listen=daemon.status_address))
    second = SchedulerDaemon(taken)
    with pytest.raises(UsageError, match=r"status.listen"):
        await second.start()
    with pytest.raises(UsageError, match=r"listen = "):
        await SchedulerDaemon(
            SchedulerConfig(listen=daemon.address, status=StatusSection(listen=None))
        ).run()


async def test_sigterm_drains() -> None:
    engine = FakeEngine()
    daemon = SchedulerDaemon(CONFIG, engine=lambda config, scheduler_id: engine)
    running = asyncio.ensure_future(daemon.run())
    while daemon.not_ready():
        assert not running.done()
        await asyncio.sleep(0.001)
    async with connected(daemon.address) as host:
        await host.send(hello())
        await engine.events.wait(FromHost)
        started = time.monotonic()
        os.kill(os.getpid(), signal.SIGTERM)
        assert (await host.ended())[0] is grpc.StatusCode.UNAVAILABLE
        async with asyncio.timeout(5):
            await running
    assert time.monotonic() - started < 1.0
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


async def test_a_crash_of_the_core_ends_the_process() -> None:
    def crash(event: AnyEvent) -> list[object]:
        raise ZeroDivisionError("a programmer's error")

    engine = FakeEngine(crash)  # type: ignore[arg-type]
    daemon = SchedulerDaemon(CONFIG, engine=lambda config, scheduler_id: engine)
    running = asyncio.ensure_future(daemon.run())
    while daemon.not_ready():
        assert not running.done()
        await asyncio.sleep(0.001)
    async with connected(daemon.address) as host:
        with pytest.raises(ZeroDivisionError):
            async with asyncio.timeout(5):
                await asyncio.gather(running, host.ended())
