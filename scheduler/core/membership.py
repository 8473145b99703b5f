"""Which hosts there are: their sessions, their inventories, and when one counts as away or gone.

Decides whom to let in, which of two streams of a host is the valid one, and what of an inventory
to believe. Never decides what a host may read or whom it fetches from.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from scheduler.core import events as ev
from scheduler.core.effects import CloseSession
from scheduler.core.epochs import Epochs
from scheduler.core.origin_lease import LeaseOffice
from scheduler.core.sources import SourceBook
from scheduler.core.state import Host, SchedulerState, Source, Task
from scheduler.core.swarm import Swarms
from shoal.wire import control as msg
from shoal.wire.errors import Reason
from shoal.wire.ids import HostId, TaskId
from shoal.wire.limits import MILLISECOND_NS, SECOND_NS

SETTLE_NS = 1 * SECOND_NS
"""How long, at most, a task that is known only from an unfinished inventory gets no lease: a
scheduler that was restarted must first hear from the other hosts what they hold."""

SETTLE_HOSTS = 16
SETTLE_QUIET_NS = 250 * MILLISECOND_NS
"""Once so many hosts were heard and none of them had anything new for so long, the task is known
well enough: all of a swarm hold much the same."""

AWAY_NS = 250 * MILLISECOND_NS
"""A host whose stream broke for longer feeds nobody until it is back."""

INTERVAL_CHANGE = 1.5
"""A host is told another interval between its reports when it is so many times the one that it
knows, or a part of it."""


class OnLeave(Protocol):
    """Takes a host out of a collection."""

    def __call__(self, host_id: HostId, leave: msg.Leave, *, keep_leases: bool = False) -> None:
        """`keep_leases`: the host is only to say anew what it wants and reads."""


class Membership:
    """Keeps hosts and sessions. `on_message(host, message)`: a message of a host that said
    `Hello`; `on_leave`: a host takes no part in a collection any more; `on_idle(task)`: perhaps
    nobody has or wants the task now."""

    def __init__(
        self,
        state: SchedulerState,
        *,
        leases: LeaseOffice,
        epochs: Epochs,
        sources: SourceBook,
        swarms: Swarms,
        on_message: Callable[[HostId, msg.HostMessage], None],
        on_leave: OnLeave,
        on_idle: Callable[[Task], None],
    ) -> None:
        self._state = state
        self._leases = leases
        self._epochs = epochs
        self._sources = sources
        self._swarms = swarms
        self._on_message = on_message
        self._on_leave = on_leave
        self._on_idle = on_idle
        self._next_host_check_ns: int | None = None
        self._interval: msg.ReportInterval | None = None
        self._proven_names: dict[int, str] = {}
        """Of sessions whose host showed a certificate."""

    # ------------------------------------------------------------ sessions

    def connected(self, event: ev.HostConnected) -> None:
        """A host opened a stream; who it is, its `Hello` says."""
        self._state.sessions[event.session] = None
        if event.subject:
            self._proven_names[event.session] = event.subject

    def disconnected(self, event: ev.HostDisconnected) -> None:
        """A stream broke: its host has the grace time to come back."""
        self._state.drop_outgoing(event.session)
        self._proven_names.pop(event.session, None)
        host_id = self._state.sessions.pop(event.session, None)
        if host_id is None:
            return
        host = self._state.hosts[host_id]
        host.session = None
        host.lost_ns = event.now_ns
        self._check_hosts_at(event.now_ns + min(AWAY_NS, self._state.limits.host_grace_ns))
        self._leases.host_lost()
        self._sources.host_lost(host_id)

    def _close(self, session: int, reason: Reason, detail: str) -> None:
        self._state.effects.append(CloseSession(session=session, reason=reason, detail=detail))

    def from_host(self, event: ev.FromHost) -> None:
        """A batch of messages: `Hello` is taken in here, everything else is handed on."""
        if event.session not in self._state.sessions:
            return
        for message in event.messages:
            host_id = self._state.sessions.get(event.session)
            if isinstance(message, msg.Hello):
                if host_id is not None:
                    self._close(event.session, Reason.PEER_PROTOCOL, "a second Hello")
                    return
                if not self._hello(event.session, message):
                    return
            elif host_id is None:
                self._close(event.session, Reason.PEER_PROTOCOL, "the first message is Hello")
                return
            else:
                self._on_message(host_id, message)
                if isinstance(message, msg.Report):
                    self._pace(self._state.hosts[host_id])

    def _hello(self, session: int, hello: msg.Hello) -> bool:
        state = self._state
        versions = (msg.CONTROL_VERSION_MIN, msg.CONTROL_VERSION_MAX)
        version = min(hello.version_max, versions[1])
        host_id = hello.host.host_id
        proven = self._proven_names.get(session, host_id)
        if proven != host_id:
            detail = f"its certificate is of {proven!r}, and host_id must be that name"
            self._close(session, Reason.UNAUTHORIZED, detail)
            del state.sessions[session]
            return False
        refusal = ""
        known = state.hosts.get(host_id)
        if version < max(hello.version_min, versions[0]):
            refusal = f"this scheduler speaks control versions {versions[0]} to {versions[1]}"
        elif known is None and len(state.hosts) >= state.limits.hosts_max:
            refusal = f"this scheduler has its {state.limits.hosts_max} hosts"
        elif known is not None and hello.generation < known.generation:
            refusal = "a newer run of this host is known: is its host_id used twice?"
        if refusal:
            self._close(session, Reason.OVERLOADED, refusal)
            return False
        if known is not None and known.session is not None:
            self._close(known.session, Reason.PEER_LOST, "a newer stream of this host is here")
            state.drop_outgoing(known.session)
            # Nothing that it still says counts, and the host may be gone before its stream is.
            del state.sessions[known.session]
        self._register(session, hello, known)
        interval_ns = state.hosts[host_id].report_interval_ns = state.report_interval_ns()
        state.send(
            host_id,
            msg.Welcome(
                scheduler_id=state.scheduler_id,
                version=version,
                report_interval_ms=interval_ns // MILLISECOND_NS,
            ),
        )
        return True

    def _pace(self, host: Host) -> None:
        """Those who report too often for what the swarm has become, or too rarely, are told so one
        by one, as they report: whoever says nothing need not know."""
        interval_ns = self._state.report_interval_ns()
        told_ns = host.report_interval_ns
        if told_ns / INTERVAL_CHANGE < interval_ns < told_ns * INTERVAL_CHANGE:
            return
        host.report_interval_ns = interval_ns
        message = self._interval
        if message is None or message.report_interval_ms != interval_ns // MILLISECOND_NS:
            message = msg.ReportInterval(report_interval_ms=interval_ns // MILLISECOND_NS)
            self._interval = message
        self._state.send(host.host_id, message)

    def _register(self, session: int, hello: msg.Hello, known: Host | None) -> None:
        state = self._state
        host_id = hello.host.host_id
        host = Host(info=hello.host, generation=hello.generation, session=session)
        lost: list[TaskId] = []
        if known is not None:
            lost = list(known.holdings)
            for collection_id in list(known.collections):
                self._on_leave(host_id, msg.Leave(collection_id=collection_id), keep_leases=True)
            for task_id in lost:
                self._swarms.lost(state.tasks[task_id], host_id)
        state.hosts[host_id] = host
        state.sessions[session] = host_id
        reads = {held.task_id for held in hello.leases}
        told: dict[TaskId, int] = {}
        for holding in hello.holdings:
            task_id = holding.descriptor.task_id
            told[task_id] = holding.descriptor.epoch
            self._adopt_holding(host_id, holding, reads=task_id in reads)
        if known is not None or hello.holdings:
            self._swarms.host_back(host_id)
        for held in hello.leases:
            self._leases.adopt(host_id, held, epoch=told.get(held.task_id))
        if known is not None:
            self._leases.forget_run(host_id, hello.leases)
        for task_id in (*lost, *(holding.descriptor.task_id for holding in hello.holdings)):
            task = state.tasks.get(task_id)
            if task is not None and not any(reader.leases for reader in task.readers.values()):
                self._on_idle(task)

    def _adopt_holding(self, host_id: HostId, holding: msg.Holding, *, reads: bool) -> None:
        """`reads`: the host works on a lease of it, too."""
        descriptor = holding.descriptor
        if not self._epochs.is_possible(descriptor.epoch):
            return
        task = self._state.tasks.get(descriptor.task_id)
        if task is None:
            task = self._sources.new_task(descriptor)
            if not holding.sealed:
                self._let_settle(task)
        elif task.descriptor.geometry.size_bytes is None and (
            descriptor.geometry.size_bytes is not None
        ):
            task.descriptor = replace(task.descriptor, geometry=descriptor.geometry)
            self._swarms.describe_again(task)
        same_cut = (
            descriptor.geometry == task.descriptor.geometry
            and descriptor.piece_digest == task.descriptor.piece_digest
        )
        if not same_cut:
            return
        epoch = task.descriptor.epoch
        counts = self._epochs.heard(task, host_id, holding, reads=reads)
        if task.descriptor.epoch != epoch and not holding.sealed:
            # Others may hold more of that epoch, and be about to say so.
            self._let_settle(task)
        if not counts:
            return
        source = self._state.sources.get(descriptor.source_id)
        if source is None:
            self._state.sources[descriptor.source_id] = Source(
                source_id=descriptor.source_id,
                digest=descriptor.digest,
                piece_length_bytes=None,
                known_task_id=descriptor.task_id if descriptor.digest is not None else None,
                task_id=descriptor.task_id,
            )
        elif source.task_id is None:
            source.task_id = descriptor.task_id
        news = holding.held & ~task.covered
        self._swarms.holds(task, host_id, holding.held)
        self._settle(task, news=bool(news))
        if holding.sealed:
            task.sealed[host_id] = None

    def _let_settle(self, task: Task) -> None:
        task.settle_until_ns = task.settle_latest_ns = self._state.now_ns + SETTLE_NS

    def _settle(self, task: Task, *, news: bool) -> None:
        """One more host of a task that is not settled told what it holds."""
        now_ns = self._state.now_ns
        if task.settle_until_ns <= now_ns or len(task.holders) < SETTLE_HOSTS:
            return
        if news or task.settle_until_ns == task.settle_latest_ns:
            task.settle_until_ns = min(task.settle_latest_ns, now_ns + SETTLE_QUIET_NS)
            self._leases.changed(task)

    # ------------------------------------------------------------ coming and going

    def _check_hosts_at(self, when_ns: int) -> None:
        if self._next_host_check_ns is None or when_ns < self._next_host_check_ns:
            self._next_host_check_ns = when_ns
        self._state.wake_at(when_ns)

    def tick(self) -> None:
        """Looks at hosts whose stream broke: away after a moment, gone after the grace time."""
        if self._next_host_check_ns is None or self._next_host_check_ns > self._state.now_ns:
            return
        self._next_host_check_ns = None
        for host in list(self._state.hosts.values()):
            if host.session is not None:
                continue
            gone_ns = host.lost_ns + self._state.limits.host_grace_ns
            away_ns = host.lost_ns + AWAY_NS
            if gone_ns <= self._state.now_ns:
                self._host_gone(host)
            elif away_ns <= self._state.now_ns:
                self._host_away(host)
                self._check_hosts_at(gone_ns)
            else:
                self._check_hosts_at(min(away_ns, gone_ns))

    def _host_away(self, host: Host) -> None:
        """It may come back and keeps its place, but nobody waits for it any more."""
        if host.away:
            return
        host.away = True
        self._swarms.host_away(host.host_id)
        for task_id in host.holdings:
            self._leases.changed(self._state.tasks[task_id])

    def _host_gone(self, host: Host) -> None:
        for collection_id in list(host.collections):
            self._on_leave(host.host_id, msg.Leave(collection_id=collection_id))
        held = list(host.holdings)
        self._swarms.host_gone(host.host_id)
        del self._state.hosts[host.host_id]
        for source in self._state.sources.values():
            source.verdicts.pop(host.host_id, None)
        for task_id in held:
            task = self._state.tasks.get(task_id)
            if task is not None:
                self._leases.changed(task)
        for task in list(self._state.tasks.values()):
            self._on_idle(task)
