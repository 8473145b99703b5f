"""What a scheduler says of how much of a task the swarm holds."""

from scheduler.core.counting import TASK_LOOKS
from scheduler.core.limits import SchedulerLimits
from shoal.wire import control as msg
from shoal.wire.errors import Reason
from shoal.wire.geometry import Geometry
from shoal.wire.ids import HostId, SourceId, TaskId
from shoal.wire.limits import COLLECTION_TASKS_MAX, HOLDER_TASKS_MAX, SECOND_NS
from tests.unit.scheduler.core_rig import (
    DIGEST_TASK,
    PIECE_BYTES,
    Rig,
    descriptor_of,
    member,
)

OTHER_TASK = TaskId("e" * 64)
NOBODYS = TaskId("0" * 64)


def other(pieces: int = 2) -> msg.TaskDescriptor:
    """Another task."""
    return msg.TaskDescriptor(
        task_id=OTHER_TASK,
        source_id=SourceId("f" * 64),
        geometry=Geometry(
            size_bytes=pieces * PIECE_BYTES, piece_length_bytes=PIECE_BYTES, run_pieces=1
        ),
        digest="sha256:" + "cd" * 32,
        validator=None,
        ranges=True,
    )


def holding(descriptor: msg.TaskDescriptor, held: int | None = None) -> msg.Holding:
    """Sealed if nothing else is said."""
    whole = descriptor.geometry.all_pieces
    return msg.Holding(
        descriptor=descriptor, held=whole if held is None else held, sealed=held is None
    )


def ask(rig: Rig, name: str, *task_ids: TaskId, number: int = 7) -> msg.HolderCounts:
    """A host's question, answered at once."""
    rig.send(name, msg.HoldersWanted(number=number, task_ids=task_ids))
    (answer,) = rig.got(name, msg.HolderCounts)
    assert answer.number == number
    assert [task.task_id for task in answer.tasks] == list(task_ids)
    return answer


def numbers(counts: msg.TaskHolders) -> tuple[int, int, int, int | None]:
    """Of one task: hosts, whole ones, pieces covered, pieces in all."""
    size = counts.size_bytes
    assert counts.covered_bytes % PIECE_BYTES == 0
    return (
        counts.hosts,
        counts.whole_hosts,
        counts.covered_bytes // PIECE_BYTES,
        None if size is None else size // PIECE_BYTES,
    )


def test_hosts_and_bytes_are_counted_for_each_task_and_for_all() -> None:
    rig = Rig()
    one, two = descriptor_of(4), other()
    rig.connect("a", holdings=(holding(one), holding(two)))
    rig.connect("b", holdings=(holding(one), holding(two, 0b01)))
    rig.connect("c", holdings=(holding(one, 0b0011),))
    rig.connect("d")
    answer = ask(rig, "d", DIGEST_TASK, OTHER_TASK)
    assert [numbers(task) for task in answer.tasks] == [(3, 2, 4, 4), (2, 1, 2, 2)]
    assert (answer.hosts, answer.whole_hosts) == (3, 1)
    # Whoever asks is one of the swarm.
    assert ask(rig, "a", DIGEST_TASK).hosts == 3


def test_a_task_that_nobody_has_is_known_to_be_nowhere() -> None:
    rig = Rig()
    rig.connect("a", holdings=(holding(descriptor_of(4)),))
    answer = ask(rig, "a", NOBODYS, DIGEST_TASK)
    assert [numbers(task) for task in answer.tasks] == [(0, 0, 0, None), (1, 1, 4, 4)]
    assert (answer.hosts, answer.whole_hosts) == (1, 0)


def test_a_task_named_twice_counts_once() -> None:
    rig = Rig()
    rig.connect("a", holdings=(holding(descriptor_of(4)),))
    answer = ask(rig, "a", DIGEST_TASK, DIGEST_TASK)
    assert (answer.hosts, answer.whole_hosts) == (1, 1)


def test_parts_of_several_hosts_cover_a_task_together() -> None:
    rig = Rig()
    rig.connect("a", holdings=(holding(descriptor_of(4), 0b0011),))
    rig.connect("b", holdings=(holding(descriptor_of(4), 0b0110),))
    assert numbers(ask(rig, "a", DIGEST_TASK).tasks[0]) == (2, 0, 3, 4)


