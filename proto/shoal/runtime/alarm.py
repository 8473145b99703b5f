"""The timer of a state machine: rings when the machine says that it wants to hear of the time.

A timer that is early enough is kept and looks again when it rings, which is cheaper than setting it
anew at every event. Decides nothing: the machine names the deadline, its driver makes the tick.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from shoal.runtime.clock import Clock
from shoal.wire.limits import MILLISECOND_NS, SECOND_NS

WAIT_NS_MIN: Final = MILLISECOND_NS
"""A deadline that is already past waits so long, so that a wrong one cannot spin the loop."""

LATE_NS: Final = 5 * MILLISECOND_NS
"""A process that hears of the time so late was held up: what came in meanwhile is heard first, or
the machine would take it for silence."""


class Alarm:
    """Calls `on_due(now_ns)` once `next_deadline_ns()` is reached, if the deadline stands still
    then. `arm` is to be called whenever the deadline may have changed, from `on_due` too."""

    def __init__(
        self,
        *,
        next_deadline_ns: Callable[[], int | None],
        on_due: Callable[[int], None],
        clock: Clock,
    ) -> None:
        self._next_deadline_ns = next_deadline_ns
        self._on_due = on_due
        self._clock = clock
        self._timer: asyncio.TimerHandle | None = None
        self._timer_deadline_ns = 0
        self._ring_ns = 0
        self._rang_late = False

    def arm(self) -> None:
        """Makes sure that it rings by the deadline."""
        deadline_ns = self._next_deadline_ns()
        if deadline_ns is None:
            return
        if self._timer is not None:
            if self._timer_deadline_ns <= deadline_ns:
                return
            self._timer.cancel()
        now_ns = self._clock.now_ns()
        wait_ns = max(deadline_ns - now_ns, WAIT_NS_MIN)
        self._timer_deadline_ns = deadline_ns
        self._ring_ns = now_ns + wait_ns
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(wait_ns / SECOND_NS, self._rang)

    def cancel(self) -> None:
        """Does not ring any more, until it is armed again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._rang_late = False

    def _rang(self) -> None:
        self._timer = None
        now_ns = self._clock.now_ns()
        deadline_ns = self._next_deadline_ns()
        is_due = deadline_ns is not None and deadline_ns <= now_ns
        self._rang_late = is_due and now_ns - self._ring_ns >= LATE_NS and not self._rang_late
        if is_due and not self._rang_late:
            self._on_due(now_ns)
        else:
            self.arm()
