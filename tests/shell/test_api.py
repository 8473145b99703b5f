"""The local API over a real Unix socket, with a fake daemon behind it."""

import asyncio
import io
import json
import os
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvloop

from peer.shell.api import LocalApi
from peer.shell.api_types import Failed, Progress, SwarmContent
from peer.shell.errors import DownloadError
from shoal.runtime.clock import MonotonicClock
from shoal.runtime.tasks import InlineOffload
from shoal.wire.control import Demand
from shoal.wire.errors import Reason, UsageError
from tests.fakes.answers import digest_of
from tests.fakes.downloads import FakeDownloads, task_id_of

URL = "https://origin.example/model.bin?signature=secret"
CONTENT = bytes(range(256)) * 4096
STRANGER_UID = 54321


class Rig:
    """An API and a client of it."""

    def __init__(self, root: Path) -> None:
        (root / "store").mkdir()
        self.downloads = FakeDownloads(root / "store")
        self.task_id = self.downloads.add(URL, CONTENT)
        self.output = root / "output.bin"
        self.uid = os.getuid()
        self.api = LocalApi(
            self.downloads,
            root / "run" / "peer.sock",
            offload=InlineOffload(),
            clock=MonotonicClock(),
            identify=lambda _descriptor: self.uid,
        )

    async def open(self) -> None:
        await self.api.start()
        connector = aiohttp.UnixConnector(os.fspath(self.api.socket_path))
        self.client = aiohttp.ClientSession(connector=connector, base_url="http://shoal")

    async def close(self) -> None:
        await self.client.close()
        await self.api.close()

    def body(self, **fields: Any) -> dict[str, Any]:
        return {"urls": [{"url": URL}], "outputs": [str(self.output)], **fields}

    async def events(self, **fields: Any) -> list[dict[str, Any]]:
        async with self.client.post("/v1/downloads", json=self.body(**fields)) as response:
            assert response.status == 200, await response.text()
            assert response.content_type == "application/x-ndjson"
            return [json.loads(line) async for line in response.content]

    async def error(self, method: str, path: str, **options: Any) -> tuple[int, str, str]:
        async with self.client.request(method, path, **options) as response:
            error = (await response.json())["error"]
            return response.status, error["reason"], error["detail"]


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    rig = Rig(tmp_path)
    await rig.open()
    yield rig
    await rig.close()


# ---------------------------------------------------------------- downloads


async def test_a_download_tells_what_it_is_where_it_went_and_that_it_is_done(rig: Rig) -> None:
    events = await rig.events()
    assert events == [
        {
            "event": "resolved",
            "index": 0,
            "task_id": rig.task_id,
            "size": len(CONTENT),
            "digest": None,
        },
        {
            "event": "delivered",
            "index": 0,
            "task_id": rig.task_id,
            "size": len(CONTENT),
            "digest": digest_of(CONTENT),
            "path": str(rig.output),
            "how": "hard-link",
        },
        {
            "event": "done",
            "size": len(CONTENT),
            "origin_bytes": len(CONTENT) - 1,
            "peer_bytes": 1,
        },
    ]
    assert rig.output.read_bytes() == CONTENT
    assert rig.downloads.started[0].closed


async def test_every_field_of_a_request_reaches_the_daemon(rig: Rig) -> None:
    digest = "sha256:" + "ab" * 32
    await rig.events(
        urls=[{"url": URL, "headers": [["Authorization", "Bearer x"]], "digest": digest}],
        tag="t",
        application="a",
        piece_length=1 << 20,
        filtered_query_params=["signature"],
        priority=3,
        disable_back_to_source=True,
        overwrite=True,
        own_files=True,
        demand="background",
        timeout_ms=5000,
    )
    (request,) = rig.downloads.requests
    assert request.urls[0].headers == (("Authorization", "Bearer x"),)
    assert request.urls[0].digest == digest
    assert request.outputs == (rig.output,)
    assert (request.tag, request.application) == ("t", "a")
    assert request.piece_length_bytes == 1 << 20
    assert request.filtered_query_params == ("signature",)
    assert (request.priority, request.timeout_ms) == (3, 5000)
    assert request.disable_back_to_source
    assert request.overwrite
    assert request.own_files
    assert request.demand is Demand.BACKGROUND


