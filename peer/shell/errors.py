"""How the rooms of the shell tell one another, and the command line, that something failed: a
reason, and a detail that is fit for whoever reads it.

Apart from what raises them, so that whoever only handles them loads nothing else.
"""

from shoal.wire.errors import Reason, ShoalError


class DownloadError(ShoalError):
    """Something that a local client or a user asked for cannot be had; the text is fit for the
    user."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}" if detail else str(reason))
        self.reason = reason
        self.detail = detail


class OriginError(ShoalError):
    """An origin did not give what was asked. `detail` is fit for logs and other hosts: it names a
    host at most, never a path, a query or a header. `retry_after_ms` is what the origin asked
    for, 0 if it did not."""

    def __init__(self, reason: Reason, detail: str, retry_after_ms: int = 0) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.retry_after_ms = retry_after_ms
