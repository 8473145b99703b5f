"""Sets of pieces as integers, held against plain Python sets."""

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
