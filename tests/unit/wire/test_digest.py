"""Digests: what users may write, what is computed, and how a swarm token is proven."""

import hashlib
import hmac
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.wire import digest
from shoal.wire.digest import Digest, parse_digest
from shoal.wire.errors import UsageError
from shoal.wire.piece_digest import PIECE_ALGORITHMS, piece_digest
from shoal.wire.proof import PROOF_BYTES, same, swarm_proof

EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_a_digest_is_read_and_written_as_registries_do() -> None:
    found = parse_digest(f"  SHA256:{EMPTY_SHA256.upper()} ")
    assert found == Digest("sha256", hashlib.sha256(b"").digest())
    assert str(found) == f"sha256:{EMPTY_SHA256}"


@given(st.sampled_from(sorted(digest.CONTENT_ALGORITHMS)), st.binary())
def test_every_digest_survives_its_text(algorithm: str, data: bytes) -> None:
    hasher = digest.content_hasher(algorithm)
    hasher.update(data[:3])
    hasher.update(memoryview(data)[3:])
    made = Digest(algorithm, hasher.digest())
    assert len(made.value) == digest.CONTENT_ALGORITHMS[algorithm]
    assert parse_digest(str(made)) == made
    assert made.value == hashlib.new(algorithm, data).digest()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "write it as algorithm:hex"),
        (EMPTY_SHA256, "write it as algorithm:hex"),
        (f"md5:{EMPTY_SHA256[:32]}", "sha256, sha512"),
        ("sha256:", "64 hex digits"),
        (f"sha256:{EMPTY_SHA256[:-2]}", "64 hex digits"),
        (f"sha512:{EMPTY_SHA256}", "128 hex digits"),
        (f"sha256:{EMPTY_SHA256[:-1]}", "not hexadecimal"),
        (f"sha256:{EMPTY_SHA256[:-1]}g", "not hexadecimal"),
        (f"sha256:{EMPTY_SHA256[:32]} {EMPTY_SHA256[32:]}", "64 hex digits"),
        (f"sha256: {EMPTY_SHA256[:-2]} ", "64 hex digits"),
    ],
)
def test_another_text_is_an_error_that_says_what_would_be_right(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_digest(text)


@given(st.text(max_size=90))
def test_no_text_at_all_crashes_the_parser(text: str) -> None:
    try:
        found = parse_digest(text)
    except UsageError:
        return
    assert parse_digest(str(found)) == found


def test_an_unknown_algorithm_is_an_error() -> None:
    with pytest.raises(UsageError, match="'md5'"):
        digest.content_hasher("md5")
    with pytest.raises(UsageError, match="'sha256'"):
        piece_digest("sha256", b"")


@pytest.mark.parametrize(
    ("algorithm", "hexadecimal"),
    [
        ("xxh3-128", "99aa06d3014798d86001c324468d497f"),
        ("blake3", "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"),
    ],
)
def test_piece_digests_of_nothing_are_the_published_ones(algorithm: str, hexadecimal: str) -> None:
    found = piece_digest(algorithm, memoryview(b""))
    assert found.hex() == hexadecimal
    assert len(found) == PIECE_ALGORITHMS[algorithm]


@given(st.binary(min_size=1, max_size=600), st.data())
def test_a_piece_digest_sees_every_bit(data: bytes, choice: st.DataObject) -> None:
    bit = choice.draw(st.integers(0, 8 * len(data) - 1))
    flipped = bytearray(data)
    flipped[bit // 8] ^= 1 << bit % 8
    for algorithm in PIECE_ALGORITHMS:
        assert piece_digest(algorithm, data) != piece_digest(algorithm, flipped)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "blake3", None)
    with pytest.raises(UsageError, match="pip install blake3"):
        piece_digest("blake3", b"x")


def test_a_proof_is_that_of_the_protocol_page() -> None:
    token, nonce = bytes(range(32)), bytes(16)
    expected = hmac.new(token, b"shoal-open\0" + nonce + b"\0host-a\0task", "sha256").digest()
    made = swarm_proof(token, nonce, "host-a", "task")
    assert made == expected
    assert len(made) == PROOF_BYTES
    assert same(made, expected)


@pytest.mark.parametrize(
    "other",
    [
        (b"k" * 31, bytes(16), "host", "task"),
        (b"k" * 32, bytes(15) + b"\1", "host", "task"),
        (b"k" * 32, bytes(16), "host2", "task"),
        (b"k" * 32, bytes(16), "host", "task2"),
    ],
)
def test_a_proof_holds_for_one_token_nonce_host_and_task(
    other: tuple[bytes, bytes, str, str],
) -> None:
    made = swarm_proof(b"k" * 32, bytes(16), "host", "task")
    assert not same(made, swarm_proof(*other))
