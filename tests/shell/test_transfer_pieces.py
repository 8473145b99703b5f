"""Pieces between two hosts, over real sockets, on both event loops, in plaintext and under TLS."""

import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from peer.core import effects as fx
from peer.core import events as ev
from peer.shell.store.errors import StoreError
from shoal.runtime.tasks import Offload
from shoal.wire.control import Address
from shoal.wire.digest import piece_digest, swarm_proof
from shoal.wire.errors import Reason
from shoal.wire.ids import ConnectionId, HostId, RequestId
from tests.shell.transfer_rig import (
    LEASE,
    OTHER_TASK,
    PIECE_BYTES,
    TASK,
    TOKEN,
    Certificates,
    Child,
    Parent,
    on_both_loops,
    some_content,
    turns_until,
)

CONTENT = some_content(9 * PIECE_BYTES + 12_345)


@pytest.fixture(scope="module")
def certificates() -> Certificates:
    """Making keys takes time: one authority for all tests."""
    return Certificates()


Contexts = tuple[ssl.SSLContext | None, ssl.SSLContext | None]


@pytest.fixture(params=["plain", "tls"])
def contexts(request: pytest.FixtureRequest, certificates: Certificates) -> Contexts:
    """TLS contexts of the parent and the child, or none."""
    if request.param == "plain":
        return None, None
    return certificates.server("parent"), certificates.client("child")


@on_both_loops
async def test_a_whole_content_moves(tmp_path: Path, contexts: Contexts) -> None:
    with ThreadPoolExecutor(2) as threads:
        offload = Offload(threads)
        async with (
            Parent(tmp_path / "p", CONTENT, ssl_context=contexts[0]) as parent,
            Child(tmp_path / "c", CONTENT, ssl_context=contexts[1], offload=offload) as child,
        ):
            connection = await child.connect(parent.address)
            opened = await child.open(connection)
            assert (opened.task_id, opened.epoch, opened.held) == (TASK, 1, parent.held)
            for piece in range(child.piece_count):
                child.fetch(connection, piece)
            ends = await child.core.wait(ev.FetchEnded, child.piece_count)
            assert [end.reason for end in ends] == [None] * child.piece_count
            assert child.store.content() == CONTENT
            digests = {end.digest for end in ends}
            assert digests == {piece_digest("xxh3-128", child.piece(n)) for n in range(10)}
            assert {(end.lease_number, end.epoch) for end in ends} == {(LEASE, 1)}
            assert child.store.written[TASK, 3] == ev.PieceRecord(
                piece_digest("xxh3-128", child.piece(3)), LEASE, read_here=False
            )
            served = await parent.core.wait(ev.ServeEnded, child.piece_count)
            assert [end.reason for end in served] == [None] * child.piece_count
            assert parent.port.sent_bytes == child.connections.received_bytes == len(CONTENT)


@on_both_loops
async def test_many_pieces_over_several_connections(tmp_path: Path, contexts: Contexts) -> None:
    content = some_content(40 * PIECE_BYTES)
    with ThreadPoolExecutor(2) as threads:
        async with (
            Parent(tmp_path / "1", content, ssl_context=contexts[0]) as one,
            Parent(tmp_path / "2", content, ssl_context=contexts[0]) as two,
            Parent(tmp_path / "3", content, ssl_context=contexts[0]) as three,
            Child(
                tmp_path / "c",
                content,
                ssl_context=contexts[1],
                offload=Offload(threads),
                buffers_bytes=6 * PIECE_BYTES,
            ) as child,
        ):
            connections = []
            for parent in (one, two, three):
                connections.append(await child.connect(parent.address))
                await child.open(connections[-1])
            for piece in range(child.piece_count):
                child.fetch(connections[piece % 3], piece)
            ends = await child.core.wait(ev.FetchEnded, child.piece_count)
            assert {end.reason for end in ends} == {None}
            assert child.store.content() == content
            assert child.buffers.allocated_bytes <= 6 * PIECE_BYTES


