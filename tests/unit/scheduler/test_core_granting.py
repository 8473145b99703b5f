"""Who reads what next: stripes in step, windows, roots that may not read, tasks in order."""

import itertools
from collections.abc import Sequence

import pytest

from shoal.wire import bitfield
from shoal.wire import control as msg
from shoal.wire.errors import Reason
from shoal.wire.ids import HostId, LeaseNumber, TaskId, collection_of, source_of_digest
from shoal.wire.ids import task_of_digest as task_of
from shoal.wire.limits import MIB, UNIT_BYTES_MAX, UNIT_BYTES_MIN, UNIT_BYTES_USUAL
from tests.unit.scheduler.core_rig import (
    DIGEST_TASK,
    PIECE_BYTES,
    Rig,
    descriptor_of,
    join_of,
    member,
)

UNIT_PIECES = UNIT_BYTES_USUAL // PIECE_BYTES
NAMES = [f"h{number}" for number in range(8)]


def swarm(pieces: int = 400) -> Rig:
    """A swarm that has read nothing yet, with four roots."""
    rig = Rig()
    for name in NAMES:
        rig.connect(name, join_of(member()))
    rig.answer(NAMES[0], pieces=pieces)
    rig.wait(0.1)
    return rig


def roots(rig: Rig) -> list[HostId]:
    return rig.engine._swarms.boards[rig.collection()].overlay.roots


def leased(rig: Rig) -> dict[str, list[msg.Lease]]:
    """By host: all that was granted since the last look."""
    found = {name: rig.granted(name) for name in NAMES if name in rig.sessions}
    return {name: leases for name, leases in found.items() if leases}


