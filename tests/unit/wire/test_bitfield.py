"""Sets of pieces as integers, held against plain Python sets."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.wire import bitfield
from shoal.wire.errors import ProtocolError
from shoal.wire.limits import PIECES_PER_TASK_MAX

PIECE_SETS = st.frozensets(st.integers(0, 300), max_size=80)


def mask(members: frozenset[int] | set[int]) -> int:
    """The mask of a set, the slow and plain way."""
    return sum(1 << member for member in members)


def test_mask_of() -> None:
    assert bitfield.mask_of(3, 2) == 0b11000
    assert bitfield.mask_of(3, 0) == 0


@given(PIECE_SETS)
def test_pieces_are_the_members_in_rising_order(members: frozenset[int]) -> None:
    assert list(bitfield.pieces(mask(members))) == sorted(members)


@given(PIECE_SETS)
def test_ranges_are_maximal_stretches_that_cover_exactly_the_members(
    members: frozenset[int],
) -> None:
    found = bitfield.ranges(mask(members))
    assert {piece for first, count in found for piece in range(first, first + count)} == members
    # Two stretches that touch would be one.
    ends = [first + count for first, count in found]
    assert all(end < first for end, (first, _) in zip(ends, found[1:], strict=False))
    assert bitfield.from_ranges(found, 301) == mask(members)


@given(
    st.lists(st.tuples(st.integers(1, 90), st.integers(1, 900)), max_size=12),
    st.integers(0, bitfield.SHORT_BITS + 2),
)
def test_ranges_are_the_same_of_short_and_long_masks(
    gaps: list[tuple[int, int]], shift: int
) -> None:
    members: list[tuple[int, int]] = []
    first = shift
    for gap, count in gaps:
        first += gap
        members.append((first, count))
        first += count
    assert bitfield.ranges(bitfield.from_ranges(members, first)) == members


@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_ranges_at_the_border_of_short_masks(beyond: int) -> None:
    bits = bitfield.SHORT_BITS + beyond
    assert bitfield.ranges((1 << bits) - 1) == [(0, bits)]
    assert bitfield.ranges(1 << bits - 1) == [(bits - 1, 1)]


def test_ranges_of_the_worst_mask_of_the_largest_task_take_linear_time() -> None:
    # With quadratic time this runs into the time limit of a test.
    worst = int.from_bytes(b"\x55" * (PIECES_PER_TASK_MAX // 8), "little")
    assert len(bitfield.ranges(worst)) == PIECES_PER_TASK_MAX // 2


@pytest.mark.parametrize("stretch", [(-1, 2), (0, 0), (0, -1), (9, 2), (10, 1), (0, 11)])
def test_a_stretch_out_of_bounds_breaks_the_protocol(stretch: tuple[int, int]) -> None:
    with pytest.raises(ProtocolError, match="out of bounds"):
        bitfield.from_ranges([(0, 1), stretch], 10)


def test_stretches_may_touch_the_end_and_overlap() -> None:
    assert bitfield.from_ranges([(8, 2), (7, 2)], 10) == 0b1110000000
    assert bitfield.from_ranges([], 0) == 0


@given(PIECE_SETS)
def test_prefix_counts_up_to_the_first_gap(members: frozenset[int]) -> None:
    expected = next(piece for piece in range(302) if piece not in members)
    assert bitfield.prefix(mask(members)) == expected


@given(PIECE_SETS.filter(bool), st.integers(0, 310))
def test_lowest_from_searches_in_a_circle(members: frozenset[int], start: int) -> None:
    assert bitfield.lowest(mask(members)) == min(members)
    behind = [member for member in members if member >= start]
    expected = min(behind) if behind else min(members)
    assert bitfield.lowest_from(mask(members), start) == expected


def test_an_empty_mask_has_no_lowest_piece() -> None:
    with pytest.raises(AssertionError, match="no first piece"):
        bitfield.lowest(0)


@given(PIECE_SETS)
def test_bytes_round_trip_without_trailing_zeros(members: frozenset[int]) -> None:
    data = bitfield.to_bytes(mask(members))
    assert not data.endswith(b"\0")
    assert bitfield.from_bytes(data, 301) == mask(members)
    assert bitfield.from_bytes(data + b"\0" * (38 - len(data)), 301) == mask(members)


def test_bit_order_in_bytes() -> None:
    assert bitfield.to_bytes(1 << 0 | 1 << 9) == b"\x01\x02"


@pytest.mark.parametrize(
    ("data", "count"), [(b"\0\0", 8), (b"\0", 0), (b"\x08", 3), (b"\xff\x02", 9)]
)
def test_a_bitmap_beyond_the_end_breaks_the_protocol(data: bytes, count: int) -> None:
    with pytest.raises(ProtocolError, match="bitmap"):
        bitfield.from_bytes(data, count)


@given(st.integers(1, 120), st.integers(1, 20), st.data())
def test_whole_runs_are_those_of_which_every_piece_is_held(
    piece_count: int, run_pieces: int, data: st.DataObject
) -> None:
    held = data.draw(st.integers(0, (1 << piece_count) - 1))
    expected = 0
    for run in range(-(-piece_count // run_pieces)):
        members = range(run * run_pieces, min((run + 1) * run_pieces, piece_count))
        if all(held >> piece & 1 for piece in members):
            expected |= 1 << run
    assert bitfield.whole_runs(held, run_pieces, piece_count) == expected


# ---------------------------------------------------------------- units and stripes

unit_lengths = st.integers(0, 5).map(lambda bits: 1 << bits)
piece_counts = st.integers(0, 150)


def pieces_of(unit: int, unit_pieces: int, piece_count: int) -> range:
    """The pieces of a unit; the last one may be shorter."""
    return range(unit * unit_pieces, min((unit + 1) * unit_pieces, piece_count))


def units_in(piece_count: int, unit_pieces: int) -> range:
    """All units of so many pieces."""
    return range(-(-piece_count // unit_pieces))


@given(piece_counts, unit_lengths, st.data())
def test_whole_units_are_those_of_which_every_piece_is_held(
    piece_count: int, unit_pieces: int, data: st.DataObject
) -> None:
    whole = data.draw(st.sets(st.sampled_from(units_in(piece_count, unit_pieces) or [0])))
    held = data.draw(st.integers(0, (1 << piece_count) - 1))
    held |= bitfield.pieces_of_units(mask(whole), unit_pieces, piece_count)
    expected = {
        unit
        for unit in units_in(piece_count, unit_pieces)
        if all(held >> piece & 1 for piece in pieces_of(unit, unit_pieces, piece_count))
    }
    starts = bitfield.whole_units(held, unit_pieces, piece_count)
    assert starts == mask({unit * unit_pieces for unit in expected})
    assert bitfield.units_of_starts(starts, unit_pieces) == mask(expected)
    # The same as runs, which are told by number.
    assert bitfield.whole_runs(held, unit_pieces, piece_count) == mask(expected)


@given(piece_counts, unit_lengths)
def test_everything_and_nothing_in_units(piece_count: int, unit_pieces: int) -> None:
    everything = (1 << piece_count) - 1
    units = mask(set(units_in(piece_count, unit_pieces)))
    starts = bitfield.whole_units(everything, unit_pieces, piece_count)
    assert bitfield.units_of_starts(starts, unit_pieces) == units
    assert bitfield.pieces_of_units(units, unit_pieces, piece_count) == everything
    assert bitfield.whole_units(0, unit_pieces, piece_count) == 0
    assert bitfield.units_of_starts(0, unit_pieces) == 0
    assert bitfield.pieces_of_units(0, unit_pieces, piece_count) == 0


@given(piece_counts, unit_lengths, st.frozensets(st.integers(0, 200)))
def test_pieces_of_units_are_theirs_up_to_the_end(
    piece_count: int, unit_pieces: int, units: frozenset[int]
) -> None:
    expected = {piece for unit in units for piece in pieces_of(unit, unit_pieces, piece_count)}
    assert bitfield.pieces_of_units(mask(units), unit_pieces, piece_count) == mask(expected)


@given(piece_counts, unit_lengths, st.integers(1, 9))
def test_stripes_share_out_the_units_in_turn(
    piece_count: int, unit_pieces: int, stripes: int
) -> None:
    seen = 0
    for stripe in range(stripes):
        found = bitfield.stripe_mask(unit_pieces, piece_count, stripes, stripe)
        assert found == mask(
            {piece for piece in range(piece_count) if piece // unit_pieces % stripes == stripe}
        )
        assert not found & seen
        seen |= found
    assert seen == (1 << piece_count) - 1


@given(st.lists(st.integers(0, 2**40 - 1), max_size=40), st.data())
def test_counts_are_those_of_a_counter(masks: list[int], data: st.DataObject) -> None:
    counts = bitfield.Counts()
    model: Counter[int] = Counter()
    for added in masks:
        counts.add(added)
        model.update(bitfield.pieces(added))
    # Whatever was added may be taken back, in any order and in parts.
    for added in data.draw(st.permutations(masks)) if masks else []:
        if data.draw(st.booleans()):
            part = added & data.draw(st.integers(0, 2**40 - 1))
            counts.remove(part)
            model.subtract(bitfield.pieces(part))
    for count in range(1, len(masks) + 2):
        expected = mask({piece for piece, times in model.items() if times >= count})
        assert counts.at_least(count) == expected


def test_counts_begin_at_nothing() -> None:
    counts = bitfield.Counts()
    assert counts.at_least(1) == 0
    counts.add(0)
    counts.remove(0)
    assert counts.at_least(1) == 0
    counts.add(0b101)
    assert (counts.at_least(1), counts.at_least(2)) == (0b101, 0)


def test_what_was_not_added_cannot_be_removed() -> None:
    counts = bitfield.Counts()
    with pytest.raises(AssertionError, match="not there"):
        counts.remove(1)
    counts.add(0b11)
    counts.remove(0b01)
    with pytest.raises(AssertionError, match="not there"):
        counts.remove(0b01)


def test_everything_is_counted_at_least_no_times() -> None:
    with pytest.raises(AssertionError):
        bitfield.Counts().at_least(0)
