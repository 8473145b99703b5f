"""Origin leases: every piece once, windows, expiry, failures, sequential reads, adoption."""

import pytest

from scheduler.core.limits import SchedulerLimits
from scheduler.core.membership import SETTLE_HOSTS
from scheduler.core.overlay import STRIPES
from shoal.wire import bitfield
from shoal.wire import control as msg
from shoal.wire.errors import Reason
from shoal.wire.ids import HostId, LeaseNumber, TaskId
from tests.unit.scheduler.core_rig import (
    DIGEST,
    DIGEST_TASK,
    PIECE_BYTES,
    Rig,
    descriptor_of,
    digest_of,
    join_of,
    member,
)


def mask(leases: list[msg.Lease]) -> int:
    """The pieces of leases; fails if one piece is in two."""
    pieces = 0
    for lease in leases:
        assert lease.piece_count is not None
        more = bitfield.mask_of(lease.first_piece, lease.piece_count)
        assert not pieces & more
        pieces |= more
    return pieces


def test_every_piece_is_leased_exactly_once_over_all_hosts() -> None:
    rig = Rig()
    rig.start("a", "b", "c", pieces=300)
    seen = 0
    while leases := [(name, lease) for name in "abc" for lease in rig.granted(name)]:
        pieces = mask([lease for _, lease in leases])
        assert not seen & pieces
        seen |= pieces
        for name, lease in leases:
            rig.read(name, lease)
    assert seen == (1 << 300) - 1
    assert not rig.engine.state.leases


def test_a_window_grows_when_its_host_runs_dry() -> None:
    rig = Rig(SchedulerLimits(lease_window_bytes_max=16 << 20))
    rig.start("a", pieces=1000)
    host = rig.engine.state.hosts[HostId("a")]
    before = host.lease_window_bytes
    leased = []
    while leases := rig.granted("a"):
        leased.append(mask(leases).bit_count() * PIECE_BYTES)
        rig.read_at_once("a", leases)
    assert leased[0] < max(leased) <= 16 << 20
    assert before < host.lease_window_bytes == 16 << 20


def test_a_window_stays_while_there_is_something_left_to_read() -> None:
    rig = Rig()
    rig.start("a", pieces=1000)
    host = rig.engine.state.hosts[HostId("a")]
    before = host.lease_window_bytes
    rig.read_all("a")
    assert rig.engine.state.tasks[DIGEST_TASK].covered == (1 << 1000) - 1
    assert host.lease_window_bytes == before


def test_a_cancelled_lease_is_granted_anew_without_a_strike() -> None:
    rig = Rig()
    rig.start("a")
    (lease, *_) = rig.granted("a")
    rig.fail_lease("a", lease, Reason.CANCELLED)
    assert rig.granted("a")[0].first_piece == lease.first_piece
    assert not rig.notes


def test_a_lease_without_progress_goes_to_somebody_else() -> None:
    rig = Rig()
    rig.start("a", "b", pieces=2)
    first = rig.granted("a")
    rig.granted("b")
    rig.wait(31)
    assert set(rig.revoked("a")) >= {lease.number for lease in first}
    assert rig.granted("a") or rig.granted("b")


def test_statements_renew_a_lease() -> None:
    rig = Rig()
    rig.start("a", pieces=4)
    lease = rig.granted("a")[0]
    assert lease.piece_count is not None
    assert lease.piece_count > 1
    rig.wait(20)
    statement = msg.Statement(DIGEST_TASK, 1, lease.first_piece, digest_of(0), lease.number)
    rig.send("a", msg.Report(statements=(statement,)))
    rig.wait(20)
    assert lease.number not in rig.revoked("a")
    rig.wait(11)
    assert lease.number in rig.revoked("a")


def test_a_broken_stream_has_a_grace_time_and_then_its_leases_go_on() -> None:
    rig = Rig()
    rig.start("a", "b", pieces=2)
    mine = rig.granted("a")
    rig.granted("b")
    rig.disconnect("a")
    rig.wait(0.9)
    assert not rig.granted("b")
    rig.wait(0.2)
    assert mask(rig.granted("b")) == mask(mine)


def test_a_new_stream_within_the_grace_time_keeps_its_leases() -> None:
    rig = Rig()
    rig.start("a", "b", pieces=2)
    mine = rig.granted("a")
    rig.granted("b")
    rig.hold("b", 0)
    rig.disconnect("a")
    held = tuple(
        msg.HeldLease(number=one.number, task_id=DIGEST_TASK, pieces=mask([one])) for one in mine
    )
    rig.connect("a", join_of(member()), leases=held)
    rig.wait(5)
    assert not rig.granted("b")
    assert not rig.revoked("a")
    for lease in mine:
        rig.read("a", lease)
    assert rig.engine.state.tasks[DIGEST_TASK].covered & mask(mine) == mask(mine)


