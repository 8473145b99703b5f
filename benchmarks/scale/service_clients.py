"""A process that plays many hosts: each has a connection and a control stream of its own.

Takes commands as lines of JSON on its standard input and answers each with one line:
`open` (connect and say Hello), `join` (all at once), `cold` (connect, Hello and Join, all at once),
`steady` (reports for some seconds). Ends with its input. Keeps its own cost low, because it shares
the machine with what it measures.
"""

import asyncio
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

import grpc
import grpc.aio
import uvloop

from benchmarks.scale import service_words as words
from peer.shell.control import METHOD, OPTIONS
from shoal.runtime.control_codec import decode_scheduler_batch, parse_scheduler_batch
from shoal.wire.control import Lease, Leases, ReportInterval, Welcome

OPENING_AT_ONCE: Final = 50

HOST_OPTIONS: Final = (*OPTIONS, ("grpc.http2.bdp_probe", 0))
"""What hosts say, and no probes of bandwidth: each batch would cost both sides two pings more."""
_Call = grpc.aio.StreamStreamCall[bytes, bytes]


class Host:
    """One host's end of its stream, and when it heard what."""

    def __init__(self, number: int, address: str, crowd: "Crowd") -> None:
        self.number = number
        self._crowd = crowd
        self._channel = grpc.aio.insecure_channel(address, options=HOST_OPTIONS)
        self._call = cast("_Call", self._channel.stream_stream(METHOD)())
        # gRPC breaks a stream on which two writes are under way.
        self._writing = asyncio.Lock()
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
        self._reader = asyncio.create_task(self._read())

    async def say(self, batch: bytes) -> None:
        """Sends a batch. A stream that broke is the reader's to notice."""
        try:
            async with self._writing:
                await self._call.write(batch)
        except (grpc.aio.BaseError, asyncio.InvalidStateError):
            self._lose("write failed")

    async def _read(self) -> None:
        try:
            while (data := await self._call.read()) is not grpc.aio.EOF:
                await self._heard(cast("bytes", data))
            self._lose("ended by the scheduler")
        except grpc.aio.AioRpcError as error:
            self._lose(f"{error.code().name}: {error.details()}")

    async def _heard(self, data: bytes) -> None:
        self.bytes_received += len(data)
        self.batches_received += 1
        decode = False
        for kind in words.message_kinds(data):
            if kind == words.DESCRIBED and self.described_s is None:
                self.described_s = time.perf_counter()
                self.described_batch_bytes = len(data)
                self.described_after_bytes = self.bytes_received
                self._crowd.one_described()
            elif kind == words.STAT_WANTED:
                await self.say(words.stat_batch())
            elif kind in (words.WELCOME, words.LEASES, words.REPORT_INTERVAL):
                decode = True
        if decode:
            self._decode(data)

    def _decode(self, data: bytes) -> None:
        for message in decode_scheduler_batch(parse_scheduler_batch(data)):
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

    def _lose(self, why: str) -> None:
        self.lost = self.lost or why
        self.welcomed.set()

    async def steady(self, track: words.Track, plan: "Plan") -> None:
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
            credit = min(16.0, credit + (now_s - said_s) * plan.pieces_read_s)
            said_s = now_s
            while self.leases and credit >= 1:
                credit -= 1
                parts.append(self._state_one())
            if any(parts):
                await self.say(words.report_batch(*parts))
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
        self._call.cancel()
        self._reader.cancel()
        await self._channel.close()


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


