"""Wishes, the origin and the scheduler's session, as a peer core sees them."""

from dataclasses import replace
from typing import Any

import pytest

import peer.core.effects as fx
import peer.core.events as ev
import shoal.wire.control as msg
from peer.core import reports
from peer.core.state import Task
from shoal.wire.control import Demand
from shoal.wire.errors import Reason
from shoal.wire.ids import CollectionId, LeaseNumber, RequestId, SourceId, TaskId
from tests.unit.peer.core_rig import (
    COLLECTION,
    OTHER_COLLECTION,
    PIECE,
    SOURCE,
    TASK,
    Rig,
    describe,
    digest_of,
    sealed_rig,
    source,
    stored,
)


def stat_ends(rig: Rig, reason: Reason | None = None, **fields: Any) -> None:
    stat = rig.all(fx.StatOrigin)[-1]
    values: dict[str, Any] = {
        "size_bytes": 4 * PIECE,
        "validator": '"v"',
        "ranges": True,
        "same": None if stat.sample is None or reason is not None else True,
        **fields,
    }
    rig.feed(ev.StatEnded, request_id=stat.request_id, reason=reason, **values)


def lease_ends(rig: Rig) -> list[tuple[int, Reason | None]]:
    rig.tick(200)
    return [
        (end.number, end.outcome)
        for report in rig.said(msg.Report, ever=True)
        for end in report.lease_ends
    ]


# ---------------------------------------------------------------- wishes


def test_too_many_downloads_and_shutting_down_are_refused() -> None:
    rig = Rig(downloads_max=1)
    rig.want(1)
    rig.want(2)
    assert rig.one(fx.DownloadEnded).reason is Reason.OVERLOADED
    rig.feed(ev.ShutDown)
    assert rig.one(fx.DownloadEnded).reason is Reason.CANCELLED
    rig.want(3)
    assert rig.one(fx.DownloadEnded).reason is Reason.SHUTTING_DOWN
    rig.feed(ev.ShutDown)
    rig.unwant(7)
    assert not rig.effects


def test_two_clients_of_one_task_are_independent() -> None:
    rig = Rig().start()
    rig.want(2)
    rig.unwant(1)
    assert rig.one(fx.DownloadEnded).reason is Reason.CANCELLED
    assert not rig.said(msg.Leave)
    rig.unwant(2)
    assert rig.said(msg.Leave)
    assert not rig.engine.state.collections


def test_a_cancelled_stat_does_not_end_the_next_wish() -> None:
    rig = Rig(scheduler=False)
    rig.want(1)
    first = rig.one(fx.StatOrigin).request_id
    rig.unwant(1)
    assert rig.one(fx.CancelOrigin).request_id == first
    rig.want(2)
    assert rig.one(fx.StatOrigin).request_id != first
    rig.feed(ev.StatEnded, request_id=first, reason=Reason.CANCELLED)
    assert not rig.of(fx.DownloadEnded)
    stat_ends(rig)
    assert rig.of(fx.SourceResolved)


def test_a_stat_that_somebody_else_wants_goes_on() -> None:
    rig = Rig(scheduler=False)
    rig.want(1)
    rig.want(2)
    assert len(rig.all(fx.StatOrigin)) == 1
    rig.unwant(1)
    assert not rig.of(fx.CancelOrigin)


def test_a_credential_needs_its_own_stat_once() -> None:
    rig = Rig()
    rig.up()
    rig.want(sources=(source(credential="k"),))
    assert rig.one(fx.StatOrigin).credential == "k"
    stat_ends(rig)
    (answer,) = rig.said(msg.StatAnswer)
    assert not answer.anonymous
    assert not rig.of(fx.StatOrigin), "the origin is not asked again while the scheduler thinks"
    rig.described()
    assert rig.of(fx.SourceResolved)
    rig.unwant()
    rig.want(2, sources=(source(credential="other"),))
    assert rig.one(fx.StatOrigin).credential == "other"
    stat_ends(rig, Reason.ORIGIN_FORBIDDEN)
    assert rig.one(fx.DownloadEnded).reason is Reason.ORIGIN_FORBIDDEN


