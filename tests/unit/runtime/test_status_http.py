"""Health checks and metrics over HTTP, within bounds."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping

import aiohttp
import pytest

from shoal.runtime.config_values import Endpoint
from shoal.runtime.metrics import Metrics
from shoal.runtime.status_http import StatusServer
from shoal.wire.errors import UsageError

ANY_PORT = Endpoint("127.0.0.1", 0)


class Daemon:
    """Something that may be ready."""

    def __init__(self) -> None:
        self.reason = "starting"
        self.metrics = Metrics("peer", process=False)

    def not_ready(self) -> str:
        return self.reason


@pytest.fixture
def daemon() -> Daemon:
    return Daemon()


@pytest.fixture
async def server(daemon: Daemon) -> AsyncIterator[StatusServer]:
    server = StatusServer(
        ANY_PORT, daemon.metrics, daemon.not_ready, connections_max=3, connection_life_s=0.2
    )
    await server.start()
    yield server
    await server.close()


async def fetch(server: StatusServer, path: str, method: str = "GET") -> tuple[int, str]:
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, f"http://{server.address}{path}") as response,
    ):
        return response.status, await response.text()


async def test_health_and_readiness(server: StatusServer, daemon: Daemon) -> None:
    assert await fetch(server, "/healthz") == (200, "ok\n")
    assert await fetch(server, "/readyz") == (503, "starting\n")
    daemon.reason = ""
    assert await fetch(server, "/readyz") == (200, "ready\n")


async def test_metrics(server: StatusServer, daemon: Daemon) -> None:
    daemon.metrics.counter("pieces", "Pieces.").inc()
    status, text = await fetch(server, "/metrics")
    assert status == 200
    assert "shoal_peer_pieces_total 1.0" in text


async def test_everything_else_is_refused(server: StatusServer) -> None:
    assert (await fetch(server, "/"))[0] == 404
    assert (await fetch(server, "/healthz", "POST"))[0] == 405
    assert await fetch(server, "/healthz", "HEAD") == (200, "")


async def test_a_daemon_adds_pages_that_may_be_busy(daemon: Daemon) -> None:
    async def page(query: Mapping[str, str]) -> bytes | None:
        return None if "busy" in query else b"{}"

    server = StatusServer(ANY_PORT, daemon.metrics, daemon.not_ready, pages={"/page": page})
    await server.start()
    try:
        assert await fetch(server, "/page") == (200, "{}")
        assert await fetch(server, "/page", "HEAD") == (200, "")
        assert (await fetch(server, "/page", "POST"))[0] == 405
        assert (await fetch(server, "/page?busy=1"))[0] == 503
        assert "/page" in (await fetch(server, "/"))[1]
    finally:
        await server.close()


async def test_silent_connections_are_bounded_in_number_and_time(server: StatusServer) -> None:
    host, port = server.address.host, server.address.port
    streams = [await asyncio.open_connection(host, port) for _ in range(5)]
    # Two too many are closed at once, the others when their time is over; none waits for ever.
    async with asyncio.timeout(5):
        for reader, writer in streams:
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
    assert await fetch(server, "/healthz") == (200, "ok\n")


async def test_garbage_gets_an_answer_and_an_end(server: StatusServer) -> None:
    reader, writer = await asyncio.open_connection(server.address.host, server.address.port)
    writer.write(b"\x00\x01 nonsense\r\n\r\n")
    async with asyncio.timeout(5):
        assert b"400" in await reader.read()
    writer.close()


async def test_close_is_quick_with_connections_open(daemon: Daemon) -> None:
    server = StatusServer(ANY_PORT, daemon.metrics, daemon.not_ready)
    await server.start()
    reader, writer = await asyncio.open_connection(server.address.host, server.address.port)
    async with asyncio.timeout(2):
        await server.close()
        await server.close()
        assert await reader.read() == b""
    writer.close()


async def test_a_port_in_use_is_a_clear_error(server: StatusServer, daemon: Daemon) -> None:
    second = StatusServer(server.address, daemon.metrics, daemon.not_ready)
    with pytest.raises(UsageError, match=r"status.listen = 127.0.0.1:\d+: cannot listen"):
        await second.start()
    await second.close()
