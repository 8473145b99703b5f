"""The parts of the service benchmark that compute: options, batches, percentiles, the table."""

import random
from typing import Any

import pytest

from benchmarks.scale import service
from benchmarks.scale import service_words as words
from benchmarks.scale.__main__ import main
from shoal.runtime.control_codec import (
    decode_host_batch,
    decode_scheduler_batch,
    encode_scheduler_batch,
    parse_host_batch,
    parse_scheduler_batch,
)
from shoal.wire.control import Hello, Join, Report, StatAnswer, StatWanted, SwarmToken, Welcome
from shoal.wire.errors import UsageError
from shoal.wire.ids import LeaseNumber


def decoded(batch: bytes) -> tuple[Any, ...]:
    return decode_host_batch(parse_host_batch(batch))


def test_what_hosts_say_is_legal() -> None:
    (hello,) = decoded(words.hello_batch(70_000))
    assert isinstance(hello, Hello)
    assert hello.host.host_id == words.host_id(70_000)
    assert hello.host.addresses[0].ip == "10.1.17.112"
    (join,) = decoded(words.join_batch())
    assert isinstance(join, Join)
    (stat,) = decoded(words.stat_batch())
    assert isinstance(stat, StatAnswer)
    assert stat.size_bytes == words.SIZE_BYTES


def test_a_track_comes_to_every_piece_once() -> None:
    track = words.Track(1, task_s=5.0)
    held = 0
    start = 0
    while part := track.part(start, start + 3):
        (report,) = decoded(words.report_batch(part))
        assert isinstance(report, Report)
        new = report.progress[0].new
        assert not held & new
        held |= new
        start += 3
    assert held == words.GEOMETRY.all_pieces
    assert start * words.SLICE_MS == pytest.approx(5000, abs=3 * words.SLICE_MS)


def test_a_report_is_joined_from_parts() -> None:
    track = words.Track(1, task_s=60.0)
    statement = words.lease_part(LeaseNumber(7), [5], done=True)
    (report,) = decoded(words.report_batch(track.part(0, 2), statement, b""))
    assert report.statements[0].piece == 5
    assert report.lease_ends[0].number == 7
    assert report.progress[0].new.bit_count() == 34


def test_kinds_are_seen_from_outside() -> None:
    batch = encode_scheduler_batch(
        [
            Welcome(scheduler_id="s", version=1, report_interval_ms=500),
            StatWanted(source_id=words.SOURCE_ID),
            SwarmToken(task_id=words.TASK_ID, token=b"t" * 200, ttl_ms=1),
        ]
    ).SerializeToString()
    found = list(words.entries(batch))
    assert [kind for kind, _, _ in found] == [words.WELCOME, words.STAT_WANTED, 12]
    assert b"".join(batch[start:end] for _, start, end in found) == batch
    _, start, end = found[1]
    (message,) = decode_scheduler_batch(parse_scheduler_batch(batch[start:end]))
    assert message == StatWanted(source_id=words.SOURCE_ID)
    assert list(words.entries(b"")) == []


def test_replies_are_summed_up() -> None:
    latencies = [float(value) for value in range(1, 1001)]
    random.Random(1).shuffle(latencies)
    answers = [
        {
            "latencies_ms": latencies[start : start + 500],
            "reply_bytes": [1000, 2000],
            "first_bytes": [3000],
            "missing": 1,
            "lost": {"why": 1},
            "cpu_s": 0.5,
        }
        for start in (0, 500)
    ]
    row = service.summed_up(answers, 1000, cpu_s=0.25)
    assert (row["p50_ms"], row["p99_ms"], row["max_ms"]) == (500, 990, 1000)
    assert row["cpu_ms_per_join"] == 0.25
    assert row["reply_bytes_max"] == 2000
    assert (row["missing"], row["lost"]) == (2, {"why": 2})


@pytest.mark.parametrize(
    "arguments",
    [
        ["--phase", "joint"],
        ["--steady-hosts", "many"],
        ["--report-ms", "fast"],
        ["--hosts", "1"],
        ["--rounds", "0"],
    ],
)
def test_wrong_options_are_a_usage_error(arguments: list[str]) -> None:
    with pytest.raises(UsageError):
        service.checked(service.parser().parse_args(arguments))
    assert service.main(arguments) == 2


def test_options_are_taken_apart() -> None:
    arguments = ["--phase", "cold,join", "--steady-hosts", "20,30", "--report-ms", "100-200"]
    options = service.checked(service.parser().parse_args(arguments))
    assert options.phases == ["cold", "join"]
    assert options.steady_numbers == [20, 30]
    assert (options.report_min_ms, options.report_max_ms) == (100, 200)


def test_an_unknown_word_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["servce"])
    assert ended.value.code == 2
    assert "usage" in capsys.readouterr().err