def test_a_right_of_one_who_left_lets_nobody_in_without_one() -> None:
    rig = Rig()
    rig.up()
    rig.want(2, sources=(source(credential="k"),))
    rig.want(1)
    rig.unwant(2)
    # The word for who had the credential comes only now.
    rig.described()
    assert not rig.of(fx.SourceResolved)


def test_the_scheduler_is_told_when_somebody_has_a_credential_after_all() -> None:
    rig = Rig()
    rig.up()
    rig.want(1)
    assert rig.said(msg.Join)[-1].members[0].anonymous
    rig.want(2, sources=(source(credential="k"),))
    assert not rig.said(msg.Join)[-1].members[0].anonymous
    rig.tell(msg.StatWanted(source_id=SOURCE))
    assert rig.all(fx.StatOrigin)[-1].credential == "k"


def test_who_has_no_credential_is_not_let_in_with_one_who_has() -> None:
    rig = Rig()
    rig.up()
    rig.want(1, sources=(source(credential="k"),))
    stat_ends(rig)
    rig.described()
    assert rig.of(fx.SourceResolved)
    rig.want(2)
    assert rig.one(fx.StatOrigin).credential == ""
    assert not rig.of(fx.SourceResolved)
    stat_ends(rig, Reason.ORIGIN_UNAUTHORIZED)
    ended = rig.one(fx.DownloadEnded)
    assert (ended.download_id, ended.reason) == (2, Reason.ORIGIN_UNAUTHORIZED)
    assert not rig.said(msg.StatAnswer), "it would end the other download as well"
    rig.want(3)
    stat_ends(rig)
    assert not rig.of(fx.SourceResolved), "what the other brings may not be from there"
    rig.open()
    rig.lease(0, 1)
    rig.read(rig.one(fx.ReadOrigin).request_id, 0)
    stat_ends(rig)
    assert rig.one(fx.SourceResolved).download_id == 3


def test_a_yes_to_something_of_another_size_is_none() -> None:
    rig = sealed_rig()
    rig.want(1, sources=(source(credential="k", task_id=TASK),))
    stat_ends(rig, size_bytes=30)
    ended = rig.one(fx.DownloadEnded)
    assert ended.reason is Reason.ORIGIN_CHANGED
    assert not rig.all(fx.SourceResolved), "a page for signing in opens nothing"
    rig.want(2, sources=(source(credential="k", task_id=TASK),))
    stat_ends(rig)
    assert rig.all(fx.SourceResolved)


def test_a_verdict_expires() -> None:
    rig = sealed_rig()
    rig.want(1, sources=(source(credential="k", task_id=TASK),))
    stat_ends(rig)
    assert rig.one(fx.DownloadEnded).reason is None
    rig.want(2, sources=(source(credential="k", task_id=TASK),))
    assert not rig.of(fx.StatOrigin)
    assert rig.one(fx.DownloadEnded).reason is None
    rig.tick(301_000)
    rig.want(3, sources=(source(credential="k", task_id=TASK),))
    assert rig.of(fx.StatOrigin)


def test_stats_back_off_and_honour_retry_after() -> None:
    rig = Rig(scheduler=False, origin_retries_max=2)
    rig.want()
    stat_ends(rig, Reason.ORIGIN_BUSY, retry_after_ms=5000)
    rig.tick(4900)
    assert len(rig.all(fx.StatOrigin)) == 1
    rig.tick(200)
    assert len(rig.all(fx.StatOrigin)) == 2
    stat_ends(rig, Reason.ORIGIN_FAILED)
    rig.tick(30_000)
    stat_ends(rig, Reason.ORIGIN_FAILED)
    assert rig.one(fx.DownloadEnded).reason is Reason.ORIGIN_FAILED


def test_a_bad_piece_length_is_told() -> None:
    rig = Rig(scheduler=False)
    rig.want(sources=(source(piece_length_bytes=5),))
    stat_ends(rig)
    assert rig.one(fx.SourceEnded).reason is Reason.ORIGIN_INVALID
    assert "piece length" in rig.one(fx.SourceEnded).detail


