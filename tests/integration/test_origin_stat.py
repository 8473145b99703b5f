"""What a stat makes of each way in which an HTTP origin may answer."""

import asyncio

import pytest

from peer.shell.errors import OriginError
from peer.shell.origin.base import OriginStat
from peer.shell.origin.request import OriginRequest
from shoal.wire.errors import Reason
from tests.integration.origin_rig import http_origin, read_range
from tests.integration.origin_server import Failure, OriginServer, Resource

CONTENT = bytes(range(256)) * 40
WEAK = 'W/"w"'
MODIFIED = "Wed, 21 Oct 2015 07:28:00 GMT"


async def stat_of(resource: Resource, **options: object) -> OriginStat:
    async with OriginServer() as server, http_origin(**options) as origin:
        server.put("/f", resource)
        return await origin.stat(OriginRequest(server.url("/f")))


async def refusal_of(resource: Resource, **options: object) -> OriginError:
    with pytest.raises(OriginError) as caught:
        await stat_of(resource, **options)
    return caught.value


@pytest.mark.parametrize(
    ("resource", "size_bytes", "ranges"),
    [
        (Resource(content=CONTENT), len(CONTENT), True),
        (Resource(content=b"x"), 1, True),
        (Resource(content=b""), 0, False),
        (Resource(content=b"", ranges=False), 0, False),
        (Resource(content=CONTENT, ranges=False), len(CONTENT), False),
        (Resource(content=CONTENT, ranges=False, chunked=True), None, False),
        (Resource(content=CONTENT, ranges=False, close_delimited=True), None, False),
        (Resource(content=CONTENT, content_range="bytes 0-0/*"), None, True),
        (Resource(ranges=False, status=204), 0, False),
        (Resource(content=CONTENT, bare_416=True), len(CONTENT), False),
    ],
    ids=[
        "ranges", "one-byte", "empty-416", "empty-200", "no-ranges", "chunked", "until-close",
        "total-unknown", "no-content", "416-without-total",
    ],
)  # fmt: skip
async def test_stat_tells_size_and_ranges(
    resource: Resource, size_bytes: int | None, ranges: bool
) -> None:
    stat = await stat_of(resource)
    assert (stat.size_bytes, stat.ranges) == (size_bytes, ranges)


@pytest.mark.parametrize(
    ("etag", "modified", "validator"),
    [
        ('"v1"', MODIFIED, '"v1"'),
        (WEAK, MODIFIED, f"{WEAK} {MODIFIED}"),
        (WEAK, None, WEAK),
        (None, MODIFIED, MODIFIED),
        (None, None, None),
    ],
)
async def test_validator_is_the_strongest_there_is(
    etag: str | None, modified: str | None, validator: str | None
) -> None:
    stat = await stat_of(Resource(content=CONTENT, etag=etag, last_modified=modified))
    assert stat.validator == validator


async def test_stat_is_one_get_of_one_byte_without_encodings() -> None:
    async with OriginServer() as server, http_origin() as origin:
        server.put("/f", Resource(content=CONTENT))
        await origin.stat(OriginRequest(server.url("/f?sig=1"), (("X-Mine", "yes"),)))
        (seen,) = server.requests["/f"]
    assert seen.target == "/f?sig=1"
    assert seen.headers["range"] == "bytes=0-0"
    assert seen.headers["accept-encoding"] == "identity"
    assert seen.headers["x-mine"] == "yes"
    assert server.payload_bytes["/f"] == 1


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (401, Reason.ORIGIN_UNAUTHORIZED),
        (403, Reason.ORIGIN_FORBIDDEN),
        (404, Reason.ORIGIN_NOT_FOUND),
        (410, Reason.ORIGIN_NOT_FOUND),
        (400, Reason.ORIGIN_INVALID),
        (408, Reason.ORIGIN_FAILED),
        (416, Reason.ORIGIN_INVALID),
        (202, Reason.ORIGIN_INVALID),
        (304, Reason.ORIGIN_INVALID),
        (429, Reason.ORIGIN_BUSY),
        (503, Reason.ORIGIN_BUSY),
        (500, Reason.ORIGIN_FAILED),
        (502, Reason.ORIGIN_FAILED),
    ],
)
async def test_statuses_have_reasons(status: int, reason: Reason) -> None:
    error = await refusal_of(Resource(always=Failure(status)))
    assert error.reason is reason
    assert str(status) in error.detail
    assert "/f" not in error.detail
    assert error.retry_after_ms == 0


