"""What the hosts of the service benchmark say: one collection of one 64 GiB file, made once.

Clients share the machine with the scheduler that is measured, so whatever they say is serialised
beforehand or once for many, and what they hear is only looked at from outside. Does no IO.
"""

import random
from collections.abc import Iterator
from typing import Final

from shoal.runtime.control_bytes import entry_of, read_varint, varint
from shoal.runtime.control_codec import host_entry
from shoal.v1 import control_pb2 as pb
from shoal.wire.control import Address, Hello, HostInfo, Join, Member, StatAnswer
from shoal.wire.geometry import Geometry, choose_geometry
from shoal.wire.ids import (
    HostId,
    LeaseNumber,
    SourceId,
    TaskId,
    collection_of,
    source_of_digest,
    task_of_digest,
)
from shoal.wire.limits import GIB, UNIT_BYTES_MAX

SIZE_BYTES: Final = 64 * GIB
DIGEST: Final = "sha256:" + "5a" * 32
SOURCE_ID: Final[SourceId] = source_of_digest(DIGEST, None)
TASK_ID: Final[TaskId] = task_of_digest(DIGEST, None)
COLLECTION_ID: Final = collection_of((SOURCE_ID,))
GEOMETRY: Final[Geometry] = choose_geometry(SIZE_BYTES)

WELCOME, DESCRIBED, STAT_WANTED, LEASES, REPORT_INTERVAL = 1, 2, 3, 5, 15
"""Kinds of scheduler messages, by their field numbers in `SchedulerMessage`."""
_REPORT_KEY: Final = bytes((pb.HostMessage.REPORT_FIELD_NUMBER << 3 | 2,))
"""What a report begins with in a `HostMessage`: its field, and that its length follows."""

TRACKS: Final = 16
"""Orders of pieces in which hosts make progress; hosts share them, so that reports can be shared
as well."""
UNIT_PIECES: Final = UNIT_BYTES_MAX // GEOMETRY.piece_length_bytes
"""Of the units that a content of this size is dealt out in."""
SLICE_MS: Final = 125
"""Progress is cut into parts of this time."""
GOODPUT_PARENTS: Final = 4


def host_id(number: int) -> HostId:
    """Hosts are numbered from 0."""
    return HostId(f"host-{number:06d}")


def hello_batch(number: int) -> bytes:
    """Who one host is; it holds nothing."""
    address = Address(f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}", 4000)
    info = HostInfo(
        host_id=host_id(number),
        addresses=(address,),
        zone=f"rack-{number // 40:03d}",
        upload_rate_bytes_s=1_250_000_000,
        download_rate_bytes_s=1_250_000_000,
        free_disk_bytes=1 << 40,
        software_version="0.1.0",
    )
    return host_entry(Hello(host=info, generation=1, holdings=()))


def join_batch() -> bytes:
    """What every host wants."""
    member = Member(
        source_id=SOURCE_ID,
        task_id=TASK_ID,
        digest=DIGEST,
        display_url="https://models.example.com/llama/model-00001-of-00001.safetensors",
        piece_length_bytes=None,
        anonymous=True,
    )
    return host_entry(Join(collection_id=COLLECTION_ID, members=(member,)))


def stat_batch() -> bytes:
    """What the origin says of it: a public content."""
    answer = StatAnswer(source_id=SOURCE_ID, outcome=None, size_bytes=SIZE_BYTES, ranges=True)
    return host_entry(answer)


def entries(batch: bytes) -> Iterator[tuple[int, int, int]]:
    """The kind of each message in a batch of the scheduler, and where its entry begins and ends,
    without parsing the messages."""
    start = 0
    while start < len(batch):
        length, body = read_varint(batch, start + 1)
        key, _ = read_varint(batch, body)
        end = body + length
        yield key >> 3, start, end
        start = end


def report_batch(*parts: bytes) -> bytes:
    """Serialised parts of one report as a batch: protobuf joins parts of one message."""
    body = b"".join(parts)
    return entry_of(_REPORT_KEY + varint(len(body)) + body)


def lease_part(number: LeaseNumber, pieces: list[int], *, done: bool) -> bytes:
    """The part of a report that states pieces read under a lease."""
    report = pb.Report(
        statements=[
            pb.Statement(
                task_id=TASK_ID,
                epoch=1,
                piece=piece,
                digest=piece.to_bytes(16, "big"),
                lease_number=number,
            )
            for piece in pieces
        ]
    )
    if done:
        report.lease_ends.append(pb.LeaseEnd(number=number, task_id=TASK_ID))
    return report.SerializeToString()


class Track:
    """One order of pieces, and the reports of a host that gets them in it."""

    def __init__(self, seed: int, task_s: float) -> None:
        dice = random.Random(seed)
        # Unit by unit, as contents flow: maps tell of whole units only.
        units = list(range(0, GEOMETRY.piece_count, UNIT_PIECES))
        dice.shuffle(units)
        self._order = [
            piece
            for unit in units
            for piece in range(unit, min(unit + UNIT_PIECES, GEOMETRY.piece_count))
        ]
        self._pieces_per_slice = len(self._order) * SLICE_MS / 1000 / task_s
        self._parents = [host_id(dice.randrange(64)) for _ in range(GOODPUT_PARENTS)]
        self._cache: dict[tuple[int, int], bytes] = {}

    def part(self, first_slice: int, end_slice: int) -> bytes:
        """The part of a report that tells the progress of these slices; b"" behind the end."""
        key = (first_slice, end_slice)
        found = self._cache.get(key)
        if found is None:
            found = self._cache[key] = self._make(first_slice, end_slice)
        return found

    def _make(self, first_slice: int, end_slice: int) -> bytes:
        first = int(first_slice * self._pieces_per_slice)
        end = int(end_slice * self._pieces_per_slice)
        pieces = sorted(self._order[first:end])
        if not pieces:
            return b""
        stretches: list[int] = []
        for piece in pieces:
            if stretches and piece == stretches[-2] + stretches[-1]:
                stretches[-1] += 1
            else:
                stretches += (piece, 1)
        received = len(pieces) * GEOMETRY.piece_length_bytes // GOODPUT_PARENTS
        return pb.Report(
            progress=[pb.Progress(task_id=TASK_ID, epoch=1, new_stretches=stretches)],
            goodput=[
                pb.Goodput(host_id=parent, received_bytes=received, rate_bytes_s=300_000_000)
                for parent in self._parents
            ],
            free_upload_slots=4,
        ).SerializeToString()
