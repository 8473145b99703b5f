"""Sets of pieces as Python integers: bit i stands for piece i.

An int is the fastest set of small numbers that Python has: union, difference and count of a
thousand pieces cost well under a microsecond. This module holds what `int` lacks.
"""

import functools
from collections.abc import Iterable, Iterator
from typing import Final

from shoal.wire.errors import ProtocolError

SHORT_BITS: Final = 2048
"""Up to here shifting a mask as a whole is cheaper than taking it apart word by word."""


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
    if mask.bit_length() <= SHORT_BITS:
        return _short_ranges(mask)
    # A bit that differs from the one below it begins a stretch or stands right behind its end.
    edges = pieces(mask ^ (mask << 1))
    return [(first, end - first) for first, end in zip(edges, edges, strict=True)]


def _short_ranges(mask: int) -> list[tuple[int, int]]:
    found = []
    first = 0
    while mask:
        gap = (mask & -mask).bit_length() - 1
        mask >>= gap
        first += gap
        count = (~mask & (mask + 1)).bit_length() - 1
        found.append((first, count))
        mask >>= count
        first += count
    return found


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


def whole_units(held: int, unit_pieces: int, piece_count: int) -> int:
    """The units of which every piece is held, each as the bit of its *first piece*: what differs
    between two such masks is found without a loop. `unit_pieces` is a power of two."""
    if unit_pieces == 1:
        return held
    padding = -piece_count % unit_pieces
    whole = held | mask_of(piece_count, padding) if padding else held
    step = 1
    while step < unit_pieces:
        whole &= whole >> step
        step *= 2
    return whole & _unit_starts(unit_pieces, piece_count)


@functools.lru_cache(maxsize=256)
def _unit_starts(unit_pieces: int, piece_count: int) -> int:
    count = -(-piece_count // unit_pieces)
    return int.from_bytes(b"\xff" * -(-count * unit_pieces // 8), "little") // (
        (1 << unit_pieces) - 1
    ) & ((1 << piece_count) - 1)


def units_of_starts(starts: int, unit_pieces: int) -> int:
    """Units by number, from units by their first piece."""
    if unit_pieces == 1:
        return starts
    # Every unit_pieces-th binary digit from the last one on: what a loop does for each unit,
    # slicing does for all at once.
    digits = format(starts, "b")[::-unit_pieces]
    return int(digits[::-1], 2)


def pieces_of_units(units: int, unit_pieces: int, piece_count: int) -> int:
    """Every piece of these units (by number)."""
    if unit_pieces == 1:
        return units & ((1 << piece_count) - 1)
    mask = 0
    for first, count in ranges(units):
        mask |= mask_of(first * unit_pieces, count * unit_pieces)
    return mask & ((1 << piece_count) - 1)


@functools.lru_cache(maxsize=4096)
def stripe_mask(unit_pieces: int, piece_count: int, stripes: int, stripe: int) -> int:
    """The pieces whose unit's number leaves the remainder `stripe` by `stripes`."""
    unit = (1 << unit_pieces) - 1
    period = unit_pieces * stripes
    count = -(-piece_count // period)
    repeated = ((1 << period * count) - 1) // ((1 << period) - 1) if count else 0
    return (repeated * (unit << stripe * unit_pieces)) & ((1 << piece_count) - 1)


class Counts:
    """How many times each bit was added, as one mask per binary digit of its count: adding a mask
    and asking for all bits with a count of at least n take a few operations on integers."""

    __slots__ = ("_digits",)

    def __init__(self) -> None:
        self._digits: list[int] = []

    def __eq__(self, other: object) -> bool:
        """Whether every bit was counted as often, whatever was added in which order."""
        if not isinstance(other, Counts):
            return NotImplemented
        mine, theirs = self._digits, other._digits
        shared = min(len(mine), len(theirs))
        return mine[:shared] == theirs[:shared] and not any(mine[shared:] + theirs[shared:])

    __hash__ = None  # type: ignore[assignment]

    def add(self, mask: int) -> None:
        """Counts each bit of the mask once more."""
        for index, digit in enumerate(self._digits):
            if not mask:
                return
            self._digits[index] = digit ^ mask
            mask &= digit
        if mask:
            self._digits.append(mask)

    def remove(self, mask: int) -> None:
        """Counts each bit of the mask once less; all of them must have been added."""
        for index, digit in enumerate(self._digits):
            if not mask:
                return
            self._digits[index] = digit ^ mask
            mask &= ~digit
        assert not mask, "a bit was removed that was not there"

    def at_least(self, count: int) -> int:
        """The bits that were counted so often or more."""
        assert count > 0
        if count >> len(self._digits):
            return 0
        above, equal = 0, -1
        for index in range(len(self._digits) - 1, -1, -1):
            digit = self._digits[index]
            if count >> index & 1:
                equal &= digit
            else:
                above |= equal & digit
                equal &= ~digit
        return above | equal