class Crowd:
    """All hosts of this process."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.hosts: list[Host] = []
        self._described = 0
        self._described_wanted = 0
        self._all_described = asyncio.Event()

    def one_described(self) -> None:
        """One more host got its first reply."""
        self._described += 1
        if self._described >= self._described_wanted:
            self._all_described.set()

    async def open(self, command: dict[str, Any]) -> dict[str, Any]:
        """Connects hosts, some at a time, until each is welcome."""
        started_s = time.perf_counter()
        first, count = command["first"], command["count"]
        for start in range(first, first + count, OPENING_AT_ONCE):
            numbers = range(start, min(start + OPENING_AT_ONCE, first + count))
            group = [Host(number, self._address, self) for number in numbers]
            self.hosts += group
            await asyncio.gather(*(host.say(words.hello_batch(host.number)) for host in group))
            await asyncio.gather(*(host.welcomed.wait() for host in group))
        return {"seconds": time.perf_counter() - started_s, "lost": self._lost()}

    async def join(self, command: dict[str, Any]) -> dict[str, Any]:
        """Hosts that are connected and have not joined do, all at once."""
        batch = words.join_batch()
        first, count = command["first"], command["count"]
        hosts = [each for each in self.hosts if first <= each.number < first + count]
        self._wait_for(len(hosts))
        released_s = time.perf_counter()
        said = [asyncio.create_task(host.say(batch)) for host in hosts]
        result = await self._replies(hosts, released_s, command["timeout_s"])
        await asyncio.gather(*said)
        return result

    async def cold(self, command: dict[str, Any]) -> dict[str, Any]:
        """Hosts that do not exist yet connect, say Hello and join, all at once."""
        first, count = command["first"], command["count"]
        batches = [
            words.hello_batch(number) + words.join_batch() for number in range(first, first + count)
        ]
        self._wait_for(count)
        released_s = time.perf_counter()
        hosts = [Host(number, self._address, self) for number in range(first, first + count)]
        self.hosts += hosts
        said = [
            asyncio.create_task(host.say(batch)) for host, batch in zip(hosts, batches, strict=True)
        ]
        result = await self._replies(hosts, released_s, command["timeout_s"])
        await asyncio.gather(*said)
        return result

    def _wait_for(self, count: int) -> None:
        self._described_wanted = self._described + count
        self._all_described.clear()

    async def _replies(
        self, hosts: list[Host], released_s: float, timeout_s: float
    ) -> dict[str, Any]:
        try:
            async with asyncio.timeout(timeout_s):
                await self._all_described.wait()
        except TimeoutError:
            pass
        replied = [host for host in hosts if host.described_s is not None]
        return {
            "latencies_ms": [
                1000 * (host.described_s - released_s)
                for host in replied
                if host.described_s is not None
            ],
            "reply_bytes": [host.described_batch_bytes for host in replied],
            "first_bytes": [host.described_after_bytes for host in replied],
            "missing": len(hosts) - len(replied),
            "lost": self._lost(),
        }

    async def steady(self, command: dict[str, Any]) -> dict[str, Any]:
        """Every host reports for some seconds; what they were told meanwhile."""
        plan = Plan(command, sum(1 for host in self.hosts if host.leases) * command["processes"])
        tracks = [words.Track(seed, plan.task_s) for seed in range(words.TRACKS)]
        reporting = [
            asyncio.create_task(host.steady(tracks[host.number % len(tracks)], plan))
            for host in self.hosts
        ]
        await asyncio.sleep(command["warm_up_s"])
        began_s = time.monotonic()
        sys.stdout.write(json.dumps({"began": True}) + "\n")
        sys.stdout.flush()
        before = [self._totals(host) for host in self.hosts]
        await asyncio.sleep(plan.end_s - time.monotonic())
        seconds = time.monotonic() - began_s
        after = [self._totals(host) for host in self.hosts]
        lost = self._lost()
        for task in reporting:
            task.cancel()
        await asyncio.gather(*reporting, return_exceptions=True)
        rates = [(b[0] - a[0]) / seconds for a, b in zip(before, after, strict=True)]
        return {
            "seconds": seconds,
            "bytes_s": rates,
            "batches": sum(b[1] - a[1] for a, b in zip(before, after, strict=True)),
            "reports": sum(b[2] - a[2] for a, b in zip(before, after, strict=True)),
            "interval_ms_max": max(host.interval_ms for host in self.hosts),
            "lost": lost,
        }

    async def rest(self, command: dict[str, Any]) -> dict[str, Any]:
        """Says nothing for a time, and listens."""
        await asyncio.sleep(command["seconds"])
        return {"lost": self._lost()}

    @staticmethod
    def _totals(host: Host) -> tuple[int, int, int]:
        return host.bytes_received, host.batches_received, host.reports_sent

    def _lost(self) -> dict[str, int]:
        reasons: dict[str, int] = {}
        for host in self.hosts:
            if host.lost:
                reasons[host.lost] = reasons.get(host.lost, 0) + 1
        return reasons


async def serve(address: str) -> None:
    """Carries out commands until the input ends."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    crowd = Crowd(address)
    deeds: dict[str, Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]] = {
        "open": crowd.open,
        "join": crowd.join,
        "cold": crowd.cold,
        "steady": crowd.steady,
        "rest": crowd.rest,
    }
    while line := await reader.readline():
        command = json.loads(line)
        cpu_s = time.process_time()
        answer = await deeds[command["do"]](command)
        answer["cpu_s"] = time.process_time() - cpu_s
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
