"""Control messages: everything a core can say survives the wire, nothing illegal gets in."""

import contextlib
import dataclasses
import typing
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peer.core.swarm_view import SwarmView, fold
from shoal.runtime import control_codec
from shoal.runtime.control_codec import (
    decode_host_batch,
    decode_scheduler_batch,
    encode_host_batch,
    encode_scheduler_batch,
    entries_of,
    host_entry,
    pack_entries,
    parse_host_batch,
    parse_scheduler_batch,
    scheduler_entry,
)
from shoal.v1 import control_pb2 as pb
from shoal.wire import bitfield
from shoal.wire import control as msg
from shoal.wire.control import HostMessage, SchedulerMessage
from shoal.wire.errors import ProtocolError, Reason
from shoal.wire.geometry import Geometry
from shoal.wire.ids import CollectionId, HostId, LeaseNumber, SourceId, TaskId
from shoal.wire.limits import (
    COLLECTION_TASKS_MAX,
    DIRECTORY_HOSTS_MAX,
    KIB,
    MIB,
    PIECES_PER_TASK_MAX,
    TEXT_CHARACTERS_MAX,
)

# ---------------------------------------------------------------- legal values

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
fingerprints = st.binary(min_size=32, max_size=32).map(bytes.hex)
task_ids = fingerprints.map(TaskId)
source_ids = fingerprints.map(SourceId)
collection_ids = fingerprints.map(CollectionId)
printable = st.characters(categories=["L", "N", "P", "S"])
host_ids = st.text(printable, min_size=1, max_size=64).map(HostId)
names = st.text(printable, max_size=64)
texts = st.text(max_size=200)
lease_numbers = u64.map(LeaseNumber)
epochs = st.integers(1, 2**32 - 1)
pieces = st.integers(0, PIECES_PER_TASK_MAX - 1)
sizes = st.integers(0, 2**63 - 1)
milliseconds = st.integers(0, 7 * 24 * 3600 * 1000)
masks = st.integers(0, 2**200 - 1) | st.builds(lambda at: 1 << at, pieces)
piece_digests = st.binary(min_size=16, max_size=16) | st.binary(min_size=32, max_size=32)
content_digests = fingerprints.map(lambda digits: "sha256:" + digits) | st.binary(
    min_size=64, max_size=64
).map(lambda value: "sha512:" + value.hex())
validators = st.text(min_size=1, max_size=100)
reasons = st.sampled_from(Reason)
outcomes = st.none() | reasons
addresses = st.lists(
    st.builds(msg.Address, st.ip_addresses().map(str), st.integers(1, 65535)),
    max_size=16,
).map(tuple)
parents = st.builds(msg.Parent, host_id=host_ids, addresses=addresses, zone=names)
piece_lengths = st.integers(18, 23).map(lambda bits: 1 << bits)
unit_lengths = st.integers(20, 26).map(lambda bits: 1 << bits)
host_numbers = st.integers(0, DIRECTORY_HOSTS_MAX - 1)
task_numbers = st.integers(0, COLLECTION_TASKS_MAX - 1)


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    length = draw(piece_lengths)
    run = 1
    while 2 * run * length <= 2**26 and draw(st.booleans()):
        run *= 2
    size = draw(st.none() | st.integers(0, length * 5000))
    return Geometry(size_bytes=size, piece_length_bytes=length, run_pieces=run)


descriptors = st.builds(
    msg.TaskDescriptor,
    task_id=task_ids,
    source_id=source_ids,
    geometry=geometries(),
    digest=st.none() | content_digests,
    validator=st.none() | validators,
    ranges=st.booleans(),
    epoch=epochs,
    piece_digest=st.sampled_from(["xxh3-128", "blake3"]),
)


@st.composite
def holdings(draw: st.DrawFn) -> msg.Holding:
    descriptor = draw(descriptors)
    if descriptor.geometry.size_bytes is None:
        return msg.Holding(descriptor=descriptor, held=draw(masks), sealed=False)
    whole = descriptor.geometry.all_pieces
    sealed = draw(st.booleans())
    held = whole if sealed else draw(st.integers(0, whole))
    return msg.Holding(descriptor=descriptor, held=held, sealed=sealed)