def test_the_last_piece_may_be_short() -> None:
    rig = Rig()
    descriptor = descriptor_of(4)
    geometry = Geometry(size_bytes=PIECE_BYTES + 5, piece_length_bytes=PIECE_BYTES, run_pieces=1)
    short = msg.TaskDescriptor(
        task_id=descriptor.task_id,
        source_id=descriptor.source_id,
        geometry=geometry,
        digest=descriptor.digest,
        validator=None,
        ranges=True,
    )
    rig.connect("a", holdings=(holding(short, 0b10),))
    assert ask(rig, "a", DIGEST_TASK).tasks[0].covered_bytes == 5


def test_what_is_reported_counts_and_what_is_lost_does_not() -> None:
    rig = Rig()
    rig.start("a", "b")
    progress = msg.Progress(task_id=DIGEST_TASK, epoch=1, new=0b0111)
    rig.send("a", msg.Report(progress=(progress,)))
    assert numbers(ask(rig, "b", DIGEST_TASK).tasks[0]) == (1, 0, 3, 4)
    lost = msg.Progress(task_id=DIGEST_TASK, epoch=1, new=0, lost=0b0111)
    rig.send("a", msg.Report(progress=(lost,)))
    assert numbers(ask(rig, "b", DIGEST_TASK).tasks[0]) == (0, 0, 0, 4)


def test_a_host_that_is_away_holds_nothing() -> None:
    rig = Rig()
    rig.connect("a", holdings=(holding(descriptor_of(4)),))
    rig.connect("b")
    rig.disconnect("a")
    assert numbers(ask(rig, "b", DIGEST_TASK).tasks[0]) == (1, 1, 4, 4)
    rig.wait(1)
    assert numbers(ask(rig, "b", DIGEST_TASK).tasks[0]) == (0, 0, 0, 4)
    rig.wait(60)
    assert numbers(ask(rig, "b", DIGEST_TASK).tasks[0]) == (0, 0, 0, None)


def test_a_host_that_is_doubted_has_nothing_whole() -> None:
    rig = Rig()
    rig.connect("a", holdings=(holding(descriptor_of(4)),))
    rig.connect("b")
    blame = msg.Blame(host_id=HostId("a"), task_id=DIGEST_TASK, piece=1, reason=Reason.PEER_CORRUPT)
    rig.send("b", msg.Report(blames=(blame,)))
    assert numbers(ask(rig, "b", DIGEST_TASK).tasks[0]) == (1, 0, 3, 4)


def test_what_is_withdrawn_is_gone() -> None:
    rig = Rig()
    rig.connect("a", holdings=(holding(descriptor_of(4)),))
    rig.connect("b", holdings=(holding(descriptor_of(4)),))
    rig.send("a", msg.Withdrawn(task_id=DIGEST_TASK, generation=1))
    assert numbers(ask(rig, "b", DIGEST_TASK).tasks[0]) == (1, 1, 4, 4)


def test_a_size_that_is_not_known_is_not_told() -> None:
    rig = Rig()
    rig.start("a", pieces=None, ranges=False)
    progress = msg.Progress(task_id=DIGEST_TASK, epoch=1, new=0b11)
    rig.send("a", msg.Report(progress=(progress,)))
    assert numbers(ask(rig, "a", DIGEST_TASK).tasks[0])[0::2] == (1, 2 * 1)
    assert ask(rig, "a", DIGEST_TASK).tasks[0].size_bytes is None


def test_whoever_says_that_it_checked_what_it_does_not_hold_has_nothing() -> None:
    """No host ever has all of more than it has something of: whoever reads that ends the stream."""
    rig = Rig()
    rig.start("a", pieces=None, ranges=False)
    checked = msg.Checked(task_id=DIGEST_TASK, epoch=1, passed=True, digest="sha256:00")
    rig.send("a", checked)
    assert numbers(ask(rig, "a", DIGEST_TASK).tasks[0]) == (0, 0, 0, None)


