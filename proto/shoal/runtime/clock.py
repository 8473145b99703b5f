"""The clock that shells read and hand to the cores inside events.

Monotonic nanoseconds only: no core and no shell compares wall-clock times. Wall time appears in
logs and in what people read, and is taken there. Decides nothing.
"""

import time
from typing import Protocol


class Clock(Protocol):
    """A source of monotonic time. Tests and the simulator hand in their own."""

    def now_ns(self) -> int:
        """Nanoseconds since an arbitrary moment; never runs backwards."""
        ...


class MonotonicClock:
    """The machine's own monotonic clock."""

    def now_ns(self) -> int:
        """Nanoseconds since an arbitrary moment (usually the machine's start)."""
        return time.monotonic_ns()
