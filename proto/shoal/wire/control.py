"""Control messages between a host and its scheduler, as plain values.

Both cores speak these; `shoal.runtime.control_codec` maps them to and from protobuf at the edge,
and the simulator hands them over as they are. Decides nothing. Masks are integers
(`shoal.wire.bitfield`).
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from shoal.wire.errors import Reason
from shoal.wire.geometry import Geometry
from shoal.wire.ids import CollectionId, HostId, LeaseNumber, SourceId, TaskId
from shoal.wire.records import record

CONTROL_VERSION_MIN: Final = 1
CONTROL_VERSION_MAX: Final = 1


class Demand(StrEnum):
    """How urgently a host wants a collection."""

    WHOLE = "whole"
    """All of it, as soon as possible, in any order."""
    STREAMING = "streaming"
    """All of it, and somebody reads it in order meanwhile."""
    BACKGROUND = "background"
    """All of it, when nothing else needs the bandwidth."""


@record(frozen=True, slots=True)
class Address:
    """An IP address (IPv4 or IPv6, not a name) and a TCP port of a host's piece port."""

    ip: str
    port: int


@record(frozen=True, slots=True, kw_only=True)
class HostInfo:
    """What a host says of itself. Rates in bytes per second, 0 for "not limited"."""

    host_id: HostId
    addresses: tuple[Address, ...]
    zone: str = ""
    upload_rate_bytes_s: int = 0
    download_rate_bytes_s: int = 0
    free_disk_bytes: int = 0
    software_version: str = ""


@record(frozen=True, slots=True, kw_only=True)
class TaskDescriptor:
    """All that a host must know of a task to fetch it."""

    task_id: TaskId
    source_id: SourceId
    geometry: Geometry
    digest: str | None
    """The content's own digest as `algorithm:hex`, where it is known."""
    validator: str | None
    """ETag, else Last-Modified, that every origin answer must repeat."""
    ranges: bool
    """Whether the origin serves byte ranges; if not there is one sequential lease."""
    epoch: int = 1
    """Rises when the piece digests of the task were found wrong as a whole."""
    piece_digest: str = "xxh3-128"


@record(frozen=True, slots=True, kw_only=True)
class Holding:
    """One task in a host's inventory."""

    descriptor: TaskDescriptor
    held: int
    sealed: bool


@record(frozen=True, slots=True, kw_only=True)
class Member:
    """One task of a collection as a joining host names it. Never holds a secret."""

    source_id: SourceId
    task_id: TaskId | None
    """Known at once for a content named by its digest."""
    digest: str | None
    display_url: str
    """Without user, query and fragment: for people."""
    piece_length_bytes: int | None
    anonymous: bool
    """The host would ask the origin without any credential."""
    origin_allowed: bool = True
    """False: this host must not read from the origin."""


# ---------------------------------------------------------------- host -> scheduler


@record(frozen=True, slots=True, kw_only=True)
class HeldLease:
    """A lease that the host still works on, told to a scheduler that may not know of it."""

    number: LeaseNumber
    task_id: TaskId
    pieces: int
    """The mask of pieces not yet read."""


@record(frozen=True, slots=True, kw_only=True)
class Hello:
    """First message of every stream: who I am and what I hold. A larger generation supersedes."""

    host: HostInfo
    generation: int
    holdings: tuple[Holding, ...]
    leases: tuple[HeldLease, ...] = ()
    version_min: int = CONTROL_VERSION_MIN
    version_max: int = CONTROL_VERSION_MAX


@record(frozen=True, slots=True, kw_only=True)
class Join:
    """I want this collection."""

    collection_id: CollectionId
    members: tuple[Member, ...]
    demand: Demand = Demand.WHOLE
    priority: int = 0
    """Larger is more urgent."""


@record(frozen=True, slots=True, kw_only=True)
class Leave:
    """I want it no longer; what I hold of it I go on serving."""

    collection_id: CollectionId


@record(frozen=True, slots=True, kw_only=True)
class StatAnswer:
    """What the origin said to this host. `outcome` None is success."""

    source_id: SourceId
    outcome: Reason | None
    size_bytes: int | None = None
    validator: str | None = None
    ranges: bool = False
    anonymous: bool = True
    retry_after_ms: int = 0
    detail: str = ""


@record(frozen=True, slots=True)
class Statement:
    """A leaseholder's word on the digest of a piece that it read from the origin."""

    task_id: TaskId
    epoch: int
    piece: int
    digest: bytes
    lease_number: LeaseNumber