def many(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(strategy, max_size=4).map(tuple)


hellos = st.builds(
    msg.Hello,
    host=st.builds(
        msg.HostInfo,
        host_id=host_ids,
        addresses=addresses,
        zone=names,
        upload_rate_bytes_s=u64,
        download_rate_bytes_s=u64,
        free_disk_bytes=u64,
        software_version=names,
    ),
    generation=u64,
    holdings=many(holdings()),
    leases=many(st.builds(msg.HeldLease, number=lease_numbers, task_id=task_ids, pieces=masks)),
    version_min=st.integers(1, 3),
    version_max=st.integers(3, 2**32 - 1),
)
joins = st.builds(
    msg.Join,
    collection_id=collection_ids,
    members=st.lists(
        st.builds(
            msg.Member,
            source_id=source_ids,
            task_id=st.none() | task_ids,
            digest=st.none() | content_digests,
            display_url=texts,
            piece_length_bytes=st.none() | piece_lengths,
            anonymous=st.booleans(),
            origin_allowed=st.booleans(),
        ),
        min_size=1,
        max_size=4,
    ).map(tuple),
    demand=st.sampled_from(msg.Demand),
    priority=st.integers(-(2**31), 2**31 - 1),
)
reports = st.builds(
    msg.Report,
    statements=many(
        st.builds(msg.Statement, task_ids, epochs, pieces, piece_digests, lease_numbers)
    ),
    progress=many(st.builds(msg.Progress, task_id=task_ids, epoch=epochs, new=masks)),
    lease_ends=many(
        st.builds(
            msg.LeaseEnd,
            number=lease_numbers,
            task_id=task_ids,
            outcome=outcomes,
            retry_after_ms=milliseconds,
            detail=texts,
        )
    ),
    goodput=many(st.builds(msg.Goodput, host_id=host_ids, received_bytes=u64, rate_bytes_s=u64)),
    blames=many(
        st.builds(msg.Blame, host_id=host_ids, task_id=task_ids, piece=pieces, reason=reasons)
    ),
    free_upload_slots=u32,
)
stat_answers = st.builds(
    msg.StatAnswer,
    source_id=source_ids,
    outcome=outcomes,
    size_bytes=st.none() | sizes,
    validator=st.none() | validators,
    ranges=st.booleans(),
    anonymous=st.booleans(),
    retry_after_ms=milliseconds,
    detail=texts,
)
HOST_MESSAGES: dict[type[Any], st.SearchStrategy[Any]] = {
    msg.Hello: hellos,
    msg.Join: joins,
    msg.Leave: st.builds(msg.Leave, collection_id=collection_ids),
    msg.StatAnswer: stat_answers,
    msg.Report: reports,
    msg.SizeFound: st.builds(
        msg.SizeFound, task_id=task_ids, lease_number=lease_numbers, size_bytes=sizes
    ),
    msg.Checked: st.builds(
        msg.Checked, task_id=task_ids, epoch=epochs, passed=st.booleans(), digest=content_digests
    ),
    msg.Withdrawn: st.builds(msg.Withdrawn, task_id=task_ids, generation=u64),
    msg.DigestList: st.builds(
        msg.DigestList,
        task_id=task_ids,
        epoch=epochs,
        first_piece=st.integers(0, 2**19),
        digests=many(piece_digests | st.just(b"")),
    ),
    msg.HoldersWanted: st.builds(
        msg.HoldersWanted,
        number=u64,
        task_ids=st.lists(task_ids, min_size=1, max_size=4).map(tuple),
    ),
}


@st.composite
def task_holders(draw: st.DrawFn) -> msg.TaskHolders:
    hosts = draw(st.integers(0, 2**32 - 1))
    size = draw(st.none() | sizes)
    return msg.TaskHolders(
        task_id=draw(task_ids),
        hosts=hosts,
        whole_hosts=draw(st.integers(0, hosts)),
        covered_bytes=draw(sizes if size is None else st.integers(0, size)),
        size_bytes=size,
    )


@st.composite
def holder_counts(draw: st.DrawFn) -> msg.HolderCounts:
    hosts = draw(st.integers(0, 2**32 - 1))
    return msg.HolderCounts(
        number=draw(u64),
        hosts=hosts,
        whole_hosts=draw(st.integers(0, hosts)),
        tasks=draw(many(task_holders())),
    )


SCHEDULER_MESSAGES: dict[type[Any], st.SearchStrategy[Any]] = {
    msg.HolderCounts: holder_counts(),
    msg.ReportInterval: st.builds(msg.ReportInterval, report_interval_ms=st.integers(1, 60_000)),
    msg.Welcome: st.builds(
        msg.Welcome,
        scheduler_id=names,
        version=st.integers(1, 2**32 - 1),
        report_interval_ms=st.integers(1, 60_000),
    ),
    msg.Described: st.builds(
        msg.Described, collection_id=collection_ids, source_id=source_ids, descriptor=descriptors
    ),
    msg.StatWanted: st.builds(msg.StatWanted, source_id=source_ids),
    msg.Parents: st.builds(
        msg.Parents,
        collection_id=collection_ids,
        added=many(parents),
        removed=many(host_ids),
    ),
    msg.Leases: st.builds(
        msg.Leases,
        granted=many(
            st.builds(
                msg.Lease,
                number=lease_numbers,
                task_id=task_ids,
                epoch=epochs,
                first_piece=st.integers(0, 2**19),
                piece_count=st.none() | st.integers(1, 2**19),
                ttl_ms=milliseconds,
            )
        ),
        revoked=many(lease_numbers),
    ),
    msg.Digests: st.builds(
        msg.Digests,
        task_id=task_ids,
        epoch=epochs,
        entries=many(st.tuples(pieces, piece_digests, lease_numbers)),
    ),
    msg.DigestsWanted: st.builds(msg.DigestsWanted, task_id=task_ids),
    msg.Assigned: st.builds(
        msg.Assigned,
        collection_id=collection_ids,
        unit_bytes=unit_lengths,
        parents=many(host_ids | st.just(HostId(""))),
    ),
    msg.Directory: st.builds(
        msg.Directory,
        collection_id=collection_ids,
        first=st.integers(0, DIRECTORY_HOSTS_MAX - 4),
        hosts=many(parents),
    ),
    msg.SwarmMap: st.builds(
        msg.SwarmMap,
        collection_id=collection_ids,
        unit_bytes=unit_lengths,
        full=st.booleans(),
        gone=many(host_numbers),
        changes=many(st.builds(msg.HostRuns, host_numbers, task_numbers, masks)),
        covered=many(st.tuples(task_numbers, masks)),
        spread=many(st.tuples(task_numbers, masks)),
    ),
    msg.SwarmToken: st.builds(
        msg.SwarmToken,
        task_id=task_ids,
        token=st.binary(min_size=1, max_size=256),
        ttl_ms=milliseconds,
    ),
    msg.SourceFailed: st.builds(
        msg.SourceFailed,
        collection_id=collection_ids,
        source_id=source_ids,
        reason=reasons,
        detail=texts,
    ),
    msg.EpochVoided: st.builds(
        msg.EpochVoided, task_id=task_ids, epoch=epochs, liars=many(host_ids)
    ),
    msg.Redirected: st.builds(
        msg.Redirected, reason=reasons, detail=texts, retry_after_ms=milliseconds
    ),
}

ID = "0" * 64
TASK, SOURCE, COLLECTION = TaskId(ID), SourceId(ID), CollectionId(ID)


# ---------------------------------------------------------------- round trips


def test_every_message_type_is_tested_here() -> None:
    assert set(HOST_MESSAGES) == set(typing.get_args(HostMessage))
    assert set(SCHEDULER_MESSAGES) == set(typing.get_args(SchedulerMessage))
    host_kinds = pb.HostMessage.DESCRIPTOR.oneofs_by_name["kind"].fields
    scheduler_kinds = pb.SchedulerMessage.DESCRIPTOR.oneofs_by_name["kind"].fields
    assert len(host_kinds) == len(HOST_MESSAGES)
    assert len(scheduler_kinds) == len(SCHEDULER_MESSAGES)


@pytest.mark.parametrize("kind", HOST_MESSAGES)
def test_host_messages_survive_the_wire(kind: type[Any]) -> None:
    @settings(max_examples=40)
    @given(HOST_MESSAGES[kind])
    def check(message: HostMessage) -> None:
        data = encode_host_batch([message]).SerializeToString()
        assert decode_host_batch(parse_host_batch(data)) == (message,)
        assert host_entry(message) == data

    check()


@pytest.mark.parametrize("kind", SCHEDULER_MESSAGES)
def test_scheduler_messages_survive_the_wire(kind: type[Any]) -> None:
    @settings(max_examples=40)
    @given(SCHEDULER_MESSAGES[kind])
    def check(message: SchedulerMessage) -> None:
        data = encode_scheduler_batch([message]).SerializeToString()
        assert decode_scheduler_batch(parse_scheduler_batch(data)) == (message,)
        assert scheduler_entry(message) == data

    check()


@given(st.lists(st.one_of(*SCHEDULER_MESSAGES.values()), max_size=5), st.integers(3000, 6000))
@settings(max_examples=40)
def test_joined_entries_are_batches_within_the_limit(
    messages: list[SchedulerMessage], size_bytes_max: int
) -> None:
    entries = [scheduler_entry(message) for message in messages]
    size_bytes_max = max([size_bytes_max, *map(len, entries)])
    batches = list(pack_entries(entries, size_bytes_max))
    assert all(0 < len(batch) <= size_bytes_max for batch in batches)
    decoded = [
        message
        for batch in batches
        for message in decode_scheduler_batch(parse_scheduler_batch(batch))
    ]
    assert decoded == messages


def test_a_message_that_fits_in_no_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="101 bytes: at most 100"):
        list(pack_entries([b"x" * 100, b"x" * 101], 100))


