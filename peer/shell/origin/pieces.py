"""Cutting one origin body into pieces and storing them.

Bytes go from the connection into a pooled buffer of one piece; while the next piece is received,
the last ones are hashed and written off the loop. At most `PIECES_STORING_MAX` pieces are being
stored beside the one being received, so that a slow disk slows the origin down and nothing piles
up. Pieces are told in rising order, each as soon as it and all before it are stored. Decides
nothing: an error ends the run, and what was stored until then stays.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from peer.core.effects import ReadOrigin
from peer.core.events import PieceRecord
from peer.shell.errors import OriginError
from peer.shell.origin.base import OriginBody
from shoal.runtime.tasks import Offload
from shoal.runtime.turns import Turns
from shoal.wire.errors import Reason
from shoal.wire.ids import TaskId
from shoal.wire.limits import KIB
from shoal.wire.piece_digest import piece_digest

PIECES_STORING_MAX: Final = 2
"""Two hide the disk's and the hash's latency; more would only hold memory."""

RECEIVE_BYTES_MAX: Final = 256 * KIB
"""Most bytes taken from the connection in one turn at the rate limit."""


class HeldBuffer(Protocol):
    """Memory for one piece."""

    @property
    def view(self) -> memoryview:
        """Exactly as many bytes as were asked for."""
        ...

    def release(self) -> None:
        """Gives the memory back."""
        ...


class Buffers(Protocol):
    """The daemon's budget of memory for bytes in flight."""

    async def acquire(self, length_bytes: int) -> HeldBuffer:
        """Memory for a piece, once there is some."""
        ...


class PieceSink(Protocol):
    """Where pieces are written; called in threads. Errors are ShoalErrors with a `reason`."""

    def write_piece(
        self, task_id: TaskId, piece: int, epoch: int, data: memoryview, record: PieceRecord
    ) -> None:
        """Writes one verified piece."""
        ...


Stored = Callable[[int, bytes, int], None]
"""Told of each stored piece in rising order: piece, digest, length in bytes."""


class PieceRun:
    """The run of one `ReadOrigin`. Use: `await run(body)`, then in any case `await settle()`."""

    def __init__(
        self,
        effect: ReadOrigin,
        *,
        store: PieceSink,
        buffers: Buffers,
        offload: Offload,
        turns: Turns,
        stored: Stored,
    ) -> None:
        self._effect = effect
        self._geometry = effect.descriptor.geometry
        self._store = store
        self._buffers = buffers
        self._offload = offload
        self._turns = turns
        self._stored = stored
        self._storing = 0
        self._fewer = asyncio.Event()
        """Fewer pieces are being stored than when it was last cleared."""
        self._ready: dict[int, tuple[bytes, int]] = {}
        self._next_piece = effect.first_piece
        self._failure: BaseException | None = None

    async def run(self, body: OriginBody) -> int | None:
        """Receives and stores every piece of the run. Returns the content's size if it was not
        known and its end was found. Raises OriginError and the store's errors."""
        await self._skip(body)
        effect, geometry = self._effect, self._geometry
        end_piece = end_of(effect)
        piece = effect.first_piece
        size_bytes: int | None = None
        while size_bytes is None and (end_piece is None or piece < end_piece):
            await self._wait_storing(PIECES_STORING_MAX - 1)
            length = geometry.length_bytes(piece)
            buffer = await self._buffers.acquire(length)
            try:
                filled = await fill(body, buffer.view, self._turns)
                if filled < length:
                    size_bytes = geometry.offset_bytes(piece) + filled
                elif geometry.size_bytes is not None and piece + 1 == end_piece:
                    await body.finish()
            except BaseException:
                buffer.release()
                raise
            if filled == 0:
                buffer.release()
            else:
                self._begin_storing(piece, buffer, filled)
            piece += 1
        await self._wait_storing(0)
        return size_bytes

    async def settle(self) -> None:
        """Waits until nothing is being stored any more, even if it is cancelled meanwhile: pieces
        must not be told of after the read's end. Raises CancelledError only."""
        cancelled: asyncio.CancelledError | None = None
        while self._storing:
            try:
                await self._one_less()
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    async def _skip(self, body: OriginBody) -> None:
        if body.skip_bytes == 0:
            return
        buffer = await self._buffers.acquire(min(body.skip_bytes, RECEIVE_BYTES_MAX))
        try:
            await skip(body, buffer.view, self._turns)
        finally:
            buffer.release()

    async def _wait_storing(self, down_to: int) -> None:
        while self._storing > down_to and self._failure is None:
            await self._one_less()
        if self._failure is not None:
            raise self._failure

    async def _one_less(self) -> None:
        self._fewer.clear()
        await self._fewer.wait()

    def _begin_storing(self, piece: int, buffer: HeldBuffer, length_bytes: int) -> None:
        # Never cancelled: a thread works on the buffer until it is done.
        data = buffer.view[:length_bytes]
        self._storing += 1
        self._offload.start(
            partial(self._kept, piece, buffer, length_bytes), self._digest_and_write, piece, data
        )

    def _kept(
        self,
        piece: int,
        buffer: HeldBuffer,
        length_bytes: int,
        digest: bytes | None,
        error: BaseException | None,
    ) -> None:
        self._storing -= 1
        self._fewer.set()
        buffer.release()
        if error is not None:
            self._failure = self._failure or error
            return
        assert digest is not None
        self._ready[piece] = (digest, length_bytes)
        try:
            while (ready := self._ready.pop(self._next_piece, None)) is not None:
                self._stored(self._next_piece, *ready)
                self._next_piece += 1
        except Exception as defect:  # noqa: BLE001 - raised by the run, which is waited for
            self._failure = self._failure or defect

    def _digest_and_write(self, piece: int, data: memoryview) -> bytes:
        effect = self._effect
        descriptor = effect.descriptor
        digest = piece_digest(descriptor.piece_digest, data)
        record = PieceRecord(digest=digest, lease_number=effect.lease_number, read_here=True)
        self._store.write_piece(descriptor.task_id, piece, descriptor.epoch, data, record)
        return digest


async def skip(body: OriginBody, view: memoryview, turns: Turns) -> None:
    """Throws away what comes before the start that was asked for, by way of a view. Raises
    OriginError."""
    left = body.skip_bytes
    while left:
        filled = await fill(body, view[:left], turns)
        if filled == 0:
            raise OriginError(
                Reason.ORIGIN_CHANGED,
                "the content changed: it ends before bytes that it had when the download "
                "began; start the download again",
            )
        left -= filled


async def fill(body: OriginBody, view: memoryview, turns: Turns) -> int:
    """Fills a view unless the body ends before; returns how far. Raises OriginError."""
    filled = 0
    while filled < len(view):
        # Nothing is paid while nothing is there: other connections can use it meanwhile.
        if not await body.wait():
            break
        paid = await turns.acquire(min(RECEIVE_BYTES_MAX, len(view) - filled))
        count = 0
        try:
            count = await body.receive_into(view[filled : filled + paid])
        finally:
            turns.settle(paid, count)
        filled += count
    return filled


def end_of(effect: ReadOrigin) -> int | None:
    """The piece behind the last one of a read; None where only the content's end will tell."""
    if effect.piece_count is not None:
        return effect.first_piece + effect.piece_count
    geometry = effect.descriptor.geometry
    return None if geometry.size_bytes is None else geometry.piece_count