def test_without_the_origin_only_what_is_here_can_be_had() -> None:
    rig = Rig(scheduler=False)
    rig.want(origin_allowed=False)
    assert rig.one(fx.DownloadEnded).reason is Reason.NO_SOURCE
    waiting = Rig()
    waiting.want(origin_allowed=False)
    assert not waiting.of(fx.DownloadEnded)
    waiting.tick(2500)
    assert waiting.one(fx.DownloadEnded).reason is Reason.NO_SOURCE


def test_a_download_waits_for_the_scheduler_and_then_helps_itself() -> None:
    rig = Rig()
    rig.want()
    rig.tick(1500)
    assert not rig.all(fx.StatOrigin)
    rig.tick(1000)
    assert rig.all(fx.StatOrigin)


def test_the_scheduler_may_have_this_host_ask_the_origin() -> None:
    rig = Rig()
    rig.up()
    rig.want()
    rig.tell(msg.StatWanted(source_id=SOURCE))
    stat_ends(rig, Reason.ORIGIN_NOT_FOUND)
    assert rig.said(msg.StatAnswer)[0].outcome is Reason.ORIGIN_NOT_FOUND
    assert not rig.of(fx.DownloadEnded), "the scheduler decides"
    rig.tell(msg.StatWanted(source_id=SOURCE))
    rig.unwant()
    assert not rig.of(fx.CancelOrigin)
    stat_ends(rig)
    rig.tell(msg.StatWanted(source_id=SOURCE))
    assert rig.said(msg.StatAnswer)[0].outcome is Reason.CANCELLED


def test_a_given_up_source_ends_its_downloads_once() -> None:
    rig = Rig().start()
    failed = msg.SourceFailed(
        collection_id=COLLECTION, source_id=SOURCE, reason=Reason.ORIGIN_NOT_FOUND, detail="404"
    )
    rig.tell(failed)
    assert rig.one(fx.DownloadEnded).reason is Reason.ORIGIN_NOT_FOUND
    rig.tell(failed)
    assert not rig.of(fx.DownloadEnded)


def test_a_given_up_source_that_is_wanted_again_is_asked_for_again() -> None:
    rig = Rig()
    rig.up()
    other = SourceId("c" * 64)
    sources = (source(), replace(source(), source_id=other))
    rig.want(sources=sources)
    failed = msg.SourceFailed(
        collection_id=COLLECTION, source_id=other, reason=Reason.ORIGIN_NOT_FOUND, detail="404"
    )
    rig.tell(failed)
    # The first download goes on with the rest of the collection.
    assert not rig.of(fx.DownloadEnded)
    rig.want(2, sources=sources)
    assert len(rig.said(msg.Join)) == 1
    rig.want(3, sources=sources)
    assert not rig.said(msg.Join), "it is being asked already"
    rig.tell(failed)
    assert {ended.download_id for ended in rig.of(fx.SourceEnded)} == {2, 3}


def test_a_content_that_is_all_here_is_not_failed_by_a_lost_origin() -> None:
    rig = Rig().start(1)
    rig.lease(0, 1)
    rig.read(rig.one(fx.ReadOrigin).request_id, 0)
    rig.tell(
        msg.SourceFailed(
            collection_id=COLLECTION, source_id=SOURCE, reason=Reason.ORIGIN_FAILED, detail=""
        )
    )
    assert not rig.of(fx.DownloadEnded)


def test_another_version_at_the_origin_ends_the_download() -> None:
    rig = Rig().start()
    rig.described(replace(describe(), task_id=TaskId("8" * 64)))
    assert rig.one(fx.DownloadEnded).reason is Reason.ORIGIN_CHANGED


def test_descriptions_of_what_nobody_wants_are_ignored() -> None:
    rig = Rig()
    rig.up()
    rig.described()
    rig.want()
    other = msg.Described(
        collection_id=COLLECTION, source_id=SourceId("0" * 64), descriptor=describe()
    )
    rig.tell(other)
    assert not rig.all(fx.OpenTask)


