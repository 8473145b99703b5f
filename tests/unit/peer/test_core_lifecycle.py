"""A task's life: opened, filled, checked, sealed, voided, failed, removed."""

from dataclasses import replace

import pytest

import peer.core.effects as fx
import peer.core.events as ev
import shoal.wire.control as msg
from peer.core.state import TaskPhase
from shoal.wire.control import Demand
from shoal.wire.errors import Reason
from shoal.wire.ids import ConnectionId, HostId, LeaseNumber, RequestId, TaskId
from shoal.wire.limits import MILLISECOND_NS
from tests.unit.peer.core_rig import (
    COLLECTION,
    DIGEST,
    PIECE,
    SOURCE,
    TASK,
    WRONG,
    Rig,
    describe,
    digest_of,
    sealed_rig,
    stored,
    with_geometry,
)


def fill(rig: Rig, pieces: int = 4) -> None:
    """Reads the whole task under one lease."""
    rig.lease(0, pieces)
    request = rig.one(fx.ReadOrigin).request_id
    for piece in range(pieces):
        rig.read(request, piece)


def test_a_download_ends_once_when_its_content_is_sealed() -> None:
    rig = Rig().start()
    fill(rig)
    assert rig.one(fx.HashPrefix).final
    assert rig.task.phase is TaskPhase.CHECKING
    rig.hash()
    assert rig.one(fx.SealTask).digest == DIGEST
    rig.seal()
    assert rig.one(fx.DownloadEnded).reason is None
    rig.seal()
    rig.hash()
    assert len(rig.all(fx.DownloadEnded)) == 1
    assert rig.engine.sealed_content(TASK) == (4 * PIECE, DIGEST, True)
    assert rig.engine.progress(TASK) == (4 * PIECE, 4 * PIECE, 4 * PIECE, 0)
    assert rig.said(msg.Checked, ever=True)[-1].passed


def test_unknown_tasks_have_no_progress_content_or_story() -> None:
    rig = Rig()
    assert rig.engine.progress(TASK) == (0, None, 0, 0)
    assert rig.engine.sealed_content(TASK) == (-1, "", False)
    assert rig.engine.story(TASK) == []


def test_the_story_tells_what_happened_in_order() -> None:
    rig = Rig().start()
    fill(rig)
    rig.hash()
    rig.seal()
    texts = [text for _, text in rig.engine.story(TASK)]
    assert texts[0].startswith("opened")
    assert texts[-1] == "sealed"


def test_size_sealed_while_the_store_is_opening() -> None:
    rig = Rig()
    rig.up()
    rig.want()
    rig.described(describe(None))
    rig.described(describe(2))
    assert not rig.of(fx.OpenTask), "one question to the store at a time"
    rig.feed(ev.TaskOpened, stored=stored(describe(None)))
    assert rig.one(fx.OpenTask).descriptor == describe(2)
    rig.open()
    assert rig.task.phase is TaskPhase.ACTIVE
    assert rig.task.descriptor.geometry.piece_count == 2


def test_an_older_epoch_counts_for_a_host_that_holds_nothing() -> None:
    rig = Rig().start()
    rig.parent(1, held=0b11)
    rig.fetched(rig.of(fx.FetchPiece)[0])
    rig.tell(msg.EpochVoided(task_id=TASK, epoch=2))
    rig.open()
    # Nobody wanted it any more, so the scheduler forgot it and begins at the first epoch.
    rig.unwant()
    rig.want(2)
    rig.described(describe(epoch=1))
    assert rig.one(fx.OpenTask).descriptor.epoch == 1
    rig.open()
    rig.lease(number=10, epoch=1)
    assert rig.of(fx.ReadOrigin)


def test_a_known_size_is_never_forgotten() -> None:
    rig = Rig().start()
    rig.described(describe(None))
    assert rig.task.descriptor.geometry.size_bytes == 4 * PIECE


def test_a_piece_behind_the_end_is_dropped_when_the_size_becomes_known() -> None:
    rig = Rig().start(None)
    rig.parent(held=0b100001)
    for fetch in rig.of(fx.FetchPiece):
        if fetch.piece == 5:
            rig.fetched(fetch)
    assert rig.task.held == 0b100000
    rig.described(describe(4))
    assert rig.one(fx.DropPieces).pieces == 0b100000
    rig.open()
    assert rig.task.held == 0


