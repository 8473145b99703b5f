"""Epochs that began before this scheduler: what it believes of them, whoever tells first."""

import pytest

from scheduler.core.limits import SchedulerLimits
from scheduler.core.state import Task
from shoal.wire import control as msg
from shoal.wire.ids import HostId, LeaseNumber
from tests.unit.scheduler.core_rig import DIGEST_TASK, Rig, descriptor_of, join_of, member

ALL = 0b1111


def holding(epoch: int, held: int = 0b11, *, sealed: bool = False) -> msg.Holding:
    """What an inventory names of the digest task, of four pieces."""
    return msg.Holding(
        descriptor=descriptor_of(4, epoch=epoch), held=ALL if sealed else held, sealed=sealed
    )


def reading(number: int = 5, pieces: int = ALL) -> msg.HeldLease:
    """A lease of a scheduler before this one."""
    return msg.HeldLease(number=LeaseNumber(number), task_id=DIGEST_TASK, pieces=pieces)


def task_of(rig: Rig) -> Task:
    return rig.engine.state.tasks[DIGEST_TASK]


def comes(
    rig: Rig, name: str, *holdings: msg.Holding, leases: tuple[msg.HeldLease, ...] = ()
) -> None:
    """A host says what it holds, wants the task, and may have it."""
    rig.connect(name, join_of(member()), holdings=holdings, leases=leases)
    if rig.got(name, msg.StatWanted):
        rig.answer(name)


def obeys(rig: Rig, name: str, epoch: int) -> None:
    """What a host does with leases of another epoch than its own: it gives them back. Ends when it
    was told none any more, and fails if that goes on for ever."""
    for _ in range(20):
        foreign = [lease for lease in rig.granted(name) if lease.epoch != epoch]
        if not foreign:
            return
        ends = tuple(
            msg.LeaseEnd(number=lease.number, task_id=lease.task_id, outcome=None)
            for lease in foreign
        )
        rig.send(name, msg.Report(lease_ends=ends))
    raise AssertionError("leases are granted and given back without an end")


# ---------------------------------------------------------------- orders of arrival


def test_the_newest_epoch_that_is_told_counts_when_the_older_one_is_told_first() -> None:
    rig = Rig()
    comes(rig, "old", holding(1, 0b1110))
    comes(rig, "new", holding(2, 0b0001))
    assert rig.epoch == 2
    assert task_of(rig).holders == {"new": 0b0001}, "what was told of the older epoch is void"
    assert rig.got("old", msg.EpochVoided) == [msg.EpochVoided(task_id=DIGEST_TASK, epoch=2)]
    (described,) = rig.got("new", msg.Described)
    assert described.descriptor.epoch == 2
    rig.wait(2)
    obeys(rig, "new", 2)
    obeys(rig, "old", 2)


def test_the_newest_epoch_that_is_told_counts_when_it_is_told_first() -> None:
    rig = Rig()
    comes(rig, "new", holding(2, 0b0001))
    comes(rig, "old", holding(1, 0b1110))
    assert rig.epoch == 2
    assert task_of(rig).holders == {"new": 0b0001}
    (described,) = rig.got("old", msg.Described)
    assert described.descriptor.epoch == 2, "so it drops what it has"


def test_a_raised_epoch_is_rebuilt_before_it_is_read() -> None:
    rig = Rig()
    comes(rig, "old", holding(1, 0b0001))
    rig.wait(2)
    old = rig.granted("old")
    assert old, "nobody told anything else"
    comes(rig, "new", holding(2, 0b0001))
    assert not rig.granted("old")
    assert not rig.granted("new"), "others may hold more of that epoch, and be about to say so"
    comes(rig, "third", holding(2, 0b0110))
    rig.wait(2)
    leases = rig.granted("old") + rig.granted("new") + rig.granted("third")
    assert {(lease.epoch, lease.first_piece) for lease in leases} == {(2, 3)}


def test_leases_that_are_out_are_void_with_their_epoch() -> None:
    rig = Rig()
    comes(rig, "old", holding(1, 0b0001), leases=(reading(5, 0b0110),))
    assert set(rig.engine.state.leases) == {5}
    rig.wait(2)
    assert len(rig.engine.state.leases) > 1, "an adopted one, and granted ones"
    comes(rig, "new", holding(2, 0b0001))
    assert not rig.engine.state.leases
    assert not task_of(rig).leased
    late = msg.Statement(DIGEST_TASK, 1, 1, b"late", LeaseNumber(5))
    rig.send("old", msg.Report(statements=(late,)))
    assert not task_of(rig).listed


def test_a_lease_of_an_older_epoch_is_not_adopted() -> None:
    rig = Rig()
    comes(rig, "new", holding(2, 0b0001))
    comes(rig, "old", holding(1, 0b0010), leases=(reading(5, 0b1100),))
    assert rig.revoked("old") == [5]
    assert not rig.engine.state.leases


def test_a_lease_of_the_newest_epoch_is_adopted() -> None:
    rig = Rig()
    comes(rig, "old", holding(1, 0b1110))
    comes(rig, "new", holding(2, 0b0001), leases=(reading(5, 0b1110),))
    assert set(rig.engine.state.leases) == {5}
    rig.wait(2)
    assert not rig.granted("old")