def test_an_empty_content_counts_for_nothing() -> None:
    """Nobody has to hold it to have everything."""
    rig = Rig()
    rig.connect("a", holdings=(holding(other()),))
    rig.start("b", pieces=0)
    checked = msg.Checked(task_id=DIGEST_TASK, epoch=1, passed=True, digest="sha256:00")
    rig.send("b", checked)
    answer = ask(rig, "a", DIGEST_TASK, OTHER_TASK)
    assert numbers(answer.tasks[0]) == (0, 0, 0, 0)
    assert (answer.hosts, answer.whole_hosts) == (1, 1)


def test_whoever_has_no_right_to_a_content_is_told_numbers_and_no_more() -> None:
    rig = Rig()
    rig.connect("a", holdings=(holding(descriptor_of(4)),))
    rig.connect("stranger")
    rig.send("stranger", msg.HoldersWanted(number=1, task_ids=(DIGEST_TASK,)))
    told = rig.inbox[rig.sessions["stranger"]]
    assert {type(message) for message in told} == {msg.Welcome, msg.HolderCounts}
    assert member().source_id not in repr(told[-1])
    assert "'a'" not in repr(told[-1])


def test_who_asks_too_much_in_a_second_waits_in_vain() -> None:
    rig = Rig(SchedulerLimits(holder_tasks_per_s_max=3))
    rig.connect("a")
    rig.connect("b")
    ask(rig, "a", NOBODYS, DIGEST_TASK)
    ask(rig, "a", NOBODYS)
    rig.send("a", msg.HoldersWanted(number=9, task_ids=(NOBODYS,)))
    assert not rig.got("a", msg.HolderCounts)
    ask(rig, "b", NOBODYS)
    rig.wait(1)
    ask(rig, "a", NOBODYS)


def test_what_all_hosts_ask_together_leaves_time_for_the_swarms() -> None:
    """Answers to those who ask for much are work: of one process, which all swarms wait for."""
    limits = SchedulerLimits(holder_look_ns=SECOND_NS // 104, holder_looks_saved_ns=2 * SECOND_NS)
    rig = Rig(limits)
    for name in "ab":
        rig.connect(name, holdings=(holding(descriptor_of(4)), holding(other())))
    two = (DIGEST_TASK, OTHER_TASK)
    for name in "aba":  # The third one is begun while there is some time left.
        ask(rig, name, *two)
    for name in "ab":
        rig.send(name, msg.HoldersWanted(number=9, task_ids=(DIGEST_TASK,)))
        assert not rig.got(name, msg.HolderCounts)
    rig.wait(1.1)
    ask(rig, "b", DIGEST_TASK)
    rig.wait(60)
    for _ in range(3):  # No more is ever saved.
        ask(rig, "a", *two)
    rig.send("a", msg.HoldersWanted(number=9, task_ids=(DIGEST_TASK,)))
    assert not rig.got("a", msg.HolderCounts)


def test_a_question_for_the_largest_collection_of_a_large_swarm_is_answered() -> None:
    limits = SchedulerLimits()
    before_the_last = COLLECTION_TASKS_MAX // HOLDER_TASKS_MAX * HOLDER_TASKS_MAX
    looks = before_the_last * (TASK_LOOKS + 1000)
    assert looks * limits.holder_look_ns <= limits.holder_looks_saved_ns
    assert limits.holder_tasks_per_s_max >= COLLECTION_TASKS_MAX


def test_hosts_are_counted_the_same_however_many_hold_much() -> None:
    """Where holders outnumber hosts they are looked for another way."""
    rig = Rig()
    for name in "abc":
        rig.connect(name, holdings=(holding(descriptor_of(4)), holding(other())))
    rig.connect("part", holdings=(holding(other(), 0b01),))
    rig.connect("none")
    answer = ask(rig, "none", NOBODYS, OTHER_TASK, DIGEST_TASK)
    assert (answer.hosts, answer.whole_hosts) == (4, 0)
    blame = msg.Blame(
        host_id=HostId("part"), task_id=OTHER_TASK, piece=0, reason=Reason.PEER_CORRUPT
    )
    rig.send("none", msg.Report(blames=(blame,)))
    answer = ask(rig, "none", OTHER_TASK, DIGEST_TASK)
    assert (answer.hosts, answer.whole_hosts) == (3, 3)
