"""A yes to somebody who names a digest and a URL of their own: when it opens what is held."""

from dataclasses import replace
from typing import Any

import pytest

import peer.core.effects as fx
import peer.core.events as ev
import shoal.wire.control as msg
from peer.core.proofs import SAMPLE_BYTES
from peer.core.state import TaskPhase
from shoal.wire.errors import Reason
from shoal.wire.geometry import Geometry
from shoal.wire.ids import RequestId
from tests.unit.peer.core_rig import (
    DIGEST,
    PIECE,
    SOURCE,
    TASK,
    Rig,
    describe,
    sealed_rig,
    source,
    stored,
)


def known(credential: str = "k", *, trusted: bool = False) -> ev.Source:
    """The content by its digest, and a URL of the client's choice."""
    return replace(source(credential=credential, task_id=TASK), origin_trusted=trusted)


def alone(held: int = 0, pieces: int = 4, *, sealed: bool = False) -> Rig:
    """A host without a scheduler that holds some of the content."""
    tasks = (stored(describe(pieces), held, sealed=sealed),) if held or sealed else ()
    return Rig(scheduler=False, tasks=tasks)


def says_yes(rig: Rig, same: bool | None = None, **fields: Any) -> list[fx.AnyEffect]:
    """The origin accepts who was asked for last."""
    values: dict[str, Any] = {"size_bytes": 4 * PIECE, "validator": '"v"', "ranges": True}
    request = rig.all(fx.StatOrigin)[-1].request_id
    return rig.feed(
        ev.StatEnded, request_id=request, reason=None, same=same, **{**values, **fields}
    )


def one_fetches() -> Rig:
    """A host without a scheduler, where the first client has begun to fetch the content."""
    rig = alone()
    rig.want(1, sources=(known("right"),))
    says_yes(rig)
    rig.open()
    return rig


def one_fetches_and_another_comes() -> Rig:
    """Then a second one names a URL of its own, which says yes."""
    rig = one_fetches()
    rig.want(2, sources=(known("own"),))
    says_yes(rig)
    return rig


# ---------------------------------------------------------------- whole contents


@pytest.mark.parametrize("credential", ["", "k"])
def test_a_yes_opens_what_is_held_only_with_the_same_bytes(credential: str) -> None:
    rig = alone(0b1111, sealed=True)
    rig.want(sources=(known(credential),))
    sample = rig.one(fx.StatOrigin).sample
    assert sample is not None
    assert (sample.task_id, sample.size_bytes) == (TASK, 4 * PIECE)
    assert sample.end_byte - sample.start_byte == SAMPLE_BYTES
    says_yes(rig, same=False)
    ended = rig.one(fx.SourceEnded)
    assert ended.reason is Reason.ORIGIN_CHANGED
    assert "check the URL" in ended.detail
    assert "tasks rm" not in ended.detail, "what is checked is not to be removed"
    assert [note.kind for note in rig.of(fx.Noted)] == ["other-bytes"]
    assert not rig.all(fx.SourceResolved)
    # It says nothing of what is held, and the next one may have it.
    assert rig.task.phase is TaskPhase.SEALED
    assert not rig.all(fx.DropPieces)
    rig.want(2, sources=(known(credential),))
    says_yes(rig, same=True)
    assert rig.one(fx.SourceResolved).download_id == 2
    assert rig.one(fx.DownloadEnded).reason is None


