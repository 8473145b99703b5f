"""Messages from a host to its scheduler: values to protobuf and, strictly checked, back."""

from typing import Final

from shoal.runtime import control_fields as fields
from shoal.v1 import control_pb2 as pb
from shoal.wire import bitfield
from shoal.wire.control import (
    Blame,
    Checked,
    Demand,
    DigestList,
    Goodput,
    HeldLease,
    Hello,
    HoldersWanted,
    Holding,
    HostInfo,
    HostMessage,
    Join,
    LeaseEnd,
    Leave,
    Member,
    Progress,
    Report,
    SizeFound,
    StatAnswer,
    Statement,
    Withdrawn,
)
from shoal.wire.errors import ProtocolError, Reason, UsageError
from shoal.wire.geometry import check_piece_length
from shoal.wire.limits import (
    COLLECTION_TASKS_MAX,
    HOLDER_TASKS_MAX,
    PIECES_PER_TASK_MAX,
    STATEMENTS_PER_MESSAGE_MAX,
)

HOLDINGS_MAX: Final = 100_000
"""Tasks in one inventory: the size of a message bounds it earlier."""

REPORT_ENTRIES_MAX: Final = 10_000
"""Of each kind in one report; a host has fewer tasks and parents that change at once."""

HELD_LEASES_MAX: Final = 10_000

_DEMANDS: Final = {demand.value: demand for demand in Demand}


def encode_host_message(message: HostMessage) -> pb.HostMessage:
    """One message as protobuf."""
    match message:
        case Hello():
            return pb.HostMessage(hello=_hello(message))
        case Join():
            return pb.HostMessage(join=_join(message))
        case Leave():
            return pb.HostMessage(leave=pb.Leave(collection_id=message.collection_id))
        case StatAnswer():
            return pb.HostMessage(stat_answer=_stat_answer(message))
        case Report():
            return pb.HostMessage(report=_report(message))
        case SizeFound(task_id=task_id, lease_number=number, size_bytes=size):
            found = pb.SizeFound(task_id=task_id, lease_number=number, size_bytes=size)
            return pb.HostMessage(size_found=found)
        case Checked(task_id=task_id, epoch=epoch, passed=passed, digest=digest):
            checked = pb.Checked(task_id=task_id, epoch=epoch, passed=passed, digest=digest)
            return pb.HostMessage(checked=checked)
        case Withdrawn(task_id=task_id, generation=generation):
            return pb.HostMessage(withdrawn=pb.Withdrawn(task_id=task_id, generation=generation))
        case DigestList():
            digest_list = pb.DigestList(
                task_id=message.task_id,
                epoch=message.epoch,
                first_piece=message.first_piece,
                digests=message.digests,
            )
            return pb.HostMessage(digest_list=digest_list)
        case HoldersWanted(number=number, task_ids=task_ids):
            wanted = pb.HoldersWanted(number=number, task_ids=task_ids)
            return pb.HostMessage(holders_wanted=wanted)


def decode_host_message(message: pb.HostMessage) -> HostMessage | None:
    """One message, checked. None for a kind that this version does not know. Raises
    ProtocolError."""
    match message.WhichOneof("kind"):
        case None:
            return None
        case "hello":
            return _read_hello(message.hello)
        case "join":
            return _read_join(message.join)
        case "leave":
            return Leave(collection_id=fields.collection_id(message.leave.collection_id))
        case "stat_answer":
            return _read_stat_answer(message.stat_answer)
        case "report":
            return _read_report(message.report)
        case "size_found":
            return SizeFound(
                task_id=fields.task_id(message.size_found.task_id),
                lease_number=fields.lease_number(message.size_found.lease_number),
                size_bytes=fields.size_bytes(message.size_found.size_bytes),
            )
        case "checked":
            return Checked(
                task_id=fields.task_id(message.checked.task_id),
                epoch=fields.epoch(message.checked.epoch),
                passed=message.checked.passed,
                digest=fields.content_digest(message.checked.digest),
            )
        case "withdrawn":
            return Withdrawn(
                task_id=fields.task_id(message.withdrawn.task_id),
                generation=message.withdrawn.generation,
            )
        case "digest_list":
            return _read_digest_list(message.digest_list)
        case "holders_wanted":
            return _read_holders_wanted(message.holders_wanted)


# ---------------------------------------------------------------- hello


def _hello(message: Hello) -> pb.Hello:
    host = message.host
    return pb.Hello(
        host=pb.HostInfo(
            host_id=host.host_id,
            addresses=fields.encode_addresses(host.addresses),
            zone=host.zone,
            upload_rate_bytes_s=host.upload_rate_bytes_s,
            download_rate_bytes_s=host.download_rate_bytes_s,
            free_disk_bytes=host.free_disk_bytes,
            software_version=host.software_version,
        ),
        generation=message.generation,
        holdings=[_holding(holding) for holding in message.holdings],
        version_min=message.version_min,
        version_max=message.version_max,
        leases=[
            pb.HeldLease(
                number=lease.number,
                task_id=lease.task_id,
                pieces=bitfield.to_bytes(lease.pieces),
            )
            for lease in message.leases
        ],
    )


