"""The scheduler's decisions, as one pure state machine: `handle(event) -> effects`.

Production and the simulator drive this same object. It reads no clock, does no IO and logs
nothing. Hosts come and go by sessions; all state is soft and rebuilt from their inventories.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from scheduler.core import events as ev
from scheduler.core.counting import HolderCounter
from scheduler.core.effects import AnyEffect, Noted
from scheduler.core.epochs import Epochs
from scheduler.core.graph import graphs_of
from scheduler.core.limits import SchedulerLimits
from scheduler.core.membership import Membership
from scheduler.core.origin_lease import LeaseOffice
from scheduler.core.sources import SourceBook
from scheduler.core.state import Collection, Host, SchedulerState, Task, Waiting
from scheduler.core.swarm import Swarms
from scheduler.core.validation import validate
from shoal.wire import control as msg
from shoal.wire.errors import Reason
from shoal.wire.geometry import Geometry, choose_geometry
from shoal.wire.ids import Dice, HostId, SourceId, TaskId

REFUSED_RETRY_MS = 5_000
BLAMES_MAX = 3
"""Reports of wrong content after which nothing that a host claims to hold counts."""


class SchedulerEngine:
    """All decisions of one scheduler.

    `token_source` gives a fresh secret of 32 bytes (injected: a core draws no secrets);
    `piece_digest` is the algorithm of piece digests for new tasks; `cut(size, wanted piece length)`
    fixes the geometry of new tasks (the simulator of large swarms cuts more coarsely).
    """

    def __init__(
        self,
        *,
        limits: SchedulerLimits,
        dice: Dice,
        scheduler_id: str,
        token_source: Callable[[], bytes],
        piece_digest: str = "xxh3-128",
        cut: Callable[[int | None, int | None], Geometry] = choose_geometry,
    ) -> None:
        self.state = SchedulerState(
            limits=limits,
            dice=dice,
            scheduler_id=scheduler_id,
            token_source=token_source,
            piece_digest=piece_digest,
            cut=cut,
        )
        self._leases = LeaseOffice(
            self.state,
            on_hopeless=self._hopeless,
            on_unproven=lambda source, host_id: self._sources.prove(source, host_id),
            roots_of=lambda collection: self._swarms.roots_of(collection),
            on_slow=self._slow_reader,
        )
        self._swarms = Swarms(self.state, on_roots=self._roots_changed)
        self._sources = SourceBook(
            self.state,
            on_served=self._served,
            on_gone=self._gone,
            on_right=self._leases.source_checked,
            on_no_right=self._leases.exclude,
            on_replaced=self._replaced,
        )
        self._epochs = Epochs(
            self.state,
            leases=self._leases,
            swarms=self._swarms,
            on_hopeless=self._hopeless,
            on_host_false=self._host_false,
        )
        self._membership = Membership(
            self.state,
            leases=self._leases,
            epochs=self._epochs,
            sources=self._sources,
            swarms=self._swarms,
            on_message=self._message,
            on_leave=self._leave,
            on_idle=self._forget_if_idle,
        )
        self._counter = HolderCounter(self.state)
        self._handlers: dict[type[Any], Callable[[Any], None]] = {
            ev.HostConnected: self._membership.connected,
            ev.HostDisconnected: self._membership.disconnected,
            ev.FromHost: self._membership.from_host,
            ev.Tick: self._tick,
        }
        self._message_handlers: dict[type[Any], Callable[[HostId, Any], None]] = {
            msg.Join: self._join,
            msg.Leave: self._leave,
            msg.StatAnswer: self._sources.answered,
            msg.Report: self._report,
            msg.SizeFound: self._size_found,
            msg.Checked: self._epochs.checked,
            msg.Withdrawn: self._withdrawn,
            msg.DigestList: self._digest_list,
            msg.HoldersWanted: self._counter.wanted,
        }

    def handle(self, event: ev.AnyEvent) -> list[AnyEffect]:
        """Takes one event in; returns what is to be done, in order."""
        assert event.now_ns >= self.state.now_ns, "time runs forward"
        self.state.now_ns = event.now_ns
        self.state.forget_past_wake_ups()
        self._handlers[type(event)](event)
        self._do_what_is_due()
        self._leases.grant_all()
        self._swarms.publish()
        self._leases.grant_all()
        return self.state.take_effects()

    def next_deadline_ns(self) -> int | None:
        """When a `Tick` is due at the latest; None: never, until something else happens."""
        return self.state.next_deadline_ns()

    def validate(self) -> None:
        """Checks every invariant, O(everything). AssertionError names the one that is broken."""
        validate(self.state, self._swarms.boards)

    def story(self, subject: str) -> list[tuple[int, str]]:
        """What happened to a task or source (by its id), as (now_ns, text), oldest first."""
        return list(self.state.stories.get(subject, ()))

    def counters(self) -> dict[str, int]:
        """Sizes and sums for metrics."""
        state = self.state
        return {
            "hosts": len(state.hosts),
            "hosts_connected": sum(1 for h in state.hosts.values() if h.session is not None),
            "collections": len(state.collections),
            "tasks": len(state.tasks),
            "leases_active": len(state.leases),
            "leases_granted_total": state.leases_granted,
            "origin_stats_total": state.stats_asked,
        }

    def graph(self) -> list[dict[str, object]]:
        """Who feeds whom in each collection, as node-link dicts that are the caller's own."""
        return graphs_of(self._swarms.boards)

    def _message(self, host_id: HostId, message: msg.HostMessage) -> None:
        self._message_handlers[type(message)](host_id, message)

    # ------------------------------------------------------------ collections

    def _join(self, host_id: HostId, join: msg.Join) -> None:
        host = self.state.hosts[host_id]
        limits = self.state.limits
        if (
            join.collection_id not in host.collections
            and len(host.collections) >= limits.collections_per_host_max
        ) or (
            join.collection_id not in self.state.collections
            and len(self.state.collections) >= limits.collections_max
        ):
            self.state.send(
                host_id,
                msg.Redirected(
                    reason=Reason.OVERLOADED,
                    detail="too many collections",
                    retry_after_ms=REFUSED_RETRY_MS,
                ),
            )
            return
        if join.collection_id in host.collections:
            self._leave(host_id, msg.Leave(collection_id=join.collection_id))
        collection = self.state.collections.get(join.collection_id)
        if collection is None:
            collection = Collection(
                collection_id=join.collection_id,
                sources=tuple(member.source_id for member in join.members),
            )
            self.state.collections[join.collection_id] = collection
        host.collections[join.collection_id] = None
        collection.members[host_id] = None
        for member in join.members:
            self._sources.wait(host_id, Waiting(collection.collection_id, member))

    def _leave(self, host_id: HostId, leave: msg.Leave, *, keep_leases: bool = False) -> None:
        collection = self.state.collections.get(leave.collection_id)
        if collection is None:
            return
        self.state.hosts[host_id].collections.pop(leave.collection_id, None)
        self._swarms.leave(collection, host_id)
        for source_id in collection.sources:
            source = self.state.sources.get(source_id)
            waiting = source.waiting.get(host_id) if source is not None else None
            if waiting is not None and waiting.collection_id == leave.collection_id:
                if keep_leases:
                    self._forget_waiting(host_id, source_id)
                else:
                    self._sources.leave(host_id, source_id)
        self._forget_if_empty(collection)

    def _forget_waiting(self, host_id: HostId, source_id: SourceId) -> None:
        source = self.state.sources[source_id]
        waiting = source.waiting.pop(host_id)
        source.asked.pop(host_id, None)
        task = None if waiting.task_id is None else self.state.tasks.get(waiting.task_id)
        if task is not None:
            task.wanted.pop(host_id, None)

    def _forget_if_empty(self, collection: Collection) -> None:
        if collection.members:
            return
        del self.state.collections[collection.collection_id]
        for _, task in self.state.tasks_of(collection):
            task.collections.pop(collection.collection_id, None)
        for source_id in collection.sources:
            self._forget_source_if_idle(source_id)

    def _forget_source_if_idle(self, source_id: SourceId) -> None:
        source = self.state.sources.get(source_id)
        if source is None or source.waiting:
            return
        task = None if source.task_id is None else self.state.tasks.get(source.task_id)
        if task is not None:
            self._forget_if_idle(task)
        else:
            self._forget_source(source_id)

    def _forget_if_idle(self, task: Task) -> None:
        if task.holders or task.wanted:
            return
        source = self.state.sources.get(task.descriptor.source_id)
        if source is None or source.task_id != task.task_id:
            self._forget_task(task)
        elif not source.waiting:
            self._forget_task(task)
            self._forget_source(source.source_id)

    def _forget_source(self, source_id: SourceId) -> None:
        del self.state.sources[source_id]
        self.state.stories.pop(source_id, None)

    def _replaced(self, task_id: TaskId) -> None:
        """A source leads to this task no longer: it stays only while somebody has or fetches it."""
        task = self.state.tasks.get(task_id)
        if task is not None:
            self._forget_if_idle(task)

    def _forget_task(self, task: Task) -> None:
        for reader in task.readers.values():
            for number in reader.leases:
                self.state.leases.pop(number, None)
        del self.state.tasks[task.task_id]
        self._swarms.forget(task.task_id)
        self.state.stories.pop(task.task_id, None)

    def _served(self, task: Task, host_id: HostId, waiting: Waiting) -> None:
        self._swarms.serve(task, host_id, waiting)
        reader = task.readers.get(host_id)
        if reader is not None:
            reader.excluded = False
            reader.failures = 0
        if reader is not None or len(task.wanted) <= self.state.limits.mesh_hosts_max:
            self._leases.changed(task)
        # In a large swarm it is one more who may read: looked at for all newcomers together.

    def _roots_changed(self, collection: Collection) -> None:
        for _, task in self.state.tasks_of(collection):
            if task.wanted:
                self._leases.changed(task)

    def _slow_reader(self, collection: Collection, host_id: HostId) -> None:
        if not self._swarms.slow_reader(collection, host_id):
            return
        for _, task in self.state.tasks_of(collection):
            self._leases.release(task, host_id)

    def _gone(self, task: Task, host_id: HostId) -> None:
        task.wanted.pop(host_id, None)
        self._leases.release(task, host_id)
        self._leases.changed(task)
        source = self.state.sources.get(task.descriptor.source_id)
        if source is None or source.task_id != task.task_id:
            self._forget_if_idle(task)

    def _hopeless(self, task: Task, reason: Reason, detail: str) -> None:
        """What is missing can be had from nobody."""
        self.state.effects.append(
            Noted(kind="task-failed", text=detail, task_id=task.task_id, reason=reason)
        )
        source = self.state.sources.get(task.descriptor.source_id)
        task.origin_failures = 0
        if source is not None:
            self._sources.fail(source, reason, detail, task.task_id)

    # ------------------------------------------------------------ reports

    def _report(self, host_id: HostId, report: msg.Report) -> None:
        host = self.state.hosts[host_id]
        host.free_upload_slots = report.free_upload_slots
        touched: dict[str, Task] = {}
        for statement in report.statements:
            self._leases.stated(host_id, statement)
            task = self.state.tasks.get(statement.task_id)
            if task is not None:
                touched[task.task_id] = task
        for progress in report.progress:
            task = self.state.tasks.get(progress.task_id)
            if task is not None and progress.epoch == task.descriptor.epoch:
                size = task.descriptor.geometry.size_bytes
                new = progress.new
                if size is not None:
                    new &= task.descriptor.geometry.all_pieces
                self._swarms.holds(task, host_id, new)
                # What a known liar claims from now on is believed no more than what it claimed.
                if len(host.blamed) >= BLAMES_MAX:
                    self._doubt(task, host, new)
                if progress.lost:
                    self._swarms.lost_some(task, host_id, progress.lost)
                    self._leases.changed(task)
        for task in touched.values():
            self._swarms.listed(task)
        for end in report.lease_ends:
            self._leases.ended(host_id, end)
        for blame in report.blames:
            self._blamed(host_id, blame)

    def _doubt(self, task: Task, holder: Host, pieces: int) -> None:
        """What a host claims of a task may not be so."""
        if self._swarms.doubt(task, holder.host_id, pieces):
            self._leases.changed(task)

    def _blamed(self, host_id: HostId, blame: msg.Blame) -> None:
        blamed = self.state.hosts.get(blame.host_id)
        if blamed is None:
            return
        task = self.state.tasks.get(blame.task_id)
        if task is not None and blame.host_id != host_id:
            # One bad piece may have gone to many.
            if blame.reason is not Reason.PEER_STALLED and len(blamed.blamed) < BLAMES_MAX:
                blamed.blamed[task.task_id, blame.piece] = None
            self._doubt(task, blamed, 1 << blame.piece)
            if len(blamed.blamed) >= BLAMES_MAX:
                # One who lied often is not believed in anything.
                for task_id in blamed.holdings:
                    self._doubt(self.state.tasks[task_id], blamed, -1)
        if blame.reason is Reason.PEER_STALLED:
            return
        self.state.effects.append(
            Noted(
                kind="blamed",
                text=f"{host_id} got piece {blame.piece} from it with wrong content",
                host_id=blame.host_id,
                task_id=blame.task_id,
                reason=blame.reason,
            )
        )

    def _size_found(self, host_id: HostId, found: msg.SizeFound) -> None:
        task = self.state.tasks.get(found.task_id)
        lease = self.state.leases.get(found.lease_number)
        if task is None or task.descriptor.geometry.size_bytes is not None:
            return
        if lease is None or lease.host_id != host_id:
            return
        task.descriptor = replace(
            task.descriptor, geometry=task.descriptor.geometry.sealed(found.size_bytes)
        )
        # What its reader has read and not yet stated must not be leased to others meanwhile.
        lease.pieces = task.descriptor.geometry.all_pieces & ~task.covered & ~task.leased
        task.leased |= lease.pieces
        self._swarms.describe_again(task)

    def _host_false(self, task: Task, host_id: HostId, detail: str) -> None:
        self._sources.fail_host(task.descriptor.source_id, host_id, Reason.DIGEST_MISMATCH, detail)

    def _withdrawn(self, host_id: HostId, withdrawn: msg.Withdrawn) -> None:
        task = self.state.tasks.get(withdrawn.task_id)
        if task is None or withdrawn.generation != self.state.hosts[host_id].generation:
            return
        self._swarms.lost(task, host_id)
        self._leases.changed(task)
        self._forget_if_idle(task)

    def _digest_list(self, host_id: HostId, answer: msg.DigestList) -> None:
        self._leases.listed_by_holder(host_id, answer)
        task = self.state.tasks.get(answer.task_id)
        if task is not None:
            self._swarms.listed(task)

    # ------------------------------------------------------------ time

    def _tick(self, _event: ev.Tick) -> None:
        """Nothing of its own: what is due is done behind every event."""

    def _do_what_is_due(self) -> None:
        """Any event may be the first behind a deadline, and no other tick is asked for then."""
        self._leases.tick()
        self._sources.tick()
        self._membership.tick()