async def test_a_failure_is_the_last_event(rig: Rig) -> None:
    rig.downloads.failure = Failed(reason=Reason.DIGEST_MISMATCH, detail="not it", index=0)
    events = await rig.events()
    assert events[-1] == {
        "event": "failed",
        "index": 0,
        "reason": "digest-mismatch",
        "detail": "not it",
    }
    assert not rig.output.exists()


async def test_a_client_renews_the_right_of_its_own_download(rig: Rig) -> None:
    rig.downloads.refuses = 1
    rig.downloads.gate.clear()
    body = rig.body(renewable=True)
    async with rig.client.post("/v1/downloads", json=body) as response:
        told = [json.loads(await response.content.readline()) for _ in range(2)]
        assert [event["event"] for event in told] == ["resolved", "unauthorized"]
        path = f"/v1/downloads/{told[1]['download']}/authorization"
        rig.uid = STRANGER_UID
        refused = await rig.error("POST", path, json={"authorization": "Bearer stolen"})
        assert refused[:2] == (404, "unknown-download")
        rig.uid = os.getuid()
        for value in ("Bearer fresh", None):
            async with rig.client.post(path, json={"authorization": value}) as answer:
                assert answer.status == 200
        wrongs: tuple[Any, ...] = (
            {"authorization": "a\r\nb"},
            {"authorization": 5},
            {"token": "x"},
            [],
        )
        for wrong in wrongs:
            status, reason, _ = await rig.error("POST", path, json=wrong)
            assert (status, reason) == (400, "usage")
        rig.downloads.gate.set()
        assert json.loads((await response.content.read()).splitlines()[-1])["event"] == "done"
    assert rig.downloads.renewals == ["Bearer fresh", None]
    # Its name is worth nothing once it is over.
    assert (await rig.error("POST", path, json={"authorization": "x"}))[0] == 404


async def test_what_had_arrived_is_told_before_a_failure_that_comes_fast(rig: Rig) -> None:
    rig.downloads.progress = Progress(received_bytes=5, size_bytes=10, origin_bytes=5)
    rig.downloads.failure = Failed(reason=Reason.ORIGIN_UNAUTHORIZED, detail="401")
    *_, progress, failed = await rig.events()
    assert (progress["event"], progress["bytes"]) == ("progress", 5)
    assert failed["event"] == "failed"


async def test_other_authorities_are_only_for_what_a_digest_names(rig: Rig) -> None:
    urls = [{"url": URL, "digest": digest_of(CONTENT)}]
    events = await rig.events(urls=urls, authorities="PEM", renewable=True)
    assert events[-1]["event"] == "done"
    assert rig.downloads.requests[-1].authorities == "PEM"
    assert rig.downloads.requests[-1].renewable
    for body in (rig.body(authorities="PEM"), rig.body(urls=urls, authorities="x" * (1 << 20 | 1))):
        data = io.BytesIO(json.dumps(body).encode())
        status, reason, detail = await rig.error("POST", "/v1/downloads", data=data)
        assert (status, reason) == (400, "usage")
        assert "authorities" in detail


async def test_progress_appears_only_once_a_download_takes_a_while(rig: Rig) -> None:
    rig.downloads.gate.clear()
    rig.downloads.progress = Progress(
        received_bytes=10, size_bytes=100, origin_bytes=4, peer_bytes=6
    )
    kinds = []
    async with rig.client.post("/v1/downloads", json=rig.body()) as response:
        async for line in response.content:
            event = json.loads(line)
            kinds.append(event["event"])
            if event["event"] == "progress":
                assert event["bytes"] == 10
                assert event["size"] == 100
                assert (event["origin_bytes"], event["peer_bytes"]) == (4, 6)
                assert event["rate"] > 0
                rig.downloads.gate.set()
    assert kinds[:2] == ["resolved", "progress"]
    assert kinds[-2:] == ["delivered", "done"]


async def test_a_download_that_takes_too_long_fails_with_timeout_and_is_closed(rig: Rig) -> None:
    rig.downloads.gate.clear()
    events = await rig.events(timeout_ms=30)
    assert events[-1]["event"] == "failed"
    assert events[-1]["reason"] == "timeout"
    assert rig.downloads.started[0].closed


async def test_closing_the_connection_cancels_the_download(rig: Rig) -> None:
    rig.downloads.gate.clear()
    async with rig.client.post("/v1/downloads", json=rig.body()) as response:
        await response.content.readline()
        assert not rig.downloads.started[0].closed
        response.close()
    await rig.downloads.any_closed.wait()
    assert rig.downloads.started[0].closed


