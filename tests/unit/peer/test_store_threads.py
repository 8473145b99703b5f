"""Many threads at one store: no piece is lost, mixed or held with bytes that are not its own."""

import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from peer.shell.store.content import ContentStore
from peer.shell.store.errors import StoreError
from peer.shell.store.handles import FileSlot, Handles
from shoal.runtime.files import Buffer, RealFiles
from shoal.wire.errors import Reason
from tests.fakes.files import FakeFiles
from tests.fakes.store import (
    PIECE_BYTES,
    check_truth,
    describe,
    digest_of,
    open_store,
    part,
    put,
    put_whole,
    record_of,
    some_bytes,
    task_id_of,
    tolerating,
)

JOIN_TIMEOUT_S = 30


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ContentStore]:
    """A loaded store on the real file system."""
    store = open_store(tmp_path / "store", idle_descriptors_max=2)
    store.load()
    yield store
    store.validate()
    store.close()


def run_all(*works: Callable[[], None]) -> None:
    """Runs them at once; raises what any of them raises."""
    failures: list[BaseException] = []
    start = threading.Barrier(len(works))

    def run(work: Callable[[], None]) -> None:
        try:
            start.wait(JOIN_TIMEOUT_S)
            work()
        except BaseException as error:  # noqa: BLE001 - raised again below
            failures.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(JOIN_TIMEOUT_S)
        assert not thread.is_alive(), "a thread hangs"
    if failures:
        raise failures[0]


def test_writers_of_one_task(store: ContentStore, tmp_path: Path) -> None:
    data = some_bytes(200 * PIECE_BYTES)
    descriptor = describe(size_bytes=len(data))
    store.open_task(descriptor)
    done = threading.Event()

    def write(first: int) -> Callable[[], None]:
        return lambda: put(store, descriptor, data, *range(first, 200, 3))

    def keep() -> None:
        while not done.wait(0.0005):
            store.flush()
            store.sync_some()
            store.usage()

    keeper = threading.Thread(target=keep)
    keeper.start()
    try:
        run_all(write(0), write(1), write(2), write(0), write(1))
    finally:
        done.set()
        keeper.join(JOIN_TIMEOUT_S)
    stored = store.open_task(descriptor)
    check_truth(store, RealFiles(), stored, data)
    store.seal(descriptor.task_id, digest_of(data))
    store.deliver(descriptor.task_id, tmp_path / "out", overwrite=False)
    assert (tmp_path / "out").read_bytes() == data


def test_contradicting_writers_of_one_piece(store: ContentStore) -> None:
    contents = [some_bytes(4 * PIECE_BYTES, seed=seed) for seed in range(4)]
    for _ in range(50):
        store.open_task(describe())
        refused: list[StoreError] = []

        def write(data: bytes, refused: list[StoreError]) -> None:
            with tolerating(Reason.CANCELLED) as caught:
                put(store, describe(), data, 0)
            refused.extend(caught)

        run_all(*[partial(write, data, refused) for data in contents])
        assert len(refused) == 3
        stored = store.open_task(describe())
        record = stored.records[0]
        (winner,) = [
            data for data in contents if record == record_of(describe(), part(describe(), data, 0))
        ]
        check_truth(store, RealFiles(), stored, winner)
        store.remove(task_id_of("a"))


def test_lenders_and_removers(store: ContentStore) -> None:
    data = some_bytes(4 * PIECE_BYTES)
    files = RealFiles()

    def lend() -> None:
        for _ in range(100):
            with (
                tolerating(Reason.UNKNOWN_TASK, Reason.DISK_FAILED),
                store.lend(task_id_of("a")) as lent,
            ):
                sealed = lent.digest is not None
                buffer = bytearray(len(data))
                assert files.pread_into(lent.fd, memoryview(buffer), 0) == len(data)
                assert not sealed or bytes(buffer) == data

    def remove() -> None:
        for _ in range(50):
            put_whole(store, describe(), data)
            store.flush()
            store.remove(task_id_of("a"))

    run_all(lend, lend, remove)
    assert store.usage().used_bytes == 0


