"""What a large swarm is told of itself: its plan, its directory and its map, to protobuf and,
strictly checked, back. A map names every host of a swarm to every host of it, so an entry costs few
bytes and little time. Decides nothing.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from shoal.runtime import control_fields as fields
from shoal.v1 import control_pb2 as pb
from shoal.wire.control import Assigned, Directory, HostRuns, SwarmMap
from shoal.wire.errors import ProtocolError
from shoal.wire.ids import HostId
from shoal.wire.limits import (
    COLLECTION_TASKS_MAX,
    DIRECTORY_HOSTS_MAX,
    MAP_CHANGES_MAX,
    STRIPES_MAX,
    UNIT_BYTES_MAX,
    UNIT_BYTES_MIN,
)

ROOT: Final = HostId("")
"""Stands where a host has no parent: it is the root of the stripe."""


def encode(message: Assigned | Directory | SwarmMap) -> pb.SchedulerMessage:
    """One message as protobuf."""
    match message:
        case Assigned():
            return pb.SchedulerMessage(assigned=_assigned(message))
        case Directory():
            return pb.SchedulerMessage(directory=_directory(message))
        case SwarmMap():
            return pb.SchedulerMessage(swarm_map=_map(message))


def _unit_bytes(value: int) -> int:
    """How long a unit is: a power of two within bounds."""
    if not UNIT_BYTES_MIN <= value <= UNIT_BYTES_MAX or value & (value - 1):
        raise ProtocolError(f"units of {value} bytes")
    return value


def _host_number(value: int) -> int:
    """A host's number in the directory."""
    if value >= DIRECTORY_HOSTS_MAX:
        raise ProtocolError(f"host number {value}: swarms have at most {DIRECTORY_HOSTS_MAX}")
    return value


def _task_number(value: int) -> int:
    """A task's number in its collection."""
    if value >= COLLECTION_TASKS_MAX:
        raise ProtocolError(f"task number {value}: collections have at most {COLLECTION_TASKS_MAX}")
    return value


# ---------------------------------------------------------------- the plan


def _assigned(message: Assigned) -> pb.Assigned:
    return pb.Assigned(
        collection_id=message.collection_id,
        unit_bytes=message.unit_bytes,
        parents=message.parents,
    )


def read_assigned(message: pb.Assigned) -> Assigned:
    """Which parent feeds each stripe, checked."""
    fields.count(message.parents, STRIPES_MAX, "stripes")
    return Assigned(
        collection_id=fields.collection_id(message.collection_id),
        unit_bytes=_unit_bytes(message.unit_bytes),
        parents=tuple(fields.host_id(parent) if parent else ROOT for parent in message.parents),
    )


# ---------------------------------------------------------------- the directory


def _directory(message: Directory) -> pb.Directory:
    return pb.Directory(
        collection_id=message.collection_id,
        first=message.first,
        hosts=[fields.encode_parent(host) for host in message.hosts],
    )


def read_directory(message: pb.Directory) -> Directory:
    """Where hosts are, by number, checked."""
    if message.first + len(message.hosts) > DIRECTORY_HOSTS_MAX:
        raise ProtocolError(f"{len(message.hosts)} hosts from number {message.first} on")
    return Directory(
        collection_id=fields.collection_id(message.collection_id),
        first=message.first,
        hosts=tuple(fields.parent(host) for host in message.hosts),
    )


# ---------------------------------------------------------------- the map


def _map(message: SwarmMap) -> pb.SwarmMap:
    # `memo` stays here.
    return pb.SwarmMap(
        collection_id=message.collection_id,
        unit_bytes=message.unit_bytes,
        full=message.full,
        gone=message.gone,
        changes=[
            pb.HostRuns(host=change.host, task=change.task, units=fields.stretches_of(change.units))
            for change in message.changes
        ],
        covered=_task_units(message.covered),
        spread=_task_units(message.spread),
    )


def _task_units(values: Iterable[tuple[int, int]]) -> list[pb.TaskUnits]:
    return [pb.TaskUnits(task=task, units=fields.stretches_of(units)) for task, units in values]


def halves(message: SwarmMap) -> Iterator[SwarmMap]:
    """Two maps that say the same one after the other. The second one has what takes the place of
    earlier news: nobody looks for holders of what is covered before they are told."""
    middle = len(message.changes) // 2
    yield replace(message, changes=message.changes[:middle], covered=(), spread=(), memo=[])
    yield replace(message, full=False, gone=(), changes=message.changes[middle:], memo=[])


def read_map(message: pb.SwarmMap) -> SwarmMap:
    """Who holds what, checked."""
    for entries in (message.gone, message.changes, message.covered, message.spread):
        fields.count(entries, MAP_CHANGES_MAX, "entries of a map")
    return SwarmMap(
        collection_id=fields.collection_id(message.collection_id),
        unit_bytes=_unit_bytes(message.unit_bytes),
        full=message.full,
        gone=tuple(_host_number(number) for number in message.gone),
        changes=tuple(
            HostRuns(
                _host_number(change.host),
                _task_number(change.task),
                fields.stretches(change.units),
            )
            for change in message.changes
        ),
        covered=_read_task_units(message.covered),
        spread=_read_task_units(message.spread),
    )


def _read_task_units(values: Sequence[pb.TaskUnits]) -> tuple[tuple[int, int], ...]:
    return tuple((_task_number(value.task), fields.stretches(value.units)) for value in values)
