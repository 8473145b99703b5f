"""The commands as whole processes: a demo, and a `shoal get` with nothing set up."""

import hashlib
import http.client
import json
import os
import signal
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peer.cli.demo import make_content
from peer.cli.demo_processes import Processes

RATE_BYTES_S = 4_000_000
SIZE_BYTES = 12 << 20


def shoal(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [sys.executable, "-m", "peer.cli.main", *arguments],
        capture_output=True,
        check=False,
        timeout=55,
        **options,
    )


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """A URL of 12 MiB at 4 MB/s, and the content's SHA-256."""
    path = tmp_path / "origin" / "content.bin"
    path.parent.mkdir()
    digest = make_content(path, SIZE_BYTES)
    with Processes(path.parent) as processes:
        started = processes.start("origin", "peer.cli.demo_origin", str(path), str(RATE_BYTES_S))
        yield f"http://127.0.0.1:{started.facts()['port']}/content.bin", digest


def sent_by(url: str) -> int:
    """Payload bytes that the origin has sent so far."""
    # No TLS to be set up, which alone can take longer than a part of the content.
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    try:
        connection.request("GET", "/-/stats")
        return int(json.load(connection.getresponse())["sent_bytes"])
    finally:
        connection.close()


def environment(tmp_path: Path) -> dict[str, str]:
    """Without proxies, and with no daemon to be found."""
    kept = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    return {
        **kept,
        "SHOAL_PEER_API_SOCKET": str(tmp_path / "no-daemon.sock"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }


@pytest.mark.slow
def test_a_small_demo_is_right_and_near_the_bound() -> None:
    done = shoal("demo", "--nodes", "3", "--size", "16MiB", "--rate", "10MB", "--json")
    assert done.returncode == 0, done.stderr.decode()
    result = json.loads(done.stdout)
    assert result["verified"] is True
    assert result["nodes"] == len(result["per_node"]) == 3
    assert result["origin_copies"] == pytest.approx(1.0, abs=0.02)
    # Loose, since other tests may be using the machine; the tight one is a benchmark.
    assert result["makespan_over_bound"] < 2


@pytest.mark.slow
def test_with_nothing_set_up_a_file_is_fetched_and_verified(
    tmp_path: Path, origin: tuple[str, str]
) -> None:
    url, digest = origin
    home = tmp_path / "home"
    home.mkdir()
    done = shoal(
        "get", url, "-O", str(home / "model.bin"), "--digest", f"sha256:{digest}", "--json",
        env=environment(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    assert hashlib.sha256((home / "model.bin").read_bytes()).hexdigest() == digest
    assert json.loads(done.stdout)["size_bytes"] == SIZE_BYTES
    assert [path.name for path in home.iterdir()] == ["model.bin"]


@pytest.mark.slow
def test_a_wrong_digest_leaves_no_file(tmp_path: Path, origin: tuple[str, str]) -> None:
    url, _ = origin
    target = tmp_path / "model.bin"
    done = shoal(
        "get", url, "-O", str(target), "--digest", "sha256:" + "0" * 64, env=environment(tmp_path)
    )
    assert done.returncode == 3, done.stderr.decode()
    assert not target.exists()


@pytest.mark.slow
def test_stdout_streams_the_content_in_order(tmp_path: Path, origin: tuple[str, str]) -> None:
    url, digest = origin
    done = shoal("get", url, "-O", "-", env=environment(tmp_path))
    assert done.returncode == 0, done.stderr.decode()
    assert hashlib.sha256(done.stdout).hexdigest() == digest


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_download_resumes(
    tmp_path: Path, origin: tuple[str, str], how: signal.Signals
) -> None:
    url, digest = origin
    home = tmp_path / "home"
    home.mkdir()
    target = home / "model.bin"
    arguments = [sys.executable, "-m", "peer.cli.main", "get", url, "-O", str(target), "--json"]
    with subprocess.Popen(
        arguments, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as first:
        # Early enough that the rest takes seconds, however busy the machine is.
        while first.poll() is None and sent_by(url) < SIZE_BYTES // 3:
            continue
        first.send_signal(how)
        first.communicate(timeout=30)
    assert first.returncode == (130 if how is signal.SIGINT else -signal.SIGKILL)
    assert not target.exists()
    before = sent_by(url)
    done = shoal(*arguments[3:], env=environment(tmp_path))
    assert done.returncode == 0, done.stderr.decode()
    assert hashlib.sha256(target.read_bytes()).hexdigest() == digest
    assert sent_by(url) - before < SIZE_BYTES
    assert json.loads(done.stdout)["origin_bytes"] < SIZE_BYTES
    assert [path.name for path in home.iterdir()] == ["model.bin"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["peer", "scheduler"])
def test_a_daemon_tells_when_it_is_ready_and_ends_on_sigterm(tmp_path: Path, name: str) -> None:
    own = ["--store-root", str(tmp_path / "store"), "--socket", str(tmp_path / "p.sock")]
    with Processes(tmp_path) as processes:
        started = processes.start(
            name, "peer.cli.main", name, "--status", "127.0.0.1:0", "--listen", "127.0.0.1:0",
            *(own if name == "peer" else []), "--ready-file",
        )  # fmt: skip
        facts = started.facts()
        assert facts["pid"] == started.process.pid
        assert facts["status_port"] > 0
        if name == "peer":
            assert shoal("status", "-e", facts["socket"]).returncode == 0
        started.process.terminate()
        assert started.process.wait(30) == 0


@pytest.mark.slow
def test_one_process_for_a_small_site(tmp_path: Path, origin: tuple[str, str]) -> None:
    url, digest = origin
    with Processes(tmp_path) as processes:
        facts = processes.start(
            "peer", "peer.cli.main", "peer", "--embedded-scheduler",
            "--set", "scheduler.embedded_listen=127.0.0.1:0", "--status", "",
            "--store-root", str(tmp_path / "store"), "--socket", str(tmp_path / "p.sock"),
            "--ready-file",
        ).facts()  # fmt: skip
        assert facts["address"].startswith("127.0.0.1:")
        target = tmp_path / "model.bin"
        done = shoal("get", "-e", facts["socket"], url, "-O", str(target))
        assert done.returncode == 0, done.stderr.decode()
        assert hashlib.sha256(target.read_bytes()).hexdigest() == digest