def test_what_is_compared_is_drawn_over_all_that_is_held() -> None:
    rig = alone(0b1111, sealed=True)
    starts = []
    for number in range(1, 200):
        rig.want(number, sources=(known(f"k{number}"),))
        sample = rig.one(fx.StatOrigin).sample
        assert sample is not None
        assert sample.start_byte >= 0
        assert sample.end_byte <= 4 * PIECE
        assert sample.end_byte - sample.start_byte == SAMPLE_BYTES
        starts.append(sample.start_byte)
    assert {start // PIECE for start in starts} == {0, 1, 2, 3}
    assert len(set(starts)) > 150


@pytest.mark.parametrize("size", [1, SAMPLE_BYTES, PIECE + 1])
def test_a_small_content_is_compared_as_a_whole(size: int) -> None:
    geometry = Geometry(size_bytes=size, piece_length_bytes=PIECE, run_pieces=1)
    descriptor = replace(describe(), geometry=geometry)
    rig = Rig(scheduler=False, tasks=(stored(descriptor, geometry.all_pieces, sealed=True),))
    rig.want(sources=(known(),))
    sample = rig.one(fx.StatOrigin).sample
    assert sample is not None
    assert sample.end_byte - sample.start_byte == min(size, SAMPLE_BYTES)
    assert sample.end_byte <= size


def test_an_empty_content_has_nothing_to_compare() -> None:
    geometry = Geometry(size_bytes=0, piece_length_bytes=PIECE, run_pieces=1)
    rig = Rig(
        scheduler=False,
        tasks=(stored(replace(describe(), geometry=geometry), 0, sealed=True),),
    )
    rig.want(sources=(known(),))
    assert rig.one(fx.StatOrigin).sample is None
    says_yes(rig, size_bytes=0)
    assert rig.one(fx.DownloadEnded).reason is None


def test_a_proof_is_believed_as_long_as_the_verdict() -> None:
    rig = alone(0b1111, sealed=True)
    rig.want(sources=(known(),))
    says_yes(rig, same=True)
    rig.want(2, sources=(known(),))
    assert not rig.of(fx.StatOrigin)
    assert rig.one(fx.DownloadEnded).reason is None
    rig.tick(301_000)
    rig.want(3, sources=(known(),))
    assert rig.one(fx.StatOrigin).sample is not None


def test_an_origin_that_the_operator_named_is_believed() -> None:
    rig = alone(0b1111, sealed=True)
    rig.want(sources=(known(trusted=True),))
    assert rig.one(fx.StatOrigin).sample is None
    says_yes(rig)
    assert rig.one(fx.DownloadEnded).reason is None


def test_a_plain_url_names_its_content_itself() -> None:
    rig = Rig(scheduler=False, tasks=(stored(describe(digest=None), 0b1111, sealed=True),))
    rig.want(sources=(replace(known(), digest=None),))
    assert rig.one(fx.StatOrigin).sample is None
    says_yes(rig)
    assert rig.one(fx.DownloadEnded).reason is None


def test_an_origin_of_another_size_is_refused_for_that() -> None:
    rig = alone(0b1111, sealed=True)
    rig.want(sources=(known(),))
    says_yes(rig, size_bytes=7)
    assert "7 bytes" in rig.one(fx.SourceEnded).detail


# ---------------------------------------------------------------- parts, and nothing yet


def test_a_part_is_compared_as_well() -> None:
    rig = alone(0b0100)
    rig.want(sources=(known(),))
    sample = rig.one(fx.StatOrigin).sample
    assert sample is not None
    assert 2 * PIECE <= sample.start_byte < sample.end_byte <= 3 * PIECE
    says_yes(rig, same=False)
    ended = rig.one(fx.SourceEnded)
    assert ended.reason is Reason.ORIGIN_CHANGED
    assert f"shoal tasks rm {TASK}" in ended.detail, "nobody has checked that part"
    assert rig.task.held == 0b0100
    assert not rig.all(fx.DropPieces)


def test_only_what_is_confirmed_is_compared_where_there_is_any() -> None:
    rig = Rig().start()
    rig.parent(1, held=0b1)
    rig.fetched(rig.one(fx.FetchPiece))
    rig.lease(2, 1)
    rig.read(rig.one(fx.ReadOrigin).request_id, 2)
    assert (rig.task.held, rig.task.confirmed) == (0b101, 0b100)
    rig.want(2, sources=(known(),))
    sample = rig.one(fx.StatOrigin).sample
    assert sample is not None
    assert sample.start_byte >= 2 * PIECE


def test_where_nothing_is_held_the_digest_protects() -> None:
    rig = alone()
    rig.want(sources=(known(),))
    assert rig.one(fx.StatOrigin).sample is None
    says_yes(rig)
    assert rig.of(fx.SourceResolved)


def test_a_yes_to_nothing_is_no_proof_of_what_came_later() -> None:
    rig = alone()
    rig.want(sources=(known("own"),))
    says_yes(rig)
    rig.unwant()
    rig.tick(100)
    rig.want(2, sources=(known("right"),))
    says_yes(rig)
    rig.open(0b1111, sealed=True)
    rig.want(3, sources=(known("own"),))
    assert rig.one(fx.StatOrigin).sample is not None
    says_yes(rig, same=False)
    assert rig.one(fx.SourceEnded).reason is Reason.ORIGIN_CHANGED


def test_a_yes_that_comes_when_something_is_held_by_now_is_looked_at_again() -> None:
    rig = one_fetches()
    rig.want(2, sources=(known("own"),))
    slow = rig.one(fx.StatOrigin)
    assert slow.sample is None
    rig.read(rig.all(fx.ReadOrigin)[0].request_id, 0)
    rig.feed(
        ev.StatEnded,
        request_id=slow.request_id,
        reason=None,
        size_bytes=4 * PIECE,
        validator='"v"',
        ranges=True,
    )
    assert not rig.of(fx.SourceResolved)
    assert rig.one(fx.StatOrigin).sample is not None
    says_yes(rig, same=True)
    assert rig.one(fx.SourceResolved).download_id == 2


def test_whoever_comes_before_the_first_piece_of_others_waits_for_it() -> None:
    rig = one_fetches_and_another_comes()
    assert not rig.of(fx.SourceResolved)
    assert not rig.of(fx.StatOrigin), "there is nothing to compare"
    rig.read(rig.all(fx.ReadOrigin)[0].request_id, 0)
    assert rig.one(fx.StatOrigin).sample is not None
    says_yes(rig, same=False)
    assert (rig.one(fx.SourceEnded).download_id, rig.one(fx.SourceEnded).reason) == (
        2,
        Reason.ORIGIN_CHANGED,
    )


def test_whoever_waits_for_a_piece_of_others_goes_on_alone_when_they_leave() -> None:
    rig = one_fetches_and_another_comes()
    rig.unwant(1)
    assert rig.one(fx.StatOrigin).sample is None
    says_yes(rig)
    assert rig.one(fx.SourceResolved).download_id == 2


def test_whoever_waits_and_goes_is_not_asked_for_again() -> None:
    rig = one_fetches_and_another_comes()
    rig.unwant(2)
    rig.read(rig.all(fx.ReadOrigin)[0].request_id, 0)
    assert not rig.of(fx.StatOrigin)


def test_one_more_with_the_same_right_is_let_in_with_those_who_fetch() -> None:
    rig = alone()
    rig.want(1, sources=(known(),))
    says_yes(rig)
    rig.open()
    rig.read(rig.all(fx.ReadOrigin)[0].request_id, 0)
    rig.want(2, sources=(known(),))
    assert not rig.of(fx.StatOrigin)
    assert rig.one(fx.SourceResolved).download_id == 2


@pytest.mark.parametrize("third", ["own", "right"])
def test_who_stays_reads_with_a_right_of_those_who_are_there(third: str) -> None:
    rig = one_fetches()
    read = rig.all(fx.ReadOrigin)[0]
    rig.read(read.request_id, 0)
    rig.want(2, sources=(known("own"),))
    says_yes(rig, same=True)
    rig.want(3, sources=(known(third),))
    rig.unwant(1)
    rig.read_ends(read.request_id, Reason.ORIGIN_FAILED)
    rig.tick(5000)
    # The shell keeps the rights of those alone who are there.
    assert rig.all(fx.ReadOrigin)[-1] is not read
    assert rig.all(fx.ReadOrigin)[-1].credential == third


def test_whoever_may_read_the_origin_does_not_wait_for_those_who_may_not() -> None:
    rig = Rig().start()
    rig.unwant()
    rig.want(2, origin_allowed=False)
    rig.want(3, sources=(known(),))
    says_yes(rig)
    assert rig.one(fx.SourceResolved).download_id == 3


# ---------------------------------------------------------------- what goes while it is compared


def test_what_is_gone_when_it_is_compared_is_as_never_held() -> None:
    rig = alone(0b1111, sealed=True)
    rig.want(sources=(known(),))
    rig.feed(ev.Remove, request_id=RequestId(1), task_id=TASK)
    says_yes(rig, same=None)
    assert rig.of(fx.SourceResolved)
    rig.feed(ev.TaskRemoved, task_id=TASK)
    assert rig.of(fx.OpenTask), "it is read from that URL, anew"


def test_other_bytes_than_those_that_are_held_by_now_prove_nothing() -> None:
    rig = alone(0b0001)
    rig.want(sources=(known(),))
    rig.feed(ev.Remove, request_id=RequestId(1), task_id=TASK)
    says_yes(rig, same=False)
    assert not rig.of(fx.SourceEnded)
    assert rig.of(fx.SourceResolved)


def test_bytes_that_always_are_gone_end_it_at_last() -> None:
    rig = alone(0b1111, sealed=True)
    rig.want(sources=(known(),))
    for _ in range(3):
        says_yes(rig, same=None)
    assert len(rig.all(fx.StatOrigin)) == 3
    assert rig.one(fx.SourceEnded).reason is Reason.NOT_HELD


# ---------------------------------------------------------------- with a scheduler


def test_a_yes_that_is_no_proof_is_not_told_to_the_scheduler() -> None:
    rig = sealed_rig()
    rig.want(sources=(known(""),))
    rig.tell(msg.StatWanted(source_id=SOURCE))
    says_yes(rig, same=None)
    assert not rig.said(msg.StatAnswer)
    says_yes(rig, same=False)
    (answer,) = rig.said(msg.StatAnswer)
    assert answer.outcome is Reason.ORIGIN_CHANGED
    assert not answer.anonymous, "it is about this client, and nobody else's"


def test_another_is_asked_for_the_scheduler_when_whoever_waited_is_gone() -> None:
    rig = Rig()
    rig.up()
    rig.want(1, sources=(known("own"),))
    slow = rig.one(fx.StatOrigin).request_id
    rig.tell(msg.StatWanted(source_id=SOURCE))
    rig.want(2, sources=(known("right"),))
    says_yes(rig)
    rig.described()
    rig.feed(ev.StatEnded, request_id=slow, reason=None, size_bytes=4 * PIECE, ranges=True)
    assert not rig.said(msg.StatAnswer)
    rig.unwant(1)
    assert rig.one(fx.StatOrigin).credential == "right"
    says_yes(rig)
    assert [answer.outcome for answer in rig.said(msg.StatAnswer)] == [None]


def test_what_the_scheduler_says_that_anybody_may_read_needs_no_proof() -> None:
    rig = sealed_rig()
    rig.want(sources=(known(""),))
    rig.described()
    assert rig.one(fx.DownloadEnded).reason is None
    assert rig.engine.sealed_content(TASK) == (4 * PIECE, DIGEST, True)