def _holding(holding: Holding) -> pb.Holding:
    # Sealed says that all pieces are held: an inventory of whole tasks needs no bitmaps.
    return pb.Holding(
        descriptor=fields.encode_descriptor(holding.descriptor),
        held=b"" if holding.sealed else bitfield.to_bytes(holding.held),
        sealed=holding.sealed,
    )


def _read_hello(message: pb.Hello) -> Hello:
    fields.count(message.holdings, HOLDINGS_MAX, "holdings")
    fields.count(message.leases, HELD_LEASES_MAX, "leases")
    if not 1 <= message.version_min <= message.version_max:
        raise ProtocolError(f"versions {message.version_min} to {message.version_max}")
    host = message.host
    return Hello(
        host=HostInfo(
            host_id=fields.host_id(host.host_id),
            addresses=fields.addresses(host.addresses),
            zone=fields.name(host.zone, "zone"),
            upload_rate_bytes_s=host.upload_rate_bytes_s,
            download_rate_bytes_s=host.download_rate_bytes_s,
            free_disk_bytes=host.free_disk_bytes,
            software_version=fields.name(host.software_version, "software version"),
        ),
        generation=message.generation,
        holdings=tuple(_read_holding(holding) for holding in message.holdings),
        leases=tuple(
            HeldLease(
                number=fields.lease_number(lease.number),
                task_id=fields.task_id(lease.task_id),
                pieces=fields.mask(lease.pieces),
            )
            for lease in message.leases
        ),
        version_min=message.version_min,
        version_max=message.version_max,
    )


def _read_holding(holding: pb.Holding) -> Holding:
    descriptor = fields.descriptor(holding.descriptor)
    geometry = descriptor.geometry
    if holding.sealed:
        if geometry.size_bytes is None or holding.held:
            raise ProtocolError("a sealed holding has a size and needs no bitmap")
        return Holding(descriptor=descriptor, held=geometry.all_pieces, sealed=True)
    known = geometry.size_bytes is not None
    held = fields.mask(holding.held, geometry.piece_count if known else PIECES_PER_TASK_MAX)
    return Holding(descriptor=descriptor, held=held, sealed=False)


# ---------------------------------------------------------------- join


def _join(message: Join) -> pb.Join:
    return pb.Join(
        collection_id=message.collection_id,
        members=[
            pb.Member(
                source_id=member.source_id,
                task_id=member.task_id,
                digest=member.digest,
                display_url=member.display_url,
                piece_length_bytes=member.piece_length_bytes,
                anonymous=member.anonymous,
                origin_allowed=member.origin_allowed,
            )
            for member in message.members
        ],
        demand=message.demand.value,
        priority=message.priority,
    )


def _read_join(message: pb.Join) -> Join:
    fields.count(message.members, COLLECTION_TASKS_MAX, "tasks in a collection")
    if not message.members:
        raise ProtocolError("a collection without tasks")
    if message.demand not in _DEMANDS:
        raise ProtocolError("unknown demand")
    return Join(
        collection_id=fields.collection_id(message.collection_id),
        members=tuple(_read_member(member) for member in message.members),
        demand=_DEMANDS[message.demand],
        priority=message.priority,
    )


def _read_member(member: pb.Member) -> Member:
    try:
        length = (
            check_piece_length(member.piece_length_bytes)
            if member.HasField("piece_length_bytes")
            else None
        )
    except UsageError as error:
        raise ProtocolError(str(error)) from None
    return Member(
        source_id=fields.source_id(member.source_id),
        task_id=fields.task_id(member.task_id) if member.HasField("task_id") else None,
        digest=fields.content_digest(member.digest) if member.HasField("digest") else None,
        display_url=fields.text(member.display_url),
        piece_length_bytes=length,
        anonymous=member.anonymous,
        origin_allowed=member.origin_allowed,
    )


# ---------------------------------------------------------------- answers and reports


def _stat_answer(message: StatAnswer) -> pb.StatAnswer:
    return pb.StatAnswer(
        source_id=message.source_id,
        outcome=_outcome(message.outcome),
        size_bytes=message.size_bytes,
        validator=message.validator,
        ranges=message.ranges,
        anonymous=message.anonymous,
        retry_after_ms=message.retry_after_ms,
        detail=message.detail,
    )


def _read_stat_answer(message: pb.StatAnswer) -> StatAnswer:
    has_size, has_validator = message.HasField("size_bytes"), message.HasField("validator")
    return StatAnswer(
        source_id=fields.source_id(message.source_id),
        outcome=fields.outcome(message.outcome),
        size_bytes=fields.size_bytes(message.size_bytes) if has_size else None,
        validator=fields.validator(message.validator) if has_validator else None,
        ranges=message.ranges,
        anonymous=message.anonymous,
        retry_after_ms=fields.milliseconds(message.retry_after_ms),
        detail=fields.text(message.detail),
    )


