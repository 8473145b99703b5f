"""Which holder tells the digests that this scheduler does not know.

A piece may be served only when the list has its digest. After a restart the list is empty, and only
those who read a piece from the origin state it of their own accord: those who hold pieces whose
reader is gone are asked, one after the other, until the list has all that is held. Decides whom to
ask and when; what is listed is `scheduler.core.origin_lease`'s.
"""

from scheduler.core.state import SchedulerState, Task
from shoal.wire import control as msg
from shoal.wire.ids import HostId, TaskId
from shoal.wire.limits import MILLISECOND_NS, SECOND_NS

PAUSE_NS = 500 * MILLISECOND_NS
"""Between two questions about a task: meanwhile most readers have stated what they read."""

ANSWER_NS = 2 * SECOND_NS
"""Who has not told by then what it holds is not waited for. When all were asked in vain, the first
is asked again after this time."""


class DigestQuestions:
    """Asks for digests of pieces that are held and not listed, as long as somebody wants them."""

    def __init__(self, state: SchedulerState) -> None:
        self._state = state
        self._due_ns: dict[TaskId, int] = {}
        """Tasks that lack digests, and when they are looked at next."""
        self._next_due_ns: int | None = None
        """The earliest of these times. After a restart there may be thousands of them."""

    def look(self, task: Task) -> None:
        """A task may lack digests: asks in this event if nothing was asked lately."""
        if task.wanted and task.covered & ~task.listed_pieces and task.task_id not in self._due_ns:
            self._look_at(task.task_id, self._state.now_ns)

    def host_gone(self, task: Task, host_id: HostId) -> None:
        """A host is gone, or has a new stream: what it was asked is forgotten."""
        if task.digests_asked.pop(host_id, None) is not None and task.task_id in self._due_ns:
            self._look_at(task.task_id, self._state.now_ns)

    def ask_if_due(self) -> None:
        """At the end of every event."""
        now_ns = self._state.now_ns
        if self._next_due_ns is None or self._next_due_ns > now_ns:
            return
        self._next_due_ns = None
        for task_id, due_ns in list(self._due_ns.items()):
            if due_ns > now_ns:
                self._look_at(task_id, due_ns)
                continue
            task = self._state.tasks.get(task_id)
            unlisted = 0 if task is None else task.covered & ~task.listed_pieces
            if task is not None and task.wanted and unlisted:
                self._look_at(task_id, now_ns + self._ask(task, unlisted))
                continue
            del self._due_ns[task_id]
            if task is not None:
                task.digests_asked.clear()

    def _look_at(self, task_id: TaskId, due_ns: int) -> None:
        self._due_ns[task_id] = due_ns
        if self._next_due_ns is None or due_ns < self._next_due_ns:
            self._next_due_ns = due_ns
            self._state.wake_at(due_ns)

    def _ask(self, task: Task, unlisted: int) -> int:
        """Asks whoever holds most of what is not listed; the time to look again in."""
        now_ns = self._state.now_ns
        asked = task.digests_asked
        last = next(reversed(asked), None)
        if last is not None and task.holders.get(last, 0) & unlisted:
            wait_ns = asked[last] + ANSWER_NS - now_ns
            if wait_ns > 0:
                return min(PAUSE_NS, wait_ns)  # It may yet answer.
        able = {
            host_id: count
            for host_id, held in task.holders.items()
            if host_id not in asked
            and (count := (held & unlisted).bit_count())
            and (host := self._state.hosts.get(host_id)) is not None
            and host.session is not None
        }
        if not able:
            asked.clear()
            return ANSWER_NS
        best = max(able, key=lambda host_id: able[host_id])
        asked[best] = now_ns
        self._state.send(best, msg.DigestsWanted(task_id=task.task_id))
        return PAUSE_NS
