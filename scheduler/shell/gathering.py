"""Lets the writers of many sessions go on together when there are many at once.

What a crowd is told at once is packed for some of it at a time, so that it does not all lie in
memory: with `AT_ONCE` beyond any crowd, `python -m benchmarks.scale service --phase join` shows a
larger RSS. And gRPC hands reads and writes from thread to thread: while those of a crowd alternate,
each can wake a sleeping thread, which turns of many reads, then many writes, do not. A few sessions
are let go on at once.
"""

import asyncio
from collections.abc import Callable
from typing import Final

AT_ONCE: Final = 16
"""Wakes in one window that nobody waits for."""

WINDOW_S: Final = 0.01
"""How long any wake waits at most, but for the turns of those before it."""

TURN: Final = 32
"""Wakes in one turn of the loop. What a thousand sessions write at once would lie in memory all at
once, in no cache; a few at a time are gone before the next ones come."""


class Gathering:
    """Calls what it is given: at once, or, behind the first few of a window, from the window's end
    on, some at a time. Belongs to one event loop."""

    def __init__(self) -> None:
        self._window: asyncio.TimerHandle | None = None
        self._left = AT_ONCE
        self._waiting: list[Callable[[], None]] = []

    def call(self, wake: Callable[[], None]) -> None:
        """Calls `wake` within the window's time, or in a turn of the loop after it."""
        if self._window is None:
            self._left = AT_ONCE
            self._window = asyncio.get_running_loop().call_later(WINDOW_S, self._over)
        if self._left:
            self._left -= 1
            wake()
        else:
            self._waiting.append(wake)

    def _over(self) -> None:
        self._window = None
        waiting, self._waiting = self._waiting, []
        self._turn(waiting)

    def _turn(self, waiting: list[Callable[[], None]]) -> None:
        for wake in waiting[:TURN]:
            wake()
        if len(waiting) > TURN:
            asyncio.get_running_loop().call_soon(self._turn, waiting[TURN:])
