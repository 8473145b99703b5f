"""Buffers for the bytes of pieces, out of one budget for the whole daemon.

Reuses buffers by size class, because fresh memory costs more than filling it. Decides nothing:
the core's budget keeps requests below this one; the pool is what makes sure of it.
"""

import asyncio
from collections import deque
from typing import Final

SIZE_CLASS_BYTES_MIN: Final = 4096


class PieceBuffer:
    """Memory for one piece; `view` is exactly as long as was asked for."""

    __slots__ = ("_memory", "_pool", "view")

    def __init__(self, pool: "BufferPool", memory: bytearray, length_bytes: int) -> None:
        self._pool: BufferPool | None = pool
        self._memory = memory
        self.view = memoryview(memory)[:length_bytes]

    def release(self) -> None:
        """Gives the memory back. The view must not be used afterwards. Safe to call twice."""
        pool, self._pool = self._pool, None
        if pool is not None:
            self.view.release()
            pool.take_back(self._memory)


class BufferPool:
    """At most `total_bytes` in buffers at once; a buffer larger than all of that is handed out
    alone. Waiters are served first come, first served. For the event loop's thread only."""

    def __init__(self, total_bytes: int) -> None:
        assert total_bytes > 0
        self.total_bytes = total_bytes
        self.used_bytes = 0
        self._free: dict[int, list[bytearray]] = {}
        self._free_bytes = 0
        self._waiting: deque[tuple[int, asyncio.Future[PieceBuffer]]] = deque()

    def try_acquire(self, length_bytes: int) -> PieceBuffer | None:
        """A buffer at once, or None if there is no room or others wait already."""
        if self._waiting:
            return None
        return self._take(length_bytes)

    async def acquire(self, length_bytes: int) -> PieceBuffer:
        """A buffer as soon as there is room."""
        buffer = self.try_acquire(length_bytes)
        if buffer is not None:
            return buffer
        future: asyncio.Future[PieceBuffer] = asyncio.get_running_loop().create_future()
        self._waiting.append((length_bytes, future))
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                future.result().release()
            raise

    def take_back(self, memory: bytearray) -> None:
        """Called by `PieceBuffer.release`."""
        size = len(memory)
        self.used_bytes -= size
        self._free.setdefault(size, []).append(memory)
        self._free_bytes += size
        self._serve_waiters()

    def _serve_waiters(self) -> None:
        while self._waiting:
            length_bytes, future = self._waiting[0]
            if future.done():
                self._waiting.popleft()
                continue
            buffer = self._take(length_bytes)
            if buffer is None:
                return
            self._waiting.popleft()
            future.set_result(buffer)

    def _take(self, length_bytes: int) -> PieceBuffer | None:
        size = max(SIZE_CLASS_BYTES_MIN, 1 << max(0, length_bytes - 1).bit_length())
        if self.used_bytes and self.used_bytes + size > self.total_bytes:
            return None
        kept = self._free.get(size)
        if kept:
            memory = kept.pop()
            self._free_bytes -= size
        else:
            self._shed(size)
            memory = bytearray(size)
        self.used_bytes += size
        return PieceBuffer(self, memory, length_bytes)

    def _shed(self, size: int) -> None:
        """Frees kept buffers of other sizes, so that used and kept together stay in the budget."""
        for kept in self._free.values():
            while kept and self.used_bytes + self._free_bytes + size > self.total_bytes:
                self._free_bytes -= len(kept.pop())