@pytest.mark.parametrize(
    ("headers", "retry_after_ms"),
    [
        ((("Retry-After", "7"),), 7_000),
        ((("Retry-After", "86400"),), 3_600_000),
        (
            (
                ("Retry-After", "Thu, 01 Jan 2026 00:01:30 GMT"),
                ("Date", "Thu, 01 Jan 2026 00:00:00 GMT"),
            ),
            90_000,
        ),
        ((("Retry-After", "Thu, 01 Jan 2015 00:00:00 GMT"),), 0),
        ((("Retry-After", "Thu, 01 Jan 2099 00:00:00 GMT"),), 3_600_000),
        ((("Retry-After", "soon"),), 0),
        ((("Retry-After", "-5"),), 0),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_is_told_and_bounded(
    status: int, headers: tuple[tuple[str, str], ...], retry_after_ms: int
) -> None:
    error = await refusal_of(Resource(always=Failure(status, headers)))
    assert (error.reason, error.retry_after_ms) == (Reason.ORIGIN_BUSY, retry_after_ms)


async def test_busy_then_well() -> None:
    failures = (Failure(429, (("Retry-After", "1"),)), Failure(500))
    async with OriginServer() as server, http_origin() as origin:
        server.put("/f", Resource(content=CONTENT, failures=failures))
        request = OriginRequest(server.url("/f"))
        for reason in (Reason.ORIGIN_BUSY, Reason.ORIGIN_FAILED):
            with pytest.raises(OriginError) as caught:
                await origin.stat(request)
            assert caught.value.reason is reason
        assert (await origin.stat(request)).size_bytes == len(CONTENT)
        assert server.connections == 1


@pytest.mark.parametrize("encoding", ["gzip", "br", "GZIP"])
async def test_encoded_content_is_refused(encoding: str) -> None:
    error = await refusal_of(
        Resource(content=CONTENT, extra_headers=(("Content-Encoding", encoding),))
    )
    assert error.reason is Reason.ORIGIN_INVALID
    assert encoding.lower() in error.detail


@pytest.mark.parametrize(
    "resource",
    [
        Resource(content=CONTENT, content_range="bytes 5-5/10240"),
        Resource(content=CONTENT, content_range="bytes 0-0/0"),
        Resource(content=CONTENT, content_range="bytes 0-99/10240"),
        Resource(content=CONTENT, content_range="pages 0-0/10240"),
        Resource(content=CONTENT, content_range="bytes */10240"),
        Resource(content=CONTENT, content_length="2"),
        Resource(always=Failure(206)),
        Resource(always=Failure(416, (("Content-Range", "bytes */10240"),))),
        Resource(raw_answer=b"SSH-2.0-OpenSSH\r\n\r\n"),
        Resource(raw_answer=b"HTTP/1.1 200 OK\r\nETag: " + b"x" * 70_000 + b"\r\n\r\n"),
        Resource(raw_answer=b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx"),
    ],
    ids=[
        "start", "beyond", "more-than-asked", "unit", "no-range", "length", "no-content-range",
        "416-though-there", "not-http", "huge-header", "two-lengths",
    ],
)  # fmt: skip
async def test_answers_that_make_no_sense_are_invalid(resource: Resource) -> None:
    assert (await refusal_of(resource)).reason is Reason.ORIGIN_INVALID


async def test_origin_that_never_answers_has_stalled() -> None:
    error = await refusal_of(Resource(stall_before_answer=True), stall_timeout_s=0.05)
    assert error.reason is Reason.ORIGIN_FAILED
    assert "sent nothing for 0.05 s" in error.detail


async def test_nobody_listens() -> None:
    async with OriginServer() as server:
        url = server.url("/secret?token=s3cr3t")
    async with http_origin() as origin:
        with pytest.raises(OriginError) as caught:
            await origin.stat(OriginRequest(url))
    assert caught.value.reason is Reason.ORIGIN_FAILED
    assert "Connection refused" in caught.value.detail
    assert "secret" not in caught.value.detail


async def test_unknown_host_name() -> None:
    async with http_origin() as origin:
        with pytest.raises(OriginError) as caught:
            await origin.stat(OriginRequest("http://no-such-host.invalid/secret"))
    assert caught.value.reason is Reason.ORIGIN_FAILED
    assert caught.value.detail.startswith("the name of no-such-host.invalid can't be resolved")
    assert caught.value.__suppress_context__


async def test_connection_that_closes_without_an_answer() -> None:
    async with OriginServer() as server, http_origin() as origin:
        server.put("/f", Resource(drop_after_requests=0))
        with pytest.raises(OriginError) as caught:
            await origin.stat(OriginRequest(server.url("/f")))
        assert caught.value.reason is Reason.ORIGIN_FAILED
        assert len(server.requests["/f"]) == 2


async def test_stale_kept_connection_is_replaced_without_an_error() -> None:
    async with OriginServer() as server, http_origin() as origin:
        server.put("/f", Resource(content=CONTENT, drop_after_requests=1))
        request = OriginRequest(server.url("/f"))
        for _ in range(3):
            assert (await origin.stat(request)).size_bytes == len(CONTENT)
        assert server.connections == 3


async def test_connections_are_kept_and_bounded() -> None:
    async with OriginServer() as server, http_origin(connections_per_host=2) as origin:
        server.put("/f", Resource(content=CONTENT))
        request = OriginRequest(server.url("/f"))
        await asyncio.gather(*(origin.stat(request) for _ in range(12)))
        assert server.connections == 2


async def test_waiting_for_a_connection_is_bounded() -> None:
    async with (
        OriginServer() as server,
        http_origin(connections_per_host=1, connect_timeout_s=0.05) as origin,
    ):
        server.put("/f", Resource(content=CONTENT, stall_after_bytes=0))
        server.put("/g", Resource(content=CONTENT))
        async with origin.open(
            OriginRequest(server.url("/f")),
            start_byte=0,
            end_byte=None,
            validator=None,
            size_bytes=None,
        ):
            with pytest.raises(OriginError) as caught:
                await origin.stat(OriginRequest(server.url("/g")))
    assert caught.value.reason is Reason.ORIGIN_FAILED
    assert "within 0.05 s" in caught.value.detail


async def test_closed_origin_says_so() -> None:
    async with http_origin() as origin:
        pass
    with pytest.raises(OriginError) as caught:
        await origin.stat(OriginRequest("http://127.0.0.1:1/"))
    assert caught.value.reason is Reason.SHUTTING_DOWN


class TestParkedAnswer:
    """An origin without ranges is asked once for stat and read together."""

    @pytest.mark.parametrize("chunked", [False, True])
    async def test_read_takes_it_up(self, chunked: bool) -> None:
        content = CONTENT * 200
        async with OriginServer() as server, http_origin() as origin:
            server.put("/f", Resource(content=content, ranges=False, chunked=chunked))
            request = OriginRequest(server.url("/f"))
            stat = await origin.stat(request)
            assert await read_range(origin, request, validator=stat.validator) == content
            assert len(server.requests["/f"]) == 1
            assert server.payload_bytes["/f"] == len(content)
            assert await read_range(origin, request) == content
            assert len(server.requests["/f"]) == 2

    async def test_it_is_not_for_other_credentials(self) -> None:
        async with OriginServer() as server, http_origin() as origin:
            server.put("/f", Resource(content=CONTENT, ranges=False))
            await origin.stat(OriginRequest(server.url("/f"), (("Authorization", "mine"),)))
            await read_range(origin, OriginRequest(server.url("/f")))
            assert len(server.requests["/f"]) == 2

    async def test_it_is_closed_after_a_while(self) -> None:
        async with OriginServer() as server, http_origin(park_timeout_s=0) as origin:
            server.put("/f", Resource(content=CONTENT * 200, ranges=False))
            request = OriginRequest(server.url("/f"))
            await origin.stat(request)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert await read_range(origin, request) == CONTENT * 200
            assert len(server.requests["/f"]) == 2

    async def test_the_oldest_makes_room(self) -> None:
        async with OriginServer() as server, http_origin(parked_max=2) as origin:
            requests = []
            for name in ("/1", "/2", "/3"):
                server.put(name, Resource(content=CONTENT, ranges=False))
                requests.append(OriginRequest(server.url(name)))
                await origin.stat(requests[-1])
            for request in requests:
                assert await read_range(origin, request) == CONTENT
            asked = {name: len(server.requests[name]) for name in ("/1", "/2", "/3")}
            assert asked == {"/1": 2, "/2": 1, "/3": 1}

    async def test_one_that_died_is_asked_for_again(self) -> None:
        async with OriginServer() as server, http_origin(stall_timeout_s=0.02) as origin:
            server.put("/f", Resource(content=CONTENT, ranges=False, stall_after_bytes=5))
            request = OriginRequest(server.url("/f"))
            await origin.stat(request)
            await asyncio.sleep(0.05)  # The stall is a matter of real time.
            server.put("/f", Resource(content=CONTENT, ranges=False))
            assert await read_range(origin, request) == CONTENT
