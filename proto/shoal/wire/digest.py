"""Digests: parsing, comparing and computing them.

Piece digests are short-lived and internal (xxh3-128 finds corruption, BLAKE3 also malice);
content digests are what users and registries name (`sha256:…`). Raises `UsageError` for a digest
that cannot be read.
"""

import hashlib
import hmac
from dataclasses import dataclass
from typing import Final, Protocol

import xxhash

from shoal.wire.errors import UsageError

Buffer = bytes | bytearray | memoryview


class Hasher(Protocol):
    """The part of hashlib's interface that shoal uses."""

    def update(self, data: Buffer, /) -> None:
        """Take in more bytes."""
        ...

    def digest(self) -> bytes:
        """The digest of all bytes so far."""
        ...


CONTENT_ALGORITHMS: Final = {"sha256": 32, "sha512": 64}
"""Algorithms of whole contents, with their length in bytes."""

PIECE_ALGORITHMS: Final = {"xxh3-128": 16, "blake3": 32}
"""Algorithms of pieces, with their length in bytes."""

PROOF_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Digest:
    """A content digest. `str()` gives the form that OCI and dfget use: `sha256:<hex>`."""

    algorithm: str
    value: bytes

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.value.hex()}"


def parse_digest(text: str) -> Digest:
    """Reads `algorithm:hex`. Raises UsageError, with what would be right, on anything else."""
    algorithm, separator, digits = text.strip().partition(":")
    algorithm = algorithm.lower()
    known = ", ".join(CONTENT_ALGORITHMS)
    if not separator or algorithm not in CONTENT_ALGORITHMS:
        raise UsageError(f"digest {text!r}: write it as algorithm:hex with one of {known}")
    length = CONTENT_ALGORITHMS[algorithm]
    try:
        value = bytes.fromhex(digits)
    except ValueError:
        raise UsageError(f"digest {text!r}: the part after the colon is not hexadecimal") from None
    if len(value) != length or len(digits) != 2 * length:
        raise UsageError(f"digest {text!r}: {algorithm} has {2 * length} hex digits")
    return Digest(algorithm, value)


def content_hasher(algorithm: str) -> Hasher:
    """An incremental hasher of a whole content."""
    if algorithm not in CONTENT_ALGORITHMS:
        raise UsageError(f"unknown digest algorithm {algorithm!r}")
    return hashlib.new(algorithm)


def piece_digest(algorithm: str, data: Buffer) -> bytes:
    """The digest of one piece's bytes. Releases the GIL for large data."""
    if algorithm == "xxh3-128":
        return xxhash.xxh3_128_digest(data)
    if algorithm == "blake3":
        return _blake3(data)
    raise UsageError(f"unknown piece digest algorithm {algorithm!r}")


def _blake3(data: Buffer) -> bytes:
    try:
        import blake3
    except ImportError:
        raise UsageError("piece_digest = blake3 needs the package: pip install blake3") from None
    return bytes(blake3.blake3(data).digest())


def swarm_proof(token: bytes, nonce: bytes, host_id: str, task_id: str) -> bytes:
    """What a child shows to a piece port: HMAC-SHA256 of the port's nonce, the child and the task
    under the collection's swarm token (RFC 2104). The token itself never crosses the wire."""
    message = b"shoal-open\0" + nonce + b"\0" + host_id.encode() + b"\0" + task_id.encode()
    return hmac.digest(token, message, "sha256")


def same(left: bytes, right: bytes) -> bool:
    """Compares secrets in constant time."""
    return hmac.compare_digest(left, right)
