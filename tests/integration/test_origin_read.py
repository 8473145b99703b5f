"""Reading ranges from HTTP origins: right bytes, or a clear error, and never a mix of versions."""

import asyncio

import pytest

from peer.shell.errors import OriginError
from peer.shell.origin.http import HttpOptions, HttpOrigin
from peer.shell.origin.internal import InternalHosts
from peer.shell.origin.request import OriginRequest
from shoal.wire.errors import Reason
from tests.integration.origin_rig import http_origin, read_range
from tests.integration.origin_server import Failure, OriginServer, Resource

CONTENT = bytes(range(256)) * 400
SIZE = len(CONTENT)


async def read_of(
    resource: Resource,
    *,
    start_byte: int = 0,
    end_byte: int | None = None,
    validator: str | None = '"v1"',
    size_bytes: int | None = SIZE,
    **options: object,
) -> bytes:
    async with OriginServer() as server, http_origin(**options) as origin:
        server.put("/f", resource)
        return await read_range(
            origin,
            OriginRequest(server.url("/f")),
            start_byte=start_byte,
            end_byte=end_byte,
            validator=validator,
            size_bytes=size_bytes,
        )


async def refusal_of(
    resource: Resource,
    *,
    start_byte: int = 0,
    end_byte: int | None = None,
    validator: str | None = '"v1"',
    size_bytes: int | None = SIZE,
    **options: object,
) -> OriginError:
    with pytest.raises(OriginError) as caught:
        await read_of(
            resource,
            start_byte=start_byte,
            end_byte=end_byte,
            validator=validator,
            size_bytes=size_bytes,
            **options,
        )
    return caught.value


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("ranges", [False, True])
@pytest.mark.parametrize(
    ("start_byte", "end_byte"),
    [(0, None), (0, SIZE), (0, 1), (1000, 70_000), (SIZE - 1, SIZE), (9, None)],
)
async def test_every_range_of_every_origin(
    start_byte: int, end_byte: int | None, ranges: bool, chunked: bool
) -> None:
    resource = Resource(content=CONTENT, ranges=ranges, chunked=chunked)
    received = await read_of(resource, start_byte=start_byte, end_byte=end_byte)
    assert received == CONTENT[start_byte:end_byte]


@pytest.mark.parametrize("chunked", [False, True])
async def test_unknown_size_is_read_to_the_end(chunked: bool) -> None:
    resource = Resource(content=CONTENT, ranges=False, chunked=chunked, close_delimited=not chunked)
    assert await read_of(resource, size_bytes=None) == CONTENT
    assert await read_of(resource, size_bytes=None, start_byte=7) == CONTENT[7:]


async def test_unknown_size_resumed_at_the_very_end() -> None:
    assert await read_of(Resource(content=CONTENT), size_bytes=None, start_byte=SIZE) == b""


async def test_connection_is_kept_after_a_range() -> None:
    async with OriginServer() as server, http_origin() as origin:
        server.put("/f", Resource(content=CONTENT))
        request = OriginRequest(server.url("/f"))
        for start in range(0, 50_000, 10_000):
            await read_range(
                origin, request, start_byte=start, end_byte=start + 10_000, size_bytes=SIZE
            )
        assert server.connections == 1
        assert server.payload_bytes["/f"] == 50_000
        assert server.requests["/f"][1].headers["range"] == "bytes=10000-19999"


async def test_stale_kept_connection_is_replaced() -> None:
    async with OriginServer() as server, http_origin() as origin:
        server.put("/f", Resource(content=CONTENT, drop_after_requests=1))
        request = OriginRequest(server.url("/f"))
        for _ in range(2):
            assert await read_range(origin, request, start_byte=5, end_byte=9) == CONTENT[5:9]


