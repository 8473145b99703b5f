"""Fields of control messages as another host sent them: checked against every limit.

Each reader returns a value that the cores may trust in shape (length, range, form; not in truth) or
raises ProtocolError. Texts for people are cut, not refused. Reasons that a newer version may have
added fall back to a general one. Decides nothing about meaning.
"""

import ipaddress
import re
from collections.abc import Sequence
from typing import Final

from shoal.v1 import control_pb2 as pb
from shoal.wire import bitfield
from shoal.wire.control import Address, Parent, TaskDescriptor
from shoal.wire.digest import parse_digest
from shoal.wire.errors import ProtocolError, Reason, UsageError
from shoal.wire.geometry import Geometry, check_piece_length
from shoal.wire.ids import CollectionId, HostId, LeaseNumber, SourceId, TaskId
from shoal.wire.limits import (
    ADDRESSES_PER_HOST_MAX,
    HOST_ID_CHARACTERS_MAX,
    PIECES_PER_TASK_MAX,
    RUN_BYTES_MAX,
    TEXT_CHARACTERS_MAX,
    VALIDATOR_CHARACTERS_MAX,
)
from shoal.wire.piece_digest import PIECE_ALGORITHMS

SIZE_BYTES_MAX: Final = (1 << 63) - 1
"""What a file offset can be."""

MILLISECONDS_MAX: Final = 7 * 24 * 3600 * 1000
"""A week: no interval that hosts tell one another is longer."""

NAME_CHARACTERS_MAX: Final = HOST_ID_CHARACTERS_MAX
"""Of zones, versions, scheduler ids and enum values."""

_FINGERPRINT: Final = re.compile(r"[0-9a-f]{64}")
_PIECE_DIGEST_LENGTHS: Final = frozenset(PIECE_ALGORITHMS.values())
_REASONS: Final = {reason.value: reason for reason in Reason}


# ---------------------------------------------------------------- names and numbers


def _fingerprint(value: str, what: str) -> str:
    if not _FINGERPRINT.fullmatch(value):
        raise ProtocolError(f"{what}: not 64 hex digits")
    return value


def task_id(value: str) -> TaskId:
    """A task's id."""
    return TaskId(_fingerprint(value, "task id"))


def source_id(value: str) -> SourceId:
    """A source's id."""
    return SourceId(_fingerprint(value, "source id"))


def collection_id(value: str) -> CollectionId:
    """A collection's id."""
    return CollectionId(_fingerprint(value, "collection id"))


def host_id(value: str) -> HostId:
    """A host's id: never empty, nothing invisible in it."""
    if not value:
        raise ProtocolError("host id: empty")
    return HostId(name(value, "host id"))


def name(value: str, what: str) -> str:
    """A short printable text, perhaps empty."""
    if len(value) > NAME_CHARACTERS_MAX or not value.isprintable():
        raise ProtocolError(f"{what}: longer than {NAME_CHARACTERS_MAX} or not printable")
    return value


def text(value: str) -> str:
    """Free text for people, cut to its limit."""
    return value[:TEXT_CHARACTERS_MAX]


def lease_number(value: int) -> LeaseNumber:
    """A lease's number; 0, a read without a scheduler, is allowed."""
    return LeaseNumber(value)


def epoch(value: int) -> int:
    """An epoch of piece digests; they count from 1."""
    if value < 1:
        raise ProtocolError("epoch 0")
    return value


def piece(value: int) -> int:
    """A piece's number."""
    if value >= PIECES_PER_TASK_MAX:
        raise ProtocolError(f"piece {value}: tasks have at most {PIECES_PER_TASK_MAX}")
    return value


def size_bytes(value: int) -> int:
    """The size of a content."""
    if value > SIZE_BYTES_MAX:
        raise ProtocolError(f"size of {value} bytes")
    return value


def milliseconds(value: int) -> int:
    """A span of time."""
    if value > MILLISECONDS_MAX:
        raise ProtocolError(f"{value} ms is longer than a week")
    return value


def count(items: Sequence[object], count_max: int, what: str) -> None:
    """Refuses a list that is too long."""
    if len(items) > count_max:
        raise ProtocolError(f"{len(items)} {what}: at most {count_max}")


# ---------------------------------------------------------------- digests and validators


def piece_digest(value: bytes) -> bytes:
    """The digest of a piece, by any known algorithm."""
    if len(value) not in _PIECE_DIGEST_LENGTHS:
        raise ProtocolError(f"piece digest of {len(value)} bytes")
    return value


def content_digest(value: str) -> str:
    """The digest of a content in its one canonical form."""
    try:
        canonical = str(parse_digest(value))
    except UsageError as error:
        raise ProtocolError(str(error)[:TEXT_CHARACTERS_MAX]) from None
    if canonical != value:
        raise ProtocolError("content digest not in lower case")
    return value


def validator(value: str) -> str:
    """An ETag or Last-Modified, as the origin sent it."""
    if not value or len(value) > VALIDATOR_CHARACTERS_MAX:
        raise ProtocolError(f"validator of {len(value)} characters")
    return value


# ---------------------------------------------------------------- reasons


def reason(value: str, unknown: Reason) -> Reason:
    """A reason; `unknown` stands for one that a newer version added."""
    if not value:
        raise ProtocolError("a reason is missing")
    return _REASONS.get(name(value, "reason"), unknown)


def outcome(value: str) -> Reason | None:
    """A reason, or None for success."""
    return reason(value, Reason.ORIGIN_FAILED) if value else None


# ---------------------------------------------------------------- masks


