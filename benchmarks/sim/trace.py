"""The running hash of a run: every event that a core handled, with its time and key fields.

Two runs of one seed have the same hash, on any machine and under any PYTHONHASHSEED; where they
differ, something depends on what no seed controls.
"""

import hashlib
import sys
from array import array
from collections.abc import Callable
from typing import Any

from peer.core import events as ev
from scheduler.core import events as sev

BLOCK = 16_384
_SMALL = (1 << 62) - 1


def _low(mask: int) -> int:
    return (mask ^ (mask >> 62) ^ mask.bit_length()) & _SMALL


KEYS: dict[type[Any], tuple[int, Callable[[Any], int]]] = {
    event: (number, key)
    for number, (event, key) in enumerate(
        [
            (ev.Want, lambda e: e.download_id),
            (ev.Unwant, lambda e: e.download_id),
            (ev.Remove, lambda e: e.request_id),
            (ev.StoreLoaded, lambda e: e.generation),
            (ev.TaskOpened, lambda e: _low(e.stored.held)),
            (ev.TaskOpenFailed, lambda e: 0),
            (ev.TaskSealed, lambda e: e.reason is None),
            (ev.ContentHashed, lambda e: e.epoch),
            (ev.StoreFailed, lambda e: 0),
            (ev.TaskRemoved, lambda e: 0),
            (ev.SchedulerUp, lambda e: e.session),
            (ev.SchedulerDown, lambda e: e.session),
            (ev.FromScheduler, lambda e: len(e.messages)),
            (ev.ParentConnected, lambda e: e.connection_id),
            (ev.ParentConnectFailed, lambda e: 0),
            (ev.ParentClosed, lambda e: e.connection_id),
            (ev.ParentOpened, lambda e: e.connection_id ^ _low(e.held)),
            (ev.ParentRefused, lambda e: e.connection_id),
            (ev.ParentHave, lambda e: e.connection_id ^ _low(e.new)),
            (ev.ParentWithdrew, lambda e: e.connection_id ^ _low(e.gone)),
            (ev.ParentActive, lambda e: e.connection_id),
            (ev.FetchEnded, lambda e: e.request_id),
            (ev.ChildOpened, lambda e: e.connection_id),
            (ev.ChildClosedTask, lambda e: e.connection_id),
            (ev.ChildRequested, lambda e: e.requests[0][0] << 20 ^ e.requests[0][1]),
            (ev.ChildCancelled, lambda e: e.requests[0]),
            (ev.ChildGone, lambda e: e.connection_id),
            (ev.ServeEnded, lambda e: e.child_request << 20 ^ e.piece),
            (ev.StatEnded, lambda e: e.request_id),
            (ev.OriginPieceStored, lambda e: e.request_id << 20 ^ e.piece),
            (ev.OriginReadEnded, lambda e: e.request_id),
            (ev.Tick, lambda e: 0),
            (ev.ShutDown, lambda e: 0),
            (sev.HostConnected, lambda e: e.session),
            (sev.HostDisconnected, lambda e: e.session),
            (sev.FromHost, lambda e: e.session << 8 ^ len(e.messages)),
            (sev.Tick, lambda e: 0),
        ]
    )
}


class Trace:
    """Takes events in and gives the hash of all of them."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self._block = array("q")

    def note(self, who: int, event: ev.AnyEvent | sev.AnyEvent, effects: int) -> None:
        """A core, by its number, handled an event and answered with so many effects."""
        kind, key = KEYS[type(event)]
        block = self._block
        block.extend((event.now_ns, who << 8 | kind, key(event), effects))
        if len(block) >= BLOCK:
            self._flush()

    def _flush(self) -> None:
        if sys.byteorder == "big":
            self._block.byteswap()
        self._hash.update(self._block)
        self._block = array("q")

    def hex(self) -> str:
        """The hash of everything so far."""
        self._flush()
        return self._hash.copy().hexdigest()
