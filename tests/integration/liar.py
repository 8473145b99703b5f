"""A peer that lies: an ordinary daemon in all but the bytes that it serves.

Run as `python tests/integration/liar.py MODE peer ...` with the arguments of `shoal peer`. In mode
`bytes` it serves wrong bytes under the right digest, in mode `digest` wrong bytes under their own
digest, so that only the scheduler's list gives them away. It downloads honestly, states true
digests and joins the swarm like anybody else. Only tests use it.
"""

import os
import sys
import tempfile
from dataclasses import replace
from functools import cache
from typing import Any, Final

from peer.cli import main
from peer.core.effects import ServePiece
from peer.shell import node
from peer.shell.transfer.parent_side import PiecePort
from shoal.wire.ids import TaskId
from shoal.wire.limits import MIB
from shoal.wire.piece_digest import PIECE_ALGORITHMS, piece_digest

CONTENT_BYTES_MAX: Final = 1024 * MIB
"""Longest content that it can lie about."""

_MODES: Final = ("bytes", "digest")


@cache
def digest_of_zeros(digest_bytes: int, length_bytes: int) -> bytes:
    """The digest, of the algorithm with digests so long, of what it serves."""
    (algorithm,) = (name for name, size in PIECE_ALGORITHMS.items() if size == digest_bytes)
    return piece_digest(algorithm, bytes(length_bytes))


class WrongFile:
    """A lent file that holds zeros in place of the content."""

    def __init__(self, descriptor: int) -> None:
        self.fd = descriptor

    def release(self) -> None:
        """The one file of zeros is kept for every piece."""


class WrongStore:
    """Lends zeros whatever is asked for."""

    def __init__(self) -> None:
        with tempfile.TemporaryFile() as zeros:
            zeros.truncate(CONTENT_BYTES_MAX)
            self._descriptor = os.dup(zeros.fileno())

    def lend(self, task_id: TaskId) -> WrongFile:
        """A file of zeros."""
        del task_id
        return WrongFile(self._descriptor)


class LyingPort(PiecePort):
    """Sends zeros, and says on standard error how often, for tests that must know it lied."""

    false_header = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "store": WrongStore()})

    def serve(self, effect: ServePiece) -> None:
        """Serves the piece asked for, wrong."""
        if self.false_header:
            digest = digest_of_zeros(len(effect.record.digest), effect.length_bytes)
            effect = replace(effect, record=replace(effect.record, digest=digest))
        sys.stderr.write(f"lied about piece {effect.piece}\n")
        super().serve(effect)


if __name__ == "__main__":
    mode = sys.argv[1]
    assert mode in _MODES, f"{mode!r} is none of {_MODES}"
    LyingPort.false_header = mode == "digest"
    setattr(node, "PiecePort", LyingPort)  # noqa: B010
    sys.exit(main.run(sys.argv[2:]))
