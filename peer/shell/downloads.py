"""What local clients may ask of the daemon, on top of the driver: `Downloads` of `api_types`.

Keeps URLs and credentials, which the core never sees, and hands out contents: by delivering files,
by lending them, by streaming them in order. Decides nothing about how they are fetched.
"""

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

from peer.core import effects as fx
from peer.core import events as ev
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
    WantedUrl,
)
from peer.shell.driver import PeerDriver
from peer.shell.errors import DownloadError
from peer.shell.origin.request import OriginRequest
from peer.shell.rights import Renewer, Rights
from peer.shell.store.content import ContentStore
from peer.shell.store.errors import StoreError
from peer.shell.streams import ContentReading, Running, RunningContent, Wanted
from peer.shell.urls import display_url
from peer.shell.wanted_urls import identity_url, is_anonymous, origin_request
from shoal.runtime.clock import Clock
from shoal.runtime.tasks import Offload, Supervisor
from shoal.wire.control import Demand
from shoal.wire.digest import parse_digest
from shoal.wire.errors import Reason, UsageError
from shoal.wire.geometry import check_piece_length
from shoal.wire.ids import (
    DownloadId,
    SourceId,
    TaskId,
    collection_of,
    source_of_digest,
    source_of_url,
    task_of_digest,
)
from shoal.wire.limits import COLLECTION_TASKS_MAX

DISPLAY_URLS_MAX: Final = 4 * COLLECTION_TASKS_MAX
FILE_MODE_EVENTS_MAX: Final = 2 * COLLECTION_TASKS_MAX + 16

WHY_NOT_COUNTED: Final = {
    Reason.NO_SCHEDULER: "the daemon has no scheduler now",
    Reason.TIMEOUT: "the scheduler did not answer in time; try again, unless it is of an older "
    "version",
    Reason.OVERLOADED: "too many such questions wait for the scheduler; try again",
}


class RunningDownload:
    """`api_types.Download`."""

    def __init__(self, owner: "LocalDownloads", running: Running) -> None:
        self._owner = owner
        self._running = running

    async def events(self) -> AsyncIterator[DownloadEvent]:
        """Milestones, ending with `Done` or `Failed`."""
        while True:
            event = await self._running.queue.get()
            yield event
            if isinstance(event, Done | Failed):
                return

    def progress(self) -> Progress:
        """How far it is."""
        return self._owner.progress_of(self._running)

    def renew(self, authorization: str | None) -> None:
        """Another Authorization for its URLs."""
        self._owner.renew(self._running, authorization)

    def content(self, index: int) -> RunningContent:
        """The content of one of its URLs, to be read while it arrives. Its demand is STREAMING."""
        return RunningContent(self._owner.reading, self._running, index)

    async def close(self) -> None:
        """Cancels it if it still runs."""
        self._owner.forget(self._running)


class RunningStream:
    """`api_types.ContentStream`."""

    def __init__(self, owner: "LocalDownloads", running: Running, content: RunningContent) -> None:
        self._owner = owner
        self._running = running
        self._content = content
        descriptor = running.of_index(0).descriptor
        assert descriptor is not None
        self._descriptor = descriptor

    @property
    def task_id(self) -> str:
        """The task of the URL."""
        return self._descriptor.task_id

    @property
    def size_bytes(self) -> int | None:
        """None while the origin did not tell it."""
        return self._descriptor.geometry.size_bytes

    @property
    def digest(self) -> str | None:
        """The digest that was asked for."""
        return self._descriptor.digest

    def chunks(self) -> AsyncIterator[bytes]:
        """The content in order."""
        return self._content.chunks()

    def progress(self) -> Progress:
        """How far the download is."""
        return self._owner.progress_of(self._running)

    async def close(self) -> None:
        """Nobody reads any longer."""
        self._owner.forget(self._running)


