"""Digests, parents, tokens, blame and what follows a whole-content mismatch."""

import pytest

from scheduler.core.limits import SchedulerLimits
from scheduler.core.overlay import STRIPES
from scheduler.core.state import Task
from shoal.wire import control as msg
from shoal.wire.errors import Reason
from shoal.wire.ids import HostId, TaskId
from shoal.wire.limits import SECOND_NS
from tests.unit.scheduler.core_rig import (
    DIGEST_TASK,
    URL_SOURCE,
    Rig,
    descriptor_of,
    digest_of,
    join_of,
    member,
)


def whole(pieces: int = 4, *, sealed: bool = True) -> tuple[msg.Holding, ...]:
    """An inventory of the whole digest task."""
    held = (1 << pieces) - 1
    return (msg.Holding(descriptor=descriptor_of(pieces), held=held, sealed=sealed),)


def some(pieces: int) -> tuple[msg.Holding, ...]:
    """An inventory of a part of it."""
    return (msg.Holding(descriptor=descriptor_of(4), held=pieces, sealed=False),)


def added(rig: Rig, name: str) -> list[str]:
    """Parents named to a host since the last look."""
    return [parent.host_id for m in rig.got(name, msg.Parents) for parent in m.added]


def removed(rig: Rig, name: str) -> list[str]:
    return [host_id for m in rig.got(name, msg.Parents) for host_id in m.removed]


# ---------------------------------------------------------------- digests


def test_digests_are_pushed_once_to_all_as_one_object() -> None:
    rig = Rig()
    rig.start("a", "b", pieces=4)
    rig.read("a", rig.granted("a")[0])
    rig.wait(0.02)
    (to_a,) = rig.got("a", msg.Digests)
    (to_b,) = rig.got("b", msg.Digests)
    assert to_a is to_b, "serialised once"
    assert to_a.entries[0][:2] == (0, digest_of(0))
    rig.wait(1)
    assert not rig.got("b", msg.Digests)


def test_digests_are_gathered_between_two_pushes() -> None:
    rig = Rig()
    rig.start("a", "b", pieces=100)
    leases = rig.granted("a") + rig.granted("a")
    for lease in leases:
        rig.read("a", lease)
    rig.wait(0.02)
    assert len(leases) > 1
    assert len(rig.got("b", msg.Digests)) <= 2


def test_a_newcomer_gets_the_list_in_messages_of_bounded_length() -> None:
    rig = Rig(SchedulerLimits(digests_per_message_max=2))
    rig.start("a", pieces=5)
    rig.read_all("a")
    rig.connect("b", join_of(member()))
    messages = rig.got("b", msg.Digests)
    assert [len(m.entries) for m in messages] == [2, 2, 1]
    assert [entry[0] for m in messages for entry in m.entries] == list(range(5))


def test_after_a_restart_a_holder_is_asked_for_its_digests_once() -> None:
    rig = Rig()
    rig.connect("a", holdings=whole())
    rig.connect("b", join_of(member()))
    rig.answer("b")
    assert [m.task_id for m in rig.got("a", msg.DigestsWanted)] == [DIGEST_TASK]
    rig.connect("c", join_of(member()))
    assert not rig.got("a", msg.DigestsWanted)
    answer = msg.DigestList(
        task_id=DIGEST_TASK,
        epoch=1,
        first_piece=0,
        digests=(digest_of(0), b"", digest_of(2), digest_of(3), digest_of(4)),
    )
    rig.send("b", answer)
    assert not rig.engine.state.tasks[DIGEST_TASK].listed, "b was not asked and holds nothing"
    rig.send("a", answer)
    rig.wait(0.02)
    for name in "bc":
        (digests,) = rig.got(name, msg.Digests)
        assert [entry[0] for entry in digests.entries] == [0, 2, 3]
    rig.send("a", msg.DigestList(task_id=TaskId("none"), epoch=1, first_piece=0, digests=()))


