"""What a `Range` header asks of a content. Pure.

Source: RFC 9110, section 14. One range of bytes is answered; several, other units and nonsense are
ignored, which a server may do: the whole content is a right answer to them.
"""

import re
from dataclasses import dataclass
from typing import Final

_ONE: Final = re.compile(r"bytes=\s*([0-9]{0,18})-([0-9]{0,18})\s*")


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Half open: from `start` up to `end`."""

    start: int
    end: int


class Unsatisfiable(Exception):
    """The range lies outside of the content."""


def parse_range(header: str | None, size_bytes: int) -> ByteRange | None:
    """The one range that is asked for; None for the whole content. Raises Unsatisfiable."""
    found = _ONE.fullmatch(header) if header is not None else None
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        count = min(int(found[2]), size_bytes)
        if count == 0:
            raise Unsatisfiable
        return ByteRange(size_bytes - count, size_bytes)
    first = int(found[1])
    last = int(found[2]) if found[2] else size_bytes - 1
    if found[2] and last < first:
        return None
    if first >= size_bytes:
        raise Unsatisfiable
    return ByteRange(first, min(last, size_bytes - 1) + 1)
