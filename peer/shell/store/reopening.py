"""What becomes of a held task when it is described anew: a pure decision.

A newer epoch voids unsealed pieces; another cut makes piece numbers meaningless; a size found at
last keeps all pieces that fit it. Sealed content is right whatever is said of its pieces: it is
kept, and cut anew if need be.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from peer.shell.store.errors import StoreError
from shoal.wire.control import TaskDescriptor
from shoal.wire.errors import Reason


@dataclass(frozen=True, slots=True)
class Reopening:
    """The outcome: the descriptor from now on, the pieces that stay, and whether the (sealed)
    content's piece digests must be computed anew."""

    descriptor: TaskDescriptor
    keep: int
    cut_anew: bool = False


def decide_reopening(
    stored: TaskDescriptor,
    wanted: TaskDescriptor,
    *,
    held: int,
    sealed: bool,
    short: Mapping[int, int],
) -> Reopening:
    """`short`: lengths of held pieces shorter than the piece length, while the size is unknown.
    Raises StoreError if the new word contradicts content that is sealed."""
    same_cut = (
        stored.geometry.piece_length_bytes == wanted.geometry.piece_length_bytes
        and stored.piece_digest == wanted.piece_digest
    )
    old_size, new_size = stored.geometry.size_bytes, wanted.geometry.size_bytes
    if sealed:
        assert old_size is not None
        if new_size is not None and new_size != old_size:
            raise StoreError(
                Reason.DIGEST_MISMATCH,
                f"task {stored.task_id[:16]} is held whole and verified with {old_size} bytes, but "
                f"is now described with {new_size}: if the content did change, remove the task",
            )
        descriptor = _with_size(wanted, old_size)
        return Reopening(
            replace(descriptor, epoch=max(stored.epoch, wanted.epoch)), held, cut_anew=not same_cut
        )
    if wanted.epoch < stored.epoch and held:
        return Reopening(stored, held)  # An older word than what we have heard already.
    sizes_differ = None not in (old_size, new_size) and old_size != new_size
    if wanted.epoch != stored.epoch or not same_cut or sizes_differ:
        return Reopening(wanted, 0)
    if new_size is None:
        return Reopening(wanted if old_size is None else _with_size(wanted, old_size), held)
    if old_size is not None:
        return Reopening(wanted, held)
    return Reopening(wanted, _fitting(wanted, held, short))


def _with_size(descriptor: TaskDescriptor, size_bytes: int) -> TaskDescriptor:
    return replace(descriptor, geometry=descriptor.geometry.sealed(size_bytes))


def _fitting(descriptor: TaskDescriptor, held: int, short: Mapping[int, int]) -> int:
    """The held pieces that have the length which the size, now known, gives them."""
    geometry = descriptor.geometry
    keep = held & geometry.all_pieces
    for piece in {*short, geometry.piece_count - 1}:
        if keep >> max(piece, 0) & 1:
            length = short.get(piece, geometry.piece_length_bytes)
            if length != geometry.length_bytes(piece):
                keep &= ~(1 << piece)
    return keep