def test_a_known_list_is_not_asked_for() -> None:
    rig = Rig()
    rig.start("a")
    rig.read_all("a")
    rig.connect("b", join_of(member()))
    assert not rig.got("a", msg.DigestsWanted)


def list_of(*pieces: int) -> msg.DigestList:
    return msg.DigestList(
        task_id=DIGEST_TASK,
        epoch=1,
        first_piece=0,
        digests=tuple(digest_of(piece) if piece in pieces else b"" for piece in range(4)),
    )


def test_holders_are_asked_until_the_list_has_all_that_is_held() -> None:
    rig = Rig()
    rig.connect("a", holdings=some(0b0111))
    rig.connect("b", holdings=some(0b1100))
    rig.connect("c", join_of(member()))
    rig.answer("c")
    assert rig.got("a", msg.DigestsWanted)
    rig.send("a", list_of(0, 1, 2))
    rig.wait(1)
    assert not rig.got("a", msg.DigestsWanted)
    assert rig.got("b", msg.DigestsWanted), "nobody else can tell of the last piece"
    rig.send("b", list_of(2, 3))
    rig.wait(10)
    assert set(rig.engine.state.tasks[DIGEST_TASK].listed) == {0, 1, 2, 3}
    assert not rig.got("a", msg.DigestsWanted)
    assert not rig.got("b", msg.DigestsWanted)


def test_a_holder_that_tells_nothing_is_not_waited_for() -> None:
    rig = Rig()
    rig.connect("a", holdings=some(0b1111))
    rig.connect("b", holdings=some(0b1111))
    rig.connect("c", join_of(member()))
    rig.answer("c")
    assert rig.got("a", msg.DigestsWanted)
    rig.wait(3)
    assert rig.got("b", msg.DigestsWanted)
    rig.wait(60)
    asked = [rig.got(name, msg.DigestsWanted) for name in "ab"]
    assert all(5 < len(questions) < 40 for questions in asked), "again, but not all the time"
    rig.send("c", msg.Leave(collection_id=next(iter(rig.engine.state.collections))))
    rig.wait(5)
    for name in "ab":
        rig.got(name, msg.DigestsWanted)
    rig.wait(60)
    assert not any(rig.got(name, msg.DigestsWanted) for name in "ab"), "nobody wants it"


def test_what_comes_to_be_held_later_is_asked_for() -> None:
    rig = Rig()
    rig.connect("c", join_of(member()))
    rig.answer("c")
    rig.connect("a", holdings=some(0b0001))
    assert rig.got("a", msg.DigestsWanted)


def test_another_holder_is_asked_when_the_first_is_gone() -> None:
    rig = Rig()
    rig.connect("a", holdings=whole())
    rig.connect("b", holdings=whole())
    rig.connect("c", join_of(member()))
    rig.answer("c")
    assert rig.got("a", msg.DigestsWanted)
    rig.disconnect("a")
    rig.wait(11)
    rig.connect("d", join_of(member()))
    assert rig.got("b", msg.DigestsWanted)


def test_a_holder_with_a_new_stream_is_asked_again() -> None:
    rig = Rig()
    rig.connect("a", holdings=whole())
    rig.connect("b", join_of(member()))
    rig.answer("b")
    rig.connect("a", holdings=whole())
    rig.connect("c", join_of(member()))
    assert rig.got("a", msg.DigestsWanted)


# ---------------------------------------------------------------- parents and tokens


def test_parents_are_named_mutually() -> None:
    rig = Rig()
    rig.start("a", "b")
    rig.connect("c", join_of(member()))
    assert set(added(rig, "c")) == {"a", "b"}
    assert set(added(rig, "a")) == {"b", "c"}
    assert set(added(rig, "b")) == {"a", "c"}


def test_holders_that_do_not_join_are_named_and_learn_the_token() -> None:
    rig = Rig()
    rig.connect("a", holdings=whole())
    rig.connect("b", join_of(member()))
    rig.answer("b")
    assert added(rig, "b") == ["a"]
    assert added(rig, "a") == []
    (shown,) = rig.got("b", msg.SwarmToken)
    (known,) = rig.got("a", msg.SwarmToken)
    assert shown.token == known.token


