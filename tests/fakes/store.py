"""Tasks and contents for tests of the content store."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from peer.core.events import PieceRecord, StoredTask
from peer.shell.store.content import ContentStore
from peer.shell.store.errors import StoreError
from peer.shell.store.space import SpaceLimits
from shoal.runtime.files import Files
from shoal.wire import bitfield
from shoal.wire.control import TaskDescriptor
from shoal.wire.errors import Reason
from shoal.wire.geometry import Geometry
from shoal.wire.ids import LeaseNumber, SourceId, TaskId
from shoal.wire.piece_digest import piece_digest

PIECE_BYTES = 1024


def some_bytes(size_bytes: int, seed: int = 1) -> bytes:
    """A content."""
    return Random(seed).randbytes(size_bytes)


def task_id_of(name: str) -> TaskId:
    """A task id for a name."""
    return TaskId(hashlib.sha256(name.encode()).hexdigest())


def describe(
    name: str = "a",
    size_bytes: int | None = 4 * PIECE_BYTES,
    *,
    epoch: int = 1,
    piece_length_bytes: int = PIECE_BYTES,
    algorithm: str = "xxh3-128",
) -> TaskDescriptor:
    """A task's descriptor."""
    return TaskDescriptor(
        task_id=task_id_of(name),
        source_id=SourceId(hashlib.sha256(b"s" + name.encode()).hexdigest()),
        geometry=Geometry(
            size_bytes=size_bytes, piece_length_bytes=piece_length_bytes, run_pieces=2
        ),
        digest=None,
        validator='"v1"',
        ranges=True,
        epoch=epoch,
        piece_digest=algorithm,
    )


def open_store(
    root: Path,
    files: Files | None = None,
    *,
    capacity_bytes: int = 0,
    high_water_percent: int = 90,
    low_water_percent: int = 80,
    idle_descriptors_max: int = 16,
) -> ContentStore:
    """A store, not loaded yet."""
    limits = SpaceLimits(
        capacity_bytes=capacity_bytes,
        high_water_percent=high_water_percent,
        low_water_percent=low_water_percent,
    )
    return ContentStore(
        root,
        now_unix_s=lambda: 1_000,
        limits=limits,
        files=files,
        idle_descriptors_max=idle_descriptors_max,
    )


def part(descriptor: TaskDescriptor, data: bytes, piece: int) -> bytes:
    """The bytes of a piece."""
    start = descriptor.geometry.offset_bytes(piece)
    return data[start : start + descriptor.geometry.piece_length_bytes]


def record_of(descriptor: TaskDescriptor, data: bytes, lease: int = 7) -> PieceRecord:
    """The record of a piece with these bytes."""
    return PieceRecord(
        piece_digest(descriptor.piece_digest, data), LeaseNumber(lease), read_here=True
    )


def put(store: ContentStore, descriptor: TaskDescriptor, data: bytes, *pieces: int) -> None:
    """Writes pieces of a content; all of them if none are named."""
    for piece in pieces or range(descriptor.geometry.piece_count):
        own = part(descriptor, data, piece)
        store.write_piece(
            descriptor.task_id,
            piece,
            descriptor.epoch,
            memoryview(own),
            record_of(descriptor, own),
        )


def put_whole(store: ContentStore, descriptor: TaskDescriptor, data: bytes) -> None:
    """Opens, fills and seals a task."""
    store.open_task(descriptor)
    put(store, descriptor, data)
    store.seal(descriptor.task_id, digest_of(data))


def digest_of(data: bytes) -> str:
    """A content's own digest."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def by_id(tasks: tuple[StoredTask, ...]) -> dict[TaskId, StoredTask]:
    """Loaded tasks by id."""
    return {task.descriptor.task_id: task for task in tasks}


def check_truth(store: ContentStore, files: Files, stored: StoredTask, data: bytes) -> None:
    """Every held piece of a task has the right bytes and the right record."""
    descriptor = stored.descriptor
    with store.lend(descriptor.task_id) as lent:
        for piece in bitfield.pieces(stored.held):
            own = part(descriptor, data, piece)
            buffer = bytearray(len(own))
            files.pread_into(lent.fd, memoryview(buffer), descriptor.geometry.offset_bytes(piece))
            assert bytes(buffer) == own, f"piece {piece} is held with wrong bytes"
            assert stored.records[piece].digest == piece_digest(descriptor.piece_digest, own)
    assert set(stored.records) == set(bitfield.pieces(stored.held))


@contextmanager
def tolerating(*reasons: Reason) -> Iterator[list[StoreError]]:
    """The block may end with a StoreError of these reasons; which it was is put into the list."""
    caught: list[StoreError] = []
    try:
        yield caught
    except StoreError as error:
        if error.reason not in reasons:
            raise
        caught.append(error)
