"""Messages from a scheduler to a host: values to protobuf and, strictly checked, back."""

from collections.abc import Callable
from typing import Any, Final

from shoal.runtime import control_fields as fields
from shoal.runtime import control_swarm as swarm
from shoal.v1 import control_pb2 as pb
from shoal.wire.control import (
    Assigned,
    Described,
    Digests,
    DigestsWanted,
    Directory,
    EpochVoided,
    HolderCounts,
    Lease,
    Leases,
    Parents,
    Redirected,
    ReportInterval,
    SchedulerMessage,
    SourceFailed,
    StatWanted,
    SwarmMap,
    SwarmToken,
    TaskHolders,
    Welcome,
)
from shoal.wire.errors import ProtocolError, Reason
from shoal.wire.limits import (
    HOLDER_TASKS_MAX,
    PIECES_PER_TASK_MAX,
    STATEMENTS_PER_MESSAGE_MAX,
)

ENTRIES_MAX: Final = 100_000
"""Hosts or leases in one message: the size of a message bounds them earlier."""

TOKEN_BYTES_MAX: Final = 256
"""A swarm token is a key for HMAC-SHA256; more bytes add nothing."""


def encode_scheduler_message(message: SchedulerMessage) -> pb.SchedulerMessage:
    """One message as protobuf."""
    match message:
        case Welcome() | ReportInterval():
            return _session(message)
        case Described():
            return pb.SchedulerMessage(described=_described(message))
        case StatWanted() | DigestsWanted():
            return _wanted(message)
        case Parents():
            return pb.SchedulerMessage(parents=_parents(message))
        case Leases():
            return pb.SchedulerMessage(leases=_leases(message))
        case Digests():
            return pb.SchedulerMessage(digests=_digests(message))
        case Assigned() | Directory() | SwarmMap():
            return swarm.encode(message)
        case SwarmToken(task_id=task_id, token=token, ttl_ms=ttl_ms):
            swarm_token = pb.SwarmToken(task_id=task_id, token=token, ttl_ms=ttl_ms)
            return pb.SchedulerMessage(swarm_token=swarm_token)
        case SourceFailed():
            return pb.SchedulerMessage(source_failed=_source_failed(message))
        case EpochVoided(task_id=task_id, epoch=epoch, liars=liars):
            voided = pb.EpochVoided(task_id=task_id, epoch=epoch, liars=liars)
            return pb.SchedulerMessage(epoch_voided=voided)
        case HolderCounts():
            return pb.SchedulerMessage(holder_counts=_holder_counts(message))
        case Redirected(reason=reason, detail=detail, retry_after_ms=retry):
            redirected = pb.Redirected(reason=reason.value, detail=detail, retry_after_ms=retry)
            return pb.SchedulerMessage(redirected=redirected)


def decode_scheduler_message(message: pb.SchedulerMessage) -> SchedulerMessage | None:
    """One message, checked. None for a kind that this version does not know. Raises
    ProtocolError."""
    kind = message.WhichOneof("kind")
    return None if kind is None else _READERS[kind](getattr(message, kind))


# ---------------------------------------------------------------- values to protobuf


def _session(message: Welcome | ReportInterval) -> pb.SchedulerMessage:
    interval = message.report_interval_ms
    if isinstance(message, ReportInterval):
        return pb.SchedulerMessage(report_interval=pb.ReportInterval(report_interval_ms=interval))
    welcome = pb.Welcome(
        scheduler_id=message.scheduler_id, version=message.version, report_interval_ms=interval
    )
    return pb.SchedulerMessage(welcome=welcome)


def _wanted(message: StatWanted | DigestsWanted) -> pb.SchedulerMessage:
    if isinstance(message, StatWanted):
        return pb.SchedulerMessage(stat_wanted=pb.StatWanted(source_id=message.source_id))
    return pb.SchedulerMessage(digests_wanted=pb.DigestsWanted(task_id=message.task_id))