def test_what_is_remembered_of_sources_is_bounded() -> None:
    rig = Rig(collections_max=1)
    rig.up()
    for number in range(6):
        one = replace(source(), source_id=SourceId(f"{number:064d}"))
        collection = CollectionId(f"{number:064d}")
        rig.want(number, sources=(one,), collection_id=collection)
        task_id = TaskId(f"{number:064d}")
        descriptor = replace(describe(), task_id=task_id, source_id=one.source_id)
        rig.tell(
            msg.Described(collection_id=collection, source_id=one.source_id, descriptor=descriptor)
        )
    assert len(rig.all(fx.SourceResolved)) == 6
    rig.want(
        10,
        sources=(replace(source(), source_id=SourceId("0" * 64)),),
        collection_id=OTHER_COLLECTION,
    )
    assert not rig.of(fx.SourceResolved), "the oldest was forgotten and is asked for again"


@pytest.mark.parametrize(
    ("demand", "told"),
    [(demand, demand) for demand in Demand],
)
def test_a_join_tells_the_demand(demand: Demand, told: Demand) -> None:
    rig = Rig()
    rig.up()
    rig.want(demand=demand)
    assert rig.said(msg.Join)[0].demand is told


# ---------------------------------------------------------------- leases and reads


def test_a_lease_is_read_reported_and_given_back() -> None:
    rig = Rig().start()
    rig.lease(0, 2)
    read = rig.one(fx.ReadOrigin)
    assert (read.first_piece, read.piece_count) == (0, 2)
    rig.read(read.request_id, 0)
    rig.read(read.request_id, 1)
    rig.read_ends(read.request_id)
    assert lease_ends(rig) == [(9, None)]
    rig.read(read.request_id, 1)
    rig.read_ends(read.request_id)
    assert lease_ends(rig) == [(9, None)]


def test_leases_for_what_is_not_here_or_of_another_epoch_are_given_back() -> None:
    rig = Rig()
    rig.up()
    rig.lease()
    rig.want()
    rig.described()
    rig.lease(number=10, epoch=3)
    rig.lease(number=11)
    assert not rig.all(fx.ReadOrigin), "the store is asked first"
    rig.open()
    assert rig.of(fx.ReadOrigin)
    assert lease_ends(rig) == [(9, Reason.CANCELLED), (10, Reason.CANCELLED)]


def test_a_revoked_lease_stops_its_read() -> None:
    rig = Rig().start()
    rig.lease()
    request = rig.one(fx.ReadOrigin).request_id
    rig.tell(msg.Leases(revoked=(LeaseNumber(9), LeaseNumber(8))))
    assert rig.one(fx.CancelOrigin).request_id == request
    rig.read_ends(request, Reason.CANCELLED)
    assert lease_ends(rig) == []


def test_a_failing_origin_is_tried_again_and_then_the_lease_given_back() -> None:
    rig = Rig(origin_retries_max=1).start()
    rig.lease()
    rig.read_ends(rig.one(fx.ReadOrigin).request_id, Reason.ORIGIN_BUSY, retry_after_ms=3000)
    rig.tick(2900)
    assert len(rig.all(fx.ReadOrigin)) == 1
    rig.tick(200)
    assert len(rig.all(fx.ReadOrigin)) == 2
    rig.read_ends(rig.all(fx.ReadOrigin)[-1].request_id, Reason.ORIGIN_FAILED)
    assert lease_ends(rig) == [(9, Reason.ORIGIN_FAILED)]


def test_progress_between_failures_counts() -> None:
    rig = Rig(origin_retries_max=1).start()
    rig.lease()
    for piece in range(3):
        request = rig.all(fx.ReadOrigin)[-1].request_id
        rig.read(request, piece)
        rig.read_ends(request, Reason.ORIGIN_FAILED)
        rig.tick(60_000)
    assert len(rig.all(fx.ReadOrigin)) == 4


