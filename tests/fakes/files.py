"""`Files` in memory: fails on demand, and knows every state that a loss of power may leave.

Everything that changes the disk is logged. `after_power_loss` replays the log up to any point and
lets what was not synced by then be kept, lost or torn by sectors, as drawn. Names (creations,
renames, links, deletions) are journalled in order, as by every journalling file system: some
prefix survives, at least up to the last `fsync_dir`.
"""

import errno
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

from shoal.runtime.files import Buffer, FileStatus

SECTOR_BYTES: Final = 512


@dataclass(slots=True, eq=False)
class Inode:
    """A file."""

    number: int
    data: bytearray = field(default_factory=bytearray)
    mode: int = 0o600
    mtime_ns: int = 0
    allocated_bytes: int = 0


@dataclass(slots=True)
class Fault:
    """An operation fails with this error, after so many good calls, so many times."""

    code: int
    after: int = 0
    times: int = 1 << 30


class FakeFiles:
    """A disk in memory."""

    def __init__(
        self,
        directories: Iterable[Path],
        *,
        capacity_bytes: int = 1 << 40,
        preallocates: bool = True,
        reflinks: bool = False,
        unnamed: bool = True,
    ) -> None:
        self.capacity_bytes = capacity_bytes
        self.preallocates = preallocates
        self.reflinks = reflinks
        self.unnamed = unnamed
        self.log: list[tuple[Any, ...]] = []
        self.faults: dict[str, Fault] = {}
        self.open_files: dict[int, tuple[Inode, bool]] = {}
        self.other_devices: set[Path] = set()
        """Directories that are on another file system."""
        self._directories = set(directories)
        self._names: dict[Path, Inode] = {}
        self._lock = threading.RLock()
        self._next_fd = 1000
        self._next_inode = 1
        self._clock_ns = 1_000_000_000

    # ------------------------------------------------------------ for tests

    def fail(self, operation: str, code: int, *, after: int = 0, times: int = 1 << 30) -> None:
        """From now on an operation fails."""
        self.faults[operation] = Fault(code, after, times)

    def heal(self) -> None:
        """Nothing fails any more."""
        self.faults.clear()

    def content(self, path: Path) -> bytes:
        """The bytes of a file."""
        return bytes(self._names[path].data)

    def names(self) -> list[Path]:
        """Every file."""
        return sorted(self._names)

    def scribble(self, path: Path, offset_bytes: int, data: bytes) -> None:
        """Somebody else writes to a file. The time of it is journalled before the bytes reach the
        disk: without that nobody could tell after a loss of power."""
        with self._lock:
            inode = self._names[path]
            self._write(inode, data, offset_bytes)
            self.log.append(("mtime", inode.number, inode.mtime_ns))
            self.log.append(("write", inode.number, offset_bytes, data, inode.mtime_ns))

    def mark(self, *entry: Any) -> None:
        """Puts something else into the log, in its place among the operations."""
        with self._lock:
            self.log.append(entry)

    def after_power_loss(self, point: int, dice: Random, *, lose: float = 0.5) -> "FakeFiles":
        """The disk as it may be if the power went away behind the first `point` operations.
        `lose` 0: nothing is lost, as after kill -9."""
        log = self.log[:point]
        kept_names = max(
            (index + 1 for index, entry in enumerate(log) if entry[0] == "fsync_dir"), default=0
        )
        if lose == 0:
            kept_names = len(log)
        elif kept_names < len(log):
            kept_names = dice.randint(kept_names, len(log))
        disk = FakeFiles(self._directories, capacity_bytes=self.capacity_bytes)
        disk.preallocates = self.preallocates
        disk.other_devices = set(self.other_devices)
        disk._clock_ns = self._clock_ns
        disk._next_inode = self._next_inode
        inodes: dict[int, Inode] = {}
        synced = {
            entry[1]: index for index, entry in enumerate(log) if entry[0] == "fdatasync"
        }  # The last one of each file.
        for index, entry in enumerate(log):
            match entry:
                case ("create", number, mode):
                    inodes[number] = Inode(number, mode=mode)
                case ("name", path, number) if index < kept_names:
                    disk._names[path] = inodes[number]
                case ("unname", path) if index < kept_names:
                    disk._names.pop(path, None)
                case ("chmod", number, mode) if index < kept_names:
                    inodes[number].mode = mode
                case ("write", number, offset, data, mtime_ns):
                    safe = index <= synced.get(number, -1) or lose == 0
                    _replay_write(inodes[number], offset, data, mtime_ns, dice, safe, lose)
                case ("mtime", number, mtime_ns):
                    inodes[number].mtime_ns = mtime_ns
                case ("length", number, size, allocated):
                    safe = index <= synced.get(number, -1) or lose == 0
                    if safe or dice.random() >= lose:
                        _set_length(inodes[number], size)
                        inodes[number].allocated_bytes = allocated
                case _:
                    pass  # Syncs and marks, and names that did not last.
        return disk

    # ------------------------------------------------------------ Files

    def open(
        self, path: Path, *, write: bool = False, create: bool = False, mode: int = 0o600
    ) -> int:
        """A descriptor."""
        with self._lock:
            self._fault("open")
            if create:
                self._check_parent(path)
                if path in self._names:
                    raise _error(errno.EEXIST, path)
                inode = self._create(mode)
                self._name(path, inode)
            elif path not in self._names:
                raise _error(errno.ENOENT, path)
            return self._descriptor(self._names[path], write)

    def open_unnamed(self, directory: Path, mode: int) -> int | None:
        """A file without a name."""
        with self._lock:
            if not self.unnamed:
                return None
            if directory not in self._directories:
                raise _error(errno.ENOENT, directory)
            return self._descriptor(self._create(mode), True)

    def close(self, fd: int) -> None:
        """Gives a descriptor back."""
        with self._lock:
            if self.open_files.pop(fd, None) is None:
                raise OSError(errno.EBADF, "not open")

    def pwrite(self, fd: int, data: Buffer, offset_bytes: int) -> None:
        """Writes."""
        with self._lock:
            self._fault("pwrite")
            inode, writable = self.open_files[fd]
            if not writable:
                raise OSError(errno.EBADF, "not open for writing")
            self._write(inode, bytes(data), offset_bytes)
            self.log.append(("write", inode.number, offset_bytes, bytes(data), inode.mtime_ns))

    def pread_into(self, fd: int, view: memoryview, offset_bytes: int) -> int:
        """Reads."""
        with self._lock:
            self._fault("pread_into")
            inode, _ = self.open_files[fd]
            data = inode.data[offset_bytes : offset_bytes + len(view)]
            view[: len(data)] = data
            return len(data)

    def fdatasync(self, fd: int) -> None:
        """Makes data durable."""
        with self._lock:
            self._fault("fdatasync")
            inode, _ = self.open_files[fd]
            self.log.append(("fdatasync", inode.number))

    def fallocate(self, fd: int, size_bytes: int) -> bool:
        """Preallocates."""
        with self._lock:
            self._fault("fallocate")
            if not self.preallocates:
                return False
            inode, _ = self.open_files[fd]
            self._allocate(inode, size_bytes)
            if size_bytes > len(inode.data):
                _set_length(inode, size_bytes)
            self._log_length(inode)
            return True

    def truncate(self, fd: int, size_bytes: int) -> None:
        """Sets the length."""
        with self._lock:
            self._fault("truncate")
            inode, writable = self.open_files[fd]
            if not writable:
                raise OSError(errno.EINVAL, "not open for writing")
            if size_bytes != len(inode.data):
                inode.mtime_ns = self._tick()
            _set_length(inode, size_bytes)
            inode.allocated_bytes = min(inode.allocated_bytes, _round_up(size_bytes))
            self._log_length(inode)

    def status(self, path: Path) -> FileStatus | None:
        """What is known of a path."""
        with self._lock:
            if path in self._directories:
                return FileStatus(
                    size_bytes=0,
                    allocated_bytes=0,
                    mtime_ns=0,
                    mode=0o700,
                    links=2,
                    device=2 if path in self.other_devices else 1,
                    is_directory=True,
                )
            inode = self._names.get(path)
            return None if inode is None else self._status(inode)

    def status_fd(self, fd: int) -> FileStatus:
        """What is known of an open file."""
        with self._lock:
            self._fault("status_fd")
            return self._status(self.open_files[fd][0])

    def chmod(self, path: Path, mode: int) -> None:
        """Sets permission bits."""
        with self._lock:
            self._fault("chmod")
            if path not in self._names:
                raise _error(errno.ENOENT, path)
            self._set_mode(self._names[path], mode)

    def chmod_fd(self, fd: int, mode: int) -> None:
        """Sets permission bits."""
        with self._lock:
            self._fault("chmod_fd")
            self._set_mode(self.open_files[fd][0], mode)

    def rename(self, source: Path, target: Path) -> None:
        """Moves and replaces."""
        with self._lock:
            self._fault("rename")
            inode = self._lookup(source)
            self._check_parent(target)
            if self._names.get(target) is inode:
                return  # As POSIX has it: two names of one file stay two.
            self._name(target, inode)
            self._unname(source)

    def rename_new(self, source: Path, target: Path) -> None:
        """Moves without replacing."""
        with self._lock:
            self._fault("rename_new")
            if target in self._names:
                raise _error(errno.EEXIST, target)
            self._name(target, self._lookup(source))
            self._unname(source)

    def link(self, source: Path, target: Path) -> None:
        """A hard link."""
        with self._lock:
            self._fault("link")
            inode = self._lookup(source)
            self._check_parent(target)
            if target in self._names:
                raise _error(errno.EEXIST, target)
            if target.parent in self.other_devices:
                raise _error(errno.EXDEV, target)
            self._name(target, inode)

    def link_fd(self, fd: int, target: Path) -> None:
        """Names an open file."""
        with self._lock:
            self._fault("link_fd")
            self._check_parent(target)
            if target in self._names:
                raise _error(errno.EEXIST, target)
            self._name(target, self.open_files[fd][0])

    def reflink(self, source_fd: int, target_fd: int) -> bool:
        """Shares blocks."""
        with self._lock:
            self._fault("reflink")
            if not self.reflinks:
                return False
            target, data = self.open_files[target_fd][0], self.open_files[source_fd][0].data
            target.data[:] = data
            self.log.append(("write", target.number, 0, bytes(data), self._tick()))
            return True

    def copy(self, source_fd: int, target_fd: int, size_bytes: int) -> None:
        """Copies."""
        with self._lock:
            self._fault("copy")
            source = self.open_files[source_fd][0]
            if len(source.data) < size_bytes:
                raise OSError(errno.EIO, "the source ended early")
            self.pwrite(target_fd, source.data[:size_bytes], 0)

    def unlink(self, path: Path) -> None:
        """Takes a name away."""
        with self._lock:
            self._fault("unlink")
            self._lookup(path)
            self._unname(path)

    def make_dir(self, path: Path, mode: int) -> None:
        """Makes a directory."""
        with self._lock:
            self._fault("make_dir")
            self._check_parent(path)
            self._directories.add(path)

    def list_dir(self, path: Path) -> list[str]:
        """The names in a directory."""
        with self._lock:
            if path not in self._directories:
                raise _error(errno.ENOENT, path)
            entries = [*self._names, *self._directories]
            return sorted(entry.name for entry in entries if entry.parent == path)

    def fsync_dir(self, path: Path) -> None:
        """Makes names durable."""
        with self._lock:
            self._fault("fsync_dir")
            self.log.append(("fsync_dir", path))

    def free_bytes(self, path: Path) -> int:
        """Free space."""
        with self._lock:
            self._fault("free_bytes")
            return max(0, self.capacity_bytes - self._used_bytes())

    # ------------------------------------------------------------ inside

    def _fault(self, operation: str) -> None:
        fault = self.faults.get(operation)
        if fault is None:
            return
        if fault.after > 0:
            fault.after -= 1
        elif fault.times > 0:
            fault.times -= 1
            raise OSError(fault.code, os.strerror(fault.code))

    def _tick(self) -> int:
        self._clock_ns += 1_000_000
        return self._clock_ns

    def _used_bytes(self) -> int:
        inodes = {id(inode): inode for inode in self._names.values()}
        inodes.update({id(inode): inode for inode, _ in self.open_files.values()})
        return sum(inode.allocated_bytes for inode in inodes.values())

    def _allocate(self, inode: Inode, size_bytes: int) -> None:
        wanted = max(inode.allocated_bytes, _round_up(size_bytes))
        if wanted - inode.allocated_bytes > self.capacity_bytes - self._used_bytes():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        inode.allocated_bytes = wanted

    def _write(self, inode: Inode, data: bytes, offset_bytes: int) -> None:
        end = offset_bytes + len(data)
        if self.preallocates:
            self._allocate(inode, end)
        else:
            grown = min(_round_up(len(data)), _round_up(end) - inode.allocated_bytes)
            self._allocate(inode, inode.allocated_bytes + max(0, grown))
        _put(inode, offset_bytes, data)
        inode.mtime_ns = self._tick()

    def _descriptor(self, inode: Inode, write: bool) -> int:
        self._next_fd += 1
        self.open_files[self._next_fd] = (inode, write)
        return self._next_fd

    def _create(self, mode: int) -> Inode:
        inode = Inode(self._next_inode, mode=mode, mtime_ns=self._tick())
        self._next_inode += 1
        self.log.append(("create", inode.number, mode))
        return inode

    def _lookup(self, path: Path) -> Inode:
        inode = self._names.get(path)
        if inode is None:
            raise _error(errno.ENOENT, path)
        return inode

    def _check_parent(self, path: Path) -> None:
        if path.parent not in self._directories:
            raise _error(errno.ENOENT, path.parent)

    def _name(self, path: Path, inode: Inode) -> None:
        self._names[path] = inode
        self.log.append(("name", path, inode.number))

    def _unname(self, path: Path) -> None:
        del self._names[path]
        self.log.append(("unname", path))

    def _set_mode(self, inode: Inode, mode: int) -> None:
        inode.mode = mode
        self.log.append(("chmod", inode.number, mode))

    def _log_length(self, inode: Inode) -> None:
        self.log.append(("length", inode.number, len(inode.data), inode.allocated_bytes))

    def _status(self, inode: Inode) -> FileStatus:
        paths = [path for path, named in self._names.items() if named is inode]
        device = 2 if any(path.parent in self.other_devices for path in paths) else 1
        return FileStatus(
            size_bytes=len(inode.data),
            allocated_bytes=inode.allocated_bytes,
            mtime_ns=inode.mtime_ns,
            mode=inode.mode,
            links=len(paths),
            device=device,
            is_directory=False,
        )