async def test_a_daemon_that_takes_no_more_answers_503(rig: Rig) -> None:
    rig.downloads.refusal = DownloadError(Reason.OVERLOADED, "too many")
    answer = await rig.error("POST", "/v1/downloads", json=rig.body())
    assert answer == (503, "overloaded", "too many")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"urls": []}, "urls"),
        ({"urls": [{"url": 5}]}, "urls[0].url"),
        ({"urls": [{"uri": "http://x/"}]}, "did you mean 'url'"),
        ({"urls": [{"url": URL, "digest": "md5:00"}]}, "sha256"),
        ({"urls": [{"url": URL, "headers": [["a", "b\r\nc"]]}]}, "line breaks"),
        ({"urls": [{"url": URL, "headers": [["a"]]}]}, "pair"),
        ({"outputs": ["relative/path"]}, "absolute"),
        ({"outputs": ["/a", "/b"]}, "outputs: 2 for 1 urls"),
        ({"overwite": True}, "did you mean 'overwrite'"),
        ({"overwrite": "yes"}, "true or false"),
        ({"priority": True}, "whole number"),
        ({"timeout_ms": -1}, "timeout_ms"),
        ({"demand": "soon"}, "streaming"),
        ({"piece_length": 1000}, "power of two"),
    ],
)
async def test_a_wrong_request_is_told_what_is_wrong(
    rig: Rig, change: dict[str, Any], says: str
) -> None:
    status, reason, detail = await rig.error("POST", "/v1/downloads", json=rig.body(**change))
    assert (status, reason) == (400, "usage")
    assert says in detail
    assert "secret" not in detail
    assert rig.downloads.requests == []


async def test_what_is_no_json_is_refused_without_being_quoted(rig: Rig) -> None:
    status, reason, detail = await rig.error("POST", "/v1/downloads", data=b"{secret")
    assert (status, reason) == (400, "usage")
    assert "secret" not in detail


# ---------------------------------------------------------------- other users


async def test_the_daemon_writes_nothing_for_another_user(rig: Rig) -> None:
    rig.uid = STRANGER_UID
    events = await rig.events()
    assert [event["event"] for event in events] == ["resolved", "ready", "done"]
    assert rig.downloads.requests[0].outputs == (None,)
    assert not rig.output.exists()
    async with rig.client.get(events[1]["content"]) as response:
        assert await response.read() == CONTENT


async def test_root_is_served_like_the_daemons_own_user(rig: Rig) -> None:
    rig.uid = 0
    events = await rig.events()
    assert events[1]["event"] == "delivered"


async def test_another_user_reads_only_what_was_downloaded_for_it(rig: Rig) -> None:
    rig.uid = STRANGER_UID
    path = f"/v1/tasks/{rig.task_id}/content"
    assert (await rig.error("GET", path))[:2] == (403, "unauthorized")
    await rig.events()
    rig.uid = STRANGER_UID + 1
    assert (await rig.error("GET", path))[:2] == (403, "unauthorized")
    rig.uid = STRANGER_UID
    async with rig.client.get(path) as response:
        assert response.status == 200


async def test_another_user_cannot_remove(rig: Rig) -> None:
    rig.uid = STRANGER_UID
    answer = await rig.error("DELETE", f"/v1/tasks/{rig.task_id}")
    assert answer[:2] == (403, "unauthorized")
    assert rig.downloads.removed == []


# ---------------------------------------------------------------- contents and tasks


@pytest.mark.parametrize(
    ("asked", "first", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-", 100, len(CONTENT)),
        ("bytes=-7", len(CONTENT) - 7, len(CONTENT)),
        ("bytes=5-99999999999", 5, len(CONTENT)),
    ],
)
async def test_a_range_of_a_content(rig: Rig, asked: str, first: int, end: int) -> None:
    path = f"/v1/tasks/{rig.task_id}/content"
    async with rig.client.get(path, headers={"Range": asked}) as response:
        assert response.status == 206
        assert response.headers["Content-Range"] == f"bytes {first}-{end - 1}/{len(CONTENT)}"
        assert await response.read() == CONTENT[first:end]


async def test_a_whole_content_and_its_head(rig: Rig) -> None:
    path = f"/v1/tasks/{rig.task_id}/content"
    async with rig.client.get(path) as response:
        assert response.status == 200
        assert await response.read() == CONTENT
        assert response.headers["X-Shoal-Digest"] == digest_of(CONTENT)
    async with rig.client.head(path) as response:
        assert response.headers["Content-Length"] == str(len(CONTENT))


