"""Control streams over real gRPC on loopback: sessions, limits, ends."""

import asyncio
import logging
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc
import pytest
import uvloop

from scheduler.core.events import AnyEvent, FromHost, HostConnected, HostDisconnected
from scheduler.shell.server import ControlServer, ServerLimits
from shoal.runtime.clock import MonotonicClock
from shoal.runtime.config_values import Endpoint, SecretFile
from shoal.runtime.control_codec import scheduler_entry
from shoal.runtime.grpc_tls import grpc_channel_credentials
from shoal.runtime.sections import TlsSection
from shoal.wire.control import Leave, SourceFailed, StatWanted
from shoal.wire.errors import Reason, UsageError
from shoal.wire.ids import CollectionId, SourceId
from tests.shell.control_rig import Events, Host, Wire, connected, hello

ANY_PORT = Endpoint("127.0.0.1", 0)
CERTIFICATES = Path(__file__).parent.parent / "unit" / "runtime" / "certificates"
COLLECTION = CollectionId("c" * 64)

Serve = Callable[..., Coroutine[Any, Any, ControlServer]]


def stat_wanted(digit: str) -> StatWanted:
    return StatWanted(source_id=SourceId(digit * 64))


def large(size_bytes: int) -> bytes:
    """One entry of about that size."""
    return scheduler_entry(
        SourceFailed(
            collection_id=COLLECTION,
            source_id=SourceId("5" * 64),
            reason=Reason.ORIGIN_FAILED,
            detail="x" * size_bytes,
        )
    )


def tls(host: str, ca: str = "trusted") -> TlsSection:
    return TlsSection(
        certificate=CERTIFICATES / f"{host}.pem",
        key=SecretFile(CERTIFICATES / f"{host}.key"),
        ca=CERTIFICATES / f"{ca}-ca.pem",
    )


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
async def serve(events: Events) -> AsyncIterator[Serve]:
    servers: list[ControlServer] = []

    async def start(section: TlsSection | None = None, **limits: Any) -> ControlServer:
        server = ControlServer(
            listen=ANY_PORT,
            tls=section or TlsSection(),
            clock=MonotonicClock(),
            post=events.post,
            limits=ServerLimits(**limits),
        )
        await server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        await server.close()


async def test_a_stream_from_hello_to_goodbye(serve: Serve, events: Events) -> None:
    server = await serve()
    async with connected(server.address) as host:
        await host.send(hello("h1"), Leave(collection_id=COLLECTION))
        received = await events.wait(FromHost)
        assert received.messages == (hello("h1"), Leave(collection_id=COLLECTION))
        assert events.of(HostConnected)[0].session == received.session
        assert events.of(HostConnected)[0].subject == ""
        server.send(received.session, [scheduler_entry(stat_wanted("1"))])
        assert await host.read() == (stat_wanted("1"),)
        await host.call.done_writing()
        assert await host.ended() == (grpc.StatusCode.OK, "")
    assert (await events.wait(HostDisconnected)).session == received.session
    assert server.session_count == 0
    assert [type(event) for event in events.seen] == [HostConnected, FromHost, HostDisconnected]


async def test_what_was_sent_is_not_kept(serve: Serve, events: Events) -> None:
    server = await serve()
    async with connected(server.address) as host:
        await host.send(hello())
        session = (await events.wait(FromHost)).session
        entry = large(100_000)
        held = sys.getrefcount(entry)
        server.send(session, [entry])
        await host.read()
        for _ in range(500):
            if sys.getrefcount(entry) == held:
                return
            await asyncio.sleep(0.01)
        pytest.fail("something holds it")


async def test_messages_arrive_in_order_however_many(serve: Serve, events: Events) -> None:
    server = await serve()
    async with connected(server.address) as host:
        await host.send(hello())
        session = (await events.wait(FromHost)).session
        sent = [stat_wanted(f"{number % 16:x}") for number in range(2_000)]
        for first in range(0, 2_000, 10):
            server.send(session, [scheduler_entry(each) for each in sent[first : first + 10]])
        received: list[Any] = []
        while len(received) < len(sent):
            batch = await host.read()
            assert batch is not None
            received += batch
        assert received == sent


async def test_sessions_are_never_numbered_twice(serve: Serve, events: Events) -> None:
    server = await serve()
    for count in range(1, 4):
        async with connected(server.address) as host:
            await host.send(hello())
            await events.wait(FromHost, count)
        await events.wait(HostDisconnected, count)
    assert len({event.session for event in events.of(HostConnected)}) == 3


async def test_a_host_that_cancels_is_gone(serve: Serve, events: Events) -> None:
    server = await serve()
    async with connected(server.address) as host:
        await host.send(hello())
        await events.wait(FromHost)
        host.call.cancel()
        await events.wait(HostDisconnected)