class SlowFiles(FakeFiles):
    """A write waits until it is let through."""

    def __init__(self, root: Path) -> None:
        super().__init__([root, root / "content"])
        self.began = threading.Semaphore(0)
        self.go_on = threading.Semaphore(0)
        self.slow = True

    def pwrite(self, fd: int, data: Buffer, offset_bytes: int) -> None:
        """Writes, when told to."""
        if self.slow:
            self.began.release()
            assert self.go_on.acquire(timeout=JOIN_TIMEOUT_S)
        super().pwrite(fd, data, offset_bytes)


class LateWrite:
    """A write that is in flight while other things happen."""

    def __init__(self, tmp_path: Path) -> None:
        root = tmp_path / "slow"
        self.files = SlowFiles(root)
        self.store = open_store(root, self.files)
        self.store.load()
        self.store.open_task(describe())
        self.data = some_bytes(4 * PIECE_BYTES)
        self.outcome: StoreError | None = None
        self._thread = threading.Thread(target=self._write)
        self._thread.start()
        assert self.files.began.acquire(timeout=JOIN_TIMEOUT_S)
        self.files.slow = False

    def _write(self) -> None:
        try:
            put(self.store, describe(), self.data, 0)
        except StoreError as error:
            self.outcome = error

    def finish(self) -> Reason | None:
        """Lets the write through; how it ended."""
        self.files.go_on.release()
        self._thread.join(JOIN_TIMEOUT_S)
        assert not self._thread.is_alive()
        self.store.validate()
        return self.outcome.reason if self.outcome else None


def test_a_write_in_flight_when_the_epoch_is_voided(tmp_path: Path) -> None:
    late = LateWrite(tmp_path)
    late.store.open_task(describe(epoch=2))
    newer = some_bytes(4 * PIECE_BYTES, seed=2)
    follower = threading.Thread(target=lambda: put(late.store, describe(epoch=2), newer, 0))
    follower.start()
    assert late.finish() is Reason.CANCELLED
    follower.join(JOIN_TIMEOUT_S)
    stored = late.store.open_task(describe(epoch=2))
    assert stored.held == 1
    check_truth(late.store, late.files, stored, newer)


def test_a_write_in_flight_when_the_task_is_removed(tmp_path: Path) -> None:
    late = LateWrite(tmp_path)
    late.store.remove(task_id_of("a"))
    assert late.store.open_task(describe()).held == 0
    assert late.finish() is Reason.UNKNOWN_TASK
    assert late.store.open_task(describe()).held == 0
    late.store.close()
    assert late.files.open_files == {}


def test_a_task_being_written_is_not_evicted(tmp_path: Path) -> None:
    late = LateWrite(tmp_path)
    assert late.store.candidates_to_evict(1 << 60) == []
    assert late.finish() is None
    assert late.store.candidates_to_evict(1 << 60) == [task_id_of("a")]


def test_close_waits_for_writes_in_flight(tmp_path: Path) -> None:
    late = LateWrite(tmp_path)
    closer = threading.Thread(target=late.store.close)
    closer.start()
    assert late.finish() is None
    closer.join(JOIN_TIMEOUT_S)
    store = open_store(tmp_path / "slow", late.files)
    _, (stored,) = store.load()
    assert stored.held == 1
    assert store.recovered.checked_pieces == 0
    store.close()


def test_handles_opened_by_two_threads_at_once_are_one(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"x")
    handles = Handles(RealFiles())
    slot = FileSlot(path)
    taken = [handles.take(slot), handles.take(slot)]
    assert taken[0] is taken[1]
    handles.retire(slot)
    again = handles.take(slot)
    assert again is not taken[0], "a retired slot keeps nothing"
    for one in (*taken, again):
        handles.give_back(one)
    handles.close()