async def test_a_range_behind_the_end_is_416(rig: Rig) -> None:
    path = f"/v1/tasks/{rig.task_id}/content"
    async with rig.client.get(path, headers={"Range": "bytes=9999999-"}) as response:
        assert response.status == 416
        assert response.headers["Content-Range"] == f"bytes */{len(CONTENT)}"


async def test_an_empty_content(rig: Rig) -> None:
    task_id = rig.downloads.add("http://origin.example/empty", b"")
    async with rig.client.get(f"/v1/tasks/{task_id}/content") as response:
        assert response.status == 200
        assert await response.read() == b""


async def test_an_unknown_task_is_404(rig: Rig) -> None:
    assert (await rig.error("GET", "/v1/tasks/none/content"))[:2] == (404, "unknown-task")
    assert (await rig.error("DELETE", "/v1/tasks/none"))[:2] == (404, "unknown-task")


async def test_an_unknown_path_is_404_with_json_too(rig: Rig) -> None:
    assert (await rig.error("GET", "/v2/nothing"))[0] == 404


async def test_tasks_are_listed_and_removed(rig: Rig) -> None:
    async with rig.client.get("/v1/tasks") as response:
        (task,) = (await response.json())["tasks"]
    assert task["task_id"] == rig.task_id
    assert task["size"] == task["held_bytes"] == len(CONTENT)
    async with rig.client.delete(f"/v1/tasks/{rig.task_id}") as response:
        assert response.status == 204
    assert rig.downloads.removed == [rig.task_id]


async def test_status(rig: Rig) -> None:
    async with rig.client.get("/v1/status") as response:
        assert (await response.json())["host_id"] == "fake"


# ---------------------------------------------------------------- the swarm

ONE, TWO = ("sha256:" + digits * 32 for digits in ("ab", "cd"))


async def test_what_the_swarm_holds_is_told_in_numbers(rig: Rig) -> None:
    rig.downloads.swarm_contents[TWO] = SwarmContent(
        digest=TWO, hosts=37, whole_hosts=12, covered_bytes=1000, size_bytes=1000
    )
    # Anybody who may connect: like what is held here.
    rig.uid = STRANGER_UID
    asked = {"digests": [ONE, TWO, ONE.upper().replace("SHA", "sha")]}
    async with rig.client.post("/v1/swarm", json=asked) as response:
        assert response.status == 200, await response.text()
        told = await response.json()
    nothing = {"hosts": 0, "whole_hosts": 0, "covered_bytes": 0, "size": None}
    assert told == {
        "hosts": 37,
        "whole_hosts": 0,
        "contents": [
            {"digest": ONE, **nothing},
            {"digest": TWO, "hosts": 37, "whole_hosts": 12, "covered_bytes": 1000, "size": 1000},
        ],
    }
    assert rig.downloads.swarm_asked == [(ONE, TWO)]


@pytest.mark.parametrize(
    ("reason", "status"),
    [(Reason.NO_SCHEDULER, 503), (Reason.OVERLOADED, 503), (Reason.TIMEOUT, 504)],
)
async def test_what_nobody_knows_has_a_reason(rig: Rig, reason: Reason, status: int) -> None:
    rig.downloads.swarm_refusal = DownloadError(reason, "why")
    told = await rig.error("POST", "/v1/swarm", json={"digests": [ONE]})
    assert told == (status, str(reason), "why")


@pytest.mark.parametrize(
    "body",
    [
        [],
        {},
        {"digests": []},
        {"digests": [7]},
        {"digests": ["md5:00"]},
        {"digests": ONE},
        {"digests": [ONE], "urls": []},
        {"digests": [ONE] * 10_001},
    ],
)
async def test_a_question_that_makes_no_sense_is_refused(rig: Rig, body: object) -> None:
    assert (await rig.error("POST", "/v1/swarm", json=body))[:2] == (400, "usage")
    assert not rig.downloads.swarm_asked


# ---------------------------------------------------------------- streams


