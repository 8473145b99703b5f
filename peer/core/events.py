"""What can happen to a peer: the inputs of `PeerEngine.handle`.

Every event carries `now_ns`, monotonic nanoseconds. Outcomes of IO are events with a reason, never
exceptions. Masks are integers (`shoal.wire.bitfield`).
"""

from shoal.wire.control import Demand, SchedulerMessage, TaskDescriptor
from shoal.wire.errors import Reason
from shoal.wire.ids import (
    NO_LEASE,
    CollectionId,
    ConnectionId,
    DownloadId,
    HostId,
    LeaseNumber,
    RequestId,
    SourceId,
    TaskId,
)
from shoal.wire.records import record


@record(frozen=True, slots=True, kw_only=True)
class Event:
    """Base of all events."""

    now_ns: int


# ---------------------------------------------------------------- local clients


@record(frozen=True, slots=True)
class Source:
    """One thing wanted, as the core may know it; URL and credentials stay in the shell."""

    source_id: SourceId
    task_id: TaskId | None
    """Known at once for a content named by its digest."""
    digest: str | None
    display_url: str
    piece_length_bytes: int | None
    credential: str = ""
    """A keyed hash of the credential that the client would show to the origin, "" for none. The
    shell finds the credential again by it; nothing else can be learnt from it."""
    origin_trusted: bool = False
    """An operator named its origin: what that says of the content is true. Where a client names
    the URL of a digest, it may be anybody's."""


@record(frozen=True, slots=True, kw_only=True)
class Want(Event):
    """A local client wants a collection. Ends in exactly one `DownloadEnded`."""

    download_id: DownloadId
    collection_id: CollectionId
    sources: tuple[Source, ...]
    demand: Demand = Demand.WHOLE
    priority: int = 0
    origin_allowed: bool = True


@record(frozen=True, slots=True, kw_only=True)
class Unwant(Event):
    """The client is gone or has what it wanted; allowed before and after `DownloadEnded`."""

    download_id: DownloadId


@record(frozen=True, slots=True, kw_only=True)
class Reading(Event):
    """A local reader of a content that arrives waits for a piece that is not among the next to
    come, or did: what it needs next, in place of what it needed before. `piece_count` 0: nothing,
    or it is gone. Not told for readers from the start to the end: they have their share anyway."""

    reader: int
    """A number never used before in this process."""
    task_id: TaskId
    first_piece: int = 0
    piece_count: int = 0


@record(frozen=True, slots=True, kw_only=True)
class Remove(Event):
    """Delete a task from this host. Ends in `RemoveEnded`."""

    request_id: RequestId
    task_id: TaskId


@record(frozen=True, slots=True, kw_only=True)
class CountHolders(Event):
    """A local user wants to know what the swarm holds of these tasks, at least one. Ends in
    `HoldersCounted`."""

    request_id: RequestId
    task_ids: tuple[TaskId, ...]


# ---------------------------------------------------------------- store


@record(frozen=True, slots=True)
class PieceRecord:
    """What is kept of a held piece beside its bytes."""

    digest: bytes
    lease_number: LeaseNumber
    """The lease under which somebody read it from the origin."""
    read_here: bool
    """Whether that somebody was this host."""


@record(frozen=True, slots=True)
class StoredTask:
    """A task as the store holds it, every held piece verified and written."""

    descriptor: TaskDescriptor
    held: int
    sealed: bool
    records: dict[int, PieceRecord]
    digest: str = ""
    """The whole content's digest, `algorithm:hex`, of a sealed task."""


@record(frozen=True, slots=True, kw_only=True)
class StoreLoaded(Event):
    """First event of all: what survived the restart, and this run's generation number."""

    generation: int
    tasks: tuple[StoredTask, ...]


@record(frozen=True, slots=True, kw_only=True)
class TaskOpened(Event):
    """Answer to `OpenTask`: space is reserved, and this much is held already."""

    stored: StoredTask


@record(frozen=True, slots=True, kw_only=True)
class TaskOpenFailed(Event):
    """Answer to `OpenTask`: no."""

    task_id: TaskId
    reason: Reason
    detail: str


@record(frozen=True, slots=True, kw_only=True)
class TaskSealed(Event):
    """Answer to `SealTask`. `reason` tells why it could not be sealed, None that it was."""

    task_id: TaskId
    reason: Reason | None
    detail: str = ""


@record(frozen=True, slots=True, kw_only=True)
class ContentHashed(Event):
    """Answer to the last `HashPrefix` of an epoch: the digest of the whole content."""

    task_id: TaskId
    epoch: int
    digest: str
    """`algorithm:hex`"""


@record(frozen=True, slots=True, kw_only=True)
class StoreFailed(Event):
    """The disk failed under a task, outside of any one request (hashing, reading to serve)."""

    task_id: TaskId
    reason: Reason
    detail: str


@record(frozen=True, slots=True, kw_only=True)
class TaskRemoved(Event):
    """Answer to `RemoveTask`: the bytes are gone."""

    task_id: TaskId


# ---------------------------------------------------------------- scheduler


@record(frozen=True, slots=True, kw_only=True)
class SchedulerUp(Event):
    """The control stream stands; `Hello` must be the first thing sent."""

    session: int


@record(frozen=True, slots=True, kw_only=True)
class SchedulerDown(Event):
    """The control stream broke or could not be made."""

    session: int


@record(frozen=True, slots=True, kw_only=True)
class FromScheduler(Event):
    """Messages of one batch, in order."""

    session: int
    messages: tuple[SchedulerMessage, ...]


# ---------------------------------------------------------------- this host as a child


@record(frozen=True, slots=True, kw_only=True)
class ParentConnected(Event):
    """Answer to `Connect`: hello frames were exchanged."""

    host_id: HostId
    connection_id: ConnectionId
    round_trip_ns: int


