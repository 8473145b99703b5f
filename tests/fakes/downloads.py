"""A fake of everything the local API asks of a daemon: scripted downloads, contents in files."""

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peer.shell.api_types import (
    Delivered,
    Done,
    DownloadEvent,
    DownloadRequest,
    Failed,
    LentContent,
    Progress,
    Ready,
    Resolved,
    RightNeeded,
    SwarmContent,
    SwarmCounts,
    TaskSummary,
)
from peer.shell.errors import DownloadError
from shoal.wire.errors import Reason
from tests.fakes.answers import digest_of


def task_id_of(content: bytes) -> str:
    """A task id that follows from the content."""
    return hashlib.sha256(b"task" + content).hexdigest()


@dataclass
class FakeLent:
    """`LentContent`."""

    fd: int
    size_bytes: int
    digest: str


class FakeDownload:
    """`Download`: waits for its gate, then ends as its daemon was told."""

    def __init__(self, daemon: "FakeDownloads", request: DownloadRequest) -> None:
        self._daemon = daemon
        self._request = request
        self.closed = False

    async def events(self) -> AsyncIterator[DownloadEvent]:
        """Milestones in order."""
        daemon = self._daemon
        total = 0
        for index, wanted in enumerate(self._request.urls):
            content = daemon.contents[wanted.url]
            task_id, digest = task_id_of(content), digest_of(content)
            yield Resolved(
                index=index, task_id=task_id, size_bytes=len(content), digest=wanted.digest
            )
            if self._request.renewable:
                for _ in range(daemon.refuses):
                    yield RightNeeded(reason=Reason.ORIGIN_UNAUTHORIZED)
            await daemon.gate.wait()
            if daemon.failure is not None:
                yield daemon.failure
                return
            total += len(content)
            output = self._request.outputs[index]
            if output is None:
                yield Ready(index=index, task_id=task_id, size_bytes=len(content), digest=digest)
                continue
            if daemon.delivery_failure is not None:
                yield daemon.delivery_failure
                return
            if daemon.delivers:
                output.write_bytes(content)
            yield Delivered(
                index=index,
                task_id=task_id,
                size_bytes=len(content),
                digest=digest,
                path=output,
                how="hard-link",
            )
        yield Done(size_bytes=total, origin_bytes=total - 1, peer_bytes=1)

    def progress(self) -> Progress:
        """As the daemon was told."""
        return self._daemon.progress

    def renew(self, authorization: str | None) -> None:
        """Remembered."""
        self._daemon.renewals.append(authorization)

    async def close(self) -> None:
        """Remembered, and seen by whoever waits for `any_closed`."""
        self.closed = True
        self._daemon.any_closed.set()


class FakeStream:
    """`ContentStream`: the content in halves, the second one behind the gate."""

    def __init__(self, daemon: "FakeDownloads", content: bytes) -> None:
        self._daemon = daemon
        self._content = content
        self.task_id = task_id_of(content)
        self.size_bytes: int | None = None if daemon.size_unknown else len(content)
        self.digest: str | None = None
        self.closed = False

    async def chunks(self) -> AsyncIterator[bytes]:
        """In order; raises after the first half if the daemon was told to fail."""
        half = len(self._content) // 2
        yield self._content[:half]
        await self._daemon.gate.wait()
        failure = self._daemon.failure
        if failure is not None:
            raise DownloadError(failure.reason, failure.detail)
        yield self._content[half:]

    def progress(self) -> Progress:
        """As the daemon was told."""
        return self._daemon.progress

    async def close(self) -> None:
        """Remembered, and seen by whoever waits for `any_closed`."""
        self.closed = True
        self._daemon.any_closed.set()


@dataclass
class FakeDownloads:
    """`Downloads`. `contents` is what each URL gives; everything else is a switch."""

    root: Path
    contents: dict[str, bytes] = field(default_factory=dict)
    failure: Failed | None = None
    delivery_failure: Failed | None = None
    """How a download with an output fails, while one without succeeds."""
    delivers: bool = True
    """False: says that it delivered, but nothing is there (another /tmp)."""
    size_unknown: bool = False
    progress: Progress = field(default_factory=Progress)
    refusal: DownloadError | None = None
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    any_closed: asyncio.Event = field(default_factory=asyncio.Event)
    requests: list[DownloadRequest] = field(default_factory=list)
    started: list[FakeDownload] = field(default_factory=list)
    streams: list[FakeStream] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    refuses: int = 0
    """How many times a renewable download asks for a fresh right."""
    renewals: list[str | None] = field(default_factory=list)

    swarm_refusal: DownloadError | None = None
    """Why it is not known what the swarm holds."""
    swarm_contents: dict[str, SwarmContent] = field(default_factory=dict)
    """What it holds, by digest; nothing of others."""
    swarm_asked: list[tuple[str, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate.set()

    def add(self, url: str, content: bytes) -> str:
        """A URL and its content, which the store then holds too. Returns the task id."""
        self.contents[url] = content
        (self.root / task_id_of(content)).write_bytes(content)
        return task_id_of(content)

    def start(self, request: DownloadRequest) -> FakeDownload:
        """Begins a download."""
        if self.refusal is not None:
            raise self.refusal
        self.requests.append(request)
        self.started.append(FakeDownload(self, request))
        return self.started[-1]

    async def stream(self, request: DownloadRequest) -> FakeStream:
        """Begins a stream."""
        if self.refusal is not None:
            raise self.refusal
        self.requests.append(request)
        self.streams.append(FakeStream(self, self.contents[request.urls[0].url]))
        return self.streams[-1]

    async def lend(self, task_id: str) -> AbstractContextManager[LentContent]:
        """Lends a content."""
        return self._lend(self._path(task_id))

    @contextlib.contextmanager
    def _lend(self, path: Path) -> Iterator[LentContent]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            yield FakeLent(descriptor, path.stat().st_size, digest_of(path.read_bytes()))
        finally:
            os.close(descriptor)

    async def tasks(self) -> tuple[TaskSummary, ...]:
        """Every content."""
        return tuple(
            TaskSummary(
                task_id=task_id_of(content),
                display_url=url,
                size_bytes=len(content),
                held_bytes=len(content),
                sealed=True,
                digest=digest_of(content),
            )
            for url, content in self.contents.items()
        )

    async def swarm(self, digests: tuple[str, ...]) -> SwarmCounts:
        """As it was told."""
        self.swarm_asked.append(digests)
        if self.swarm_refusal is not None:
            raise self.swarm_refusal
        contents = tuple(
            self.swarm_contents.get(digest)
            or SwarmContent(digest=digest, hosts=0, whole_hosts=0, covered_bytes=0, size_bytes=None)
            for digest in digests
        )
        return SwarmCounts(
            hosts=max(content.hosts for content in contents),
            whole_hosts=min(content.whole_hosts for content in contents),
            contents=contents,
        )

    async def remove(self, task_id: str) -> None:
        """Deletes a content."""
        self._path(task_id).unlink()
        self.removed.append(task_id)

    def status(self) -> dict[str, Any]:
        """A little of what a daemon says."""
        return {"host_id": "fake", "uptime_s": 1.0, "store": {"used_bytes": 2048}}

    def _path(self, task_id: str) -> Path:
        path = self.root / task_id
        if not path.exists():
            raise DownloadError(Reason.UNKNOWN_TASK, f"no task {task_id[:16]} here")
        return path
