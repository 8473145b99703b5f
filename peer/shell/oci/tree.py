"""The directory that a pull fills: every name in it is reached without following a symbolic link.

Works on directory descriptors, so that neither an archive nor anybody who changes the directory
meanwhile can lead a write out of it. A file appears under its name whole, or not at all. Decides
nothing about what belongs there.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from peer.shell.errors import DownloadError
from peer.shell.oci.paths import STATE_NAME
from shoal.wire.errors import Reason, UsageError

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Tree:
    """A directory. To be used as `with`; paths are relative and safe (`peer.shell.oci.paths`).
    What is not whole yet lies in its `.shoal-pull`, where whoever is killed leaves it behind."""

    def __init__(self, root: Path) -> None:
        """Opens the directory. Raises UsageError if that can't be done."""
        self.root = root
        self.work = root / STATE_NAME
        try:
            self._fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise UsageError(f"{root}: {error.strerror}: name another directory") from None
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(STATE_NAME, 0o755, dir_fd=self._fd)
            self._work_fd = os.open(STATE_NAME, _DIRECTORY, dir_fd=self._fd)
        except OSError as error:
            os.close(self._fd)
            raise UsageError(f"{self.work}: {error.strerror}: name another directory") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._work_fd)
        os.close(self._fd)

    def status(self, path: str) -> os.stat_result | None:
        """What is at a path, links not followed; None for nothing, also behind no directory."""
        try:
            with self._parent(path, create=False) as (parent, name):
                return os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def make_directory(self, path: str, mode: int = 0o755) -> None:
        """A directory, with those above it. `mode` is for a new one alone."""
        with self._parent(f"{path}/.", create=True, mode=mode):
            pass

    def make_parents(self, path: str) -> None:
        """The directories above a path."""
        with self._parent(path, create=True):
            pass

    @contextlib.contextmanager
    def writing(self, path: str, mode: int, mtime_ns: int | None) -> Iterator[IO[bytes]]:
        """A file to write, which gets its name when the block ends, and is gone if it fails."""
        part = _part()
        with self._parent(path, create=True) as (parent, name):
            fd = os.open(
                part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600,
                dir_fd=self._work_fd,
            )  # fmt: skip
            with self._placing(part, parent, name, path), open(fd, "wb") as sink:
                yield sink
                sink.flush()
                os.fchmod(fd, mode)
                if mtime_ns is not None:
                    os.utime(fd, ns=(mtime_ns, mtime_ns))

    def link(self, source: str, path: str) -> None:
        """A second name of a regular file."""
        part = _part()
        with (
            self._parent(source, create=False) as (source_parent, source_name),
            self._parent(path, create=True) as (parent, name),
        ):
            os.link(
                source_name, part,
                src_dir_fd=source_parent, dst_dir_fd=self._work_fd, follow_symlinks=False,
            )  # fmt: skip
            with self._placing(part, parent, name, path):
                pass

    def symlink(self, target: str, path: str) -> None:
        """A symbolic link."""
        part = _part()
        with self._parent(path, create=True) as (parent, name):
            os.symlink(target, part, dir_fd=self._work_fd)
            with self._placing(part, parent, name, path):
                pass

    @contextlib.contextmanager
    def _placing(self, part: str, parent: int, name: str, path: str) -> Iterator[None]:
        """Moves a part to its name when the block ends; leaves none behind."""
        try:
            yield
            os.rename(part, name, src_dir_fd=self._work_fd, dst_dir_fd=parent)
        except IsADirectoryError:
            raise DownloadError(
                Reason.DISK_FAILED,
                f"{self.root / path} is a directory where a file belongs: remove it",
            ) from None
        finally:
            # Of two names of one file rename(2) keeps both.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part, dir_fd=self._work_fd)

    def dress(self, path: str, mode: int | None, mtime_ns: int | None) -> None:
        """Gives a file its mode and time, unless another name shares it (a hard link into a store),
        or it belongs to somebody else."""
        with self._parent(path, create=False) as (parent, name):
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
                    return
                if status.st_uid != os.geteuid() and os.geteuid() != 0:
                    return
                if mode is not None:
                    os.fchmod(fd, mode)
                if mtime_ns is not None:
                    os.utime(fd, ns=(mtime_ns, mtime_ns))
            finally:
                os.close(fd)

    @contextlib.contextmanager
    def _parent(self, path: str, *, create: bool, mode: int = 0o755) -> Iterator[tuple[int, str]]:
        *above, name = path.split("/")
        assert name, "a path names something"
        assert ".." not in above, f"unsafe path {path!r}"
        fd = os.dup(self._fd)
        try:
            for at, part in enumerate(above):
                is_last = at + 1 == len(above)
                fd = self._enter(fd, part, path, create=create, mode=mode if is_last else 0o755)
            yield fd, name
        finally:
            os.close(fd)

    def _enter(self, fd: int, part: str, path: str, *, create: bool, mode: int) -> int:
        if create:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, mode | 0o700, dir_fd=fd)
        try:
            inner = os.open(part, _DIRECTORY, dir_fd=fd)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
            raise DownloadError(
                Reason.DISK_FAILED,
                f"{self.root / path}: {part!r} is no directory there, or a symbolic link, which is "
                "never followed: remove it, or name another directory",
            ) from None
        os.close(fd)
        return inner


def _part() -> str:
    return f"{os.urandom(8).hex()}.part"