def test_parents_of_a_small_swarm_are_limited() -> None:
    rig = Rig(SchedulerLimits(parents_max=3))
    names = [f"h{number}" for number in range(12)]
    rig.start(*names)
    for name in names:
        rig.got(name, msg.Parents)
    rig.connect("new", join_of(member()))
    view = added(rig, "new")
    assert len(view) == 3
    assert len(set(view)) == 3


def test_hosts_of_a_large_swarm_are_told_the_parents_of_their_stripes_only() -> None:
    rig = Rig()
    names = [f"h{number}" for number in range(40)]
    rig.start(*names, pieces=40)
    rig.wait(1)
    news: dict[str, int] = {}
    for name in names:
        rig.got(name, msg.Parents)
        (assigned, *_) = reversed(rig.got(name, msg.Assigned))
        assert len(assigned.parents) == STRIPES
        assert name not in assigned.parents
        for parent in set(assigned.parents) - {""}:
            news[parent] = news.get(parent, 0) + 1
    assert max(news.values()) <= 2 * STRIPES, "nobody feeds many more than its share"
    rig.connect("new", join_of(member()))
    view = added(rig, "new")
    (assigned,) = rig.got("new", msg.Assigned)
    assert len(view) <= STRIPES
    assert set(assigned.parents) == set(view), "they are connected before they are needed"


def test_a_host_that_is_gone_is_removed_after_its_grace_time_only() -> None:
    rig = Rig()
    rig.start("a", "b")
    added(rig, "b")
    rig.disconnect("a")
    rig.wait(9)
    assert removed(rig, "b") == []
    rig.wait(2)
    assert removed(rig, "b") == ["a"]


def test_a_host_that_is_back_is_named_anew() -> None:
    rig = Rig()
    rig.connect("a", holdings=whole())
    rig.connect("b", join_of(member()))
    rig.answer("b")
    assert added(rig, "b") == ["a"]
    rig.connect("a", holdings=whole())
    assert added(rig, "b") == ["a"]
    assert rig.got("a", msg.SwarmToken)


def test_a_host_that_left_stays_known_as_a_holder() -> None:
    rig = Rig()
    rig.start("a", "b")
    rig.read_all("a")
    rig.leave("a")
    rig.connect("c", join_of(member()))
    assert set(added(rig, "c")) == {"a", "b"}


def test_tokens_are_renewed_for_all_when_half_their_time_is_over() -> None:
    rig = Rig(SchedulerLimits(token_ttl_ns=100 * SECOND_NS))
    rig.start("a", "b")
    (first,) = rig.got("a", msg.SwarmToken)
    rig.got("b", msg.SwarmToken)
    rig.wait(60)
    rig.connect("c", join_of(member()))
    (to_a,) = rig.got("a", msg.SwarmToken)
    (to_c,) = rig.got("c", msg.SwarmToken)
    assert to_a.token == to_c.token != first.token
    assert to_a.ttl_ms == 100_000


# ---------------------------------------------------------------- blame


def test_a_piece_whose_only_holder_is_doubted_is_leased_again() -> None:
    rig = Rig()
    rig.start("a", "b", "c", pieces=3)
    for name in "abc":
        rig.granted(name)
    rig.hold("a", 0b111)
    for number in list(rig.engine.state.leases):
        lease = rig.engine.state.leases[number]
        end = msg.LeaseEnd(number=number, task_id=DIGEST_TASK, outcome=None)
        rig.send(lease.host_id, msg.Report(lease_ends=(end,)))
    assert not rig.engine.state.leases
    rig.blame("b", "a", 1, Reason.PEER_CORRUPT)
    assert [note.kind for note in rig.notes] == ["blamed"]
    leases = [lease.first_piece for name in "abc" for lease in rig.granted(name)]
    assert leases == [1]


