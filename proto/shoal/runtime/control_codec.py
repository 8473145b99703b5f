"""Batches of control messages: plain values to protobuf and back, at the edge of both daemons.

Decoding trusts nothing: lengths, counts, ranges and forms are checked against `shoal.wire.limits`,
and ProtocolError means that the stream must be closed. Messages of a kind that this version does
not know are left out and counted, so that a newer side may say more. Decides nothing.

A message is serialised once however many hosts it goes to: a batch's bytes are the entries of its
messages one behind the other, so entries may be joined without protobuf.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

from google.protobuf.message import DecodeError

from shoal.runtime.control_bytes import (
    assigned_entry,
    directory_entry,
    entry_of,
    parents_entry,
    read_varint,
)
from shoal.runtime.control_from_host import decode_host_message, encode_host_message
from shoal.runtime.control_from_scheduler import (
    decode_scheduler_message,
    encode_scheduler_message,
)
from shoal.runtime.control_swarm import halves
from shoal.v1 import control_pb2 as pb
from shoal.wire.control import (
    Assigned,
    Directory,
    HostMessage,
    Parents,
    SchedulerMessage,
    SwarmMap,
)
from shoal.wire.errors import ProtocolError
from shoal.wire.limits import CONTROL_MESSAGE_BYTES_MAX, MAP_CHANGES_MAX

MESSAGES_PER_BATCH_MAX: Final = 65_536
"""Empty messages cost two bytes each; their number is bounded apart from their size."""

M = TypeVar("M")


def encode_host_batch(messages: Iterable[HostMessage]) -> pb.HostBatch:
    """Messages of a host as one batch."""
    return pb.HostBatch(messages=[encode_host_message(message) for message in messages])


def encode_scheduler_batch(messages: Iterable[SchedulerMessage]) -> pb.SchedulerBatch:
    """Messages of a scheduler as one batch."""
    return pb.SchedulerBatch(messages=[encode_scheduler_message(message) for message in messages])


def decode_host_batch(
    batch: pb.HostBatch, unknown: Callable[[], None] | None = None
) -> tuple[HostMessage, ...]:
    """The messages of a batch, checked. `unknown` is called for each message of an unknown kind.
    Raises ProtocolError."""
    _check_count(len(batch.messages))
    return tuple(_known((decode_host_message(each) for each in batch.messages), unknown))


def decode_scheduler_batch(
    batch: pb.SchedulerBatch, unknown: Callable[[], None] | None = None
) -> tuple[SchedulerMessage, ...]:
    """The messages of a batch, checked. `unknown` is called for each message of an unknown kind.
    Raises ProtocolError."""
    _check_count(len(batch.messages))
    return tuple(_known((decode_scheduler_message(each) for each in batch.messages), unknown))


def parse_host_batch(data: bytes) -> pb.HostBatch:
    """A batch from its bytes. Raises ProtocolError."""
    try:
        return pb.HostBatch.FromString(data)
    except DecodeError:
        raise ProtocolError("not a batch of host messages") from None


def parse_scheduler_batch(data: bytes) -> pb.SchedulerBatch:
    """A batch from its bytes. Raises ProtocolError."""
    try:
        return pb.SchedulerBatch.FromString(data)
    except DecodeError:
        raise ProtocolError("not a batch of scheduler messages") from None


def scheduler_entry(message: SchedulerMessage) -> bytes:
    """One message as a batch's bytes hold it: joined entries are a batch. A map that is too large
    for one message becomes several entries, joined (`entries_of`)."""
    match message:
        case Parents():
            return parents_entry(message)
        case Assigned():
            return assigned_entry(message)
        case Directory():
            return directory_entry(message)
        case SwarmMap():
            return b"".join(_map_entries(message))
        case _:
            return entry_of(encode_scheduler_message(message).SerializeToString())


def _map_entries(message: SwarmMap) -> Iterator[bytes]:
    few = len(message.changes) <= MAP_CHANGES_MAX
    if few:
        entry = entry_of(encode_scheduler_message(message).SerializeToString())
        if len(entry) <= CONTROL_MESSAGE_BYTES_MAX or len(message.changes) < 2:
            yield entry
            return
    for half in halves(message):
        yield from _map_entries(half)


def entries_of(joined: bytes) -> Iterator[bytes]:
    """Joined entries one by one."""
    start = 0
    while start < len(joined):
        length, body = read_varint(joined, start + 1)
        yield joined[start : body + length]
        start = body + length


def host_entry(message: HostMessage) -> bytes:
    """One message as a batch's bytes hold it: joined entries are a batch."""
    return entry_of(encode_host_message(message).SerializeToString())


def pack_entries(
    entries: Iterable[bytes], size_bytes_max: int = CONTROL_MESSAGE_BYTES_MAX
) -> Iterator[bytes]:
    """Entries joined to batches, in order, each as large as fits. Raises ValueError for an entry
    that fits in no batch: a core sent more in one message than the protocol allows."""
    listed = list(entries)
    if sum(map(len, listed)) > size_bytes_max:
        return _packed(listed, size_bytes_max)
    return iter((b"".join(listed),) if listed else ())


def _packed(entries: list[bytes], size_bytes_max: int) -> Iterator[bytes]:
    pending: list[bytes] = []
    size_bytes = 0
    for entry in entries:
        if len(entry) > size_bytes_max:
            raise ValueError(f"a control message of {len(entry)} bytes: at most {size_bytes_max}")
        if pending and size_bytes + len(entry) > size_bytes_max:
            yield b"".join(pending)
            pending.clear()
            size_bytes = 0
        pending.append(entry)
        size_bytes += len(entry)
    if pending:
        yield b"".join(pending)


def _check_count(count: int) -> None:
    if count > MESSAGES_PER_BATCH_MAX:
        raise ProtocolError(f"{count} messages in a batch: at most {MESSAGES_PER_BATCH_MAX}")


def _known(messages: Iterable[M | None], unknown: Callable[[], None] | None) -> Iterator[M]:
    for message in messages:
        if message is not None:
            yield message
        elif unknown is not None:
            unknown()
