"""Readers of a content that arrives: what they may have, and what comes for them first."""

from typing import Any

import peer.core.effects as fx
import peer.core.events as ev
import shoal.wire.control as msg
from peer.core.fetching import FIRST_IN_ORDER
from peer.core.origin_reads import STREAM_READ_BYTES_MAX, URGENT_READS
from shoal.wire import bitfield
from shoal.wire.control import Demand
from shoal.wire.limits import PIECE_LENGTH_BYTES_USUAL
from tests.unit.peer.core_rig import PIECE, TASK, TOKEN, WRONG, Rig, describe

LONG = PIECE_LENGTH_BYTES_USUAL
"""What a host on its own cuts a big content into."""
STRETCH = STREAM_READ_BYTES_MAX // LONG


def streaming(pieces: int = 8, **limits: Any) -> Rig:
    """Wanted by a reader, with a scheduler and without parents yet."""
    rig = Rig(**limits)
    rig.up()
    rig.want(demand=Demand.STREAMING)
    rig.described(describe(pieces))
    rig.tell(msg.SwarmToken(task_id=TASK, token=TOKEN, ttl_ms=60_000))
    rig.open()
    return rig


def alone(pieces: int, length: int = PIECE) -> Rig:
    """Wanted by a reader, no scheduler: this host reads the origin as it likes."""
    rig = Rig(scheduler=False)
    rig.want(demand=Demand.STREAMING)
    stat = rig.one(fx.StatOrigin)
    rig.feed(
        ev.StatEnded,
        request_id=stat.request_id,
        reason=None,
        size_bytes=pieces * length,
        validator='"v"',
        ranges=True,
    )
    rig.open()
    return rig


def waits(rig: Rig, piece: int, count: int = 1000, *, reader: int = 1) -> list[fx.AnyEffect]:
    task = next(iter(rig.engine.state.tasks))
    return rig.feed(ev.Reading, reader=reader, task_id=task, first_piece=piece, piece_count=count)


def readable(rig: Rig) -> int:
    pieces = 0
    for effect in rig.all(fx.PiecesReadable):
        assert not pieces & effect.pieces, "each is told once"
        pieces |= effect.pieces
    return pieces


def fetched(rig: Rig, *pieces: int) -> None:
    """A parent brings pieces, whose digests the scheduler confirms."""
    for piece in pieces:
        rig.fetched(next(one for one in rig.all(fx.FetchPiece) if one.piece == piece))
    rig.list_digests(*pieces)


def test_pieces_may_be_read_in_whatever_order_they_come() -> None:
    rig = streaming(pipeline_pieces_min=8)
    rig.parent(held=0b11111111)
    fetched(rig, 5, 2)
    assert readable(rig) == 0b100100


def test_the_last_piece_is_withheld_until_the_digest_has_passed() -> None:
    rig = streaming(pieces=4, pipeline_pieces_min=4)
    rig.parent()
    fetched(rig, 3)
    assert not readable(rig)
    fetched(rig, 0, 1, 2)
    assert readable(rig) == 0b0111
    rig.hash()
    assert readable(rig) == 0b0111
    rig.seal()
    assert readable(rig) == 0b1111


def test_readers_are_told_when_what_they_read_was_false() -> None:
    rig = streaming(pieces=4, pipeline_pieces_min=4)
    rig.parent()
    fetched(rig, 0, 1, 2, 3)
    rig.hash(WRONG)
    rig.tell(msg.EpochVoided(task_id=TASK, epoch=2, liars=()))
    assert rig.one(fx.PiecesRevoked).pieces == 0b0111
    rig.open()
    assert not rig.of(fx.PiecesReadable)
    assert not rig.task.readable


def test_what_somebody_waits_for_is_asked_of_parents_first() -> None:
    rig = streaming(pieces=64, pipeline_pieces_min=2)
    waits(rig, 40)
    rig.parent(held=(1 << 64) - 1)
    assert [one.piece for one in rig.of(fx.FetchPiece)] == [40, 41]
    waits(rig, 0, 0)  # It went away.
    fetched(rig, 40)
    assert rig.all(fx.FetchPiece)[-1].piece != 42


def test_a_reader_is_heeded_for_its_first_pieces_and_then_for_the_one_it_waits_for() -> None:
    rig = streaming(pieces=64)
    waits(rig, 10)
    assert rig.task.urgent == bitfield.mask_of(10, FIRST_IN_ORDER)
    waits(rig, 20, reader=2)
    waits(rig, 14)
    assert rig.task.urgent == 1 << 14 | bitfield.mask_of(20, FIRST_IN_ORDER)
    waits(rig, 62, reader=3)
    assert rig.task.urgent >> 62 == 0b11, "behind the end there is nothing"
    for reader in (1, 2, 3):
        waits(rig, 0, 0, reader=reader)
    assert not rig.task.urgent


def test_nobody_waits_for_a_task_that_nobody_wants() -> None:
    rig = streaming(pieces=64)
    waits(rig, 10)
    rig.unwant()
    assert not rig.task.urgent
    waits(rig, 10)
    assert not rig.task.urgent


def test_alone_a_far_range_is_read_beside_everything_else() -> None:
    rig = alone(16 * STRETCH, LONG)
    running = rig.all(fx.ReadOrigin)
    assert len(running) == rig.engine.state.limits.origin_reads_max
    assert max(read.piece_count or 0 for read in running) == STRETCH
    waits(rig, 12 * STRETCH)
    assert rig.one(fx.ReadOrigin).first_piece == 12 * STRETCH
    waits(rig, 14 * STRETCH, reader=2)
    assert not rig.of(fx.ReadOrigin), f"no more than {URGENT_READS} beside the usual ones"
    rig.read_ends(running[0].request_id, None)
    assert rig.one(fx.ReadOrigin).first_piece == 14 * STRETCH, "nor does it wait behind others"


def test_alone_nothing_is_read_twice_for_a_reader() -> None:
    rig = alone(16 * STRETCH, LONG)
    waits(rig, 2)
    assert not rig.of(fx.ReadOrigin), "it is on its way"
    waits(rig, 12 * STRETCH)
    pieces = 0
    for read in rig.all(fx.ReadOrigin):
        mask = bitfield.mask_of(read.first_piece, read.piece_count or 0)
        assert not pieces & mask
        pieces |= mask


def test_of_a_lease_what_somebody_waits_for_is_read_first() -> None:
    rig = streaming(pieces=64)
    rig.plan("")
    waits(rig, 24)
    rig.lease(16, 16)
    reads = [(read.first_piece, read.piece_count) for read in rig.of(fx.ReadOrigin)]
    assert reads == [(24, 8), (16, 8)]


def test_by_plan_what_somebody_waits_for_is_pulled_from_whoever_holds_it() -> None:
    rig = streaming(pieces=64)
    rig.directory("h0", "h1")
    rig.plan("a", "a", "a", "a")
    rig.connects("a")
    rig.map((1, 1 << 50 | 1 << 60))
    assert not rig.task.pulled
    waits(rig, 50)
    assert rig.task.pulled == 1 << 50
    assert [link.host_id for link in rig.engine.state.links.values() if link.pulls] == ["h1"]
