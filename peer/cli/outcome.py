"""What a download came to, and the exit code that says so.

0 done · 1 failed · 2 wrong usage · 3 wrong digest · 4 the origin refused · 5 the disk · 124 time
is over · 130 interrupted.
"""

from dataclasses import dataclass, field
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
    "cancelled": 130,
}


@dataclass(slots=True)
class FileOutcome:
    """One URL."""

    url: str
    output: str
    task_id: str | None = None
    size_bytes: int | None = None
    digest: str | None = None
    how: str | None = None


@dataclass(slots=True)
class Outcome:
    """All URLs of one command."""

    files: list[FileOutcome]
    ok: bool = False
    reason: str = ""
    detail: str = ""
    seconds: float = 0.0
    origin_bytes: int = 0
    peer_bytes: int = 0
    received_bytes: int = 0
    size_bytes: int | None = None
    rate_bytes_s: int = 0
    ready: dict[int, str] = field(default_factory=dict)
    """By index: where the API gives a content that the client has to write itself."""

    def take(self, event: dict[str, Any]) -> None:
        """One event of the local API."""
        index = int(event.get("index") or 0)
        known = self.files[index]
        match event["event"]:
            case "resolved" | "delivered" | "ready":
                known.task_id = event["task_id"]
                known.size_bytes = event["size"]
                known.digest = event["digest"] or known.digest
                known.how = event.get("how", known.how)
                if event["event"] == "ready":
                    self.ready[index] = event["content"]
            case "progress":
                self.received_bytes = event["bytes"]
                self.size_bytes = event["size"]
                self.origin_bytes = event["origin_bytes"]
                self.peer_bytes = event["peer_bytes"]
                self.rate_bytes_s = event["rate"]
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
        files = [
            {
                "url": each.url,
                "output": each.output,
                "task_id": each.task_id,
                "size_bytes": each.size_bytes,
                "digest": each.digest,
                "how": each.how,
            }
            for each in self.files
        ]
        common = {
            "ok": self.ok,
            "reason": self.reason or None,
            "detail": self.detail,
            "seconds": round(self.seconds, 4),
            "origin_bytes": self.origin_bytes,
            "peer_bytes": self.peer_bytes,
        }
        if len(files) == 1:
            return {**files[0], **common}
        return {"files": files, **common}
