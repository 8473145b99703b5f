"""The few file operations that the content store stands on, behind a Protocol.

`RealFiles` is Linux itself. Tests hand in a fake that loses unsynced writes and fails on demand;
one conformance suite runs on both. Every method raises OSError as the kernel says it; what an
error means is for the caller to decide, and so is everything else.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

Buffer = bytes | bytearray | memoryview

FICLONE: Final = 0x40049409
"""ioctl(2) request of linux/fs.h that makes one file share all blocks of another."""

RENAME_NOREPLACE: Final = 1
AT_FDCWD: Final = -100
COPY_BYTES_MAX: Final = 1 << 30
"""Bytes asked for in one copying system call; the kernel cuts longer ones anyway."""

NO_REFLINK: Final = frozenset(
    {errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV, errno.ENOSYS, errno.EPERM}
)
NO_FALLOCATE: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS})
NO_COPY_RANGE: Final = frozenset(
    {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF}
)
NO_UNNAMED: Final = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL})


@dataclass(frozen=True, slots=True, kw_only=True)
class FileStatus:
    """What the file system knows of a file or directory."""

    size_bytes: int
    allocated_bytes: int
    """Bytes of disk behind it: less than the size where it has holes."""
    mtime_ns: int
    mode: int
    """Permission bits."""
    links: int
    device: int
    is_directory: bool


class Files(Protocol):
    """File operations by path and by descriptor. Safe to use from several threads at once."""

    def open(
        self, path: Path, *, write: bool = False, create: bool = False, mode: int = 0o600
    ) -> int:
        """A descriptor for reading, or for reading and writing. `create`: the file must not exist
        yet (FileExistsError). Symbolic links are not followed."""
        ...

    def open_unnamed(self, directory: Path, mode: int) -> int | None:
        """A new file without a name, gone when closed unless `link_fd` names it. None where the
        file system has no such files."""
        ...

    def close(self, fd: int) -> None:
        """Gives a descriptor back."""
        ...

    def pwrite(self, fd: int, data: Buffer, offset_bytes: int) -> None:
        """Writes all of the data, or raises."""
        ...

    def pread_into(self, fd: int, view: memoryview, offset_bytes: int) -> int:
        """Fills the view; returns fewer bytes than it is long only at the end of the file."""
        ...

    def fdatasync(self, fd: int) -> None:
        """Returns when everything written to the file is durable."""
        ...

    def fallocate(self, fd: int, size_bytes: int) -> bool:
        """Makes the file at least that long with real disk behind it. False: the file system
        can't, and the file is as it was."""
        ...

    def truncate(self, fd: int, size_bytes: int) -> None:
        """Makes the file exactly that long."""
        ...

    def status(self, path: Path) -> FileStatus | None:
        """What is known of a path (not of what a symbolic link points to); None: nothing there."""
        ...

    def status_fd(self, fd: int) -> FileStatus:
        """What is known of an open file."""
        ...

    def chmod(self, path: Path, mode: int) -> None:
        """Sets permission bits."""
        ...

    def chmod_fd(self, fd: int, mode: int) -> None:
        """Sets permission bits of an open file, whatever the umask says."""
        ...

    def rename(self, source: Path, target: Path) -> None:
        """Moves a file, replacing what is there."""
        ...

    def rename_new(self, source: Path, target: Path) -> None:
        """Moves a file, in one step; raises FileExistsError rather than replace anything."""
        ...

    def link(self, source: Path, target: Path) -> None:
        """A hard link; never replaces anything (FileExistsError)."""
        ...

    def link_fd(self, fd: int, target: Path) -> None:
        """Gives an open file without a name its name; never replaces anything."""
        ...

    def reflink(self, source_fd: int, target_fd: int) -> bool:
        """Makes the empty target share the source's blocks. False: not possible here."""
        ...

    def copy(self, source_fd: int, target_fd: int, size_bytes: int) -> None:
        """Copies the first bytes of the source into the target inside the kernel. Raises OSError
        (EIO) if the source ends early."""
        ...

    def unlink(self, path: Path) -> None:
        """Takes a name away; FileNotFoundError if there is none."""
        ...

    def make_dir(self, path: Path, mode: int) -> None:
        """Makes a directory; nothing happens if there is one. Its parent must exist."""
        ...

    def list_dir(self, path: Path) -> list[str]:
        """The names in a directory, sorted."""
        ...

    def fsync_dir(self, path: Path) -> None:
        """Makes the names in a directory durable."""
        ...

    def free_bytes(self, path: Path) -> int:
        """Bytes that this process may still use on the file system of a path."""
        ...


_TMPFS: Final = 0x01021994
"""linux/magic.h"""

_STATFS_LONGS: Final = 64
"""More than `struct statfs` has on any machine."""