@record(frozen=True, slots=True, kw_only=True)
class Progress:
    """Pieces stored and verified since the last report, and pieces that are held no longer: two
    masks."""

    task_id: TaskId
    epoch: int
    new: int
    lost: int = 0


@record(frozen=True, slots=True, kw_only=True)
class LeaseEnd:
    """A lease is used up (outcome None) or given back with a reason."""

    number: LeaseNumber
    task_id: TaskId
    outcome: Reason | None
    retry_after_ms: int = 0
    detail: str = ""


@record(frozen=True, slots=True, kw_only=True)
class Goodput:
    """Payload bytes received from a parent since the last report, and the measured rate."""

    host_id: HostId
    received_bytes: int
    rate_bytes_s: int


@record(frozen=True, slots=True, kw_only=True)
class Blame:
    """A parent did wrong."""

    host_id: HostId
    task_id: TaskId
    piece: int
    reason: Reason


@record(frozen=True, slots=True, kw_only=True)
class Report:
    """The batched report, a few times a second while anything changes."""

    statements: tuple[Statement, ...] = ()
    progress: tuple[Progress, ...] = ()
    lease_ends: tuple[LeaseEnd, ...] = ()
    goodput: tuple[Goodput, ...] = ()
    blames: tuple[Blame, ...] = ()
    free_upload_slots: int = 0


@record(frozen=True, slots=True, kw_only=True)
class SizeFound:
    """A sequential read came to the end of a content of unknown size."""

    task_id: TaskId
    lease_number: LeaseNumber
    size_bytes: int


@record(frozen=True, slots=True, kw_only=True)
class Checked:
    """The whole content's digest was computed here. `passed` False voids the epoch."""

    task_id: TaskId
    epoch: int
    passed: bool
    digest: str


@record(frozen=True, slots=True, kw_only=True)
class Withdrawn:
    """The task is about to be deleted here."""

    task_id: TaskId
    generation: int


@record(frozen=True, slots=True, kw_only=True)
class DigestList:
    """Answer to `DigestsWanted`: digests of consecutive pieces, b"" where not held."""

    task_id: TaskId
    epoch: int
    first_piece: int
    digests: tuple[bytes, ...]


@record(frozen=True, slots=True, kw_only=True)
class HoldersWanted:
    """How much of these tasks does the swarm hold, and how many hosts (`HolderCounts`)?"""

    number: int
    """The host's own; the answer repeats it."""
    task_ids: tuple[TaskId, ...]


HostMessage = (
    Hello
    | Join
    | Leave
    | StatAnswer
    | Report
    | SizeFound
    | Checked
    | Withdrawn
    | DigestList
    | HoldersWanted
)


# ---------------------------------------------------------------- scheduler -> host


@record(frozen=True, slots=True, kw_only=True)
class Welcome:
    """First message of the scheduler."""

    scheduler_id: str
    version: int
    report_interval_ms: int


@record(frozen=True, slots=True, kw_only=True)
class ReportInterval:
    """The swarm is of another size now than when the host was welcomed: report so often."""

    report_interval_ms: int


@record(frozen=True, slots=True, kw_only=True)
class Described:
    """A source is resolved to a task, or a task changed (size sealed, epoch raised)."""

    collection_id: CollectionId
    source_id: SourceId
    descriptor: TaskDescriptor


@record(frozen=True, slots=True, kw_only=True)
class StatWanted:
    """Ask the origin about this source with your own credential, and tell me (`StatAnswer`)."""

    source_id: SourceId


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """A host of the swarm to connect to."""

    host_id: HostId
    addresses: tuple[Address, ...]
    zone: str = ""

    def __hash__(self) -> int:
        """What is made of a parent is kept by it: its id alone tells nearly all of them apart."""
        return hash(self.host_id)


@record(frozen=True, slots=True, kw_only=True)
class Parents:
    """Hosts that joined (`added`) or left the collection as seen from this host."""

    collection_id: CollectionId
    added: tuple[Parent, ...] = ()
    removed: tuple[HostId, ...] = ()


@record(frozen=True, slots=True, kw_only=True)
class SwarmToken:
    """Opens the piece ports of a task's holders. Told to hosts whose right to the content was
    proven, and to the holders that they will turn to. Older tokens stay good until they expire."""

    task_id: TaskId
    token: bytes
    ttl_ms: int


@record(frozen=True, slots=True, kw_only=True)
class Lease:
    """The exclusive right to read these pieces from the origin. `piece_count` None: from
    `first_piece` to the end, in order."""

    number: LeaseNumber
    task_id: TaskId
    epoch: int
    first_piece: int
    piece_count: int | None
    ttl_ms: int