@given(st.binary(max_size=300))
def test_any_bytes_are_a_batch_or_a_protocol_error(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        decode_host_batch(parse_host_batch(data))
    with contextlib.suppress(ProtocolError):
        decode_scheduler_batch(parse_scheduler_batch(data))


@settings(max_examples=60)
@given(st.one_of(*HOST_MESSAGES.values()), st.data())
def test_a_flipped_bit_is_a_message_or_a_protocol_error(
    message: HostMessage, data: st.DataObject
) -> None:
    raw = bytearray(host_entry(message))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with contextlib.suppress(ProtocolError):
        decode_host_batch(parse_host_batch(bytes(raw)))


@pytest.mark.parametrize("kind", SCHEDULER_MESSAGES)
def test_a_flipped_bit_from_a_scheduler_is_a_message_or_a_protocol_error(kind: type[Any]) -> None:
    @settings(max_examples=20)
    @given(SCHEDULER_MESSAGES[kind], st.data())
    def check(message: SchedulerMessage, data: st.DataObject) -> None:
        raw = bytearray(scheduler_entry(message))
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        with contextlib.suppress(ProtocolError):
            decode_scheduler_batch(parse_scheduler_batch(bytes(raw)))

    check()


# ---------------------------------------------------------------- the map


def large_map(hosts: int, stretches_max: int = 3) -> msg.SwarmMap:
    """A map as a large swarm has it: of many hosts a little that is new."""
    dice = Random(1)
    changes = []
    for host in range(hosts):
        units = 0
        for _ in range(dice.randint(1, stretches_max)):
            units |= bitfield.mask_of(dice.randrange(500), dice.randint(1, 8))
        changes.append(msg.HostRuns(host, dice.randrange(30), units))
    return msg.SwarmMap(
        collection_id=COLLECTION, unit_bytes=MIB, full=False, changes=tuple(changes)
    )


def test_a_map_costs_about_fifteen_bytes_per_host() -> None:
    assert len(scheduler_entry(large_map(1000))) < 15_000


@pytest.mark.parametrize(
    ("name", "value"), [("CONTROL_MESSAGE_BYTES_MAX", 400), ("MAP_CHANGES_MAX", 30)]
)
@given(st.booleans(), st.integers(0, 100))
def test_a_map_too_large_for_a_message_is_told_in_several(
    name: str, value: int, full: bool, hosts: int
) -> None:
    message = dataclasses.replace(
        large_map(hosts), full=full, gone=(1, 2), covered=((3, 7),), spread=((4, 8),)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(control_codec, name, value)
        joined = scheduler_entry(message)
    parts = list(decode_scheduler_batch(parse_scheduler_batch(joined)))
    entries = list(entries_of(joined))
    assert b"".join(entries) == joined
    assert len(entries) == len(parts)
    maps = [part for part in parts if isinstance(part, msg.SwarmMap)]
    assert maps == parts
    if name == "MAP_CHANGES_MAX":
        assert max(len(part.changes) for part in maps) <= value
    else:
        assert max(map(len, entries)) <= value
    # One after the other they say the same.
    assert tuple(change for part in maps for change in part.changes) == message.changes
    assert [part.full for part in maps] == [full] + [False] * (len(maps) - 1)
    assert [part.gone for part in maps] == [(1, 2)] + [()] * (len(maps) - 1)
    assert [part.covered for part in maps] == [()] * (len(maps) - 1) + [((3, 7),)]
    assert [part.spread for part in maps] == [()] * (len(maps) - 1) + [((4, 8),)]
    view = SwarmView({0: {1: 1}}, {0: 1}, {0: 1})
    after = view
    for part in maps:
        after = fold(after, part)
    assert after == fold(view, message)


def test_what_receivers_share_of_a_map_is_never_sent() -> None:
    shared = large_map(2)
    shared.memo.append(("before", "after"))
    (received,) = decode_scheduler_batch(encode_scheduler_batch([shared]))
    assert received == shared
    assert isinstance(received, msg.SwarmMap)
    assert received.memo == []


def test_the_root_of_a_stripe_has_no_parent() -> None:
    plan = msg.Assigned(
        collection_id=COLLECTION, unit_bytes=MIB, parents=(HostId("h"), HostId(""), HostId("h"))
    )
    assert decode_scheduler_batch(encode_scheduler_batch([plan])) == (plan,)


# ---------------------------------------------------------------- forward compatibility


def test_unknown_kinds_are_left_out_and_counted() -> None:
    leave = msg.Leave(collection_id=COLLECTION)
    # An entry with field 99, which this version does not know, between two that it does.
    newer = b"\x0a\x05\x9a\x06\x02hi"
    counted: list[None] = []
    batch = parse_host_batch(host_entry(leave) + newer + host_entry(leave))
    assert decode_host_batch(batch, lambda: counted.append(None)) == (leave, leave)
    assert len(counted) == 1
    assert decode_scheduler_batch(parse_scheduler_batch(newer)) == ()


def test_reasons_of_a_newer_version_fall_back_to_general_ones() -> None:
    answer = pb.StatAnswer(source_id=ID, outcome="origin-on-fire")
    end = pb.LeaseEnd(task_id=ID, outcome="origin-on-fire")
    blame = pb.Blame(host_id="h", task_id=ID, reason="peer-on-fire")
    batch = pb.HostBatch(
        messages=[
            pb.HostMessage(stat_answer=answer),
            pb.HostMessage(report=pb.Report(lease_ends=[end], blames=[blame])),
        ]
    )
    decoded, report = decode_host_batch(batch)
    assert isinstance(decoded, msg.StatAnswer)
    assert isinstance(report, msg.Report)
    assert decoded.outcome is Reason.ORIGIN_FAILED
    assert report.lease_ends[0].outcome is Reason.ORIGIN_FAILED
    assert report.blames[0].reason is Reason.PEER_PROTOCOL
    redirected = pb.SchedulerMessage(redirected=pb.Redirected(reason="on-fire"))
    (message,) = decode_scheduler_batch(pb.SchedulerBatch(messages=[redirected]))
    assert isinstance(message, msg.Redirected)
    assert message.reason is Reason.OVERLOADED


def test_long_texts_are_cut_not_refused() -> None:
    answer = msg.StatAnswer(source_id=SOURCE, outcome=Reason.ORIGIN_FAILED, detail="x" * 9999)
    (decoded,) = decode_host_batch(encode_host_batch([answer]))
    assert decoded == dataclasses.replace(answer, detail="x" * TEXT_CHARACTERS_MAX)


def test_a_sealed_inventory_needs_no_bitmaps() -> None:
    geometry = Geometry(size_bytes=1000 * 256 * KIB, piece_length_bytes=256 * KIB, run_pieces=1)
    descriptor = msg.TaskDescriptor(
        task_id=TASK,
        source_id=SOURCE,
        geometry=geometry,
        digest=None,
        validator=None,
        ranges=True,
    )
    holding = msg.Holding(descriptor=descriptor, held=geometry.all_pieces, sealed=True)
    hello = msg.Hello(
        host=msg.HostInfo(host_id=HostId("h"), addresses=()), generation=1, holdings=(holding,)
    )
    assert decode_host_batch(encode_host_batch([hello])) == (hello,)
    assert len(host_entry(hello)) < 250
