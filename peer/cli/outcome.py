"""What a download came to, and the exit code that says so.

0 done · 1 failed · 2 wrong usage · 3 wrong digest · 4 the origin refused · 5 the disk · 124 time
is over · 130 interrupted. Plain classes, because importing `dataclasses` takes longer than fetching
a small file.
"""

import errno
from typing import Any, Final

EXIT_CODES: Final = {
    "usage": 2,
    "digest-mismatch": 3,
    "origin-unauthorized": 4,
    "origin-forbidden": 4,
    "origin-not-found": 4,
    "disk-full": 5,
    "disk-read-only": 5,
    "disk-failed": 5,
    "timeout": 124,
    "interrupted": 130,
}
"""By reason; any other is 1. Part of the command's interface."""

_DISK_REASONS: Final = {
    errno.ENOSPC: "disk-full",
    errno.EDQUOT: "disk-full",
    errno.EROFS: "disk-read-only",
}


def disk_reason(error: OSError) -> str:
    """The reason that an error of the file system stands for."""
    return _DISK_REASONS.get(error.errno or 0, "disk-failed")


class FileOutcome:
    """One URL."""

    def __init__(self, url: str, output: str) -> None:
        self.url = url
        self.output = output
        self.task_id: str | None = None
        self.size_bytes: int | None = None
        self.digest: str | None = None
        self.how: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Every field."""
        return {
            "url": self.url,
            "output": self.output,
            "task_id": self.task_id,
            "size_bytes": self.size_bytes,
            "digest": self.digest,
            "how": self.how,
        }


class Outcome:
    """All URLs of one command."""

    def __init__(self, files: list[FileOutcome]) -> None:
        self.files = files
        self.seconds = 0.0
        self.begin()

    def begin(self) -> None:
        """Nothing is known of the download that begins now."""
        self.ok = False
        self.reason = ""
        self.detail = ""
        self.origin_bytes = 0
        self.peer_bytes = 0
        self.received_bytes = 0
        self.size_bytes: int | None = None
        self.rate_bytes_s = 0
        self.file_bytes: dict[int, int] = {}
        """By index: how many bytes are there, of files that are under way."""
        self.ready: dict[int, str] = {}
        """By index: where the API gives a content that the client has to write itself."""

    def take(self, event: dict[str, Any]) -> None:
        """One event of the local API."""
        match event["event"]:
            case "resolved" | "delivered" | "ready":
                known = self.files[event["index"]]
                known.task_id = event["task_id"]
                known.size_bytes = event["size"]
                known.digest = event["digest"] or known.digest
                known.how = event.get("how", known.how)
                if event["event"] != "resolved":
                    self.file_bytes.pop(event["index"], None)
                if event["event"] == "ready":
                    self.ready[event["index"]] = event["content"]
            case "progress":
                self.received_bytes = event["bytes"]
                self.size_bytes = event["size"]
                self.origin_bytes = event["origin_bytes"]
                self.peer_bytes = event["peer_bytes"]
                self.rate_bytes_s = event["rate"]
                self.file_bytes.update(event.get("files", ()))
            case "done":
                self.ok = True
                self.size_bytes = self.received_bytes = event["size"]
                self.origin_bytes = event["origin_bytes"]
                self.peer_bytes = event["peer_bytes"]
            case "failed":
                self.fail(event["reason"], event["detail"])
            case _:
                pass  # A newer daemon may tell more.

    def fail(self, reason: str, detail: str) -> None:
        """It did not succeed."""
        self.ok = False
        self.reason = reason
        self.detail = detail

    @property
    def exit_code(self) -> int:
        """0 for success, else by the reason."""
        return 0 if self.ok else EXIT_CODES.get(self.reason, 1)

    def as_json(self) -> dict[str, Any]:
        """The object that `--json` prints: of the file, or of all files for several URLs."""
        common = {
            "ok": self.ok,
            "reason": self.reason or None,
            "detail": self.detail,
            "seconds": round(self.seconds, 4),
            "origin_bytes": self.origin_bytes,
            "peer_bytes": self.peer_bytes,
        }
        if len(self.files) == 1:
            return {**self.files[0].as_json(), **common}
        return {
            "files": [each.as_json() for each in self.files],
            "size_bytes": self.size_bytes,
            **common,
        }
