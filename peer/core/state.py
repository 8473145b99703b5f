"""What a peer core knows: plain records, and the one place where effects and wake-ups collect.

Decides nothing. The modules beside it hold the decisions and share one `PeerState`.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

from peer.core.effects import AnyEffect
from peer.core.events import PieceRecord, Source
from peer.core.limits import PeerLimits
from peer.core.picker import Availability
from peer.core.swarm_view import SwarmView
from shoal.wire.control import Address, Demand, HostInfo, Parent, TaskDescriptor
from shoal.wire.errors import Reason
from shoal.wire.ids import (
    CollectionId,
    ConnectionId,
    Dice,
    DownloadId,
    HostId,
    RequestId,
    SourceId,
    TaskId,
)
from shoal.wire.limits import MILLISECOND_NS, PIECES_PER_TASK_MAX
from shoal.wire.wakeups import WakeUps


class TaskPhase(Enum):
    """Where a task is in its life on this host."""

    OPENING = auto()
    """The store was asked for it."""
    ACTIVE = auto()
    """Pieces are missing (or merely nobody wants them now)."""
    CHECKING = auto()
    """All pieces are here, the whole digest is being computed."""
    SEALING = auto()
    """The digest passed, the store is writing that down."""
    SEALED = auto()
    FAILED = auto()
    """Kept until nobody asks for it; a new wish opens it again."""
    REMOVING = auto()


@dataclass(slots=True)
class Task:
    """One task on this host."""

    descriptor: TaskDescriptor
    phase: TaskPhase = TaskPhase.OPENING
    held: int = 0
    records: dict[int, PieceRecord] = field(default_factory=dict)
    confirmed: int = 0
    """Held pieces whose digest the scheduler's list repeats, or that were read here."""
    told: int = 0
    """What children were told of."""
    reported: int = 0
    """What the scheduler was told of in this session."""
    stated: int = 0
    """Pieces whose digest this host stated: the scheduler takes it to hold them."""
    lost: int = 0
    """What the scheduler was told of and is held no longer."""
    listed: dict[int, bytes] = field(default_factory=dict)
    """The scheduler's digests by piece."""
    flying: dict[int, list[RequestId]] = field(default_factory=dict)
    """Requests to parents by piece."""
    flying_mask: int = 0
    reading_mask: int = 0
    """Pieces that a running origin read will bring."""
    suppliers: dict[int, HostId] = field(default_factory=dict)
    """Who sent each unsealed piece, for blame when the list contradicts it later."""
    availability: Availability = field(default_factory=Availability)
    watchers: dict[DownloadId, None] = field(default_factory=dict)
    credential: str = ""
    """Which credential origin reads show: that of the first download that wants it."""
    streaming: bool = False
    origin_allowed: bool = True
    priority: int = 0
    ordered_requests: int = 0
    """Counts requests of a streamed task, to give the reader its share."""
    hash_attempt: int = 1
    hashed_to_bytes: int = 0
    readable: int = 0
    """Pieces that readers were told of."""
    readers: dict[int, int] = field(default_factory=dict)
    """What each of the readers waits for that do not read from the start to the end."""
    urgent: int = 0
    """What any of them waits for."""
    computed_digest: str = ""
    origin_failures: int = 0
    origin_retry_at_ns: int = 0
    voids: int = 0
    origin_bytes: int = 0
    peer_bytes: int = 0
    flow: "Collection | None" = None
    """The collection by whose plan the task flows to this host, and its number there."""
    number: int = 0
    pulled: int = 0
    """Pieces that are to come from hosts that are not their stripe's parent."""
    searched: int = 0
    """Pieces that no parent brings and the map names nobody for: units of which several hosts hold
    a part. Whoever is asked tells what it holds, piece by piece."""
    next_descriptor: TaskDescriptor | None = None
    """A newer descriptor that waits for the store's answer to the present one."""

    @property
    def task_id(self) -> TaskId:
        """The task's id."""
        return self.descriptor.task_id

    @property
    def complete(self) -> bool:
        """All pieces are held."""
        geometry = self.descriptor.geometry
        return geometry.size_bytes is not None and self.held == geometry.all_pieces

    @property
    def missing(self) -> int:
        """The mask of pieces not held. Only for a known size."""
        return self.descriptor.geometry.all_pieces & ~self.held

    @property
    def missing_unrequested(self) -> int:
        """Missing pieces that neither a parent nor an origin read will bring yet; 0 for an unknown
        size, where nobody knows what is missing."""
        if self.descriptor.geometry.size_bytes is None:
            return 0
        return self.missing & ~self.flying_mask & ~self.reading_mask

    @property
    def piece_count_max(self) -> int:
        """Bound of piece numbers of this task."""
        geometry = self.descriptor.geometry
        return PIECES_PER_TASK_MAX if geometry.size_bytes is None else geometry.piece_count


