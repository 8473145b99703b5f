"""The reader as the core sees it: effects in, events out, pieces in the store, whatever happens."""

import asyncio
import errno
import threading
import time
from contextlib import closing

import pytest

from peer.core.effects import CancelOrigin, StatOrigin
from peer.core.events import OriginPieceStored, OriginReadEnded, StatEnded
from peer.shell.origin.request import OriginRequest
from peer.shell.store.errors import StoreError
from shoal.runtime.clock import MonotonicClock
from shoal.runtime.rates import RateLimiter
from shoal.runtime.tasks import Offload
from shoal.wire.errors import Reason
from shoal.wire.ids import LeaseNumber, RequestId, SourceId
from shoal.wire.piece_digest import piece_digest
from tests.integration.origin_rig import CREDENTIAL, SOURCE, read_effect, rig
from tests.integration.origin_server import Failure, OriginServer, Resource

CONTENT = bytes(range(256)) * 41
SIZE = len(CONTENT)
STAT = StatOrigin(request_id=RequestId(1), source_id=SOURCE, credential=CREDENTIAL)
CANCEL = CancelOrigin(request_id=RequestId(1))


def whole(pieces: int = 11) -> list[tuple[int, int]]:
    """What a whole read of CONTENT in pieces of 1024 bytes tells."""
    return [(piece, min(1024, SIZE - piece * 1024)) for piece in range(pieces)]


class TestStat:
    async def test_success(self) -> None:
        async with OriginServer() as server:
            server.put("/f", Resource(content=CONTENT))
            async with rig(OriginRequest(server.url("/f"))) as one:
                one.reader.stat(STAT)
                end = await one.wait_end()
        assert isinstance(end, StatEnded)
        assert end.request_id == 1
        assert (end.reason, end.size_bytes, end.validator, end.ranges) == (None, SIZE, '"v1"', True)
        assert end.now_ns > 0

    async def test_failure_with_time_to_wait(self) -> None:
        async with OriginServer() as server:
            server.put("/f", Resource(always=Failure(429, (("Retry-After", "3"),))))
            async with rig(OriginRequest(server.url("/f"))) as one:
                one.reader.stat(STAT)
                end = await one.wait_end()
        assert (end.reason, end.retry_after_ms) == (Reason.ORIGIN_BUSY, 3000)
        assert "429" in end.detail

    @pytest.mark.parametrize("source_id", [SOURCE, SourceId("f" * 64)])
    async def test_nobody_has_a_url_for_it(self, source_id: SourceId) -> None:
        async with rig(None) as one:
            one.reader.stat(StatOrigin(request_id=RequestId(1), source_id=source_id, credential=""))
            assert (await one.wait_end()).reason is Reason.ORIGIN_NOT_ALLOWED

    async def test_scheme_that_nobody_serves(self) -> None:
        async with rig(OriginRequest("gopher://example.com/")) as one:
            one.reader.stat(STAT)
            end = await one.wait_end()
        assert end.reason is Reason.ORIGIN_INVALID
        assert "gopher" in end.detail

    async def test_many_at_once_share_few_connections(self) -> None:
        async with OriginServer() as server:
            server.put("/f", Resource(content=CONTENT))
            async with rig(OriginRequest(server.url("/f"))) as one:
                for number in range(50):
                    one.reader.stat(
                        StatOrigin(
                            request_id=RequestId(number), source_id=SOURCE, credential=CREDENTIAL
                        )
                    )
                events = await one.wait_events(50)
            assert server.connections <= 4
        ended = [event for event in events if isinstance(event, StatEnded) and not event.reason]
        assert sorted(event.request_id for event in ended) == list(range(50))

    @pytest.mark.parametrize("turns", [0, 1, 30])
    async def test_cancel_at_any_time(self, turns: int) -> None:
        async with OriginServer() as server:
            server.put("/f", Resource(stall_before_answer=True))
            async with rig(OriginRequest(server.url("/f"))) as one:
                one.reader.stat(STAT)
                for _ in range(turns):
                    await asyncio.sleep(0)
                one.reader.cancel(CANCEL)
                one.reader.cancel(CANCEL)
                assert (await one.wait_end()).reason is Reason.CANCELLED
                one.reader.cancel(CANCEL)


