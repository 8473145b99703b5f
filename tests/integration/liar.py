"""A peer that lies: an ordinary daemon in all but the bytes that it serves.

Run as `python tests/integration/liar.py MODE peer ...` with the arguments of `shoal peer`; `bytes`
serves wrong bytes under the right digest, `digest` wrong bytes under their own digest, so that only
the scheduler's list gives them away. It downloads honestly, states true digests and joins the swarm
like anybody else. Only tests use it.
"""

import os
import sys
import tempfile
from dataclasses import replace
from functools import lru_cache
from typing import Final

from peer.cli import main
from peer.core.effects import ServePiece
from peer.shell import node
from peer.shell.store.content import ContentStore
from peer.shell.transfer.parent_side import PiecePort
from shoal.wire.digest import PIECE_ALGORITHMS, piece_digest
from shoal.wire.ids import TaskId
from shoal.wire.limits import MIB

SERVED_BYTES_MAX: Final = 1024 * MIB
"""Longest content that it can lie about."""


class WrongFile:
    """A lent file that holds zeros in place of the content."""

    def __init__(self, descriptor: int) -> None:
        self.fd = descriptor