def stripes_of(leases: list[msg.Lease]) -> set[int]:
    found = set()
    for lease in leases:
        assert lease.piece_count is not None
        for piece in range(lease.first_piece, lease.first_piece + lease.piece_count):
            found.add(piece // UNIT_PIECES % 4)
    return found


def read_on(rig: Rig, mine: dict[str, list[msg.Lease]], names: Sequence[str]) -> None:
    """These hosts read all that they have, each in one report."""
    for name in names:
        if mine.get(name):
            rig.read_at_once(name, mine.pop(name))
    for name, leases in leased(rig).items():
        mine.setdefault(name, []).extend(leases)


@pytest.mark.parametrize(
    ("size_bytes", "unit_bytes"),
    [
        (64 * MIB, UNIT_BYTES_MIN),
        (65 * MIB, UNIT_BYTES_USUAL),
        (1024 * MIB, UNIT_BYTES_USUAL),
        (1025 * MIB, 4 * MIB),
        (40_000 * MIB, UNIT_BYTES_MAX),
    ],
)
def test_a_small_content_is_read_in_short_units(size_bytes: int, unit_bytes: int) -> None:
    rig = swarm(pieces=size_bytes // PIECE_BYTES)
    assert rig.got(NAMES[7], msg.Assigned)[-1].unit_bytes == unit_bytes


def test_each_root_reads_its_own_stripe() -> None:
    rig = swarm()
    alone = rig.granted(NAMES[0])  # Before there were stripes.
    rig.read_at_once(NAMES[0], alone)
    mine: dict[str, list[msg.Lease]] = {}
    for _ in range(6):
        read_on(rig, mine, roots(rig))
        for name, leases in mine.items():
            for stripe in stripes_of(leases):
                assert roots(rig)[stripe] == name


def test_a_stripe_that_lags_holds_the_others_up() -> None:
    rig = swarm()
    mine: dict[str, list[msg.Lease]] = {}
    read_on(rig, mine, roots(rig))
    read_on(rig, mine, roots(rig))
    lagging, *others = (root for root in roots(rig) if mine.get(root))
    for _ in range(30):
        read_on(rig, mine, others)
    task = rig.engine.state.tasks[DIGEST_TASK]
    everything = (1 << 400) - 1
    low = bitfield.lowest(everything & ~task.covered) // UNIT_PIECES
    high = (task.covered | task.leased).bit_length() // UNIT_PIECES
    windows = [rig.engine.state.hosts[root].lease_window_bytes for root in roots(rig)]
    assert high - low <= 4 * (1 + max(2, min(windows) // UNIT_BYTES_USUAL)) + 1
    assert all(not mine.get(other) for other in others), "they wait"
    while mine.get(lagging):
        read_on(rig, mine, [lagging])
        read_on(rig, mine, others)
    assert task.covered == everything


def test_a_root_for_which_all_others_wait_for_long_is_none_any_more() -> None:
    rig = swarm()
    mine: dict[str, list[msg.Lease]] = {}
    read_on(rig, mine, roots(rig))
    slow, others = roots(rig)[2], [root for root in roots(rig) if root != roots(rig)[2]]
    for _ in range(6):
        rig.wait(0.02)
        read_on(rig, mine, others)
    assert not any(mine.get(root) for root in others), "they wait"
    rig.wait(0.3)
    assert slow in roots(rig), "not for long yet"
    assert not rig.revoked(slow)
    rig.wait(0.4)
    assert slow not in roots(rig)
    assert set(rig.revoked(slow)) == {lease.number for lease in mine[slow]}
    del mine[slow]
    for _ in range(6):
        read_on(rig, mine, roots(rig))
        assert slow not in leased(rig)
    covered = rig.engine.state.tasks[rig.task_id].covered
    assert bitfield.prefix(covered) > 10 * UNIT_PIECES


def test_roots_that_wait_for_as_long_as_they_read_themselves_blame_nobody() -> None:
    rig = swarm()
    mine: dict[str, list[msg.Lease]] = {}
    read_on(rig, mine, roots(rig))
    before = roots(rig)
    last, others = before[2], [root for root in before if root != before[2]]
    for _ in range(3):
        rig.wait(1.0)
        read_on(rig, mine, others)
        rig.wait(1.5)
        read_on(rig, mine, [last])
    assert roots(rig) == before


def test_a_wait_that_is_over_does_not_count_later() -> None:
    rig = swarm()
    mine: dict[str, list[msg.Lease]] = {}
    read_on(rig, mine, roots(rig))
    last = roots(rig)[2]
    for _ in range(6):
        read_on(rig, mine, [root for root in roots(rig) if root != last])
    granting = rig.engine._leases._granting
    assert granting._held_up
    for name in [*NAMES]:
        rig.leave(name)
    assert not granting._held_up


def test_a_window_does_not_grow_where_another_stripe_holds_its_reader_up() -> None:
    rig = swarm()
    mine: dict[str, list[msg.Lease]] = {}
    read_on(rig, mine, roots(rig))
    lagging, *others = (root for root in roots(rig) if mine.get(root))
    for _ in range(6):
        read_on(rig, mine, others)
    stopped = {name: rig.engine.state.hosts[name].lease_window_bytes for name in others}
    for _ in range(20):
        rig.wait(0.1)
        read_on(rig, mine, others)
    after = {name: rig.engine.state.hosts[name].lease_window_bytes for name in others}
    assert after == stopped
    assert mine[lagging]


def test_windows_grow_where_all_readers_run_dry_together() -> None:
    rig = swarm(4000)
    mine: dict[str, list[msg.Lease]] = {}
    read_on(rig, mine, [])
    before = [rig.engine.state.hosts[root].lease_window_bytes for root in roots(rig)]
    for _ in range(40):
        read_on(rig, mine, roots(rig))
    after = [rig.engine.state.hosts[root].lease_window_bytes for root in roots(rig)]
    assert min(after) > max(before)


def test_a_root_that_may_not_read_is_stood_in_for() -> None:
    rig = Rig()
    for number, name in enumerate(NAMES):
        rig.connect(name, join_of(member(origin_allowed=number >= 4)))
    rig.answer(NAMES[4], pieces=64)
    rig.wait(0.1)
    for _ in range(40):
        mine = leased(rig)
        assert not set(mine) & set(NAMES[:4])
        if not mine:
            break
        for name, leases in mine.items():
            rig.read_at_once(name, leases)
    assert rig.engine.state.tasks[DIGEST_TASK].covered == (1 << 64) - 1


def test_a_sole_reader_reads_everything_whoever_the_roots_are() -> None:
    rig = swarm(64)
    old = leased(rig)
    assert old
    rig.check(NAMES[7], passed=False, digest="sha256:00")
    for _ in range(40):
        mine = leased(rig)
        if not mine:
            break
        assert set(mine) == {NAMES[7]}
        rig.read_at_once(NAMES[7], mine[NAMES[7]])
    assert rig.engine.state.tasks[DIGEST_TASK].covered == (1 << 64) - 1


def test_tasks_are_read_in_the_order_of_the_collection() -> None:
    rig = Rig()
    digests = [f"sha256:{number:064x}" for number in range(3)]
    members = tuple(
        msg.Member(
            source_id=source_of_digest(digest, None),
            task_id=task_of(digest, None),
            digest=digest,
            display_url="",
            piece_length_bytes=None,
            anonymous=True,
        )
        for digest in digests
    )
    sources = tuple(one.source_id for one in members)
    for name in NAMES:
        rig.connect(name, msg.Join(collection_id=collection_of(sources), members=members))
    for source in (sources[2], sources[0], sources[1]):
        rig.send(
            next(name for name in NAMES if source in stat_asked(rig, name)),
            msg.StatAnswer(
                source_id=source, outcome=None, size_bytes=64 * PIECE_BYTES, ranges=True
            ),
        )
    early = leased(rig)
    for name, leases in early.items():
        rig.read_at_once(name, leases)
    rig.wait(0.1)
    order: list[TaskId] = []
    for _ in range(100):
        mine = leased(rig)
        if not mine:
            break
        for name, leases in mine.items():
            order += [lease.task_id for lease in leases]
            rig.read_at_once(name, leases)
    tasks = rig.engine.state.tasks
    assert all(task.covered == (1 << 64) - 1 for task in tasks.values())
    ids = [one.task_id for one in members]
    last = {task: len(order) - 1 - order[::-1].index(task) for task in order}
    for one, other in itertools.pairwise(ids):
        if one in last and other in last:
            assert last[one] < last[other]


def stat_asked(rig: Rig, name: str) -> list[str]:
    """The sources that a host was asked to look at, ever."""
    inbox = rig.inbox.get(rig.sessions[name], [])
    return [m.source_id for m in inbox if isinstance(m, msg.StatWanted)]


def test_leases_that_a_new_hello_does_not_name_are_free_at_once() -> None:
    rig = swarm(8)
    mine = leased(rig)
    (holder,) = list(mine)[:1]
    lost = sum(
        bitfield.mask_of(lease.first_piece, lease.piece_count or 0) for lease in mine[holder]
    )
    rig.connect(holder, join_of(member()), generation=2)
    rig.wait(0.1)
    again = 0
    for leases in leased(rig).values():
        for lease in leases:
            again |= bitfield.mask_of(lease.first_piece, lease.piece_count or 0)
    assert again & lost == lost


def test_leases_that_a_new_hello_names_are_kept() -> None:
    rig = swarm(8)
    mine = leased(rig)
    (holder,) = list(mine)[:1]
    held = tuple(
        msg.HeldLease(
            number=lease.number,
            task_id=DIGEST_TASK,
            pieces=bitfield.mask_of(lease.first_piece, lease.piece_count or 0),
        )
        for lease in mine[holder]
    )
    rig.connect(holder, join_of(member()), generation=2, leases=held)
    assert {lease.number for lease in mine[holder]} <= set(rig.engine.state.leases)
    assert not rig.revoked(holder)


def test_what_only_a_host_that_is_away_holds_is_leased_again() -> None:
    rig = swarm(8)
    mine = leased(rig)
    for name, leases in mine.items():
        rig.read_at_once(name, leases)
    rig.read_all(NAMES[0])
    for name in NAMES:
        rig.read_all(name)
    task = rig.engine.state.tasks[DIGEST_TASK]
    assert task.covered == 0xFF
    (holder,) = task.holders
    rig.disconnect(holder)
    del rig.sessions[holder]
    rig.wait(0.1)
    assert not rig.engine.state.leases, "it may be back in a moment"
    rig.wait(0.2)
    assert {lease.host_id for lease in rig.engine.state.leases.values()}
    assert task.leased == 0xFF
    back = msg.Holding(descriptor=descriptor_of(8), held=0xFF, sealed=False)
    rig.connect(holder, join_of(member()), holdings=(back,))
    assert task.covered == 0xFF


def test_what_a_doubted_host_says_it_lost_it_may_read_again() -> None:
    rig = Rig()
    rig.start("a", pieces=4)
    rig.read_all("a")
    rig.connect("b", join_of(member(origin_allowed=False)))
    rig.blame("b", "a", 1, Reason.PEER_CORRUPT)
    assert not rig.granted("a"), "it says that it has it"
    lost = msg.Progress(task_id=DIGEST_TASK, epoch=1, new=0, lost=0b10)
    rig.send("a", msg.Report(progress=(lost,)))
    (lease,) = rig.granted("a")
    assert (lease.first_piece, lease.piece_count) == (1, 1)
    rig.read("a", lease)
    assert rig.engine.state.tasks[DIGEST_TASK].covered == 0b1111


def test_a_task_without_hope_is_noted_once() -> None:
    rig = swarm(400)
    refused = 0
    for _ in range(100):
        mine = leased(rig)
        for name, leases in mine.items():
            for lease in leases:
                refused += 1
                rig.fail_lease(name, lease, Reason.ORIGIN_FORBIDDEN)
        rig.wait(0.1)
    assert refused >= len(NAMES)
    assert [note.kind for note in rig.notes].count("task-failed") == 1
    assert all(rig.failures(name) for name in NAMES)


@pytest.mark.parametrize("number", [7, 2**60])
def test_lease_numbers_of_strangers_are_nobodys(number: int) -> None:
    rig = swarm(8)
    end = msg.LeaseEnd(number=LeaseNumber(number), task_id=DIGEST_TASK, outcome=None)
    before = dict(rig.engine.state.leases)
    rig.send("h1", msg.Report(lease_ends=(end,)))
    assert rig.engine.state.leases == before


def test_collections_of_one_host_get_leases_in_turn_as_its_window_has_room() -> None:
    """Many contents asked for alone, at one host: each is a collection of one."""
    rig = Rig()
    members = [
        msg.Member(
            source_id=source_of_digest(digest, None),
            task_id=task_of(digest, None),
            digest=digest,
            display_url="",
            piece_length_bytes=None,
            anonymous=True,
        )
        for digest in (f"sha256:{number:064x}" for number in range(12))
    ]
    rig.connect("a")
    for one in members:
        rig.send("a", join_of(one))
    for one in members:
        rig.send(
            "a",
            msg.StatAnswer(
                source_id=one.source_id, outcome=None, size_bytes=6 * PIECE_BYTES, ranges=True
            ),
        )
    leases = rig.granted("a")
    while leases:
        lease, *leases = leases
        rig.read("a", lease)
        leases += rig.granted("a")
    tasks = rig.engine.state.tasks
    assert len(tasks) == len(members)
    assert [task.covered for task in tasks.values()] == [(1 << 6) - 1] * len(members)
