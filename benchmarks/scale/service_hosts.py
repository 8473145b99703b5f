"""A host of the service benchmark: what it says, hears and counts, whatever carries its stream."""

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any, Final

from benchmarks.scale import service_words as words
from benchmarks.scale.service_streams import Connect
from shoal.runtime.control_codec import decode_scheduler_batch, parse_scheduler_batch
from shoal.wire.control import Lease, Leases, ReportInterval, Welcome
from shoal.wire.errors import ProtocolError

CREDIT_PIECES_MAX: Final = 16.0
"""Pieces that a host may have read between two reports, however late the second one is."""


class Plan:
    """What the hosts do in the steady phase."""

    def __init__(self, command: dict[str, Any], readers: int) -> None:
        self.dice = random.Random(1)
        self.end_s = time.monotonic() + command["seconds"]
        self.report_min_s = command["report_min_ms"] / 1000
        self.report_max_s = command["report_max_ms"] / 1000
        self.task_s = float(command["task_s"])
        # The origin gives the whole content once in that time, to all readers together.
        self.pieces_read_s = words.GEOMETRY.piece_count / self.task_s / max(1, readers)


class Host:
    """One host's end of its stream, and when it heard what."""

    def __init__(
        self, number: int, address: str, connect: Connect, described: Callable[[], None]
    ) -> None:
        self.number = number
        self._described = described
        self.welcomed = asyncio.Event()
        self.interval_ms = 0
        self.described_s: float | None = None
        self.described_batch_bytes = 0
        self.described_after_bytes = 0
        self.bytes_received = 0
        self.batches_received = 0
        self.reports_sent = 0
        self.lost = ""
        self.leases: list[tuple[Lease, list[int]]] = []
        self._stream = connect(address, self)

    def say(self, batch: bytes) -> None:
        """Sends a batch; one that cannot be sent is lost with its stream."""
        self._stream.say(batch)

    def heard(self, data: bytes) -> None:
        """Counts a batch, and reads as much of it as the host needs."""
        self.bytes_received += len(data)
        self.batches_received += 1
        try:
            self._look(data)
        except (ProtocolError, IndexError) as error:
            self.lose(f"protocol error: {error}")

    def _look(self, data: bytes) -> None:
        for kind, start, end in words.entries(data):
            if kind == words.DESCRIBED and self.described_s is None:
                self.described_s = time.perf_counter()
                self.described_batch_bytes = len(data)
                self.described_after_bytes = self.bytes_received
                self._described()
            elif kind == words.STAT_WANTED:
                self.say(words.stat_batch())
            elif kind in (words.WELCOME, words.LEASES, words.REPORT_INTERVAL):
                # An entry is a batch as well.
                self._decode(data[start:end])

    def _decode(self, batch: bytes) -> None:
        for message in decode_scheduler_batch(parse_scheduler_batch(batch)):
            if isinstance(message, Welcome):
                self.interval_ms = message.report_interval_ms
                self.welcomed.set()
            elif isinstance(message, ReportInterval):
                self.interval_ms = message.report_interval_ms
            elif isinstance(message, Leases):
                for number in message.revoked:
                    self.leases = [each for each in self.leases if each[0].number != number]
                for lease in message.granted:
                    count = lease.piece_count or 0
                    pieces = list(range(lease.first_piece, lease.first_piece + count))
                    self.leases.append((lease, pieces))

    def lose(self, why: str) -> None:
        """The stream is over; the first word counts."""
        self.lost = self.lost or why
        self.welcomed.set()

    async def steady(self, track: words.Track, plan: Plan) -> None:
        """Reports until the plan's end, at the pace that the scheduler allows."""
        started_s = time.monotonic()
        slices = 0
        credit = 0.0
        await asyncio.sleep(plan.dice.random() * plan.report_max_s)
        said_s = started_s
        while (now_s := time.monotonic()) < plan.end_s and not self.lost:
            done_slices = int((now_s - started_s) * 1000 / words.SLICE_MS)
            parts = [track.part(slices, done_slices)]
            slices = done_slices
            credit = min(CREDIT_PIECES_MAX, credit + (now_s - said_s) * plan.pieces_read_s)
            said_s = now_s
            while self.leases and credit >= 1:
                credit -= 1
                parts.append(self._state_one())
            if any(parts):
                self.say(words.report_batch(*parts))
                self.reports_sent += 1
            pause_s = plan.dice.uniform(plan.report_min_s, plan.report_max_s)
            await asyncio.sleep(max(pause_s, self.interval_ms / 1000))

    def _state_one(self) -> bytes:
        lease, pieces = self.leases[0]
        piece = pieces.pop(0)
        if not pieces:
            self.leases.pop(0)
        return words.lease_part(lease.number, [piece], done=not pieces)

    async def close(self) -> None:
        """Ends the stream and the connection."""
        await self._stream.close()
