"""How many hosts hold a task, for whoever asks: numbers alone, of what is known at this moment.

A host may ask about contents that it has proven no right to (its user looks at a model before
anybody there wants it), so it is never told who holds them, where they come from or what their
pieces are. Decides what counts as held, how much one host may ask, and how much all of them.
"""

from collections.abc import Set
from typing import Final, NamedTuple

from scheduler.core.state import Host, SchedulerState, Task
from shoal.wire import control as msg
from shoal.wire.ids import HostId, TaskId
from shoal.wire.limits import SECOND_NS

TASK_LOOKS: Final = 50
"""To look up a task and to tell of it costs as much as to look at so many holders."""

# Sets of hosts are only ever counted here: their order decides nothing. Where swarms are large and
# questions long, what counts is that no set is built that another one holds already.


class Holders(NamedTuple):
    """Hosts that hold something of a task that nobody doubts, and those of them that have all of
    it, and checked it."""

    some: Set[HostId]
    whole: Set[HostId]
    as_listed: bool
    """All that are listed with the task count."""


NOBODY: Final = Holders(frozenset(), frozenset(), as_listed=True)


class HolderCounter:
    """Answers `HoldersWanted`."""

    def __init__(self, state: SchedulerState) -> None:
        self._state = state
        self._paid_ns = -(1 << 62)
        """Until when the time of the answers so far is used up."""

    def wanted(self, host_id: HostId, question: msg.HoldersWanted) -> None:
        """Answers at once. A host that asks too much, and all while they do together, are left
        without an answer: their wait has an end. O(holders of all tasks together)."""
        if not self._may_ask(self._state.hosts[host_id], len(question.task_ids)):
            return
        if not self._is_time_for(question.task_ids):
            return
        counts: dict[TaskId, msg.TaskHolders] = {}
        found: dict[TaskId, Holders] = {}
        for task_id in dict.fromkeys(question.task_ids):
            task = self._state.tasks.get(task_id)
            holders = NOBODY if task is None else holders_of(task)
            counts[task_id] = _counts(task_id, task, holders)
            # An empty content has no holders, and nobody lacks it.
            if counts[task_id].size_bytes != 0:
                found[task_id] = holders
        hosts = self._count_some(found)
        answer = msg.HolderCounts(
            number=question.number,
            hosts=hosts,
            whole_hosts=min(_count_whole(found), hosts),
            tasks=tuple(counts[task_id] for task_id in question.task_ids),
        )
        self._state.send(host_id, answer)

    def _may_ask(self, host: Host, tasks: int) -> bool:
        if self._state.now_ns - host.asked_since_ns >= SECOND_NS:
            host.asked_since_ns, host.asked_tasks = self._state.now_ns, 0
        host.asked_tasks += tasks
        return host.asked_tasks <= self._state.limits.holder_tasks_per_s_max

    def _is_time_for(self, task_ids: tuple[TaskId, ...]) -> bool:
        """Whether what was answered so far left time for questions; this one is paid then."""
        now_ns, limits = self._state.now_ns, self._state.limits
        if self._paid_ns > now_ns:
            return False
        looks = TASK_LOOKS * len(task_ids) + sum(
            len(task.holders)
            for task_id in task_ids
            if (task := self._state.tasks.get(task_id)) is not None
        )
        saved_ns = now_ns - limits.holder_looks_saved_ns
        self._paid_ns = max(self._paid_ns, saved_ns) + looks * limits.holder_look_ns
        return True

    def _count_some(self, found: dict[TaskId, Holders]) -> int:
        """Hosts that hold something of any of the tasks."""
        hosts: set[HostId] = set()
        listed: dict[TaskId, None] = {}
        many = sum(len(holders.some) for holders in found.values()) > len(self._state.hosts)
        for task_id, holders in found.items():
            if many and holders.as_listed:
                listed[task_id] = None
            else:
                hosts.update(holders.some)
        if listed:
            # Who holds any of them mostly holds the first that is looked for.
            hosts.update(
                host_id
                for host_id, host in self._state.hosts.items()
                if not listed.keys().isdisjoint(host.holdings.keys())
            )
        return len(hosts)


def _count_whole(found: dict[TaskId, Holders]) -> int:
    """Hosts that have all of the tasks whole."""
    rarest_first = sorted((holders.whole for holders in found.values()), key=len)
    hosts = rarest_first[0] if rarest_first else frozenset()
    for whole in rarest_first[1:]:
        if not hosts:
            break
        if not hosts <= whole:
            hosts = hosts & whole
    return len(hosts)


def holders_of(task: Task) -> Holders:
    """Who holds a task now."""
    doubted = task.doubted
    if not doubted and 0 not in task.holders.values():
        # As it is nearly always: no host has to be looked at.
        return Holders(task.holders.keys(), task.sealed.keys(), as_listed=True)
    some = {host_id for host_id, held in task.holders.items() if held & ~doubted.get(host_id, 0)}
    whole = {host_id for host_id in task.sealed if host_id in some and not doubted.get(host_id, 0)}
    return Holders(some, whole, as_listed=False)


def _counts(task_id: TaskId, task: Task | None, holders: Holders) -> msg.TaskHolders:
    covered_bytes = 0
    size_bytes = None
    if task is not None:
        geometry = task.descriptor.geometry
        size_bytes = geometry.size_bytes
        covered = task.covered if size_bytes is None else task.covered & geometry.all_pieces
        covered_bytes = geometry.held_bytes(covered)
    return msg.TaskHolders(
        task_id=task_id,
        hosts=len(holders.some),
        # A host may say that it checked what it told nobody that it holds.
        whole_hosts=min(len(holders.whole), len(holders.some)),
        covered_bytes=covered_bytes,
        size_bytes=size_bytes,
    )