def test_a_full_disk_ends_a_read_and_its_lease() -> None:
    rig = Rig().start()
    rig.lease()
    rig.read_ends(rig.one(fx.ReadOrigin).request_id, Reason.DISK_FULL, detail="full")
    assert rig.one(fx.DownloadEnded).reason is Reason.DISK_FULL
    assert lease_ends(rig) == [(9, Reason.DISK_FULL)]


def test_reads_at_once_are_bounded() -> None:
    rig = Rig(origin_reads_max=1).start()
    rig.lease(0, 1, number=9)
    rig.lease(1, 1, number=10)
    assert len(rig.all(fx.ReadOrigin)) == 1
    request = rig.all(fx.ReadOrigin)[0].request_id
    rig.read(request, 0)
    rig.read_ends(request)
    assert rig.one(fx.ReadOrigin).first_piece == 1


@pytest.mark.parametrize("short", [True, False])
def test_a_sequential_read_finds_the_size(short: bool) -> None:
    rig = Rig().start(None, ranges=False)
    rig.lease(0, None)
    read = rig.one(fx.ReadOrigin)
    assert read.piece_count is None
    rig.read(read.request_id, 0)
    rig.read(read.request_id, 1, 100 if short else PIECE)
    size = PIECE + (100 if short else PIECE)
    rig.read_ends(read.request_id, size_bytes=size)
    rig.open()
    assert rig.said(msg.SizeFound, ever=True)[0].size_bytes == size
    assert rig.task.complete
    assert lease_ends(rig) == [(9, None)]


def test_a_sequential_lease_of_a_known_size_reads_to_the_end() -> None:
    rig = Rig().start(ranges=False)
    rig.lease(0, None)
    read = rig.one(fx.ReadOrigin)
    assert (read.first_piece, read.piece_count) == (0, 4)
    for piece in range(4):
        rig.read(read.request_id, piece)
    rig.read_ends(read.request_id)
    assert rig.task.complete


def test_a_solo_host_reads_everything_and_fails_with_the_origins_reason() -> None:
    rig = Rig(scheduler=False)
    rig.want()
    stat_ends(rig, size_bytes=64 * PIECE)
    rig.open()
    reads = rig.all(fx.ReadOrigin)
    assert sum(read.piece_count or 0 for read in reads) == 64
    for read in reads:
        rig.read_ends(read.request_id, Reason.ORIGIN_CHANGED)
    assert len(rig.all(fx.DownloadEnded)) == 1
    assert rig.all(fx.DownloadEnded)[0].reason is Reason.ORIGIN_CHANGED


def test_a_solo_host_reads_an_unknown_size_in_one_go() -> None:
    rig = Rig(scheduler=False)
    rig.want()
    stat_ends(rig, size_bytes=None, ranges=False)
    rig.open()
    read = rig.one(fx.ReadOrigin)
    rig.tick(10)
    assert len(rig.all(fx.ReadOrigin)) == 1
    rig.read_ends(read.request_id, size_bytes=0)
    rig.open()
    assert rig.of(fx.HashPrefix)


def test_an_orphan_reads_only_what_no_parent_holds() -> None:
    rig = Rig().start()
    rig.parent(1, held=0b0111)
    rig.feed(ev.SchedulerDown, session=1)
    rig.tick(1900)
    assert not rig.all(fx.ReadOrigin)
    rig.tick(2200)
    assert {read.first_piece for read in rig.all(fx.ReadOrigin)} == {3}


# ---------------------------------------------------------------- sessions


def test_hello_tells_what_is_held_and_restates_digests() -> None:
    rig = Rig().start()
    rig.lease()
    rig.read(rig.one(fx.ReadOrigin).request_id, 0)
    rig.feed(ev.SchedulerDown, session=1)
    rig.feed(ev.SchedulerDown, session=1)
    rig.feed(ev.SchedulerUp, session=2)
    (hello,) = rig.said(msg.Hello)
    assert (hello.generation, hello.holdings[0].held, hello.holdings[0].sealed) == (3, 1, False)
    assert [(lease.number, lease.pieces) for lease in hello.leases] == [(9, 0b1110)]
    assert rig.said(msg.Join)
    rig.tick(200)
    statements = [s for r in rig.said(msg.Report, ever=True) for s in r.statements]
    assert [(s.piece, s.digest) for s in statements[-1:]] == [(0, digest_of(0))]


