"""Hosts that misbehave on the piece plane, and the bounds that hold against them."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from peer.core import effects as fx
from peer.core import events as ev
from peer.shell.transfer import child_side, parent_side, socket_channel
from shoal.wire import frames
from shoal.wire.control import Address
from shoal.wire.errors import Reason
from shoal.wire.ids import HostId
from shoal.wire.limits import KIB, MIB
from tests.shell.pieces_rig import (
    PARENT,
    PIECE_BYTES,
    TASK,
    Rig,
    raw_child,
    raw_parent,
    rig_of,
    with_rig,
)


def hello_of(host_id: str, version: int = 1) -> bytes:
    return frames.encode(frames.Hello(version, version, host_id, b"n" * 16))


@with_rig()
async def test_another_host_than_the_one_meant_is_refused(rig: Rig) -> None:
    failed = await rig.refused(HostId("gamma"))
    assert (failed.host_id, failed.reason) == ("gamma", Reason.PEER_PROTOCOL)
    assert rig.at_child.of(ev.ParentConnected) == []


async def test_a_parent_of_another_version_is_refused_with_both_named(tmp_path: Path) -> None:
    async with rig_of(tmp_path) as rig, raw_parent(hello_of(PARENT, 7)) as address:
        failed = await rig.refused(addresses=(address,))
        assert failed.reason is Reason.PEER_PROTOCOL
        assert "versions 7 to 7" in failed.detail


async def test_a_parent_that_speaks_garbage_is_refused(tmp_path: Path) -> None:
    async with rig_of(tmp_path) as rig, raw_parent(b"\xff" * 64) as address:
        assert (await rig.refused(addresses=(address,))).reason is Reason.PEER_PROTOCOL


async def test_a_parent_lost_right_after_its_hello_is_no_connection(tmp_path: Path) -> None:
    async with rig_of(tmp_path) as rig, raw_parent(hello_of(PARENT), close=True) as address:
        assert (await rig.refused(addresses=(address,))).reason is Reason.PEER_LOST
        assert rig.at_child.of(ev.ParentConnected) == []


async def test_a_parent_without_addresses_or_a_listener_is_lost(tmp_path: Path) -> None:
    async with rig_of(tmp_path) as rig:
        assert (await rig.refused(addresses=())).reason is Reason.PEER_LOST
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            rig.at_child.seen.clear()
            closed_port = Address("127.0.0.1", sock.getsockname()[1])
            assert (await rig.refused(addresses=(closed_port,))).reason is Reason.PEER_LOST


async def test_a_parent_that_says_nothing_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_side, "CONNECT_TIMEOUT_S", 0.05)
    async with rig_of(tmp_path) as rig, raw_parent(b"") as address:
        assert (await rig.refused(addresses=(address,))).reason is Reason.PEER_STALLED


@contextlib.asynccontextmanager
async def silent_hosts(count: int) -> AsyncIterator[list[Address]]:
    """Addresses that accept, and say nothing; checks that every connection is closed again."""
    ended: list[asyncio.Future[bytes]] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ended.append(asyncio.ensure_future(reader.read()))
        await asyncio.wait(ended[-1:])
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    servers = [await asyncio.start_server(accept, "127.0.0.1", 0) for _ in range(count)]
    try:
        yield [Address(*server.sockets[0].getsockname()) for server in servers]
        async with asyncio.timeout(5):
            await asyncio.gather(*ended, return_exceptions=True)
    finally:
        for server in servers:
            server.close()


@pytest.mark.parametrize("secured", [False, True])
async def test_a_silent_address_holds_up_no_other(tmp_path: Path, secured: bool) -> None:
    async with rig_of(tmp_path, secured=secured) as rig, silent_hosts(2) as silent:
        own = rig.port.addresses
        connection_id = await rig.connect(addresses=(*silent, *own, silent[0]))
        rig.open(connection_id)
        await rig.at_child.wait(ev.ParentOpened)
        assert (await rig.at_child.ended(rig.fetch(connection_id))).reason is None
        # One connection, and no news of the others.
        assert len(rig.at_child.of(ev.ParentConnected)) == 1
        assert not rig.at_child.of(ev.ParentConnectFailed)
        assert not rig.at_child.of(ev.ParentClosed)


async def test_an_address_that_passed_to_another_host_is_passed_over(tmp_path: Path) -> None:
    async with rig_of(tmp_path) as rig, raw_parent(hello_of("gamma")) as address:
        await rig.connect(addresses=(address, *rig.port.addresses))
        assert not rig.at_child.of(ev.ParentConnectFailed)


async def test_two_addresses_of_one_host_make_one_connection(tmp_path: Path) -> None:
    async with rig_of(tmp_path) as rig:
        connection_id = await rig.connect(addresses=rig.port.addresses * 16)
        rig.open(connection_id)
        await rig.at_child.wait(ev.ParentOpened)
        assert (await rig.at_child.ended(rig.fetch(connection_id))).reason is None
        assert len(rig.at_child.of(ev.ParentConnected)) == 1


async def test_stopping_while_connecting_closes_the_socket(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        async with rig_of(tmp_path) as rig:
            address = Address(*listener.getsockname())
            rig.parents.connect(connect_to(address))
            accepted, _ = await loop.sock_accept(listener)
            with accepted:
                hello = await loop.sock_recv(accepted, 4096)
                assert hello
                await rig.supervisor.close()
                async with asyncio.timeout(2):
                    assert await loop.sock_recv(accepted, 4096) == b""


def connect_to(address: Address) -> fx.Connect:
    return fx.Connect(host_id=PARENT, addresses=(address,))


@pytest.mark.parametrize(
    ("told", "taken_for"),
    [
        (Reason.NOT_HELD, Reason.NOT_HELD),
        (Reason.UNKNOWN_TASK, Reason.UNKNOWN_TASK),
        (Reason.UNAUTHORIZED, Reason.UNAUTHORIZED),
        (Reason.OVERLOADED, Reason.NOT_HELD),
        (Reason.SHUTTING_DOWN, Reason.NOT_HELD),
        (Reason.PEER_REFUSED, Reason.NOT_HELD),
        (Reason.DISK_FULL, Reason.PEER_PROTOCOL),
        (Reason.DISK_FAILED, Reason.PEER_PROTOCOL),
        (Reason.PEER_CORRUPT, Reason.PEER_PROTOCOL),
        (Reason.PEER_BUSY, Reason.PEER_PROTOCOL),
        (Reason.CANCELLED, Reason.PEER_PROTOCOL),
        (Reason.ORIGIN_NOT_FOUND, Reason.PEER_PROTOCOL),
    ],
)
async def test_a_parent_speaks_for_itself_alone(
    tmp_path: Path, told: Reason, taken_for: Reason
) -> None:
    """A reason from another host must never pass for a failure of this one."""
    async with rig_of(tmp_path) as rig:
        rig.serve = lambda number, piece, connection_id: rig.port.reject(
            fx.SendReject(connection_id=connection_id, child_request=number, reason=told)
        )
        connection_id = await rig.opened()
        assert (await rig.at_child.ended(rig.fetch(connection_id))).reason is taken_for


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        frames.encode(frames.Close(1)),  # before hello
        hello_of("beta") * 2,
        hello_of("beta") + frames.encode(frames.Busy(1, 1)),
        hello_of("beta", 9),
    ],
)
async def test_a_child_that_breaks_the_protocol_harms_itself_alone(
    tmp_path: Path, data: bytes
) -> None:
    async with rig_of(tmp_path) as rig:
        connection_id = await rig.opened()
        async with raw_child(rig.port.addresses[0]) as child:
            child.writer.write(data)
            await child.ended()
        assert (await rig.at_child.ended(rig.fetch(connection_id))).reason is None
        assert rig.at_child.of(ev.ParentClosed) == []


async def test_a_child_of_another_version_is_told_ours(tmp_path: Path) -> None:
    async with rig_of(tmp_path) as rig, raw_child(rig.port.addresses[0]) as child:
        child.hello(version=9)
        answer = await child.frame()
        assert isinstance(answer, frames.Hello)
        assert (answer.version_min, answer.version_max) == (1, 1)
        await child.ended()


async def test_a_child_that_never_says_hello_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parent_side, "HELLO_TIMEOUT_S", 0.05)
    async with rig_of(tmp_path) as rig, raw_child(rig.port.addresses[0]) as child:
        await child.ended()
        await rig.at_parent.wait(ev.ChildGone)


async def test_the_port_takes_no_more_connections_than_its_cap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parent_side, "CONNECTIONS_MAX", 1)
    async with rig_of(tmp_path) as rig:
        connection_id = await rig.opened()
        async with raw_child(rig.port.addresses[0]) as child:
            await child.ended()
        assert (await rig.at_child.ended(rig.fetch(connection_id))).reason is None


async def test_a_child_that_never_reads_is_dropped_and_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_channel, "STALL_TIMEOUT_S", 0.2)
    async with (
        rig_of(tmp_path, piece_bytes=8 * MIB) as rig,
        raw_child(rig.port.addresses[0]) as child,
    ):
        child.hello()
        child.send(frames.Open(1, TASK, b""))
        child.send(frames.Request(1, tuple((number, number) for number in range(4))))
        await rig.at_parent.wait(ev.ChildRequested)
        child.writer.transport.pause_reading()  # type: ignore[attr-defined]
        connection_id = await rig.opened()
        assert (await rig.at_child.ended(rig.fetch(connection_id))).reason is None
        await rig.at_parent.wait(ev.ChildGone)
        lost = [end for end in rig.at_parent.of(ev.ServeEnded) if end.reason is not None]
        assert lost
        assert {end.reason for end in lost} == {Reason.PEER_LOST}
        assert rig.at_child.of(ev.ParentClosed) == []


async def test_a_defect_while_a_piece_is_kept_ends_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig_of(tmp_path) as rig:
        failed: asyncio.Queue[BaseException] = asyncio.Queue()
        monkeypatch.setattr(rig.supervisor, "fail", failed.put_nowait)

        def broken(*_: object) -> None:
            raise ZeroDivisionError("a programmer's error")

        monkeypatch.setattr(rig.target, "write_piece", broken)
        rig.fetch(await rig.opened())
        assert isinstance(await asyncio.wait_for(failed.get(), 5), ZeroDivisionError)
        assert rig.buffers.used_bytes == 0
        assert rig.at_child.of(ev.FetchEnded) == []


@pytest.mark.slow
@with_rig(pieces=16, upload_bytes_s=2 * MIB)
async def test_the_upload_rate_holds(rig: Rig) -> None:
    await check_rate(rig)


@pytest.mark.slow
@with_rig(pieces=16, download_bytes_s=2 * MIB)
async def test_the_download_rate_holds(rig: Rig) -> None:
    await check_rate(rig)


async def check_rate(rig: Rig) -> None:
    """Half a second's worth of a rate of 2 MiB/s, its burst and what may be on its way."""
    connection_id = await rig.opened()
    for piece in range(16):
        rig.fetch(connection_id, piece)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.5):
            await rig.at_child.wait(ev.FetchEnded, 16)
    assert 3 * PIECE_BYTES <= rig.parents.received_bytes <= 6 * PIECE_BYTES


@pytest.mark.slow
@with_rig(piece_bytes=1536 * KIB, upload_bytes_s=1536 * KIB)
async def test_a_slow_parent_is_told_from_a_stalled_one(rig: Rig) -> None:
    connection_id = await rig.opened()
    request_id = rig.fetch(connection_id)
    active = await rig.at_child.wait(ev.ParentActive)
    assert active.connection_id == connection_id
    assert rig.at_child.of(ev.FetchEnded) == []
    assert (await rig.at_child.ended(request_id)).reason is None
    assert len(rig.at_child.of(ev.ParentActive)) <= 2
