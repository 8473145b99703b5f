"""Disks that are full, read-only or broken: a clear error, and nothing else is lost."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from peer.shell.store.content import ContentStore
from peer.shell.store.errors import StoreError
from shoal.runtime.files import RealFiles
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

DATA = some_bytes(4 * PIECE_BYTES)


@pytest.fixture
def files(tmp_path: Path) -> FakeFiles:
    """A fake disk."""
    root = tmp_path / "store"
    return FakeFiles([root, root / "content"])


@pytest.fixture
def store(tmp_path: Path, files: FakeFiles) -> Iterator[ContentStore]:
    """A loaded store on the fake disk."""
    store = open_store(tmp_path / "store", files)
    store.load()
    yield store
    files.heal()
    store.validate()
    store.close()
    assert files.open_files == {}


def reopened(store: ContentStore, tmp_path: Path, files: FakeFiles) -> ContentStore:
    store.close()
    again = open_store(tmp_path / "store", files)
    again.load()
    return again


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [
        (errno.ENOSPC, Reason.DISK_FULL, "shoal tasks rm"),
        (errno.EDQUOT, Reason.DISK_FULL, "shoal tasks rm"),
        (errno.EROFS, Reason.DISK_READ_ONLY, "Mount it writable"),
        (errno.EIO, Reason.DISK_FAILED, "Input/output error"),
    ],
)
def test_a_write_that_fails(
    store: ContentStore, files: FakeFiles, code: int, reason: Reason, words: str
) -> None:
    store.open_task(describe())
    put(store, describe(), DATA, 0)
    files.fail("pwrite", code)
    with pytest.raises(StoreError, match=words) as caught:
        put(store, describe(), DATA, 1)
    assert caught.value.reason is reason
    files.heal()
    stored = store.open_task(describe())
    assert stored.held == 0b1
    put(store, describe(), DATA, 1, 2, 3)
    check_truth(store, files, store.open_task(describe()), DATA)


@pytest.mark.parametrize("operation", ["make_dir", "open", "fallocate", "truncate"])
def test_a_creation_that_fails_leaves_nothing(
    store: ContentStore, files: FakeFiles, operation: str
) -> None:
    files.fail(operation, errno.ENOSPC)
    with pytest.raises(StoreError) as caught:
        store.open_task(describe())
    assert caught.value.reason is Reason.DISK_FULL
    assert files.names() == []
    assert store.usage().reserved_bytes == 0
    files.heal()
    store.open_task(describe())


def test_a_deletion_that_fails_keeps_the_task(store: ContentStore, files: FakeFiles) -> None:
    put_whole(store, describe(), DATA)
    files.fail("unlink", errno.EROFS)
    with pytest.raises(StoreError) as caught:
        store.remove(task_id_of("a"))
    assert caught.value.reason is Reason.DISK_READ_ONLY
    assert store.open_task(describe()).sealed


def test_pieces_that_could_not_be_made_durable_are_hashed_again(
    store: ContentStore, files: FakeFiles, tmp_path: Path
) -> None:
    store.open_task(describe())
    put(store, describe(), DATA, 0, 1)
    files.fail("fdatasync", errno.EIO, times=1)
    with pytest.raises(StoreError) as caught:
        store.sync_some()
    assert caught.value.reason is Reason.DISK_FAILED
    put(store, describe(), DATA, 2)
    assert store.sync_some() is False
    again = reopened(store, tmp_path, files)
    assert again.recovered.checked_pieces == 2, "the kernel has forgotten that it failed; we not"
    assert again.open_task(describe()).held == 0b111
    again.close()


def test_a_sync_that_could_not_begin_is_tried_again(
    store: ContentStore, files: FakeFiles, tmp_path: Path
) -> None:
    store.open_task(describe())
    put(store, describe(), DATA, 0, 1)
    files.fail("open", errno.EMFILE, times=1)
    with pytest.raises(StoreError, match="too many open files"):
        store.sync_some()
    assert store.sync_some() is False
    again = reopened(store, tmp_path, files)
    assert again.recovered.checked_pieces == 0
    again.close()


def test_a_piece_that_can_not_be_read_at_the_start_is_dropped(
    tmp_path: Path, files: FakeFiles
) -> None:
    store = open_store(tmp_path / "store", files)
    store.load()
    store.open_task(describe())
    put(store, describe(), DATA)
    files.fail("fdatasync", errno.EIO)
    with pytest.raises(StoreError):
        store.close()
    files.heal()
    files.fail("pread_into", errno.EIO, after=1, times=1)
    store = open_store(tmp_path / "store", files)
    _, (stored,) = store.load()
    assert stored.held.bit_count() == 3
    assert store.recovered.wrong_pieces == 1
    files.heal()
    check_truth(store, files, stored, DATA)
    store.close()


def test_a_close_that_fails_gives_the_directory_back(tmp_path: Path, files: FakeFiles) -> None:
    store = open_store(tmp_path / "store", files)
    store.load()
    store.open_task(describe())
    put(store, describe(), DATA)
    files.fail("fdatasync", errno.EIO)
    with pytest.raises(StoreError):
        store.close()
    assert files.open_files == {}
    files.heal()
    store = open_store(tmp_path / "store", files)
    store.load()
    store.close()


def test_a_seal_that_fails(store: ContentStore, files: FakeFiles) -> None:
    store.open_task(describe())
    put(store, describe(), DATA)
    files.fail("chmod_fd", errno.EROFS, times=1)
    with pytest.raises(StoreError) as caught:
        store.seal(task_id_of("a"), digest_of(DATA))
    assert caught.value.reason is Reason.DISK_READ_ONLY
    store.seal(task_id_of("a"), digest_of(DATA))


# ---------------------------------------------------------------- a real disk of 1 MiB


def _mount(path: Path, options: str) -> bool:
    if os.geteuid() != 0:
        return False
    command = ["mount", "-t", "tmpfs", "-o", options, "shoal-test", str(path)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    if not _mount(path, "size=1m"):
        pytest.skip("mounting a tmpfs needs root")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.mark.needs_root
def test_a_real_full_disk(small_disk: Path) -> None:
    store = open_store(small_disk / "store")
    store.load()
    with pytest.raises(StoreError, match=r"2\.0 MiB are needed") as caught:
        store.open_task(describe("big", 2 << 20))
    assert caught.value.reason is Reason.DISK_FULL
    put_whole(store, describe(), DATA)
    open_ended = describe("endless", None, piece_length_bytes=64 << 10)
    store.open_task(open_ended)
    data = some_bytes(1 << 20)
    written = 0
    with tolerating(Reason.DISK_FULL):
        for piece in range(16):
            own = part(open_ended, data, piece)
            store.write_piece(
                open_ended.task_id, piece, 1, memoryview(own), record_of(open_ended, own)
            )
            written += 1
    assert 0 < written < 16
    assert store.open_task(open_ended).held == (1 << written) - 1
    store.validate()
    with tolerating(Reason.DISK_FULL):
        # Nor is there room for the database: what it should say is kept until there is.
        store.flush()
    store.remove(open_ended.task_id)
    store.flush()
    store.close()
    store = open_store(small_disk / "store")
    _, (stored,) = store.load()
    check_truth(store, RealFiles(), stored, DATA)
    store.close()


@pytest.mark.needs_root
def test_a_real_read_only_disk(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StoreError, match="read-only") as caught:
        open_store(small_disk / "store").load()
    assert caught.value.reason is Reason.DISK_READ_ONLY


@pytest.mark.needs_root
def test_a_disk_that_becomes_read_only(small_disk: Path) -> None:
    store = open_store(small_disk / "store")
    store.load()
    put_whole(store, describe(), DATA)
    store.sync_some()
    store.close()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StoreError) as caught:
        open_store(small_disk / "store").load()
    assert caught.value.reason is Reason.DISK_READ_ONLY
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    store = open_store(small_disk / "store")
    _, (stored,) = store.load()
    assert stored.sealed
    store.close()