def test_a_host_that_has_just_begun_the_newest_epoch_is_heard() -> None:
    rig = Rig()
    comes(rig, "old", holding(1, 0b1110))
    comes(rig, "new", holding(2, 0), leases=(reading(5),))
    assert rig.epoch == 2
    assert not task_of(rig).covered


def test_a_raise_is_no_reading_that_gave_the_same_pieces() -> None:
    rig = Rig()
    comes(rig, "old", holding(1, 0b0001))
    comes(rig, "new", holding(2, ALL))
    rig.check("new", passed=False, digest="sha256:00")
    assert not rig.failures("new"), "nobody has read it twice yet"
    assert rig.epoch == 3


# ---------------------------------------------------------------- sealed content


def test_sealed_content_outlives_a_raise_and_takes_on_the_number() -> None:
    rig = Rig()
    comes(rig, "whole", holding(1, sealed=True))
    comes(rig, "new", holding(2, 0b0001))
    assert rig.epoch == 2
    assert task_of(rig).covered == ALL
    assert list(task_of(rig).sealed) == ["whole"]
    # Hosts of the present epoch take pieces of no other: it has to call them so.
    assert rig.got("whole", msg.EpochVoided) == [msg.EpochVoided(task_id=DIGEST_TASK, epoch=2)]
    rig.wait(2)
    assert not rig.granted("new")


@pytest.mark.parametrize("epoch", [1, 2])
def test_sealed_content_of_another_epoch_takes_on_the_number_when_it_comes(epoch: int) -> None:
    rig = Rig()
    comes(rig, "new", holding(2, 0b0001))
    comes(rig, "whole", holding(epoch, sealed=True))
    assert task_of(rig).covered == ALL
    told = [msg.EpochVoided(task_id=DIGEST_TASK, epoch=2)] if epoch == 1 else []
    assert rig.got("whole", msg.EpochVoided) == told


def test_sealed_content_of_a_newer_epoch_raises_it() -> None:
    rig = Rig()
    comes(rig, "old", holding(1, 0b0001))
    comes(rig, "whole", holding(2, sealed=True))
    assert rig.epoch == 2
    assert task_of(rig).holders == {"whole": ALL}


def test_sealed_content_that_comes_late_takes_on_the_present_number() -> None:
    rig = Rig()
    comes(rig, "a", holding(1, 0b0001))
    rig.wait(11)
    comes(rig, "whole", holding(3, sealed=True))
    assert rig.epoch == 1
    assert task_of(rig).covered == ALL
    assert rig.got("whole", msg.EpochVoided) == [msg.EpochVoided(task_id=DIGEST_TASK, epoch=1)]


# ---------------------------------------------------------------- what is not believed


@pytest.mark.parametrize("epoch", [0, 4, 1_000_000])
@pytest.mark.parametrize("sealed", [False, True])
def test_an_epoch_that_no_scheduler_names_is_not_believed(epoch: int, sealed: bool) -> None:
    rig = Rig()
    rig.connect("liar", holdings=(holding(epoch, sealed=sealed),))
    assert not rig.engine.state.tasks, "nor where it is told first"
    comes(rig, "a", holding(1, 0b0011))
    rig.connect("liar", holdings=(holding(epoch, sealed=sealed),))
    assert rig.epoch == 1
    assert task_of(rig).holders == {"a": 0b0011}


def test_a_liar_voids_no_more_often_than_mismatches_could() -> None:
    rig = Rig(SchedulerLimits(epochs_max=3))
    comes(rig, "a", holding(1, 0b0011))
    voided = 0
    for epoch in range(2, 20):
        rig.connect("liar", holdings=(holding(epoch, 0b1),))
        voided += bool(rig.got("a", msg.EpochVoided))
    assert voided == 2
    assert rig.epoch == 3


def test_whoever_comes_after_its_grace_time_gives_way() -> None:
    rig = Rig()
    rig.start("a")
    rig.read_all("a")
    rig.wait(11)
    comes(rig, "late", holding(2, 0b0001))
    assert rig.epoch == 1
    assert task_of(rig).holders == {"a": ALL}
    assert not rig.got("a", msg.EpochVoided)
    (described,) = rig.got("late", msg.Described)
    assert described.descriptor.epoch == 1


def test_an_empty_inventory_raises_nothing() -> None:
    rig = Rig()
    comes(rig, "a", holding(1, 0b0011))
    comes(rig, "empty", holding(2, 0))
    assert rig.epoch == 1
    assert task_of(rig).holders == {"a": 0b0011}


def test_another_cut_of_a_newer_epoch_raises_nothing() -> None:
    rig = Rig()
    comes(rig, "a", holding(1, 0b0011))
    other = msg.Holding(descriptor=descriptor_of(5, epoch=2), held=0b1, sealed=False)
    rig.connect("b", holdings=(other,))
    assert rig.epoch == 1
    assert task_of(rig).holders == {"a": 0b0011}


def test_a_raise_is_told_to_people() -> None:
    rig = Rig()
    comes(rig, "old", holding(1, 0b0001))
    comes(rig, "new", holding(2, 0b0001))
    (note,) = [note for note in rig.notes if note.kind == "epoch-voided"]
    assert note.host_id == HostId("new")
    assert "epoch 2" in note.text
