"""What is serialised by hand or remembered is exactly what the codec makes anew."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shoal.runtime import control_memory
from shoal.runtime.control_bytes import parents_entry, read_varint, varint
from shoal.runtime.control_codec import (
    decode_host_batch,
    host_entry,
    parse_host_batch,
    scheduler_entry,
)
from shoal.runtime.control_from_scheduler import encode_scheduler_message
from shoal.runtime.control_memory import EntryMemory, JoinMemory
from shoal.v1 import control_pb2 as pb
from shoal.wire.control import (
    Address,
    Assigned,
    Directory,
    Join,
    Leases,
    Leave,
    Member,
    Parent,
    Parents,
    SchedulerMessage,
    StatWanted,
)
from shoal.wire.errors import ProtocolError
from shoal.wire.ids import CollectionId, HostId, LeaseNumber, SourceId

COLLECTION = CollectionId("c" * 64)
SOURCE = SourceId("5" * 64)

addresses = st.builds(Address, st.ip_addresses().map(str), st.integers(0, 2**32 - 1))
host_ids = st.text(max_size=64).map(HostId)
parents = st.builds(
    Parent,
    host_id=host_ids,
    addresses=st.lists(addresses, max_size=6).map(tuple),
    zone=st.text(max_size=150),
)
collection_ids = st.just(COLLECTION) | st.text(max_size=200).map(CollectionId)
parent_lists = st.builds(
    Parents,
    collection_id=collection_ids,
    added=st.lists(parents, max_size=6).map(tuple),
    removed=st.lists(host_ids, max_size=20).map(tuple),
)

assignments = st.builds(
    Assigned,
    collection_id=collection_ids,
    unit_bytes=st.integers(0, 2**32 - 1),
    parents=st.lists(host_ids, max_size=20).map(tuple),
)
directories = st.builds(
    Directory,
    collection_id=collection_ids,
    first=st.integers(0, 2**32 - 1),
    hosts=st.lists(parents, max_size=6).map(tuple),
)


def join(priority: int = 0, members: int = 1) -> Join:
    member = Member(
        source_id=SOURCE,
        task_id=None,
        digest=None,
        display_url="https://example.com/model",
        piece_length_bytes=None,
        anonymous=True,
    )
    return Join(collection_id=COLLECTION, members=(member,) * members, priority=priority)


@given(parent_lists)
@example(Parents(collection_id=COLLECTION))
@example(Parents(collection_id=COLLECTION, removed=(HostId(""),)))
@example(Parents(collection_id=COLLECTION, added=(Parent(host_id=HostId(""), addresses=()),)))
def test_parents_by_hand_are_protobufs_own_bytes(message: Parents) -> None:
    batch = pb.SchedulerBatch(messages=[encode_scheduler_message(message)])
    assert parents_entry(message) == batch.SerializeToString()
    assert scheduler_entry(message) == batch.SerializeToString()


@given(assignments | directories)
@example(Assigned(collection_id=COLLECTION, unit_bytes=0, parents=(HostId(""),) * 4))
@example(Directory(collection_id=COLLECTION, first=0, hosts=()))
def test_plans_by_hand_are_protobufs_own_bytes(message: Assigned | Directory) -> None:
    batch = pb.SchedulerBatch(messages=[encode_scheduler_message(message)])
    assert scheduler_entry(message) == batch.SerializeToString()


@given(st.integers(0, 2**64 - 1))
@example(0x7F)
@example(0x80)
@example(0x3FFF)
@example(0x4000)
def test_numbers_survive(value: int) -> None:
    assert read_varint(b"x" + varint(value), 1) == (value, 1 + len(varint(value)))


def test_the_same_join_is_the_same_object() -> None:
    memory = JoinMemory()
    data = host_entry(join())
    (first,) = memory.decode(data) or ()
    (second,) = memory.decode(bytes(bytearray(data))) or ()
    assert first is second
    assert first == join()
    assert memory.decode(host_entry(join(priority=1))) == (join(priority=1),)


def test_only_a_join_alone_is_remembered() -> None:
    memory = JoinMemory()
    leave = host_entry(Leave(collection_id=COLLECTION))
    for data in (b"", b"\x0a", b"\x0a\xff", leave, host_entry(join()) + leave):
        assert memory.decode(data) is None
    with pytest.raises(ProtocolError):
        memory.decode(b"\x0a\x02\x12\x00")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_join_or_something_else(data: bytes) -> None:
    memory = JoinMemory()
    try:
        messages = memory.decode(data)
    except ProtocolError:
        return
    assert messages is None or messages == decode_host_batch(parse_host_batch(data))


def test_joins_are_forgotten_before_they_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    data = [host_entry(join(priority=number)) for number in range(5)]
    monkeypatch.setattr(control_memory, "JOIN_BYTES_MAX", 3 * len(data[0]))
    memory = JoinMemory()
    first = memory.decode(data[1])
    assert memory.decode(data[1]) is first
    for each in data:
        memory.decode(each)
    again = memory.decode(data[1])
    assert again == first
    assert again is not first


def test_a_message_is_serialised_once() -> None:
    memory = EntryMemory()
    wanted, twin = StatWanted(source_id=SOURCE), StatWanted(source_id=SOURCE)
    entry = memory.entry(wanted)
    assert entry == scheduler_entry(wanted)
    assert memory.entry(wanted) is entry
    assert memory.entry(twin) == entry


def test_what_is_for_all_is_not_forgotten_for_what_is_for_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(control_memory, "ENTRY_COUNT_MAX", 5)
    memory = EntryMemory()
    for_all = StatWanted(source_id=SOURCE)
    entry = memory.entry(for_all)
    for_one = [StatWanted(source_id=SourceId(f"{number:064x}")) for number in range(50)]
    for message in for_one:
        memory.entry(message)
        assert memory.entry(for_all) is entry
    for message in for_one:
        memory.entry(message)
    assert memory.entry(for_all) is not entry


@pytest.mark.parametrize(
    "for_one",
    [
        Parents(collection_id=COLLECTION, removed=(HostId("gone"),)),
        Assigned(collection_id=COLLECTION, unit_bytes=1, parents=(HostId("near"),)),
        Leases(revoked=(LeaseNumber(1),)),
    ],
)
def test_what_no_second_host_is_told_is_not_kept(for_one: SchedulerMessage) -> None:
    memory = EntryMemory()
    entry = memory.entry(for_one)
    assert entry == scheduler_entry(for_one)
    assert memory.entry(for_one) is not entry


def test_entries_are_forgotten_before_they_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_memory, "ENTRY_COUNT_MAX", 3)
    memory = EntryMemory()
    for number in range(50):
        # Each is a new object; the one before may be gone and its identity used again.
        message = StatWanted(source_id=SourceId(f"{number:064x}"))
        assert memory.entry(message) == scheduler_entry(message)
