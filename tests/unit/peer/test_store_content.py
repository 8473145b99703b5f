"""The content store on a real file system: what goes in comes out, also after a restart."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from peer.core.events import PieceRecord
from peer.shell.store.content import ContentStore
from peer.shell.store.errors import StoreError
from shoal.runtime.files import RealFiles
from shoal.wire.errors import Reason, UsageError
from shoal.wire.ids import LeaseNumber
from tests.fakes.store import (
    PIECE_BYTES,
    by_id,
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
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where the store is."""
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> Iterator[ContentStore]:
    """A loaded, empty store."""
    store = open_store(root)
    store.load()
    yield store
    store.validate()
    store.close()


def file_of(root: Path, name: str) -> Path:
    task_id = task_id_of(name)
    return root / "content" / task_id[:2] / task_id


def refused(reason: Reason) -> "pytest.RaisesExc[StoreError]":
    return pytest.raises(StoreError, check=lambda error: error.reason is reason)


# ---------------------------------------------------------------- a task's life


def test_pieces_are_held_and_readable_as_soon_as_they_are_written(store: ContentStore) -> None:
    data = some_bytes(3 * PIECE_BYTES + 5)
    descriptor = describe(size_bytes=len(data))
    assert store.open_task(descriptor).held == 0
    put(store, descriptor, data, 3, 1)
    stored = store.open_task(descriptor)
    assert stored.held == 0b1010
    assert stored.records[3] == record_of(descriptor, part(descriptor, data, 3))
    check_truth(store, RealFiles(), stored, data)


def test_file_is_preallocated(store: ContentStore, root: Path) -> None:
    store.open_task(describe(size_bytes=1 << 20))
    status = file_of(root, "a").stat()
    assert status.st_size == 1 << 20
    assert status.st_blocks * 512 >= 1 << 20
    assert status.st_mode & 0o777 == 0o600
    assert root.stat().st_mode & 0o777 == 0o700


def test_sealed_content_is_whole_and_read_only(store: ContentStore, root: Path) -> None:
    data = some_bytes(4 * PIECE_BYTES)
    put_whole(store, describe(), data)
    path = file_of(root, "a")
    assert path.read_bytes() == data
    assert path.stat().st_mode & 0o777 == 0o444
    with store.lend(task_id_of("a")) as lent:
        assert (lent.size_bytes, lent.digest) == (len(data), digest_of(data))
    store.seal(task_id_of("a"), digest_of(data))


def test_an_incomplete_content_is_not_sealed(store: ContentStore, root: Path) -> None:
    descriptor = describe()
    store.open_task(descriptor)
    put(store, descriptor, some_bytes(4 * PIECE_BYTES), 0, 1, 2)
    with refused(Reason.NOT_HELD):
        store.seal(descriptor.task_id, "sha256:00")
    with refused(Reason.NOT_HELD):
        store.deliver(descriptor.task_id, root.parent / "out", overwrite=False)
    put(store, descriptor, some_bytes(4 * PIECE_BYTES), 3)
    store.seal(descriptor.task_id, "sha256:00")


def test_an_empty_content_works(store: ContentStore, tmp_path: Path) -> None:
    descriptor = describe(size_bytes=0)
    assert not store.open_task(descriptor).sealed
    store.seal(descriptor.task_id, digest_of(b""))
    store.deliver(descriptor.task_id, tmp_path / "out", overwrite=False)
    assert (tmp_path / "out").read_bytes() == b""


def test_empty_content_survives_a_restart(root: Path) -> None:
    store = open_store(root)
    store.load()
    put_whole(store, describe(size_bytes=0), b"")
    store.close()
    store = open_store(root)
    _, (stored,) = store.load()
    assert stored.sealed
    store.close()


def test_unknown_tasks(store: ContentStore, tmp_path: Path) -> None:
    task_id = task_id_of("nobody")
    with refused(Reason.UNKNOWN_TASK):
        store.lend(task_id)
    with refused(Reason.UNKNOWN_TASK):
        store.seal(task_id, "")
    with refused(Reason.UNKNOWN_TASK):
        store.deliver(task_id, tmp_path / "out", overwrite=False)
    with refused(Reason.UNKNOWN_TASK):
        store.write_piece(task_id, 0, 1, memoryview(b"x"), PieceRecord(b"", LeaseNumber(1), True))
    with refused(Reason.UNKNOWN_TASK):
        store.pin(task_id)
    store.remove(task_id)
    store.drop_pieces(task_id, 1)
    store.touch(task_id)
    store.unpin(task_id)


