"""`shoal demo`: its arithmetic, its verdict, its origin, and its processes."""

import asyncio
import hashlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from peer.cli.demo import Node, bound_s, make_content, run, summary
from peer.cli.demo_origin import DemoOrigin
from peer.cli.demo_processes import Processes
from peer.cli.local_client import LocalClient
from peer.cli.outcome import FileOutcome, Outcome
from shoal.wire.errors import ShoalError

MB = 1_000_000
BURST_MS = 10


# ---------------------------------------------------------------- arithmetic


@pytest.mark.parametrize(
    ("nodes", "origin", "up", "down", "seconds"),
    [
        (1, 10 * MB, 10 * MB, 10 * MB, 10.0),
        (8, 10 * MB, 10 * MB, 10 * MB, 10.0),
        (8, 100 * MB, 100 * MB, 10 * MB, 10.0),
        (9, 10 * MB, 0, 100 * MB, 90.0),
        (8, 20 * MB, 10 * MB, 100 * MB, 8.0),
    ],
    ids=["one node", "equal rates", "slow downlinks", "nobody uploads", "scarce uploads"],
)
def test_the_bound(nodes: int, origin: int, up: int, down: int, seconds: float) -> None:
    assert bound_s(100 * MB, nodes, origin, up, down) == pytest.approx(seconds)


def node(name: str, seconds: float, *, correct: bool = True) -> Node:
    outcome = Outcome([FileOutcome("content.bin", name)])
    outcome.origin_bytes, outcome.peer_bytes = 30 * MB, 70 * MB
    return Node(name, LocalClient("/none"), Path(name), outcome, seconds, correct)


def test_the_summary_has_what_a_script_needs() -> None:
    peers = [node("a", 11.0), node("b", 10.5), node("c", 12.0)]
    result = summary(peers, 100 * MB, 10 * MB, 12.0, 101 * MB)
    per_node = result.pop("per_node")
    assert result == {
        "nodes": 3,
        "size_bytes": 100 * MB,
        "rate_bytes_s": 10 * MB,
        "bound_s": 10.0,
        "makespan_s": 12.0,
        "makespan_over_bound": 1.2,
        "origin_bytes": 101 * MB,
        "origin_copies": 1.01,
        "p50_s": 11.0,
        "max_s": 12.0,
        "verified": True,
    }
    assert [each["node"] for each in per_node] == ["a", "b", "c"]
    assert per_node[0]["peer_bytes"] == 70 * MB


def test_one_wrong_node_is_a_wrong_run() -> None:
    peers = [node("a", 1.0), node("b", 1.0, correct=False)]
    assert not summary(peers, MB, MB, 1.0, MB)["verified"]


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 7])
def test_the_content_is_as_long_as_asked_and_its_digest_right(tmp_path: Path, size: int) -> None:
    path = tmp_path / "content"
    digest = make_content(path, size)
    content = path.read_bytes()
    assert len(content) == size
    assert hashlib.sha256(content).hexdigest() == digest


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--nodes", "0"], "1 to 64"),
        (["--nodes", "65"], "1 to 64"),
        (["--size", "big"], "256MiB"),
        (["--rate", "0"], "--rate"),
        (["--size", "9000TB"], "free"),
    ],
)
def test_what_makes_no_sense_is_told(
    arguments: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run("demo", arguments) == 2
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- the origin


class Origin:
    """A demo origin in this process, and a client of it."""

    def __init__(self, path: Path, rate_bytes_s: int) -> None:
        self.origin = DemoOrigin(path, rate_bytes_s, burst_ms=BURST_MS)
        self._runner = web.AppRunner(self.origin.application(), access_log=None)

    async def open(self) -> None:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        port = self._runner.addresses[0][1]
        self.client = aiohttp.ClientSession(base_url=f"http://127.0.0.1:{port}")

    async def close(self) -> None:
        await self.client.close()
        await self._runner.cleanup()


@pytest.fixture
async def origin(tmp_path: Path) -> AsyncIterator[Origin]:
    path = tmp_path / "content"
    path.write_bytes(bytes(range(256)) * 4000)
    origin = Origin(path, 4 * 1024 * 1000)
    await origin.open()
    yield origin
    await origin.close()


async def test_the_origin_serves_ranges_and_counts_the_payload_it_sent(origin: Origin) -> None:
    content = bytes(range(256)) * 4000
    async with origin.client.get("/x", headers={"Range": "bytes=100-299"}) as response:
        assert response.status == 206
        assert response.headers["Content-Range"] == f"bytes 100-299/{len(content)}"
        assert response.headers["ETag"]
        assert await response.read() == content[100:300]
    async with origin.client.get("/x", headers={"Range": f"bytes={len(content)}-"}) as response:
        assert response.status == 416
    async with origin.client.get("/-/stats") as response:
        assert await response.json() == {"sent_bytes": 200, "requests": 2}


async def test_all_connections_share_one_rate_fairly(origin: Origin) -> None:
    """Four connections of 0.5 MB each out of 4 MB/s: no more than the burst ahead of the rate, and
    nobody long before the others. A busy machine can only make it slower, never faster."""
    ends: list[float] = []

    async def one() -> int:
        async with origin.client.get("/x", headers={"Range": "bytes=0-511999"}) as response:
            count = len(await response.read())
        ends.append(time.monotonic())
        return count

    began = time.monotonic()
    assert list(await asyncio.gather(one(), one(), one(), one())) == [512_000] * 4
    assert max(ends) - began >= 4 * 512_000 / 4_096_000 - BURST_MS / 1000
    assert min(ends) - began >= 0.6 * (max(ends) - began)


# ---------------------------------------------------------------- processes


def test_a_process_that_cannot_start_shows_its_log(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        started = processes.start("peer", "peer.cli.main", "nonsense")
        with pytest.raises(ShoalError, match="unknown command 'nonsense'"):
            started.facts()


def test_children_see_neither_proxies_nor_a_real_daemons_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "https_proxy", "SHOAL_PEER_ZONE"):
        monkeypatch.setenv(name, "http://proxy.example:1")
    (tmp_path / "tell.py").write_text(
        "import json, os, sys, pathlib\n"
        "pathlib.Path(sys.argv[1]).write_text(json.dumps(sorted(os.environ)))\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    with Processes(tmp_path) as processes:
        started = processes.start("tell", "tell")
        started.process.wait(30)
        names = json.loads((tmp_path / "tell.ready").read_text())
    assert "PATH" in names
    assert not {"HTTP_PROXY", "https_proxy", "SHOAL_PEER_ZONE"} & set(names)


def test_whatever_happens_no_process_is_left(tmp_path: Path) -> None:
    (tmp_path / "hang.py").write_text("import signal\nsignal.pause()\n")
    processes = Processes(tmp_path)

    def interrupted() -> None:
        with processes:
            processes.start("hang", "runpy", str(tmp_path / "hang.py"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    ((_, process),) = processes._running
    assert process.poll() is not None
