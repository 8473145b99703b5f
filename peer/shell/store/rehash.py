"""Re-hashing: which pieces of a file are still the bytes that were verified once.

Reads pieces in several threads, each with one buffer of one piece, so memory is bounded and the
disk or all cores are the limit. Decides for each piece whether its digest is right, nothing else.
A piece that can't be read counts as wrong.
"""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shoal.runtime.files import Files
from shoal.wire.limits import MIB
from shoal.wire.piece_digest import piece_digest

CHUNK_BYTES: Final = 64 * MIB
"""Re-hashed by one thread at a time: long enough to read ahead, short enough to share out."""


@dataclass(frozen=True, slots=True)
class PieceCheck:
    """One piece to re-hash. `expected` None: any digest is welcome, what is it?"""

    piece: int
    offset_bytes: int
    length_bytes: int
    expected: bytes | None


@dataclass(frozen=True, slots=True)
class FileCheck:
    """Pieces of one file to re-hash. Right ones are copied to `copy_to`, if given."""

    path: Path
    algorithm: str
    pieces: Sequence[PieceCheck]
    copy_to: Path | None = None


class Rehasher:
    """Re-hashes files. `workers` threads are used while it does, none else."""

    def __init__(self, files: Files, workers: int) -> None:
        assert workers > 0
        self._files = files
        self._workers = workers

    def run(self, checks: Sequence[FileCheck]) -> list[dict[int, bytes]]:
        """Per file, the digests of its right pieces. Raises OSError if a copy can't be written,
        UsageError if an algorithm is not installed."""
        found: list[dict[int, bytes]] = [{} for _ in checks]
        if not any(check.pieces for check in checks):
            return found
        local = threading.local()

        def run_chunk(chunk: tuple[int, FileCheck]) -> tuple[int, dict[int, bytes]]:
            index, part = chunk
            longest = max(piece.length_bytes for piece in part.pieces)
            buffer: bytearray = getattr(local, "buffer", bytearray())
            if len(buffer) < longest:
                buffer = local.buffer = bytearray(longest)
            return index, self._digests(part, memoryview(buffer))

        with ThreadPoolExecutor(self._workers, thread_name_prefix="rehash") as pool:
            for index, digests in pool.map(run_chunk, _chunks(checks)):
                found[index].update(digests)
        return found

    def _digests(self, check: FileCheck, buffer: memoryview) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        with contextlib.ExitStack() as stack:
            try:
                source = self._files.open(check.path)
            except OSError:
                return found
            stack.callback(self._files.close, source)
            target = None
            if check.copy_to is not None:
                target = self._files.open(check.copy_to, write=True)
                stack.callback(self._files.close, target)
            for piece in check.pieces:
                data = buffer[: piece.length_bytes]
                try:
                    if self._files.pread_into(source, data, piece.offset_bytes) < len(data):
                        continue
                except OSError:
                    continue  # The disk does not give it back: not held.
                digest = piece_digest(check.algorithm, data)
                if piece.expected is not None and digest != piece.expected:
                    continue
                if target is not None:
                    self._files.pwrite(target, data, piece.offset_bytes)
                found[piece.piece] = digest
        return found


def _chunks(checks: Sequence[FileCheck]) -> Iterator[tuple[int, FileCheck]]:
    """The checks cut into parts of about CHUNK_BYTES, with the index of their file."""
    for index, check in enumerate(checks):
        part: list[PieceCheck] = []
        size_bytes = 0
        for piece in check.pieces:
            part.append(piece)
            size_bytes += piece.length_bytes
            if size_bytes >= CHUNK_BYTES:
                yield index, FileCheck(check.path, check.algorithm, part, check.copy_to)
                part, size_bytes = [], 0
        if part:
            yield index, FileCheck(check.path, check.algorithm, part, check.copy_to)
