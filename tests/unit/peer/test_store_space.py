"""Room: what fits, what is refused, what is evicted, and that reservations balance."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from peer.shell.store.content import ContentStore
from peer.shell.store.errors import StoreError
from peer.shell.store.space import (
    Ledger,
    Occupant,
    Share,
    SpaceLimits,
    StoreUsage,
    choose_evictions,
    in_words,
    share_of,
)
from shoal.wire.control import TaskDescriptor
from shoal.wire.errors import Reason, UsageError
from shoal.wire.ids import TaskId
from tests.fakes.files import FakeFiles
from tests.fakes.store import (
    PIECE_BYTES,
    describe,
    open_store,
    part,
    put,
    put_whole,
    record_of,
    some_bytes,
    task_id_of,
    tolerating,
)


def fake_store(
    tmp_path: Path, *, disk_bytes: int = 1 << 30, preallocates: bool = True, **limits: int
) -> tuple[ContentStore, FakeFiles]:
    root = tmp_path / "store"
    files = FakeFiles(
        [root, root / "content"], capacity_bytes=disk_bytes, preallocates=preallocates
    )
    store = open_store(root, files, **limits)
    store.load()
    return store, files


# ---------------------------------------------------------------- arithmetic


def usage_of(capacity: int, used: int, reserved: int = 0) -> StoreUsage:
    return StoreUsage(
        capacity_bytes=capacity,
        used_bytes=used,
        reserved_bytes=reserved,
        free_bytes=max(0, capacity - used - reserved),
    )


def test_share() -> None:
    assert share_of(100, 30, backed=True) == Share(30, 70, 0)
    assert share_of(100, 30, backed=False) == Share(30, 70, 70)
    assert share_of(100, 100, backed=False) == Share(100, 0, 0)
    assert share_of(None, 30, backed=False) == Share(30, 0, 0)


def test_usage_is_bounded_by_capacity_and_disk() -> None:
    ledger = Ledger()
    ledger.set(TaskId("a"), Share(used=10, reserved=50, unbacked=50))
    ledger.set(TaskId("b"), Share(used=20, reserved=20, unbacked=0))
    assert ledger.usage(SpaceLimits(), 1050) == StoreUsage(
        capacity_bytes=1100, used_bytes=30, reserved_bytes=70, free_bytes=1000
    )
    assert ledger.usage(SpaceLimits(capacity_bytes=150), 1050).free_bytes == 50
    assert ledger.usage(SpaceLimits(capacity_bytes=10_000), 60).free_bytes == 10
    assert ledger.usage(SpaceLimits(capacity_bytes=50), 1050).free_bytes == 0
    ledger.clear(TaskId("a"))
    ledger.clear(TaskId("a"))
    assert (ledger.used_bytes, ledger.reserved_bytes, ledger.unbacked_bytes) == (20, 20, 0)


def test_eviction_from_high_to_low_water_by_last_use() -> None:
    occupants = [Occupant(TaskId(str(n)), 10 - n, 10, False) for n in range(9)]
    limits = SpaceLimits(high_water_percent=90, low_water_percent=70)
    assert choose_evictions(occupants, usage_of(100, 89), limits) == []
    assert choose_evictions(occupants, usage_of(100, 80, 10), limits) == ["8", "7"]


def test_eviction_spares_what_is_busy_or_takes_no_room() -> None:
    occupants = [
        Occupant(TaskId("busy"), 1, 50, True),
        Occupant(TaskId("empty"), 2, 0, False),
        Occupant(TaskId("idle"), 3, 50, False),
    ]
    assert choose_evictions(occupants, usage_of(100, 100), SpaceLimits()) == ["idle"]


def test_eviction_makes_room_below_the_mark_as_well() -> None:
    occupants = [Occupant(TaskId(str(n)), n, 10, False) for n in range(5)]
    assert choose_evictions(occupants, usage_of(100, 50), SpaceLimits(), 65) == ["0", "1"]
    assert choose_evictions(occupants, usage_of(100, 50), SpaceLimits(), 50) == []
    assert choose_evictions(occupants, usage_of(100, 50), SpaceLimits(), 1000) == list("01234")


@pytest.mark.parametrize(("high", "low"), [(80, 80), (101, 50), (50, -1)])
def test_water_marks_must_make_sense(high: int, low: int) -> None:
    with pytest.raises(UsageError, match="water marks"):
        SpaceLimits(high_water_percent=high, low_water_percent=low)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (1536 * 1024, "1.5 MiB"),
        (1 << 40, "1.0 TiB"),
        (1 << 55, "32768.0 TiB"),
    ],
)
def test_sizes_in_words(size: int, words: str) -> None:
    assert in_words(size) == words


# ---------------------------------------------------------------- the store


def test_a_task_that_does_not_fit_is_refused_up_front(tmp_path: Path) -> None:
    store, files = fake_store(tmp_path, capacity_bytes=10 * PIECE_BYTES)
    store.open_task(describe("a", 7 * PIECE_BYTES))
    put(store, describe("a", 7 * PIECE_BYTES), some_bytes(7 * PIECE_BYTES), 0, 1)
    with pytest.raises(StoreError) as caught:
        store.open_task(describe("b", 4 * PIECE_BYTES))
    assert caught.value.reason is Reason.DISK_FULL
    assert caught.value.needed_bytes == 4 * PIECE_BYTES
    text = str(caught.value)
    for words in ("4.0 KiB", "3.0 KiB", "10.0 KiB", "2.0 KiB", "5.0 KiB", "shoal tasks rm"):
        assert words in text
    assert len(files.names()) == 1, "nothing is left of the one that was refused"
    store.open_task(describe("c", 3 * PIECE_BYTES))
    store.validate()


@pytest.mark.parametrize("preallocates", [True, False])
def test_the_disk_bounds_what_fits(tmp_path: Path, preallocates: bool) -> None:
    store, _ = fake_store(tmp_path, disk_bytes=10 * PIECE_BYTES, preallocates=preallocates)
    store.open_task(describe("a", 6 * PIECE_BYTES))
    assert store.usage().free_bytes == 4 * PIECE_BYTES
    with pytest.raises(StoreError, match=r"5\.0 KiB are needed"):
        store.open_task(describe("b", 5 * PIECE_BYTES))
    store.remove(task_id_of("a"))
    store.open_task(describe("b", 10 * PIECE_BYTES))
    assert store.usage().free_bytes == 0


def test_a_size_found_that_does_not_fit(tmp_path: Path) -> None:
    store, _ = fake_store(tmp_path, capacity_bytes=4 * PIECE_BYTES)
    descriptor = describe("a", None)
    data = some_bytes(4 * PIECE_BYTES)
    store.open_task(descriptor)
    own = part(descriptor, data, 0)
    store.write_piece(descriptor.task_id, 0, 1, memoryview(own), record_of(descriptor, own))
    with pytest.raises(StoreError) as caught:
        store.open_task(describe("a", 5 * PIECE_BYTES))
    assert caught.value.needed_bytes == 4 * PIECE_BYTES
    assert store.open_task(descriptor).held == 1, "nothing is lost"
    store.validate()


def test_a_content_of_unknown_size_does_not_outgrow_the_capacity(tmp_path: Path) -> None:
    store, _ = fake_store(tmp_path, capacity_bytes=3 * PIECE_BYTES)
    descriptor = describe("a", None)
    data = some_bytes(4 * PIECE_BYTES)
    store.open_task(descriptor)
    for piece in range(4):
        own = part(descriptor, data, piece)
        if piece < 3:
            store.write_piece(
                descriptor.task_id, piece, 1, memoryview(own), record_of(descriptor, own)
            )
            continue
        with pytest.raises(StoreError) as caught:
            store.write_piece(
                descriptor.task_id, piece, 1, memoryview(own), record_of(descriptor, own)
            )
        assert caught.value.reason is Reason.DISK_FULL
    assert store.open_task(descriptor).held == 0b111
    store.validate()


def test_eviction_candidates(tmp_path: Path) -> None:
    store, _ = fake_store(
        tmp_path, capacity_bytes=20 * PIECE_BYTES, high_water_percent=80, low_water_percent=50
    )
    for name in "abcd":
        put_whole(store, describe(name), some_bytes(4 * PIECE_BYTES))
    store.touch(task_id_of("a"))
    assert store.candidates_to_evict() == [task_id_of("b"), task_id_of("c")]
    store.pin(task_id_of("b"))
    with store.lend(task_id_of("c")):
        assert store.candidates_to_evict() == [task_id_of("d"), task_id_of("a")]
    store.unpin(task_id_of("b"))
    store.remove(task_id_of("b"))
    assert store.candidates_to_evict() == []
    assert store.candidates_to_evict(12 * PIECE_BYTES) == [task_id_of("d")]


def test_reservations_survive_a_restart(tmp_path: Path) -> None:
    store = open_store(tmp_path / "real", capacity_bytes=1 << 20)
    store.load()
    store.open_task(describe("a", 100 * PIECE_BYTES))
    put(store, describe("a", 100 * PIECE_BYTES), some_bytes(100 * PIECE_BYTES), 5)
    before = store.usage()
    store.close()
    store = open_store(tmp_path / "real", capacity_bytes=1 << 20)
    store.load()
    assert store.usage() == before
    assert before.reserved_bytes == 99 * PIECE_BYTES
    store.close()


# ---------------------------------------------------------------- balance


class BalanceMachine(RuleBasedStateMachine):
    """Whatever is done to the store: reserved is what unfinished tasks still need, used is what
    they have, and nothing is left when all are gone."""

    directory: Path
    runs = 0

    @initialize(
        capacity=st.sampled_from([0, 12 * PIECE_BYTES, 40 * PIECE_BYTES]),
        disk=st.sampled_from([20 * PIECE_BYTES, 1 << 30]),
        preallocates=st.booleans(),
    )
    def begin(self, capacity: int, disk: int, preallocates: bool) -> None:
        """A store of some size."""
        type(self).runs += 1
        self.root = self.directory / str(type(self).runs)
        self.capacity = capacity
        self.files = FakeFiles(
            [self.root, self.root / "content"], capacity_bytes=disk, preallocates=preallocates
        )
        self.store = open_store(self.root, self.files, capacity_bytes=capacity)
        self.store.load()
        self.known: dict[TaskId, TaskDescriptor] = {}

    @rule(
        name=st.sampled_from("abc"),
        size=st.one_of(st.none(), st.integers(0, 9 * PIECE_BYTES)),
        epoch=st.integers(1, 3),
    )
    def open(self, name: str, size: int | None, epoch: int) -> None:
        """A task is opened, again perhaps, and perhaps with another size or epoch."""
        descriptor = describe(name, size, epoch=epoch)
        with tolerating(Reason.DISK_FULL, Reason.DIGEST_MISMATCH):
            stored = self.store.open_task(descriptor)
            self.known[descriptor.task_id] = stored.descriptor

    @precondition(lambda self: self.known)
    @rule(pick=st.integers(0, 2), piece=st.integers(0, 9), short=st.integers(0, 1))
    def write(self, pick: int, piece: int, short: int) -> None:
        """A piece comes, fitting or not."""
        descriptor = list(self.known.values())[pick % len(self.known)]
        geometry = descriptor.geometry
        length = PIECE_BYTES - short
        if geometry.size_bytes is not None and piece < geometry.piece_count:
            length = geometry.length_bytes(piece)
        data = some_bytes(length, seed=piece)
        with tolerating(Reason.DISK_FULL, Reason.CANCELLED):
            self.store.write_piece(
                descriptor.task_id,
                piece,
                descriptor.epoch,
                memoryview(data),
                record_of(descriptor, data),
            )

    @precondition(lambda self: self.known)
    @rule(pick=st.integers(0, 2), mask=st.integers(0, 1023))
    def drop(self, pick: int, mask: int) -> None:
        """Pieces are dropped."""
        self.store.drop_pieces(list(self.known)[pick % len(self.known)], mask)

    @precondition(lambda self: self.known)
    @rule(pick=st.integers(0, 2))
    def seal(self, pick: int) -> None:
        """A task is sealed, if it is whole."""
        with tolerating(Reason.NOT_HELD):
            self.store.seal(list(self.known)[pick % len(self.known)], "sha256:00")

    @precondition(lambda self: self.known)
    @rule(pick=st.integers(0, 2))
    def remove(self, pick: int) -> None:
        """A task is removed."""
        task_id = list(self.known)[pick % len(self.known)]
        self.store.remove(task_id)
        del self.known[task_id]

    @rule()
    def journal(self) -> None:
        """What happened is written down."""
        self.store.flush()

    @rule()
    def sync(self) -> None:
        """What was written is made durable."""
        self.store.sync_some()

    @rule()
    def restart(self) -> None:
        """The daemon stops and starts."""
        self.store.close()
        self.store = open_store(self.root, self.files, capacity_bytes=self.capacity)
        _, tasks = self.store.load()
        assert {task.descriptor.task_id for task in tasks} == set(self.known)
        self.known = {task.descriptor.task_id: task.descriptor for task in tasks}
        assert self.files.open_files == {}

    @invariant()
    def balanced(self) -> None:
        """The books are right."""
        self.store.validate()
        usage = self.store.usage()
        if self.capacity:
            assert usage.used_bytes + usage.reserved_bytes <= self.capacity
        if not self.known:
            assert (usage.used_bytes, usage.reserved_bytes) == (0, 0)

    def teardown(self) -> None:
        """Everything is removed."""
        if hasattr(self, "store"):
            for task_id in self.known:
                self.store.remove(task_id)
            usage = self.store.usage()
            assert (usage.used_bytes, usage.reserved_bytes) == (0, 0)
            self.store.close()
            assert self.files.open_files == {}


@pytest.mark.slow
def test_reservations_balance(tmp_path: Path) -> None:
    machine = type("Machine", (BalanceMachine,), {"directory": tmp_path, "runs": 0})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


@given(
    occupants=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 40), st.booleans())),
    capacity=st.integers(0, 500),
    room=st.integers(0, 300),
)
@settings(derandomize=True)
def test_evictions_are_enough_and_not_too_many(
    occupants: list[tuple[int, int, bool]], capacity: int, room: int
) -> None:
    tasks = [
        Occupant(TaskId(str(index)), order, size, busy)
        for index, (order, size, busy) in enumerate(occupants)
    ]
    occupied = sum(one.occupied_bytes for one in tasks)
    usage = usage_of(capacity, occupied)
    limits = SpaceLimits(high_water_percent=90, low_water_percent=60)
    by_id = {one.task_id: one for one in tasks}
    chosen = [by_id[task_id] for task_id in choose_evictions(tasks, usage, limits, room)]
    assert not any(one.busy for one in chosen)
    left = occupied - sum(one.occupied_bytes for one in chosen)
    idle_left = [one for one in tasks if not one.busy and one not in chosen and one.occupied_bytes]
    if idle_left:
        assert left + room <= capacity or not room
        assert left * 100 < capacity * 90 or left == 0 or left * 100 <= capacity * 60
        assert all(
            one.access_order <= min(other.access_order for other in idle_left) for one in chosen
        )
    if chosen:
        # Without the last one it would not have been enough.
        before = left + chosen[-1].occupied_bytes
        assert before + room > capacity or before > capacity * 60 // 100
