"""`python -m benchmarks.scale service` measures what it says, on a small scale."""

import json

import pytest

from benchmarks.scale.service import main, table


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "clients"), [("core", "http2"), ("core", "grpc"), ("stub", "http2")]
)
def test_a_small_run_gives_every_number(
    engine: str, clients: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--hosts", "20", "--steady-hosts", "20", "--seconds", "1", "--warm-up", "0.5"]
    arguments += ["--rounds", "1", "--processes", "2", "--json"]
    code = main([*arguments, "--engine", engine, "--clients", clients])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    result = json.loads(printed.out)
    assert result["clients"] == clients
    for phase in ("join", "cold"):
        (row,) = result[phase]
        assert row["missing"] == 0
        assert row["lost"] == {}
        assert 0 < row["p50_ms"] <= row["p99_ms"] <= row["max_ms"]
        assert 200 < row["reply_bytes_max"] < 32_000
    (row,) = result["steady"]
    assert row["hosts"] == 20
    assert row["not_joined"] == 0
    assert row["lost"] == {}
    assert row["reports_s"] > 10
    assert row["rss_bytes"] > 10_000_000
    assert "steady" in table(result)