async def test_a_cut_connection_is_noticed(serve: Serve, events: Events) -> None:
    server = await serve()
    async with Wire(server.address) as wire, connected(wire.address) as host:
        await host.send(hello())
        await events.wait(FromHost)
        wire.cut()
        await events.wait(HostDisconnected)
        assert (await host.ended())[0] is grpc.StatusCode.UNAVAILABLE


@pytest.mark.slow
async def test_a_machine_that_vanished_is_noticed(serve: Serve, events: Events) -> None:
    server = await serve(keepalive_ms=1_000, keepalive_timeout_ms=500)
    async with Wire(server.address) as wire, connected(wire.address) as host:
        await host.send(hello())
        await events.wait(FromHost)
        wire.go_dead()
        await events.wait(HostDisconnected)


async def test_a_silent_host_is_cut(serve: Serve, events: Events) -> None:
    server = await serve(first_message_s=0.05)
    async with connected(server.address) as host:
        code, details = await host.ended()
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert details == "timeout: no hello in time"
    await events.wait(HostDisconnected)
    assert server.counters.silent == 1


async def test_a_host_that_spoke_may_be_silent(serve: Serve, events: Events) -> None:
    server = await serve(first_message_s=0.05)
    async with connected(server.address) as host, connected(server.address) as silent:
        await host.send(hello())
        await events.wait(FromHost)
        # The silent one's end proves that more than the time has passed.
        await silent.ended()
        server.send(events.of(FromHost)[0].session, [scheduler_entry(stat_wanted("1"))])
        assert await host.read() == (stat_wanted("1"),)


@pytest.mark.parametrize("data", [b"\xff\xff", b"\x0a\x05\x1a\x03\x0a\x01x"])
async def test_a_host_that_breaks_the_protocol_is_cut(
    serve: Serve, events: Events, data: bytes
) -> None:
    server = await serve()
    async with connected(server.address) as host:
        await host.send_bytes(data)
        code, details = await host.ended()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith("peer-protocol: ")
    await events.wait(HostDisconnected)
    assert server.counters.protocol_errors == 1
    assert not events.of(FromHost)


async def test_messages_of_a_newer_version_are_counted(serve: Serve, events: Events) -> None:
    server = await serve()
    async with connected(server.address) as host:
        await host.send_bytes(b"\x0a\x05\x9a\x06\x02hi")
        await host.send(hello())
        assert (await events.wait(FromHost)).messages == (hello(),)
    assert server.counters.unknown_messages == 1


