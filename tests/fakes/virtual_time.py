"""An event loop whose time is virtual: it jumps to the next timer when nothing else is to be done,
so a test of rates and timers takes no time and finds the same every time."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from shoal.wire.limits import SECOND_NS

T = TypeVar("T")


class _JumpingSelector(selectors.SelectSelector):
    """Waits for nobody. Without a timer there is nothing to jump to, and it waits in earnest."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1_000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(timeout if timeout is None else 0)
        if not ready and timeout is not None and timeout > 0:
            self.now_s += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """Also a `Clock`."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """The virtual time in seconds."""
        return self._jumping.now_s

    def now_ns(self) -> int:
        """The same in nanoseconds."""
        return round(self._jumping.now_s * SECOND_NS)

    def stall(self, seconds: float) -> None:
        """Time goes by in which the loop does nothing, as with a busy machine."""
        self._jumping.now_s += seconds


def run_virtual(loop: VirtualLoop, coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine to its end."""
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(coroutine)
