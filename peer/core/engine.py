"""The peer's decisions, as one pure state machine: `handle(event) -> effects`.

Production and the simulator drive this same object. It reads no clock, does no IO, logs nothing
and never sees a piece's bytes. Its parts share one `PeerState`; this module only routes events
to them and lets them act on what changed.
"""

from collections.abc import Callable
from typing import Any

from peer.core import events as ev
from peer.core.download import OPEN_PHASES, TaskKeeper
from peer.core.effects import AnyEffect, Noted, RemoveEnded, RemoveTask, SendToScheduler, Withdraw
from peer.core.feeds import Feeds
from peer.core.fetching import Fetcher
from peer.core.limits import PeerLimits
from peer.core.origin_reads import OriginReads
from peer.core.parents import ParentTable
from peer.core.questions import Questions
from peer.core.reports import Outbox
from peer.core.state import Collection, Download, Link, PeerState, Session, Task, TaskPhase
from peer.core.uploads import Uploads
from peer.core.validation import validate
from peer.core.wishes import Wishes
from shoal.wire import control as msg
from shoal.wire.control import HostInfo
from shoal.wire.errors import Reason
from shoal.wire.ids import Dice, HostId, RequestId, TaskId
from shoal.wire.limits import MILLISECOND_NS


class PeerEngine:
    """One host's decisions.

    `limits` and `dice` are injected; `scheduler_configured` says whether to wait for a scheduler
    before helping oneself. The first event must be `StoreLoaded`.
    """

    def __init__(
        self, *, host: HostInfo, limits: PeerLimits, dice: Dice, scheduler_configured: bool
    ) -> None:
        self.state = PeerState(
            host=host, limits=limits, dice=dice, scheduler_configured=scheduler_configured
        )
        self._outbox = Outbox(self.state)
        self._keeper = TaskKeeper(
            self.state,
            self._outbox,
            on_change=self._task_changed,
            on_end=self._task_ended,
            on_false=self._parent_false,
            on_abandon=self._task_over,
        )
        self._parents = ParentTable(self.state, on_change=self._link_changed)
        self._feeds = Feeds(self.state, self._parents)
        self._fetcher = Fetcher(
            self.state,
            self._keeper,
            self._parents,
            feeds=self._feeds,
            on_local_failure=self._local_failure,
        )
        self._reads = OriginReads(
            self.state,
            self._keeper,
            self._outbox,
            on_failure=self._task_failed,
            on_local_failure=self._local_failure,
            on_read=self._origin_brought,
            ahead_units=self._feeds.ahead_units,
        )
        self._uploads = Uploads(self.state, self._keeper)
        self._wishes = Wishes(
            self.state,
            describe=self._keeper.describe,
            on_attached=self._attached,
            on_unwatched=self._unwatched,
            on_collection_over=self._collection_over,
            on_false_content=self._keeper.false_content,
        )
        self._questions = Questions(self.state, self._outbox)
        self._removals: dict[TaskId, list[RequestId]] = {}
        self._old_plans_due_ns: int | None = None
        self._handlers: dict[type[Any], Callable[[Any], None]] = self._event_handlers()
        self._message_handlers: dict[type[Any], Callable[[Any], None]] = self._scheduler_handlers()

    def handle(self, event: ev.AnyEvent) -> list[AnyEffect]:
        """Takes one event in; returns what is to be done, in order."""
        state = self.state
        assert event.now_ns >= state.now_ns, "time runs forward"
        state.now_ns = event.now_ns
        state.forget_past_wake_ups()
        self._handlers[type(event)](event)
        self._drop_old_plans()
        self._wishes.prove()
        self._parents.refresh_if_stale()
        self._reads.fill()
        self._fetcher.fill()
        self._uploads.serve_awaited()
        self._questions.end_overdue()
        self._keeper.flush_if_due()
        self._outbox.flush_if_due()
        effects, state.effects = state.effects, []
        return effects

    def next_deadline_ns(self) -> int | None:
        """When a `Tick` is due at the latest; None: never, until something else happens."""
        return self.state.next_deadline_ns()

    def validate(self) -> None:
        """Checks every invariant, O(everything). AssertionError names the one that is broken."""
        validate(self.state, self._keeper, self._reads, self._uploads)
        self._questions.validate()

    def progress(self, task_id: TaskId) -> tuple[int, int | None, int, int]:
        """Of a task: bytes held, its size, and bytes read from the origin and from parents since
        the start. Zeros for a task that is not known."""
        task = self.state.tasks.get(task_id)
        if task is None:
            return 0, None, 0, 0
        geometry = task.descriptor.geometry
        held = geometry.held_bytes(task.held)
        return held, geometry.size_bytes, task.origin_bytes, task.peer_bytes

    def sealed_content(self, task_id: TaskId) -> tuple[int, str, bool]:
        """Of a task: its size (-1 if not known here), its digest, and whether it is sealed."""
        task = self.state.tasks.get(task_id)
        if task is None:
            return -1, "", False
        size = task.descriptor.geometry.size_bytes
        digest = task.descriptor.digest or task.computed_digest
        return -1 if size is None else size, digest, task.phase is TaskPhase.SEALED

    def story(self, subject: str) -> list[tuple[int, str]]:
        """What happened to a task (by its id), as (now_ns, text), oldest first."""
        return list(self.state.stories.get(subject, ()))

    # ------------------------------------------------------------ routing

    def _event_handlers(self) -> dict[type[Any], Callable[[Any], None]]:
        return {
            ev.Want: self._wishes.want,
            ev.Unwant: self._wishes.unwant,
            ev.Reading: self._reading,
            ev.Remove: self._remove,
            ev.CountHolders: self._questions.ask,
            ev.StoreLoaded: self._loaded,
            ev.TaskOpened: self._opened,
            ev.TaskOpenFailed: lambda e: self._keeper.open_failed(e.task_id, e.reason, e.detail),
            ev.TaskSealed: self._keeper.sealed,
            ev.ContentHashed: self._keeper.hashed,
            ev.StoreFailed: self._store_failed,
            ev.TaskRemoved: self._removed,
            ev.SchedulerUp: self._scheduler_up,
            ev.SchedulerDown: self._scheduler_down,
            ev.FromScheduler: self._from_scheduler,
            ev.ParentConnected: self._parents.connected,
            ev.ParentConnectFailed: self._connect_failed,
            ev.ParentClosed: self._parent_closed,
            ev.ParentOpened: self._parents.opened,
            ev.ParentRefused: self._parents.refused,
            ev.ParentHave: self._parents.have,
            ev.ParentWithdrew: self._parents.withdrew,
            ev.ParentActive: self._parents.active,
            ev.FetchEnded: self._fetcher.ended,
            ev.ChildOpened: self._uploads.opened,
            ev.ChildClosedTask: self._uploads.closed_task,
            ev.ChildRequested: self._uploads.requested,
            ev.ChildCancelled: self._uploads.cancelled,
            ev.ChildGone: self._uploads.gone,
            ev.ServeEnded: self._uploads.served,
            ev.StatEnded: self._stat_ended,
            ev.OriginPieceStored: self._reads.piece_stored,
            ev.OriginReadEnded: self._reads.read_ended,
            ev.Tick: self._tick,
            ev.ShutDown: self._shut_down,
        }

    def _scheduler_handlers(self) -> dict[type[Any], Callable[[Any], None]]:
        return {
            msg.Welcome: self._welcome,
            msg.ReportInterval: self._report_interval,
            msg.Described: self._wishes.described,
            msg.StatWanted: lambda m: self._wishes.stat_wanted(m.source_id),
            msg.Parents: self._parents_named,
            msg.SwarmToken: self._token,
            msg.Leases: self._leases,
            msg.Digests: self._keeper.listed,
            msg.DigestsWanted: self._digests_wanted,
            msg.Assigned: self._assigned,
            msg.Directory: self._directory,
            msg.SwarmMap: self._swarm_map,
            msg.SourceFailed: self._wishes.source_failed,
            msg.EpochVoided: self._epoch_voided,
            msg.HolderCounts: self._questions.answered,
            msg.Redirected: self._redirected,
        }

    # ------------------------------------------------------------ what parts tell one another

    def _task_changed(self, task: Task) -> None:
        self._fetcher.task_changed(task)
        self._reads.changed()
        self._parents.refresh()

    def _link_changed(self, link: Link) -> None:
        self._fetcher.link_changed(link)

    def _task_over(self, task: Task) -> None:
        """All bytes are here, or the task failed: nothing more is fetched for it."""
        self._feeds.task_over(task)
        self._fetcher.cancel_task(task)
        self._reads.task_over(task)
        self._parents.finished(task)

    def _task_ended(self, task: Task, reason: Reason | None, detail: str) -> None:
        self._wishes.task_ended(task, reason, detail)

    def _task_failed(self, task: Task, reason: Reason, detail: str) -> None:
        self._keeper.fail(task, reason, detail)

    def _local_failure(self, task: Task, reason: Reason, detail: str) -> None:
        self._state_note("disk", detail, task, reason)
        self._keeper.fail(task, reason, detail)

    def _state_note(self, kind: str, text: str, task: Task, reason: Reason) -> None:
        self.state.emit(Noted(kind=kind, text=text, task_id=task.task_id, reason=reason))

    def _parent_false(self, host_id: HostId, reason: Reason) -> None:
        self._parents.strike(host_id, reason)

    def _origin_brought(self, task: Task, pieces: int) -> None:
        self._feeds.came(task, pieces)
        self._fetcher.cancel_pieces(task, pieces)
        self._reads.changed()

    def _attached(self, task: Task, download: Download) -> None:
        if download.demand is msg.Demand.STREAMING:
            self._keeper.start_streaming(task)
        self._task_changed(task)

    def _reading(self, event: ev.Reading) -> None:
        """What somebody waits for comes before what nobody waits for."""
        task = self.state.tasks.get(event.task_id)
        if task is None or not task.streaming:
            return
        if not self._fetcher.read_first(task, event):
            return
        self._task_changed(task)
        if task.flow is not None:
            self._fetcher.map_changed(task.flow)

    def _unwatched(self, task: Task) -> None:
        """Nobody here wants the task any more; what is held of it stays and is served on."""
        task.streaming = False
        task.readers.clear()
        task.urgent = 0
        self._uploads.let_go(task.task_id)
        if task.phase in (TaskPhase.ACTIVE, TaskPhase.OPENING):
            self._task_over(task)
        elif task.phase is TaskPhase.FAILED and not task.held:
            # Nothing of it is worth keeping: its room is given back. What comes under its name
            # later knows nothing of what this one lost.
            self._outbox.tell_loss(task)
            task.phase = TaskPhase.REMOVING
            self.state.emit(RemoveTask(task_id=task.task_id))

    def _collection_over(self, collection: Collection) -> None:
        self._feeds.forget(collection)
        self._parents.forget_collection(collection)

    # ------------------------------------------------------------ store

    def _loaded(self, event: ev.StoreLoaded) -> None:
        assert not self.state.loaded, "the store loads once"
        self.state.loaded = True
        self.state.generation = event.generation
        self.state.session_lost_ns = event.now_ns
        self._drop_plans_after_grace()
        for stored in event.tasks:
            self._keeper.load(stored)

    def _opened(self, event: ev.TaskOpened) -> None:
        self._keeper.opened(event)
        self._reads.changed()
        self._parents.refresh()

    def _store_failed(self, event: ev.StoreFailed) -> None:
        task = self.state.tasks.get(event.task_id)
        if task is not None:
            self._local_failure(task, event.reason, event.detail)

    def _remove(self, event: ev.Remove) -> None:
        task = self.state.tasks.get(event.task_id)
        if task is None:
            self._remove_ended(event.request_id, Reason.UNKNOWN_TASK, "no such task here")
            return
        if task.watchers or task.phase is TaskPhase.OPENING:
            self._remove_ended(event.request_id, Reason.OVERLOADED, "a download needs it")
            return
        if self._uploads.task_in_use(event.task_id):
            self._remove_ended(event.request_id, Reason.OVERLOADED, "it is being served")
            return
        self._removals.setdefault(event.task_id, []).append(event.request_id)
        if task.phase is TaskPhase.REMOVING:
            return
        # The scheduler may have given it a lease although nobody here wants it any more.
        self._task_over(task)
        task.phase = TaskPhase.REMOVING
        # Withdraw, then delete: nobody may be promised what is about to go.
        self._outbox.send(msg.Withdrawn(task_id=event.task_id, generation=self.state.generation))
        listeners = [
            child for child in self.state.children.values() if event.task_id in child.tasks
        ]
        for child in listeners:
            del child.tasks[event.task_id]
        connections = tuple(child.connection_id for child in listeners)
        if connections and task.told:
            self.state.emit(
                Withdraw(task_id=event.task_id, gone=task.told, connection_ids=connections)
            )
        task.told = 0
        self.state.emit(RemoveTask(task_id=event.task_id))

    def _remove_ended(self, request_id: RequestId, reason: Reason | None, detail: str) -> None:
        self.state.emit(RemoveEnded(request_id=request_id, reason=reason, detail=detail))

    def _removed(self, event: ev.TaskRemoved) -> None:
        task = self.state.tasks.get(event.task_id)
        for request_id in self._removals.pop(event.task_id, ()):
            self._remove_ended(request_id, None, "")
        if task is None or task.phase is not TaskPhase.REMOVING:
            return
        descriptor = task.next_descriptor or task.descriptor
        watchers = task.watchers
        del self.state.tasks[event.task_id]
        self.state.tokens.pop(event.task_id, None)
        if watchers:
            # Somebody wished for it while it was going: begin again.
            fresh = self._keeper.describe(descriptor)
            fresh.watchers = watchers
            fresh.origin_allowed = task.origin_allowed
            fresh.credential = task.credential
            fresh.streaming = task.streaming
            fresh.priority = task.priority
        else:
            self.state.stories.pop(event.task_id, None)

    # ------------------------------------------------------------ scheduler

    def _scheduler_up(self, event: ev.SchedulerUp) -> None:
        self.state.session = Session(number=event.session)
        self._questions.session_lost()
        self._outbox.reset()
        hello = self._outbox.hello(self._reads.held_leases())
        self.state.emit(SendToScheduler(session=event.session, messages=(hello,)))
        self._wishes.rejoin()
        self._outbox.restate()

    def _scheduler_down(self, event: ev.SchedulerDown) -> None:
        session = self.state.session
        if session is None or session.number != event.session:
            return
        self.state.session = None
        self._outbox.reset()
        self._keeper.judge_lost()
        for collection in self.state.collections.values():
            collection.plan_is_old = True
        self._questions.session_lost()
        self._wishes.session_lost()
        if session.ready:
            self._begin_grace()

    def _begin_grace(self) -> None:
        """From now on there is no scheduler. A stream on which none ever spoke does not count."""
        now_ns = self.state.session_lost_ns = self.state.now_ns
        jitter_ns = int(self.state.dice.random() * self.state.limits.orphan_origin_jitter_ns)
        for task in self.state.tasks.values():
            task.origin_retry_at_ns = max(
                task.origin_retry_at_ns,
                now_ns + self.state.limits.scheduler_grace_ns + jitter_ns,
            )
        self.state.wake_at(now_ns + self.state.limits.scheduler_grace_ns + jitter_ns)
        self._drop_plans_after_grace()

    def _drop_plans_after_grace(self) -> None:
        self._old_plans_due_ns = self.state.now_ns + self.state.limits.scheduler_grace_ns
        self.state.wake_at(self._old_plans_due_ns)

    def _drop_old_plans(self) -> None:
        """The scheduler is gone for long, or has none for what the last one had: peers help
        themselves."""
        if self._old_plans_due_ns is None or self.state.now_ns < self._old_plans_due_ns:
            return
        self._old_plans_due_ns = None
        for collection in self.state.collections.values():
            if collection.plan_is_old and collection.feeds:
                self._feeds.forget(collection)
                self._fetcher.plan_over(collection)
            if self.state.session is not None and self.state.session.ready:
                self._parents.forget_unnamed(collection, self.state.session.number)
        self._parents.refresh()
        self._keeper.announce_everything()
        for task in self.state.tasks.values():
            self._fetcher.task_changed(task)

    def _from_scheduler(self, event: ev.FromScheduler) -> None:
        session = self.state.session
        if session is None or session.number != event.session:
            return
        for message in event.messages:
            self._message_handlers[type(message)](message)

    def _welcome(self, message: msg.Welcome) -> None:
        assert self.state.session is not None
        self.state.session.ready = True
        self.state.session.scheduler_id = message.scheduler_id
        self._keeper.take_back_unconfirmed()
        self._drop_plans_after_grace()
        self._report_interval(message)

    def _report_interval(self, message: msg.Welcome | msg.ReportInterval) -> None:
        self.state.report_interval_ns = max(
            10 * MILLISECOND_NS, message.report_interval_ms * MILLISECOND_NS
        )

    def _parents_named(self, message: msg.Parents) -> None:
        collection = self.state.collections.get(message.collection_id)
        if collection is not None:
            self._parents.named(message, collection)
            self._feeds.parents_named(collection)

    def _assigned(self, message: msg.Assigned) -> None:
        collection = self.state.collections.get(message.collection_id)
        if collection is not None:
            began = not collection.feeds
            self._feeds.assigned(message, collection)
            if began:
                self._parents.refresh()
            self._fetcher.reassigned(collection)

    def _directory(self, message: msg.Directory) -> None:
        collection = self.state.collections.get(message.collection_id)
        if collection is not None:
            self._feeds.directory(message, collection)

    def _swarm_map(self, message: msg.SwarmMap) -> None:
        collection = self.state.collections.get(message.collection_id)
        if collection is not None:
            self._feeds.mapped(message, collection)
            self._fetcher.map_changed(collection)

    def _token(self, message: msg.SwarmToken) -> None:
        self._uploads.trust(message.task_id, message.token, message.ttl_ms)
        self._parents.refresh()

    def _leases(self, message: msg.Leases) -> None:
        for number in message.revoked:
            self._reads.revoked(number)
        for lease in message.granted:
            self._reads.granted(lease)

    def _digests_wanted(self, message: msg.DigestsWanted) -> None:
        task = self.state.tasks.get(message.task_id)
        if task is not None and task.phase in OPEN_PHASES:
            self._outbox.send(*self._outbox.digest_lists(task))

    def _epoch_voided(self, message: msg.EpochVoided) -> None:
        task = self.state.tasks.get(message.task_id)
        for liar in message.liars:
            self.state.emit(
                Noted(
                    kind="blamed",
                    text="stated wrong piece digests",
                    host_id=liar,
                    task_id=message.task_id,
                    reason=Reason.PEER_CORRUPT,
                )
            )
            self._parents.strike(liar, Reason.PEER_CORRUPT)
        if task is not None:
            self._keeper.new_epoch(task, message.epoch)

    def _redirected(self, message: msg.Redirected) -> None:
        self.state.emit(Noted(kind="scheduler-refused", text=message.detail, reason=message.reason))

    # ------------------------------------------------------------ the rest

    def _parent_closed(self, event: ev.ParentClosed) -> None:
        link = self.state.links_by_connection.get(event.connection_id)
        if link is not None:
            self._feeds.drop_pulls(link)
            for collection_id in link.collections:
                if collection_id in self.state.collections:
                    self._fetcher.map_changed(self.state.collections[collection_id])
        self._parents.closed(event)
        # Its requests have ended; what only it held may have to come from the origin.
        self._reads.changed()

    def _connect_failed(self, event: ev.ParentConnectFailed) -> None:
        link = self.state.links.get(event.host_id)
        if link is not None:
            self._feeds.drop_pulls(link)
        self._parents.connect_failed(event)

    def _stat_ended(self, event: ev.StatEnded) -> None:
        self._wishes.stat_ended(event)
        self._reads.changed()

    def _tick(self, _event: ev.Tick) -> None:
        self._parents.tick()
        self._fetcher.tick()
        self._wishes.tick()
        self._reads.tick()

    def _shut_down(self, _event: ev.ShutDown) -> None:
        self.state.shutting_down = True
        self._uploads.let_go()
        for download in list(self.state.downloads.values()):
            if not download.ended:
                self._wishes.unwant(
                    ev.Unwant(now_ns=self.state.now_ns, download_id=download.download_id)
                )
