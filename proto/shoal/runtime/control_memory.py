"""What need not be translated twice: control messages that are the same for many hosts.

A thousand hosts that join one collection send the same bytes, and most of what they are told is one
object for all. `JoinMemory` gives the same `Join` for the same bytes, `EntryMemory` the same
bytes for the same object. Both are bounded: the first forgets everything at once when it is full,
the second what was not asked for lately. Decides nothing; what comes out is exactly what the codec
makes.
"""

from typing import Final

from shoal.runtime.control_bytes import read_varint
from shoal.runtime.control_codec import decode_host_batch, parse_host_batch, scheduler_entry
from shoal.wire.control import Assigned, HostMessage, Leases, Parents, SchedulerMessage
from shoal.wire.limits import MIB

JOIN_BYTES_MAX: Final = 16 * MIB
"""Of joins that are remembered: a dozen of the largest."""

ENTRY_COUNT_MAX: Final = 512
"""Entries that make the ones before them old; they keep their messages alive."""

ENTRY_BYTES_MAX: Final = 8 * MIB
"""The same, by their length."""

FOR_ONE_HOST: Final = frozenset({Assigned, Leases, Parents})
"""Kinds of messages that no second host is told."""

_ENTRY_TAG: Final = b"\x0a"
"""Field 1 of a batch, length-delimited."""

_JOIN_TAG: Final = b"\x12"
"""Field 2 of a host's message, length-delimited."""


class JoinMemory:
    """Batches of one `Join` alone, as last read."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[HostMessage, ...]] = {}
        self._size_bytes = 0

    def decode(self, data: bytes) -> tuple[HostMessage, ...] | None:
        """The messages of such a batch; None for any other. Raises ProtocolError."""
        found = self._known.get(data)
        if found is not None or not _is_one_join(data):
            return found
        messages = decode_host_batch(parse_host_batch(data))
        if self._size_bytes + len(data) > JOIN_BYTES_MAX:
            self._known.clear()
            self._size_bytes = 0
        self._known[data] = messages
        self._size_bytes += len(data)
        return messages


def _is_one_join(data: bytes) -> bool:
    if data[:1] != _ENTRY_TAG:
        return False
    try:
        length, start = read_varint(data, 1)
        return start + length == len(data) and data[start : start + 1] == _JOIN_TAG
    except IndexError:
        return False


class EntryMemory:
    """Entries of messages by their identity: a message that is handed in once more is not
    serialised again. What is for one host alone comes in between and must not push out what is for
    all: entries are forgotten when they are old and were not asked for since they became so."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[SchedulerMessage, bytes]] = {}
        self._old: dict[int, tuple[SchedulerMessage, bytes]] = {}
        self._size_bytes = 0

    def entry(self, message: SchedulerMessage) -> bytes:
        """The message as a batch's bytes hold it."""
        if type(message) in FOR_ONE_HOST:
            return scheduler_entry(message)
        found = self._known.get(id(message))
        if found is not None:
            # It is alive, so nothing else can have its id.
            return found[1]
        found = self._old.get(id(message))
        entry = scheduler_entry(message) if found is None else found[1]
        if len(self._known) >= ENTRY_COUNT_MAX or self._size_bytes > ENTRY_BYTES_MAX:
            self._old, self._known = self._known, {}
            self._size_bytes = 0
        self._known[id(message)] = (message, entry)
        self._size_bytes += len(entry)
        return entry
