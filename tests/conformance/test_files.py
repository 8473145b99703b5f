"""One suite for every implementation of `Files`: the kernel's and the fake one."""

import os
from pathlib import Path

import pytest

from shoal.runtime.files import Files, RealFiles
from tests.fakes.files import FakeFiles


@pytest.fixture(params=["real", "fake", "fake-plain"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    """Real files, and fakes with and without what some file systems lack."""
    if request.param == "real":
        return RealFiles()
    able = request.param == "fake"
    return FakeFiles([tmp_path], preallocates=able, reflinks=able, unnamed=able)


def read(files: Files, path: Path, length: int = 1000) -> bytes:
    fd = files.open(path)
    buffer = bytearray(length)
    try:
        return bytes(buffer[: files.pread_into(fd, memoryview(buffer), 0)])
    finally:
        files.close(fd)


def make(files: Files, path: Path, data: bytes) -> None:
    fd = files.open(path, write=True, create=True)
    try:
        files.pwrite(fd, data, 0)
    finally:
        files.close(fd)


def test_written_bytes_are_read_back(files: Files, tmp_path: Path) -> None:
    path = tmp_path / "a"
    fd = files.open(path, write=True, create=True)
    files.pwrite(fd, b"world", 5)
    files.pwrite(fd, memoryview(b"hello"), 0)
    buffer = memoryview(bytearray(4))
    assert files.pread_into(fd, buffer, 3) == 4
    assert bytes(buffer) == b"lowo"
    assert files.pread_into(fd, buffer, 8) == 2, "short only at the end"
    assert files.pread_into(fd, buffer, 100) == 0
    files.fdatasync(fd)
    files.close(fd)
    files.fsync_dir(tmp_path)


def test_bytes_never_written_are_zero(files: Files, tmp_path: Path) -> None:
    fd = files.open(tmp_path / "a", write=True, create=True)
    files.pwrite(fd, b"x", 600)
    files.close(fd)
    assert read(files, tmp_path / "a") == bytes(600) + b"x"


def test_create_never_takes_an_existing_file(files: Files, tmp_path: Path) -> None:
    make(files, tmp_path / "a", b"old")
    with pytest.raises(FileExistsError):
        files.open(tmp_path / "a", write=True, create=True)
    assert read(files, tmp_path / "a") == b"old"


def test_open_of_nothing(files: Files, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files.open(tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        files.open(tmp_path / "no" / "a", write=True, create=True)
    assert files.status(tmp_path / "a") is None


def test_read_only_descriptor_does_not_write(files: Files, tmp_path: Path) -> None:
    make(files, tmp_path / "a", b"old")
    fd = files.open(tmp_path / "a")
    with pytest.raises(OSError, match=r"."):
        files.pwrite(fd, b"new", 0)
    files.fdatasync(fd)
    files.close(fd)


def test_fallocate_and_truncate(files: Files, tmp_path: Path) -> None:
    fd = files.open(tmp_path / "a", write=True, create=True)
    able = files.fallocate(fd, 100_000)
    status = files.status_fd(fd)
    if able:
        assert status.size_bytes == 100_000
        assert status.allocated_bytes >= 100_000
    else:
        assert status.size_bytes == 0
    files.truncate(fd, 70_000)
    assert files.status_fd(fd).size_bytes == 70_000
    files.pwrite(fd, b"x", 69_999)
    files.truncate(fd, 80_000)
    assert files.status_fd(fd).size_bytes == 80_000
    files.close(fd)
    assert read(files, tmp_path / "a", 70_001)[69_999:] == b"x\0"
    assert files.fallocate(files.open(tmp_path / "a", write=True), 0) in (True, False)


def test_no_room_is_taken_in_memory_before_something_is_written() -> None:
    kinds = dict(line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines())
    place = Path("/dev/shm")
    if kinds.get(str(place)) != "tmpfs":
        pytest.skip(f"{place} is no tmpfs")
    files = RealFiles()
    fd = files.open_unnamed(place, 0o600)
    if fd is None:
        pytest.skip(f"no files without a name in {place}")
    assert not files.fallocate(fd, 1_000_000_000)
    assert files.status_fd(fd).allocated_bytes == 0
    files.close(fd)


def test_status_tells_modes_links_and_changes(files: Files, tmp_path: Path) -> None:
    path = tmp_path / "a"
    make(files, path, b"12345")
    before = files.status(path)
    assert before is not None
    assert (before.size_bytes, before.mode, before.links, before.is_directory) == (
        5,
        0o600,
        1,
        False,
    )
    files.chmod(path, 0o444)
    files.link(path, tmp_path / "b")
    after = files.status(path)
    assert after is not None
    assert (after.mode, after.links, after.mtime_ns) == (0o444, 2, before.mtime_ns)
    directory = files.status(tmp_path)
    assert directory is not None
    assert directory.is_directory
    assert directory.device == after.device
    fd = files.open(path)
    files.chmod_fd(fd, 0o640)
    assert files.status_fd(fd).mode == 0o640
    files.close(fd)


def test_link_never_replaces(files: Files, tmp_path: Path) -> None:
    make(files, tmp_path / "a", b"a")
    make(files, tmp_path / "b", b"b")
    with pytest.raises(FileExistsError):
        files.link(tmp_path / "a", tmp_path / "b")
    with pytest.raises(FileExistsError):
        files.rename_new(tmp_path / "a", tmp_path / "b")
    assert read(files, tmp_path / "b") == b"b"
    files.rename_new(tmp_path / "a", tmp_path / "c")
    assert files.list_dir(tmp_path) == ["b", "c"]


def test_rename_replaces(files: Files, tmp_path: Path) -> None:
    make(files, tmp_path / "a", b"a")
    make(files, tmp_path / "b", b"b")
    files.rename(tmp_path / "a", tmp_path / "b")
    assert files.list_dir(tmp_path) == ["b"]
    assert read(files, tmp_path / "b") == b"a"


def test_rename_of_two_names_of_one_file_keeps_both(files: Files, tmp_path: Path) -> None:
    make(files, tmp_path / "a", b"a")
    files.link(tmp_path / "a", tmp_path / "b")
    files.rename(tmp_path / "a", tmp_path / "b")
    assert files.list_dir(tmp_path) == ["a", "b"]


def test_unlinked_file_stays_readable_while_open(files: Files, tmp_path: Path) -> None:
    make(files, tmp_path / "a", b"a")
    fd = files.open(tmp_path / "a")
    files.unlink(tmp_path / "a")
    buffer = bytearray(1)
    assert files.pread_into(fd, memoryview(buffer), 0) == 1
    files.close(fd)
    with pytest.raises(FileNotFoundError):
        files.unlink(tmp_path / "a")


def test_unnamed_file_appears_when_linked(files: Files, tmp_path: Path) -> None:
    fd = files.open_unnamed(tmp_path, 0o600)
    if fd is None:
        pytest.skip("no files without a name here")
    files.pwrite(fd, b"whole", 0)
    assert files.list_dir(tmp_path) == []
    files.link_fd(fd, tmp_path / "a")
    assert read(files, tmp_path / "a") == b"whole"
    with pytest.raises(FileExistsError):
        files.link_fd(fd, tmp_path / "a")
    files.close(fd)
    with pytest.raises(FileNotFoundError):
        files.open_unnamed(tmp_path / "none", 0o600)


def test_copy_and_reflink(files: Files, tmp_path: Path) -> None:
    data = os.urandom(300_000)
    make(files, tmp_path / "a", data)
    source = files.open(tmp_path / "a")
    copy = files.open(tmp_path / "copy", write=True, create=True)
    files.copy(source, copy, len(data))
    shared = files.open(tmp_path / "shared", write=True, create=True)
    able = files.reflink(source, shared)
    with pytest.raises(OSError, match="ended early"):
        files.copy(source, copy, len(data) + 1)
    for fd in (source, copy, shared):
        files.close(fd)
    assert read(files, tmp_path / "copy", 400_000) == data
    assert read(files, tmp_path / "shared", 400_000) == (data if able else b"")


def test_directories(files: Files, tmp_path: Path) -> None:
    files.make_dir(tmp_path / "d", 0o700)
    files.make_dir(tmp_path / "d", 0o700)
    make(files, tmp_path / "d" / "x", b"")
    assert files.list_dir(tmp_path) == ["d"]
    assert files.list_dir(tmp_path / "d") == ["x"]
    assert files.free_bytes(tmp_path / "d") > 0
    with pytest.raises(FileNotFoundError):
        files.list_dir(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        files.make_dir(tmp_path / "none" / "e", 0o700)
