"""Whether an origin has what is held here, as the reader finds out: over real connections."""

import asyncio

import pytest

from peer.core.effects import Sample, StatOrigin
from peer.core.events import StatEnded
from peer.shell.origin.request import OriginRequest
from peer.shell.rights import Renewer
from peer.shell.store.errors import StoreError
from shoal.wire.errors import Reason
from shoal.wire.ids import RequestId, TaskId
from tests.integration.origin_rig import CREDENTIAL, SOURCE, TASK, Rig, rig
from tests.integration.origin_server import OriginServer, Resource

CONTENT = bytes(number * 7 % 251 for number in range(300_000))
SIZE = len(CONTENT)
START, END = 70_000, 135_536


def asking(start: int = START, end: int = END, size: int | None = SIZE) -> StatOrigin:
    return StatOrigin(
        request_id=RequestId(1),
        source_id=SOURCE,
        credential=CREDENTIAL,
        sample=Sample(task_id=TASK, size_bytes=size, start_byte=start, end_byte=end),
    )


async def compared(one: Rig, effect: StatOrigin | None = None) -> StatEnded:
    """What comes of it where the content is held."""
    if not one.store.pieces:
        one.store.pieces[0] = CONTENT
    one.reader.stat(effect or asking())
    end = await one.wait_end()
    assert isinstance(end, StatEnded)
    return end


def changed_at(place: int) -> bytes:
    return CONTENT[:place] + bytes([CONTENT[place] ^ 1]) + CONTENT[place + 1 :]


@pytest.mark.parametrize("ranges", [True, False])
async def test_the_same_bytes_are_the_same(ranges: bool) -> None:
    async with OriginServer() as server:
        server.put("/f", Resource(content=CONTENT, ranges=ranges))
        async with rig(OriginRequest(server.url("/f"))) as one:
            end = await compared(one)
        asked = server.requests["/f"]
    assert (end.reason, end.same, end.size_bytes) == (None, True, SIZE)
    if ranges:
        assert [seen.headers.get("range") for seen in asked] == ["bytes=0-0", "bytes=70000-135535"]
        assert server.payload_bytes["/f"] == 1 + END - START
    else:
        assert len(asked) == 1, "the answer to the stat is read on"


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("place", [START, (START + END) // 2, END - 1])
async def test_one_other_byte_is_found(ranges: bool, place: int) -> None:
    async with OriginServer() as server:
        server.put("/f", Resource(content=changed_at(place), ranges=ranges))
        async with rig(OriginRequest(server.url("/f"))) as one:
            end = await compared(one)
    assert (end.reason, end.same) == (None, False)


async def test_only_the_sample_is_compared() -> None:
    async with OriginServer() as server:
        server.put("/f", Resource(content=changed_at(END)))
        async with rig(OriginRequest(server.url("/f"))) as one:
            assert (await compared(one)).same


async def test_a_whole_content_is_compared() -> None:
    async with OriginServer() as server:
        server.put("/f", Resource(content=CONTENT[:5]))
        async with rig(OriginRequest(server.url("/f"))) as one:
            one.store.pieces[0] = CONTENT[:5]
            assert (await compared(one, asking(0, 5, 5))).same


async def test_a_content_of_another_size_is_not_read() -> None:
    async with OriginServer() as server:
        server.put("/f", Resource(content=CONTENT[:100]))
        async with rig(OriginRequest(server.url("/f"))) as one:
            end = await compared(one)
        assert len(server.requests["/f"]) == 1
    assert (end.reason, end.same, end.size_bytes) == (None, None, 100)


async def test_an_origin_that_tells_no_size_is_compared_all_the_same() -> None:
    async with OriginServer() as server:
        server.put("/f", Resource(content=CONTENT, ranges=False, chunked=True))
        async with rig(OriginRequest(server.url("/f"))) as one:
            assert (await compared(one)).same
    async with OriginServer() as server:
        server.put("/f", Resource(content=CONTENT[:80_000], ranges=False, chunked=True))
        async with rig(OriginRequest(server.url("/f"))) as one:
            end = await compared(one)
    assert end.reason is not None
    assert end.same is None


async def test_an_origin_that_gives_nothing_of_it_has_shown_nothing() -> None:
    async with OriginServer() as server:
        server.put("/f", Resource(content=CONTENT, short_by_bytes=10))
        async with rig(OriginRequest(server.url("/f"))) as one:
            end = await compared(one)
    assert (end.reason, end.same) == (Reason.ORIGIN_FAILED, None)


async def test_what_was_removed_meanwhile_is_compared_with_nothing() -> None:
    async with OriginServer() as server:
        server.put("/f", Resource(content=CONTENT))
        async with rig(OriginRequest(server.url("/f"))) as one:
            one.store.failure = StoreError(Reason.UNKNOWN_TASK, "gone")
            end = await compared(one)
        assert len(server.requests["/f"]) == 1
    assert (end.reason, end.same) == (None, None)


async def test_a_disk_that_does_not_give_it_back_is_told() -> None:
    async with OriginServer() as server:
        server.put("/f", Resource(content=CONTENT))
        async with rig(OriginRequest(server.url("/f"))) as one:
            one.store.failure = StoreError(Reason.DISK_FAILED, "broken")
            end = await compared(one)
    assert (end.reason, end.same, end.detail) == (Reason.DISK_FAILED, None, "broken")


async def test_a_right_that_runs_out_between_the_two_is_renewed() -> None:
    async with OriginServer() as server:
        server.put("/f", Resource(content=CONTENT))
        request = OriginRequest(server.url("/f"), (("Authorization", "old"),))
        async with rig(None) as one:

            def renew(_reason: Reason) -> bool:
                keys = [(SOURCE, CREDENTIAL)]
                asyncio.get_running_loop().call_soon(one.rights.renew, keys, renewer, "new")
                return True

            renewer = Renewer(renew)
            one.rights.add((SOURCE, CREDENTIAL), request, renewer)

            def read_held(task_id: TaskId, start_byte: int, end_byte: int) -> bytes:
                server.put("/f", Resource(content=CONTENT, authorization="new"))
                return CONTENT[start_byte:end_byte]

            one.store.read_held = read_held  # type: ignore[method-assign]
            end = await compared(one)
        shown = [seen.headers["authorization"] for seen in server.requests["/f"]]
    assert shown == ["old", "old", "new"]
    assert end.same