def test_a_failed_read_pauses_its_host_as_long_as_the_origin_says() -> None:
    rig = Rig()
    rig.start("a")
    (lease, *_) = rig.granted("a")
    rig.fail_lease("a", lease, Reason.ORIGIN_BUSY, retry_after_ms=4_000)
    rig.wait(3.9)
    assert not rig.granted("a")
    rig.wait(0.2)
    assert rig.granted("a")[0].first_piece == lease.first_piece
    assert rig.notes[0].reason is Reason.ORIGIN_BUSY


def test_a_host_that_fails_again_and_again_reads_no_more() -> None:
    rig = Rig()
    rig.start("a", "b", pieces=400)
    mine: list[msg.Lease] = []
    for _ in range(4):
        while not mine:
            rig.wait(4)
            mine += rig.granted("a")
            for lease in rig.granted("b")[:1]:
                rig.read("b", lease)
        rig.fail_lease("a", mine.pop(0), Reason.ORIGIN_FAILED)
    rig.wait(60)
    rig.granted("a")
    rig.read_all("b")
    rig.wait(60)
    assert not rig.granted("a")
    rig.read_all("b")
    assert rig.engine.state.tasks[DIGEST_TASK].covered == (1 << 400) - 1


def test_when_every_reader_failed_there_is_no_source() -> None:
    rig = Rig()
    rig.start("a", pieces=1)
    for _ in range(4):
        rig.fail_lease("a", rig.granted("a")[0], Reason.ORIGIN_FAILED)
        rig.wait(5)
    assert rig.failures("a") == [(Reason.NO_SOURCE, "read failed: origin-failed")]


def test_a_task_is_given_up_after_failures_of_all_hosts_together() -> None:
    rig = Rig()
    names = [f"h{number}" for number in range(14)]
    rig.start(*names, pieces=1)
    failures = 0
    for _ in range(60):
        for name in names:
            for lease in rig.granted(name):
                rig.fail_lease(name, lease, Reason.ORIGIN_FAILED)
                failures += 1
        rig.wait(0.1)
    assert failures == 13
    assert all(rig.failures(name)[0][0] == Reason.ORIGIN_FAILED for name in names)


def test_a_refused_read_excludes_its_host_until_it_joins_again() -> None:
    rig = Rig()
    rig.start("a", "b", pieces=2)
    (lease,) = rig.granted("a")
    others = rig.granted("b")
    rig.fail_lease("a", lease, Reason.ORIGIN_FORBIDDEN)
    for other in others:
        rig.read("b", other)
    assert mask(rig.granted("b")) == mask([lease])
    rig.wait(60)
    assert not rig.granted("a")


def test_a_changed_origin_fails_everybody() -> None:
    rig = Rig()
    rig.start("a", "b", "c")
    rig.fail_lease("a", rig.granted("a")[0], Reason.ORIGIN_CHANGED)
    for name in "abc":
        assert rig.failures(name)[0][0] == Reason.ORIGIN_CHANGED
    assert not rig.engine.state.leases


def test_without_any_eligible_reader_there_is_no_source() -> None:
    rig = Rig()
    rig.start("a", pieces=2)
    rig.connect("b")
    rig.join("b", allowed=False)
    rig.fail_lease("a", rig.granted("a")[0], Reason.ORIGIN_FORBIDDEN)
    assert rig.failures("b")[0][0] == Reason.NO_SOURCE


def test_only_the_roots_of_the_stripes_read() -> None:
    rig = Rig()
    names = [f"h{number}" for number in range(12)]
    rig.start(*names, pieces=1000)
    rig.wait(0.1)
    readers = set()
    for _ in range(4):
        for name in names:
            for lease in rig.granted(name):
                readers.add(name)
                rig.read(name, lease)
    assert len(readers) == STRIPES


@pytest.mark.parametrize("pieces", [None, 3])
def test_without_ranges_or_size_there_is_one_sequential_lease(pieces: int | None) -> None:
    rig = Rig()
    rig.start("a", "b", pieces=pieces, ranges=False)
    leases = rig.granted("a") + rig.granted("b")
    (lease,) = leases
    assert (lease.first_piece, lease.piece_count) == (0, None)


def test_the_next_sequential_lease_begins_behind_what_is_covered() -> None:
    rig = Rig()
    rig.start("a", pieces=4, ranges=False)
    (lease,) = rig.granted("a")
    rig.hold("a", 0b11)
    rig.fail_lease("a", lease, Reason.ORIGIN_FAILED)
    rig.wait(1)
    assert rig.granted("a")[0].first_piece == 2


