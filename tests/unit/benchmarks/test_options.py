"""How runs are written: rates in bits, bytes and multiples, units by the size."""

import pytest

from benchmarks.scale.__main__ import parser, read
from benchmarks.scale.options import (
    BASE_RATE_BYTES_S,
    RunOptions,
    choose_unit,
    format_rate,
    parse_bandwidth,
    parse_node_rates,
    parse_unit,
)
from shoal.wire.errors import UsageError
from shoal.wire.limits import GIB, MIB


@pytest.mark.parametrize(
    ("text", "bytes_s"),
    [
        ("25Gb", 3.125e9),
        ("25Gbit/s", 3.125e9),
        ("25Gbps", 3.125e9),
        ("800Mb", 1e8),
        ("2.5gb", 2.5e9),
        ("3.125GB", 3.125e9),
        ("3.125GB/s", 3.125e9),
        ("1GiB", float(GIB)),
        ("0.2x", 0.2 * BASE_RATE_BYTES_S),
        ("4x", 4.0 * BASE_RATE_BYTES_S),
        ("0", 0.0),
    ],
)
def test_rates_are_read(text: str, bytes_s: float) -> None:
    assert parse_bandwidth(text) == pytest.approx(bytes_s)


@pytest.mark.parametrize("text", ["", "fast", "25 parsecs", "-1Gb", "1.5.5x", "Gb"])
def test_what_is_no_rate_is_refused_by_name(text: str) -> None:
    with pytest.raises(UsageError, match="is not a rate"):
        parse_bandwidth(text)


@pytest.mark.parametrize("rate", [3.125e9, 1.25e8, 125.0, 1.0, 6.25e8])
def test_printed_rates_are_read_back(rate: float) -> None:
    if rate >= 125:
        assert parse_bandwidth(format_rate(rate)) == pytest.approx(rate)
    else:
        assert format_rate(rate).endswith("b")


def test_a_mix_is_a_rate_per_part() -> None:
    assert parse_node_rates("0.5x,1x") == (BASE_RATE_BYTES_S / 2, BASE_RATE_BYTES_S)
    with pytest.raises(UsageError, match="empty"):
        parse_node_rates(" , ")


@pytest.mark.parametrize(
    ("size", "unit"),
    [
        (64 * GIB, 64 * MIB),
        (16 * GIB, 16 * MIB),
        (140 * 10**9, 64 * MIB),
        (1024 * GIB, 64 * MIB),
        (1 * GIB, 8 * MIB),
        (1, 8 * MIB),
    ],
)
def test_the_unit_gives_a_thousand_units_where_it_can(size: int, unit: int) -> None:
    assert choose_unit(size) == unit
    if 8 * MIB < unit < 64 * MIB:
        assert 1000 <= size / unit < 2000


def test_a_unit_is_a_power_of_two() -> None:
    assert parse_unit("16MiB") == 16 * MIB
    with pytest.raises(UsageError, match="power of two"):
        parse_unit("12MiB")


def test_layers_add_up_to_the_size() -> None:
    sizes = RunOptions(size_bytes=1000, layers=3).layer_sizes
    assert len(sizes) == 3
    assert sum(sizes) == 1000


def test_the_origin_is_a_multiple_of_the_node() -> None:
    words = ["--node-rate", "10Gb", "--origin-rate", "0.2x"]
    options = read(parser().parse_args(words))
    assert options.origin_rate_bytes_s == pytest.approx(0.2 * 10e9 / 8)
    mixed = read(parser().parse_args(["--node-rate", "0.5x,4x", "--origin-rate", "2x"]))
    assert mixed.origin_rate_bytes_s == pytest.approx(2 * BASE_RATE_BYTES_S)


def test_defaults_are_those_of_the_documents() -> None:
    options = read(parser().parse_args([]))
    assert (options.nodes, options.size_bytes, options.layers) == (500, 64 * GIB, 1)
    assert options.node_rates_bytes_s == (BASE_RATE_BYTES_S,)
    assert options.origin_rate_bytes_s == BASE_RATE_BYTES_S
    assert (options.seed, options.scenario, options.policy) == (1, "equal", "ours")
    assert options.told()["round_trip_ms"] == 1.0


@pytest.mark.parametrize("words", [["--nodes", "0"], ["--size", "0"], ["--node-rate", "0"]])
def test_impossible_runs_are_refused(words: list[str]) -> None:
    with pytest.raises(UsageError):
        read(parser().parse_args(words))