def test_hello_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "HOLDINGS_MAX", 1)
    two = (describe(), replace(describe(), task_id=TaskId("8" * 64)))
    rig = Rig(tasks=tuple(stored(descriptor, 1) for descriptor in two))
    rig.up()
    assert len(rig.said(msg.Hello, ever=True)[0].holdings) == 1


def test_digests_are_told_in_messages_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "STATEMENTS_PER_MESSAGE_MAX", 2)
    rig = Rig().start()
    rig.tell(msg.DigestsWanted(task_id=TASK))
    assert not rig.said(msg.DigestList)
    rig.tell(msg.DigestsWanted(task_id=TaskId("0")))
    rig.lease()
    request = rig.one(fx.ReadOrigin).request_id
    for piece in (0, 2):
        rig.read(request, piece)
    rig.tell(msg.DigestsWanted(task_id=TASK))
    first, second = rig.said(msg.DigestList)
    assert first.digests == (digest_of(0), b"")
    assert (second.first_piece, second.digests) == (2, (digest_of(2),))


def test_long_reports_are_split_with_progress_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "STATEMENTS_PER_MESSAGE_MAX", 1)
    rig = Rig().start()
    rig.lease()
    request = rig.one(fx.ReadOrigin).request_id
    for piece in range(3):
        rig.read(request, piece)
    rig.tick(200)
    told = rig.said(msg.Report, ever=True)
    assert [len(report.statements) for report in told if report.statements] == [1] * 3
    assert told[-1].progress


def test_a_stale_sessions_messages_are_ignored() -> None:
    rig = Rig()
    rig.up(session=2)
    rig.want()
    assert not rig.tell(msg.StatWanted(source_id=SOURCE), session=1)
    rig.tell(msg.Redirected(reason=Reason.OVERLOADED, detail="full", retry_after_ms=1), session=2)
    assert rig.one(fx.Noted).kind == "scheduler-refused"
    rig.tell(msg.SwarmMap(collection_id=COLLECTION, unit_bytes=1 << 20, full=True), session=2)
    rig.tell(msg.Parents(collection_id=OTHER_COLLECTION), session=2)
    assert not rig.effects
    rig.feed(ev.SchedulerDown, session=2)
    assert not rig.tell(msg.StatWanted(source_id=SOURCE), session=2)


def test_without_a_session_nothing_is_said() -> None:
    rig = Rig()
    rig.feed(ev.Remove, request_id=RequestId(5), task_id=TASK)
    rig.want()
    rig.unwant()
    assert not rig.all(fx.SendToScheduler)


def test_of_many_files_a_solo_host_looks_at_those_alone_that_it_can_begin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = 50
    looks: list[Task] = []
    missing: property = vars(Task)["missing_unrequested"]

    def look(task: Task) -> int:
        looks.append(task)
        return int(missing.__get__(task))

    rig = Rig(scheduler=False)
    sources = tuple(replace(source(), source_id=SourceId(f"{at:064x}")) for at in range(files))
    rig.want(sources=sources)
    for stat in rig.all(fx.StatOrigin):
        rig.feed(
            ev.StatEnded, request_id=stat.request_id, reason=None,
            size_bytes=PIECE, validator='"v"', ranges=True,
        )  # fmt: skip
    monkeypatch.setattr(Task, "missing_unrequested", property(look))
    for effect in rig.all(fx.OpenTask):
        rig.feed(ev.TaskOpened, stored=stored(effect.descriptor, 0))
    assert len(rig.all(fx.ReadOrigin)) == rig.engine.state.limits.origin_reads_max
    assert len(looks) <= 2 * files
    reads = 0
    while len(begun := rig.all(fx.ReadOrigin)) > reads:
        read = begun[reads]
        rig.read(read.request_id, 0)
        rig.read_ends(read.request_id)
        reads += 1
    assert reads == files