def test_the_size_that_the_leaseholder_found_is_told_to_all() -> None:
    rig = Rig()
    rig.start("a", "b", pieces=None, ranges=False)
    holder, other = ("a", "b")
    leases = rig.granted("a")
    if not leases:
        holder, other = "b", "a"
        leases = rig.granted("b")
    (lease,) = leases
    for name in "ab":
        rig.got(name, msg.Described)
    found = msg.SizeFound(task_id=DIGEST_TASK, lease_number=lease.number, size_bytes=700_000)
    rig.send(other, found)
    assert not rig.got("a", msg.Described), "only the leaseholder knows"
    rig.send(holder, found)
    for name in "ab":
        (described,) = rig.got(name, msg.Described)
        assert described.descriptor.geometry.size_bytes == 700_000
    rig.send(holder, msg.SizeFound(task_id=DIGEST_TASK, lease_number=lease.number, size_bytes=5))
    assert not rig.got("a", msg.Described), "a size is sealed once"


def test_statements_that_have_no_right_count_for_nothing() -> None:
    rig = Rig()
    rig.start("a", "b", pieces=40)
    rig.wait(0.1)
    mine, theirs = rig.granted("a")[0], rig.granted("b")[0]
    task = rig.engine.state.tasks[DIGEST_TASK]

    def state(name: str, piece: int, number: int, *, epoch: int = 1, task: str = "") -> None:
        statement = msg.Statement(
            TaskId(task or DIGEST_TASK), epoch, piece, digest_of(9), LeaseNumber(number)
        )
        rig.send(name, msg.Report(statements=(statement,)))

    state("a", theirs.first_piece, theirs.number)
    state("a", theirs.first_piece, mine.number)
    state("a", mine.first_piece, mine.number, epoch=2)
    state("a", 40, mine.number)
    state("a", 0, mine.number, task="unknown")
    state("a", mine.first_piece, 12345)
    assert not task.listed
    rig.read("a", mine)
    state("b", mine.first_piece, 12345)
    assert task.listed[mine.first_piece].digest == digest_of(mine.first_piece)


def test_a_statement_under_an_unknown_lease_fills_a_gap() -> None:
    rig = Rig()
    holding = msg.Holding(descriptor=descriptor_of(4), held=0b1, sealed=False)
    rig.connect("a", join_of(member()), holdings=(holding,))
    statement = msg.Statement(DIGEST_TASK, 1, 0, digest_of(0), LeaseNumber(77))
    rig.send("a", msg.Report(statements=(statement,)))
    assert rig.engine.state.tasks[DIGEST_TASK].listed[0].digest == digest_of(0)


def test_ends_of_unknown_and_foreign_leases_change_nothing() -> None:
    rig = Rig()
    rig.start("a", "b", pieces=4)
    lease = rig.granted("a")[0]
    rig.fail_lease("b", lease, Reason.ORIGIN_CHANGED)
    assert lease.number in rig.engine.state.leases
    rig.read("a", lease)
    rig.fail_lease("a", lease, Reason.ORIGIN_CHANGED)
    assert not rig.failures("a")


def test_a_restarted_scheduler_waits_before_it_leases_what_others_may_hold() -> None:
    rig = Rig()
    part = msg.Holding(descriptor=descriptor_of(4), held=0b1, sealed=False)
    rig.connect("a", join_of(member()), holdings=(part,))
    rig.answer("a")
    assert not rig.granted("a")
    rest = msg.Holding(descriptor=descriptor_of(4), held=0b0110, sealed=False)
    rig.connect("b", holdings=(rest,))
    rig.wait(1)
    assert mask(rig.granted("a")) == 0b1000


def crowd_comes_back(rig: Rig, held: list[int]) -> None:
    """Many hosts of a task are heard again, each with what it holds."""
    for number, pieces in enumerate(held):
        part = msg.Holding(descriptor=descriptor_of(8), held=pieces, sealed=False)
        rig.connect(f"h{number}", join_of(member()), holdings=(part,))
    rig.answer("h0", pieces=8)


def leased_pieces(rig: Rig) -> int:
    pieces = 0
    for lease in rig.engine.state.leases.values():
        pieces |= lease.pieces
    return pieces


def test_a_restarted_scheduler_leases_once_a_crowd_has_nothing_new_to_tell() -> None:
    rig = Rig()
    crowd_comes_back(rig, [0b11] * SETTLE_HOSTS)
    rig.wait(0.2)
    assert not leased_pieces(rig)
    rig.wait(0.1)
    assert leased_pieces(rig) & 0b100


