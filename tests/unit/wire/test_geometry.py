"""The cut of a content: pieces cover it without gap or overlap, within every bound."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.wire.errors import UsageError
from shoal.wire.geometry import Geometry, check_piece_length, choose_geometry
from shoal.wire.limits import (
    GIB,
    KIB,
    MIB,
    PIECE_LENGTH_BYTES_MAX,
    PIECE_LENGTH_BYTES_MIN,
    PIECE_LENGTH_BYTES_USUAL,
    PIECES_PER_TASK_FEW,
    PIECES_PER_TASK_MAX,
    PIECES_PER_TASK_TARGET,
    RUN_BYTES_MAX,
)

SIZES = st.integers(0, 4000)


def cut(size_bytes: int | None, piece: int = 16, run: int = 4) -> Geometry:
    """A small cut for arithmetic."""
    return Geometry(size_bytes=size_bytes, piece_length_bytes=piece, run_pieces=run)


@given(SIZES, st.integers(1, 64), st.integers(1, 9))
def test_pieces_and_runs_cover_the_content_exactly(size: int, piece: int, run: int) -> None:
    geometry = cut(size, piece, run)
    end = 0
    for index in range(geometry.piece_count):
        assert geometry.offset_bytes(index) == end
        assert 0 < geometry.length_bytes(index) <= piece
        end += geometry.length_bytes(index)
    assert end == size
    covered = 0
    for index in range(geometry.run_count):
        assert not covered & geometry.run_mask(index)
        covered |= geometry.run_mask(index)
    assert covered == geometry.all_pieces
    assert all(
        geometry.run_mask(geometry.run_of(index)) >> index & 1
        for index in range(geometry.piece_count)
    )


@given(st.integers(1, 4000), st.integers(1, 64), st.data())
def test_bytes_of_masks_prefixes_and_spans_add_up(
    size: int, piece: int, data: st.DataObject
) -> None:
    geometry = cut(size, piece)
    held = data.draw(st.integers(0, geometry.all_pieces))
    assert geometry.held_bytes(held) == sum(
        geometry.length_bytes(index) for index in range(geometry.piece_count) if held >> index & 1
    )
    count = data.draw(st.integers(0, geometry.piece_count))
    assert geometry.prefix_bytes(count) == geometry.held_bytes((1 << count) - 1)
    if count:
        first = data.draw(st.integers(0, geometry.piece_count - count))
        start, end = geometry.span_bytes(first, count)
        assert start == geometry.prefix_bytes(first)
        assert end == geometry.prefix_bytes(first + count)


def test_an_empty_content_has_no_piece() -> None:
    geometry = choose_geometry(0)
    assert (geometry.piece_count, geometry.run_count, geometry.all_pieces) == (0, 0, 0)
    assert geometry.held_bytes(0) == geometry.prefix_bytes(0) == 0


def test_while_the_size_is_unknown_every_piece_is_full() -> None:
    geometry = choose_geometry(None)
    length = geometry.piece_length_bytes
    assert geometry.length_bytes(10**6) == length
    assert geometry.span_bytes(2, 3) == (2 * length, 5 * length)
    assert geometry.held_bytes(0b101) == 2 * length
    assert geometry.prefix_bytes(3) == 3 * length
    with pytest.raises(AssertionError, match="not known"):
        _ = geometry.piece_count
    sealed = geometry.sealed(length + 1)
    assert (sealed.piece_count, sealed.length_bytes(1)) == (2, 1)
    assert sealed.piece_length_bytes == length


@pytest.mark.parametrize("piece", [-1, 2])
def test_a_piece_outside_is_a_programming_error(piece: int) -> None:
    with pytest.raises(AssertionError):
        cut(32).length_bytes(piece)


def test_other_programming_errors() -> None:
    with pytest.raises(AssertionError, match="run 1"):
        cut(32).run_mask(1)
    with pytest.raises(AssertionError):
        cut(32).span_bytes(0, 0)
    for bad in ((-1, 16, 4), (1, 0, 4), (1, 16, 0)):
        with pytest.raises(AssertionError):
            cut(*bad)


@given(st.integers(0, PIECES_PER_TASK_MAX * PIECE_LENGTH_BYTES_MAX))
def test_a_chosen_cut_keeps_every_bound(size: int) -> None:
    geometry = choose_geometry(size)
    length, run = geometry.piece_length_bytes, geometry.run_pieces
    assert PIECE_LENGTH_BYTES_MIN <= length <= PIECE_LENGTH_BYTES_MAX
    assert length & (length - 1) == 0
    assert geometry.piece_count <= PIECES_PER_TASK_MAX
    assert run * length <= RUN_BYTES_MAX
    # Neither more pieces than aimed at while they could be longer, nor fewer while they could be
    # shorter; the same for runs.
    if length < PIECE_LENGTH_BYTES_MAX:
        assert geometry.piece_count <= PIECES_PER_TASK_TARGET
    if length > PIECE_LENGTH_BYTES_USUAL:
        assert geometry.piece_count > PIECES_PER_TASK_TARGET // 2
    elif length > PIECE_LENGTH_BYTES_MIN:
        assert geometry.piece_count > PIECES_PER_TASK_FEW // 2
    if length < PIECE_LENGTH_BYTES_USUAL:
        assert geometry.piece_count <= PIECES_PER_TASK_FEW
    if 2 * run * length <= RUN_BYTES_MAX:
        assert geometry.run_count <= PIECES_PER_TASK_TARGET


@pytest.mark.parametrize(
    ("size", "length", "run"),
    [
        (1, 256 * KIB, 1),
        (16 * MIB, 256 * KIB, 1),
        (16 * MIB + 1, 512 * KIB, 1),
        (512 * MIB, 512 * KIB, 1),
        (512 * MIB + 1, MIB, 1),
        (8 * GIB, 8 * MIB, 1),
        (8 * GIB + 1, 8 * MIB, 2),
        (100 * GIB, 8 * MIB, 8),
    ],
)
def test_well_known_sizes(size: int, length: int, run: int) -> None:
    geometry = choose_geometry(size)
    assert (geometry.piece_length_bytes, geometry.run_pieces) == (length, run)


def test_a_piece_length_can_be_given() -> None:
    assert choose_geometry(GIB, 4 * MIB).piece_length_bytes == 4 * MIB
    assert choose_geometry(None, 4 * MIB).piece_length_bytes == 4 * MIB
    longest = PIECE_LENGTH_BYTES_MAX
    assert choose_geometry(GIB, longest).run_pieces * longest <= RUN_BYTES_MAX


@pytest.mark.parametrize(
    "length", [-1, 0, 1, 128 * KIB, 256 * KIB + 1, 768 * KIB, 2 * PIECE_LENGTH_BYTES_MAX]
)
def test_an_illegal_piece_length_is_an_error_that_names_the_bounds(length: int) -> None:
    with pytest.raises(UsageError, match=r"power of two from 256 KiB to 8192 KiB"):
        choose_geometry(GIB, length)


@pytest.mark.parametrize("length", [256 * KIB, MIB, 8 * MIB])
def test_a_legal_piece_length_is_kept(length: int) -> None:
    assert check_piece_length(length) == length


def test_too_many_pieces_are_an_error_that_says_what_to_do() -> None:
    size = PIECES_PER_TASK_MAX * PIECE_LENGTH_BYTES_MIN
    assert choose_geometry(size, PIECE_LENGTH_BYTES_MIN).piece_count == PIECES_PER_TASK_MAX
    with pytest.raises(UsageError, match="larger --piece-length"):
        choose_geometry(size + 1, PIECE_LENGTH_BYTES_MIN)
    with pytest.raises(UsageError, match="larger --piece-length"):
        choose_geometry(PIECES_PER_TASK_MAX * PIECE_LENGTH_BYTES_MAX + 1)
