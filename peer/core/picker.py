"""Which piece next. Decides by rarity among the connected parents; knows nothing of connections.

Rarest first with random ties is what keeps every host useful to every other (Bram Cohen,
"Incentives Build Robustness in BitTorrent", 2003); a wide view makes local rarity nearly global.
"""

from shoal.wire import bitfield
from shoal.wire.ids import Dice


class Availability:
    """How many of the open parents hold each piece, as one mask per count, so that the rarest of
    a set of candidates is found with a few operations on integers."""

    __slots__ = ("_levels",)

    def __init__(self) -> None:
        self._levels: list[int] = []
        """Element k: the pieces that exactly k + 1 parents hold."""

    def add(self, new: int) -> None:
        """One more parent holds these pieces (which it did not hold before)."""
        levels = self._levels
        carry = new & ~self.available
        for index, level in enumerate(levels):
            moved = level & new
            levels[index] = level ^ moved | carry
            carry = moved
        if carry:
            levels.append(carry)

    def remove(self, gone: int) -> None:
        """One parent fewer holds these pieces (which it held before)."""
        levels = self._levels
        for index in range(len(levels)):
            moved = levels[index] & gone
            if not moved:
                continue
            levels[index] ^= moved
            if index:
                levels[index - 1] |= moved
            gone ^= moved
        while levels and not levels[-1]:
            levels.pop()
        assert not gone, "a piece was removed that nobody held"

    def count(self, piece: int) -> int:
        """How many parents hold a piece."""
        for index, level in enumerate(self._levels):
            if level >> piece & 1:
                return index + 1
        return 0

    @property
    def available(self) -> int:
        """The mask of pieces that any open parent holds."""
        mask = 0
        for level in self._levels:
            mask |= level
        return mask

    def rarest(self, candidates: int) -> int:
        """Those of the candidates that the fewest parents hold; all of them if no parent is
        known to hold any."""
        for level in self._levels:
            chosen = level & candidates
            if chosen:
                return chosen
        return candidates


def pick_random(mask: int, dice: Dice) -> int:
    """A random piece of a mask that is not empty, uniform for sparse and dense masks alike."""
    length = mask.bit_length()
    # A few cheap throws find a set bit of a dense mask; a sparse one is worth a count.
    for _ in range(4):
        piece = int(dice.random() * length)
        if mask >> piece & 1:
            return piece
    nth = int(dice.random() * mask.bit_count())
    return _nth(mask, nth, length)


def _nth(mask: int, nth: int, length: int) -> int:
    """The piece with exactly `nth` smaller ones in the mask, by halving."""
    base = 0
    while length > 64:
        half = length >> 1
        low = mask & ((1 << half) - 1)
        count = low.bit_count()
        if nth < count:
            mask, length = low, half
        else:
            nth -= count
            mask >>= half
            base += half
            length -= half
    for offset, piece in enumerate(bitfield.pieces(mask)):
        if offset == nth:
            return base + piece
    raise AssertionError("the mask has fewer pieces than were counted")


def pick(candidates: int, availability: Availability, dice: Dice, *, in_order: bool) -> int:
    """Chooses one of the candidates: the first in order for a reader, else a random one of the
    rarest."""
    if in_order:
        return bitfield.lowest(candidates)
    return pick_random(availability.rarest(candidates), dice)
