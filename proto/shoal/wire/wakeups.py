"""When a core wants to be woken: a set of deadlines, rounded up to milliseconds so that the many
deadlines of a busy moment become one `Tick`. Pure; reads no clock."""

import heapq

from shoal.wire.limits import MILLISECOND_NS


class WakeUps:
    """The deadlines asked for. Bounded by the longest time-out in milliseconds."""

    __slots__ = ("_heap", "_known")

    def __init__(self) -> None:
        self._heap: list[int] = []
        self._known: set[int] = set()

    def add(self, deadline_ns: int) -> None:
        """Asks for a `Tick` within a millisecond after that time."""
        rounded_ns = -(-deadline_ns // MILLISECOND_NS) * MILLISECOND_NS
        if rounded_ns not in self._known:
            self._known.add(rounded_ns)
            heapq.heappush(self._heap, rounded_ns)

    def next_ns(self) -> int | None:
        """The earliest deadline."""
        return self._heap[0] if self._heap else None

    def forget_until(self, now_ns: int) -> None:
        """Drops the deadlines that are reached."""
        while self._heap and self._heap[0] <= now_ns:
            self._known.discard(heapq.heappop(self._heap))