class LocalDownloads:
    """`api_types.Downloads` over one driver. `describe_daemon` gives the fixed part of `status`."""

    def __init__(
        self,
        *,
        driver: PeerDriver,
        store: ContentStore,
        offload: Offload,
        clock: Clock,
        supervisor: Supervisor,
        describe_daemon: Callable[[], dict[str, Any]],
        ca_file: Path | None = None,
    ) -> None:
        self._driver = driver
        self._store = store
        self._offload = offload
        self._clock = clock
        self._supervisor = supervisor
        self._describe_daemon = describe_daemon
        self._ca_file = ca_file
        self._key = secrets.token_bytes(32)
        self._running: dict[DownloadId, Running] = {}
        self.rights = Rights()
        """What origins are asked for; for whoever asks them."""
        self._last_download = 0
        self._by_task: dict[TaskId, list[tuple[Running, Wanted]]] = {}
        self.reading = ContentReading(store, offload, clock, driver.post)
        """For contents that are read while they arrive."""
        self._display: dict[str, str] = {}
        """Where each task was last asked from, for people; bounded like the tasks shown."""

    def is_here(self, digest: str) -> bool:
        """Whether a content with this digest is held, whole and right."""
        return self._driver.engine.sealed_content(task_of_digest(digest, None))[2]

    # ------------------------------------------------------------ starting

    def start(self, request: DownloadRequest) -> RunningDownload:
        """Begins a download. Raises UsageError, DownloadError."""
        return RunningDownload(self, self._begin(request))

    async def stream(self, request: DownloadRequest) -> RunningStream:
        """Begins to stream the one URL of the request."""
        if len(request.urls) != 1:
            raise UsageError("a stream has exactly one URL")
        running = self._begin(request, demand=Demand.STREAMING)
        try:
            content = RunningContent(self.reading, running, 0)
            await content.known()
            return RunningStream(self, running, content)
        except BaseException:
            self.forget(running)
            raise

    def _begin(self, request: DownloadRequest, demand: Demand | None = None) -> Running:
        if not request.urls or len(request.urls) > COLLECTION_TASKS_MAX:
            raise UsageError(f"a download has 1 to {COLLECTION_TASKS_MAX} URLs")
        if len(request.outputs) != len(request.urls):
            raise UsageError("a download has one output per URL")
        if self._driver.engine.state.shutting_down:
            raise DownloadError(Reason.SHUTTING_DOWN, "the daemon is stopping")
        limit = self._driver.engine.state.limits.downloads_max
        if len(self._running) >= limit:
            raise DownloadError(Reason.OVERLOADED, f"{limit} downloads are running already")
        # Its rights change on their own: they are shared with no other download.
        own = secrets.token_hex(16) if request.renewable else ""
        wanted: dict[SourceId, list[Wanted]] = {}
        requests: list[tuple[ev.Source, OriginRequest]] = []
        for index, (url, output) in enumerate(zip(request.urls, request.outputs, strict=True)):
            source, asked = self._source(url, request, own)
            wanted.setdefault(source.source_id, []).append(Wanted(index, source, output))
            requests.append((source, asked))
        self._last_download += 1
        running = Running(
            download_id=DownloadId(self._last_download),
            request=request,
            wanted=wanted,
            queue=asyncio.Queue(FILE_MODE_EVENTS_MAX),
        )
        if request.renewable:
            running.renewer = Renewer(lambda reason: _tell(running, reason))
        for source, asked in requests:
            key = (source.source_id, source.credential)
            self.rights.add(key, asked, running.renewer, trusted=source.origin_trusted)
        self._running[running.download_id] = running
        sources = tuple(group[0].source for group in wanted.values())
        self._driver.post(
            ev.Want(
                now_ns=self._clock.now_ns(),
                download_id=running.download_id,
                collection_id=collection_of(tuple(source.source_id for source in sources)),
                sources=sources,
                demand=demand or request.demand,
                priority=request.priority,
                origin_allowed=not request.disable_back_to_source,
            )
        )
        return running

    def _source(
        self, wanted: WantedUrl, request: DownloadRequest, own: str
    ) -> tuple[ev.Source, OriginRequest]:
        asked = origin_request(
            wanted.url,
            wanted.headers,
            ca_file=self._ca_file,
            authorities=request.authorities,
            places=wanted.places,
        )
        length = request.piece_length_bytes
        if length is not None:
            check_piece_length(length)
        filtered = request.filtered_query_params
        credential = ""
        # Whom one client trusts is its own business, like what it shows.
        if asked.authorities or not is_anonymous(asked, filtered):
            hasher = hashlib.blake2b(key=self._key, digest_size=16)
            hasher.update(repr((asked.url, asked.headers, asked.authorities, own)).encode())
            credential = hasher.hexdigest()
        digest = None
        task_id = None
        if wanted.digest is not None:
            digest = str(parse_digest(wanted.digest))
            source_id = source_of_digest(digest, length)
            task_id = task_of_digest(digest, length)
        else:
            url = identity_url(wanted.url, filtered)
            source_id = source_of_url(url, request.tag, request.application, length)
        source = ev.Source(
            source_id=source_id,
            task_id=task_id,
            digest=digest,
            display_url=display_url(wanted.url),
            piece_length_bytes=length,
            credential=credential,
            origin_trusted=wanted.trusted,
        )
        return source, asked

    # ------------------------------------------------------------ effects

    def take(self, effect: fx.AnyEffect) -> None:
        """Tells clients what the core decided for them."""
        match effect:
            case fx.SourceResolved():
                self._resolved(effect)
            case fx.PiecesReadable():
                for _, wanted in self._by_task.get(effect.task_id, ()):
                    wanted.readable |= effect.pieces
                    wanted.change()
            case fx.PiecesRevoked():
                for _, wanted in self._by_task.get(effect.task_id, ()):
                    wanted.readable &= ~effect.pieces
                    wanted.revoked += 1
                    wanted.change()
            case fx.SourceEnded():
                self._source_ended(effect)
            case fx.DownloadEnded():
                self._download_ended(effect)
            case _:
                raise AssertionError(f"{type(effect).__name__} is not for clients")

    def _resolved(self, effect: fx.SourceResolved) -> None:
        running = self._running.get(effect.download_id)
        if running is None:
            return
        _, _, origin_bytes, peer_bytes = self._driver.engine.progress(effect.descriptor.task_id)
        for wanted in running.wanted[effect.source_id]:
            wanted.descriptor = effect.descriptor
            wanted.size_bytes = effect.descriptor.geometry.size_bytes
            self._by_task.setdefault(effect.descriptor.task_id, []).append((running, wanted))
            self._display[effect.descriptor.task_id] = wanted.source.display_url
            if len(self._display) > DISPLAY_URLS_MAX:
                self._display.pop(next(iter(self._display)))
            wanted.change()
            wanted.origin_bytes_before = origin_bytes
            wanted.peer_bytes_before = peer_bytes
            running.queue.put_nowait(
                Resolved(
                    index=wanted.index,
                    task_id=effect.descriptor.task_id,
                    size_bytes=effect.descriptor.geometry.size_bytes,
                    digest=effect.descriptor.digest,
                )
            )

    def _source_ended(self, effect: fx.SourceEnded) -> None:
        running = self._running.get(effect.download_id)
        if running is None:
            return
        for wanted in running.wanted[effect.source_id]:
            if effect.reason is not None:
                wanted.failed = DownloadError(effect.reason, effect.detail)
                self._fail(running, effect.reason, effect.detail, wanted.index)
            else:
                assert wanted.descriptor is not None
                size, _, _ = self._driver.engine.sealed_content(wanted.descriptor.task_id)
                wanted.size_bytes, wanted.whole = size, True
                wanted.change()
                running.deliveries += 1
                self._supervisor.spawn(self._deliver(running, wanted), "deliver")

    def _fail(self, running: Running, reason: Reason, detail: str, index: int | None) -> None:
        if running.failed is None:
            running.failed = Failed(reason=reason, detail=detail, index=index)
        running.change()

    async def _deliver(self, running: Running, wanted: Wanted) -> None:
        assert wanted.descriptor is not None
        task_id = wanted.descriptor.task_id
        size, digest, _ = self._driver.engine.sealed_content(task_id)
        try:
            if wanted.output is None:
                event: DownloadEvent = Ready(
                    index=wanted.index, task_id=task_id, size_bytes=size, digest=digest
                )
            else:
                how = await self._offload(
                    self._deliver_file, task_id, wanted.output, running.request
                )
                event = Delivered(
                    index=wanted.index,
                    task_id=task_id,
                    size_bytes=size,
                    digest=digest,
                    path=wanted.output,
                    how=how,
                )
            running.queue.put_nowait(event)
        except StoreError as error:
            self._fail(running, error.reason, error.detail, wanted.index)
        except UsageError as error:
            self._fail(running, Reason.DISK_FAILED, str(error), wanted.index)
        running.deliveries -= 1
        self._end_if_over(running)

    def _deliver_file(self, task_id: TaskId, target: Path, request: DownloadRequest) -> str:
        return self._store.deliver(
            task_id, target, overwrite=request.overwrite, hard_link=not request.own_files
        )

    def _download_ended(self, effect: fx.DownloadEnded) -> None:
        running = self._running.get(effect.download_id)
        if running is None:
            return
        if effect.reason is not None:
            self._fail(running, effect.reason, effect.detail, None)
        running.ended = True
        self._end_if_over(running)

    def _end_if_over(self, running: Running) -> None:
        if not running.ended or running.deliveries or running.closed:
            return
        progress = self.progress_of(running)
        running.change()
        running.queue.put_nowait(
            running.failed
            or Done(
                size_bytes=progress.size_bytes or 0,
                origin_bytes=progress.origin_bytes,
                peer_bytes=progress.peer_bytes,
            )
        )

    # ------------------------------------------------------------ following

    def progress_of(self, running: Running) -> Progress:
        """How far a download is."""
        received, size, origin_bytes, peer_bytes = 0, 0, 0, 0
        files: list[tuple[int, int]] = []
        known = True
        for group in running.wanted.values():
            wanted = group[0]
            if wanted.descriptor is None:
                known = False
                continue
            held, total, from_origin, from_peers = self._driver.engine.progress(
                wanted.descriptor.task_id
            )
            received += held
            files += [(each.index, held) for each in group]
            origin_bytes += from_origin - wanted.origin_bytes_before
            peer_bytes += from_peers - wanted.peer_bytes_before
            if total is None:
                known = False
            else:
                size += total
        return Progress(
            received_bytes=received,
            size_bytes=size if known else None,
            origin_bytes=max(0, origin_bytes),
            peer_bytes=max(0, peer_bytes),
            files=tuple(files),
        )

    def renew(self, running: Running, authorization: str | None) -> None:
        """The client came with a fresh right, or says that there is none."""
        if running.renewer is None or running.closed:
            return
        keys = [
            (wanted.source.source_id, wanted.source.credential)
            for group in running.wanted.values()
            for wanted in group
        ]
        self.rights.renew(keys, running.renewer, authorization)

    def forget(self, running: Running) -> None:
        """The client is gone or has everything."""
        if running.closed:
            return
        running.closed = True
        running.change()
        self._running.pop(running.download_id, None)
        for group in running.wanted.values():
            for wanted in group:
                self._forget_task_of(running, wanted)
        self._driver.post(ev.Unwant(now_ns=self._clock.now_ns(), download_id=running.download_id))
        for group in running.wanted.values():
            for wanted in group:
                key = (wanted.source.source_id, wanted.source.credential)
                self.rights.remove(key, running.renewer)

    def _forget_task_of(self, running: Running, wanted: Wanted) -> None:
        if wanted.descriptor is None:
            return
        task_id = wanted.descriptor.task_id
        left = [pair for pair in self._by_task.get(task_id, ()) if pair[1] is not wanted]
        if left:
            self._by_task[task_id] = left
        else:
            self._by_task.pop(task_id, None)

    # ------------------------------------------------------------ the store

    async def lend(self, task_id: str) -> AbstractContextManager[LentContent]:
        """Lends a whole content."""
        size, _, sealed = self._driver.engine.sealed_content(TaskId(task_id))
        if size < 0:
            raise DownloadError(Reason.UNKNOWN_TASK, f"no task {task_id[:16]} here")
        if not sealed:
            raise DownloadError(Reason.NOT_HELD, "the task is not whole yet")
        try:
            lent = await self._offload(self._store.lend, TaskId(task_id))
        except StoreError as error:
            raise DownloadError(error.reason, error.detail) from error
        return lent  # type: ignore[return-value]

    async def tasks(self) -> tuple[TaskSummary, ...]:
        """Every task in the store."""
        return tuple(
            TaskSummary(
                task_id=task.task_id,
                display_url=self._display.get(task.task_id, ""),
                size_bytes=task.descriptor.geometry.size_bytes,
                held_bytes=task.descriptor.geometry.held_bytes(task.held),
                sealed=self._driver.engine.sealed_content(task.task_id)[2],
                digest=task.descriptor.digest or task.computed_digest or None,
                pinned=bool(task.watchers),
            )
            for task in reversed(self._driver.engine.state.tasks.values())
        )

    async def swarm(self, digests: tuple[str, ...]) -> SwarmCounts:
        """What the swarm holds of contents. Raises DownloadError."""
        counted = await self._driver.count_holders(
            tuple(task_of_digest(digest, None) for digest in digests)
        )
        if counted.reason is not None:
            raise DownloadError(counted.reason, WHY_NOT_COUNTED[counted.reason])
        together = counted.answers[0] if len(counted.answers) == 1 else None
        tasks = [task for answer in counted.answers for task in answer.tasks]
        return SwarmCounts(
            hosts=None if together is None else together.hosts,
            whole_hosts=None if together is None else together.whole_hosts,
            contents=tuple(
                SwarmContent(
                    digest=digest,
                    hosts=task.hosts,
                    whole_hosts=task.whole_hosts,
                    covered_bytes=task.covered_bytes,
                    size_bytes=task.size_bytes,
                )
                for digest, task in zip(digests, tasks, strict=True)
            ),
        )

    async def remove(self, task_id: str) -> None:
        """Deletes a task. Raises DownloadError."""
        ended = await self._driver.remove(TaskId(task_id))
        if ended.reason is not None:
            raise DownloadError(ended.reason, ended.detail)

    def status(self) -> dict[str, Any]:
        """What the daemon is and does."""
        state = self._driver.engine.state
        usage = self._store.usage()
        return {
            **self._describe_daemon(),
            "scheduler_connected": state.scheduled,
            "tasks": len(state.tasks),
            "downloads": len(self._running),
            "parents": sum(1 for _ in state.live_links()),
            "children": len(state.children),
            "in_flight_bytes": state.in_flight_bytes,
            "store": {
                "capacity_bytes": usage.capacity_bytes,
                "used_bytes": usage.used_bytes,
                "reserved_bytes": usage.reserved_bytes,
                "free_bytes": usage.free_bytes,
            },
        }


def _tell(running: Running, reason: Reason) -> bool:
    """Asks the client for a fresh right."""
    try:
        running.queue.put_nowait(RightNeeded(reason=reason))
    except asyncio.QueueFull:
        # It has read nothing for thousands of events.
        return False
    return True
