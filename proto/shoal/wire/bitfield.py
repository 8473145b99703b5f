"""Sets of pieces as Python integers: bit i stands for piece i.

An int is the fastest set of small numbers that Python has: union, difference and count of a
thousand pieces cost well under a microsecond. This module holds what `int` lacks.
"""

from collections.abc import Iterable, Iterator

from shoal.wire.errors import ProtocolError


def mask_of(first: int, count: int) -> int:
    """The mask of so many consecutive pieces."""
    return ((1 << count) - 1) << first


def pieces(mask: int) -> Iterator[int]:
    """Every piece of a mask, in rising order. Linear: shifting the whole mask for every word
    would cost a task of a million pieces hundreds of milliseconds."""
    data = to_bytes(mask)
    for start in range(0, len(data), 8):
        word = int.from_bytes(data[start : start + 8], "little")
        below = 8 * start - 1
        while word:
            low = word & -word
            yield below + low.bit_length()
            word ^= low


def ranges(mask: int) -> list[tuple[int, int]]:
    """The mask as (first piece, count) of each stretch of consecutive pieces, rising."""
    # A bit that differs from the one below it begins a stretch or stands right behind its end.
    edges = pieces(mask ^ (mask << 1))
    return [(first, end - first) for first, end in zip(edges, edges, strict=True)]


def from_ranges(stretches: Iterable[tuple[int, int]], piece_count_max: int) -> int:
    """The mask of stretches that came from another host. Raises ProtocolError for a stretch that
    is empty, negative or out of bounds."""
    mask = 0
    for first, count in stretches:
        if first < 0 or count <= 0 or first + count > piece_count_max:
            raise ProtocolError(f"piece range {first}+{count} is out of bounds")
        mask |= mask_of(first, count)
    return mask


def prefix(mask: int) -> int:
    """How many pieces from piece 0 on are in the mask without a gap."""
    return (~mask & (mask + 1)).bit_length() - 1


def lowest(mask: int) -> int:
    """The first piece of a mask that is not empty."""
    assert mask, "an empty mask has no first piece"
    return (mask & -mask).bit_length() - 1


def lowest_from(mask: int, start: int) -> int:
    """The first piece at or behind `start`, else the first of all (a circular search)."""
    tail = mask >> start
    return start + lowest(tail) if tail else lowest(mask)


def to_bytes(mask: int) -> bytes:
    """Little-endian bytes, without trailing zero bytes: piece i is bit i % 8 of byte i // 8."""
    return mask.to_bytes(-(-mask.bit_length() // 8), "little")


def from_bytes(data: bytes, piece_count_max: int) -> int:
    """The mask in a bitmap from another host. Raises ProtocolError if it is too long."""
    if len(data) > -(-piece_count_max // 8):
        raise ProtocolError(f"bitmap of {len(data)} bytes for {piece_count_max} pieces")
    mask = int.from_bytes(data, "little")
    if mask.bit_length() > piece_count_max:
        raise ProtocolError("bitmap names pieces behind the end")
    return mask


def whole_runs(held: int, run_pieces: int, piece_count: int) -> int:
    """The mask of runs of which every piece is held."""
    if run_pieces == 1:
        return held
    runs = 0
    for first, count in ranges(held):
        end = first + count
        run_first = -(-first // run_pieces)
        run_end = -(-end // run_pieces) if end == piece_count else end // run_pieces
        if run_end > run_first:
            runs |= mask_of(run_first, run_end - run_first)
    return runs
