"""Recovery never invents: whatever a crash leaves behind, only right pieces are offered.

Operations on a fake disk and commits of the database go into one log. For many points of it the
power is cut: the database is what it was after the last durable commit or any later one, and what
was not synced is kept, lost or torn as drawn.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from peer.core.events import StoredTask
from peer.shell.store.content import ContentStore
from shoal.wire.ids import TaskId
from tests.fakes.files import FakeFiles
from tests.fakes.store import (
    PIECE_BYTES,
    check_truth,
    describe,
    digest_of,
    part,
    put,
    put_whole,
    record_of,
    some_bytes,
    task_id_of,
)

DATABASE_FILES = ("metadata.db", "metadata.db-wal")


class CrashLab:
    """Runs a scenario on a fake disk and restarts the store from what a crash may leave."""

    def __init__(self, directory: Path, *, preallocates: bool = True) -> None:
        self.root = directory / "store"
        self.out = directory / "out"
        self._saved = directory / "saved"
        self._commits = 0
        self.files = FakeFiles(
            [self.root, self.root / "content", self.out], preallocates=preallocates
        )
        self.store = self.open(self.files, self._committed)

    def open(
        self, files: FakeFiles, on_commit: Callable[[bool], None] | None = None
    ) -> ContentStore:
        """A store, not loaded."""
        return ContentStore(
            self.root, now_unix_s=lambda: 1_000, files=files, on_commit=on_commit, workers=1
        )

    def start(self) -> None:
        """Loads the first store."""
        self.store.load()

    def _committed(self, durably: bool) -> None:
        self._commits += 1
        directory = self._saved / str(self._commits)
        directory.mkdir(parents=True)
        for name in DATABASE_FILES:
            if (self.root / name).exists():
                shutil.copy(self.root / name, directory / name)
        self.files.mark("commit", self._commits, durably)

    def stop(self) -> None:
        """Ends the first store; the log is complete."""
        self.store.close()

    def points(self) -> range:
        """Every place in the log where the power may go away, once the store is loaded."""
        first = next(i for i, entry in enumerate(self.files.log) if entry[0] == "commit")
        return range(first + 1, len(self.files.log) + 1)

    def crash(self, point: int, dice: Random, lose: float) -> tuple[ContentStore, FakeFiles]:
        """A store, not loaded, on what a crash at that point left."""
        possible: list[int] = []
        for entry in self.files.log[:point]:
            if entry[0] == "commit":
                possible = [entry[1]] if entry[2] or lose == 0 else [*possible, entry[1]]
        commit = dice.choice(possible)
        for name in (*DATABASE_FILES, "metadata.db-shm"):
            (self.root / name).unlink(missing_ok=True)
            if (self._saved / str(commit) / name).exists():
                shutil.copy(self._saved / str(commit) / name, self.root / name)
        disk = self.files.after_power_loss(point, dice, lose=lose)
        return self.open(disk), disk


def check_all_crashes(
    lab: CrashLab, truth: Callable[[StoredTask], bytes], *, draws: int, step: int = 1
) -> int:
    """Crashes at every point with several draws; returns how many pieces were held in total."""
    held = 0
    points = list(lab.points())[::step]
    for point in points:
        for draw in range(draws):
            lose = (0, 0.5, 1)[draw % 3]
            store, disk = lab.crash(point, Random(f"{point}-{draw}"), lose)
            _, loaded = store.load()
            store.validate()
            for stored in loaded:
                data = truth(stored)
                check_truth(store, disk, stored, data)
                if stored.sealed:
                    assert stored.held == stored.descriptor.geometry.all_pieces
                held += stored.held.bit_count()
                # And it can go on from there.
                again = store.open_task(stored.descriptor)
                assert again.held == stored.held
                if not stored.sealed and stored.descriptor.geometry.size_bytes is not None:
                    put(store, stored.descriptor, data)
                    store.seal(stored.descriptor.task_id, digest_of(data))
                    whole = disk.content(store_file(lab, stored.descriptor.task_id))
                    assert whole == data
            store.validate()
            store.close()
    return held


def store_file(lab: CrashLab, task_id: TaskId) -> Path:
    return lab.root / "content" / task_id[:2] / task_id


@pytest.mark.parametrize("preallocates", [True, False])
def test_crash_while_a_task_is_filled(tmp_path: Path, preallocates: bool) -> None:
    lab = CrashLab(tmp_path, preallocates=preallocates)
    lab.start()
    data = some_bytes(4 * PIECE_BYTES + 100)
    descriptor = describe(size_bytes=len(data))
    lab.store.open_task(descriptor)
    put(lab.store, descriptor, data, 2, 0)
    lab.store.flush()
    put(lab.store, descriptor, data, 4)
    lab.store.sync_some()
    put(lab.store, descriptor, data, 1)
    lab.store.flush()
    put(lab.store, descriptor, data, 3)
    lab.store.seal(descriptor.task_id, digest_of(data))
    lab.store.flush()
    lab.store.sync_some()
    lab.stop()
    assert check_all_crashes(lab, lambda _: data, draws=9) > 100


def test_crash_around_pieces_dropped_and_written_anew(tmp_path: Path) -> None:
    lab = CrashLab(tmp_path)
    lab.start()
    wrong, right = some_bytes(4 * PIECE_BYTES), some_bytes(4 * PIECE_BYTES, seed=2)
    descriptor = describe()
    lab.store.open_task(descriptor)
    put(lab.store, descriptor, wrong)
    lab.store.sync_some()
    lab.store.drop_pieces(descriptor.task_id, 0b0110)
    mixed = wrong[:PIECE_BYTES] + right[PIECE_BYTES : 3 * PIECE_BYTES] + wrong[3 * PIECE_BYTES :]
    put(lab.store, descriptor, mixed, 1)
    lab.store.flush()
    put(lab.store, descriptor, mixed, 2)
    lab.store.sync_some()
    lab.stop()

    def truth(stored: StoredTask) -> bytes:
        # Either digest may be remembered; the bytes must be those that it was made of.
        both = [b"", b""]
        for piece in range(4):
            options = [part(descriptor, data, piece) for data in (wrong, mixed)]
            known = stored.records.get(piece)
            fits = [one for one in options if known == record_of(descriptor, one)]
            both[0] += (fits or options)[0]
        return both[0]

    assert check_all_crashes(lab, truth, draws=9) > 100


def test_crash_around_a_new_epoch(tmp_path: Path) -> None:
    lab = CrashLab(tmp_path)
    lab.start()
    contents = {epoch: some_bytes(3 * PIECE_BYTES, seed=epoch) for epoch in (1, 2)}
    size = 3 * PIECE_BYTES
    for epoch, data in contents.items():
        descriptor = describe(size_bytes=size, epoch=epoch)
        lab.store.open_task(descriptor)
        put(lab.store, descriptor, data)
        lab.store.sync_some()
    lab.stop()
    assert check_all_crashes(lab, lambda s: contents[s.descriptor.epoch], draws=9) > 50


@pytest.mark.parametrize("sealed", [True, False])
def test_crash_around_removal_and_return(tmp_path: Path, sealed: bool) -> None:
    lab = CrashLab(tmp_path)
    lab.start()
    size = 3 * PIECE_BYTES
    first, second = some_bytes(size, seed=1), some_bytes(size, seed=2)
    lab.store.open_task(describe(size_bytes=size, epoch=1))
    put(lab.store, describe(size_bytes=size, epoch=1), first)
    if sealed:
        lab.store.seal(task_id_of("a"), digest_of(first))
    lab.store.sync_some()
    lab.store.remove(task_id_of("a"))
    descriptor = describe(size_bytes=size, epoch=2)
    lab.store.open_task(descriptor)
    put(lab.store, descriptor, second, 0, 2)
    lab.store.flush()
    lab.store.sync_some()
    lab.stop()
    contents = {1: first, 2: second}
    assert check_all_crashes(lab, lambda s: contents[s.descriptor.epoch], draws=9) > 50


def test_crash_around_a_size_found(tmp_path: Path) -> None:
    lab = CrashLab(tmp_path)
    lab.start()
    data = some_bytes(2 * PIECE_BYTES + 300)
    open_ended = describe(size_bytes=None)
    lab.store.open_task(open_ended)
    for piece in range(3):
        own = part(open_ended, data, piece)
        lab.store.write_piece(
            open_ended.task_id, piece, 1, memoryview(own), record_of(open_ended, own)
        )
        lab.store.flush()
    lab.store.sync_some()
    lab.store.open_task(describe(size_bytes=len(data)))
    lab.store.seal(open_ended.task_id, digest_of(data))
    lab.store.flush()
    lab.stop()
    assert check_all_crashes(lab, lambda _: data, draws=6) > 20


def test_crash_around_a_change_from_outside(tmp_path: Path) -> None:
    lab = CrashLab(tmp_path)
    lab.start()
    data = some_bytes(4 * PIECE_BYTES)
    put_whole(lab.store, describe(), data)
    lab.store.sync_some()
    target = lab.out / "file"
    assert lab.store.deliver(task_id_of("a"), target, overwrite=False) == "hard-link"
    lab.files.scribble(target, PIECE_BYTES, b"edited by its user")
    stored = lab.store.open_task(describe())
    assert stored.held == 0b1111, "nobody has looked yet"
    with pytest.raises(Exception, match="changed by somebody else"):
        lab.store.lend(task_id_of("a"))
    stored = lab.store.open_task(describe())
    assert (stored.sealed, stored.held) == (False, 0b1101)
    put(lab.store, describe(), data, 1)
    lab.store.flush()
    lab.store.sync_some()
    lab.store.seal(task_id_of("a"), digest_of(data))
    lab.stop()
    edited = lab.files.content(target)
    assert edited[PIECE_BYTES:].startswith(b"edited by its user"), "what is theirs stays theirs"
    assert lab.files.content(store_file(lab, task_id_of("a"))) == data
    assert check_all_crashes(lab, lambda _: data, draws=9) > 100


def test_crash_after_a_linked_content_lost_its_pieces(tmp_path: Path) -> None:
    lab = CrashLab(tmp_path)
    lab.start()
    data, other = some_bytes(4 * PIECE_BYTES), some_bytes(4 * PIECE_BYTES, seed=2)
    put_whole(lab.store, describe(), data)
    lab.store.sync_some()
    target = lab.out / "file"
    lab.store.deliver(task_id_of("a"), target, overwrite=False)
    lab.files.fsync_dir(lab.out)
    lab.store.drop_pieces(task_id_of("a"), 0b1111)
    lab.store.sync_some()
    lab.store.flush()
    flushed = len(lab.files.log)
    lab.stop()
    store, disk = lab.crash(flushed, Random(1), lose=0)
    _, (stored,) = store.load()
    assert (stored.sealed, stored.held) == (False, 0)
    put(store, describe(), other)
    assert disk.content(target) == data, "the file that was delivered is its user's"
    store.close()


def test_crash_between_seal_and_journal(tmp_path: Path) -> None:
    lab = CrashLab(tmp_path)
    lab.start()
    data = some_bytes(4 * PIECE_BYTES)
    put_whole(lab.store, describe(), data)
    sealed = len(lab.files.log)
    lab.stop()
    earlier = [i for i, entry in enumerate(lab.files.log[:sealed]) if entry[0] == "commit"]
    assert len(earlier) == 1, "nothing was journalled but the start"
    store, disk = lab.crash(sealed, Random(1), lose=0)
    assert store.load()[1] == (), "a file without metadata is an orphan"
    assert disk.names() == []
    store.close()


def test_crash_after_a_seal_that_was_not_journalled(tmp_path: Path) -> None:
    lab = CrashLab(tmp_path)
    lab.start()
    data = some_bytes(4 * PIECE_BYTES)
    lab.store.open_task(describe())
    put(lab.store, describe(), data)
    lab.store.sync_some()
    lab.store.seal(task_id_of("a"), digest_of(data))
    sealed = len(lab.files.log)
    lab.stop()
    store, disk = lab.crash(sealed, Random(1), lose=0)
    _, (stored,) = store.load()
    assert (stored.sealed, stored.held) == (False, 0b1111)
    status = disk.status(store_file(lab, task_id_of("a")))
    assert status is not None
    assert status.mode == 0o600, "to be written to again"
    store.close()


def test_what_was_synced_is_not_lost(tmp_path: Path) -> None:
    lab = CrashLab(tmp_path)
    lab.start()
    data = some_bytes(4 * PIECE_BYTES)
    descriptor = describe()
    lab.store.open_task(descriptor)
    put(lab.store, descriptor, data, 0, 3)
    while lab.store.sync_some():
        pass
    synced = len(lab.files.log)
    put(lab.store, descriptor, data, 1)
    lab.store.flush()
    for draw in range(20):
        store, _ = lab_crash_now(lab, synced, draw)
        _, (stored,) = store.load()
        assert stored.held & 0b1001 == 0b1001
        assert store.recovered.checked_pieces <= 1, "durable pieces are not hashed again"
        store.close()


def lab_crash_now(lab: CrashLab, synced: int, draw: int) -> tuple[ContentStore, FakeFiles]:
    if draw == 0:
        lab.store.close()
    dice = Random(draw)
    return lab.crash(dice.randint(synced, synced + 2), dice, lose=1.0)


def test_what_was_flushed_survives_a_kill(tmp_path: Path) -> None:
    lab = CrashLab(tmp_path)
    lab.start()
    data = some_bytes(4 * PIECE_BYTES)
    descriptor = describe()
    lab.store.open_task(descriptor)
    put(lab.store, descriptor, data, 0, 3)
    lab.store.flush()
    flushed = len(lab.files.log)
    lab.stop()
    store, disk = lab.crash(flushed, Random(1), lose=0)
    _, (stored,) = store.load()
    assert stored.held == 0b1001
    assert store.recovered.checked_pieces == 2
    assert store.recovered.wrong_pieces == 0
    check_truth(store, disk, stored, data)
    store.close()
