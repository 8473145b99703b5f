"""A received piece's way into the store: verified, then written, off the event loop.

Decides only whether bytes match the digest that came with them; bytes that do not are never
written.
"""

from typing import Protocol

from peer.core.effects import FetchPiece
from peer.core.events import PieceRecord
from shoal.wire.digest import piece_digest
from shoal.wire.frames import Piece
from shoal.wire.ids import LeaseNumber, TaskId


class PieceSink(Protocol):
    """Where pieces are written. Called in threads; raises StoreError."""

    def write_piece(
        self, task_id: TaskId, piece: int, epoch: int, data: memoryview, record: PieceRecord
    ) -> None:
        """Writes one verified piece."""
        ...


def verify_and_write(sink: PieceSink, fetch: FetchPiece, header: Piece, data: memoryview) -> bool:
    """Writes the piece if it has the header's digest; False if it does not. Raises StoreError."""
    if piece_digest(fetch.algorithm, data) != header.digest:
        return False
    record = PieceRecord(header.digest, LeaseNumber(header.lease_number), read_here=False)
    sink.write_piece(fetch.task_id, fetch.piece, fetch.epoch, data, record)
    return True