def _error(code: int, path: Path) -> OSError:
    return OSError(code, os.strerror(code), str(path))


def _round_up(size_bytes: int) -> int:
    return -(-size_bytes // SECTOR_BYTES) * SECTOR_BYTES


def _put(inode: Inode, offset_bytes: int, data: bytes) -> None:
    if len(inode.data) < offset_bytes:
        inode.data.extend(bytes(offset_bytes - len(inode.data)))
    inode.data[offset_bytes : offset_bytes + len(data)] = data


def _set_length(inode: Inode, size_bytes: int) -> None:
    if size_bytes < len(inode.data):
        del inode.data[size_bytes:]
    else:
        inode.data.extend(bytes(size_bytes - len(inode.data)))


def _replay_write(
    inode: Inode, offset: int, data: bytes, mtime_ns: int, dice: Random, safe: bool, lose: float
) -> None:
    # The time of change reaches the disk by the journal, with or without the bytes.
    if safe or dice.random() >= lose:
        inode.mtime_ns = mtime_ns
    if safe:
        _put(inode, offset, data)
        inode.allocated_bytes = max(inode.allocated_bytes, _round_up(offset + len(data)))
        return
    torn = dice.random() < 0.3
    whole = dice.random() >= lose
    for start in range(0, len(data), SECTOR_BYTES):
        if dice.random() >= lose if torn else whole:
            _put(inode, offset + start, data[start : start + SECTOR_BYTES])
