"""What a peer does: the outputs of `PeerEngine.handle`, carried out by the shell in order.

An effect that is answered by an event says so; the shell must answer it exactly once, whatever
happens. An effect for a connection or request that is gone meanwhile is ignored.
"""

from peer.core.events import PieceRecord
from shoal.wire.control import Address, HolderCounts, HostMessage, TaskDescriptor
from shoal.wire.errors import Reason
from shoal.wire.ids import (
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
class OpenTask:
    """Create or reopen a task in the store and reserve its space. Answer: `TaskOpened` or
    `TaskOpenFailed`. Sent again with a newer descriptor when its size is sealed or its epoch
    rises (pieces of an older epoch are then dropped unless sealed)."""

    descriptor: TaskDescriptor


@record(frozen=True, slots=True, kw_only=True)
class DropPieces:
    """Forget these pieces: their bytes are not to be trusted."""

    task_id: TaskId
    pieces: int


@record(frozen=True, slots=True, kw_only=True)
class HashPrefix:
    """The content is now held without a gap up to here: let the whole-content hash run on. When
    `final`, answer with `ContentHashed` (or `StoreFailed`). `algorithm` as in `Digest`."""

    task_id: TaskId
    epoch: int
    algorithm: str
    up_to_bytes: int
    final: bool


@record(frozen=True, slots=True, kw_only=True)
class SealTask:
    """Mark a task as whole and right. Answer: `TaskSealed`."""

    task_id: TaskId
    digest: str


@record(frozen=True, slots=True, kw_only=True)
class RemoveTask:
    """Delete a task's bytes and metadata. Answer: `TaskRemoved`. Comes after its withdrawal."""

    task_id: TaskId


@record(frozen=True, slots=True, kw_only=True)
class SendToScheduler:
    """Messages for the present control stream; dropped if it is gone."""

    session: int
    messages: tuple[HostMessage, ...]


@record(frozen=True, slots=True, kw_only=True)
class Connect:
    """Connect to a parent by any of its addresses (tried like RFC 8305). Answer:
    `ParentConnected` or `ParentConnectFailed`."""

    host_id: HostId
    addresses: tuple[Address, ...]


@record(frozen=True, slots=True, kw_only=True)
class Disconnect:
    """Close a connection to a parent. Its open requests end with PEER_LOST, then comes
    `ParentClosed`."""

    connection_id: ConnectionId


@record(frozen=True, slots=True, kw_only=True)
class OpenChannel:
    """Ask a parent for a task. Answer: `ParentOpened` or `ParentRefused` (or `ParentClosed`).
    The shell computes the proof from the token and the parent's nonce."""

    connection_id: ConnectionId
    task_id: TaskId
    token: bytes
    piece_count_max: int
    """Bound of the bitmap and of pieces in `Have` frames."""


@record(frozen=True, slots=True, kw_only=True)
class CloseChannel:
    """Nothing more is needed of this task from this parent. No answer."""

    connection_id: ConnectionId
    task_id: TaskId


@record(frozen=True, slots=True, kw_only=True)
class FetchPiece:
    """Request a piece, receive it, check it against the header's digest (and against `expected`,
    if not empty: a different header is PEER_CONTRADICTED, different bytes PEER_CORRUPT), write
    it. Answer: `FetchEnded`."""

    request_id: RequestId
    connection_id: ConnectionId
    task_id: TaskId
    piece: int
    offset_bytes: int
    length_bytes: int
    algorithm: str
    expected: bytes
    epoch: int
    """The epoch that the header must name; another one ends the request with NOT_HELD."""
    provisional: bool = False
    """Epoch 0, of a parent that has been without a scheduler for long, is accepted too."""
    wait: bool = False
    """A standing request: a parent that does not hold the piece yet sends it when it does."""


@record(frozen=True, slots=True, kw_only=True)
class CancelFetch:
    """The request is no longer needed. Still answered by `FetchEnded`, CANCELLED if it can."""

    request_id: RequestId


@record(frozen=True, slots=True, kw_only=True)
class AcceptChild:
    """Open the task's channel for a child and tell it what is held."""

    connection_id: ConnectionId
    task_id: TaskId
    epoch: int
    held: int


@record(frozen=True, slots=True, kw_only=True)
class RefuseChild:
    """Close the task's channel for a child."""

    connection_id: ConnectionId
    task_id: TaskId
    reason: Reason


@record(frozen=True, slots=True, kw_only=True)
class Announce:
    """Tell children of new pieces."""

    task_id: TaskId
    new: int
    connection_ids: tuple[ConnectionId, ...]


@record(frozen=True, slots=True, kw_only=True)
class Withdraw:
    """Tell children of pieces that are no longer held."""

    task_id: TaskId
    gone: int
    connection_ids: tuple[ConnectionId, ...]


@record(frozen=True, slots=True, kw_only=True)
class ServePiece:
    """Send a piece to a child. Answer: `ServeEnded`."""

    connection_id: ConnectionId
    child_request: int
    task_id: TaskId
    piece: int
    offset_bytes: int
    length_bytes: int
    record: PieceRecord
    epoch: int
    """0 for a piece that no scheduler confirmed: hosts that have one do not take it."""


@record(frozen=True, slots=True, kw_only=True)
class SendBusy:
    """Tell a child to ask again later."""

    connection_id: ConnectionId
    child_request: int
    retry_after_ms: int


@record(frozen=True, slots=True, kw_only=True)
class SendReject:
    """Tell a child that it will not get this piece here."""

    connection_id: ConnectionId
    child_request: int
    reason: Reason


@record(frozen=True, slots=True, kw_only=True)
class DropChild:
    """Close a child's connection: it broke the protocol or its right expired."""

    connection_id: ConnectionId
    reason: Reason


@record(frozen=True, slots=True, kw_only=True)
class Sample:
    """Some held bytes of a content, from `start_byte` up to `end_byte`."""

    task_id: TaskId
    size_bytes: int | None
    """Of the whole content, if it is known."""
    start_byte: int
    end_byte: int


@record(frozen=True, slots=True, kw_only=True)
class StatOrigin:
    """Ask the origin for size, validator and range support. Answer: `StatEnded`."""

    request_id: RequestId
    source_id: SourceId
    credential: str
    """Which client's credential to show (`Source.credential`)."""
    sample: Sample | None = None
    """To be read there as well, and compared."""


@record(frozen=True, slots=True, kw_only=True)
class ReadOrigin:
    """Read pieces from the origin, digest and write each. Answer: an `OriginPieceStored` per
    piece, in rising order, then `OriginReadEnded`. `piece_count` None: to the end."""

    request_id: RequestId
    source_id: SourceId
    credential: str
    descriptor: TaskDescriptor
    first_piece: int
    piece_count: int | None
    lease_number: LeaseNumber


@record(frozen=True, slots=True, kw_only=True)
class CancelOrigin:
    """Stop a stat or an origin read. Still answered by its end, CANCELLED if it can."""

    request_id: RequestId


@record(frozen=True, slots=True, kw_only=True)
class SourceResolved:
    """Tell the clients of a download which task a source is, as soon as that is known."""

    download_id: DownloadId
    source_id: SourceId
    descriptor: TaskDescriptor


@record(frozen=True, slots=True, kw_only=True)
class PiecesReadable:
    """For readers of a content that arrives: these pieces are verified too and may be handed out.
    The last piece is withheld until the whole digest has passed."""

    task_id: TaskId
    pieces: int


@record(frozen=True, slots=True, kw_only=True)
class PiecesRevoked:
    """For the same readers: pieces that were readable turned out false and are read anew. Whoever
    was given bytes of this content has to be told that they may be wrong."""

    task_id: TaskId
    pieces: int


@record(frozen=True, slots=True, kw_only=True)
class SourceEnded:
    """One source of a download ended: `reason` None is whole, verified, sealed."""

    download_id: DownloadId
    source_id: SourceId
    reason: Reason | None
    detail: str = ""


@record(frozen=True, slots=True, kw_only=True)
class DownloadEnded:
    """The one end of a `Want`: `reason` None is success of every source."""

    download_id: DownloadId
    reason: Reason | None
    detail: str = ""


@record(frozen=True, slots=True, kw_only=True)
class RemoveEnded:
    """The one end of a `Remove`; `reason` OVERLOADED: the task is in use."""

    request_id: RequestId
    reason: Reason | None
    detail: str = ""


@record(frozen=True, slots=True, kw_only=True)
class HoldersCounted:
    """The one end of a `CountHolders`. `reason` None: `answers` name all of its tasks in order; one
    answer unless they were too many for one. Else it is not known: NO_SCHEDULER, TIMEOUT (one of
    an older version never answers), OVERLOADED (too many such questions wait)."""

    request_id: RequestId
    reason: Reason | None
    answers: tuple[HolderCounts, ...] = ()


@record(frozen=True, slots=True, kw_only=True)
class Noted:
    """Something that people must be able to read in the log. `kind` is a stable short name."""

    kind: str
    text: str
    host_id: HostId | None = None
    task_id: TaskId | None = None
    piece: int | None = None
    reason: Reason | None = None


AnyEffect = (
    OpenTask
    | DropPieces
    | HashPrefix
    | SealTask
    | RemoveTask
    | SendToScheduler
    | Connect
    | Disconnect
    | OpenChannel
    | CloseChannel
    | FetchPiece
    | CancelFetch
    | AcceptChild
    | RefuseChild
    | Announce
    | Withdraw
    | ServePiece
    | SendBusy
    | SendReject
    | DropChild
    | StatOrigin
    | ReadOrigin
    | CancelOrigin
    | SourceResolved
    | PiecesReadable
    | PiecesRevoked
    | SourceEnded
    | DownloadEnded
    | RemoveEnded
    | HoldersCounted
    | Noted
)