@on_both_loops
async def test_blake3_pieces(tmp_path: Path) -> None:
    async with (
        Parent(tmp_path / "p", CONTENT, serving=False) as parent,
        Child(tmp_path / "c", CONTENT) as child,
    ):

        def serve(event: ev.ChildRequested) -> None:
            ((request, piece),) = event.requests
            digest = piece_digest("blake3", child.piece(piece))
            parent.port.serve(
                fx.ServePiece(
                    connection_id=event.connection_id,
                    child_request=request,
                    task_id=TASK,
                    piece=piece,
                    offset_bytes=piece * PIECE_BYTES,
                    length_bytes=PIECE_BYTES,
                    record=ev.PieceRecord(digest, LEASE, read_here=True),
                    epoch=1,
                )
            )

        parent.core.react[ev.ChildRequested] = serve
        connection = await child.connect(parent.address)
        await child.open(connection)
        assert await child.reason(child.fetch(connection, 2, algorithm="blake3")) is None
        assert child.store.written[TASK, 2].digest == piece_digest("blake3", child.piece(2))


@on_both_loops
async def test_the_parent_can_check_who_asks(tmp_path: Path) -> None:
    async with Parent(tmp_path / "p", CONTENT) as parent, Child(tmp_path / "c", CONTENT) as child:
        await child.open(await child.connect(parent.address))
        (opened,) = parent.core.all(ev.ChildOpened)
        assert opened.host_id == "child"
        assert opened.proof == swarm_proof(TOKEN, opened.nonce, "child", TASK)
        (connected,) = child.core.all(ev.ParentConnected)
        assert 0 < connected.round_trip_ns < 5_000_000_000


@on_both_loops
async def test_both_families_and_a_dead_address(tmp_path: Path) -> None:
    listen = (("127.0.0.1", 0), ("::1", 0))
    async with (
        Parent(tmp_path / "p", CONTENT, listen=listen) as parent,
        Child(tmp_path / "c", CONTENT) as child,
    ):
        four, six = parent.port.addresses
        assert (four.ip, six.ip) == ("127.0.0.1", "::1")
        dead = Address("127.0.0.1", 1)
        for addresses in ((four,), (six,), (dead, six), (dead, four)):
            connection = await child.connect(*addresses)
            await child.open(connection)
        assert len(parent.port) == 4


@on_both_loops
async def test_news_reaches_the_child_in_order(tmp_path: Path) -> None:
    async with Parent(tmp_path / "p", CONTENT) as parent, Child(tmp_path / "c", CONTENT) as child:
        parent.held = 0b11
        connection = await child.open(await child.connect(parent.address))
        (opened,) = parent.core.all(ev.ChildOpened)
        to = (opened.connection_id, ConnectionId(99))
        parent.port.announce(fx.Announce(task_id=TASK, new=0b1011_0000, connection_ids=to))
        parent.port.withdraw(fx.Withdraw(task_id=TASK, gone=0b1_0001, connection_ids=to))
        parent.port.announce(fx.Announce(task_id=OTHER_TASK, new=1, connection_ids=to))
        parent.port.refuse(
            fx.RefuseChild(connection_id=to[0], task_id=TASK, reason=Reason.NOT_HELD)
        )
        (refused,) = await child.core.wait(ev.ParentRefused)
        (have,) = child.core.all(ev.ParentHave)
        (withdrew,) = child.core.all(ev.ParentWithdrew)
        assert connection.held == 0b11
        assert (have.new, withdrew.gone) == (0b1011_0000, 0b1_0001)
        assert refused.reason is Reason.NOT_HELD
        # The channel may be opened again.
        await child.open(connection.connection_id)


@on_both_loops
async def test_a_refused_task_and_requests_on_their_way(tmp_path: Path) -> None:
    async with (
        Parent(tmp_path / "p", CONTENT, serving=False) as parent,
        Child(tmp_path / "c", CONTENT) as child,
    ):
        connection = await child.connect(parent.address)
        await child.open(connection)
        (opened,) = parent.core.all(ev.ChildOpened)
        # This request crosses the refusal on the way; the other waits in the parent's core.
        early = child.fetch(connection, 0)
        await parent.core.wait(ev.ChildRequested)
        late = child.fetch(connection, 1)
        refusal = fx.RefuseChild(
            connection_id=opened.connection_id, task_id=TASK, reason=Reason.UNAUTHORIZED
        )
        parent.port.refuse(refusal)
        assert await child.reason(early) is Reason.UNAUTHORIZED
        assert await child.reason(late) is Reason.PEER_REFUSED
        assert await child.reason(child.fetch(connection, 2)) is Reason.PEER_REFUSED
        assert not child.core.all(ev.ParentClosed)