@record(frozen=True, slots=True, kw_only=True)
class Leases:
    """Leases granted, and leases that are no longer valid."""

    granted: tuple[Lease, ...] = ()
    revoked: tuple[LeaseNumber, ...] = ()


@record(frozen=True, slots=True, kw_only=True)
class Digests:
    """Piece digests as the leaseholders stated them: the list that headers must agree with."""

    task_id: TaskId
    epoch: int
    entries: tuple[tuple[int, bytes, LeaseNumber], ...]


@record(frozen=True, slots=True, kw_only=True)
class DigestsWanted:
    """Tell me the piece digests of a task that you hold (`DigestList`)."""

    task_id: TaskId


@record(frozen=True, slots=True, kw_only=True)
class Assigned:
    """How a collection flows to this host. Its tasks are cut into units of `unit_bytes` (a piece
    where pieces are longer); unit u of the collection's task number t belongs to stripe
    (t + u) % len(parents), and comes from that stripe's parent. "" : this host is the root, which
    reads the stripe from the origin under leases, or gets it from whoever holds it."""

    collection_id: CollectionId
    unit_bytes: int
    parents: tuple[HostId, ...]


@record(frozen=True, slots=True, kw_only=True)
class Directory:
    """Hosts of a swarm by number, from `first` on: where to find whom the map names."""

    collection_id: CollectionId
    first: int
    hosts: tuple[Parent, ...]


@record(frozen=True, slots=True)
class HostRuns:
    """Units of a task that a host holds whole since it was last told of."""

    host: int
    """Its number in the directory."""
    task: int
    """The task's number in the collection."""
    units: int
    """A mask of units."""


@record(frozen=True, slots=True, kw_only=True)
class SwarmMap:
    """Who holds what of a collection, told in units, as changes since the last map; one message
    for all hosts of the swarm."""

    collection_id: CollectionId
    unit_bytes: int
    full: bool
    """What was told before is void: this is everything."""
    gone: tuple[int, ...] = ()
    """Hosts of which nothing that was told before counts; taken in before the changes."""
    changes: tuple[HostRuns, ...] = ()
    covered: tuple[tuple[int, int], ...] = ()
    """(task, mask of units) that some host holds whole: of tasks where that changed."""
    spread: tuple[tuple[int, int], ...] = ()
    """The same of units that at least half of the swarm holds."""
    memo: list[tuple[object, object]] = field(
        default_factory=list, compare=False, repr=False, hash=False
    )
    """Where receivers in one process share the work of taking the map in; never sent."""


@record(frozen=True, slots=True, kw_only=True)
class SourceFailed:
    """The source cannot be had; every download of it ends with this reason."""

    collection_id: CollectionId
    source_id: SourceId
    reason: Reason
    detail: str


@record(frozen=True, slots=True, kw_only=True)
class EpochVoided:
    """All pieces of the task that were not sealed must be dropped. `liars`: hosts that stated
    wrong digests, as far as known."""

    task_id: TaskId
    epoch: int
    """The new epoch."""
    liars: tuple[HostId, ...] = ()


@record(frozen=True, slots=True, kw_only=True)
class TaskHolders:
    """What the swarm holds of a task: numbers alone, for whoever asks may have no right to it."""

    task_id: TaskId
    hosts: int
    """That hold something of it."""
    whole_hosts: int
    """Of these, those that have it whole and checked."""
    covered_bytes: int
    """That some host holds."""
    size_bytes: int | None
    """None while the scheduler does not know it."""


@record(frozen=True, slots=True, kw_only=True)
class HolderCounts:
    """Answer to `HoldersWanted`."""

    number: int
    hosts: int
    """That hold something of any of the tasks."""
    whole_hosts: int
    """That have all of the tasks whole."""
    tasks: tuple[TaskHolders, ...]
    """In the order of the question."""


@record(frozen=True, slots=True, kw_only=True)
class Redirected:
    """This scheduler will not serve you; why, and when to come back."""

    reason: Reason
    detail: str
    retry_after_ms: int


SchedulerMessage = (
    Welcome
    | ReportInterval
    | Described
    | StatWanted
    | Parents
    | SwarmToken
    | Leases
    | Digests
    | DigestsWanted
    | Assigned
    | Directory
    | SwarmMap
    | SourceFailed
    | EpochVoided
    | HolderCounts
    | Redirected
)
