"""Digests of whole contents, as users and registries name them (`sha256:…`): read and computed.

Raises `UsageError` for a digest that cannot be read.
"""

import hashlib
from typing import Final, NamedTuple, Protocol

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


class Digest(NamedTuple):
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