def _described(message: Described) -> pb.Described:
    return pb.Described(
        collection_id=message.collection_id,
        source_id=message.source_id,
        descriptor=fields.encode_descriptor(message.descriptor),
    )


def _parents(message: Parents) -> pb.Parents:
    return pb.Parents(
        collection_id=message.collection_id,
        added=[fields.encode_parent(parent) for parent in message.added],
        removed=message.removed,
    )


def _leases(message: Leases) -> pb.Leases:
    return pb.Leases(
        granted=[
            pb.Lease(
                number=lease.number,
                task_id=lease.task_id,
                epoch=lease.epoch,
                first_piece=lease.first_piece,
                piece_count=lease.piece_count,
                ttl_ms=lease.ttl_ms,
            )
            for lease in message.granted
        ],
        revoked=message.revoked,
    )


def _digests(message: Digests) -> pb.Digests:
    return pb.Digests(
        task_id=message.task_id,
        epoch=message.epoch,
        entries=[
            pb.DigestEntry(piece=piece, digest=digest, lease_number=number)
            for piece, digest, number in message.entries
        ],
    )


def _holder_counts(message: HolderCounts) -> pb.HolderCounts:
    return pb.HolderCounts(
        number=message.number,
        hosts=message.hosts,
        whole_hosts=message.whole_hosts,
        tasks=[
            pb.TaskHolders(
                task_id=task.task_id,
                hosts=task.hosts,
                whole_hosts=task.whole_hosts,
                covered_bytes=task.covered_bytes,
                size_bytes=task.size_bytes,
            )
            for task in message.tasks
        ],
    )


def _source_failed(message: SourceFailed) -> pb.SourceFailed:
    return pb.SourceFailed(
        collection_id=message.collection_id,
        source_id=message.source_id,
        reason=message.reason.value,
        detail=message.detail,
    )


# ---------------------------------------------------------------- protobuf to values


def _read_welcome(message: pb.Welcome) -> Welcome:
    if message.version < 1 or message.report_interval_ms < 1:
        raise ProtocolError("a welcome without version or report interval")
    return Welcome(
        scheduler_id=fields.name(message.scheduler_id, "scheduler id"),
        version=message.version,
        report_interval_ms=fields.milliseconds(message.report_interval_ms),
    )


def _read_report_interval(message: pb.ReportInterval) -> ReportInterval:
    if message.report_interval_ms < 1:
        raise ProtocolError("no interval between reports")
    return ReportInterval(report_interval_ms=fields.milliseconds(message.report_interval_ms))


def _read_described(message: pb.Described) -> Described:
    return Described(
        collection_id=fields.collection_id(message.collection_id),
        source_id=fields.source_id(message.source_id),
        descriptor=fields.descriptor(message.descriptor),
    )


def _read_parents(message: pb.Parents) -> Parents:
    fields.count(message.added, ENTRIES_MAX, "parents")
    fields.count(message.removed, ENTRIES_MAX, "parents")
    return Parents(
        collection_id=fields.collection_id(message.collection_id),
        added=tuple(fields.parent(parent) for parent in message.added),
        removed=tuple(fields.host_id(host_id) for host_id in message.removed),
    )


def _read_leases(message: pb.Leases) -> Leases:
    fields.count(message.granted, ENTRIES_MAX, "leases")
    fields.count(message.revoked, ENTRIES_MAX, "leases")
    return Leases(
        granted=tuple(_read_lease(lease) for lease in message.granted),
        revoked=tuple(fields.lease_number(number) for number in message.revoked),
    )


def _read_lease(lease: pb.Lease) -> Lease:
    count = lease.piece_count if lease.HasField("piece_count") else None
    if count == 0 or lease.first_piece + (count or 0) > PIECES_PER_TASK_MAX:
        raise ProtocolError(f"a lease of {count} pieces from piece {lease.first_piece}")
    return Lease(
        number=fields.lease_number(lease.number),
        task_id=fields.task_id(lease.task_id),
        epoch=fields.epoch(lease.epoch),
        first_piece=lease.first_piece,
        piece_count=count,
        ttl_ms=fields.milliseconds(lease.ttl_ms),
    )