def test_a_parent_that_tells_of_pieces_behind_the_end_is_not_asked_for_them() -> None:
    rig = Rig().start(None)
    rig.parent(held=0)
    rig.described(describe(4))
    rig.open()
    rig.feed(ev.ParentHave, connection_id=ConnectionId(1), task_id=TASK, new=1 << 9)
    assert not rig.of(fx.FetchPiece)


def test_an_answer_from_behind_the_end_is_not_kept() -> None:
    rig = Rig().start(None)
    rig.parent(held=1 << 5)
    fetch = rig.one(fx.FetchPiece)
    rig.described(describe(4))
    rig.open()
    rig.fetched(fetch)
    assert rig.task.held == 0


def test_another_cut_drops_pieces_and_requests_of_the_old_one() -> None:
    rig = Rig().start()
    rig.parent(held=0b11)
    first, second = rig.of(fx.FetchPiece)
    rig.fetched(first)
    rig.described(with_geometry(describe(), piece_length_bytes=2 * PIECE))
    assert "other-geometry" in [noted.kind for noted in rig.of(fx.Noted)]
    assert rig.one(fx.DropPieces).pieces == 1 << first.piece
    assert [cancel.request_id for cancel in rig.of(fx.CancelFetch)] == [second.request_id]
    rig.fetched(second)
    assert rig.task.held == 0


def test_a_read_of_the_old_cut_brings_no_piece() -> None:
    rig = Rig().start()
    rig.lease()
    request = rig.one(fx.ReadOrigin).request_id
    rig.described(with_geometry(describe(), piece_length_bytes=2 * PIECE))
    rig.read(request, 0)
    assert rig.task.held == 0
    rig.read_ends(request, Reason.CANCELLED)
    assert rig.engine.state.in_flight_bytes == 0


def test_a_void_epoch_drops_everything_and_begins_again() -> None:
    rig = Rig().start()
    rig.parent(1, held=0b11)
    rig.fetched(rig.of(fx.FetchPiece)[0])
    rig.tell(msg.EpochVoided(task_id=TASK, epoch=2, liars=(HostId("p1"),)))
    assert rig.of(fx.DropPieces)
    assert rig.one(fx.OpenTask).descriptor.epoch == 2
    assert ("blamed", HostId("p1")) in [(n.kind, n.host_id) for n in rig.of(fx.Noted)]
    assert rig.task.held == 0
    rig.tell(msg.EpochVoided(task_id=TASK, epoch=2))
    rig.tell(msg.EpochVoided(task_id=TaskId("9" * 64), epoch=2))
    assert not rig.effects


def test_a_parent_that_was_an_epoch_ahead_is_seen_again_after_the_void() -> None:
    rig = Rig().start()
    connection = rig.parent(1, held=0b1111, epoch=2)
    assert not rig.of(fx.FetchPiece)
    rig.tell(msg.EpochVoided(task_id=TASK, epoch=2))
    assert rig.of(fx.CloseChannel)
    rig.open()
    assert rig.of(fx.OpenChannel)
    rig.feed(ev.ParentOpened, connection_id=connection, task_id=TASK, epoch=2, held=0b1111)
    assert rig.of(fx.FetchPiece)


def test_a_failed_task_forgets_the_pieces_of_an_older_epoch() -> None:
    rig = Rig().start()
    rig.parent(held=0b1)
    rig.fetched(rig.one(fx.FetchPiece))
    rig.feed(ev.StoreFailed, task_id=TASK, reason=Reason.DISK_FULL, detail="full")
    assert rig.task.phase is TaskPhase.FAILED
    rig.tell(msg.EpochVoided(task_id=TASK, epoch=2))
    rig.want(2)
    rig.described(describe(epoch=2))
    assert rig.one(fx.OpenTask).descriptor.epoch == 2
    rig.open()
    assert rig.task.held == 0


