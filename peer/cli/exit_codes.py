"""Exit codes of the `shoal` command, and which reason leads to which. Part of the interface."""

from shoal.wire.errors import Reason

OK = 0
FAILED = 1
USAGE = 2
DIGEST_MISMATCH = 3
ORIGIN_REFUSED = 4
DISK = 5
TIMEOUT = 124
INTERRUPTED = 130

EXPLAINED = """\
exit codes:
  0  done                     3    the content does not match its digest
  1  failed                   4    the origin refused (401, 403, 404)
  2  wrong usage              5    a disk is full, read-only or broken
                              124  not done in time
                              130  interrupted
"""

_CODE_OF_REASON = {
    "usage": USAGE,
    Reason.DIGEST_MISMATCH.value: DIGEST_MISMATCH,
    Reason.ORIGIN_UNAUTHORIZED.value: ORIGIN_REFUSED,
    Reason.ORIGIN_FORBIDDEN.value: ORIGIN_REFUSED,
    Reason.ORIGIN_NOT_FOUND.value: ORIGIN_REFUSED,
    Reason.DISK_FULL.value: DISK,
    Reason.DISK_READ_ONLY.value: DISK,
    Reason.DISK_FAILED.value: DISK,
    Reason.TIMEOUT.value: TIMEOUT,
}


def exit_code_of(reason: str) -> int:
    """The exit code of a failure with this reason (`usage` or a `Reason`'s value)."""
    return _CODE_OF_REASON.get(reason, FAILED)