async def test_a_stream_flows_before_it_is_whole(rig: Rig) -> None:
    rig.downloads.gate.clear()
    async with rig.client.post("/v1/stream", json={"urls": [{"url": URL}]}) as response:
        assert response.headers["X-Shoal-Task-Id"] == rig.task_id
        assert response.headers["Content-Length"] == str(len(CONTENT))
        half = len(CONTENT) // 2
        assert await response.content.readexactly(half) == CONTENT[:half]
        rig.downloads.gate.set()
        assert await response.content.read() == CONTENT[half:]
        stream_id = response.headers["X-Shoal-Stream-Id"]
    async with rig.client.get(f"/v1/streams/{stream_id}") as response:
        assert (await response.json())["ok"]
    assert rig.downloads.requests[0].demand is Demand.STREAMING
    assert rig.downloads.streams[0].closed


@pytest.mark.parametrize("size_unknown", [False, True])
async def test_a_stream_that_fails_never_looks_whole(rig: Rig, *, size_unknown: bool) -> None:
    rig.downloads.size_unknown = size_unknown
    rig.downloads.failure = Failed(reason=Reason.DIGEST_MISMATCH, detail="not it")
    async with rig.client.post("/v1/stream", json={"urls": [{"url": URL}]}) as response:
        stream_id = response.headers["X-Shoal-Stream-Id"]
        with pytest.raises(aiohttp.ClientError):
            await response.read()
    async with rig.client.get(f"/v1/streams/{stream_id}") as response:
        outcome = await response.json()
    assert not outcome["ok"]
    assert (outcome["reason"], outcome["detail"]) == ("digest-mismatch", "not it")
    assert rig.downloads.streams[0].closed


async def test_a_stream_in_time_or_not_at_all(rig: Rig) -> None:
    rig.downloads.gate.clear()
    body = {"urls": [{"url": URL}], "timeout_ms": 30}
    async with rig.client.post("/v1/stream", json=body) as response:
        with pytest.raises(aiohttp.ClientError):
            await response.read()
        stream_id = response.headers["X-Shoal-Stream-Id"]
    async with rig.client.get(f"/v1/streams/{stream_id}") as response:
        assert (await response.json())["reason"] == "timeout"


async def test_a_reader_that_goes_away_ends_the_stream(rig: Rig) -> None:
    rig.downloads.gate.clear()
    async with rig.client.post("/v1/stream", json={"urls": [{"url": URL}]}) as response:
        await response.content.readexactly(1)
        response.close()
    await rig.downloads.any_closed.wait()


async def test_a_stream_has_one_url_and_no_output(rig: Rig) -> None:
    assert (await rig.error("POST", "/v1/stream", json=rig.body()))[0] == 400
    two = {"urls": [{"url": URL}, {"url": URL}]}
    assert (await rig.error("POST", "/v1/stream", json=two))[0] == 400


# ---------------------------------------------------------------- the socket


async def test_the_socket_is_the_users_own(rig: Rig) -> None:
    path = rig.api.socket_path
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_a_second_daemon_is_refused_and_the_first_goes_on(rig: Rig) -> None:
    second = LocalApi(
        rig.downloads, rig.api.socket_path, offload=InlineOffload(), clock=MonotonicClock()
    )
    with pytest.raises(UsageError, match="another daemon"):
        await second.start()
    await second.close()
    assert (await rig.events())[-1]["event"] == "done"


async def test_closing_removes_the_socket(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    await rig.open()
    await rig.close()
    assert not rig.api.socket_path.exists()


async def test_a_socket_that_a_killed_daemon_left_is_replaced(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.api.socket_path.parent.mkdir()
    left = socket.socket(socket.AF_UNIX)
    left.bind(os.fspath(rig.api.socket_path))
    left.close()
    await rig.open()
    assert (await rig.events())[-1]["event"] == "done"
    await rig.close()


async def test_a_file_in_the_sockets_place_is_never_removed(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.api.socket_path.parent.mkdir()
    rig.api.socket_path.write_text("precious")
    with pytest.raises(UsageError, match="not a socket"):
        await rig.api.start()
    assert rig.api.socket_path.read_text() == "precious"


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_the_kernel_tells_who_asks_on_either_loop(tmp_path: Path, loop_factory: Any) -> None:
    async def ask() -> list[dict[str, Any]]:
        rig = Rig(tmp_path)
        rig.api = LocalApi(
            rig.downloads, rig.api.socket_path, offload=InlineOffload(), clock=MonotonicClock()
        )
        await rig.open()
        try:
            return await rig.events()
        finally:
            await rig.close()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        events = runner.run(ask())
    assert events[1]["event"] == "delivered"
    assert events[1]["task_id"] == task_id_of(CONTENT)