@pytest.mark.parametrize("reason", [Reason.DISK_FULL, Reason.DISK_FAILED])
def test_a_full_disk_fails_the_download_and_loses_nothing(reason: Reason) -> None:
    rig = Rig().start()
    rig.parent(held=0b11)
    first, second = rig.of(fx.FetchPiece)
    rig.fetched(first)
    rig.fetch_fails(second, reason, detail="no space")
    ended = rig.one(fx.DownloadEnded)
    assert ended.reason is reason
    assert not rig.all(fx.DropPieces)
    rig.want(2)
    rig.described()
    rig.open()
    assert rig.task.held == 1 << first.piece


def test_no_room_at_all_fails_the_download() -> None:
    rig = Rig()
    rig.up()
    rig.want()
    rig.described()
    rig.feed(ev.TaskOpenFailed, task_id=TASK, reason=Reason.DISK_FULL, detail="no room")
    assert rig.one(fx.DownloadEnded).reason is Reason.DISK_FULL
    rig.feed(ev.TaskOpenFailed, task_id=TASK, reason=Reason.DISK_FULL, detail="no room")
    rig.open()
    assert len(rig.all(fx.DownloadEnded)) == 1
    rig.unwant()
    assert rig.one(fx.RemoveTask).task_id == TASK


def test_a_content_that_cannot_be_sealed_fails() -> None:
    rig = Rig().start()
    fill(rig)
    rig.hash()
    rig.seal(Reason.DISK_FAILED)
    assert rig.one(fx.DownloadEnded).reason is Reason.DISK_FAILED


def test_a_late_answer_about_an_unknown_task_does_nothing() -> None:
    rig = Rig()
    rig.feed(ev.StoreFailed, task_id=TASK, reason=Reason.DISK_FAILED, detail="")
    rig.feed(ev.TaskOpened, stored=stored(describe()))
    rig.feed(ev.ContentHashed, task_id=TASK, epoch=1, digest=DIGEST)
    assert not rig.log


def test_the_scheduler_is_told_what_a_false_content_lost_before_it_is_forgotten() -> None:
    rig = Rig().start()
    fill(rig)
    rig.hash(WRONG)
    rig.tell(
        msg.SourceFailed(
            collection_id=COLLECTION, source_id=SOURCE, reason=Reason.DIGEST_MISMATCH, detail=""
        )
    )
    rig.unwant()
    assert rig.task.phase is TaskPhase.REMOVING
    lost = [
        progress.lost
        for report in rig.said(msg.Report, ever=True)
        for progress in report.progress
        if progress.lost
    ]
    assert lost == [0b1111]


def test_a_mismatch_waits_for_the_schedulers_word() -> None:
    rig = Rig().start()
    fill(rig)
    rig.hash(WRONG)
    assert [checked.passed for checked in rig.said(msg.Checked)] == [False]
    assert not rig.all(fx.DownloadEnded)
    rig.feed(ev.SchedulerDown, session=1)
    assert rig.one(fx.DownloadEnded).reason is Reason.DIGEST_MISMATCH


def test_a_hash_of_an_older_attempt_is_ignored() -> None:
    rig = Rig().start()
    fill(rig)
    rig.feed(ev.ContentHashed, task_id=TASK, epoch=77, digest=DIGEST)
    assert rig.task.phase is TaskPhase.CHECKING


def test_losing_the_scheduler_while_the_next_epoch_is_hashed_fails_nothing() -> None:
    rig = Rig().start()
    fill(rig)
    rig.hash(WRONG)
    rig.tell(msg.EpochVoided(task_id=TASK, epoch=2))
    rig.open()
    rig.lease(number=10, epoch=2)
    request = rig.one(fx.ReadOrigin).request_id
    for piece in range(4):
        rig.read(request, piece)
    assert rig.task.phase is TaskPhase.CHECKING
    rig.feed(ev.SchedulerDown, session=1)
    assert not rig.all(fx.DownloadEnded)
    rig.hash()
    rig.seal()
    assert rig.one(fx.DownloadEnded).reason is None


