"""How people write sizes, rates, durations and endpoints."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.runtime.config_values import (
    Duration,
    SecretFile,
    format_size,
    kind_of,
    parse_duration,
    parse_endpoint,
    parse_rate,
    parse_size,
)
from shoal.wire.errors import UsageError


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0), ("4096", 4096), ("256MiB", 256 * 2**20), ("25MB", 25 * 10**6),
        ("1GiB", 2**30), ("1.5GiB", 3 * 2**29), ("1 TB", 10**12), ("64kib", 65536),
        ("10B", 10), (" 1kB ", 1000),
    ],
)  # fmt: skip
def test_sizes(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1XB", "25Mb", "25Mib", "1e6", "0.3B", "1 2"])
def test_what_is_not_a_size_says_so(text: str) -> None:
    with pytest.raises(UsageError, match=r"size|bytes"):
        parse_size(text)


def test_rates() -> None:
    assert parse_rate("25MB") == parse_rate("25MB/s") == 25_000_000
    assert parse_rate("0") == 0
    with pytest.raises(UsageError, match="bytes per second"):
        parse_rate("100Mbit")


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [("250ms", 250_000_000), ("30s", 30 * 10**9), ("5m", 300 * 10**9), ("1.5h", 5400 * 10**9),
     ("0", 0), ("10us", 10_000)],
)  # fmt: skip
def test_durations(text: str, nanoseconds: int) -> None:
    assert parse_duration(text) == Duration(nanoseconds)


@pytest.mark.parametrize("text", ["", "30", "s", "-5s", "5 minutes", "5M"])
def test_a_duration_needs_a_unit(text: str) -> None:
    with pytest.raises(UsageError, match="250ms"):
        parse_duration(text)


def test_a_duration_in_other_units() -> None:
    assert Duration(1_500_000_000).seconds == 1.5
    assert Duration(1_500_999_999).milliseconds == 1500
    assert [str(Duration(ns)) for ns in (0, 90 * 10**9, 86_400 * 10**9, 7)] == [
        "0s", "90s", "1d", "7ns",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "host", "port", "loopback"),
    [
        ("127.0.0.1:0", "127.0.0.1", 0, True), ("127.9.9.9:1", "127.9.9.9", 1, True),
        ("[::1]:4001", "::1", 4001, True), ("localhost:80", "localhost", 80, True),
        ("0.0.0.0:4001", "0.0.0.0", 4001, False), ("[::]:1", "::", 1, False),
        ("[fe80::1%eth0]:9", "fe80::1%eth0", 9, False), ("node-7.site:9", "node-7.site", 9, False),
    ],
)  # fmt: skip
def test_endpoints(text: str, host: str, port: int, loopback: bool) -> None:
    endpoint = parse_endpoint(text)
    assert (endpoint.host, endpoint.port, endpoint.is_loopback) == (host, port, loopback)
    assert str(endpoint) == text


@pytest.mark.parametrize("text", ["", "host", ":80", "::1:80", "a:b", "a:65536", "[x]:1", "a b:1"])
def test_what_is_not_an_endpoint_says_so(text: str) -> None:
    with pytest.raises(UsageError, match="host:port"):
        parse_endpoint(text)


@given(st.integers(0, 2**62))
def test_sizes_and_durations_read_back(number: int) -> None:
    assert parse_size(format_size(number)) == number
    assert parse_duration(str(Duration(number % 10**17))) == Duration(number % 10**17)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(10**12, "1TB"), (2**40, "1TiB"), (64 * 2**30, "64GiB"), (0, "0"), (1001, "1001")],
)
def test_sizes_are_written_in_the_shortest_way(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


def test_a_secret_put_in_place_of_its_path_is_not_repeated() -> None:
    kind = kind_of(SecretFile)
    secret = "-----BEGIN PRIVATE KEY-----\nMIIE\n"
    for read in (kind.from_text, kind.from_toml):
        with pytest.raises(UsageError) as caught:
            read(secret)
        assert "MIIE" not in str(caught.value)
        assert "give its path" in str(caught.value)
    shown = kind.to_text(SecretFile(Path("hunter2-the-password")))
    assert "hunter2" not in shown


def test_a_secret_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(" s3cret\n")
    assert SecretFile(path).read() == b"s3cret"
    assert "s3cret" not in repr(SecretFile(path))
    path.write_text("\n")
    with pytest.raises(UsageError, match="is empty"):
        SecretFile(path).read()
    with pytest.raises(UsageError, match="No such file"):
        SecretFile(tmp_path / "none").read()


def test_a_type_that_no_option_can_have() -> None:
    with pytest.raises(TypeError):
        kind_of(dict[str, str])
