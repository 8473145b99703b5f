"""The store's one kind of error, and the translation of what kernel and SQLite say into it.

Decides which `Reason` an error number stands for; never does IO.
"""

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from shoal.wire.errors import Reason, ShoalError

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
TOO_MANY_FILES: Final = frozenset({errno.EMFILE, errno.ENFILE})


class StoreError(ShoalError):
    """The store could not do what was asked.

    DISK_FULL, DISK_READ_ONLY and DISK_FAILED are the disk's; UNKNOWN_TASK: there is no such task
    (any more); NOT_HELD: it is not whole yet; CANCELLED: a write that came too late, for an epoch
    that is void or a piece that is held with another digest. `needed_bytes` of a DISK_FULL that
    was refused up front: what `candidates_to_evict` must make room for.
    """

    def __init__(self, reason: Reason, detail: str, *, needed_bytes: int = 0) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.needed_bytes = needed_bytes


def unknown_task(task_id: str) -> StoreError:
    """The error for a task that is not in the store."""
    return StoreError(Reason.UNKNOWN_TASK, f"task {task_id[:16]} is not in the store")


def from_os_error(error: OSError, doing: str) -> StoreError:
    """What an error of the file system means. `doing` says what was being done, with the path."""
    if error.errno in FULL:
        return StoreError(
            Reason.DISK_FULL,
            f"{doing}: the disk is full. Free some space, or remove tasks with `shoal tasks rm`; "
            "what was written before stays",
        )
    if error.errno == errno.EROFS:
        return StoreError(
            Reason.DISK_READ_ONLY,
            f"{doing}: the file system is read-only. Mount it writable (it may have become "
            "read-only after a disk error: see the kernel's log)",
        )
    if error.errno in TOO_MANY_FILES:
        return StoreError(
            Reason.DISK_FAILED, f"{doing}: too many open files. Raise the limit (LimitNOFILE)"
        )
    return StoreError(Reason.DISK_FAILED, f"{doing}: {error.strerror or error}")


def from_sqlite_error(error: sqlite3.Error, doing: str) -> StoreError:
    """What an error of the metadata database means."""
    primary_code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if primary_code == sqlite3.SQLITE_FULL:
        return from_os_error(OSError(errno.ENOSPC, "full"), doing)
    if primary_code == sqlite3.SQLITE_READONLY:
        return from_os_error(OSError(errno.EROFS, "read-only"), doing)
    if primary_code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return StoreError(
            Reason.DISK_FAILED,
            f"{doing}: {error}. Remove the store's directory to begin with an empty store",
        )
    return StoreError(Reason.DISK_FAILED, f"{doing}: {error}")


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Errors of kernel and SQLite leave the block as StoreError."""
    try:
        yield
    except OSError as error:
        raise from_os_error(error, doing) from error
    except sqlite3.Error as error:
        raise from_sqlite_error(error, doing) from error