def test_removed_task_stays_readable_while_lent(store: ContentStore, root: Path) -> None:
    data = some_bytes(4 * PIECE_BYTES)
    put_whole(store, describe(), data)
    with store.lend(task_id_of("a")) as lent:
        store.remove(task_id_of("a"))
        assert not file_of(root, "a").exists()
        assert os.pread(lent.fd, len(data), 0) == data
        other = some_bytes(4 * PIECE_BYTES, seed=2)
        put_whole(store, describe(), other)
        assert os.pread(lent.fd, len(data), 0) == data
        with store.lend(task_id_of("a")) as again:
            assert os.pread(again.fd, len(data), 0) == other
    lent.release()


def test_idle_descriptors_are_bounded(root: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    store = open_store(root, idle_descriptors_max=4)
    store.load()
    for number in range(20):
        put_whole(store, describe(str(number)), some_bytes(4 * PIECE_BYTES, seed=number))
        with store.lend(task_id_of(str(number))):
            pass
    # The database, its log and the lock come on top.
    assert len(os.listdir("/proc/self/fd")) <= before + 4 + 4
    store.close()
    assert len(os.listdir("/proc/self/fd")) == before


# ---------------------------------------------------------------- pieces that come late or twice


def test_a_duplicate_is_left_as_it_is(store: ContentStore) -> None:
    descriptor = describe()
    data = some_bytes(4 * PIECE_BYTES)
    store.open_task(descriptor)
    put(store, descriptor, data, 1)
    put(store, descriptor, data, 1)
    assert store.usage().used_bytes == PIECE_BYTES


def test_a_piece_held_with_another_digest_is_refused(store: ContentStore) -> None:
    descriptor = describe()
    data = some_bytes(4 * PIECE_BYTES)
    store.open_task(descriptor)
    put(store, descriptor, data, 1)
    with refused(Reason.CANCELLED):
        put(store, descriptor, some_bytes(4 * PIECE_BYTES, seed=2), 1)
    check_truth(store, RealFiles(), store.open_task(descriptor), data)
    store.drop_pieces(descriptor.task_id, 0b10)
    other = some_bytes(4 * PIECE_BYTES, seed=2)
    put(store, descriptor, other, 1)
    check_truth(store, RealFiles(), store.open_task(descriptor), other)


def test_a_piece_of_a_void_epoch_is_refused(store: ContentStore) -> None:
    data = some_bytes(4 * PIECE_BYTES)
    store.open_task(describe(epoch=2))
    with refused(Reason.CANCELLED):
        put(store, describe(epoch=1), data, 0)


def test_a_piece_that_does_not_fit_is_refused(store: ContentStore) -> None:
    descriptor = describe()
    store.open_task(descriptor)
    for piece, length in ((4, PIECE_BYTES), (0, 5), (3, PIECE_BYTES + 1)):
        data = some_bytes(length)
        with refused(Reason.CANCELLED):
            store.write_piece(
                descriptor.task_id, piece, 1, memoryview(data), record_of(descriptor, data)
            )


# ---------------------------------------------------------------- descriptors change


def test_a_newer_epoch_drops_unsealed_pieces(store: ContentStore) -> None:
    data = some_bytes(4 * PIECE_BYTES)
    store.open_task(describe())
    put(store, describe(), data, 0, 1)
    stored = store.open_task(describe(epoch=2))
    assert (stored.held, stored.records, stored.descriptor.epoch) == (0, {}, 2)
    put(store, describe(epoch=2), data, 1)
    late = store.open_task(describe(epoch=1))
    assert (late.held, late.descriptor.epoch) == (0b10, 2), "an older word changes nothing"


def test_an_older_epoch_counts_where_nothing_is_held(store: ContentStore) -> None:
    store.open_task(describe(epoch=2))
    again = store.open_task(describe(epoch=1))
    assert (again.held, again.descriptor.epoch) == (0, 1), "the swarm began anew"
    put(store, describe(epoch=1), some_bytes(4 * PIECE_BYTES), 0)


def test_a_newer_epoch_keeps_sealed_content(store: ContentStore) -> None:
    data = some_bytes(4 * PIECE_BYTES)
    put_whole(store, describe(), data)
    stored = store.open_task(describe(epoch=5))
    assert (stored.sealed, stored.held, stored.descriptor.epoch) == (True, 0b1111, 5)


def test_unknown_size_grows_and_is_sealed(store: ContentStore, root: Path) -> None:
    data = some_bytes(2 * PIECE_BYTES + 10)
    open_ended = describe(size_bytes=None)
    store.open_task(open_ended)
    for piece in range(3):
        own = part(open_ended, data, piece)
        store.write_piece(open_ended.task_id, piece, 1, memoryview(own), record_of(open_ended, own))
    assert store.open_task(open_ended).held == 0b011, "nobody can tell how long piece 2 is"
    stored = store.open_task(describe(size_bytes=len(data)))
    assert stored.held == 0b111
    store.seal(open_ended.task_id, digest_of(data))
    assert file_of(root, "a").read_bytes() == data


def test_a_size_found_drops_pieces_that_do_not_fit(store: ContentStore, root: Path) -> None:
    open_ended = describe(size_bytes=None)
    data = some_bytes(4 * PIECE_BYTES)
    store.open_task(open_ended)
    for piece in range(4):
        own = part(open_ended, data, piece)
        store.write_piece(open_ended.task_id, piece, 1, memoryview(own), record_of(open_ended, own))
    stored = store.open_task(describe(size_bytes=2 * PIECE_BYTES + 1))
    assert stored.held == 0b011, "piece 2 is too long, piece 3 lies behind the end"
    assert file_of(root, "a").stat().st_size == 2 * PIECE_BYTES + 1
    assert store.usage().used_bytes == 2 * PIECE_BYTES
    assert store.open_task(open_ended).descriptor.geometry.size_bytes == 2 * PIECE_BYTES + 1


def test_another_cut_drops_unsealed_pieces(store: ContentStore) -> None:
    store.open_task(describe())
    put(store, describe(), some_bytes(4 * PIECE_BYTES), 0)
    assert store.open_task(describe(piece_length_bytes=2 * PIECE_BYTES)).held == 0


def test_sealed_content_is_cut_anew(store: ContentStore) -> None:
    data = some_bytes(4 * PIECE_BYTES + 1)
    put_whole(store, describe(size_bytes=len(data)), data)
    store.flush()
    other = describe(size_bytes=len(data), piece_length_bytes=2 * PIECE_BYTES)
    stored = store.open_task(other)
    assert (stored.sealed, stored.held, stored.descriptor) == (True, 0b111, other)
    check_truth(store, RealFiles(), stored, data)
    store.flush()
    assert store.open_task(other) == stored


def test_sealed_content_does_not_change_its_size(store: ContentStore) -> None:
    put_whole(store, describe(), some_bytes(4 * PIECE_BYTES))
    with refused(Reason.DIGEST_MISMATCH):
        store.open_task(describe(size_bytes=5))
    assert store.open_task(describe(size_bytes=None)).sealed


# ---------------------------------------------------------------- restart


def test_everything_survives_a_clean_restart(root: Path) -> None:
    store = open_store(root)
    generation, _ = store.load()
    whole, half = some_bytes(4 * PIECE_BYTES), some_bytes(3 * PIECE_BYTES + 9, seed=2)
    put_whole(store, describe("whole"), whole)
    partial = describe("half", len(half), algorithm="xxh3-128")
    store.open_task(partial)
    put(store, partial, half, 3, 0)
    store.close()
    store.close()

    store = open_store(root)
    again, loaded = store.load()
    assert again > generation
    assert store.recovered.checked_pieces == 0, "all of it was known to be durable"
    tasks = by_id(loaded)
    assert tasks[task_id_of("whole")].sealed
    assert tasks[task_id_of("half")].held == 0b1001
    check_truth(store, RealFiles(), tasks[task_id_of("whole")], whole)
    check_truth(store, RealFiles(), tasks[task_id_of("half")], half)
    assert store.open_task(describe("whole")) == tasks[task_id_of("whole")]
    assert store.usage().used_bytes == 4 * PIECE_BYTES + PIECE_BYTES + 9
    put(store, partial, half, 1, 2)
    store.seal(partial.task_id, digest_of(half))
    store.validate()
    store.close()


def test_generation_is_larger_than_that_of_a_wiped_store(root: Path) -> None:
    store = open_store(root)
    generation, _ = store.load()
    store.close()
    assert generation >= 1_000, "the wall clock's seconds at least"


def test_unknown_size_after_a_restart_keeps_full_pieces(root: Path) -> None:
    store = open_store(root)
    store.load()
    open_ended = describe(size_bytes=None)
    data = some_bytes(PIECE_BYTES + 10)
    store.open_task(open_ended)
    for piece in range(2):
        own = part(open_ended, data, piece)
        store.write_piece(open_ended.task_id, piece, 1, memoryview(own), record_of(open_ended, own))
    store.close()
    store = open_store(root)
    _, (stored,) = store.load()
    assert stored.held == 0b01
    store.validate()
    put_back = store.open_task(describe(size_bytes=len(data)))
    assert put_back.held == 0b01
    store.close()


def test_orphans_and_lost_files_are_cleaned_up(root: Path) -> None:
    store = open_store(root)
    store.load()
    put_whole(store, describe("kept"), some_bytes(4 * PIECE_BYTES))
    put_whole(store, describe("lost"), some_bytes(4 * PIECE_BYTES))
    store.close()
    file_of(root, "lost").unlink()
    orphan = root / "content" / "ab" / ("ab" + "0" * 62)
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"whose?")
    store = open_store(root)
    _, (stored,) = store.load()
    assert stored.descriptor.task_id == task_id_of("kept")
    assert not orphan.exists()
    assert (store.recovered.orphan_files, store.recovered.lost_tasks) == (1, 1)
    assert store.open_task(describe("lost")).held == 0
    store.close()


