"""The daemon's one budget of memory for bytes in flight, handed out a piece at a time.

Buffers are reused by size class (powers of two), so that a busy daemon touches the same memory
again and again and its resident size stays flat. Whoever asks when the budget is used up waits its
turn. Decides nothing else, and never looks at the bytes.
"""

import asyncio
import mmap
from collections import deque
from typing import Final

from shoal.wire.limits import KIB

CLASS_BYTES_MIN: Final = 4 * KIB
"""A page: smaller buffers would not take less memory."""


class PieceBuffer:
    """Memory for one piece, on loan. `view` is exactly as long as was asked for."""

    __slots__ = ("_memory", "_pool", "view")

    def __init__(self, pool: "BufferPool", memory: mmap.mmap, length_bytes: int) -> None:
        self._pool = pool
        self._memory: mmap.mmap | None = memory
        self.view = memoryview(memory)[:length_bytes]

    def release(self) -> None:
        """Gives the memory back, once. Nobody may use `view` any more: it is closed, so that a
        late use is an error instead of bytes in somebody else's piece."""
        memory, self._memory = self._memory, None
        assert memory is not None, "a buffer is released once"
        self.view.release()
        self._pool.take_back(memory)


class BufferPool:
    """All buffers together never exceed `total_bytes`; only a request that is larger by itself is
    served above it, and then alone. First come, first served. Belongs to the event loop's thread.
    """

    def __init__(self, total_bytes: int) -> None:
        assert total_bytes > 0
        self._total_bytes = total_bytes
        self._used_bytes = 0
        self._idle_bytes = 0
        self._idle: dict[int, list[mmap.mmap]] = {}
        # Bounded by its users: every connection and every origin read waits for one at most.
        self._waiting: deque[tuple[int, asyncio.Future[PieceBuffer]]] = deque()

    @property
    def used_bytes(self) -> int:
        """Memory on loan now."""
        return self._used_bytes

    @property
    def allocated_bytes(self) -> int:
        """Memory on loan or kept for the next user."""
        return self._used_bytes + self._idle_bytes

    @property
    def waiting(self) -> int:
        """How many wait for a buffer."""
        return len(self._waiting)

    def try_acquire(self, length_bytes: int) -> PieceBuffer | None:
        """A buffer now, or None if there is no room or somebody waits already."""
        return None if self._waiting else self._grant(length_bytes)

    async def acquire(self, length_bytes: int) -> PieceBuffer:
        """A buffer as soon as there is room and all that asked before were served."""
        buffer = self.try_acquire(length_bytes)
        if buffer is not None:
            return buffer
        future: asyncio.Future[PieceBuffer] = asyncio.get_running_loop().create_future()
        self._waiting.append((length_bytes, future))
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                future.result().release()  # It was granted in the same turn of the loop.
            else:
                self._waiting.remove((length_bytes, future))
                self._serve_waiting()
            raise

    def take_back(self, memory: mmap.mmap) -> None:
        """For `PieceBuffer.release` alone."""
        size_bytes = len(memory)
        self._used_bytes -= size_bytes
        if self._used_bytes + self._idle_bytes + size_bytes <= self._total_bytes:
            self._idle.setdefault(size_bytes, []).append(memory)
            self._idle_bytes += size_bytes
        self._serve_waiting()

    def _serve_waiting(self) -> None:
        while self._waiting:
            length_bytes, future = self._waiting[0]
            if future.cancelled():
                return  # Its owner is about to take it out, and serves the others then.
            buffer = self._grant(length_bytes)
            if buffer is None:
                return
            self._waiting.popleft()
            future.set_result(buffer)

    def _grant(self, length_bytes: int) -> PieceBuffer | None:
        assert length_bytes > 0
        size_bytes = max(CLASS_BYTES_MIN, 1 << (length_bytes - 1).bit_length())
        if self._used_bytes and self._used_bytes + size_bytes > self._total_bytes:
            return None
        idle = self._idle.get(size_bytes)
        if idle:
            memory = idle.pop()
            self._idle_bytes -= size_bytes
        else:
            self._shrink_idle(self._total_bytes - self._used_bytes - size_bytes)
            memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._used_bytes += size_bytes
        return PieceBuffer(self, memory, length_bytes)

    def _shrink_idle(self, idle_bytes_max: int) -> None:
        # Memory returns to the system when its last reference goes.
        for size_bytes in sorted(self._idle, reverse=True):
            idle = self._idle[size_bytes]
            while idle and self._idle_bytes > idle_bytes_max:
                idle.pop()
                self._idle_bytes -= size_bytes