@on_both_loops
async def test_busy_and_rejected(tmp_path: Path) -> None:
    async with (
        Parent(tmp_path / "p", CONTENT, serving=False) as parent,
        Child(tmp_path / "c", CONTENT) as child,
    ):
        connection = await child.connect(parent.address)
        await child.open(connection)
        busy, rejected = child.fetch(connection, 0), child.fetch(connection, 1)
        (asked,) = await parent.core.wait(ev.ChildRequested)
        assert asked.requests == ((busy, 0), (rejected, 1)), "one frame for one turn of the loop"
        answer = fx.SendBusy(
            connection_id=asked.connection_id, child_request=busy, retry_after_ms=70
        )
        parent.port.busy(answer)
        parent.port.busy(answer)  # Answered already: nothing more is sent.
        parent.port.reject(
            fx.SendReject(
                connection_id=asked.connection_id,
                child_request=rejected,
                reason=Reason.UNKNOWN_TASK,
            )
        )
        end = await child.ended(busy)
        assert (end.reason, end.retry_after_ms) == (Reason.PEER_BUSY, 70)
        assert await child.reason(rejected) is Reason.UNKNOWN_TASK
        # A ServePiece that comes after all is answered, and nothing is sent.
        parent.serve(asked.connection_id, busy, 0)
        (served,) = parent.core.all(ev.ServeEnded)
        assert served.reason is Reason.CANCELLED


@on_both_loops
async def test_a_cancelled_request_brings_nothing_into_the_store(
    tmp_path: Path, contexts: Contexts
) -> None:
    async with (
        Parent(tmp_path / "p", CONTENT, serving=False, ssl_context=contexts[0]) as parent,
        Child(tmp_path / "c", CONTENT, ssl_context=contexts[1]) as child,
    ):
        connection = await child.connect(parent.address)
        await child.open(connection)
        never_sent = child.fetch(connection, 0)
        child.cancel(never_sent)
        queued = child.fetch(connection, 1)
        await parent.core.wait(ev.ChildRequested)
        child.cancel(queued)
        await parent.core.wait(ev.ChildCancelled)
        late = child.fetch(connection, 2)
        (_, asked) = await parent.core.wait(ev.ChildRequested, 2)
        # The piece and the cancel cross each other: it arrives whole and is thrown away.
        parent.serve(asked.connection_id, late, 2)
        child.cancel(late)
        after = child.fetch(connection, 3)
        (*_, asked) = await parent.core.wait(ev.ChildRequested, 3)
        parent.serve(asked.connection_id, after, 3)
        assert await child.reason(after) is None
        for request_id in (never_sent, queued, late):
            assert await child.reason(request_id) is Reason.CANCELLED
        assert list(child.store.written) == [(TASK, 3)]
        # A cancel of what ended already, or never was, does nothing.
        child.cancel(after)
        child.cancel(RequestId(12345))


@on_both_loops
async def test_cancelled_while_it_waits_for_memory(tmp_path: Path) -> None:
    async with (
        Parent(tmp_path / "p", CONTENT) as parent,
        Child(tmp_path / "c", CONTENT, buffers_bytes=PIECE_BYTES) as child,
    ):
        connection = await child.connect(parent.address)
        await child.open(connection)
        hostage = await child.buffers.acquire(PIECE_BYTES)
        waiting, other = child.fetch(connection, 0), child.fetch(connection, 1)
        await turns_until(lambda: child.buffers.waiting == 1)
        child.cancel(waiting)
        assert child.end_of(other) is None
        hostage.release()
        assert await child.reason(waiting) is Reason.CANCELLED
        assert await child.reason(other) is None
        assert list(child.store.written) == [(TASK, 1)]


