"""Errors and reasons. One enum of reasons is used in events, logs and control messages alike."""

from enum import StrEnum


class ShoalError(Exception):
    """Base of every error that shoal raises on purpose; its text names what to do."""


class ProtocolError(ShoalError):
    """The other side broke the protocol; the connection it came from must be closed."""


class UsageError(ShoalError):
    """Bad input from the user: an option, a URL, a digest, a configuration value."""


class Reason(StrEnum):
    """Why something ended as it did."""

    # origin
    ORIGIN_UNAUTHORIZED = "origin-unauthorized"
    ORIGIN_FORBIDDEN = "origin-forbidden"
    ORIGIN_NOT_FOUND = "origin-not-found"
    ORIGIN_BUSY = "origin-busy"
    """429 or 503: may be asked again after the time that it named."""
    ORIGIN_FAILED = "origin-failed"
    """Another 5xx, a refused or broken connection, a short body, a stall: worth another try."""
    ORIGIN_CHANGED = "origin-changed"
    """Validator or length differs from what the task began with; bytes are never mixed."""
    ORIGIN_INVALID = "origin-invalid"
    """An answer that makes no sense (another 4xx, a wrong range): no use to try again."""
    ORIGIN_NOT_ALLOWED = "origin-not-allowed"
    """The user or the scheduler does not let this host read from the origin."""
    # content
    DIGEST_MISMATCH = "digest-mismatch"
    # local
    DISK_FULL = "disk-full"
    DISK_READ_ONLY = "disk-read-only"
    DISK_FAILED = "disk-failed"
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"
    OVERLOADED = "overloaded"
    SHUTTING_DOWN = "shutting-down"
    # peers
    PEER_CORRUPT = "peer-corrupt"
    """Bytes that do not match the digest that came with them."""
    PEER_CONTRADICTED = "peer-contradicted"
    """A digest that the scheduler's list contradicts."""
    PEER_STALLED = "peer-stalled"
    PEER_BUSY = "peer-busy"
    PEER_LOST = "peer-lost"
    PEER_REFUSED = "peer-refused"
    PEER_PROTOCOL = "peer-protocol"
    UNKNOWN_TASK = "unknown-task"
    NOT_HELD = "not-held"
    UNAUTHORIZED = "unauthorized"
    NO_SOURCE = "no-source"
    """Neither a peer nor the origin can give what is missing."""
    NO_SCHEDULER = "no-scheduler"
    """None is configured or none answers now, and only a scheduler knows."""


TRANSIENT_ORIGIN = frozenset({Reason.ORIGIN_BUSY, Reason.ORIGIN_FAILED})
"""Origin outcomes that a later try may mend."""
