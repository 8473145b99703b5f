"""A fluid network: flows through links at max-min fair rates, on the caller's virtual clock.

Rates are computed anew (progressive filling, see `maxmin`) at most once per quantum, and only if a
flow started or ended or a link changed. In between all rates stay as they are, except that:

- a flow ends at its exact time, rounded up to the nanosecond, and gives its rate back to its links;
- a flow that starts takes at once the least of what its links have unallocated. So one that follows
  another on the same links loses no time, and one that finds its links full waits for the next
  computation, a quantum at most.

A flow that is much shorter than a quantum sees little fairness, so a quantum should be a twentieth
of a typical flow or less: then ends are on average within a quantum of those of a network whose
rates always are fair, and unbiased. On one core of 2026, 4,000 flows over 2 links each cost 1.1 ms
per computation (over 4 links 1.6 ms), and a flow 5 us from start to end.

Times are integer nanoseconds, rates bytes per second. Nothing depends on hash seeds or threads.
"""

from collections.abc import Callable
from heapq import heappop, heappush
from math import ceil, inf

import numpy as np

from benchmarks.sim.maxmin import Floats, Ints, fill

NEVER = 1 << 62
SECOND_NS = 1e9
RATE_MAX = 1e18
"""What infinite links give a flow: finite, so that arithmetic on rates has no NaN."""
RATE_MIN = 1.0
"""A flow that starts and finds less unallocated than this, which may be rounding, waits."""
ROUNDING_NS = 1e-4
"""An end that is past a nanosecond by less than this, which may be rounding, is on it."""
SPARE_MIN = 1e-9
"""A link that has less than this part of its capacity left is full."""

Done = Callable[[int], None]


def row_of_floats(array: Floats) -> "memoryview[float]":
    """The same memory for reads and writes of single values: half the cost of numpy's."""
    return array.data.cast("B").cast("d")


def row_of_ints(array: Ints) -> "memoryview[int]":
    """As `row_of_floats`."""
    return array.data.cast("B").cast("q")