def _read_digests(message: pb.Digests) -> Digests:
    fields.count(message.entries, STATEMENTS_PER_MESSAGE_MAX, "digests")
    return Digests(
        task_id=fields.task_id(message.task_id),
        epoch=fields.epoch(message.epoch),
        entries=tuple(
            (
                fields.piece(entry.piece),
                fields.piece_digest(entry.digest),
                fields.lease_number(entry.lease_number),
            )
            for entry in message.entries
        ),
    )


def _read_swarm_token(message: pb.SwarmToken) -> SwarmToken:
    if not 1 <= len(message.token) <= TOKEN_BYTES_MAX:
        raise ProtocolError(f"a swarm token of {len(message.token)} bytes")
    return SwarmToken(
        task_id=fields.task_id(message.task_id),
        token=message.token,
        ttl_ms=fields.milliseconds(message.ttl_ms),
    )


def _read_epoch_voided(message: pb.EpochVoided) -> EpochVoided:
    fields.count(message.liars, ENTRIES_MAX, "hosts")
    return EpochVoided(
        task_id=fields.task_id(message.task_id),
        epoch=fields.epoch(message.epoch),
        liars=tuple(fields.host_id(host_id) for host_id in message.liars),
    )


def _read_holder_counts(message: pb.HolderCounts) -> HolderCounts:
    fields.count(message.tasks, HOLDER_TASKS_MAX, "tasks in an answer")
    if message.whole_hosts > message.hosts:
        raise ProtocolError("more hosts have all than have something")
    return HolderCounts(
        number=message.number,
        hosts=message.hosts,
        whole_hosts=message.whole_hosts,
        tasks=tuple(_read_task_holders(task) for task in message.tasks),
    )


def _read_task_holders(task: pb.TaskHolders) -> TaskHolders:
    size_bytes = fields.size_bytes(task.size_bytes) if task.HasField("size_bytes") else None
    if task.whole_hosts > task.hosts:
        raise ProtocolError("more hosts have all of a task than have something")
    if size_bytes is not None and task.covered_bytes > size_bytes:
        raise ProtocolError(f"{task.covered_bytes} of {size_bytes} bytes are covered")
    return TaskHolders(
        task_id=fields.task_id(task.task_id),
        hosts=task.hosts,
        whole_hosts=task.whole_hosts,
        covered_bytes=fields.size_bytes(task.covered_bytes),
        size_bytes=size_bytes,
    )


def _read_source_failed(message: pb.SourceFailed) -> SourceFailed:
    return SourceFailed(
        collection_id=fields.collection_id(message.collection_id),
        source_id=fields.source_id(message.source_id),
        reason=fields.reason(message.reason, Reason.ORIGIN_FAILED),
        detail=fields.text(message.detail),
    )


def _read_redirected(message: pb.Redirected) -> Redirected:
    return Redirected(
        reason=fields.reason(message.reason, Reason.OVERLOADED),
        detail=fields.text(message.detail),
        retry_after_ms=fields.milliseconds(message.retry_after_ms),
    )


_READERS: Final[dict[str, Callable[[Any], SchedulerMessage]]] = {
    "welcome": _read_welcome,
    "report_interval": _read_report_interval,
    "described": _read_described,
    "stat_wanted": lambda message: StatWanted(source_id=fields.source_id(message.source_id)),
    "parents": _read_parents,
    "leases": _read_leases,
    "digests": _read_digests,
    "digests_wanted": lambda message: DigestsWanted(task_id=fields.task_id(message.task_id)),
    "assigned": swarm.read_assigned,
    "directory": swarm.read_directory,
    "swarm_map": swarm.read_map,
    "swarm_token": _read_swarm_token,
    "source_failed": _read_source_failed,
    "epoch_voided": _read_epoch_voided,
    "holder_counts": _read_holder_counts,
    "redirected": _read_redirected,
}
