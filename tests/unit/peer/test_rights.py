"""Rights to read from origins: shared, renewed while attempts wait, and given back."""

import asyncio

import pytest

from peer.shell.origin.request import OriginRequest
from peer.shell.rights import Renewer, Rights
from shoal.wire.errors import Reason
from shoal.wire.ids import SourceId

SOURCE = SourceId("a" * 64)
KEY = (SOURCE, "hash")
OLD = OriginRequest("https://r.example/b", (("Accept", "*/*"), ("authorization", "Bearer old")))
REFUSED = Reason.ORIGIN_UNAUTHORIZED


class Client:
    """Notes that it was asked; answers when told to."""

    def __init__(self) -> None:
        self.asked: list[Reason] = []
        self.listens = True
        self.renewer = Renewer(self._ask)

    def _ask(self, reason: Reason) -> bool:
        self.asked.append(reason)
        return self.listens


def authorization_of(request: OriginRequest | None) -> str | None:
    return dict(request.headers)["authorization"] if request is not None else None


async def waiting(rights: Rights, count: int) -> "list[asyncio.Task[OriginRequest | None]]":
    tasks = [
        asyncio.create_task(rights.renewed(*KEY, refused=OLD, reason=REFUSED)) for _ in range(count)
    ]
    await asyncio.sleep(0)
    return tasks


def test_many_attempts_ask_the_client_once() -> None:
    async def run() -> None:
        rights, client = Rights(), Client()
        rights.add(KEY, OLD, client.renewer)
        tasks = await waiting(rights, 5)
        assert client.asked == [REFUSED]
        rights.renew([KEY], client.renewer, "Bearer new")
        fresh = await asyncio.gather(*tasks)
        assert {authorization_of(each) for each in fresh} == {"Bearer new"}
        assert fresh[0] is not None
        assert fresh[0].headers[0] == ("Accept", "*/*")
        # An attempt that was under way with the old one is not worth a question.
        assert authorization_of(await rights.renewed(*KEY, OLD, REFUSED)) == "Bearer new"
        assert client.asked == [REFUSED]

    asyncio.run(run())


@pytest.mark.parametrize("answer", [None, "Bearer old"])
def test_a_client_without_a_fresh_right_ends_the_attempt(answer: str | None) -> None:
    async def run() -> None:
        rights, client = Rights(), Client()
        rights.add(KEY, OLD, client.renewer)
        [task] = await waiting(rights, 1)
        rights.renew([KEY], client.renewer, answer)
        assert await task is None
        assert rights.resolve(*KEY) == OLD

    asyncio.run(run())


def test_a_silent_client_is_not_waited_for_without_end() -> None:
    async def run() -> None:
        rights, client = Rights(timeout_s=0.01), Client()
        rights.add(KEY, OLD, client.renewer)
        assert await asyncio.gather(*await waiting(rights, 2)) == [None, None]
        [task] = await waiting(rights, 1)
        assert client.asked == [REFUSED, REFUSED]
        await task

    asyncio.run(run())


def test_the_end_of_a_download_ends_its_attempts() -> None:
    async def run() -> None:
        rights, client = Rights(), Client()
        rights.add(KEY, OLD, client.renewer)
        [task] = await waiting(rights, 1)
        rights.remove(KEY, client.renewer)
        assert await task is None
        assert rights.resolve(*KEY) is None

    asyncio.run(run())


def test_nobody_is_asked_who_cannot_answer() -> None:
    async def run() -> None:
        rights, client = Rights(), Client()
        rights.add(KEY, OLD, None)
        assert await rights.renewed(*KEY, OLD, REFUSED) is None
        rights.add(KEY, OLD, client.renewer)
        assert await rights.renewed(*KEY, OLD, Reason.ORIGIN_NOT_FOUND) is None
        client.listens = False
        assert await rights.renewed(*KEY, OLD, REFUSED) is None
        assert client.asked == [REFUSED]
        # The other download still wants it.
        rights.remove(KEY, client.renewer)
        assert rights.resolve(*KEY) == OLD
        assert await rights.renewed(*KEY, OLD, REFUSED) is None
        assert await rights.renewed(SourceId("b" * 64), "", OLD, REFUSED) is None

    asyncio.run(run())


def test_those_who_show_nothing_ask_where_the_operator_said_if_one_of_them_does() -> None:
    rights = Rights()
    own = OriginRequest("http://mine.example/b")
    named = OriginRequest("https://registry.example/b")
    rights.add(KEY, own, None)
    assert rights.resolve(*KEY) == own
    rights.add(KEY, named, None, trusted=True)
    assert rights.resolve(*KEY) == named
    rights.add(KEY, own, None)
    rights.remove(KEY, None)
    assert rights.resolve(*KEY) == named