def test_a_restarted_scheduler_waits_on_while_a_crowd_tells_news() -> None:
    rig = Rig()
    crowd_comes_back(rig, [0b11] * SETTLE_HOSTS)
    for number, held in enumerate((0b111, 0b1111, 0b11111, 0b111111)):
        rig.wait(0.2)
        part = msg.Holding(descriptor=descriptor_of(8), held=held, sealed=False)
        rig.connect(f"late{number}", holdings=(part,))
        assert not leased_pieces(rig)
    rig.wait(0.25)
    assert leased_pieces(rig) == 0b11000000, "after a second at the latest"


def test_few_hosts_are_waited_for_to_the_end() -> None:
    rig = Rig()
    crowd_comes_back(rig, [0b11] * (SETTLE_HOSTS - 1))
    rig.wait(0.9)
    assert not leased_pieces(rig)
    rig.wait(0.2)
    assert leased_pieces(rig)


def test_a_restarted_scheduler_adopts_the_leases_that_hosts_still_read() -> None:
    rig = Rig()
    part = msg.Holding(descriptor=descriptor_of(8), held=0b1, sealed=False)
    held = msg.HeldLease(number=LeaseNumber(99), task_id=DIGEST_TASK, pieces=0b1110)
    rig.connect("a", join_of(member()), holdings=(part,), leases=(held,))
    rig.answer("a", pieces=8)
    again = msg.HeldLease(number=LeaseNumber(100), task_id=DIGEST_TASK, pieces=0b0110)
    rig.connect("b", join_of(member()), leases=(again,))
    assert rig.revoked("b") == [100]
    stranger = msg.HeldLease(number=LeaseNumber(99), task_id=DIGEST_TASK, pieces=0b1110)
    rig.connect("c", leases=(stranger,))
    assert rig.engine.state.leases[LeaseNumber(99)].host_id == "a"
    rig.wait(1.1)
    granted = mask(rig.granted("a") + rig.granted("b"))
    assert not granted & 0b1111
    rig.send(
        "a", msg.Report(statements=(msg.Statement(DIGEST_TASK, 1, 1, digest_of(1), held.number),))
    )
    assert 1 in rig.engine.state.tasks[DIGEST_TASK].listed


def test_one_sequential_lease_only_is_adopted() -> None:
    rig = Rig()
    whole = descriptor_of(None, ranges=False)
    part = msg.Holding(descriptor=whole, held=0b1, sealed=False)
    one = msg.HeldLease(number=LeaseNumber(5), task_id=DIGEST_TASK, pieces=0)
    two = msg.HeldLease(number=LeaseNumber(6), task_id=DIGEST_TASK, pieces=0)
    rig.connect("a", join_of(member()), holdings=(part,), leases=(one,))
    rig.connect("b", join_of(member()), holdings=(part,), leases=(two,))
    assert rig.revoked("a") == []
    assert rig.revoked("b") == [6]


def test_a_lease_of_an_unknown_task_is_not_adopted() -> None:
    rig = Rig()
    held = msg.HeldLease(number=LeaseNumber(5), task_id=TaskId("unknown"), pieces=1)
    rig.connect("a", leases=(held,))
    assert not rig.engine.state.leases


def test_an_inventory_of_another_cut_or_an_older_epoch_is_not_mixed_in() -> None:
    rig = Rig()
    rig.start("a", pieces=4)
    rig.check("a", passed=False, digest="sha256:00")
    other_cut = msg.Holding(descriptor=descriptor_of(5, epoch=2), held=0b1, sealed=False)
    rig.connect("b", holdings=(other_cut,))
    older = msg.Holding(descriptor=descriptor_of(4, epoch=1), held=0b1, sealed=False)
    rig.connect("c", holdings=(older,))
    assert not rig.engine.state.tasks[DIGEST_TASK].holders
    sealed = msg.Holding(descriptor=descriptor_of(4, epoch=1), held=0b1111, sealed=True)
    rig.connect("c", holdings=(sealed,))
    assert rig.engine.state.tasks[DIGEST_TASK].covered == 0b1111


def test_an_inventory_may_bring_the_size_that_is_missing() -> None:
    rig = Rig()
    unknown = msg.Holding(descriptor=descriptor_of(None), held=0b1, sealed=False)
    rig.connect("a", join_of(member()), holdings=(unknown,))
    known = msg.Holding(descriptor=descriptor_of(2), held=0b11, sealed=True)
    rig.connect("b", holdings=(known,))
    descriptor = rig.engine.state.tasks[DIGEST_TASK].descriptor
    assert descriptor.geometry.size_bytes == 2 * PIECE_BYTES
    assert descriptor.digest == DIGEST