def test_the_last_epoch_fails_for_good() -> None:
    rig = Rig(epochs_max=1).start()
    fill(rig)
    rig.hash(WRONG)
    assert rig.one(fx.DownloadEnded).reason is Reason.DIGEST_MISMATCH
    assert rig.of(fx.DropPieces)


def test_the_scheduler_may_give_a_false_content_up() -> None:
    rig = Rig().start()
    fill(rig)
    rig.hash(WRONG)
    failed = msg.SourceFailed(
        collection_id=COLLECTION, source_id=SOURCE, reason=Reason.DIGEST_MISMATCH, detail="false"
    )
    rig.tell(failed)
    assert rig.one(fx.DownloadEnded).reason is Reason.DIGEST_MISMATCH
    rig.tell(failed)
    assert len(rig.all(fx.DownloadEnded)) == 1


def test_a_later_list_convicts_the_supplier_only() -> None:
    rig = Rig().start()
    rig.parent(1, held=0b01)
    (first,) = rig.of(fx.FetchPiece)
    rig.fetched(first, digest=b"false")
    rig.parent(2, held=0b10)
    (second,) = rig.of(fx.FetchPiece)
    rig.fetched(second)
    assert not rig.all(fx.Announce)
    rig.list_digests(0, 1)
    assert rig.one(fx.DropPieces).pieces == 0b01
    rig.tick(100)
    assert [b.host_id for b in rig.said(msg.Blame, ever=True)] == []
    blames = [b for report in rig.said(msg.Report, ever=True) for b in report.blames]
    assert [(b.host_id, b.piece, b.reason) for b in blames] == [
        (HostId("p1"), 0, Reason.PEER_CONTRADICTED)
    ]
    assert rig.engine.state.links[HostId("p2")].strikes == 0


def test_a_contradiction_found_while_checking_goes_back_to_fetching() -> None:
    rig = Rig().start(1)
    rig.parent(1, held=0b1)
    rig.fetched(rig.one(fx.FetchPiece), digest=b"false")
    assert rig.one(fx.HashPrefix).final
    rig.list_digests(0)
    assert rig.task.phase is TaskPhase.ACTIVE
    assert rig.task.held == 0


def test_a_known_list_is_compared_as_soon_as_a_piece_comes() -> None:
    rig = Rig().start()
    rig.list_digests(0)
    rig.parent(1, held=0b1)
    fetch = rig.one(fx.FetchPiece)
    assert fetch.expected == digest_of(0)
    rig.fetched(fetch, digest=b"false")
    assert rig.of(fx.DropPieces)
    assert rig.task.held == 0
    assert rig.engine.state.links[HostId("p1")].strikes == 1


def test_a_list_of_another_epoch_or_for_a_sealed_task_changes_nothing() -> None:
    rig = sealed_rig()
    rig.tell(msg.Digests(task_id=TASK, epoch=5, entries=((0, b"x", LeaseNumber(1)),)))
    rig.list_digests(0, wrong=True)
    assert rig.task.held == 0b1111


def test_a_kept_piece_of_nobody_that_the_list_contradicts_is_dropped_without_blame() -> None:
    rig = Rig()
    rig.up()
    rig.want()
    rig.described()
    rig.open(0b1)
    rig.list_digests(0, wrong=True)
    assert rig.one(fx.DropPieces).pieces == 1
    assert not [noted for noted in rig.all(fx.Noted) if noted.kind == "blamed"]


# ---------------------------------------------------------------- streaming


def readable(rig: Rig) -> int:
    """All pieces that readers were told of."""
    pieces = 0
    for effect in rig.all(fx.PiecesReadable):
        pieces |= effect.pieces
    return pieces


def test_a_reader_gets_its_last_piece_only_after_the_digest() -> None:
    rig = Rig()
    rig.up()
    rig.want(demand=Demand.STREAMING)
    rig.described()
    rig.open()
    fill(rig)
    assert readable(rig) == 0b0111
    rig.hash()
    rig.seal()
    assert rig.one(fx.PiecesReadable).pieces == 0b1000


def test_a_reader_of_something_held_already_gets_it_at_once() -> None:
    rig = sealed_rig()
    rig.want(demand=Demand.STREAMING, sources=(ev.Source(SOURCE, TASK, DIGEST, "", None),))
    rig.described()
    assert rig.one(fx.PiecesReadable).pieces == 0b1111
    assert rig.one(fx.DownloadEnded).reason is None


