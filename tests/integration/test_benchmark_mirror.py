"""`python -m benchmarks.real.mirror` measures what it says, and a small crowd is served right."""

import json
import subprocess
import sys
from typing import Any

import pytest

from benchmarks.real.mirror.__main__ import BAR_MISSED, main, table
from tests.conftest import require_root, require_tool
from tests.integration.swarm_rig import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

BENCH_S = 250.0


def check_rows(measured: dict[str, Any], size_bytes: int) -> None:
    assert measured["size_bytes"] == size_bytes
    assert [row["name"] for row in measured["rows"]] == ["straight", "cold", "warm"]
    for row in measured["rows"]:
        assert 0 < row["first_byte_ms"] <= 1000 * row["total_s"]


def test_many_clients_at_once_get_every_byte_and_the_registry_is_read_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    require_tool("docker-registry")
    crowd = ["--clients", "40", "--blobs", "20", "--blobs-each", "2", "--blob-size", "1500KB"]
    code = main(["--rate", "0", "--size", "4MB", "--turns", "1", "--json", *crowd])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    result = json.loads(printed.out)
    check_rows(result["stream"]["loopback"], 4_000_000)
    assert [each["by_manifest"] for each in result["crowd"]] == [False, True]
    for measured in result["crowd"]:
        assert measured["requests"] == 80
        cold, warm = measured["rounds"]
        assert (cold["errors"], warm["errors"]) == (0, 0)
        assert 1.0 <= cold["copies_max"] <= 1.01
        assert warm["copies_max"] == 0.0
        assert 30_000_000 < measured["peak_rss_bytes"] < 200_000_000
    assert "40 clients" in table(result)


def test_a_link_has_the_rate_that_was_asked_for() -> None:
    require_root()
    for tool in ("docker-registry", "ip", "tc"):
        require_tool(tool)
    options = ("--rate", "200", "--size", "10MB", "--turns", "1", "--clients", "0", "--json")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.real.mirror", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=BENCH_S,
    )
    assert done.returncode in (0, BAR_MISSED), done.stderr
    result = json.loads(done.stdout)
    assert bool(result["missed"]) == (done.returncode == BAR_MISSED)
    measured = result["stream"]["shaped"]
    check_rows(measured, 10_000_000)
    straight, cold, warm = measured["rows"]
    # 10 MB at 200 Mbit/s, less what the shaper lets through at once.
    assert straight["total_s"] > 0.35
    assert cold["total_s"] > 0.35
    assert warm["total_s"] < straight["total_s"]
    assert "200 Mbit/s" in table(result)