QUIET_NS = 500 * MILLISECOND_NS
"""A parent that brings nothing for so long leaves room for others."""


class LinkPhase(Enum):
    """Where the connection to a parent is."""

    IDLE = auto()
    CONNECTING = auto()
    UP = auto()


@dataclass(slots=True)
class Channel:
    """One task on the connection to a parent."""

    open: bool = False
    refused_until_ns: int = 0
    held: int = 0


@dataclass(slots=True)
class Link:
    """A parent: a host that this host fetches from, or could."""

    host_id: HostId
    addresses: tuple[Address, ...]
    zone: str = ""
    phase: LinkPhase = LinkPhase.IDLE
    connection_id: ConnectionId | None = None
    channels: dict[TaskId, Channel] = field(default_factory=dict)
    requests: dict[RequestId, None] = field(default_factory=dict)
    collections: dict[CollectionId, None] = field(default_factory=dict)
    """The collections for which the scheduler named it."""
    queued_bytes: int = 0
    rate_bytes_s: float = 0.0
    round_trip_ns: int = 0
    last_end_ns: int = 0
    last_active_ns: int = 0
    strikes: int = 0
    last_strike_ns: int = 0
    quarantined_until_ns: int = 0
    wrong_until_ns: int = 0
    """The end of the quarantine for anything but a connection that broke or did not come about."""
    received_bytes: int = 0
    """Since the last report."""
    busy_until_ns: int = 0
    no_pulls_until_ns: int = 0
    """It lets nobody pull now; what it feeds this host comes all the same."""
    feeds_again_ns: int = 0
    """It refused what it was to bring as a stripe's parent: it is asked again then."""
    pulls: dict[TaskId, int] = field(default_factory=dict)
    """Pieces to be had from it although it is not their stripe's parent, by task."""
    feeds: "list[tuple[Collection, int]]" = field(default_factory=list)
    """The stripes that it feeds to this host."""
    standing: dict[tuple[CollectionId, int], int] = field(default_factory=dict)
    """Standing requests at it, by collection and stripe."""
    depths: dict[tuple[CollectionId, int], int] = field(default_factory=dict)
    """How many of them each stripe is worth."""
    met_ns: int = 0
    """When it was named, or needed for a pull."""

    def quiet_since(self, now_ns: int) -> bool:
        """Whether nothing came from it for a while."""
        return now_ns - max(self.last_active_ns, self.met_ns) >= QUIET_NS


@dataclass(slots=True)
class Fetch:
    """A piece requested from a parent."""

    request_id: RequestId
    link: Link
    task: Task
    piece: int
    length_bytes: int
    sent_ns: int
    deadline_ns: int
    feed: tuple[CollectionId, int] | None = None
    """Of a standing request: the stripe that it belongs to."""


@dataclass(slots=True)
class Wish:
    """One source of one download."""

    source: Source
    task_id: TaskId | None = None
    """Set when it is attached to a task."""
    ended: bool = False
    reason: Reason | None = None
    waiting_since_ns: int = 0
    failures: int = 0
    retry_at_ns: int = 0


@dataclass(slots=True)
class Download:
    """One wish of a local client for a collection."""

    download_id: DownloadId
    collection_id: CollectionId
    wishes: dict[SourceId, Wish]
    demand: Demand
    priority: int
    origin_allowed: bool
    ended: bool = False


@dataclass(slots=True)
class Collection:
    """A collection that this host wants or wanted in this session."""

    collection_id: CollectionId
    sources: tuple[Source, ...]
    downloads: dict[DownloadId, None] = field(default_factory=dict)
    joined: bool = False
    shown: dict[SourceId, None] = field(default_factory=dict)
    """Sources that somebody wanted with a credential in this session: what the scheduler says of
    them may be about that."""
    given_up: dict[SourceId, None] = field(default_factory=dict)
    """Sources that failed since the join: the scheduler has this host wait for them no longer."""
    parents: dict[HostId, int] = field(default_factory=dict)
    """Whom the scheduler named, with the session in which it did."""
    unit_bytes: int = 0
    feeds: tuple[HostId, ...] = ()
    """By stripe: the parent that feeds it; "" for none. Empty: no plan, everybody exchanges with
    everybody."""
    plan_is_old: bool = False
    """The session in which the plan was made is over."""
    tasks: dict[int, TaskId] = field(default_factory=dict)
    """By number: the task that each source was found to be."""
    piece_bytes_max: int = 0
    """The longest pieces of any of them."""
    first: int = 0
    """Tasks with smaller numbers are all here."""
    directory: dict[int, Parent] = field(default_factory=dict)
    view: SwarmView = field(default_factory=SwarmView)
    history: deque[tuple[int, SwarmView]] = field(default_factory=deque)
    """Earlier views, oldest first, as far as what was known then tells what is late now."""