def test_a_piece_that_another_holds_is_not_leased_again() -> None:
    rig = Rig()
    rig.start("a", "b", pieces=3)
    rig.read_all("a")
    rig.read_all("b")
    rig.hold("a", 0b111)
    rig.hold("b", 0b111)
    rig.connect("c", join_of(member()))
    rig.blame("c", "a", 1, Reason.PEER_CORRUPT)
    assert not rig.engine.state.leases


def test_a_stalled_parent_is_doubted_but_not_named_in_the_log() -> None:
    rig = Rig()
    rig.start("a", "b", pieces=3)
    rig.hold("a", 0b111)
    for _ in range(5):
        rig.blame("b", "a", 1, Reason.PEER_STALLED)
    assert not rig.notes
    assert rig.engine.state.tasks[DIGEST_TASK].covered == 0b101


def test_nothing_counts_of_a_host_that_was_blamed_three_times() -> None:
    rig = Rig()
    rig.start("a", "b", pieces=8)
    rig.hold("a", 0xFF)
    for piece in range(3):
        assert rig.engine.state.tasks[DIGEST_TASK].covered != 0
        rig.blame("b", "a", piece, Reason.PEER_CORRUPT)
    assert rig.engine.state.tasks[DIGEST_TASK].covered == 0


def test_nor_of_what_else_it_holds() -> None:
    rig = Rig()
    rig.start("a", "b", pieces=8)
    for name in "ab":
        rig.join(name, url=True)
    rig.answer("a", url=True, pieces=8)
    task_id = rig.engine.state.sources[URL_SOURCE].task_id
    assert task_id is not None
    other = rig.engine.state.tasks[task_id]
    progress = (
        msg.Progress(task_id=DIGEST_TASK, epoch=1, new=0xFF),
        msg.Progress(task_id=other.task_id, epoch=1, new=0xFF),
    )
    rig.send("a", msg.Report(progress=progress))
    assert other.covered == 0xFF
    wrong = tuple(
        msg.Blame(host_id=HostId("a"), task_id=DIGEST_TASK, piece=piece, reason=Reason.PEER_CORRUPT)
        for piece in range(3)
    )
    rig.send("b", msg.Report(blames=wrong))
    assert other.covered == 0, "who was blamed waits for nothing of the liar's"


def test_what_is_doubted_already_is_not_worked_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()
    rig.start("a", "b", pieces=8)
    rig.hold("a", 0xFF)
    for piece in range(3):
        rig.blame("b", "a", piece, Reason.PEER_CORRUPT)
    recounts: list[Task] = []
    monkeypatch.setattr(Task, "recount", recounts.append)
    for piece in range(8):
        rig.blame("b", "a", piece, Reason.PEER_CORRUPT)
    assert not recounts, "a crowd that blames a liar costs its holdings each time"


def test_blame_of_oneself_of_strangers_and_of_what_is_not_held_changes_nothing() -> None:
    rig = Rig()
    rig.start("a", "b", pieces=3)
    rig.hold("a", 0b011)
    covered = rig.engine.state.tasks[DIGEST_TASK].covered
    rig.blame("a", "a", 0, Reason.PEER_STALLED)
    rig.blame("b", "nobody", 0, Reason.PEER_CORRUPT)
    rig.blame("b", "a", 2, Reason.PEER_STALLED)
    assert rig.engine.state.tasks[DIGEST_TASK].covered == covered


def test_progress_of_unknown_tasks_old_epochs_and_behind_the_end_is_ignored() -> None:
    rig = Rig()
    rig.start("a", pieces=3)
    progress = (
        msg.Progress(task_id=TaskId("none"), epoch=1, new=1),
        msg.Progress(task_id=DIGEST_TASK, epoch=2, new=1),
        msg.Progress(task_id=DIGEST_TASK, epoch=1, new=0b1000),
    )
    rig.send("a", msg.Report(progress=progress))
    assert not rig.engine.state.tasks[DIGEST_TASK].holders


# ---------------------------------------------------------------- whole-content digest


