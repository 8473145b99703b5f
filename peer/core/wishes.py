"""What local clients want, and how a source becomes a task.

A source is resolved when two things are known: what the task is (its descriptor), and that the
origin accepted this client's own credential for it. The first can come from the scheduler or from
an own stat; the second, for a client with a credential, only from an own stat, so that a cached
private content is never given to somebody who may not read it.
"""

from collections.abc import Callable

from peer.core.effects import DownloadEnded, SendToScheduler, SourceEnded, SourceResolved
from peer.core.events import Source, StatEnded, Unwant, Want
from peer.core.origin_reads import retry_delay_ns
from peer.core.proofs import Proofs
from peer.core.state import Collection, Download, PeerState, Task, TaskPhase, Wish
from peer.core.stats import Stats
from shoal.wire.control import (
    Demand,
    Described,
    HostMessage,
    Join,
    Leave,
    Member,
    SourceFailed,
    StatAnswer,
    TaskDescriptor,
)
from shoal.wire.errors import TRANSIENT_ORIGIN, Reason, ShoalError
from shoal.wire.geometry import choose_geometry
from shoal.wire.ids import CollectionId, SourceId, TaskId, task_of_source


class Wishes:
    """Keeps downloads, collections, and what sources are."""

    def __init__(
        self,
        state: PeerState,
        *,
        describe: Callable[[TaskDescriptor], Task],
        on_attached: Callable[[Task, Download], None],
        on_unwatched: Callable[[Task], None],
        on_collection_over: Callable[[Collection], None],
        on_false_content: Callable[[Task, str], None],
    ) -> None:
        self._state = state
        self._describe = describe
        self._on_attached = on_attached
        self._on_unwatched = on_unwatched
        self._on_collection_over = on_collection_over
        self._on_false_content = on_false_content
        self._proofs = Proofs(state)
        self._stats = Stats(
            state,
            self._proofs,
            task_of=self._task_of,
            is_wanted=self._is_wanted,
            on_scheduler=self.stat_wanted,
            on_yes=self._accepted,
            on_no=self._stat_failed,
        )
        self._descriptors: dict[SourceId, TaskDescriptor] = {}
        """What a source was last known to be."""
        self._resolve_at_ns: int | None = None

    # ------------------------------------------------------------ wanting

    def want(self, event: Want) -> None:
        """A client wants a collection."""
        limits = self._state.limits
        refusal: tuple[Reason, str] | None = None
        if self._state.shutting_down:
            refusal = Reason.SHUTTING_DOWN, "the daemon is stopping"
        elif len(self._state.downloads) >= limits.downloads_max:
            refusal = Reason.OVERLOADED, f"{limits.downloads_max} downloads are running already"
        if refusal is not None:
            self._state.emit(
                DownloadEnded(download_id=event.download_id, reason=refusal[0], detail=refusal[1])
            )
            return
        now_ns = self._state.now_ns
        download = Download(
            download_id=event.download_id,
            collection_id=event.collection_id,
            wishes={
                source.source_id: Wish(source=source, waiting_since_ns=now_ns)
                for source in event.sources
            },
            demand=event.demand,
            priority=event.priority,
            origin_allowed=event.origin_allowed,
        )
        self._state.downloads[event.download_id] = download
        collection = self._state.collections.get(event.collection_id)
        if collection is None:
            collection = Collection(event.collection_id, event.sources)
            self._state.collections[event.collection_id] = collection
        collection.downloads[event.download_id] = None
        if any(source.source_id in collection.given_up for source in event.sources):
            # Other downloads of it go on, and nobody would tell this one what became of it.
            collection.joined = False
        self._note_rights(collection)
        for wish in download.wishes.values():
            self._resolve(download, wish)
        if any(wish.task_id is None for wish in download.wishes.values()) or any(
            self._state.tasks[wish.task_id].phase is not TaskPhase.SEALED
            for wish in download.wishes.values()
            if wish.task_id is not None
        ):
            self._join(collection)
        self._end_if_over(download)

    def _end_if_over(self, download: Download) -> None:
        if download.ended or not all(wish.ended for wish in download.wishes.values()):
            return
        download.ended = True
        failed = [wish for wish in download.wishes.values() if wish.reason is not None]
        self._state.emit(
            DownloadEnded(
                download_id=download.download_id,
                reason=failed[0].reason if failed else None,
                detail=f"{len(failed)} of {len(download.wishes)} failed" if failed else "",
            )
        )
        self._leave_if_idle(download.collection_id)

    def _leave_if_idle(self, collection_id: CollectionId) -> None:
        collection = self._state.collections.get(collection_id)
        if collection is None:
            return
        if any(not self._state.downloads[number].ended for number in collection.downloads):
            return
        if collection.joined:
            collection.joined = False
            self._send(Leave(collection_id=collection_id))
        self._on_collection_over(collection)
        if not collection.downloads:
            del self._state.collections[collection_id]

    def unwant(self, event: Unwant) -> None:
        """A client is gone, or has what it wanted."""
        download = self._state.downloads.get(event.download_id)
        if download is None:
            return
        if not download.ended:
            for wish in download.wishes.values():
                if not wish.ended:
                    self._end_wish(download, wish, Reason.CANCELLED, "no longer wanted")
            self._end_if_over(download)
        del self._state.downloads[event.download_id]
        collection = self._state.collections[download.collection_id]
        del collection.downloads[event.download_id]
        for wish in download.wishes.values():
            if wish.task_id is None:
                self._drop_unwanted_stat(wish.source)
                continue
            task = self._state.tasks.get(wish.task_id)
            if task is not None:
                task.watchers.pop(event.download_id, None)
                if not task.watchers:
                    self._on_unwatched(task)
                else:
                    self._read_with_a_right_that_is_there(task, wish.source.source_id)
        self._leave_if_idle(download.collection_id)

    def _read_with_a_right_that_is_there(self, task: Task, source_id: SourceId) -> None:
        """Whose credential origin reads show may have left."""
        watching = [self._state.downloads[number] for number in task.watchers]
        credentials = [
            wish.source.credential
            for download in watching
            if (wish := download.wishes.get(source_id)) is not None
        ]
        if credentials and task.credential not in credentials:
            task.credential = credentials[0]

    def _note_rights(self, collection: Collection) -> None:
        """With a credential or without one a source is asked for, and served, in other ways: the
        scheduler has to know of the first one."""
        downloads = [self._state.downloads[number] for number in collection.downloads]
        for source in collection.sources:
            shown = source.source_id in collection.shown
            if not shown and not self._anonymous(source.source_id, downloads):
                collection.shown[source.source_id] = None
                collection.joined = False

    def _drop_unwanted_stat(self, source: Source) -> None:
        for download in self._state.downloads.values():
            wish = download.wishes.get(source.source_id)
            if wish is not None and not wish.ended:
                return
        self._stats.drop(source)

    def _is_wanted(self, source: Source) -> bool:
        for download in self._state.downloads.values():
            wish = download.wishes.get(source.source_id)
            if wish is not None and not wish.ended and wish.source.credential == source.credential:
                return True
        return False

    # ------------------------------------------------------------ resolving

    def _resolve(self, download: Download, wish: Wish) -> None:
        """Takes a wish as far as it can go now."""
        if wish.ended or wish.task_id is not None:
            return
        source = wish.source
        descriptor = self._descriptors.get(source.source_id)
        task = self._task_of(source)
        if descriptor is None and task is not None:
            descriptor = task.descriptor
        accepted = self._proofs.accepted(source) and not self._proofs.lacking(source, task)
        if descriptor is not None and accepted:
            self._attach(download, wish, descriptor)
            return
        if wish.retry_at_ns > self._state.now_ns:
            self._resolve_at(wish.retry_at_ns)
            return
        if not download.origin_allowed:
            if self._state.on_our_own:
                detail = "not held here, and this download may not use the origin"
                self._end_wish(download, wish, Reason.NO_SOURCE, detail)
            else:
                self._wake_after_grace()
            return
        # The scheduler's word is about all who want it together, or about one with a credential.
        collection = self._state.collections[download.collection_id]
        alone = bool(source.credential) or source.source_id in collection.shown
        if self._state.on_our_own or (alone and not accepted):
            self._stats.ask(source, for_scheduler=False)
        elif not self._state.scheduled:
            self._wake_after_grace()

    def _wake_after_grace(self) -> None:
        if not self._state.scheduled:
            self._resolve_at(self._state.session_lost_ns + self._state.limits.scheduler_grace_ns)

    def _resolve_at(self, when_ns: int) -> None:
        if self._resolve_at_ns is None or when_ns < self._resolve_at_ns:
            self._resolve_at_ns = when_ns
        self._state.wake_at(when_ns)

    def _task_of(self, source: Source) -> Task | None:
        descriptor = self._descriptors.get(source.source_id)
        task_id = source.task_id if descriptor is None else descriptor.task_id
        return None if task_id is None else self._state.tasks.get(task_id)

    def _attach(self, download: Download, wish: Wish, descriptor: TaskDescriptor) -> None:
        known = self._state.tasks.get(descriptor.task_id)
        if known is not None and known.descriptor.epoch > descriptor.epoch:
            descriptor = known.descriptor  # It was described before that epoch began.
        task = self._describe(descriptor)
        wish.task_id = task.task_id
        collection = self._state.collections[download.collection_id]
        number = next(
            n for n, s in enumerate(collection.sources) if s.source_id == wish.source.source_id
        )
        collection.tasks[number] = task.task_id
        collection.piece_bytes_max = max(
            collection.piece_bytes_max, task.descriptor.geometry.piece_length_bytes
        )
        task.flow, task.number = collection, number
        if not task.watchers:
            task.credential = wish.source.credential
            task.streaming = False
            task.origin_allowed = False
        task.watchers[download.download_id] = None
        task.priority = max(task.priority, download.priority)
        task.origin_allowed = task.origin_allowed or download.origin_allowed
        self._state.emit(
            SourceResolved(
                download_id=download.download_id,
                source_id=wish.source.source_id,
                descriptor=task.descriptor,
            )
        )
        self._on_attached(task, download)
        if task.phase is TaskPhase.SEALED:
            self._end_wish(download, wish, None, "")

    def _end_wish(self, download: Download, wish: Wish, reason: Reason | None, detail: str) -> None:
        wish.ended = True
        wish.reason = reason
        self._state.emit(
            SourceEnded(
                download_id=download.download_id,
                source_id=wish.source.source_id,
                reason=reason,
                detail=detail,
            )
        )

    def task_ended(self, task: Task, reason: Reason | None, detail: str) -> None:
        """A task is sealed or failed: every wish for it ends."""
        if reason is not None:
            self._descriptors.pop(task.descriptor.source_id, None)
            self._given_up(task.descriptor.source_id)
        for download_id in list(task.watchers):
            download = self._state.downloads[download_id]
            for wish in download.wishes.values():
                if wish.task_id == task.task_id and not wish.ended:
                    self._end_wish(download, wish, reason, detail)
            self._end_if_over(download)

    def _given_up(self, source_id: SourceId) -> None:
        for collection in self._state.collections.values():
            if collection.joined and any(one.source_id == source_id for one in collection.sources):
                collection.given_up[source_id] = None

    # ------------------------------------------------------------ stats

    def stat_wanted(self, source_id: SourceId) -> None:
        """The scheduler asks this host to ask the origin."""
        wanted = [
            (download, wish)
            for download in self._state.downloads.values()
            if (wish := download.wishes.get(source_id)) is not None
            and download.origin_allowed
            and not download.ended
        ]
        # With a credential, if the scheduler was told of one.
        for download, wish in wanted:
            shown = source_id in self._state.collections[download.collection_id].shown
            if bool(wish.source.credential) == shown:
                self._stats.ask(wish.source, for_scheduler=True)
                return
        if wanted:
            self._stats.ask(wanted[0][1].source, for_scheduler=True)
            return
        self._send(
            StatAnswer(
                source_id=source_id,
                outcome=Reason.CANCELLED,
                detail="no longer wanted by this host",
            )
        )

    def stat_ended(self, event: StatEnded) -> None:
        """The origin answered a stat, or could not."""
        self._stats.ended(event)

    def prove(self) -> None:
        """Asks origins again whose yes was no proof. At the end of every event."""
        self._stats.go_on()

    def _accepted(self, source: Source, event: StatEnded) -> None:
        if self._state.on_our_own:
            self._describe_ourselves(source, event)
        self._resolve_all(source.source_id)

    def _describe_ourselves(self, source: Source, event: StatEnded) -> None:
        try:
            geometry = choose_geometry(event.size_bytes, source.piece_length_bytes)
        except ShoalError as error:
            self._fail_source(source.source_id, Reason.ORIGIN_INVALID, str(error))
            return
        task_id = source.task_id
        if task_id is None:
            task_id = task_of_source(source.source_id, event.validator, event.size_bytes)
        self._descriptors[source.source_id] = TaskDescriptor(
            task_id=task_id,
            source_id=source.source_id,
            geometry=geometry,
            digest=source.digest,
            validator=event.validator,
            ranges=event.ranges,
        )

    def _stat_failed(self, source: Source, event: StatEnded) -> None:
        assert event.reason is not None
        limits = self._state.limits
        for download in list(self._state.downloads.values()):
            wish = download.wishes.get(source.source_id)
            if wish is None or wish.ended or wish.source.credential != source.credential:
                continue
            wish.failures += 1
            if event.reason in TRANSIENT_ORIGIN and wish.failures <= limits.origin_retries_max:
                delay_ns = retry_delay_ns(self._state, wish.failures, event.retry_after_ms)
                wish.retry_at_ns = self._state.now_ns + delay_ns
                self._resolve_at(wish.retry_at_ns)
            else:
                self._end_wish(download, wish, event.reason, event.detail)
                self._end_if_over(download)

    def _resolve_all(self, source_id: SourceId | None = None) -> None:
        for download in list(self._state.downloads.values()):
            if download.ended:
                continue
            if source_id is None:
                wishes = list(download.wishes.values())
            else:
                wishes = [download.wishes[source_id]] if source_id in download.wishes else []
            for wish in wishes:
                self._resolve(download, wish)
            self._end_if_over(download)

    # ------------------------------------------------------------ scheduler

    def _send(self, message: HostMessage) -> None:
        if self._state.session is not None:
            self._state.emit(
                SendToScheduler(session=self._state.session.number, messages=(message,))
            )

    def _join(self, collection: Collection) -> None:
        if self._state.session is None or collection.joined:
            return
        collection.joined = True
        collection.given_up.clear()
        downloads = [self._state.downloads[number] for number in collection.downloads]
        streaming = any(download.demand is Demand.STREAMING for download in downloads)
        background = all(download.demand is Demand.BACKGROUND for download in downloads)
        demand = Demand.BACKGROUND if background else Demand.WHOLE
        self._send(
            Join(
                collection_id=collection.collection_id,
                members=tuple(
                    Member(
                        source_id=source.source_id,
                        task_id=source.task_id,
                        digest=source.digest,
                        display_url=source.display_url,
                        piece_length_bytes=source.piece_length_bytes,
                        anonymous=source.source_id not in collection.shown,
                        origin_allowed=any(download.origin_allowed for download in downloads),
                    )
                    for source in collection.sources
                ),
                demand=Demand.STREAMING if streaming else demand,
                priority=max((download.priority for download in downloads), default=0),
            )
        )

    @staticmethod
    def _anonymous(source_id: SourceId, downloads: list[Download]) -> bool:
        return all(not download.wishes[source_id].source.credential for download in downloads)

    def rejoin(self) -> None:
        """A session began: say again what is wanted."""
        for collection in self._state.collections.values():
            collection.joined = False
            collection.shown.clear()
            self._note_rights(collection)
            if any(not self._state.downloads[number].ended for number in collection.downloads):
                self._join(collection)

    def described(self, message: Described) -> None:
        """The scheduler says which task a source is; it does so only to hosts whose right to it
        was proven, or for content that anybody may read."""
        descriptor = message.descriptor
        collection = self._state.collections.get(message.collection_id)
        if collection is None:
            return
        if not any(source.source_id == message.source_id for source in collection.sources):
            return
        if len(self._descriptors) > 2 * self._state.limits.collections_max:
            self._descriptors.pop(next(iter(self._descriptors)))
        self._descriptors[message.source_id] = descriptor
        downloads = [self._state.downloads[number] for number in collection.downloads]
        if message.source_id not in collection.shown:
            self._proofs.accept(
                message.source_id, "", has_digest=descriptor.digest is not None, proven=True
            )
        if descriptor.task_id in self._state.tasks:
            self._describe(descriptor)
        for download in downloads:
            wish = download.wishes[message.source_id]
            if wish.task_id is not None and not wish.ended and wish.task_id != descriptor.task_id:
                detail = "the origin has another version now: start the download again"
                self._end_wish(download, wish, Reason.ORIGIN_CHANGED, detail)
        self._resolve_all(message.source_id)

    def source_failed(self, message: SourceFailed) -> None:
        """The scheduler gave a source up."""
        task_id = self.task_of(message.source_id)
        task = None if task_id is None else self._state.tasks.get(task_id)
        if task is not None and message.reason is Reason.DIGEST_MISMATCH:
            self._on_false_content(task, message.detail)
        self._fail_source(message.source_id, message.reason, message.detail)

    def _fail_source(self, source_id: SourceId, reason: Reason, detail: str) -> None:
        self._descriptors.pop(source_id, None)
        self._given_up(source_id)
        for download in list(self._state.downloads.values()):
            wish = download.wishes.get(source_id)
            if wish is None or wish.ended:
                continue
            task = None if wish.task_id is None else self._state.tasks.get(wish.task_id)
            if task is not None and task.complete and reason is not Reason.DIGEST_MISMATCH:
                continue  # All its bytes are here: the check will tell.
            self._end_wish(download, wish, reason, detail)
            self._end_if_over(download)

    def tick(self) -> None:
        """Time passed: retries come due, and a lost scheduler's grace may be over."""
        if self._resolve_at_ns is not None and self._resolve_at_ns <= self._state.now_ns:
            self._resolve_at_ns = None
            self._resolve_all()

    def session_lost(self) -> None:
        """The scheduler is gone: whatever waits for it helps itself after the grace time."""
        for collection in self._state.collections.values():
            collection.joined = False
        self._wake_after_grace()

    def task_of(self, source_id: SourceId) -> TaskId | None:
        """Which task a source was last known to be."""
        descriptor = self._descriptors.get(source_id)
        return descriptor.task_id if descriptor is not None else None
