"""How a content is cut: size <-> pieces <-> byte ranges <-> runs. The one home of every +-1."""

from dataclasses import dataclass, replace

from shoal.wire.errors import UsageError
from shoal.wire.limits import (
    KIB,
    PIECE_LENGTH_BYTES_MAX,
    PIECE_LENGTH_BYTES_MIN,
    PIECE_LENGTH_BYTES_USUAL,
    PIECES_PER_TASK_FEW,
    PIECES_PER_TASK_MAX,
    PIECES_PER_TASK_TARGET,
    RUN_BYTES_MAX,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """The cut of one task, fixed by the scheduler, the same on every host.

    `size_bytes` is None while the origin did not tell it; then pieces are known to exist only
    when somebody holds them, and all of them are full length until the size is sealed.
    """

    size_bytes: int | None
    piece_length_bytes: int
    run_pieces: int

    def __post_init__(self) -> None:
        assert self.size_bytes is None or self.size_bytes >= 0
        assert self.piece_length_bytes > 0
        assert self.run_pieces > 0

    @property
    def piece_count(self) -> int:
        """Pieces in the content. Only for a known size."""
        assert self.size_bytes is not None, "the size is not known yet"
        return -(-self.size_bytes // self.piece_length_bytes)

    @property
    def run_count(self) -> int:
        """Runs in the content. Only for a known size."""
        return -(-self.piece_count // self.run_pieces)

    @property
    def all_pieces(self) -> int:
        """The mask of every piece. Only for a known size."""
        return (1 << self.piece_count) - 1

    def offset_bytes(self, piece: int) -> int:
        """Where a piece begins."""
        return piece * self.piece_length_bytes

    def length_bytes(self, piece: int) -> int:
        """How long a piece is; the last one may be shorter."""
        assert piece >= 0
        if self.size_bytes is None:
            return self.piece_length_bytes
        length = min(self.piece_length_bytes, self.size_bytes - piece * self.piece_length_bytes)
        assert length > 0, f"piece {piece} lies behind the end"
        return length

    def span_bytes(self, first_piece: int, piece_count: int) -> tuple[int, int]:
        """The half-open byte range of consecutive pieces."""
        assert piece_count > 0
        start = self.offset_bytes(first_piece)
        last = first_piece + piece_count - 1
        return start, self.offset_bytes(last) + self.length_bytes(last)

    def run_of(self, piece: int) -> int:
        """The run that a piece belongs to."""
        return piece // self.run_pieces

    def run_mask(self, run: int) -> int:
        """The mask of a run's pieces. Only for a known size."""
        first = run * self.run_pieces
        count = min(self.run_pieces, self.piece_count - first)
        assert count > 0, f"run {run} lies behind the end"
        return ((1 << count) - 1) << first

    def held_bytes(self, held: int) -> int:
        """How many bytes the pieces of a mask have."""
        total = held.bit_count() * self.piece_length_bytes
        if self.size_bytes is not None and self.piece_count > 0:
            last = self.piece_count - 1
            if held >> last & 1:
                total -= self.piece_length_bytes - self.length_bytes(last)
        return total

    def prefix_bytes(self, prefix_pieces: int) -> int:
        """How many bytes the first so many pieces have."""
        end = prefix_pieces * self.piece_length_bytes
        return end if self.size_bytes is None else min(end, self.size_bytes)

    def sealed(self, size_bytes: int) -> "Geometry":
        """The same cut with the size known at last."""
        return replace(self, size_bytes=size_bytes)


def choose_geometry(size_bytes: int | None, piece_length_bytes: int | None = None) -> Geometry:
    """The cut for a content. Pieces have 256 KiB, or 512 KiB if those would be more than 64, and
    up to 8 MiB where these would be more than 1,024. Runs are of up to 64 MiB, about 1,024 of
    them. `piece_length_bytes` overrides the piece length.

    Raises UsageError if the override is out of bounds or gives too many pieces.
    """
    if piece_length_bytes is None:
        length = PIECE_LENGTH_BYTES_MIN
        if size_bytes is None:
            length = 4 * PIECE_LENGTH_BYTES_MIN
        else:
            while length < PIECE_LENGTH_BYTES_USUAL and length * PIECES_PER_TASK_FEW < size_bytes:
                length *= 2
            while length < PIECE_LENGTH_BYTES_MAX and length * PIECES_PER_TASK_TARGET < size_bytes:
                length *= 2
    else:
        length = check_piece_length(piece_length_bytes)
    count = PIECES_PER_TASK_TARGET if size_bytes is None else -(-size_bytes // length)
    if count > PIECES_PER_TASK_MAX:
        raise UsageError(
            f"{size_bytes} bytes in pieces of {length} bytes are more than {PIECES_PER_TASK_MAX} "
            "pieces: give a larger --piece-length"
        )
    run = 1
    while run * PIECES_PER_TASK_TARGET < count and 2 * run * length <= RUN_BYTES_MAX:
        run *= 2
    return Geometry(size_bytes=size_bytes, piece_length_bytes=length, run_pieces=run)


def check_piece_length(piece_length_bytes: int) -> int:
    """Returns a legal piece length as it is; raises UsageError for any other."""
    legal = PIECE_LENGTH_BYTES_MIN <= piece_length_bytes <= PIECE_LENGTH_BYTES_MAX
    if not legal or piece_length_bytes & (piece_length_bytes - 1):
        raise UsageError(
            f"piece length {piece_length_bytes} bytes: must be a power of two from "
            f"{PIECE_LENGTH_BYTES_MIN // KIB} KiB to {PIECE_LENGTH_BYTES_MAX // KIB} KiB"
        )
    return piece_length_bytes