class TestChanged:
    """Another version of the content is noticed before any of its bytes is used."""

    @pytest.mark.parametrize("ranges", [True, False])
    @pytest.mark.parametrize("etag", ['"v2"', 'W/"v1"', None])
    async def test_another_etag(self, etag: str | None, ranges: bool) -> None:
        error = await refusal_of(
            Resource(content=CONTENT, etag=etag, ranges=ranges), start_byte=5, end_byte=10
        )
        assert error.reason is Reason.ORIGIN_CHANGED
        assert "changed" in error.detail
        assert "ETag" in error.detail

    @pytest.mark.parametrize("ranges", [True, False])
    @pytest.mark.parametrize("size_bytes", [SIZE - 1, SIZE + 1])
    async def test_another_length(self, size_bytes: int, ranges: bool) -> None:
        error = await refusal_of(
            Resource(content=CONTENT, ranges=ranges),
            start_byte=5,
            end_byte=10,
            size_bytes=size_bytes,
        )
        assert error.reason is Reason.ORIGIN_CHANGED
        assert str(size_bytes) in error.detail
        assert str(SIZE) in error.detail

    async def test_between_stat_and_reads(self) -> None:
        async with OriginServer() as server, http_origin() as origin:
            server.put("/f", Resource(content=CONTENT, etags_in_turn=('"v1"', '"v1"', '"v2"')))
            request = OriginRequest(server.url("/f"))
            stat = await origin.stat(request)

            async def part(start_byte: int, end_byte: int) -> bytes:
                return await read_range(
                    origin,
                    request,
                    start_byte=start_byte,
                    end_byte=end_byte,
                    validator=stat.validator,
                    size_bytes=stat.size_bytes,
                )

            await part(0, 9)
            with pytest.raises(OriginError) as caught:
                await part(9, 18)
            assert caught.value.reason is Reason.ORIGIN_CHANGED

    async def test_shorter_than_the_range_begins(self) -> None:
        error = await refusal_of(
            Resource(content=b"short"), start_byte=1000, end_byte=2000, validator=None
        )
        assert error.reason is Reason.ORIGIN_CHANGED

    async def test_unknown_size_that_shrank(self) -> None:
        for ranges in (True, False):
            error = await refusal_of(
                Resource(content=b"short", ranges=ranges), start_byte=1000, size_bytes=None
            )
            assert error.reason is Reason.ORIGIN_CHANGED

    async def test_chunked_body_longer_than_the_size(self) -> None:
        error = await refusal_of(
            Resource(content=CONTENT, ranges=False, chunked=True, surplus=b"more")
        )
        assert error.reason is Reason.ORIGIN_CHANGED
        assert "more than" in error.detail

    async def test_unknown_validator_cannot_contradict(self) -> None:
        assert await read_of(Resource(content=CONTENT), validator=None) == CONTENT


