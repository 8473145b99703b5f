"""Giving a whole content to a user as a file of their own: reflink, else hard link, else copy.

The target appears in one step, whole, or not at all. Without `overwrite` an existing target is
never replaced, not even by a race. A copy is made in a file without a name where the file system
has such, so that not even a killed daemon leaves half of one behind. Decides which of the three
ways is possible, never which content is right.
"""

import contextlib
import errno
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from peer.shell.store.errors import FULL, StoreError, from_os_error
from peer.shell.store.space import in_words
from shoal.runtime.files import Files
from shoal.wire.errors import Reason, UsageError

NO_LINK: Final = frozenset(
    {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS}
)
"""Answers to link(2) that a copy may get around."""

DELIVERED_MODE: Final = 0o644


class DeliveryWay(StrEnum):
    """How a content got to its target."""

    REFLINK = "reflink"
    """An independent file that shares disk blocks until one is written to."""
    HARD_LINK = "hard-link"
    """Another name of the store's own file, read-only."""
    COPY = "copy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What to deliver where. `fd` is open for reading at `path`; `check` raises StoreError if the
    content is not any more what was sealed; `mode`: permission bits of an independent file."""

    fd: int
    path: Path
    size_bytes: int
    target: Path
    overwrite: bool
    mode: int
    hard_link: bool
    check: Callable[[], None]


class Deliverer:
    """Delivers contents. Thread-safe."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def deliver(self, delivery: Delivery) -> DeliveryWay:
        """Delivers. Raises UsageError for a target that can't be, StoreError for the disk."""
        with _explained(delivery):
            self._check_target(delivery)
            delivery.check()
            if self._reflink(delivery):
                return DeliveryWay.REFLINK
            if delivery.hard_link and self._hard_link(delivery):
                return DeliveryWay.HARD_LINK
            self._copy(delivery)
            return DeliveryWay.COPY

    def _check_target(self, delivery: Delivery) -> None:
        target = delivery.target
        parent = self._files.status(target.parent.resolve())
        if parent is None:
            raise UsageError(f"{target.parent}: no such directory: create it first")
        if not parent.is_directory:
            raise UsageError(f"{target.parent} is not a directory")
        status = self._files.status(target)
        if status is None:
            return
        if status.is_directory:
            raise UsageError(f"{target} is a directory: name the file to write")
        if not delivery.overwrite:
            raise _exists(target)

    def _reflink(self, delivery: Delivery) -> bool:
        if not self._same_device(delivery):
            return False

        def share(fd: int) -> bool:
            return self._files.reflink(delivery.fd, fd)

        return self._make(delivery, share)

    def _hard_link(self, delivery: Delivery) -> bool:
        if not self._same_device(delivery):
            return False
        target = delivery.target
        name = _temporary(target) if delivery.overwrite else target
        try:
            self._files.link(delivery.path, name)
        except OSError as error:
            if error.errno in NO_LINK:
                return False
            raise
        if delivery.overwrite:
            self._replace(name, target)
        return True

    def _copy(self, delivery: Delivery) -> None:
        def copy(fd: int) -> bool:
            self._files.copy(delivery.fd, fd, delivery.size_bytes)
            delivery.check()
            return True

        self._make(delivery, copy)

    def _make(self, delivery: Delivery, fill: Callable[[int], bool]) -> bool:
        """A new file, filled, under the target's name; False (and nothing) if `fill` says so."""
        files, target = self._files, delivery.target
        fd = files.open_unnamed(target.parent, 0o600)
        name = None
        if fd is None:
            name = _temporary(target)
            fd = files.open(name, write=True, create=True)
        try:
            if not fill(fd):
                return False
            files.chmod_fd(fd, delivery.mode)
            if name is None and delivery.overwrite:
                fresh = _temporary(target)
                files.link_fd(fd, fresh)
                name = fresh
            if name is None:
                files.link_fd(fd, target)
            elif delivery.overwrite:
                replaced, name = name, None
                self._replace(replaced, target)
            else:
                files.rename_new(name, target)
                name = None
            return True
        finally:
            files.close(fd)
            if name is not None:
                self._clean(name)

    def _replace(self, name: Path, target: Path) -> None:
        """Renames over the target. Leaves no `name` behind, whatever happens."""
        try:
            self._files.rename(name, target)
        finally:
            # Of two names of one file rename(2) keeps both: nothing to move.
            self._clean(name)

    def _clean(self, name: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._files.unlink(name)

    def _same_device(self, delivery: Delivery) -> bool:
        parent = self._files.status(delivery.target.parent.resolve())
        return parent is not None and (parent.device == self._files.status_fd(delivery.fd).device)


def _temporary(target: Path) -> Path:
    # Short: the target's own name may already be as long as a name can be.
    return target.with_name(f".shoal-{secrets.token_hex(8)}.part")


def _exists(target: Path) -> UsageError:
    return UsageError(f"{target} exists already: use --overwrite to replace it")


@contextmanager
def _explained(delivery: Delivery) -> Iterator[None]:
    """Errors of the file system in words that name the target and what to do."""
    target = delivery.target
    try:
        yield
    except FileExistsError as error:
        raise _exists(target) from error
    except FileNotFoundError as error:
        raise UsageError(
            f"{target}: the directory or the content went away meanwhile: try again"
        ) from error
    except PermissionError as error:
        raise UsageError(
            f"{target}: no permission to write there: choose another place, or allow the daemon's "
            "user to write to the directory"
        ) from error
    except OSError as error:
        if error.errno in FULL:
            raise StoreError(
                Reason.DISK_FULL,
                f"{target}: the disk is full: {in_words(delivery.size_bytes)} are needed there. "
                "Free some space and try again; the content stays in the store",
            ) from error
        if error.errno == errno.ENAMETOOLONG:
            raise UsageError(f"{target}: the name is too long") from error
        raise from_os_error(error, f"writing {target}") from error