def test_the_readers_share_goes_in_order() -> None:
    rig = Rig(pipeline_pieces_min=8)
    rig.up()
    rig.want(demand=Demand.STREAMING)
    rig.described(describe(64))
    rig.tell(msg.SwarmToken(task_id=TASK, token=b"t", ttl_ms=60_000))
    rig.open()
    rig.parent(held=(1 << 64) - 1)
    fetches = rig.of(fx.FetchPiece)
    assert [fetch.piece for fetch in fetches[:4]] == [0, 1, 2, 3]
    assert len(fetches) == 8


# ---------------------------------------------------------------- removal


def remove(rig: Rig, number: int = 70) -> list[fx.RemoveEnded]:
    rig.feed(ev.Remove, request_id=RequestId(number), task_id=TASK)
    return rig.of(fx.RemoveEnded)


def test_removing_withdraws_first_and_answers_each_request_once() -> None:
    rig = sealed_rig()
    assert not remove(rig, 70)
    order = [type(effect) for effect in rig.effects]
    assert order.index(fx.SendToScheduler) < order.index(fx.RemoveTask)
    assert not remove(rig, 71)
    rig.feed(ev.TaskRemoved, task_id=TASK)
    assert [ended.request_id for ended in rig.of(fx.RemoveEnded)] == [70, 71]
    assert TASK not in rig.engine.state.tasks
    rig.feed(ev.TaskRemoved, task_id=TASK)
    assert not rig.effects
    (unknown,) = remove(rig, 72)
    assert unknown.reason is Reason.UNKNOWN_TASK


def test_a_wanted_task_is_not_removed() -> None:
    rig = Rig().start()
    (ended,) = remove(rig)
    assert ended.reason is Reason.OVERLOADED


def test_removal_gives_a_late_lease_back() -> None:
    rig = Rig().start()
    rig.unwant()
    rig.lease()
    request = rig.one(fx.ReadOrigin).request_id
    remove(rig)
    assert rig.one(fx.CancelOrigin).request_id == request
    rig.feed(ev.TaskRemoved, task_id=TASK)
    rig.read_ends(request, Reason.CANCELLED)
    rig.tick(500)
    ends = [end for report in rig.said(msg.Report, ever=True) for end in report.lease_ends]
    assert Reason.CANCELLED in [end.outcome for end in ends]


def test_a_wish_during_the_removal_begins_again_and_its_reader_reads() -> None:
    rig = sealed_rig()
    remove(rig)
    rig.want(demand=Demand.STREAMING, priority=3)
    rig.described()
    assert not rig.of(fx.OpenTask)
    rig.feed(ev.TaskRemoved, task_id=TASK)
    assert rig.of(fx.OpenTask)
    rig.open()
    fill(rig)
    assert rig.all(fx.PiecesReadable)
    assert rig.task.priority == 3
    rig.hash()
    rig.seal()
    assert rig.one(fx.DownloadEnded).reason is None


def test_a_newer_descriptor_during_the_removal_is_the_one_opened() -> None:
    rig = sealed_rig()
    remove(rig)
    rig.want()
    rig.described(replace(describe(), epoch=2))
    rig.feed(ev.TaskRemoved, task_id=TASK)
    assert rig.one(fx.OpenTask).descriptor.epoch == 2


def test_a_content_that_was_whole_but_unchecked_at_the_end_is_checked_at_the_start() -> None:
    rig = Rig(tasks=(stored(describe(4), 0b1111),))
    assert rig.one(fx.HashPrefix).final
    rig.hash()
    assert rig.one(fx.SealTask).task_id == TASK


def test_the_scheduler_may_change_how_often_to_report() -> None:
    rig = Rig()
    rig.up()
    assert rig.engine.state.report_interval_ns == 50 * MILLISECOND_NS
    rig.tell(msg.ReportInterval(report_interval_ms=1500))
    assert rig.engine.state.report_interval_ns == 1500 * MILLISECOND_NS