class TestBroken:
    """Bodies and answers that are not what they say."""

    @pytest.mark.parametrize("chunked", [False, True])
    @pytest.mark.parametrize("ranges", [False, True])
    async def test_short_body(self, ranges: bool, chunked: bool) -> None:
        error = await refusal_of(
            Resource(content=CONTENT, ranges=ranges, chunked=chunked, short_by_bytes=400),
            start_byte=0 if not ranges else 1000,
            end_byte=SIZE,
        )
        assert error.reason is Reason.ORIGIN_FAILED
        assert f"of {SIZE - (1000 if ranges else 0)} bytes" in error.detail

    async def test_chunked_body_that_ends_too_early_in_good_form(self) -> None:
        error = await refusal_of(
            Resource(content=CONTENT[:-1], ranges=False, chunked=True), validator=None
        )
        assert error.reason is Reason.ORIGIN_FAILED
        assert f"after {SIZE - 1} of {SIZE} bytes" in error.detail

    async def test_chunked_body_of_unknown_size_that_is_cut(self) -> None:
        error = await refusal_of(
            Resource(content=CONTENT, ranges=False, chunked=True, short_by_bytes=10),
            size_bytes=None,
        )
        assert error.reason is Reason.ORIGIN_FAILED

    async def test_range_longer_than_announced(self) -> None:
        error = await refusal_of(
            Resource(content=CONTENT, chunked=True, surplus=b"x"), start_byte=10, end_byte=20
        )
        assert "more than the 10 bytes" in error.detail

    async def test_stall_in_the_middle(self) -> None:
        error = await refusal_of(
            Resource(content=CONTENT, stall_after_bytes=50_000), stall_timeout_s=0.05
        )
        assert error.reason is Reason.ORIGIN_FAILED
        assert "sent nothing for 0.05 s" in error.detail

    async def test_slow_reader_is_no_stall(self) -> None:
        async with OriginServer() as server, http_origin(stall_timeout_s=0.05) as origin:
            server.put("/f", Resource(content=CONTENT * 200))
            async with origin.open(
                OriginRequest(server.url("/f")),
                start_byte=0,
                end_byte=None,
                validator=None,
                size_bytes=SIZE * 200,
            ) as body:
                view = memoryview(bytearray(SIZE * 200))
                got = await body.receive_into(view)
                await asyncio.sleep(0.15)  # Longer than the stall limit, in real time.
                while got < len(view):
                    got += await body.receive_into(view[got:])
                await body.finish()
            assert view == CONTENT * 200

    async def test_reset_in_the_middle(self) -> None:
        async with OriginServer() as server, http_origin() as origin:
            server.put("/f", Resource(content=CONTENT, stall_after_bytes=50_000))
            async with origin.open(
                OriginRequest(server.url("/f")),
                start_byte=0,
                end_byte=None,
                validator=None,
                size_bytes=SIZE,
            ) as body:
                view = memoryview(bytearray(SIZE))
                got = 0
                while got < 50_000:
                    got += await body.receive_into(view[got:])
                await server.stop()
                with pytest.raises(OriginError) as caught:
                    await body.receive_into(view[got:])
            assert caught.value.reason is Reason.ORIGIN_FAILED

    @pytest.mark.parametrize(
        "content_range",
        [f"bytes {r}/{SIZE}" for r in ("0-9", "6-10", "5-90")] + ["bytes 5-9/8", "nonsense"],
    )
    async def test_wrong_content_range(self, content_range: str) -> None:
        error = await refusal_of(
            Resource(content=CONTENT, content_range=content_range), start_byte=5, end_byte=10
        )
        assert error.reason is Reason.ORIGIN_INVALID

    async def test_origin_that_serves_less_than_the_range(self) -> None:
        answer = f"HTTP/1.1 206 -\r\nContent-Range: bytes 5-6/{SIZE}\r\nContent-Length: 2\r\n\r\nxy"
        error = await refusal_of(
            Resource(raw_answer=answer.encode()), start_byte=5, end_byte=10, validator=None
        )
        assert error.reason is Reason.ORIGIN_FAILED
        assert "after 2 of 5 bytes" in error.detail

    async def test_part_that_nobody_asked_for(self) -> None:
        error = await refusal_of(Resource(content=CONTENT, ranges=False, status=206))
        assert error.reason is Reason.ORIGIN_INVALID

    async def test_range_refused_though_it_is_there(self) -> None:
        answer = Failure(416, (("Content-Range", f"bytes */{SIZE}"),))
        error = await refusal_of(Resource(always=answer), start_byte=5, end_byte=10)
        assert error.reason is Reason.ORIGIN_INVALID
        error = await refusal_of(Resource(always=answer), start_byte=5, size_bytes=None)
        assert error.reason is Reason.ORIGIN_INVALID

    async def test_encoded_body(self) -> None:
        gzip = (("Content-Encoding", "gzip"),)
        error = await refusal_of(
            Resource(content=CONTENT, extra_headers=gzip), start_byte=5, end_byte=10
        )
        assert error.reason is Reason.ORIGIN_INVALID

    async def test_closing_the_origin_ends_a_read(self) -> None:
        async with OriginServer() as server:
            server.put("/f", Resource(content=CONTENT, stall_after_bytes=10))
            origin = HttpOrigin(HttpOptions())
            async with origin.open(
                OriginRequest(server.url("/f")),
                start_byte=0,
                end_byte=None,
                validator=None,
                size_bytes=SIZE,
            ) as body:
                view = memoryview(bytearray(SIZE))
                assert await body.receive_into(view) == 10
                await origin.close()
                with pytest.raises(OriginError) as caught:
                    await body.receive_into(view)
            assert caught.value.reason is Reason.SHUTTING_DOWN


