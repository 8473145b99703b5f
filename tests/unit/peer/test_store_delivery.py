"""Delivery: the target appears whole or not at all, and nothing of anybody else's is lost."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from peer.shell.store.content import ContentStore
from peer.shell.store.errors import StoreError
from shoal.wire.errors import Reason, UsageError
from tests.fakes.files import FakeFiles
from tests.fakes.store import (
    PIECE_BYTES,
    check_truth,
    describe,
    open_store,
    put,
    put_whole,
    some_bytes,
    task_id_of,
    tolerating,
)

DATA = some_bytes(4 * PIECE_BYTES)
TASK = task_id_of("a")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ContentStore]:
    """A store on the real file system with one sealed content."""
    store = open_store(tmp_path / "store")
    store.load()
    put_whole(store, describe(), DATA)
    yield store
    store.validate()
    store.close()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A directory to deliver to."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


class FakeLab:
    """A store on a fake disk with one sealed content."""

    def __init__(
        self,
        tmp_path: Path,
        *,
        reflinks: bool = False,
        unnamed: bool = True,
        far: bool = False,
        capacity_bytes: int = 1 << 30,
    ) -> None:
        root = tmp_path / "fake"
        self.out = tmp_path / "away"
        self.files = FakeFiles(
            [root, root / "content", self.out],
            reflinks=reflinks,
            unnamed=unnamed,
            capacity_bytes=capacity_bytes,
        )
        if far:
            self.files.other_devices.add(self.out)
        self.store = open_store(root, self.files)
        self.store.load()
        put_whole(self.store, describe(), DATA)

    def delivered(self) -> list[str]:
        """Names in the target directory."""
        return self.files.list_dir(self.out)


# ---------------------------------------------------------------- the three ways


def test_real_delivery_is_the_content(store: ContentStore, out: Path) -> None:
    way = store.deliver(TASK, out / "file", overwrite=False)
    assert way in ("reflink", "hard-link")
    assert (out / "file").read_bytes() == DATA
    assert os.listdir(out) == ["file"]


def test_real_copy_is_a_file_of_its_own(store: ContentStore, out: Path) -> None:
    way = store.deliver(TASK, out / "file", overwrite=False, hard_link=False, mode=0o640)
    assert way in ("reflink", "copy")
    status = (out / "file").stat()
    assert (status.st_nlink, status.st_mode & 0o777) == (1, 0o640)
    (out / "file").write_bytes(b"mine now")
    with store.lend(TASK) as lent:
        assert os.pread(lent.fd, len(DATA), 0) == DATA


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no second file system here")
def test_real_copy_to_another_file_system(store: ContentStore) -> None:
    target = Path("/dev/shm") / f"shoal-test-{os.getpid()}"
    try:
        assert store.deliver(TASK, target, overwrite=False) == "copy"
        assert target.read_bytes() == DATA
    finally:
        target.unlink(missing_ok=True)


def test_reflink_comes_first(tmp_path: Path) -> None:
    lab = FakeLab(tmp_path, reflinks=True)
    assert lab.store.deliver(TASK, lab.out / "file", overwrite=False) == "reflink"
    assert lab.files.content(lab.out / "file") == DATA
    status = lab.files.status(lab.out / "file")
    assert status is not None
    assert (status.links, status.mode) == (1, 0o644)


@pytest.mark.parametrize("unnamed", [True, False])
@pytest.mark.parametrize("overwrite", [True, False])
def test_another_file_system_gets_a_copy(tmp_path: Path, unnamed: bool, overwrite: bool) -> None:
    lab = FakeLab(tmp_path, far=True, unnamed=unnamed, reflinks=True)
    assert lab.store.deliver(TASK, lab.out / "file", overwrite=overwrite) == "copy"
    assert lab.files.content(lab.out / "file") == DATA
    assert lab.delivered() == ["file"]


@pytest.mark.parametrize("code", [errno.EPERM, errno.EMLINK, errno.EXDEV])
def test_a_copy_when_links_are_refused(tmp_path: Path, code: int) -> None:
    lab = FakeLab(tmp_path)
    lab.files.fail("link", code)
    assert lab.store.deliver(TASK, lab.out / "file", overwrite=False) == "copy"
    assert lab.files.content(lab.out / "file") == DATA


# ---------------------------------------------------------------- targets that exist


@pytest.mark.parametrize("hard_link", [True, False])
def test_an_existing_target_is_kept(store: ContentStore, out: Path, hard_link: bool) -> None:
    (out / "file").write_text("precious")
    with pytest.raises(UsageError, match="--overwrite"):
        store.deliver(TASK, out / "file", overwrite=False, hard_link=hard_link)
    assert (out / "file").read_text() == "precious"
    store.deliver(TASK, out / "file", overwrite=True, hard_link=hard_link)
    assert (out / "file").read_bytes() == DATA
    assert os.listdir(out) == ["file"]


def test_delivered_twice_to_the_same_name(store: ContentStore, out: Path) -> None:
    for _ in range(2):
        store.deliver(TASK, out / "file", overwrite=True)
    assert os.listdir(out) == ["file"], "two names of one file leave no third behind"


@pytest.mark.parametrize("way", ["link", "unnamed", "named"])
def test_a_target_that_appears_meanwhile_is_kept(tmp_path: Path, way: str) -> None:
    lab = FakeLab(tmp_path, far=way != "link", unnamed=way == "unnamed")
    target = lab.out / "file"
    before = lab.files.status_fd

    def intrude(fd: int) -> object:
        if target not in lab.files.names():
            lab.files.close(lab.files.open(target, write=True, create=True))
        return before(fd)

    lab.files.status_fd = intrude  # type: ignore[method-assign, assignment]
    with pytest.raises(UsageError, match="exists already"):
        lab.store.deliver(TASK, target, overwrite=False)
    assert lab.files.content(target) == b""
    assert lab.delivered() == ["file"]


def test_targets_that_can_not_be(store: ContentStore, out: Path) -> None:
    (out / "dir").mkdir()
    (out / "plain").write_text("x")
    with pytest.raises(UsageError, match="is a directory"):
        store.deliver(TASK, out / "dir", overwrite=True)
    with pytest.raises(UsageError, match="create it first"):
        store.deliver(TASK, out / "none" / "file", overwrite=False)
    with pytest.raises(UsageError, match="is not a directory"):
        store.deliver(TASK, out / "plain" / "file", overwrite=False)
    with pytest.raises(UsageError, match="too long"):
        store.deliver(TASK, out / ("x" * 300), overwrite=False)
    assert sorted(os.listdir(out)) == ["dir", "plain"]


def test_a_directory_behind_a_symbolic_link(store: ContentStore, out: Path) -> None:
    (out / "real").mkdir()
    (out / "way").symlink_to("real")
    store.deliver(TASK, out / "way" / "file", overwrite=False)
    assert (out / "real" / "file").read_bytes() == DATA


def test_a_dangling_symbolic_link_is_something_that_exists(store: ContentStore, out: Path) -> None:
    (out / "file").symlink_to(out / "nowhere")
    with pytest.raises(UsageError, match="exists already"):
        store.deliver(TASK, out / "file", overwrite=False)
    store.deliver(TASK, out / "file", overwrite=True)
    assert not (out / "file").is_symlink()
    assert not (out / "nowhere").exists()


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize("unnamed", [True, False])
@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("operation", ["copy", "chmod_fd", "link_fd", "rename", "rename_new"])
def test_a_failed_copy_leaves_nothing(
    tmp_path: Path, operation: str, overwrite: bool, unnamed: bool
) -> None:
    lab = FakeLab(tmp_path, far=True, unnamed=unnamed)
    lab.files.fail(operation, errno.EIO)
    with tolerating(Reason.DISK_FAILED) as caught:
        lab.store.deliver(TASK, lab.out / "file", overwrite=overwrite)
    # Not every way needs every operation.
    assert lab.delivered() == ([] if caught else ["file"])
    lab.files.heal()
    lab.store.deliver(TASK, lab.out / "file", overwrite=True)
    assert lab.delivered() == ["file"]
    lab.store.close()
    assert lab.files.open_files == {}


def test_a_failed_overwrite_keeps_what_was_there(tmp_path: Path) -> None:
    lab = FakeLab(tmp_path, far=True)
    fd = lab.files.open(lab.out / "file", write=True, create=True)
    lab.files.pwrite(fd, b"precious", 0)
    lab.files.fail("rename", errno.EIO)
    with pytest.raises(StoreError):
        lab.store.deliver(TASK, lab.out / "file", overwrite=True)
    assert lab.files.content(lab.out / "file") == b"precious"
    assert lab.delivered() == ["file"]


@pytest.mark.parametrize("unnamed", [True, False])
def test_a_full_target_disk(tmp_path: Path, unnamed: bool) -> None:
    lab = FakeLab(tmp_path, far=True, unnamed=unnamed, capacity_bytes=6 * PIECE_BYTES)
    with pytest.raises(StoreError, match=r"the disk is full: 4\.0 KiB are needed") as caught:
        lab.store.deliver(TASK, lab.out / "file", overwrite=False)
    assert caught.value.reason is Reason.DISK_FULL
    assert lab.delivered() == []
    assert lab.store.open_task(describe()).sealed, "the store has it still"


def test_no_permission(tmp_path: Path) -> None:
    lab = FakeLab(tmp_path, far=True)
    lab.files.fail("link_fd", errno.EACCES)
    with pytest.raises(UsageError, match="no permission"):
        lab.store.deliver(TASK, lab.out / "file", overwrite=False)


def test_read_only_target(tmp_path: Path) -> None:
    lab = FakeLab(tmp_path, far=True)
    lab.files.fail("link_fd", errno.EROFS)
    with pytest.raises(StoreError) as caught:
        lab.store.deliver(TASK, lab.out / "file", overwrite=False)
    assert caught.value.reason is Reason.DISK_READ_ONLY


# ---------------------------------------------------------------- somebody writes to our file


def test_content_changed_through_a_hard_link_is_not_served(
    store: ContentStore, out: Path, tmp_path: Path
) -> None:
    if store.deliver(TASK, out / "file", overwrite=False) != "hard-link":
        pytest.skip("this file system has reflinks: the store's file is nobody else's")
    (out / "file").chmod(0o644)
    with (out / "file").open("r+b") as stream:
        stream.seek(2 * PIECE_BYTES)
        stream.write(b"edited")
    with pytest.raises(StoreError, match="changed by somebody else") as caught:
        store.lend(TASK)
    assert caught.value.reason is Reason.DISK_FAILED
    with pytest.raises(StoreError):
        store.deliver(TASK, out / "second", overwrite=False)
    stored = store.open_task(describe())
    assert (stored.sealed, stored.held) == (False, 0b1011), "the right pieces are kept"
    put(store, describe(), DATA, 2)
    store.seal(TASK, "sha256:00")
    edited = (out / "file").read_bytes()
    assert edited[2 * PIECE_BYTES :].startswith(b"edited"), "what is delivered is the user's"
    assert store.deliver(TASK, out / "second", overwrite=False)
    assert (out / "second").read_bytes() == DATA


@pytest.mark.parametrize("shrink", [True, False])
def test_change_while_no_daemon_runs(tmp_path: Path, shrink: bool) -> None:
    root = tmp_path / "store"
    store = open_store(root)
    store.load()
    put_whole(store, describe(), DATA)
    store.close()
    path = root / "content" / TASK[:2] / TASK
    path.chmod(0o600)
    with path.open("r+b") as stream:
        if shrink:
            stream.truncate(PIECE_BYTES + 1)
        else:
            stream.write(b"edited")
    store = open_store(root)
    _, (stored,) = store.load()
    assert not stored.sealed
    assert stored.held == (0b0001 if shrink else 0b1110)
    assert store.recovered.checked_pieces == 4
    put(store, stored.descriptor, DATA)
    store.seal(TASK, "sha256:00")
    assert path.read_bytes() == DATA
    store.close()


def test_touched_but_unchanged_content_keeps_all_pieces(tmp_path: Path) -> None:
    root = tmp_path / "store"
    store = open_store(root)
    store.load()
    put_whole(store, describe(), DATA)
    store.close()
    os.utime(root / "content" / TASK[:2] / TASK, ns=(1, 1))
    store = open_store(root)
    _, (stored,) = store.load()
    assert (stored.sealed, stored.held) == (False, 0b1111)
    store.close()


def test_a_full_disk_while_taking_a_changed_content_apart(tmp_path: Path) -> None:
    lab = FakeLab(tmp_path, capacity_bytes=6 * PIECE_BYTES)
    target = lab.out / "file"
    assert lab.store.deliver(TASK, target, overwrite=False) == "hard-link"
    lab.files.scribble(target, 0, b"edited")
    with pytest.raises(StoreError, match="changed"):
        lab.store.lend(TASK)
    with pytest.raises(StoreError) as caught:
        lab.store.open_task(describe())
    assert caught.value.reason is Reason.DISK_FULL
    lab.files.capacity_bytes = 1 << 30
    stored = lab.store.open_task(describe())
    assert stored.held == 0, "no room to keep them"
    assert lab.files.content(target) == b"edited" + DATA[6:], "what is theirs stays theirs"
    put(lab.store, describe(), DATA)
    check_truth(lab.store, lab.files, lab.store.open_task(describe()), DATA)
    lab.store.validate()


def test_a_lost_file_is_made_anew(store: ContentStore, tmp_path: Path) -> None:
    (tmp_path / "store" / "content" / TASK[:2] / TASK).unlink()
    store.drop_pieces(TASK, 1)
    assert store.open_task(describe()).held == 0
    put(store, describe(), DATA)
    store.seal(TASK, "sha256:00")
    with store.lend(TASK) as lent:
        assert os.pread(lent.fd, len(DATA), 0) == DATA
