"""Epochs as the scheduler counts them: what a host drops, keeps, and calls by another number."""

import pytest

import peer.core.effects as fx
import peer.core.events as ev
import shoal.wire.control as msg
from peer.core.state import TaskPhase
from shoal.wire.errors import Reason
from shoal.wire.ids import ConnectionId, HostId, LeaseNumber, RequestId
from shoal.wire.proof import swarm_proof
from tests.unit.peer.core_rig import (
    COLLECTION,
    SOURCE,
    TASK,
    TOKEN,
    Rig,
    describe,
    sealed_rig,
    stored,
)

CHILD = ConnectionId(70)


def second_epoch() -> Rig:
    """A host with a piece of the second epoch."""
    rig = Rig().start()
    rig.tell(msg.EpochVoided(task_id=TASK, epoch=2))
    rig.open()
    rig.parent(1, held=0b11, epoch=2)
    rig.fetched(rig.of(fx.FetchPiece)[0])
    assert rig.task.held
    return rig


def test_an_older_epoch_that_the_scheduler_insists_on_is_begun_anew() -> None:
    rig = second_epoch()
    held = rig.task.held
    # It heard of the newer one in the inventory, and describes another: so it is to be.
    rig.up(2)
    described = msg.Described(
        collection_id=COLLECTION, source_id=SOURCE, descriptor=describe(epoch=1)
    )
    rig.tell(described, session=2)
    assert rig.one(fx.DropPieces).pieces == held
    assert rig.one(fx.OpenTask).descriptor.epoch == 1
    assert rig.task.voids == 1, "nothing was found to be wrong"
    rig.open()
    lease = msg.Lease(
        number=LeaseNumber(10),
        task_id=TASK,
        epoch=1,
        first_piece=0,
        piece_count=4,
        ttl_ms=30_000,
    )
    rig.tell(msg.Leases(granted=(lease,)), session=2)
    assert rig.of(fx.ReadOrigin)


@pytest.mark.parametrize("epoch", [2, 3])
def test_an_epoch_that_begins_while_the_store_opens_is_not_missed(epoch: int) -> None:
    rig = Rig()
    rig.up()
    rig.want()
    rig.described()
    for number in range(2, epoch + 1):
        rig.tell(msg.EpochVoided(task_id=TASK, epoch=number))
    rig.open()
    assert rig.one(fx.OpenTask).descriptor.epoch == epoch
    rig.open()
    rig.lease(epoch=epoch)
    assert rig.of(fx.ReadOrigin), "it would give the lease back, and get it again"


def test_an_epoch_that_begins_while_the_task_is_removed_is_not_missed() -> None:
    rig = Rig(tasks=(stored(describe(), 0b1),))
    rig.up()
    rig.feed(ev.Remove, request_id=RequestId(1), task_id=TASK)
    rig.want()
    rig.described()
    rig.tell(msg.EpochVoided(task_id=TASK, epoch=2))
    rig.feed(ev.TaskRemoved, task_id=TASK)
    assert rig.one(fx.OpenTask).descriptor.epoch == 2


def test_what_was_described_before_an_epoch_began_does_not_bring_it_back() -> None:
    rig = second_epoch()
    rig.want(2)
    assert rig.task.descriptor.epoch == 2
    assert rig.task.held


def test_a_failed_task_of_a_newer_epoch_begins_anew_as_it_is_described() -> None:
    rig = second_epoch()
    rig.feed(ev.StoreFailed, task_id=TASK, reason=Reason.DISK_FAILED, detail="gone")
    assert rig.task.phase is TaskPhase.FAILED
    rig.unwant()
    rig.want(2)
    rig.described(describe(epoch=1))
    assert rig.all(fx.OpenTask)[-1].descriptor.epoch == 1
    rig.open()
    rig.lease(number=10, epoch=1)
    assert rig.of(fx.ReadOrigin)


def open_child(rig: Rig, connection: ConnectionId = CHILD) -> None:
    nonce = b"n" * 16
    rig.feed(
        ev.ChildOpened,
        connection_id=connection,
        host_id=HostId("child"),
        task_id=TASK,
        nonce=nonce,
        proof=swarm_proof(TOKEN, nonce, HostId("child"), TASK),
    )


def test_sealed_content_is_kept_and_called_by_the_present_epoch() -> None:
    rig = sealed_rig()
    open_child(rig)
    assert rig.one(fx.AcceptChild).epoch == 1
    rig.tell(msg.EpochVoided(task_id=TASK, epoch=3))
    rig.tick(100)
    assert not rig.all(fx.DropPieces)
    assert not rig.all(fx.OpenTask)
    assert (rig.task.phase, rig.task.descriptor.epoch) == (TaskPhase.SEALED, 3)
    # A child of that epoch takes pieces from now on.
    (told,) = rig.all(fx.Announce)
    assert (told.new, told.connection_ids) == (0b1111, (CHILD,))
    rig.feed(ev.ChildRequested, connection_id=CHILD, task_id=TASK, requests=((1, 2),), wait=False)
    assert rig.one(fx.ServePiece).epoch == 3
    # Also one that comes later, and also an older number, which the scheduler insists on.
    rig.tell(msg.EpochVoided(task_id=TASK, epoch=2))
    open_child(rig, ConnectionId(71))
    assert rig.one(fx.AcceptChild).epoch == 2
    assert rig.task.held == 0b1111


def planned_and_complete(pieces: int) -> Rig:
    """A host to which a task flowed by a plan, all of whose pieces are here."""
    rig = Rig().start(pieces)
    rig.plan("feed")
    rig.connects("feed")
    for piece in range(pieces):
        (fetch,) = (one for one in rig.all(fx.FetchPiece) if one.piece == piece)
        rig.fetched(fetch)
    assert rig.task.phase is TaskPhase.CHECKING
    rig.tick(1000)
    return rig


def flows_again(rig: Rig, epoch: int) -> bool:
    """Whether standing requests go to the parent when the store has opened the task anew."""
    rig.open()
    connection = rig.one(fx.OpenChannel).connection_id
    rig.feed(ev.ParentOpened, connection_id=connection, task_id=TASK, epoch=epoch, held=0)
    return bool(rig.of(fx.FetchPiece))


def test_a_task_that_was_whole_flows_again_by_the_plan_when_its_epoch_is_void() -> None:
    rig = planned_and_complete(4)
    rig.tell(msg.EpochVoided(task_id=TASK, epoch=2))
    assert flows_again(rig, epoch=2)


def test_a_task_that_was_whole_flows_again_by_the_plan_when_a_piece_was_false() -> None:
    rig = planned_and_complete(4)
    rig.list_digests(2, wrong=True)
    assert rig.task.phase is TaskPhase.ACTIVE
    rig.tick(60_000)
    assert rig.of(fx.OpenChannel), "when its quarantine is over"


def test_a_void_epoch_that_is_over_changes_nothing_of_what_is_not_sealed() -> None:
    rig = second_epoch()
    rig.tell(msg.EpochVoided(task_id=TASK, epoch=1))
    assert rig.task.descriptor.epoch == 2
    assert rig.task.held


def test_the_inventory_names_the_present_epoch_of_sealed_content() -> None:
    rig = sealed_rig()
    rig.tell(msg.EpochVoided(task_id=TASK, epoch=2))
    rig.feed(ev.SchedulerUp, session=2)
    (hello,) = rig.said(msg.Hello)
    (holding,) = hello.holdings
    assert (holding.descriptor.epoch, holding.sealed) == (2, True)
    assert rig.engine.sealed_content(TASK)[2]
    assert stored(holding.descriptor).descriptor.epoch == 2