@record(frozen=True, slots=True, kw_only=True)
class ParentConnectFailed(Event):
    """Answer to `Connect`: none of the addresses led to that host."""

    host_id: HostId
    reason: Reason
    detail: str


@record(frozen=True, slots=True, kw_only=True)
class ParentClosed(Event):
    """The connection is gone. Its requests have ended with events of their own before."""

    connection_id: ConnectionId
    reason: Reason
    detail: str


@record(frozen=True, slots=True, kw_only=True)
class ParentOpened(Event):
    """The parent lets us see and request the task."""

    connection_id: ConnectionId
    task_id: TaskId
    epoch: int
    held: int


@record(frozen=True, slots=True, kw_only=True)
class ParentRefused(Event):
    """The parent closes the channel of the task to us."""

    connection_id: ConnectionId
    task_id: TaskId
    reason: Reason


@record(frozen=True, slots=True, kw_only=True)
class ParentHave(Event):
    """The parent holds these pieces too now."""

    connection_id: ConnectionId
    task_id: TaskId
    new: int


@record(frozen=True, slots=True, kw_only=True)
class ParentWithdrew(Event):
    """The parent holds these pieces no longer."""

    connection_id: ConnectionId
    task_id: TaskId
    gone: int


@record(frozen=True, slots=True, kw_only=True)
class ParentActive(Event):
    """Payload is arriving from the parent. Told at most twice a second, and only while a piece
    takes longer than that: what tells a slow parent from a stalled one."""

    connection_id: ConnectionId


@record(frozen=True, slots=True, kw_only=True)
class FetchEnded(Event):
    """The one answer to `FetchPiece`. `reason` None: received, verified against the header's (and
    where given the expected) digest, and written."""

    request_id: RequestId
    reason: Reason | None
    digest: bytes = b""
    lease_number: LeaseNumber = NO_LEASE
    epoch: int = 0
    retry_after_ms: int = 0
    detail: str = ""


# ---------------------------------------------------------------- this host as a parent


@record(frozen=True, slots=True, kw_only=True)
class ChildOpened(Event):
    """A child asks for a task. `nonce` is the one that this side sent in its hello."""

    connection_id: ConnectionId
    host_id: HostId
    task_id: TaskId
    nonce: bytes
    proof: bytes


@record(frozen=True, slots=True, kw_only=True)
class ChildClosedTask(Event):
    """The child needs nothing more of the task."""

    connection_id: ConnectionId
    task_id: TaskId


@record(frozen=True, slots=True, kw_only=True)
class ChildRequested(Event):
    """The child asks for pieces: (its own request number, piece) each."""

    connection_id: ConnectionId
    task_id: TaskId
    requests: tuple[tuple[int, int], ...]
    wait: bool = False
    """Pieces that are not held yet are to be sent when they are."""


@record(frozen=True, slots=True, kw_only=True)
class ChildCancelled(Event):
    """The child wants these of its requests no longer."""

    connection_id: ConnectionId
    requests: tuple[int, ...]


@record(frozen=True, slots=True, kw_only=True)
class ChildGone(Event):
    """The child's connection is gone. Pieces being sent have ended before."""

    connection_id: ConnectionId


@record(frozen=True, slots=True, kw_only=True)
class ServeEnded(Event):
    """The one answer to `ServePiece`: sent whole (`reason` None), or why not."""

    connection_id: ConnectionId
    child_request: int
    task_id: TaskId
    piece: int
    reason: Reason | None
    detail: str = ""


# ---------------------------------------------------------------- origin


@record(frozen=True, slots=True, kw_only=True)
class StatEnded(Event):
    """The one answer to `StatOrigin`. `reason` None is success."""

    request_id: RequestId
    reason: Reason | None
    size_bytes: int | None = None
    validator: str | None = None
    ranges: bool = False
    same: bool | None = None
    """Whether the origin has the bytes of the sample; None: there was nothing to compare (any
    more), or it has another size."""
    retry_after_ms: int = 0
    detail: str = ""


@record(frozen=True, slots=True, kw_only=True)
class OriginPieceStored(Event):
    """A running `ReadOrigin` has read and written one more piece."""

    request_id: RequestId
    piece: int
    digest: bytes
    length_bytes: int


@record(frozen=True, slots=True, kw_only=True)
class OriginReadEnded(Event):
    """The one answer to `ReadOrigin`. `reason` None: every piece asked for was stored.
    `size_bytes`: the end of a content of unknown size was found there."""

    request_id: RequestId
    reason: Reason | None
    size_bytes: int | None = None
    retry_after_ms: int = 0
    detail: str = ""


@record(frozen=True, slots=True, kw_only=True)
class Tick(Event):
    """Time passed; the shell sends one when `next_deadline_ns()` is reached."""


@record(frozen=True, slots=True, kw_only=True)
class ShutDown(Event):
    """Drain: take no new wishes, end the present ones, withdraw nothing."""


AnyEvent = (
    Want
    | Unwant
    | Reading
    | Remove
    | CountHolders
    | StoreLoaded
    | TaskOpened
    | TaskOpenFailed
    | TaskSealed
    | ContentHashed
    | StoreFailed
    | TaskRemoved
    | SchedulerUp
    | SchedulerDown
    | FromScheduler
    | ParentConnected
    | ParentConnectFailed
    | ParentClosed
    | ParentOpened
    | ParentRefused
    | ParentHave
    | ParentWithdrew
    | ParentActive
    | FetchEnded
    | ChildOpened
    | ChildClosedTask
    | ChildRequested
    | ChildCancelled
    | ChildGone
    | ServeEnded
    | StatEnded
    | OriginPieceStored
    | OriginReadEnded
    | Tick
    | ShutDown
)
