"""A process that plays many hosts: each has a connection and a control stream of its own.

Takes commands as lines of JSON on its standard input and answers each with one line:
`open` (connect and say Hello), `join` (all at once), `cold` (connect, Hello and Join, all at once),
`steady` (reports for some seconds). Ends with its input. Keeps its own cost low, because it shares
the machine with what it measures.
"""

import asyncio
import gc
import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import uvloop

from benchmarks.scale import service_http2
from benchmarks.scale import service_words as words
from benchmarks.scale.service_grpc import GrpcStream
from benchmarks.scale.service_hosts import Host, Plan
from benchmarks.scale.service_streams import Connect

CONNECT_BY_KIND: Final[dict[str, Connect]] = {"http2": service_http2.connect, "grpc": GrpcStream}
OPENING_AT_ONCE: Final = 50


class Crowd:
    """All hosts of this process."""

    def __init__(self, address: str, connect: Connect) -> None:
        self._address = address
        self._connect = connect
        self.hosts: list[Host] = []
        self._described = 0
        self._described_wanted = 0
        self._all_described = asyncio.Event()

    def _host(self, number: int) -> Host:
        host = Host(number, self._address, self._connect, self._one_described)
        self.hosts.append(host)
        return host

    def _one_described(self) -> None:
        self._described += 1
        if self._described >= self._described_wanted:
            self._all_described.set()

    async def open(self, command: dict[str, Any]) -> dict[str, Any]:
        """Connects hosts, some at a time, until each is welcome."""
        started_s = time.perf_counter()
        first, count = command["first"], command["count"]
        for start in range(first, first + count, OPENING_AT_ONCE):
            numbers = range(start, min(start + OPENING_AT_ONCE, first + count))
            group = [self._host(number) for number in numbers]
            for host in group:
                host.say(words.hello_batch(host.number))
            await asyncio.gather(*(host.welcomed.wait() for host in group))
        return {"seconds": time.perf_counter() - started_s, "lost": self._lost()}

    async def join(self, command: dict[str, Any]) -> dict[str, Any]:
        """Hosts that are connected and have not joined do, all at once."""
        batch = words.join_batch()
        first, count = command["first"], command["count"]
        hosts = [each for each in self.hosts if first <= each.number < first + count]
        self._wait_for(len(hosts))
        released_s = time.perf_counter()
        for host in hosts:
            host.say(batch)
        return await self._replies(hosts, released_s, command["timeout_s"])

    async def cold(self, command: dict[str, Any]) -> dict[str, Any]:
        """Hosts that do not exist yet connect, say Hello and join, all at once."""
        first, count = command["first"], command["count"]
        batches = [
            words.hello_batch(number) + words.join_batch() for number in range(first, first + count)
        ]
        self._wait_for(count)
        released_s = time.perf_counter()
        hosts = [self._host(number) for number in range(first, first + count)]
        for host, batch in zip(hosts, batches, strict=True):
            host.say(batch)
        return await self._replies(hosts, released_s, command["timeout_s"])

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
        _answer({"began": True})
        before = [self._totals(host) for host in self.hosts]
        await asyncio.sleep(plan.end_s - time.monotonic())
        seconds = time.monotonic() - began_s
        after = [self._totals(host) for host in self.hosts]
        lost = self._lost()
        await _ended(reporting)
        rates = [(b[0] - a[0]) / seconds for a, b in zip(before, after, strict=True)]
        return {
            "seconds": seconds,
            "bytes_s": rates,
            "batches": sum(b[1] - a[1] for a, b in zip(before, after, strict=True)),
            "reports": sum(b[2] - a[2] for a, b in zip(before, after, strict=True)),
            "interval_ms_max": max(host.interval_ms for host in self.hosts),
            "lost": lost,
        }

    async def close(self) -> None:
        """Ends all streams."""
        await asyncio.gather(*(host.close() for host in self.hosts))

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


async def _ended(tasks: list[asyncio.Task[None]]) -> None:
    """Ends tasks. Raises what one of them raised."""
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            raise result


def _answer(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


async def serve(address: str, kind: str) -> None:
    """Carries out commands until the input ends, then ends all streams."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    crowd = Crowd(address, CONNECT_BY_KIND[kind])
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
        _answer(answer)
    await crowd.close()


if __name__ == "__main__":
    # Hosts live as long as the process and leave no cycles to speak of: looking through all their
    # objects would be pauses in what is measured.
    gc.disable()
    uvloop.run(serve(sys.argv[1], sys.argv[2]))