def test_a_mismatch_of_what_others_sealed_fails_that_host_only() -> None:
    rig = Rig()
    rig.start("a", "b")
    rig.read_all("a")
    rig.hold("a", 0b1111)
    rig.check("a", passed=True)
    rig.hold("b", 0b1111)
    rig.check("b", passed=False, digest="sha256:00")
    ((reason, detail),) = rig.failures("b")
    assert reason == Reason.DIGEST_MISMATCH
    assert "memory and disk" in detail
    assert not rig.failures("a")
    assert rig.epoch == 1


def test_a_mismatch_voids_the_epoch_and_one_host_alone_reads_again() -> None:
    rig = Rig()
    rig.start("a", "b", pieces=40)
    while leases := [(name, lease) for name in "ab" for lease in rig.granted(name)]:
        for name, lease in leases:
            rig.read(name, lease, salt="bad" if name == "a" else "")
    rig.check("b", passed=False, digest="sha256:00")
    assert rig.epoch == 2
    for name in "ab":
        assert rig.got(name, msg.EpochVoided)[0] == msg.EpochVoided(task_id=DIGEST_TASK, epoch=2)
    assert rig.notes[-1].kind == "epoch-voided"
    assert not rig.granted("a"), "the one that complained reads alone"
    rig.read_all("b")
    rig.check("b", passed=True)
    for name in "ab":
        assert rig.got(name, msg.EpochVoided)[0].liars == ("a",)
    assert (rig.notes[-1].kind, rig.notes[-1].host_id) == ("blamed", "a")


def test_late_words_of_a_void_epoch_are_ignored() -> None:
    rig = Rig()
    rig.start("a", "b", pieces=2)
    rig.read_all("a")
    rig.read_all("b")
    old = msg.Checked(task_id=DIGEST_TASK, epoch=1, passed=False, digest="sha256:00")
    rig.send("b", old)
    assert rig.epoch == 2
    rig.send("a", old)
    assert rig.epoch == 2
    rig.send("a", msg.Checked(task_id=TaskId("none"), epoch=1, passed=True, digest=""))


def test_the_same_pieces_twice_mean_that_the_digest_or_the_origin_is_wrong() -> None:
    rig = Rig()
    rig.start("a", "b")
    rig.read_all("a")
    rig.read_all("b")
    rig.check("a", passed=False, digest="sha256:00")
    rig.read_all("a")
    rig.check("a", passed=False, digest="sha256:00")
    for name in "ab":
        ((reason, detail),) = rig.failures(name)
        assert reason == Reason.DIGEST_MISMATCH
        assert "check the digest that was asked for" in detail


def test_epochs_are_bounded_and_every_reader_gets_its_turn() -> None:
    rig = Rig(SchedulerLimits(epochs_max=4))
    rig.start("a", "b")
    for name in "ab":
        rig.read_all(name, salt="0")
    readers = []
    for epoch in range(2, 5):
        rig.check("b", passed=False, digest=f"sha256:0{epoch}")
        task = rig.engine.state.tasks[DIGEST_TASK]
        readers.append(task.sole_reader)
        for name in "ab":
            rig.read_all(name, salt=str(epoch))
    assert readers == ["b", "a", None]
    assert not rig.failures("a")
    rig.check("b", passed=False, digest="sha256:05")
    assert rig.failures("a")[0][0] == rig.failures("b")[0][0] == Reason.DIGEST_MISMATCH


def test_leases_of_a_void_epoch_are_void() -> None:
    rig = Rig()
    rig.start("a", "b", pieces=100)
    old = set(rig.engine.state.leases)
    assert old
    rig.check("b", passed=False, digest="sha256:00")
    assert not old & set(rig.engine.state.leases)
    assert {lease.host_id for lease in rig.engine.state.leases.values()} == {HostId("b")}


def test_a_withdrawn_piece_that_nobody_else_holds_is_read_again() -> None:
    rig = Rig()
    rig.start("a", "b", pieces=3)
    rig.read_all("a")
    rig.read_all("b")
    rig.hold("a", 0b111)
    rig.send("a", msg.Withdrawn(task_id=DIGEST_TASK, generation=1))
    assert rig.engine.state.leases
