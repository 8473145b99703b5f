"""What a source is, and who may have it: one stat per source, and a verdict per credential.

The first host to join asks the origin for everybody. If it showed no credential, the content is
public and its answer serves all; else each host has to be accepted by the origin itself.
"""

from collections.abc import Callable

from scheduler.core.effects import Noted
from scheduler.core.state import SchedulerState, Source, Task, Waiting
from shoal.wire import control as msg
from shoal.wire.errors import TRANSIENT_ORIGIN, Reason, UsageError
from shoal.wire.geometry import Geometry
from shoal.wire.ids import HostId, SourceId, TaskId, task_of_source
from shoal.wire.limits import MILLISECOND_NS

STAT_FAILURES_MAX = 4
"""Transient failures of a stat in a row before the source is given up."""

STAT_RETRY_BASE_MS = 250


class SourceBook:
    """Keeps sources and tasks' descriptors. `on_served(task, host, collection)`: a host may have
    a task and takes part in its swarm; `on_gone(task, host)`: no longer; `on_right(source)`: a
    right was proven; `on_no_right(task, host, detail)`: one that fetches may not read any more;
    `on_replaced(task_id)`: no source leads to the task any more."""

    def __init__(
        self,
        state: SchedulerState,
        *,
        on_served: Callable[[Task, HostId, Waiting], None],
        on_gone: Callable[[Task, HostId], None],
        on_right: Callable[[Source], None],
        on_no_right: Callable[[Task, HostId, str], None],
        on_replaced: Callable[[TaskId], None],
    ) -> None:
        self._state = state
        self._on_served = on_served
        self._on_gone = on_gone
        self._on_right = on_right
        self._on_no_right = on_no_right
        self._on_replaced = on_replaced
        self._next_check_ns: int | None = None

    # ------------------------------------------------------------ waiting

    def wait(self, host_id: HostId, waiting: Waiting) -> None:
        """A host wants a source."""
        member = waiting.member
        source = self._state.sources.get(member.source_id)
        if source is None:
            source = Source(
                source_id=member.source_id,
                digest=member.digest,
                piece_length_bytes=member.piece_length_bytes,
                known_task_id=member.task_id,
                display_url=member.display_url,
            )
            self._state.sources[member.source_id] = source
        if member.task_id is not None and member.task_id in self._state.tasks:
            source.task_id = member.task_id
        source.waiting[host_id] = waiting
        if self._known(source) and self._may_have(source, host_id, waiting):
            # The case of a thousand hosts that join at once: nothing changes for the others.
            self._serve(source, host_id, waiting)
        else:
            self.resolve(source)

    def leave(self, host_id: HostId, source_id: SourceId) -> None:
        """A host wants a source no longer."""
        source = self._state.sources.get(source_id)
        if source is None:
            return
        waiting = source.waiting.pop(host_id, None)
        source.asked.pop(host_id, None)
        if waiting is not None:
            self._end_service(host_id, waiting)
        self.resolve(source)

    def _end_service(self, host_id: HostId, waiting: Waiting) -> None:
        task = None if waiting.task_id is None else self._state.tasks.get(waiting.task_id)
        if task is not None:
            self._on_gone(task, host_id)

    def resolve(self, source: Source) -> None:
        """Serves the hosts that may have the source, and asks for what must be known first."""
        for host_id, waiting in list(source.waiting.items()):
            if waiting.served:
                continue
            if self._known(source) and self._may_have(source, host_id, waiting):
                self._serve(source, host_id, waiting)
        self._ask(source)

    def _may_have(self, source: Source, host_id: HostId, waiting: Waiting) -> bool:
        """Whoever asks without a credential does not get what another user of the same host has
        shown a right to."""
        if waiting.member.anonymous:
            return source.public
        return self._state.may_read(source, host_id)

    def _known(self, source: Source) -> bool:
        if source.task_id is None or source.task_id not in self._state.tasks:
            return False
        if source.digest is not None:
            return True
        # A plain URL may change: its task is believed for a short time, or while it is fetched.
        if self._state.tasks[source.task_id].wanted:
            return source.checked_ns is not None
        if source.checked_ns is None:
            return False
        return self._state.now_ns - source.checked_ns < self._state.limits.freshness_ns

    def _serve(self, source: Source, host_id: HostId, waiting: Waiting) -> None:
        assert source.task_id is not None
        waiting.served = True
        waiting.task_id = source.task_id
        self._on_served(self._state.tasks[source.task_id], host_id, waiting)

    # ------------------------------------------------------------ stats

    def _ask(self, source: Source) -> None:
        """Asks one host for everybody while nothing is known, and each host whose own right has
        to be proven."""
        now_ns = self._state.now_ns
        if source.retry_at_ns > now_ns:
            self._check_at(source.retry_at_ns)
            return
        for host_id, waiting in list(source.waiting.items()):
            if waiting.served or host_id in source.asked:
                continue
            if not waiting.member.origin_allowed:
                self._serve_without_origin(source, host_id, waiting)
                continue
            host = self._state.hosts[host_id]
            if host.session is None:
                continue
            if source.asked and (not self._known(source) or source.public):
                continue  # The answer that is on its way may serve this host as well.
            self._ask_host(source, host_id)

    def _ask_host(self, source: Source, host_id: HostId) -> None:
        deadline_ns = self._state.now_ns + self._state.limits.stat_ttl_ns
        source.asked[host_id] = deadline_ns
        self._check_at(deadline_ns)
        self._state.stats_asked += 1
        self._state.send(host_id, msg.StatWanted(source_id=source.source_id))

    def prove(self, source: Source, host_id: HostId) -> int:
        """A host's verdict expired while it fetches: only the origin can renew it. Returns when to
        look again at the latest."""
        if source.retry_at_ns > self._state.now_ns:
            return source.retry_at_ns
        if host_id not in source.asked:
            self._ask_host(source, host_id)
        return source.asked[host_id]

    def _serve_without_origin(self, source: Source, host_id: HostId, waiting: Waiting) -> None:
        """A host that must not use the origin waits for others; nobody else there: no source."""
        others = any(
            other.member.origin_allowed for other in source.waiting.values() if other is not waiting
        )
        task = None if source.task_id is None else self._state.tasks.get(source.task_id)
        if others or (task is not None and source.public and self._known(source)):
            return
        if task is not None and source.public and task.sealed:
            self._serve(source, host_id, waiting)
            return
        self._fail_host(
            source,
            host_id,
            Reason.NO_SOURCE,
            "no other host wants it, and this host must not use the origin",
        )

    def answered(self, host_id: HostId, answer: msg.StatAnswer) -> None:
        """A host asked the origin."""
        source = self._state.sources.get(answer.source_id)
        if source is None:
            return
        source.asked.pop(host_id, None)
        waiting = source.waiting.get(host_id)
        if waiting is None:
            self._ask(source)
        elif answer.outcome is None:
            self._accepted(source, host_id, answer)
        elif answer.outcome is Reason.CANCELLED:
            self._ask(source)
        elif answer.outcome in TRANSIENT_ORIGIN:
            self._unreachable(source, host_id, waiting, answer)
        else:
            self._refused(source, host_id, waiting, answer)

    def _accepted(self, source: Source, host_id: HostId, answer: msg.StatAnswer) -> None:
        source.failures = 0
        source.verdicts[host_id] = self._state.now_ns + self._state.limits.verdict_ttl_ns
        source.checked_ns = self._state.now_ns
        if answer.anonymous:
            source.public = True
        task_id = source.known_task_id
        if task_id is None:
            task_id = task_of_source(source.source_id, answer.validator, answer.size_bytes)
        task = self._state.tasks.get(task_id)
        if task is None:
            try:
                geometry = self._state.cut(answer.size_bytes, source.piece_length_bytes)
            except UsageError as error:
                self.fail(source, Reason.ORIGIN_INVALID, str(error))
                return
            task = self._new_task(source, task_id, geometry, answer)
        elif task.descriptor.geometry.size_bytes not in (None, answer.size_bytes) and (
            answer.size_bytes is not None
        ):
            detail = (
                f"the origin names {answer.size_bytes} bytes, the content of this digest has "
                f"{task.descriptor.geometry.size_bytes}"
            )
            self._fail_host(source, host_id, Reason.ORIGIN_INVALID, detail)
            return
        self._lead_to(source, task_id)
        self._on_right(source)
        self.resolve(source)

    def _new_task(
        self, source: Source, task_id: TaskId, geometry: Geometry, answer: msg.StatAnswer
    ) -> Task:
        descriptor = msg.TaskDescriptor(
            task_id=task_id,
            source_id=source.source_id,
            geometry=geometry,
            digest=source.digest,
            # Two origins of one digest name it differently; there the digest alone decides.
            validator=answer.validator if source.digest is None else None,
            ranges=answer.ranges,
            piece_digest=self._state.piece_digest,
        )
        return self.new_task(descriptor)

    def new_task(self, descriptor: msg.TaskDescriptor) -> Task:
        """A task that was not known before."""
        task = Task(
            descriptor=descriptor,
            token=self._state.token_source(),
            token_expires_ns=self._state.now_ns + self._state.limits.token_ttl_ns,
            known_ns=self._state.now_ns,
        )
        self._state.tasks[descriptor.task_id] = task
        return task

    def _unreachable(
        self, source: Source, host_id: HostId, waiting: Waiting, answer: msg.StatAnswer
    ) -> None:
        task = None if source.task_id is None else self._state.tasks.get(source.task_id)
        if task is not None and source.public and task.sealed:
            # The swarm has a whole copy that everybody may read: better than nothing.
            self._state.effects.append(
                Noted(
                    kind="origin-unreachable",
                    text=f"served from the swarm as last seen: {answer.detail}",
                    task_id=task.task_id,
                    reason=answer.outcome,
                )
            )
            for other, wait in list(source.waiting.items()):
                if not wait.served:
                    self._serve(source, other, wait)
            return
        source.failures += 1
        if source.failures > STAT_FAILURES_MAX:
            assert answer.outcome is not None
            source.failures = 0
            if waiting.served:
                self._lose_right(host_id, waiting, answer.detail)
            elif any(wait.served for wait in source.waiting.values()):
                # Those who fetch go on: what they may read was decided before.
                for other in [one for one, wait in source.waiting.items() if not wait.served]:
                    self._fail_host(source, other, answer.outcome, answer.detail)
            else:
                self.fail(source, answer.outcome, answer.detail)
            return
        pause_ms = max(answer.retry_after_ms, STAT_RETRY_BASE_MS << source.failures)
        source.retry_at_ns = self._state.now_ns + pause_ms * MILLISECOND_NS
        self._check_at(source.retry_at_ns)

    def _refused(
        self, source: Source, host_id: HostId, waiting: Waiting, answer: msg.StatAnswer
    ) -> None:
        assert answer.outcome is not None
        source.verdicts.pop(host_id, None)
        same = [
            other
            for other, wait in source.waiting.items()
            if not wait.served
            and (other == host_id or (answer.anonymous and wait.member.anonymous))
        ]
        if waiting.served:
            self._lose_right(host_id, waiting, answer.detail)
        for other in same:
            self._fail_host(source, other, answer.outcome, answer.detail)
        self._ask(source)

    def _lose_right(self, host_id: HostId, waiting: Waiting, detail: str) -> None:
        """It was let in before and goes on with the swarm, but it reads no more."""
        task = None if waiting.task_id is None else self._state.tasks.get(waiting.task_id)
        if task is not None:
            self._on_no_right(task, host_id, detail)

    # ------------------------------------------------------------ failing

    def _fail_host(self, source: Source, host_id: HostId, reason: Reason, detail: str) -> None:
        waiting = source.waiting.pop(host_id, None)
        if waiting is None:
            return
        source.asked.pop(host_id, None)
        self._state.send(
            host_id,
            msg.SourceFailed(
                collection_id=waiting.collection_id,
                source_id=source.source_id,
                reason=reason,
                detail=detail,
            ),
        )
        self._end_service(host_id, waiting)

    def fail(
        self, source: Source, reason: Reason, detail: str, task_id: TaskId | None = None
    ) -> None:
        """The source cannot be had by anybody who waits for it; with a `task_id`, hosts that fetch
        another task of the same URL go on."""
        self._state.tell(source.source_id, f"failed: {reason.value}")
        for host_id, waiting in list(source.waiting.items()):
            if task_id is None or waiting.task_id in (None, task_id):
                self._fail_host(source, host_id, reason, detail)
        if task_id is not None and source.task_id != task_id:
            return
        source.checked_ns = None
        if source.digest is None:
            self._lead_to(source, None)

    def _lead_to(self, source: Source, task_id: TaskId | None) -> None:
        before, source.task_id = source.task_id, task_id
        if before is not None and before != task_id:
            self._on_replaced(before)

    def fail_host(self, source_id: SourceId, host_id: HostId, reason: Reason, detail: str) -> None:
        """One host cannot have the source."""
        source = self._state.sources.get(source_id)
        if source is not None:
            self._fail_host(source, host_id, reason, detail)

    # ------------------------------------------------------------ time

    def _check_at(self, when_ns: int) -> None:
        if self._next_check_ns is None or when_ns < self._next_check_ns:
            self._next_check_ns = when_ns
            self._state.wake_at(when_ns)

    def tick(self) -> None:
        """Stats that were not answered go to another host; pauses end."""
        now_ns = self._state.now_ns
        if self._next_check_ns is None or self._next_check_ns > now_ns:
            return
        self._next_check_ns = None
        for source in list(self._state.sources.values()):
            for host_id, deadline_ns in list(source.asked.items()):
                if deadline_ns <= now_ns:
                    del source.asked[host_id]
                else:
                    self._check_at(deadline_ns)
            if source.waiting:
                self.resolve(source)

    def host_lost(self, host_id: HostId) -> None:
        """A stream broke: what it was asked is asked of another host."""
        host = self._state.hosts[host_id]
        for collection_id in host.collections:
            for source_id in self._state.collections[collection_id].sources:
                source = self._state.sources.get(source_id)
                if source is not None and source.asked.pop(host_id, None) is not None:
                    self._ask(source)