def mask(value: bytes, count_max: int = PIECES_PER_TASK_MAX) -> int:
    """A bitmap in its one canonical form."""
    if value.endswith(b"\0"):
        raise ProtocolError("bitmap with zero bytes at its end")
    return bitfield.from_bytes(value, count_max)


def stretches(values: Sequence[int]) -> int:
    """The mask of stretches `first, count, first, count, ...` that rise without touching. In time
    linear in their number and the mask's length, whatever another host sends."""
    # A list at once: protobuf makes every number that is asked for anew.
    numbers = list(values)
    if len(numbers) == 2:
        # Most masks that a map names are one stretch.
        first, length = numbers
        if length == 0 or first + length > PIECES_PER_TASK_MAX:
            raise _no_stretch(first, length)
        return bitfield.mask_of(first, length)
    if len(numbers) % 2:
        raise ProtocolError("stretches: an odd number of numbers")
    # They rise, so the last one says how long the mask is; one out of order fails before it counts.
    end_max = min(sum(numbers[-2:]), PIECES_PER_TASK_MAX)
    pairs = zip(numbers[::2], numbers[1::2], strict=True)
    end = -1
    if end_max <= bitfield.SHORT_BITS:
        value = 0
        for first, length in pairs:
            if first <= end or length == 0 or first + length > end_max:
                raise _no_stretch(first, length)
            end = first + length
            value |= (1 << end) - (1 << first)
        return value
    bits = bytearray(-(-end_max // 8))
    for first, length in pairs:
        if first <= end or length == 0 or first + length > end_max:
            raise _no_stretch(first, length)
        end = first + length
        if length == 1:
            bits[first >> 3] |= 1 << (first & 7)
            continue
        head, tail = first >> 3, (end - 1) >> 3
        head_bits, tail_bits = 0xFF << (first & 7) & 0xFF, 0xFF >> (7 - ((end - 1) & 7))
        if head == tail:
            bits[head] |= head_bits & tail_bits
            continue
        bits[head] |= head_bits
        bits[head + 1 : tail] = b"\xff" * (tail - head - 1)
        bits[tail] |= tail_bits
    return int.from_bytes(bits, "little")


def _no_stretch(first: int, length: int) -> ProtocolError:
    return ProtocolError(f"stretch {first}+{length} is empty, out of order or out of bounds")


def stretches_of(value: int) -> list[int]:
    """A mask as `stretches` reads it."""
    return [number for stretch in bitfield.ranges(value) for number in stretch]


# ---------------------------------------------------------------- shared messages


def addresses(values: Sequence[pb.Address]) -> tuple[Address, ...]:
    """Addresses of a host's piece port: IP addresses, never names."""
    count(values, ADDRESSES_PER_HOST_MAX, "addresses")
    return tuple(_address(value) for value in values)


def _address(value: pb.Address) -> Address:
    try:
        ipaddress.ip_address(value.ip)
    except ValueError:
        raise ProtocolError("an address is not an IP address") from None
    if len(value.ip) > NAME_CHARACTERS_MAX or not 1 <= value.port <= 65535:
        raise ProtocolError(f"port {value.port} of an address")
    return Address(value.ip, value.port)


def encode_addresses(values: Sequence[Address]) -> list[pb.Address]:
    """The same the other way."""
    return [pb.Address(ip=value.ip, port=value.port) for value in values]


def parent(value: pb.Parent) -> Parent:
    """A host to connect to."""
    return Parent(
        host_id=host_id(value.host_id),
        addresses=addresses(value.addresses),
        zone=name(value.zone, "zone"),
    )


def encode_parent(value: Parent) -> pb.Parent:
    """The same the other way."""
    return pb.Parent(
        host_id=value.host_id, addresses=encode_addresses(value.addresses), zone=value.zone
    )


def descriptor(value: pb.TaskDescriptor) -> TaskDescriptor:
    """All that a host must know of a task."""
    if value.piece_digest not in PIECE_ALGORITHMS:
        raise ProtocolError("unknown piece digest algorithm")
    return TaskDescriptor(
        task_id=task_id(value.task_id),
        source_id=source_id(value.source_id),
        geometry=_geometry(value.geometry),
        digest=content_digest(value.digest) if value.HasField("digest") else None,
        validator=validator(value.validator) if value.HasField("validator") else None,
        ranges=value.ranges,
        epoch=epoch(value.epoch),
        piece_digest=value.piece_digest,
    )


def encode_descriptor(value: TaskDescriptor) -> pb.TaskDescriptor:
    """The same the other way."""
    geometry = value.geometry
    return pb.TaskDescriptor(
        task_id=value.task_id,
        source_id=value.source_id,
        geometry=pb.Geometry(
            size_bytes=geometry.size_bytes,
            piece_length_bytes=geometry.piece_length_bytes,
            run_pieces=geometry.run_pieces,
        ),
        digest=value.digest,
        validator=value.validator,
        ranges=value.ranges,
        epoch=value.epoch,
        piece_digest=value.piece_digest,
    )


def _geometry(value: pb.Geometry) -> Geometry:
    try:
        length = check_piece_length(value.piece_length_bytes)
    except UsageError as error:
        raise ProtocolError(str(error)) from None
    run = value.run_pieces
    if run < 1 or run & (run - 1) or (run > 1 and run * length > RUN_BYTES_MAX):
        raise ProtocolError(f"runs of {run} pieces of {length} bytes")
    size = size_bytes(value.size_bytes) if value.HasField("size_bytes") else None
    if size is not None and -(-size // length) > PIECES_PER_TASK_MAX:
        raise ProtocolError(f"{size} bytes in pieces of {length} bytes: too many pieces")
    return Geometry(size_bytes=size, piece_length_bytes=length, run_pieces=run)
