"""What each core asked for and must be answered exactly once: kept at the seam, checked at the end.

A promise is opened by an effect and ended by an event of the same process.
"""

from collections.abc import Callable
from typing import Any

from peer.core import effects as fx
from peer.core import events as ev

Key = int | tuple[int, int]

ENDED_BY: dict[type[Any], Callable[[Any], Key]] = {
    ev.FetchEnded: lambda e: e.request_id,
    ev.StatEnded: lambda e: e.request_id,
    ev.OriginReadEnded: lambda e: e.request_id,
    ev.ServeEnded: lambda e: (e.connection_id, e.child_request),
}


class Ledger:
    """The open promises of one process."""

    def __init__(self) -> None:
        self.open: dict[Key, str] = {}
        """By request number, or by (connection, request of the child) of a piece being sent."""
        self.broken: list[str] = []
        """What was asked for twice or answered twice."""

    def ask(self, key: Key, effect: fx.AnyEffect) -> None:
        """The core asked for something."""
        if key in self.open:
            self.broken.append(f"{type(effect).__name__} {key} was asked for twice")
        self.open[key] = type(effect).__name__

    def answer(self, event: ev.AnyEvent) -> None:
        """The core is told something."""
        key_of = ENDED_BY.get(type(event))
        if key_of is None:
            return
        key = key_of(event)
        if self.open.pop(key, None) is None:
            self.broken.append(f"{type(event).__name__} {key} answers what nobody asks")
