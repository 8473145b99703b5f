"""Whether an origin has the bytes that are held here of a content: what makes its yes a proof.

Reads one short range there, with the client's own credential, and compares it with the store's.
What the difference means, and for whom, is the core's decision. No bytes of either leave this
module.
"""

import asyncio
from typing import Final, Protocol

from peer.core.effects import Sample
from peer.shell.errors import OriginError
from peer.shell.origin.base import Origin, OriginStat
from peer.shell.origin.pieces import fill, skip
from peer.shell.origin.request import OriginRequest
from peer.shell.store.errors import StoreError
from shoal.runtime.tasks import Offload
from shoal.runtime.turns import Turns
from shoal.wire.errors import Reason
from shoal.wire.ids import TaskId
from shoal.wire.limits import MIB

COMPARED_AT_ONCE: Final = 4
"""As many as there are stats."""

TIMEOUT_S: Final = 60.0
"""As for a stat: it is little that is read."""

SKIP_BYTES_S: Final = 8 * MIB
"""But for an origin without ranges, which sends all that comes before: at this rate at least."""


class HeldPieces(Protocol):
    """Where pieces are held; called in threads. Raises StoreError."""

    def read_held(self, task_id: TaskId, start_byte: int, end_byte: int) -> bytes:
        """Bytes of held pieces."""
        ...


class Comparing:
    """Compares samples. `store` is what holds them."""

    def __init__(self, store: HeldPieces, offload: Offload, turns: Turns) -> None:
        self._store = store
        self._offload = offload
        self._turns = turns
        self._slots = asyncio.Semaphore(COMPARED_AT_ONCE)

    async def same(
        self, sample: Sample, origin: Origin, request: OriginRequest, stat: OriginStat
    ) -> bool | None:
        """Whether the bytes are there; None if they are not here any more, or the origin has a
        content of another size. `stat`: what the origin said of it. Raises OriginError, and
        StoreError if what is held can't be read."""
        if (
            None not in (sample.size_bytes, stat.size_bytes)
            and sample.size_bytes != stat.size_bytes
        ):
            return None
        timeout_s = TIMEOUT_S
        if not stat.ranges:
            timeout_s += sample.end_byte / SKIP_BYTES_S
        async with self._slots:
            try:
                held = await self._offload(
                    self._store.read_held, sample.task_id, sample.start_byte, sample.end_byte
                )
            except StoreError as error:
                if error.reason is not Reason.UNKNOWN_TASK:
                    raise
                return None  # It was removed: what the origin says is about nothing held.
            try:
                async with asyncio.timeout(timeout_s):
                    return held == await self._read(sample, origin, request, stat)
            except TimeoutError:
                raise OriginError(
                    Reason.ORIGIN_FAILED,
                    f"the origin did not give {len(held)} bytes in {timeout_s:.0f} s",
                ) from None

    async def _read(
        self, sample: Sample, origin: Origin, request: OriginRequest, stat: OriginStat
    ) -> bytes:
        buffer = bytearray(sample.end_byte - sample.start_byte)
        size = sample.size_bytes if stat.size_bytes is None else stat.size_bytes
        async with origin.open(
            request,
            start_byte=sample.start_byte,
            end_byte=sample.end_byte,
            validator=None,
            size_bytes=size,
        ) as body:
            view = memoryview(buffer)
            await skip(body, view, self._turns)
            count = await fill(body, view, self._turns)
            if size is not None:
                await body.finish()
        return bytes(view[:count])