def test_the_order_of_use_survives(root: Path) -> None:
    store = open_store(root, capacity_bytes=3 * 4 * PIECE_BYTES)
    store.load()
    for name in "abc":
        put_whole(store, describe(name), some_bytes(4 * PIECE_BYTES))
    store.touch(task_id_of("a"))
    store.close()
    store = open_store(root, capacity_bytes=3 * 4 * PIECE_BYTES)
    store.load()
    assert store.candidates_to_evict() == [task_id_of("b")]
    store.close()


# ---------------------------------------------------------------- the root directory


def test_two_daemons_never_share_a_root(store: ContentStore, root: Path) -> None:
    with pytest.raises(UsageError, match=rf"in use by another daemon \(process {os.getpid()}\)"):
        open_store(root).load()


def test_a_foreign_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("...")
    mode = tmp_path.stat().st_mode
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        open_store(tmp_path).load()
    assert (tmp_path / "thesis.tex").exists()
    assert tmp_path.stat().st_mode == mode


def test_another_layout_is_refused(root: Path) -> None:
    store = open_store(root)
    store.load()
    store.close()
    (root / "VERSION").write_text("2\n")
    with pytest.raises(UsageError, match="layout version '2'"):
        open_store(root).load()
    (root / "VERSION").write_text("1\n")
    store = open_store(root)
    store.load()
    store.close()


def test_a_damaged_database_is_a_clear_error(root: Path) -> None:
    store = open_store(root)
    store.load()
    store.close()
    (root / "metadata.db").write_bytes(b"this is not a database" * 400)
    with pytest.raises(StoreError, match="begin with an empty store"):
        open_store(root).load()


def test_a_closed_store_does_nothing(root: Path) -> None:
    store = open_store(root)
    store.load()
    store.open_task(describe())
    store.close()
    for call in (
        lambda: store.open_task(describe("b")),
        lambda: put(store, describe(), some_bytes(4 * PIECE_BYTES), 0),
        lambda: store.lend(task_id_of("a")),
        lambda: store.remove(task_id_of("a")),
        lambda: store.seal(task_id_of("a"), ""),
        store.flush,
    ):
        with refused(Reason.SHUTTING_DOWN):
            call()
    assert file_of(root, "a").exists()
