"""`python -m benchmarks.real` measures what it says, on a small scale."""

import json

import pytest

from benchmarks.real.__main__ import main, table
from benchmarks.real.small import percentile
from tests.conftest import require_tool


@pytest.mark.slow
def test_a_small_run_gives_every_number(capsys: pytest.CaptureFixture[str]) -> None:
    require_tool("nginx")
    require_tool("curl")
    code = main(["--size", "16MiB", "--api-runs", "3", "--command-runs", "1", "--json"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    result = json.loads(printed.out)
    rows = {row["name"]: row for row in result["bulk"]["rows"]}
    assert list(rows) == ["curl", "curl and sha256sum", "origin to peer", "peer to peer"]
    assert all(row["seconds"] > 0 for row in rows.values())
    # The second peer had no use for the origin.
    assert rows["peer to peer"]["cpu_s"].get("nginx", 0) <= 0.02
    assert all(peak > 10_000_000 for peak in result["bulk"]["peak_rss_bytes"].values())
    assert result["small"]["api"]["runs"] == 3
    assert result["small"]["command"]["runs"] == 1
    assert "peer to peer" in table(result)


def test_percentiles_are_by_nearest_rank() -> None:
    values = [float(value) for value in range(200, 0, -1)]
    assert percentile(values, 50) == 100
    assert percentile(values, 99) == 198
    assert percentile([7.0], 99) == 7