@on_both_loops
async def test_no_memory_pauses_one_connection_until_there_is_some(tmp_path: Path) -> None:
    async with (
        Parent(tmp_path / "p", CONTENT) as parent,
        Child(tmp_path / "c", CONTENT, buffers_bytes=PIECE_BYTES) as child,
    ):
        connection = await child.connect(parent.address)
        await child.open(connection)
        hostage = await child.buffers.acquire(PIECE_BYTES)
        for piece in range(child.piece_count):
            child.fetch(connection, piece)
        await turns_until(lambda: child.buffers.waiting == 1)
        assert not child.core.all(ev.FetchEnded)
        hostage.release()
        await child.core.wait(ev.FetchEnded, child.piece_count)
        assert child.store.content() == CONTENT


@on_both_loops
async def test_what_is_being_stored_ends_before_its_connection(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as threads:
        async with (
            Parent(tmp_path / "p", CONTENT) as parent,
            Child(tmp_path / "c", CONTENT, offload=Offload(threads)) as child,
        ):
            connection = await child.connect(parent.address)
            await child.open(connection)
            child.store.gate = threading.Event()
            storing = child.fetch(connection, 0)
            await parent.core.wait(ev.ServeEnded)
            await turns_until(lambda: child.store.writing)
            child.cancel(storing)  # Too late: it ends by itself.
            child.connections.disconnect(fx.Disconnect(connection_id=connection))
            after = child.fetch(connection, 1)
            assert await child.reason(after) is Reason.PEER_LOST
            assert not child.core.all(ev.ParentClosed)
            child.store.gate.set()
            (closed,) = await child.core.wait(ev.ParentClosed)
            assert closed.reason is Reason.CANCELLED
            assert await child.reason(storing) is None
            assert child.core.index(ev.ParentClosed) == len(child.core.events) - 1


@on_both_loops
async def test_closing_a_channel_ends_its_requests(tmp_path: Path) -> None:
    async with (
        Parent(tmp_path / "p", CONTENT, serving=False) as parent,
        Child(tmp_path / "c", CONTENT) as child,
    ):
        connection = await child.connect(parent.address)
        await child.open(connection)
        asked = child.fetch(connection, 0)
        await parent.core.wait(ev.ChildRequested)
        unsent = child.fetch(connection, 1)
        child.connections.close_channel(fx.CloseChannel(connection_id=connection, task_id=TASK))
        assert await child.reason(asked) is Reason.CANCELLED
        assert await child.reason(unsent) is Reason.CANCELLED
        (closed,) = await parent.core.wait(ev.ChildClosedTask)
        assert closed.task_id == TASK
        (cancelled,) = parent.core.all(ev.ChildCancelled)
        assert cancelled.requests == (asked,)
        # News for the closed channel that crossed it is no offence, and it can be opened again.
        await child.open(connection)
        assert not child.core.all(ev.ParentClosed)


@on_both_loops
async def test_a_full_disk_is_told(tmp_path: Path) -> None:
    async with Parent(tmp_path / "p", CONTENT) as parent, Child(tmp_path / "c", CONTENT) as child:
        connection = await child.connect(parent.address)
        await child.open(connection)
        child.store.broken = StoreError(Reason.DISK_FULL, "no space")
        end = await child.ended(child.fetch(connection, 0))
        assert (end.reason, end.detail) == (Reason.DISK_FULL, "no space")
        child.store.broken = None
        assert await child.reason(child.fetch(connection, 0)) is None


@on_both_loops
async def test_every_effect_for_a_dead_connection_is_answered(tmp_path: Path) -> None:
    async with Parent(tmp_path / "p", CONTENT) as parent, Child(tmp_path / "c", CONTENT) as child:
        connection = await child.connect(parent.address)
        await child.open(connection)
        (opened,) = parent.core.all(ev.ChildOpened)
        child.connections.disconnect(fx.Disconnect(connection_id=connection))
        (closed,) = child.core.all(ev.ParentClosed)
        assert closed.reason is Reason.CANCELLED
        assert await child.reason(child.fetch(connection, 0)) is Reason.PEER_LOST
        child.connections.disconnect(fx.Disconnect(connection_id=connection))
        child.ask_to_open(connection)
        child.connections.close_channel(fx.CloseChannel(connection_id=connection, task_id=TASK))
        await parent.core.wait(ev.ChildGone)
        to = opened.connection_id
        parent.serve(to, 1, 0)
        (served,) = parent.core.all(ev.ServeEnded)
        assert served.reason is Reason.PEER_LOST
        parent.port.busy(fx.SendBusy(connection_id=to, child_request=1, retry_after_ms=1))
        parent.port.reject(fx.SendReject(connection_id=to, child_request=1, reason=Reason.NOT_HELD))
        parent.port.refuse(fx.RefuseChild(connection_id=to, task_id=TASK, reason=Reason.NOT_HELD))
        parent.port.accept(fx.AcceptChild(connection_id=to, task_id=TASK, epoch=1, held=1))
        parent.port.drop(fx.DropChild(connection_id=to, reason=Reason.PEER_PROTOCOL))


@on_both_loops
async def test_shutting_down_answers_everything(tmp_path: Path) -> None:
    async with (
        Parent(tmp_path / "p", CONTENT, serving=False) as parent,
        Child(tmp_path / "c", CONTENT) as child,
    ):
        connection = await child.connect(parent.address)
        await child.open(connection)
        request = child.fetch(connection, 0)
        await parent.core.wait(ev.ChildRequested)
        child.connections.connect(fx.Connect(host_id=HostId("x"), addresses=(parent.address,)))
        await child.connections.close()
        assert await child.reason(request) is Reason.PEER_LOST
        (failed,) = child.core.all(ev.ParentConnectFailed)
        assert failed.reason is Reason.SHUTTING_DOWN
        (closed,) = child.core.all(ev.ParentClosed)
        assert closed.reason is Reason.SHUTTING_DOWN
        child.connections.connect(fx.Connect(host_id=HostId("y"), addresses=(parent.address,)))
        assert len(child.core.all(ev.ParentConnectFailed)) == 2


@on_both_loops
async def test_tls_shows_who_a_host_is(tmp_path: Path, certificates: Certificates) -> None:
    impostor = certificates.server("somebody-else")
    async with (
        Parent(tmp_path / "p", CONTENT, ssl_context=impostor) as parent,
        Child(tmp_path / "c", CONTENT, ssl_context=certificates.client("child")) as child,
    ):
        child.connections.connect(fx.Connect(host_id=HostId("parent"), addresses=(parent.address,)))
        (failed,) = await child.core.wait(ev.ParentConnectFailed)
        assert failed.reason is Reason.PEER_PROTOCOL
        assert "certificate of 'somebody-else'" in failed.detail


@on_both_loops
async def test_a_child_shows_its_own_certificate(
    tmp_path: Path, certificates: Certificates
) -> None:
    async with (
        Parent(tmp_path / "p", CONTENT, ssl_context=certificates.server("parent")) as parent,
        Child(tmp_path / "c", CONTENT, ssl_context=certificates.client("thief")) as child,
    ):
        # The parent answers the hello before it looks, so the child may believe for a moment.
        child.connections.connect(fx.Connect(host_id=HostId("parent"), addresses=(parent.address,)))
        await child.core.until(
            lambda: bool(child.core.all(ev.ParentClosed) or child.core.all(ev.ParentConnectFailed))
        )
        assert not parent.core.events


@on_both_loops
async def test_tls_from_another_authority_is_refused(
    tmp_path: Path, certificates: Certificates
) -> None:
    stranger = Certificates().server("parent")
    async with (
        Parent(tmp_path / "p", CONTENT, ssl_context=stranger) as parent,
        Child(tmp_path / "c", CONTENT, ssl_context=certificates.client("child")) as child,
    ):
        child.connections.connect(fx.Connect(host_id=HostId("parent"), addresses=(parent.address,)))
        (failed,) = await child.core.wait(ev.ParentConnectFailed)
        assert failed.reason is Reason.UNAUTHORIZED
        assert len(parent.core.events) == 0
