"""Digests of pieces: short-lived and internal. xxh3-128 finds corruption, BLAKE3 also malice."""

from typing import Final

import xxhash

from shoal.wire.digest import Buffer
from shoal.wire.errors import UsageError

PIECE_ALGORITHMS: Final = {"xxh3-128": 16, "blake3": 32}
"""Algorithms of pieces, with their length in bytes."""


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
