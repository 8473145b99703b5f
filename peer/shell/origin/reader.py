"""Carries out the core's effects on origins: stats, reads and their cancelling.

Each effect is one attempt and ends in exactly one `StatEnded` or `OriginReadEnded`, whatever
happens; before the latter comes an `OriginPieceStored` per stored piece, in rising order. Whether
to try again, where and when is the core's decision. Holds no content and no policy: bytes go
through `peer.shell.origin.pieces` into the store.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from peer.core.effects import CancelOrigin, ReadOrigin, StatOrigin
from peer.core.events import AnyEvent, OriginPieceStored, OriginReadEnded, StatEnded
from peer.shell.errors import OriginError
from peer.shell.origin.base import Origins, OriginStat
from peer.shell.origin.comparing import Comparing, HeldPieces
from peer.shell.origin.pieces import Buffers, PieceRun, PieceSink, end_of
from peer.shell.origin.request import OriginRequest
from peer.shell.store.errors import StoreError
from shoal.runtime.clock import Clock
from shoal.runtime.tasks import Offload, Running, Supervisor
from shoal.runtime.turns import Turns
from shoal.wire.errors import Reason, ShoalError
from shoal.wire.ids import RequestId, SourceId

T = TypeVar("T")

STATS_AT_ONCE: Final = 4
"""A collection may name thousands of files; the pool's other connections are for reading."""

FRESH_RIGHTS_MAX: Final = 3
"""For one attempt: where rights last for seconds, one may run out while the attempt waits for a
connection."""

STAT_TIMEOUT_S: Final = 60.0
"""A stat that was let begin ends within this time, redirects and all."""


