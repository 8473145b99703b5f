"""What the swarm holds, as a peer core asks its scheduler: every question ends once."""

import pytest

import peer.core.effects as fx
import peer.core.events as ev
import shoal.wire.control as msg
from shoal.wire.errors import Reason
from shoal.wire.ids import RequestId, TaskId
from shoal.wire.limits import HOLDER_TASKS_MAX
from tests.unit.peer.core_rig import TASK, Rig

OTHER = TaskId("8" * 64)


def ask(rig: Rig, *task_ids: TaskId, number: int = -1) -> list[msg.HoldersWanted]:
    """A local user's question, and what goes to the scheduler at once."""
    rig.feed(ev.CountHolders, request_id=RequestId(number), task_ids=task_ids or (TASK,))
    return rig.said(msg.HoldersWanted)


def answer(question: msg.HoldersWanted, hosts: int = 3) -> msg.HolderCounts:
    """What a scheduler says to it."""
    return msg.HolderCounts(
        number=question.number,
        hosts=hosts,
        whole_hosts=1,
        tasks=tuple(
            msg.TaskHolders(
                task_id=task_id, hosts=hosts, whole_hosts=1, covered_bytes=5, size_bytes=9
            )
            for task_id in question.task_ids
        ),
    )


def ended(rig: Rig) -> list[tuple[int, Reason | None]]:
    """Every question that ended, and how."""
    return [(effect.request_id, effect.reason) for effect in rig.all(fx.HoldersCounted)]


def test_a_question_is_put_and_answered() -> None:
    rig = Rig()
    rig.up()
    (question,) = ask(rig, TASK, OTHER)
    assert question.task_ids == (TASK, OTHER)
    assert not rig.of(fx.HoldersCounted)
    told = answer(question)
    rig.tell(told)
    assert rig.one(fx.HoldersCounted) == fx.HoldersCounted(
        request_id=RequestId(-1), reason=None, answers=(told,)
    )
    rig.tell(told)
    rig.tick(5000)
    assert len(ended(rig)) == 1, "S4: one end"


@pytest.mark.parametrize("scheduler", [False, True])
def test_without_a_scheduler_nobody_is_asked(scheduler: bool) -> None:
    rig = Rig(scheduler=scheduler)
    if scheduler:
        # A stream on which none spoke yet.
        rig.feed(ev.SchedulerUp, session=1)
    assert not ask(rig)
    assert ended(rig) == [(-1, Reason.NO_SCHEDULER)]


def test_one_that_does_not_answer_is_given_up() -> None:
    rig = Rig(holder_answer_ns=2_000_000_000)
    rig.up()
    (question,) = ask(rig)
    rig.tick(1990)
    assert not ended(rig)
    rig.tick(20)
    assert ended(rig) == [(-1, Reason.TIMEOUT)]
    # What comes late is nobody's.
    rig.tell(answer(question))
    assert len(ended(rig)) == 1


def test_a_deadline_that_another_event_reaches_counts_as_well() -> None:
    rig = Rig()
    rig.up()
    ask(rig)
    rig.feed(ev.ChildGone, after_ms=3000, connection_id=1)
    assert ended(rig) == [(-1, Reason.TIMEOUT)]


def test_questions_are_given_up_one_by_one() -> None:
    rig = Rig()
    rig.up()
    ask(rig)
    rig.tick(1500)
    (second,) = ask(rig, number=-2)
    rig.tick(600)
    assert ended(rig) == [(-1, Reason.TIMEOUT)]
    rig.tell(answer(second))
    assert ended(rig) == [(-1, Reason.TIMEOUT), (-2, None)]


def test_a_lost_scheduler_answers_nothing() -> None:
    rig = Rig()
    rig.up()
    (question,) = ask(rig)
    rig.feed(ev.SchedulerDown, session=1)
    assert ended(rig) == [(-1, Reason.NO_SCHEDULER)]
    rig.up(session=2)
    rig.tell(answer(question), session=2)
    assert len(ended(rig)) == 1


def test_an_answer_to_something_else_is_none() -> None:
    rig = Rig()
    rig.up()
    (question,) = ask(rig, TASK, OTHER)
    turned = answer(msg.HoldersWanted(number=question.number, task_ids=question.task_ids[::-1]))
    rig.tell(turned)
    rig.tell(answer(msg.HoldersWanted(number=question.number + 1, task_ids=(TASK, OTHER))))
    assert not ended(rig)
    rig.tell(answer(question))
    assert ended(rig) == [(-1, None)]


def test_a_long_question_goes_in_several_messages() -> None:
    rig = Rig()
    rig.up()
    task_ids = tuple(TaskId(f"{number:064x}") for number in range(2 * HOLDER_TASKS_MAX + 1))
    questions = ask(rig, *task_ids)
    assert [len(question.task_ids) for question in questions] == [
        HOLDER_TASKS_MAX,
        HOLDER_TASKS_MAX,
        1,
    ]
    rig.tell(answer(questions[2]), answer(questions[0]))
    assert not ended(rig)
    rig.tell(answer(questions[1]))
    told = rig.one(fx.HoldersCounted).answers
    assert tuple(task.task_id for part in told for task in part.tasks) == task_ids


def test_a_long_question_answered_in_part_is_not_answered() -> None:
    rig = Rig()
    rig.up()
    questions = ask(rig, *(TaskId(f"{number:064x}") for number in range(HOLDER_TASKS_MAX + 1)))
    rig.tell(answer(questions[0]))
    rig.tick(2100)
    assert ended(rig) == [(-1, Reason.TIMEOUT)]
    assert not rig.all(fx.HoldersCounted)[0].answers


def test_only_so_many_questions_wait() -> None:
    rig = Rig(holder_questions_max=2)
    rig.up()
    (first,) = ask(rig)
    ask(rig, number=-2)
    assert not ask(rig, number=-3)
    assert ended(rig) == [(-3, Reason.OVERLOADED)]
    rig.tell(answer(first))
    assert ask(rig, number=-4)


def test_what_this_host_has_just_got_is_told_before_it_asks() -> None:
    """So the answer counts it."""
    rig = Rig().start(2)
    rig.lease(0, 2)
    request = rig.one(fx.ReadOrigin).request_id
    rig.tick(100)
    rig.read(request, 0)
    rig.read(request, 1)
    ask(rig)
    kinds = [type(each) for effect in rig.of(fx.SendToScheduler) for each in effect.messages]
    assert kinds == [msg.Report, msg.HoldersWanted]