class TestKnownSize:
    @pytest.mark.parametrize("piece_digest_name", ["xxh3-128", "blake3"])
    async def test_pieces_are_stored_and_told_in_order(self, piece_digest_name: str) -> None:
        async with OriginServer() as server:
            server.put("/f", Resource(content=CONTENT))
            async with rig(OriginRequest(server.url("/f"))) as one:
                end = await one.read(read_effect(SIZE, piece_digest=piece_digest_name))
                assert len(server.requests["/f"]) == 1
        assert (end.reason, end.size_bytes) == (None, None)
        assert one.stored == whole()
        assert one.store.content == CONTENT
        for event in one.events[:-1]:
            assert isinstance(event, OriginPieceStored)
            digest = piece_digest(piece_digest_name, one.store.pieces[event.piece])
            record = one.store.records[event.piece]
            assert event.digest == record.digest == digest
            assert (record.lease_number, record.read_here) == (LeaseNumber(7), True)
        assert one.buffers.out_max <= 3

    @pytest.mark.parametrize("ranges", [True, False])
    @pytest.mark.parametrize(("first", "count"), [(0, 1), (3, 4), (10, 1), (8, None), (0, 11)])
    async def test_a_run_is_one_request(self, first: int, count: int | None, ranges: bool) -> None:
        async with OriginServer() as server:
            server.put("/f", Resource(content=CONTENT, ranges=ranges))
            async with rig(OriginRequest(server.url("/f"))) as one:
                end = await one.read(read_effect(SIZE, first_piece=first, piece_count=count))
                assert len(server.requests["/f"]) == 1
        assert end.reason is None
        last = 11 if count is None else first + count
        assert one.stored == whole()[first:last]
        for piece, data in one.store.pieces.items():
            assert data == CONTENT[piece * 1024 : piece * 1024 + 1024]

    @pytest.mark.parametrize("size_bytes", [0, 1])
    async def test_smallest_contents(self, size_bytes: int) -> None:
        async with OriginServer() as server:
            server.put("/f", Resource(content=b"x" * size_bytes))
            async with rig(OriginRequest(server.url("/f"))) as one:
                end = await one.read(read_effect(size_bytes))
        assert end.reason is None
        assert one.store.content == b"x" * size_bytes

    async def test_threads_and_larger_pieces(self) -> None:
        content = CONTENT * 400
        with closing(Offload(2)) as offload:
            async with OriginServer() as server:
                server.put("/f", Resource(content=content))
                async with rig(OriginRequest(server.url("/f")), offload=offload) as one:
                    effect = read_effect(len(content), piece_length_bytes=1 << 18)
                    assert (await one.read(effect)).reason is None
        assert one.store.content == content

    async def test_rate_limit_counts_every_byte(self) -> None:
        limiter = RateLimiter(100_000_000, MonotonicClock(), burst_ms=0)
        begun_ns = time.monotonic_ns()
        async with OriginServer() as server:
            server.put("/f", Resource(content=CONTENT * 400, ranges=False))
            async with rig(OriginRequest(server.url("/f")), limiter=limiter) as one:
                # The last piece only, but an origin without ranges sends all.
                pieces = -(-SIZE * 400 // 65536)
                effect = read_effect(
                    SIZE * 400, piece_length_bytes=65536, first_piece=pieces - 1, ranges=False
                )
                assert (await one.read(effect)).reason is None
        assert time.monotonic_ns() - begun_ns >= SIZE * 400 * 10

    async def test_bytes_that_come_late_do_not_hold_back_earlier_pieces(self) -> None:
        async with OriginServer() as server:
            server.put("/f", Resource(content=CONTENT, stall_after_bytes=2500))
            async with rig(OriginRequest(server.url("/f"))) as one:
                one.reader.read(read_effect(SIZE))
                await one.wait_events(2)
                assert one.stored == whole(2)
                server.release_stalls()
                assert (await one.wait_end()).reason is None
        assert one.store.content == CONTENT


class TestUnknownSize:
    @pytest.mark.parametrize("size_bytes", [0, 1, 1023, 1024, 1025, 2048, SIZE])
    @pytest.mark.parametrize("chunked", [True, False])
    async def test_end_is_found(self, size_bytes: int, chunked: bool) -> None:
        content = CONTENT[:size_bytes]
        async with OriginServer() as server:
            server.put(
                "/f",
                Resource(
                    content=content, ranges=False, chunked=chunked, close_delimited=not chunked
                ),
            )
            async with rig(OriginRequest(server.url("/f"))) as one:
                end = await one.read(read_effect(None, ranges=False))
        assert (end.reason, end.size_bytes) == (None, size_bytes)
        assert one.store.content == content
        assert [piece for piece, _ in one.stored] == list(range(-(-size_bytes // 1024)))

    @pytest.mark.parametrize(("first", "size_bytes"), [(2, 5000), (2, 2048), (2, 2049)])
    @pytest.mark.parametrize("ranges", [True, False])
    async def test_resumed_in_the_middle(self, first: int, size_bytes: int, ranges: bool) -> None:
        async with OriginServer() as server:
            server.put("/f", Resource(content=CONTENT[:size_bytes], ranges=ranges, chunked=True))
            async with rig(OriginRequest(server.url("/f"))) as one:
                end = await one.read(read_effect(None, first_piece=first))
        assert (end.reason, end.size_bytes) == (None, size_bytes)
        assert b"".join(one.store.pieces.values()) == CONTENT[2048:size_bytes]

    @pytest.mark.parametrize("ranges", [True, False])
    async def test_content_that_shrank_meanwhile(self, ranges: bool) -> None:
        async with OriginServer() as server:
            server.put("/f", Resource(content=CONTENT[:1500], ranges=ranges, chunked=True))
            async with rig(OriginRequest(server.url("/f"))) as one:
                end = await one.read(read_effect(None, first_piece=2))
        assert end.reason is Reason.ORIGIN_CHANGED
        assert one.stored == []

    async def test_some_pieces_of_it(self) -> None:
        async with OriginServer() as server:
            server.put("/f", Resource(content=CONTENT, ranges=False, chunked=True))
            async with rig(OriginRequest(server.url("/f"))) as one:
                end = await one.read(read_effect(None, piece_count=3))
        assert (end.reason, end.size_bytes) == (None, None)
        assert one.stored == whole(3)

    async def test_stat_and_read_are_one_request(self) -> None:
        async with OriginServer() as server:
            server.put("/f", Resource(content=CONTENT, ranges=False, chunked=True))
            async with rig(OriginRequest(server.url("/f"))) as one:
                one.reader.stat(STAT)
                stat = await one.wait_end()
                assert isinstance(stat, StatEnded)
                assert (stat.size_bytes, stat.ranges) == (None, False)
                one.events.clear()
                end = await one.read(read_effect(None, validator=stat.validator))
                assert len(server.requests["/f"]) == 1
        assert end.size_bytes == SIZE


class TestFailures:
    """What was stored stays, and the end says why."""

    @pytest.mark.parametrize(
        ("resource", "reason", "pieces"),
        [
            (Resource(content=CONTENT, short_by_bytes=5000), Reason.ORIGIN_FAILED, 5),
            (Resource(content=CONTENT, short_by_bytes=1), Reason.ORIGIN_FAILED, 10),
            (Resource(content=CONTENT, chunked=True, surplus=b"x"), Reason.ORIGIN_CHANGED, 10),
            (Resource(content=CONTENT, etag='"v2"'), Reason.ORIGIN_CHANGED, 0),
            (Resource(content=CONTENT + b"x"), Reason.ORIGIN_CHANGED, 0),
            (Resource(always=Failure(404)), Reason.ORIGIN_NOT_FOUND, 0),
            (Resource(always=Failure(500)), Reason.ORIGIN_FAILED, 0),
        ],
        ids=["short", "one-short", "too-long", "etag", "length", "gone", "500"],
    )
    async def test_origin_fails(self, resource: Resource, reason: Reason, pieces: int) -> None:
        async with OriginServer() as server:
            server.put("/f", resource)
            async with rig(OriginRequest(server.url("/f"))) as one:
                end = await one.read(read_effect(SIZE))
        assert end.reason is reason
        assert end.detail
        assert one.stored == whole(pieces)
        assert one.store.content == CONTENT[: pieces * 1024]

    async def test_stall(self) -> None:
        async with OriginServer() as server:
            server.put("/f", Resource(content=CONTENT, stall_after_bytes=3000))
            async with rig(OriginRequest(server.url("/f")), stall_timeout_s=0.05) as one:
                end = await one.read(read_effect(SIZE))
        assert end.reason is Reason.ORIGIN_FAILED
        assert one.stored == whole(2)

    async def test_store_fails(self) -> None:
        async with OriginServer() as server:
            server.put("/f", Resource(content=CONTENT))
            async with rig(OriginRequest(server.url("/f"))) as one:
                one.store.fail_on = 4
                one.store.failure = StoreError(Reason.DISK_FULL, "the disk is full")
                end = await one.read(read_effect(SIZE))
        assert (end.reason, end.detail) == (Reason.DISK_FULL, "the disk is full")
        assert one.stored == whole(4)

    async def test_defect_still_ends_the_read_and_stops_the_daemon(self) -> None:
        async with OriginServer() as server:
            server.put("/f", Resource(content=CONTENT))
            async with rig(OriginRequest(server.url("/f")), crashes=True) as one:
                one.store.fail_on = 4
                one.store.failure = OSError(errno.EIO, "not translated")
                end = await one.read(read_effect(SIZE))
                assert end.reason is Reason.ORIGIN_FAILED
                with pytest.raises(OSError, match="not translated"):
                    await one.supervisor.wait_failed()


class TestCancel:
    @pytest.mark.parametrize("turns", [0, 1, 2, 5])
    async def test_early(self, turns: int) -> None:
        async with OriginServer() as server:
            server.put("/f", Resource(content=CONTENT, stall_before_answer=True))
            async with rig(OriginRequest(server.url("/f"))) as one:
                one.reader.read(read_effect(SIZE))
                for _ in range(turns):
                    await asyncio.sleep(0)
                one.reader.cancel(CANCEL)
                assert (await one.wait_end()).reason is Reason.CANCELLED

    async def test_in_the_middle(self) -> None:
        async with OriginServer() as server:
            server.put("/f", Resource(content=CONTENT, stall_after_bytes=3000))
            async with rig(OriginRequest(server.url("/f"))) as one:
                one.reader.read(read_effect(SIZE))
                await one.wait_events(2)
                one.reader.cancel(CANCEL)
                assert (await one.wait_end()).reason is Reason.CANCELLED
        assert one.stored == whole(2)

    async def test_waits_for_threads_that_still_write(self) -> None:
        release = threading.Event()
        with closing(Offload(1)) as offload:
            offload.start(lambda _, __: None, release.wait)
            async with OriginServer() as server:
                server.put("/f", Resource(content=CONTENT, stall_after_bytes=1500))
                async with rig(OriginRequest(server.url("/f")), offload=offload) as one:
                    one.reader.read(read_effect(SIZE))
                    # Piece 0 waits for the thread, piece 1 for its bytes.
                    await one.buffers.wait_out(2)
                    one.reader.cancel(CANCEL)
                    one.reader.cancel(CANCEL)
                    for _ in range(10):
                        await asyncio.sleep(0)
                    assert one.events == []
                    release.set()
                    assert (await one.wait_end()).reason is Reason.CANCELLED
        assert one.stored == whole(1)
        assert one.store.pieces == {0: CONTENT[:1024]}

    async def test_closing_ends_everything_and_what_comes_later(self) -> None:
        async with OriginServer() as server:
            server.put("/f", Resource(content=CONTENT, stall_after_bytes=1500))
            async with rig(OriginRequest(server.url("/f"))) as one:
                one.reader.read(read_effect(SIZE))
                await one.wait_events(1)
                await one.reader.close()
                end = one.events[-1]
                assert isinstance(end, OriginReadEnded)
                assert end.reason is Reason.SHUTTING_DOWN
                one.reader.stat(STAT)
                late = one.events[-1]
                assert isinstance(late, StatEnded)
                assert late.reason is Reason.SHUTTING_DOWN