def _outcome(outcome: Reason | None) -> str:
    return "" if outcome is None else outcome.value


def _report(message: Report) -> pb.Report:
    return pb.Report(
        statements=[
            pb.Statement(
                task_id=statement.task_id,
                epoch=statement.epoch,
                piece=statement.piece,
                digest=statement.digest,
                lease_number=statement.lease_number,
            )
            for statement in message.statements
        ],
        progress=[
            pb.Progress(
                task_id=progress.task_id,
                epoch=progress.epoch,
                new_stretches=fields.stretches_of(progress.new),
                lost_stretches=fields.stretches_of(progress.lost),
            )
            for progress in message.progress
        ],
        lease_ends=[
            pb.LeaseEnd(
                number=end.number,
                task_id=end.task_id,
                outcome=_outcome(end.outcome),
                retry_after_ms=end.retry_after_ms,
                detail=end.detail,
            )
            for end in message.lease_ends
        ],
        goodput=[
            pb.Goodput(
                host_id=goodput.host_id,
                received_bytes=goodput.received_bytes,
                rate_bytes_s=goodput.rate_bytes_s,
            )
            for goodput in message.goodput
        ],
        blames=[
            pb.Blame(
                host_id=blame.host_id,
                task_id=blame.task_id,
                piece=blame.piece,
                reason=blame.reason.value,
            )
            for blame in message.blames
        ],
        free_upload_slots=message.free_upload_slots,
    )


def _read_report(message: pb.Report) -> Report:
    # Of all messages this one comes most often by far, and mostly with progress and goodput alone.
    statements, lease_ends, blames = message.statements, message.lease_ends, message.blames
    fields.count(statements, STATEMENTS_PER_MESSAGE_MAX, "statements")
    for entries in (message.progress, lease_ends, message.goodput, blames):
        fields.count(entries, REPORT_ENTRIES_MAX, "entries of a report")
    return Report(
        statements=tuple([_read_statement(each) for each in statements]) if statements else (),
        progress=tuple([_read_progress(each) for each in message.progress]),
        lease_ends=tuple([_read_lease_end(each) for each in lease_ends]) if lease_ends else (),
        goodput=tuple([_read_goodput(each) for each in message.goodput]),
        blames=tuple([_read_blame(each) for each in blames]) if blames else (),
        free_upload_slots=message.free_upload_slots,
    )


def _read_statement(statement: pb.Statement) -> Statement:
    return Statement(
        fields.task_id(statement.task_id),
        fields.epoch(statement.epoch),
        fields.piece(statement.piece),
        fields.piece_digest(statement.digest),
        fields.lease_number(statement.lease_number),
    )


def _read_progress(progress: pb.Progress) -> Progress:
    lost = progress.lost_stretches
    return Progress(
        task_id=fields.task_id(progress.task_id),
        epoch=fields.epoch(progress.epoch),
        new=fields.stretches(progress.new_stretches),
        lost=fields.stretches(lost) if lost else 0,
    )


def _read_lease_end(end: pb.LeaseEnd) -> LeaseEnd:
    return LeaseEnd(
        number=fields.lease_number(end.number),
        task_id=fields.task_id(end.task_id),
        outcome=fields.outcome(end.outcome),
        retry_after_ms=fields.milliseconds(end.retry_after_ms),
        detail=fields.text(end.detail),
    )


def _read_goodput(goodput: pb.Goodput) -> Goodput:
    return Goodput(
        host_id=fields.host_id(goodput.host_id),
        received_bytes=goodput.received_bytes,
        rate_bytes_s=goodput.rate_bytes_s,
    )


def _read_blame(blame: pb.Blame) -> Blame:
    return Blame(
        host_id=fields.host_id(blame.host_id),
        task_id=fields.task_id(blame.task_id),
        piece=fields.piece(blame.piece),
        reason=fields.reason(blame.reason, Reason.PEER_PROTOCOL),
    )


def _read_digest_list(message: pb.DigestList) -> DigestList:
    fields.count(message.digests, STATEMENTS_PER_MESSAGE_MAX, "digests")
    if message.first_piece + len(message.digests) > PIECES_PER_TASK_MAX:
        raise ProtocolError("digests of pieces behind the end")
    return DigestList(
        task_id=fields.task_id(message.task_id),
        epoch=fields.epoch(message.epoch),
        first_piece=message.first_piece,
        digests=tuple(digest and fields.piece_digest(digest) for digest in message.digests),
    )


def _read_holders_wanted(message: pb.HoldersWanted) -> HoldersWanted:
    fields.count(message.task_ids, HOLDER_TASKS_MAX, "tasks in a question")
    if not message.task_ids:
        raise ProtocolError("a question about no task")
    return HoldersWanted(
        number=message.number,
        task_ids=tuple(fields.task_id(task_id) for task_id in message.task_ids),
    )