async def test_a_message_beyond_the_limit_ends_the_stream(serve: Serve, events: Events) -> None:
    server = await serve(batch_bytes_max=10_000)
    async with connected(server.address) as host:
        await host.send_bytes(b"\x0a\x00" * 6_000)
        assert (await host.ended())[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    await events.wait(HostDisconnected)


async def test_a_slow_reader_is_closed_and_others_are_not(serve: Serve, events: Events) -> None:
    server = await serve(queue_bytes_max=1_000_000)
    async with connected(server.address) as slow, connected(server.address) as quick:
        await slow.send(hello("slow"))
        slow_session = (await events.wait(FromHost)).session
        await quick.send(hello("quick"))
        quick_session = (await events.wait(FromHost, 2)).session
        entry = large(100_000)
        for _ in range(1_000):
            server.send(slow_session, [entry])
            server.send(quick_session, [entry])
            assert await quick.read() is not None
            if server.counters.overflows:
                break
        assert (await events.wait(HostDisconnected)).session == slow_session
        code, details = await slow.ended()
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert details == "overloaded: the host reads too slowly"
        server.send(slow_session, [entry])
        server.send(quick_session, [scheduler_entry(stat_wanted("1"))])
        assert await quick.read() == (stat_wanted("1"),)


async def test_a_message_that_fits_nowhere_ends_its_session_alone(
    serve: Serve, events: Events
) -> None:
    server = await serve(batch_bytes_max=2_000)
    async with connected(server.address) as host:
        await host.send(hello())
        session = (await events.wait(FromHost)).session
        server.send(session, [large(2_000)])
        assert (await host.ended())[0] is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_what_was_joined_is_sent_in_batches_that_fit(serve: Serve, events: Events) -> None:
    server = await serve(batch_bytes_max=2_000)
    async with connected(server.address) as host:
        await host.send(hello())
        session = (await events.wait(FromHost)).session
        sent = [stat_wanted(f"{number % 16:x}") for number in range(100)]
        server.send(session, [b"".join(scheduler_entry(each) for each in sent)])
        received: list[Any] = []
        while len(received) < len(sent):
            batch = await host.read()
            assert batch is not None
            received += batch
        assert received == sent


async def test_what_was_queued_before_a_close_still_arrives(serve: Serve, events: Events) -> None:
    server = await serve()
    async with connected(server.address) as host:
        await host.send(hello())
        session = (await events.wait(FromHost)).session
        server.send(session, [scheduler_entry(stat_wanted("1"))])
        server.close_session(session, Reason.UNAUTHORIZED, "not you")
        server.close_session(session, Reason.OVERLOADED, "the first word counts")
        server.send(session, [scheduler_entry(stat_wanted("2"))])
        assert await host.read() == (stat_wanted("1"),)
        assert await host.ended() == (grpc.StatusCode.PERMISSION_DENIED, "unauthorized: not you")


async def test_more_sessions_than_allowed_are_turned_away(serve: Serve, events: Events) -> None:
    server = await serve(sessions_max=1)
    async with connected(server.address) as first:
        await first.send(hello())
        await events.wait(FromHost)
        async with connected(server.address) as second:
            code, details = await second.ended()
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert details.startswith("overloaded")
    assert len(events.of(HostConnected)) == 1


async def test_stopping_is_quick_and_says_why(serve: Serve, events: Events) -> None:
    server = await serve()
    hosts = [Host(server.address) for _ in range(5)]
    for host in hosts:
        await host.send(hello())
    await events.wait(FromHost, 5)
    # One of them does not read: it must not delay the others' end.
    server.send(events.of(FromHost)[0].session, [large(1_000_000)] * 4)
    started = time.monotonic()
    await server.close()
    await server.close()
    assert time.monotonic() - started < 1.0
    assert len(events.of(HostDisconnected)) == 5
    for host in hosts[1:]:
        assert (await host.ended())[0] is grpc.StatusCode.UNAVAILABLE
    for host in hosts:
        await host.close()


async def test_a_port_in_use_is_a_clear_error(serve: Serve, events: Events) -> None:
    server = await serve()
    second = ControlServer(
        listen=server.address, tls=TlsSection(), clock=MonotonicClock(), post=events.post
    )
    with pytest.raises(UsageError, match=r"listen = 127.0.0.1:\d+: cannot listen there"):
        await second.start()
    await second.close()


async def test_hosts_that_come_and_go_leave_nothing(
    serve: Serve, events: Events, caplog: pytest.LogCaptureFixture
) -> None:
    """Streams cut at every moment: before the first word, in mid-write, after the end."""
    caplog.set_level(logging.WARNING)
    server = await serve()

    async def come_and_go(number: int) -> None:
        async with connected(server.address) as host:
            if number % 4 == 0:
                return
            await host.send(hello(f"h{number}"))
            if number % 4 == 1:
                return
            if number % 4 == 2:
                await host.call.done_writing()
                await host.ended()
                return
            await host.read()

    def talk(event: AnyEvent) -> None:
        if isinstance(event, FromHost):
            server.send(event.session, [large(300_000)] * 3)

    events.hook = talk
    for round_number in range(0, 40, 8):
        numbers = range(round_number, round_number + 8)
        await asyncio.gather(*(come_and_go(number) for number in numbers))
    connects = len(events.of(HostConnected))
    assert connects >= 20
    await events.wait(HostDisconnected, connects)
    assert server.session_count == 0
    assert [record.getMessage() for record in caplog.records] == []


def test_the_daemons_own_event_loop_serves_as_well(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)

    async def scenario() -> None:
        events = Events()
        server = ControlServer(
            listen=ANY_PORT, tls=TlsSection(), clock=MonotonicClock(), post=events.post
        )
        await server.start()
        async with connected(server.address) as first, connected(server.address) as second:
            await first.send(hello())
            session = (await events.wait(FromHost)).session
            await second.send(hello())
            await events.wait(FromHost, 2)
            server.send(session, [scheduler_entry(stat_wanted("1")), large(500_000)])
            batch = await first.read()
            assert batch is not None
            assert batch[0] == stat_wanted("1")
            first.call.cancel()
            await events.wait(HostDisconnected)
            await server.close()
            assert (await second.ended())[0] is grpc.StatusCode.UNAVAILABLE

    uvloop.run(scenario())
    assert [record.getMessage() for record in caplog.records] == []


# ---------------------------------------------------------------- who may connect


async def test_the_certificate_names_the_host(serve: Serve, events: Events) -> None:
    server = await serve(tls("alpha"))
    async with connected(server.address, grpc_channel_credentials(tls("beta"))) as host:
        await host.send(hello())
        await events.wait(FromHost)
    assert events.of(HostConnected)[0].subject == "beta"


async def test_a_certificate_without_a_name_is_refused(serve: Serve, events: Events) -> None:
    server = await serve(tls("alpha"))
    async with connected(server.address, grpc_channel_credentials(tls("nameless"))) as host:
        assert (await host.ended())[0] is grpc.StatusCode.UNAUTHENTICATED
    assert not events.seen


@pytest.mark.parametrize("stranger", ["another CA", "plain text"])
async def test_strangers_get_nowhere(serve: Serve, events: Events, stranger: str) -> None:
    server = await serve(tls("alpha"))
    credentials = None
    if stranger == "another CA":
        credentials = grpc_channel_credentials(tls("mallory"))
    async with connected(server.address, credentials) as host:
        assert (await host.ended())[0] is grpc.StatusCode.UNAVAILABLE
    assert not events.seen