@dataclass(slots=True)
class _Effort:
    """An effect being carried out. A task that is cancelled before it began never runs at all, so
    such a cancel is only noted, and the task answers when it begins."""

    handle: Running | None = None
    began: bool = False
    cancelled: bool = False


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why something ended without success, in the terms of both end events."""

    reason: Reason
    detail: str
    retry_after_ms: int = 0


class Rights(Protocol):
    """The requests that local users made; `peer.shell.rights.Rights`."""

    def resolve(self, source_id: SourceId, credential: str) -> OriginRequest | None:
        """The request for a source, found by the effect's `credential`, or None when nobody made
        one (any more)."""
        ...

    async def renewed(
        self, source_id: SourceId, credential: str, refused: OriginRequest, reason: Reason
    ) -> OriginRequest | None:
        """Another request after the origin refused it as it was; None if there is none."""
        ...


class PieceStore(PieceSink, HeldPieces, Protocol):
    """Where pieces are written, and held; `peer.shell.store.content.ContentStore`."""


class OriginReader:
    """The shell of everything that this host asks of origins. A request that its origin refuses is
    made once more if its user has a fresh right to show. `post` and all methods belong to the
    event loop's thread.
    """

    def __init__(
        self,
        origins: Origins,
        rights: Rights,
        store: PieceStore,
        buffers: Buffers,
        offload: Offload,
        download_turns: Turns,
        clock: Clock,
        post: Callable[[AnyEvent], None],
        supervisor: Supervisor,
    ) -> None:
        self._origins = origins
        self._rights = rights
        self._store = store
        self._buffers = buffers
        self._offload = offload
        self._turns = download_turns
        self._clock = clock
        self._post = post
        self._supervisor = supervisor
        self._efforts: dict[RequestId, _Effort] = {}
        self._stat_slots = asyncio.Semaphore(STATS_AT_ONCE)
        self._comparing = Comparing(store, offload, download_turns)
        self._idle = asyncio.Event()
        self._closed = False

    def stat(self, effect: StatOrigin) -> None:
        """Begins a stat; `StatEnded` is its end."""
        self._begin(
            effect.request_id,
            lambda: self._stat(effect),
            lambda result: self._end_stat(effect.request_id, result),
        )

    def read(self, effect: ReadOrigin) -> None:
        """Begins a read; `OriginReadEnded` is its end."""
        self._begin(
            effect.request_id,
            lambda: self._read(effect),
            lambda result: self._end_read(effect.request_id, result),
        )

    def cancel(self, effect: CancelOrigin) -> None:
        """Stops a stat or read, which then ends with CANCELLED if it had not ended by itself. Does
        nothing for one that has ended."""
        effort = self._efforts.get(effect.request_id)
        if effort is not None:
            _stop(effort)

    async def close(self) -> None:
        """Stops everything, waits until it has ended (events included), closes the origins."""
        self._closed = True
        for request_id, effort in list(self._efforts.items()):
            _stop(effort)
            if effort.handle is not None and effort.handle.done():
                del self._efforts[request_id]  # Its supervisor was closed before it began.
        if self._efforts:
            await self._idle.wait()
        await self._origins.close()

    # ------------------------------------------------------------ one effect

    def _begin(
        self,
        request_id: RequestId,
        work: Callable[[], Awaitable[T]],
        end: Callable[[T | _Failure], None],
    ) -> None:
        assert request_id not in self._efforts, f"request {request_id} was used twice"
        if self._closed:
            end(self._stopped())
            return
        effort = self._efforts[request_id] = _Effort()
        self._idle.clear()
        effort.handle = self._supervisor.spawn(
            self._carry_out(request_id, effort, work, end), f"origin request {request_id}"
        )

    async def _carry_out(
        self,
        request_id: RequestId,
        effort: _Effort,
        work: Callable[[], Awaitable[T]],
        end: Callable[[T | _Failure], None],
    ) -> None:
        """Does the work and tells its end, once, whatever it is."""
        effort.began = True
        result: T | _Failure = _Failure(
            Reason.ORIGIN_FAILED, "the daemon has a defect; see its log"
        )
        try:
            result = self._stopped() if effort.cancelled else await work()
        except OriginError as error:
            result = _Failure(error.reason, error.detail, error.retry_after_ms)
        except StoreError as error:
            result = _Failure(error.reason, error.detail)
        except ShoalError as error:
            # A piece digest that can't be computed here: asking again would not help.
            result = _Failure(Reason.ORIGIN_INVALID, str(error))
        except asyncio.CancelledError:
            result = self._stopped()
            if not effort.cancelled:
                raise
        finally:
            del self._efforts[request_id]
            if not self._efforts:
                self._idle.set()
            end(result)

    async def _stat(self, effect: StatOrigin) -> tuple[OriginStat, bool | None]:
        """What the origin says, and whether it has the bytes of the sample."""

        async def stat(request: OriginRequest) -> OriginStat:
            return await self._origins.of(request).stat(request)

        async with self._stat_slots:
            try:
                async with asyncio.timeout(STAT_TIMEOUT_S):
                    found = await self._with_right(effect.source_id, effect.credential, stat)
            except TimeoutError:
                raise OriginError(
                    Reason.ORIGIN_FAILED, f"the origin did not answer in {STAT_TIMEOUT_S:g} s"
                ) from None
        sample = effect.sample
        if sample is None:
            return found, None

        async def compare(request: OriginRequest) -> bool | None:
            return await self._comparing.same(sample, self._origins.of(request), request, found)

        return found, await self._with_right(effect.source_id, effect.credential, compare)

    async def _read(self, effect: ReadOrigin) -> int | None:
        """Returns the size where the read found it out."""
        descriptor = effect.descriptor
        geometry = descriptor.geometry
        end_piece = end_of(effect)
        if end_piece is not None and end_piece <= effect.first_piece:
            return None
        if geometry.size_bytes is None or end_piece is None:
            start_byte, end_byte = geometry.offset_bytes(effect.first_piece), None
        else:
            count = end_piece - effect.first_piece
            start_byte, end_byte = geometry.span_bytes(effect.first_piece, count)
        run = PieceRun(
            effect,
            store=self._store,
            buffers=self._buffers,
            offload=self._offload,
            turns=self._turns,
            stored=lambda piece, digest, length: self._piece_stored(
                effect.request_id, piece, digest, length
            ),
        )

        async def read(request: OriginRequest) -> int | None:
            async with self._origins.of(request).open(
                request,
                start_byte=start_byte,
                end_byte=end_byte,
                validator=descriptor.validator,
                size_bytes=geometry.size_bytes,
            ) as body:
                try:
                    return await run.run(body)
                finally:
                    await run.settle()

        return await self._with_right(effect.source_id, effect.credential, read)

    async def _with_right(
        self,
        source_id: SourceId,
        credential: str,
        attempt: Callable[[OriginRequest], Awaitable[T]],
    ) -> T:
        """One attempt; again with a fresh right if the origin refused to begin."""
        request = self._request(source_id, credential)
        for left in reversed(range(FRESH_RIGHTS_MAX + 1)):
            try:
                return await attempt(request)
            except OriginError as error:
                fresh = None
                if left and error.reason in (Reason.ORIGIN_UNAUTHORIZED, Reason.ORIGIN_FORBIDDEN):
                    fresh = await self._rights.renewed(source_id, credential, request, error.reason)
                if fresh is None:
                    raise
                request = fresh
        raise AssertionError("unreachable")

    def _request(self, source_id: SourceId, credential: str) -> OriginRequest:
        request = self._rights.resolve(source_id, credential)
        if request is None:
            raise OriginError(
                Reason.ORIGIN_NOT_ALLOWED, "nobody on this host wants this source from its origin"
            )
        return request

    def _stopped(self) -> _Failure:
        if self._closed:
            return _Failure(Reason.SHUTTING_DOWN, "the daemon is shutting down")
        return _Failure(Reason.CANCELLED, "")

    # ------------------------------------------------------------ events

    def _piece_stored(
        self, request_id: RequestId, piece: int, digest: bytes, length_bytes: int
    ) -> None:
        self._post(
            OriginPieceStored(
                now_ns=self._clock.now_ns(),
                request_id=request_id,
                piece=piece,
                digest=digest,
                length_bytes=length_bytes,
            )
        )

    def _end_stat(
        self, request_id: RequestId, result: tuple[OriginStat, bool | None] | _Failure
    ) -> None:
        if isinstance(result, tuple):
            found, same = result
            event = StatEnded(
                now_ns=self._clock.now_ns(),
                request_id=request_id,
                reason=None,
                size_bytes=found.size_bytes,
                validator=found.validator,
                ranges=found.ranges,
                same=same,
            )
        else:
            event = StatEnded(
                now_ns=self._clock.now_ns(),
                request_id=request_id,
                reason=result.reason,
                retry_after_ms=result.retry_after_ms,
                detail=result.detail,
            )
        self._post(event)

    def _end_read(self, request_id: RequestId, result: int | _Failure | None) -> None:
        if isinstance(result, _Failure):
            event = OriginReadEnded(
                now_ns=self._clock.now_ns(),
                request_id=request_id,
                reason=result.reason,
                retry_after_ms=result.retry_after_ms,
                detail=result.detail,
            )
        else:
            event = OriginReadEnded(
                now_ns=self._clock.now_ns(), request_id=request_id, reason=None, size_bytes=result
            )
        self._post(event)


def _stop(effort: _Effort) -> None:
    effort.cancelled = True
    if effort.handle is not None and effort.began:
        effort.handle.cancel()
