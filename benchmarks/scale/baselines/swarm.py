"""What all models of other systems share: hosts and links on the fluid network, a clock, a record.

A model says who fetches what from whom; here it costs what it costs ours: the same links, shared
max-min fairly, and the same round trips. Nothing here is taken from our cores.
"""

import hashlib
import heapq
import random
import time
from collections.abc import Callable

import numpy as np

from benchmarks.scale.metrics import Curves, Outcome
from benchmarks.scale.options import RunOptions
from benchmarks.scale.plan import Fault, Host, Plan
from benchmarks.sim.fluid import FluidNetwork
from shoal.wire.limits import SECOND_NS

ORIGIN = -1
"""The origin where a host's number is asked for."""


class Transfer:
    """Bytes on their way to a host. `flow` is None while the request travels."""

    __slots__ = ("child", "flow", "lost", "over", "source")

    def __init__(self, source: int, child: int, lost: Callable[[], None]) -> None:
        self.source = source
        self.child = child
        self.lost = lost
        self.flow: int | None = None
        self.over = False


class Swarm:
    """One run of a model. Subclasses decide in `arrive`, `gone`, and in what they hand to
    `fetch`. `extra` are hosts of the model's own, which want nothing."""

    def __init__(self, options: RunOptions, plan: Plan, extra: tuple[Host, ...] = ()) -> None:
        self.options = options
        self.plan = plan
        self.hosts = (*plan.hosts, *extra)
        self.dice = random.Random(f"{options.seed}/{options.policy}")
        self.now_ns = 0
        self.network = FluidNetwork(quantum_ns=options.quantum_ns)
        self.present = [host.seed for host in self.hosts]
        self.started_ns: list[int | None] = [None] * len(self.hosts)
        self.ended_ns: list[int | None] = [None] * len(self.hosts)
        self.left_bytes = [0 if host.seed else plan.size_bytes for host in self.hosts]
        self.messages = 0
        self.events = 0
        self._transfers: list[dict[Transfer, None]] = [{} for _ in self.hosts]
        self._trace = hashlib.blake2b(digest_size=16)
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._sequence = 0
        self._waiting = sum(host.must_finish for host in plan.hosts)
        self._build_links()

    def _build_links(self) -> None:
        add = self.network.add_link
        self.origin_link = add(max(self.plan.origin_bytes_s, 1e-6))
        self.up_links = [add(host.up_bytes_s) for host in self.hosts]
        self.down_links = [add(host.down_bytes_s) for host in self.hosts]
        self._zone_links = [(add(cut.in_bytes_s), add(cut.out_bytes_s)) for cut in self.plan.zones]
        self._rack_links = [(add(cut.in_bytes_s), add(cut.out_bytes_s)) for cut in self.plan.racks]

    @property
    def origin_there(self) -> bool:
        """Whether the origin answers at all."""
        return self.plan.origin_bytes_s > 0

    # ------------------------------------------------------------ what models decide

    def begin(self) -> None:
        """Before anything happens."""

    def arrive(self, host: int) -> None:
        """A host comes and wants everything; `back` after a crash."""
        raise NotImplementedError

    def gone(self, host: int) -> None:
        """A host crashed or left; its transfers are over already."""

    def back(self, host: int) -> None:
        """A host is there again after a crash."""
        self.arrive(host)

    # ------------------------------------------------------------ time

    def after(self, delay_ns: int, action: Callable[[], None]) -> None:
        """Plans an action."""
        self._sequence += 1
        heapq.heappush(self._heap, (self.now_ns + delay_ns, self._sequence, action))

    def at_s(self, time_s: float, action: Callable[[], None]) -> None:
        """Plans an action for a time since the start."""
        self.after(int(time_s * SECOND_NS) - self.now_ns, action)

    def run(self, limit_s: float, curve_step_s: float | None = None) -> Outcome:
        """Runs until every host that must finish has, or the limit; returns the record."""
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        for index, host in enumerate(self.plan.hosts):
            if not host.seed:
                self.at_s(host.arrives_s, lambda index=index: self._arrived(index))  # type: ignore[misc]
        for fault in self.plan.faults():
            self.at_s(fault.at_s, lambda fault=fault: self._strike(fault))  # type: ignore[misc]
        curves = Curves() if curve_step_s is not None else None
        if curves is not None and curve_step_s is not None:
            self._sample(curves, int(curve_step_s * SECOND_NS))
        self.begin()
        self._loop(int(limit_s * SECOND_NS))
        if curves is not None:
            self._record(curves)
        return self._outcome(curves, time.perf_counter() - wall_s, time.process_time() - cpu_s)

    def _loop(self, limit_ns: int) -> None:
        heap, network = self._heap, self.network
        while self._waiting:
            flow_ns = network.next_ns()
            if heap and (flow_ns is None or heap[0][0] < flow_ns):
                self.now_ns, _, action = heapq.heappop(heap)
                if self.now_ns > limit_ns:
                    return
                self.events += 1
                action()
            elif flow_ns is not None and flow_ns <= limit_ns:
                self.now_ns = max(self.now_ns, flow_ns)
                network.advance(self.now_ns)
            else:
                return

    # ------------------------------------------------------------ hosts

    def _arrived(self, host: int) -> None:
        self.present[host] = True
        self.started_ns[host] = self.now_ns
        self.arrive(host)

    def _strike(self, fault: Fault) -> None:
        """Hosts crash, come back and leave. No model has a scheduler whose memory matters: that
        theirs survives is in their favour."""
        if fault.host < 0 or (fault.kind == "restart") == self.present[fault.host]:
            return
        if fault.kind == "restart":
            self.present[fault.host] = True
            self.back(fault.host)
            return
        self.present[fault.host] = False
        broken = list(self._transfers[fault.host])
        for transfer in broken:
            self.stop(transfer)
        self.gone(fault.host)
        for transfer in broken:
            if transfer.child != fault.host:
                transfer.lost()

    def gained(self, host: int, size_bytes: int) -> None:
        """A host has so many bytes more of what it wants."""
        self.left_bytes[host] -= size_bytes
        assert self.left_bytes[host] >= 0, "more than there is"
        if self.left_bytes[host] == 0 and self.ended_ns[host] is None:
            self.ended_ns[host] = self.now_ns
            self._waiting -= host < len(self.plan.hosts) and self.plan.hosts[host].must_finish

    # ------------------------------------------------------------ bytes

    def path(self, source: int, child: int) -> tuple[int, ...]:
        """The links from a host or the origin to a host."""
        goal = self.hosts[child]
        links = [self.origin_link if source == ORIGIN else self.up_links[source]]
        start = None if source == ORIGIN else self.hosts[source]
        for cuts, kind in ((self._rack_links, "rack"), (self._zone_links, "zone")):
            here = None if start is None else getattr(start, kind)
            there = getattr(goal, kind)
            if here != there:
                links += [cuts[here][1]] if here is not None else []
                links += [cuts[there][0]] if there is not None else []
        return (*links, self.down_links[child])

    def fetch(
        self,
        source: int,
        child: int,
        size_bytes: int,
        done: Callable[[], None],
        lost: Callable[[], None],
        round_trips: float = 1.0,
    ) -> Transfer:
        """A host asks for bytes: they flow after the round trips, then `done` is called. `lost`
        is called if the source goes away; nothing is if the host itself does."""
        transfer = Transfer(source, child, lost)
        self._transfers[child][transfer] = None
        if source != ORIGIN:
            self._transfers[source][transfer] = None

        def ended(finish_ns: int) -> None:
            self.now_ns = max(self.now_ns, finish_ns)
            self.events += 1
            self._forget(transfer)
            self._trace.update(b"%d %d %d %d;" % (self.now_ns, source, child, size_bytes))
            done()

        def start() -> None:
            if not transfer.over:
                transfer.flow = self.network.start(
                    self.now_ns, self.path(source, child), size_bytes, ended
                )

        delay_ns = int(round_trips * 2 * self.options.latency_ns)
        if delay_ns:
            self.after(delay_ns, start)
        else:
            start()
        return transfer

    def stop(self, transfer: Transfer) -> None:
        """Ends a transfer without a word."""
        if not transfer.over:
            self._forget(transfer)
            if transfer.flow is not None:
                self.network.cancel(self.now_ns, transfer.flow)

    def _forget(self, transfer: Transfer) -> None:
        transfer.over = True
        self._transfers[transfer.child].pop(transfer, None)
        if transfer.source != ORIGIN:
            self._transfers[transfer.source].pop(transfer, None)

    # ------------------------------------------------------------ record

    def _record(self, curves: Curves) -> None:
        crossed = self.network.link_bytes(self.now_ns)
        count = len(self.plan.hosts)
        curves.times_s.append(self.now_ns / SECOND_NS)
        curves.up_bytes.append(crossed[self.up_links[:count]])
        curves.down_bytes.append(crossed[self.down_links[:count]])
        curves.origin_bytes.append(float(crossed[self.origin_link]))

    def _sample(self, curves: Curves, step_ns: int) -> None:
        self._record(curves)
        self.after(step_ns, lambda: self._sample(curves, step_ns))

    def _outcome(self, curves: Curves | None, wall_s: float, cpu_s: float) -> Outcome:
        crossed = self.network.link_bytes(self.now_ns)
        count = len(self.plan.hosts)

        def seconds(times: list[int | None]) -> list[float | None]:
            return [None if time is None else time / SECOND_NS for time in times[:count]]

        unfinished = sum(
            host.must_finish and ended is None
            for host, ended in zip(self.plan.hosts, self.ended_ns, strict=False)
        )
        return Outcome(
            started_s=seconds(self.started_ns),
            ended_s=seconds(self.ended_ns),
            failures={"time limit": unfinished} if unfinished else {},
            origin_bytes=float(crossed[self.origin_link]),
            up_bytes=np.asarray(crossed[self.up_links[:count]]),
            down_bytes=np.asarray(crossed[self.down_links[:count]]),
            zone_in_bytes=[float(crossed[entry]) for entry, _ in self._zone_links],
            rack_in_bytes=[float(crossed[entry]) for entry, _ in self._rack_links],
            scheduler_messages=self.messages,
            events=self.events,
            wall_s=wall_s,
            cpu_s=cpu_s,
            trace_hash=self._trace.hexdigest(),
            curves=curves,
        )