class RealFiles:
    """`Files` on Linux."""

    def __init__(self) -> None:
        # The C library's own posix_fallocate() writes zeros where a file system can't preallocate,
        # which takes minutes for a large file; the bare call says so instead. Python has neither
        # it nor renameat2().
        self._libc = ctypes.CDLL(None, use_errno=True)

    def open(
        self, path: Path, *, write: bool = False, create: bool = False, mode: int = 0o600
    ) -> int:
        """A descriptor for reading, or for reading and writing."""
        flags = os.O_RDWR if write else os.O_RDONLY
        if create:
            flags |= os.O_CREAT | os.O_EXCL
        return os.open(path, flags | os.O_NOFOLLOW, mode)

    def open_unnamed(self, directory: Path, mode: int) -> int | None:
        """A new file without a name (O_TMPFILE)."""
        try:
            return os.open(directory, os.O_RDWR | os.O_TMPFILE, mode)
        except OSError as error:
            if error.errno in NO_UNNAMED and directory.is_dir():
                return None
            raise

    def close(self, fd: int) -> None:
        """Gives a descriptor back."""
        os.close(fd)

    def pwrite(self, fd: int, data: Buffer, offset_bytes: int) -> None:
        """Writes all of the data, or raises."""
        written = os.pwrite(fd, data, offset_bytes)
        length = len(data)
        while written < length:
            # A short write comes before a full disk or a file size limit: the next one tells.
            written += os.pwrite(fd, memoryview(data)[written:], offset_bytes + written)

    def pread_into(self, fd: int, view: memoryview, offset_bytes: int) -> int:
        """Fills the view; fewer bytes only at the end of the file."""
        filled = 0
        while filled < len(view):
            count = os.preadv(fd, [view[filled:]], offset_bytes + filled)
            if count == 0:
                break
            filled += count
        return filled

    def fdatasync(self, fd: int) -> None:
        """Returns when everything written to the file is durable."""
        os.fdatasync(fd)

    def fallocate(self, fd: int, size_bytes: int) -> bool:
        """fallocate(2) from 0 to the size. Not in memory (tmpfs), where it takes as long as writing
        all of it, before the first byte is there."""
        if size_bytes == 0:
            return True
        if self._file_system(fd) == _TMPFS:
            return False
        result = self._libc.fallocate(fd, 0, ctypes.c_long(0), ctypes.c_long(size_bytes))
        if result == 0:
            return True
        code = ctypes.get_errno()
        if code in NO_FALLOCATE:
            return False
        raise OSError(code, os.strerror(code))

    def _file_system(self, fd: int) -> int:
        """Which kind of file system a file is on: the first field of fstatfs(2)."""
        answer = (ctypes.c_long * _STATFS_LONGS)()
        if self._libc.fstatfs(fd, answer) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return int(answer[0])

    def truncate(self, fd: int, size_bytes: int) -> None:
        """Makes the file exactly that long."""
        os.ftruncate(fd, size_bytes)

    def status(self, path: Path) -> FileStatus | None:
        """What is known of a path; None: nothing there."""
        try:
            return _status(os.lstat(path))
        except FileNotFoundError:
            return None

    def status_fd(self, fd: int) -> FileStatus:
        """What is known of an open file."""
        return _status(os.fstat(fd))

    def chmod(self, path: Path, mode: int) -> None:
        """Sets permission bits."""
        os.chmod(path, mode)

    def chmod_fd(self, fd: int, mode: int) -> None:
        """Sets permission bits of an open file."""
        os.fchmod(fd, mode)

    def rename(self, source: Path, target: Path) -> None:
        """Moves a file, replacing what is there."""
        os.rename(source, target)

    def rename_new(self, source: Path, target: Path) -> None:
        """renameat2(2) with RENAME_NOREPLACE, else a hard link and an unlink."""
        result = self._libc.renameat2(
            AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), RENAME_NOREPLACE
        )
        if result == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOSYS):
            raise OSError(code, os.strerror(code), str(source), None, str(target))
        os.link(source, target, follow_symlinks=False)
        os.unlink(source)

    def link(self, source: Path, target: Path) -> None:
        """A hard link."""
        os.link(source, target, follow_symlinks=False)

    def link_fd(self, fd: int, target: Path) -> None:
        """linkat(2) through /proc, as open(2) describes for O_TMPFILE."""
        # os.link() follows the link in /proc only if it is told so and given a directory.
        proc = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.link(str(fd), target, src_dir_fd=proc, follow_symlinks=True)
        finally:
            os.close(proc)

    def reflink(self, source_fd: int, target_fd: int) -> bool:
        """ioctl_ficlone(2)."""
        try:
            fcntl.ioctl(target_fd, FICLONE, source_fd)
        except OSError as error:
            if error.errno in NO_REFLINK:
                return False
            raise
        return True

    def copy(self, source_fd: int, target_fd: int, size_bytes: int) -> None:
        """copy_file_range(2), else sendfile(2)."""
        done = self._copy_range(source_fd, target_fd, size_bytes)
        os.lseek(target_fd, done, os.SEEK_SET)
        while done < size_bytes:
            count = os.sendfile(target_fd, source_fd, done, min(COPY_BYTES_MAX, size_bytes - done))
            if count == 0:
                raise OSError(errno.EIO, "the source ended early")
            done += count

    @staticmethod
    def _copy_range(source_fd: int, target_fd: int, size_bytes: int) -> int:
        done = 0
        while done < size_bytes:
            wanted = min(COPY_BYTES_MAX, size_bytes - done)
            try:
                count = os.copy_file_range(source_fd, target_fd, wanted, done, done)
            except OSError as error:
                if error.errno in NO_COPY_RANGE:
                    break
                raise
            if count == 0:  # Some file systems say so of files that they can't copy this way.
                break
            done += count
        return done

    def unlink(self, path: Path) -> None:
        """Takes a name away."""
        os.unlink(path)

    def make_dir(self, path: Path, mode: int) -> None:
        """Makes a directory unless there is one."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, mode)

    def list_dir(self, path: Path) -> list[str]:
        """The names in a directory, sorted."""
        return sorted(os.listdir(path))

    def fsync_dir(self, path: Path) -> None:
        """Makes the names in a directory durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def free_bytes(self, path: Path) -> int:
        """Bytes available to this process, root's reserve left out."""
        status = os.statvfs(path)
        return status.f_bavail * status.f_frsize


def _status(status: os.stat_result) -> FileStatus:
    return FileStatus(
        size_bytes=status.st_size,
        allocated_bytes=status.st_blocks * 512,
        mtime_ns=status.st_mtime_ns,
        mode=stat.S_IMODE(status.st_mode),
        links=status.st_nlink,
        device=status.st_dev,
        is_directory=stat.S_ISDIR(status.st_mode),
    )
