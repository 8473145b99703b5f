"""Who gets what a node holds: clients who name a digest and a server of their own."""

import contextlib
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest

from peer.shell.api_types import (
    Done,
    DownloadEvent,
    DownloadRequest,
    Failed,
    Resolved,
    WantedUrl,
)
from peer.shell.errors import DownloadError
from peer.shell.node import PeerNode
from shoal.wire.errors import Reason
from shoal.wire.limits import KIB, MIB
from tests.fakes.web_origin import WebOrigin
from tests.shell.test_node import node_of, outcome

CONTENT = Random(6).randbytes(2 * MIB + 5)
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
TOKEN = "t0ken"


@contextlib.asynccontextmanager
async def web(files: dict[str, bytes], token: str = "") -> AsyncIterator[WebOrigin]:
    origin = WebOrigin(files=files, token=token)
    await origin.start()
    try:
        yield origin
    finally:
        await origin.close()


@pytest.fixture
async def private() -> AsyncIterator[WebOrigin]:
    """The content's own origin: nobody gets it without the token."""
    async with web({"/model": CONTENT}, TOKEN) as origin:
        yield origin


def asking(
    url: str, *, token: str = "", output: Path | None = None, trusted: bool = False
) -> DownloadRequest:
    headers = (("Authorization", f"Bearer {token}"),) if token else ()
    wanted = WantedUrl(url=url, headers=headers, digest=DIGEST, trusted=trusted)
    return DownloadRequest(urls=(wanted,), outputs=(output,), piece_length_bytes=256 * KIB)


async def fetch(node: PeerNode, private: WebOrigin) -> None:
    """Somebody with the right to it has downloaded it."""
    events = await outcome(node, asking(f"{private.url}/model", token=TOKEN))
    assert isinstance(events[-1], Done)


def refused(events: list[DownloadEvent]) -> Failed:
    assert not any(isinstance(event, Resolved) for event in events), "it was told what there is"
    (end,) = (event for event in events if isinstance(event, Failed | Done))
    assert isinstance(end, Failed)
    return end


@pytest.mark.parametrize("token", ["", "of my own"])
async def test_a_server_of_ones_own_opens_nothing(
    tmp_path: Path, private: WebOrigin, token: str
) -> None:
    """It says yes to everything, and has something of the right size under that name."""
    async with web({"/model": bytes(len(CONTENT))}) as own, node_of(tmp_path, "one") as node:
        await fetch(node, private)
        output = tmp_path / "stolen"
        end = refused(await outcome(node, asking(f"{own.url}/model", token=token, output=output)))
        assert end.reason is Reason.ORIGIN_CHANGED
        assert "check the URL" in end.detail
        assert not output.exists()
        with pytest.raises(DownloadError):
            await node.downloads.stream(asking(f"{own.url}/model", token=token))
        # Nothing is wrong with what is held: whoever may have it gets it, without a byte read.
        mine = await outcome(
            node, asking(f"{private.url}/model", token=TOKEN, output=tmp_path / "mine")
        )
    assert isinstance(mine[-1], Done)
    assert mine[-1].origin_bytes == 0
    assert (tmp_path / "mine").read_bytes() == CONTENT


async def test_whoever_has_the_content_may_have_it(tmp_path: Path, private: WebOrigin) -> None:
    """A mirror of one's own with the same bytes: the client could have read them there."""
    async with web({"/copy": CONTENT}) as copy, node_of(tmp_path, "one") as node:
        await fetch(node, private)
        output = tmp_path / "mine"
        events = await outcome(node, asking(f"{copy.url}/copy", output=output))
        assert isinstance(events[-1], Done)
        assert events[-1].origin_bytes == 0
        assert copy.sent_bytes["/copy"] == 1 + 64 * KIB
        assert output.read_bytes() == CONTENT
        # Not looked at again at once.
        assert isinstance((await outcome(node, asking(f"{copy.url}/copy")))[-1], Done)
        assert copy.sent_bytes["/copy"] == 1 + 64 * KIB


async def test_a_yes_before_it_was_here_does_not_count_when_it_is(
    tmp_path: Path, private: WebOrigin
) -> None:
    async with web({"/model": bytes(len(CONTENT))}) as own, node_of(tmp_path, "one") as node:
        early = await outcome(node, asking(f"{own.url}/model", token="mine"))
        assert isinstance(early[-1], Failed)
        assert early[-1].reason is Reason.DIGEST_MISMATCH
        await fetch(node, private)
        end = refused(await outcome(node, asking(f"{own.url}/model", token="mine")))
    assert end.reason is Reason.ORIGIN_CHANGED


async def test_an_origin_that_the_operator_named_is_asked_for_nothing_more(
    tmp_path: Path, private: WebOrigin
) -> None:
    async with node_of(tmp_path, "one") as node:
        await fetch(node, private)
        before = private.sent_bytes["/model"]
        request = asking(f"{private.url}/other?of=it", token=TOKEN, trusted=True)
        private.files["/other"] = CONTENT
        assert isinstance((await outcome(node, request))[-1], Done)
    assert private.sent_bytes["/model"] == before
    assert private.sent_bytes["/other"] == 1
