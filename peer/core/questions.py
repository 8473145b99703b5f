"""Questions of local users for what the swarm holds, put to the scheduler.

Decides when one can be asked, how it is cut into messages, and when nobody will answer it any more:
a scheduler of an older version reads over it, and one that is busy may. Every question ends once,
with the counts or with a reason why they are not known. Never decides anything by what it is told.
"""

from dataclasses import dataclass, field

from peer.core.effects import HoldersCounted
from peer.core.events import CountHolders
from peer.core.reports import Outbox
from peer.core.state import PeerState
from shoal.wire.control import HolderCounts, HoldersWanted
from shoal.wire.errors import Reason
from shoal.wire.ids import RequestId, TaskId
from shoal.wire.limits import HOLDER_TASKS_MAX


@dataclass(slots=True)
class Question:
    """One that waits for its answer."""

    request_id: RequestId
    deadline_ns: int
    parts: dict[int, tuple[TaskId, ...]]
    """What was asked, by the numbers of the messages."""
    answers: dict[int, HolderCounts] = field(default_factory=dict)


class Questions:
    """Keeps what was asked and not answered yet."""

    def __init__(self, state: PeerState, outbox: Outbox) -> None:
        self._state = state
        self._outbox = outbox
        self._questions: dict[RequestId, Question] = {}
        """In the order asked, which is that of their deadlines."""
        self._by_number: dict[int, Question] = {}
        """By the number of each of its messages."""

    def ask(self, event: CountHolders) -> None:
        """A local user wants to know."""
        assert event.task_ids, "a question about nothing"
        parts = [
            event.task_ids[first : first + HOLDER_TASKS_MAX]
            for first in range(0, len(event.task_ids), HOLDER_TASKS_MAX)
        ]
        if not self._state.scheduled:
            self._end(event.request_id, Reason.NO_SCHEDULER)
            return
        if len(self._by_number) + len(parts) > self._state.limits.holder_questions_max:
            self._end(event.request_id, Reason.OVERLOADED)
            return
        question = Question(
            request_id=event.request_id,
            deadline_ns=self._state.now_ns + self._state.limits.holder_answer_ns,
            parts={self._state.next_request_id(): part for part in parts},
        )
        self._questions[event.request_id] = question
        self._by_number.update(dict.fromkeys(question.parts, question))
        self._state.wake_at(question.deadline_ns)
        for number, part in question.parts.items():
            self._outbox.send(HoldersWanted(number=number, task_ids=part))

    def answered(self, message: HolderCounts) -> None:
        """The scheduler's answer to one message. One that comes late is of no use to anybody, one
        to another question is none."""
        question = self._by_number.get(message.number)
        if question is None:
            return
        if tuple(task.task_id for task in message.tasks) != question.parts[message.number]:
            return
        question.answers[message.number] = message
        if len(question.answers) == len(question.parts):
            answers = tuple(question.answers[number] for number in question.parts)
            self._forget(question)
            self._end(question.request_id, None, answers)

    def end_overdue(self) -> None:
        """Nobody waits for ever. At the end of every event."""
        while self._questions:
            oldest = next(iter(self._questions.values()))
            if oldest.deadline_ns > self._state.now_ns:
                return
            self._forget(oldest)
            self._end(oldest.request_id, Reason.TIMEOUT)

    def session_lost(self) -> None:
        """There is no scheduler any more: nobody will answer."""
        for question in list(self._questions.values()):
            self._forget(question)
            self._end(question.request_id, Reason.NO_SCHEDULER)

    def validate(self) -> None:
        """Checks every invariant. AssertionError names the one that is broken."""
        latest_ns = self._state.now_ns + self._state.limits.holder_answer_ns
        parts = 0
        for question in self._questions.values():
            assert self._state.now_ns < question.deadline_ns <= latest_ns, "L2: it waits for ever"
            parts += len(question.parts)
            for number in question.parts:
                assert self._by_number[number] is question, "a question that is not found"
        assert parts == len(self._by_number), "a number of no question"
        assert parts <= self._state.limits.holder_questions_max, "S5: too many questions"
        assert self._state.scheduled or not parts, "a question that nobody will answer"

    def _forget(self, question: Question) -> None:
        del self._questions[question.request_id]
        for number in question.parts:
            del self._by_number[number]

    def _end(
        self,
        request_id: RequestId,
        reason: Reason | None,
        answers: tuple[HolderCounts, ...] = (),
    ) -> None:
        self._state.emit(HoldersCounted(request_id=request_id, reason=reason, answers=answers))
