"""Control messages that no honest host or scheduler sends: none of them gets in."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.runtime.control_codec import (
    MESSAGES_PER_BATCH_MAX,
    decode_host_batch,
    decode_scheduler_batch,
    parse_host_batch,
    parse_scheduler_batch,
)
from shoal.runtime.control_fields import stretches, stretches_of
from shoal.v1 import control_pb2 as pb
from shoal.wire import bitfield
from shoal.wire.errors import ProtocolError
from shoal.wire.limits import PIECES_PER_TASK_MAX

ID = "0" * 64


def legal_descriptor(**changes: Any) -> pb.TaskDescriptor:
    values: dict[str, Any] = {
        "task_id": ID,
        "source_id": ID,
        "geometry": pb.Geometry(size_bytes=2**20, piece_length_bytes=2**18, run_pieces=1),
        "ranges": True,
        "epoch": 1,
        "piece_digest": "xxh3-128",
    }
    return pb.TaskDescriptor(**(values | changes))


def hello(**changes: Any) -> pb.HostMessage:
    values: dict[str, Any] = {
        "host": pb.HostInfo(host_id="h", addresses=[pb.Address(ip="::1", port=1)]),
        "generation": 1,
        "version_min": 1,
        "version_max": 1,
    }
    return pb.HostMessage(hello=pb.Hello(**(values | changes)))


def holding(sealed: bool = False, held: bytes = b"", **changes: Any) -> pb.HostMessage:
    value = pb.Holding(descriptor=legal_descriptor(**changes), held=held, sealed=sealed)
    return hello(holdings=[value])


def geometry(size: int | None, length: int, run: int) -> dict[str, Any]:
    return {"geometry": pb.Geometry(size_bytes=size, piece_length_bytes=length, run_pieces=run)}


def host(**values: Any) -> pb.HostMessage:
    return hello(host=pb.HostInfo(**values))


def report(**values: Any) -> pb.HostMessage:
    return pb.HostMessage(report=pb.Report(**values))


def progress(*numbers: int, epoch: int = 1) -> pb.HostMessage:
    value = pb.Progress(task_id=ID, epoch=epoch, new_stretches=numbers)
    return report(progress=[value])


def statement(**changes: Any) -> pb.HostMessage:
    values: dict[str, Any] = {"task_id": ID, "epoch": 1, "piece": 0, "digest": b"d" * 16}
    return report(statements=[pb.Statement(**(values | changes))])


def join(count: int = 1, demand: str = "whole", **member: Any) -> pb.HostMessage:
    members = [pb.Member(**({"source_id": ID} | member)) for _ in range(count)]
    return pb.HostMessage(join=pb.Join(collection_id=ID, members=members, demand=demand))


def stat_answer(**values: Any) -> pb.HostMessage:
    return pb.HostMessage(stat_answer=pb.StatAnswer(source_id=ID, **values))


def address(ip: str, port: int) -> pb.HostMessage:
    return host(host_id="h", addresses=[pb.Address(ip=ip, port=port)])


def swarm_map(**changes: Any) -> pb.SchedulerMessage:
    values: dict[str, Any] = {"collection_id": ID, "unit_bytes": 2**20}
    return pb.SchedulerMessage(swarm_map=pb.SwarmMap(**(values | changes)))


def runs(**values: Any) -> pb.SchedulerMessage:
    return swarm_map(changes=[pb.HostRuns(**values)])


def assigned(**changes: Any) -> pb.SchedulerMessage:
    values: dict[str, Any] = {"collection_id": ID, "unit_bytes": 2**20, "parents": ["h", ""]}
    return pb.SchedulerMessage(assigned=pb.Assigned(**(values | changes)))


def directory(**changes: Any) -> pb.SchedulerMessage:
    values: dict[str, Any] = {"collection_id": ID, "hosts": [pb.Parent(host_id="h")]}
    return pb.SchedulerMessage(directory=pb.Directory(**(values | changes)))


def holders_wanted(*task_ids: str) -> pb.HostMessage:
    return pb.HostMessage(holders_wanted=pb.HoldersWanted(number=1, task_ids=task_ids))


def holder_counts(
    *tasks: pb.TaskHolders, hosts: int = 1, whole_hosts: int = 0
) -> pb.SchedulerMessage:
    counts = pb.HolderCounts(number=1, hosts=hosts, whole_hosts=whole_hosts, tasks=tasks)
    return pb.SchedulerMessage(holder_counts=counts)


ILLEGAL_FROM_HOST = {
    "short id": pb.HostMessage(leave=pb.Leave(collection_id="0" * 63)),
    "upper-case id": pb.HostMessage(leave=pb.Leave(collection_id="A" * 64)),
    "no host id": host(),
    "long host id": host(host_id="h" * 65),
    "host id with a line break": host(host_id="a\nb"),
    "address that is a name": address("localhost", 1),
    "port 0": address("10.0.0.1", 0),
    "port 65536": address("10.0.0.1", 65536),
    "17 addresses": host(host_id="h", addresses=[pb.Address(ip="10.0.0.1", port=1)] * 17),
    "long zone": host(host_id="h", zone="z" * 65),
    "versions the wrong way round": hello(version_min=2, version_max=1),
    "version 0": hello(version_min=0),
    "piece length that is no power of two": holding(**geometry(1, 300_000, 1)),
    "piece length too small": holding(**geometry(1, 1024, 1)),
    "no runs": holding(**geometry(1, 2**18, 0)),
    "runs too large": holding(**geometry(1, 2**18, 512)),
    "odd runs": holding(**geometry(1, 2**18, 3)),
    "too many pieces": holding(**geometry(2**18 * PIECES_PER_TASK_MAX + 1, 2**18, 1)),
    "size beyond files": holding(**geometry(2**63, 2**26, 1)),
    "epoch 0": holding(epoch=0),
    "unknown piece digest": holding(piece_digest="md5"),
    "digest of unknown kind": holding(digest="md5:00"),
    "digest in upper case": holding(digest="sha256:" + "AB" * 32),
    "empty validator": holding(validator=""),
    "long validator": holding(validator="v" * 1025),
    "bitmap behind the end": holding(held=b"\x10"),
    "bitmap too long": holding(held=b"\x00\x01"),
    "bitmap not in canonical form": holding(held=b"\x00"),
    "sealed with a bitmap": holding(sealed=True, held=b"\x0f"),
    "sealed of unknown size": holding(sealed=True, **geometry(None, 2**18, 1)),
    "lease mask too long": hello(leases=[pb.HeldLease(task_id=ID, pieces=b"\xff" * (2**17 + 1))]),
    "no members": join(0),
    "too many members": join(10_001),
    "unknown demand": join(demand="please"),
    "illegal piece length": join(piece_length_bytes=5),
    "reason that is too long": stat_answer(outcome="x" * 65),
    "retry in a century": stat_answer(retry_after_ms=2**32 - 1),
    "size of a stat": stat_answer(size_bytes=2**63),
    "piece too high": statement(piece=PIECES_PER_TASK_MAX),
    "piece digest of no known length": statement(digest=b"d" * 17),
    "piece digest missing": statement(digest=b""),
    "too many statements": report(statements=[pb.Statement()] * 8193),
    "too much progress": report(progress=[pb.Progress()] * 10_001),
    "odd stretches": progress(1),
    "empty stretch": progress(1, 0),
    "stretch behind the end": progress(PIECES_PER_TASK_MAX - 1, 2),
    "stretches that overlap": progress(0, 3, 2, 2),
    "stretches that touch": progress(0, 3, 3, 2),
    "stretches out of order": progress(9, 1, 0, 1),
    "progress in epoch 0": progress(epoch=0),
    "blame without a reason": report(blames=[pb.Blame(host_id="h", task_id=ID)]),
    "checked without a digest": pb.HostMessage(checked=pb.Checked(task_id=ID, epoch=1)),
    "digest list behind the end": pb.HostMessage(
        digest_list=pb.DigestList(
            task_id=ID, epoch=1, first_piece=PIECES_PER_TASK_MAX, digests=[b""]
        )
    ),
    "digest list too long": pb.HostMessage(
        digest_list=pb.DigestList(task_id=ID, epoch=1, digests=[b""] * 8193)
    ),
    "question about nothing": holders_wanted(),
    "question about too much": holders_wanted(*[ID] * 1025),
    "question about no task": holders_wanted("x"),
}
ILLEGAL_FROM_SCHEDULER = {
    "version 0": pb.SchedulerMessage(welcome=pb.Welcome(report_interval_ms=1)),
    "no interval": pb.SchedulerMessage(report_interval=pb.ReportInterval()),
    "no report interval": pb.SchedulerMessage(welcome=pb.Welcome(version=1)),
    "lease of no pieces": pb.SchedulerMessage(
        leases=pb.Leases(granted=[pb.Lease(task_id=ID, epoch=1, piece_count=0)])
    ),
    "lease behind the end": pb.SchedulerMessage(
        leases=pb.Leases(granted=[pb.Lease(task_id=ID, epoch=1, first_piece=2**20, piece_count=1)])
    ),
    "empty token": pb.SchedulerMessage(swarm_token=pb.SwarmToken(task_id=ID, ttl_ms=1)),
    "long token": pb.SchedulerMessage(
        swarm_token=pb.SwarmToken(task_id=ID, ttl_ms=1, token=b"t" * 257)
    ),
    "no reason": pb.SchedulerMessage(source_failed=pb.SourceFailed(collection_id=ID, source_id=ID)),
    "parent without an id": pb.SchedulerMessage(
        parents=pb.Parents(collection_id=ID, added=[pb.Parent()])
    ),
    "digest of no known length": pb.SchedulerMessage(
        digests=pb.Digests(task_id=ID, epoch=1, entries=[pb.DigestEntry(digest=b"x")])
    ),
    "map of short units": swarm_map(unit_bytes=2**19),
    "map of long units": swarm_map(unit_bytes=2**27),
    "map of odd units": swarm_map(unit_bytes=3 * 2**20),
    "map without a unit": swarm_map(unit_bytes=0),
    "map of no collection": swarm_map(collection_id=""),
    "map of a unit behind the end": runs(units=[2**20, 1]),
    "map of too many units": runs(units=[2**20 - 1, 2]),
    "map of an empty stretch": runs(units=[1, 0]),
    "map of half a stretch": runs(units=[1]),
    "map of stretches that touch": runs(units=[0, 1, 1, 1]),
    "map of a host too high": runs(host=2**20),
    "map of a task too high": runs(task=10_000),
    "map of too many changes": swarm_map(changes=[pb.HostRuns()] * 65_537),
    "map with too many gone": swarm_map(gone=[1] * 65_537),
    "map with one too high gone": swarm_map(gone=[2**20]),
    "map that covers too many tasks": swarm_map(covered=[pb.TaskUnits()] * 65_537),
    "map that covers a task too high": swarm_map(covered=[pb.TaskUnits(task=10_000)]),
    "map that covers too much": swarm_map(covered=[pb.TaskUnits(units=[0, 2**20 + 1])]),
    "map of too much spread": swarm_map(spread=[pb.TaskUnits()] * 65_537),
    "map of units spread out of order": swarm_map(spread=[pb.TaskUnits(units=[5, 1, 0, 1])]),
    "plan of too many stripes": assigned(parents=["h"] * 65),
    "plan of short units": assigned(unit_bytes=1),
    "plan of long units": assigned(unit_bytes=2**32 - 1),
    "plan with an illegal parent": assigned(parents=["h" * 65]),
    "plan of no collection": assigned(collection_id="x"),
    "directory of too many hosts": directory(first=2**20),
    "directory of a nameless host": directory(hosts=[pb.Parent()]),
    "directory of a host that is a name": directory(
        hosts=[pb.Parent(host_id="h", addresses=[pb.Address(ip="name", port=1)])]
    ),
    "answer about too much": holder_counts(*[pb.TaskHolders(task_id=ID)] * 1025),
    "answer about no task": holder_counts(pb.TaskHolders()),
    "more have all than something": holder_counts(hosts=1, whole_hosts=2),
    "more have all of a task": holder_counts(pb.TaskHolders(task_id=ID, whole_hosts=1)),
    "more is covered than there is": holder_counts(
        pb.TaskHolders(task_id=ID, covered_bytes=2, size_bytes=1)
    ),
    "more is covered than can be": holder_counts(pb.TaskHolders(task_id=ID, covered_bytes=2**63)),
    "epoch 0": pb.SchedulerMessage(epoch_voided=pb.EpochVoided(task_id=ID)),
}


@pytest.mark.parametrize("what", ILLEGAL_FROM_HOST)
def test_illegal_host_messages_are_refused(what: str) -> None:
    with pytest.raises(ProtocolError):
        decode_host_batch(pb.HostBatch(messages=[ILLEGAL_FROM_HOST[what]]))


@pytest.mark.parametrize("what", ILLEGAL_FROM_SCHEDULER)
def test_illegal_scheduler_messages_are_refused(what: str) -> None:
    with pytest.raises(ProtocolError):
        decode_scheduler_batch(pb.SchedulerBatch(messages=[ILLEGAL_FROM_SCHEDULER[what]]))


@pytest.mark.parametrize(
    "message",
    [
        hello(),
        holding(),
        holding(held=b"\x0f"),
        join(),
        progress(0, 1),
        statement(),
        holders_wanted(*[ID] * 1024),
    ],
)
def test_what_the_illegal_ones_were_made_from_is_legal(message: pb.HostMessage) -> None:
    assert len(decode_host_batch(pb.HostBatch(messages=[message]))) == 1


@pytest.mark.parametrize(
    "message",
    [
        swarm_map(),
        swarm_map(unit_bytes=2**26, full=True, gone=[2**20 - 1]),
        runs(host=2**20 - 1, task=9_999, units=[0, 2**20]),
        assigned(),
        assigned(parents=[]),
        assigned(parents=["h"] * 64),
        directory(first=2**20 - 1),
        holder_counts(*[pb.TaskHolders(task_id=ID)] * 1024),
        holder_counts(pb.TaskHolders(task_id=ID, covered_bytes=1, size_bytes=1), whole_hosts=1),
    ],
)
def test_the_same_of_a_scheduler(message: pb.SchedulerMessage) -> None:
    assert len(decode_scheduler_batch(pb.SchedulerBatch(messages=[message]))) == 1


def test_batches_that_are_no_batches() -> None:
    with pytest.raises(ProtocolError, match="not a batch"):
        parse_host_batch(b"\x0a\xff")
    with pytest.raises(ProtocolError, match="not a batch"):
        parse_scheduler_batch(b"\xff")
    flood = b"\x0a\x00" * (MESSAGES_PER_BATCH_MAX + 1)
    with pytest.raises(ProtocolError, match="messages in a batch"):
        decode_host_batch(parse_host_batch(flood))


# ---------------------------------------------------------------- stretches


@given(st.integers(0, 2**200 - 1) | st.integers(0, 2**20 - 1).map(lambda at: 1 << at))
def test_stretches_read_back(mask: int) -> None:
    assert stretches(stretches_of(mask)) == mask


def test_the_worst_progress_is_decoded_in_linear_time() -> None:
    """Alternating pieces of the largest task: half a million stretches in one message."""
    numbers = [number for first in range(0, PIECES_PER_TASK_MAX, 2) for number in (first, 1)]
    mask = stretches(numbers)
    assert mask.bit_count() == PIECES_PER_TASK_MAX // 2
    assert mask == int.from_bytes(b"\x55" * (PIECES_PER_TASK_MAX // 8), "little")
    whole = stretches([0, PIECES_PER_TASK_MAX])
    assert whole == bitfield.mask_of(0, PIECES_PER_TASK_MAX)