@dataclass(slots=True)
class Child:
    """A host that fetches from this one."""

    connection_id: ConnectionId
    host_id: HostId
    tasks: dict[TaskId, None] = field(default_factory=dict)
    queue: deque[tuple[int, TaskId, int]] = field(default_factory=deque)
    """Waiting requests: (its request number, task, piece)."""
    serving: dict[int, tuple[TaskId, int]] = field(default_factory=dict)
    served_bytes: int = 0
    waiting: dict[int, tuple[TaskId, int]] = field(default_factory=dict)
    """Standing requests for pieces that are not held yet: its request number -> (task, piece)."""
    pulls: dict[int, None] = field(default_factory=dict)
    """Its requests that are queued or being served although this host does not feed it."""


@dataclass(slots=True)
class Session:
    """The present control stream."""

    number: int
    scheduler_id: str = ""
    ready: bool = False
    """`Welcome` has come."""


class PeerState:
    """All that the parts of one peer core share."""

    def __init__(
        self, *, host: HostInfo, limits: PeerLimits, dice: Dice, scheduler_configured: bool
    ) -> None:
        self.host = host
        self.limits = limits
        self.dice = dice
        self.scheduler_configured = scheduler_configured
        self.now_ns = 0
        self.effects: list[AnyEffect] = []
        self.loaded = False
        self.generation = 0
        self.shutting_down = False
        self.session: Session | None = None
        self.session_lost_ns = 0
        self.report_interval_ns = limits.report_interval_ns
        self.tasks: dict[TaskId, Task] = {}
        self.downloads: dict[DownloadId, Download] = {}
        self.collections: dict[CollectionId, Collection] = {}
        self.links: dict[HostId, Link] = {}
        self.links_by_connection: dict[ConnectionId, Link] = {}
        self.fetches: dict[RequestId, Fetch] = {}
        self.in_flight_bytes = 0
        self.children: dict[ConnectionId, Child] = {}
        self.tokens: dict[TaskId, list[tuple[bytes, int]]] = {}
        """Swarm tokens by task, newest last, each with its expiry."""
        self.stories: dict[str, deque[tuple[int, str]]] = {}
        self._wake_ups = WakeUps()
        self._last_request_id = 0

    def emit(self, effect: AnyEffect) -> None:
        """Adds an effect to the answer of the present event."""
        self.effects.append(effect)

    def next_request_id(self) -> RequestId:
        """A number never used before in this process."""
        self._last_request_id += 1
        return RequestId(self._last_request_id)

    def wake_at(self, deadline_ns: int) -> None:
        """Asks for a `Tick` at that time or soon after. What is due now is done in this event."""
        if deadline_ns > self.now_ns:
            self._wake_ups.add(deadline_ns)

    def next_deadline_ns(self) -> int | None:
        """The earliest time asked for."""
        return self._wake_ups.next_ns()

    def forget_past_wake_ups(self) -> None:
        """Drops the deadlines that the present event has reached."""
        self._wake_ups.forget_until(self.now_ns)

    def tell(self, subject: str, what: str) -> None:
        """Keeps a line for `PeerEngine.story`; bounded per subject."""
        story = self.stories.get(subject)
        if story is None:
            story = self.stories[subject] = deque(maxlen=self.limits.story_events_max)
        story.append((self.now_ns, what))

    @property
    def scheduled(self) -> bool:
        """A scheduler serves us now: it alone gives leases and confirms digests."""
        return self.session is not None and self.session.ready

    @property
    def on_our_own(self) -> bool:
        """No scheduler is configured, or it is gone for longer than the grace time."""
        if not self.scheduler_configured:
            return True
        lost_for_ns = self.now_ns - self.session_lost_ns
        return not self.scheduled and lost_for_ns >= self.limits.scheduler_grace_ns

    def planned(self, task: Task) -> bool:
        """Whether the task flows by the scheduler's plan: stripes from assigned parents. The plan
        outlives the scheduler by the grace time: its successor needs a moment to make another."""
        return (
            task.flow is not None
            and bool(task.flow.feeds)
            and not self.on_our_own
            and task.descriptor.geometry.size_bytes is not None
            and task.descriptor.ranges
        )

    def live_links(self) -> Iterator[Link]:
        """Parents that are connected, in the order in which they were named."""
        for link in self.links.values():
            if link.phase is LinkPhase.UP:
                yield link