class FluidNetwork:
    """Links are numbered from 1 (link 0 stands for none), flows in the order of their start.

    The owner calls `advance` at `next_ns()` at the latest, and never goes back in time.
    """

    def __init__(self, *, quantum_ns: int = 1_000_000) -> None:
        self.quantum_ns = quantum_ns
        self.recomputations = 0
        self._computed_ns = -quantum_ns
        self._due_ns: int | None = None  # the next computation; None: nothing changed
        self._due_undated = False  # it is for a link that changed at an unknown time
        # By link. What crossed it is of flows that ended.
        self._capacity = [inf]
        self._capacities: Floats | None = None  # the same as an array, made when needed
        self._spare = [inf]
        self._crossed_bytes = [0.0]
        # Ends up to `_horizon_ns`, as (time, flow), a heap. Those that lie further off are in
        # `_ends`, by slot, as of the last computation.
        self._agenda: list[tuple[int, int]] = []
        self._horizon_ns = 0
        self._ends: Ints = np.empty(0, np.int64)
        self._slots: dict[int, int] = {}  # by flow
        self._ending: dict[int, tuple[int, Done]] = {}  # by flow: ended, and not yet told so
        self._next_flow = 0
        # By slot: lists for what only Python looks at, arrays for what numpy looks at.
        self._flows: list[int] = []
        self._sizes: list[int] = []
        self._dones: list[Done] = []
        self._paths: list[tuple[int, ...]] = []
        self._free_slots: list[int] = []
        self._room = 0
        self._matrix: Ints  # [k, slot]: the k-th link of the flow, or 0
        self._rate: Floats
        self._left: Floats  # bytes to move, at `_since`
        self._since: Ints
        self._cap: Floats  # below 0 where there is no flow
        self._allot(width=2, room=256)

    def _allot(self, width: int, room: int) -> None:
        """Room for so many links of a flow and so many flows."""
        old = self._room
        matrix: Ints = np.zeros((width, room), np.int64)
        rate, left, cap = np.zeros((3, room))
        since: Ints = np.zeros(room, np.int64)
        cap.fill(-1.0)
        if old:
            matrix[: len(self._matrix), :old] = self._matrix
            rate[:old] = self._rate
            left[:old] = self._left
            cap[:old] = self._cap
            since[:old] = self._since
        self._room = room
        self._matrix, self._since = matrix, since
        self._rate, self._left, self._cap = rate, left, cap
        self._matrix_rows = [row_of_ints(row) for row in matrix]
        self._rate_row = row_of_floats(rate)
        self._left_row = row_of_floats(left)
        self._since_row = row_of_ints(since)
        self._cap_row = row_of_floats(cap)

    # ------------------------------------------------------------ links

    def add_link(self, rate_bytes_s: float) -> int:
        """A new link; its number. An infinite rate is allowed."""
        self._capacity.append(rate_bytes_s)
        self._capacities = None
        self._spare.append(rate_bytes_s)
        self._crossed_bytes.append(0.0)
        return len(self._capacity) - 1

    def set_rate(self, link: int, rate_bytes_s: float) -> None:
        """Changes a link. Its flows feel it at the next computation: in the next call of `advance`
        that is a quantum or more after the last computation. `next_ns` may then be in the past."""
        if self._capacity[link] == rate_bytes_s:
            return
        self._capacity[link] = rate_bytes_s
        self._capacities = None
        if not self._slots:
            self._spare[link] = rate_bytes_s
            return
        self._spare[link] = 0.0
        if self._due_ns is None:
            self._due_ns = self._computed_ns + self.quantum_ns
            self._due_undated = True

    def link_bytes(self, now_ns: int) -> Floats:
        """The bytes that have crossed each link up to now, by its number."""
        live = np.flatnonzero(self._cap[: len(self._flows)] >= 0)
        left = self._left[live]
        run = self._rate[live] * ((now_ns - self._since[live]) / SECOND_NS)
        moved = np.array(self._sizes, np.float64)[live] - left + np.minimum(run, left)
        total = np.array(self._crossed_bytes)
        for row in self._matrix:
            total += np.bincount(row[live], moved, len(total))
        total[0] = 0.0
        return total

    # ------------------------------------------------------------ flows

    @property
    def active(self) -> int:
        """The number of flows that have started and not ended."""
        return len(self._slots)

    def start(
        self,
        now_ns: int,
        links: tuple[int, ...],
        size_bytes: int,
        done: Done,
        cap_bytes_s: float = inf,
    ) -> int:
        """Starts a flow over distinct links and returns its number; `advance` calls
        `done(finish_ns)` when it has moved its bytes."""
        flow = self._next_flow
        self._next_flow = flow + 1
        if self._free_slots:
            slot = self._free_slots.pop()
            self._flows[slot] = flow
            self._sizes[slot] = size_bytes
            self._dones[slot] = done
            self._paths[slot] = links
        else:
            slot = self._new_slot(flow, size_bytes, done, links)
        self._slots[flow] = slot
        rows = self._matrix_rows
        if len(links) != len(rows):
            rows = self._fit(slot, len(links))
        rate = cap_bytes_s if cap_bytes_s < RATE_MAX else RATE_MAX
        self._cap_row[slot] = rate
        spare = self._spare
        for row, link in zip(rows, links):  # noqa: B905 (rows may be more)
            row[slot] = link
            if spare[link] < rate:
                rate = spare[link]
        if size_bytes == 0:
            rate = 0.0
            heappush(self._agenda, (now_ns, flow))
        else:
            if rate >= RATE_MIN:
                for link in links:
                    spare[link] -= rate
                end_ns = now_ns + ceil(size_bytes * SECOND_NS / rate - ROUNDING_NS)
                if end_ns <= self._horizon_ns:
                    heappush(self._agenda, (end_ns, flow))
            else:
                rate = 0.0
            if self._due_ns is None or self._due_ns < now_ns:
                self._due_ns = max(now_ns, self._computed_ns + self.quantum_ns)
        self._rate_row[slot] = rate
        self._left_row[slot] = size_bytes
        self._since_row[slot] = now_ns
        return flow

    def _new_slot(self, flow: int, size_bytes: int, done: Done, links: tuple[int, ...]) -> int:
        slot = len(self._flows)
        self._flows.append(flow)
        self._sizes.append(size_bytes)
        self._dones.append(done)
        self._paths.append(links)
        if slot == self._room:
            self._allot(len(self._matrix), 2 * self._room)
        return slot

    def _fit(self, slot: int, width: int) -> "list[memoryview[int]]":
        """Makes the matrix as wide as a flow is, or the slot's column 0 where it is wider."""
        if width > len(self._matrix):
            self._allot(width, self._room)
        for row in self._matrix_rows[width:]:
            row[slot] = 0
        return self._matrix_rows

    def cancel(self, now_ns: int, flow: int) -> float:
        """Ends a flow before its time; the bytes that it has moved. Its `done` is not called."""
        if flow in self._ending:
            return float(self._ending.pop(flow)[0])
        moved = self.moved_bytes(now_ns, flow)
        self._release(now_ns, self._slots.pop(flow), moved)
        return moved

    def moved_bytes(self, now_ns: int, flow: int) -> float:
        """The bytes that a flow has moved up to now."""
        if flow in self._ending:
            return float(self._ending[flow][0])
        slot = self._slots[flow]
        left = self._left_row[slot]
        run = self._rate_row[slot] * ((now_ns - self._since_row[slot]) / SECOND_NS)
        return self._sizes[slot] - left + min(run, left)

    def _release(self, now_ns: int, slot: int, moved_bytes: float) -> None:
        rate = self._rate_row[slot]
        spare = self._spare
        crossed_bytes = self._crossed_bytes
        for link in self._paths[slot]:
            spare[link] += rate
            crossed_bytes[link] += moved_bytes
        self._cap_row[slot] = -1.0
        self._free_slots.append(slot)
        if rate > 0.0:
            self._rate_row[slot] = 0.0
            if self._due_ns is None or self._due_ns < now_ns:
                self._due_ns = max(now_ns, self._computed_ns + self.quantum_ns)

    # ------------------------------------------------------------ time

    def next_ns(self) -> int | None:
        """When `advance` must be called at the latest; None while no flow moves."""
        slots = self._slots
        if not slots:
            return None
        agenda = self._agenda
        while agenda and agenda[0][1] not in slots:
            heappop(agenda)
        due_ns = self._due_ns
        if agenda:
            end_ns = agenda[0][0]
            return end_ns if due_ns is None or end_ns < due_ns else due_ns
        if due_ns is not None:
            return due_ns
        return self._look_further()

    def advance(self, now_ns: int) -> None:
        """Calls `done(finish_ns)` of each flow that ends up to now, in order of time, then of
        start. The callbacks may start and cancel flows, as of the time that they are told."""
        if self._due_undated and self._due_ns is not None and self._due_ns < now_ns:
            self._due_ns = now_ns
        while True:
            next_ns = self.next_ns()
            if next_ns is None or next_ns > now_ns:
                return
            if self._agenda and self._agenda[0][0] == next_ns:
                self._end(next_ns)
            else:
                self._compute(next_ns)

    def _end(self, now_ns: int) -> None:
        """Ends the flows whose time has come. All of them first give back their rates, so that
        what the first one's callback starts finds them."""
        agenda = self._agenda
        ended = []
        while agenda and agenda[0][0] == now_ns:
            flow = heappop(agenda)[1]
            slot = self._slots.pop(flow, None)
            if slot is not None:
                size_bytes = self._sizes[slot]
                self._ending[flow] = (size_bytes, self._dones[slot])
                ended.append(flow)
                self._release(now_ns, slot, size_bytes)
        for flow in ended:
            ending = self._ending.pop(flow, None)
            if ending is not None:
                ending[1](now_ns)

    def _compute(self, now_ns: int) -> None:
        """Moves all flows up to now and gives them their fair rates."""
        used = len(self._flows)
        rate, left, since = self._rate[:used], self._left[:used], self._since[:used]
        left -= rate * ((now_ns - since) / SECOND_NS)
        np.maximum(left, 0.0, out=left)
        since.fill(now_ns)
        live = np.flatnonzero(self._cap[:used] >= 0)
        if self._capacities is None:
            self._capacities = np.array(self._capacity)
        links, caps = self._matrix.take(live, axis=1), self._cap.take(live)
        fair, spare = fill(self._capacities, links, caps)
        spare[spare < self._capacities * SPARE_MIN] = 0.0
        self._spare = spare.tolist()
        rate[live] = fair
        left = left.take(live)
        with np.errstate(divide="ignore", invalid="ignore"):
            lasts = np.ceil(left * SECOND_NS / fair - ROUNDING_NS)
        lasts[left == 0.0] = 0.0
        self._ends = np.full(used, NEVER)
        ends = np.minimum(lasts, float(NEVER)).astype(np.int64) + now_ns
        self._ends[live] = np.minimum(ends, NEVER)
        self._computed_ns = now_ns
        self._due_ns = None
        self._due_undated = False
        self._plan(now_ns + self.quantum_ns)
        self.recomputations += 1

    def _plan(self, horizon_ns: int) -> None:
        """Puts on the agenda what ends up to a time."""
        soon = np.flatnonzero(self._ends <= horizon_ns)
        flows = [self._flows[slot] for slot in soon.tolist()]
        self._agenda = sorted(zip(self._ends[soon].tolist(), flows, strict=True))
        self._horizon_ns = horizon_ns

    def _look_further(self) -> int | None:
        """The first end beyond the horizon. Nothing changed since the last computation."""
        if self._horizon_ns >= NEVER:
            return None
        first_ns = int(self._ends.min())
        if first_ns == NEVER:
            self._horizon_ns = NEVER
            return None
        self._plan(first_ns + self.quantum_ns)
        return first_ns
