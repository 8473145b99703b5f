"""`python -m benchmarks.real.pull` on a small scale: real namespaces, links, registry and peers."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.real.pull import main, table
from tests.conftest import require_root, require_tool
from tests.integration.swarm_rig import ROOT, wait_for

SMALL = ("--hosts", "3", "--size", "24MiB", "--shards", "3", "--rate-mbit", "100")


def require_all() -> None:
    require_root()
    for tool in ("ip", "tc", "docker-registry"):
        require_tool(tool)


def namespaces() -> str:
    return subprocess.run(
        [require_tool("ip"), "netns", "list"], capture_output=True, check=True, text=True
    ).stdout


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_model_leaves_the_registry_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    require_all()
    code = main([*SMALL, "--directory", str(tmp_path), "--egress-limit", "1.02", "--json"])
    printed = capsys.readouterr()
    assert code == 0, printed.err or printed.out
    result = json.loads(printed.out)
    assert result["size_bytes"] >= 24 << 20
    assert result["layers"] == 7
    # Each layer's stat reads a byte; no other byte is read twice.
    body_bytes = result["registry"]["body_bytes"]
    assert result["size_bytes"] <= body_bytes <= result["size_bytes"] + 7
    # What came over the link is that, with headers of packets and answers.
    assert body_bytes < result["registry"]["link_bytes"] < 1.1 * body_bytes
    # No host can have all of it before its own link has carried all of it.
    assert result["makespan_over_bound"] > 1
    assert len(result["seconds"]) == 3
    assert "over the bound" in table(result)
    assert f"shoal-bench-{os.getpid()}-" not in namespaces()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_in_the_middle_it_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    require_all()
    command = [sys.executable, "-m", "benchmarks.real.pull", *SMALL, "--rate-mbit", "2"]
    log = tmp_path / "log"
    work = tmp_path / "work"
    work.mkdir()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--directory", str(work)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'proto'}"},
        )  # fmt: skip
    try:
        wait_for(lambda: "pulling" in log.read_text() or process.poll() is not None, "it pulls", 60)
        process.send_signal(number)
        assert process.wait(40) == 130, log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert f"shoal-bench-{process.pid}-" not in namespaces()
    assert not list(work.iterdir())
    commands = [_read(path) for path in Path("/proc").glob("[0-9]*/cmdline")]
    assert not [command for command in commands if str(work).encode() in command]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""  # It has ended.


def test_it_says_that_it_needs_root(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main([]) == 1
    assert "need root" in capsys.readouterr().err