class TestRedirects:
    """Followed to another place, but without the user's headers."""

    HEADERS = (
        ("Authorization", "Bearer secret"),
        ("Cookie", "secret"),
        ("Proxy-Authorization", "secret"),
        ("X-Api-Key", "secret"),
    )

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    async def test_same_place_keeps_credentials(self, status: int) -> None:
        async with OriginServer() as server, http_origin() as origin:
            server.put("/a/f", Resource(redirect="../b/f?sig=1", redirect_status=status))
            server.put("/b/f", Resource(content=CONTENT, authorization="Bearer secret"))
            request = OriginRequest(server.url("/a/f"), self.HEADERS)
            assert (await origin.stat(request)).size_bytes == SIZE
            part = await read_range(origin, request, start_byte=10, end_byte=20, size_bytes=SIZE)
            assert part == CONTENT[10:20]
            assert server.requests["/b/f"][1].target == "/b/f?sig=1"
            assert server.requests["/b/f"][1].headers["x-api-key"] == "secret"

    @pytest.mark.parametrize("other", ["host", "port"])
    async def test_another_place_gets_none(self, other: str) -> None:
        hosts = InternalHosts(["127.0.0.1", "localhost"])
        async with (
            OriginServer() as server,
            OriginServer() as second,
            http_origin(internal_hosts=hosts) as origin,
        ):
            host = "localhost" if other == "host" else "127.0.0.1"
            there = server if other == "host" else second
            there.put("/b", Resource(content=CONTENT, redirect=server.url("/c")))
            server.put("/a", Resource(redirect=there.url("/b", host)))
            server.put("/c", Resource(content=CONTENT))
            request = OriginRequest(server.url("/a"), self.HEADERS)
            assert (await origin.stat(request)).size_bytes == SIZE
            # Not even back at the first place: who sent us there may have chosen the path.
            for seen in (there.requests["/b"][0], server.requests["/c"][0]):
                assert not any("secret" in value for value in seen.headers.values())
                assert seen.headers["range"] == "bytes=0-0"
                assert seen.headers["accept-encoding"] == "identity"
            assert server.requests["/a"][0].headers["authorization"] == "Bearer secret"

    async def test_loop_ends(self) -> None:
        async with OriginServer() as server, http_origin() as origin:
            server.put("/f", Resource(redirect="/f"))
            with pytest.raises(OriginError) as caught:
                await origin.stat(OriginRequest(server.url("/f")))
            assert caught.value.reason is Reason.ORIGIN_INVALID
            assert "more than 10 redirects" in caught.value.detail
            assert len(server.requests["/f"]) == 11
            assert server.connections == 1

    @pytest.mark.parametrize(
        "location", ["ftp://127.0.0.1/f", "file:///etc/passwd", "http://", "http://[bad/", "http://a:b/"]
    )  # fmt: skip
    async def test_nonsense_targets(self, location: str) -> None:
        error = await refusal_of(Resource(redirect=location))
        assert error.reason is Reason.ORIGIN_INVALID
        assert "passwd" not in error.detail

    async def test_redirect_without_a_target(self) -> None:
        error = await refusal_of(Resource(always=Failure(302)))
        assert error.reason is Reason.ORIGIN_INVALID
        assert "without a Location" in error.detail

    async def test_target_with_spaces_and_raw_letters(self) -> None:
        async with OriginServer() as server, http_origin() as origin:
            server.put("/f", Resource(redirect="/a b%2Fc"))
            server.put("/a%20b%2Fc", Resource(content=CONTENT))
            assert (await origin.stat(OriginRequest(server.url("/f")))).size_bytes == SIZE


async def test_wrong_credentials_and_right_ones() -> None:
    async with OriginServer() as server, http_origin() as origin:
        server.put("/f", Resource(content=CONTENT, authorization="Bearer right"))
        for headers in ((), (("Authorization", "Bearer wrong"),)):
            with pytest.raises(OriginError) as caught:
                await read_range(origin, OriginRequest(server.url("/f"), headers))
            assert caught.value.reason is Reason.ORIGIN_UNAUTHORIZED
            assert "Bearer" not in str(caught.value)
        right = OriginRequest(server.url("/f"), (("Authorization", "Bearer right"),))
        assert await read_range(origin, right) == CONTENT


async def test_paths_and_queries_are_sent_to_the_letter() -> None:
    target = "/a%2Fb/./c/%7Eu?x=%2f&y=a+b&X-Amz-Signature=%61%3D"
    async with OriginServer() as server, http_origin() as origin:
        server.put(target.partition("?")[0], Resource(content=CONTENT))
        await origin.stat(OriginRequest(server.url(target)))
        assert server.requests["/a%2Fb/./c/%7Eu"][0].target == target
