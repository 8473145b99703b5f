"""What a scheduler knows: plain records, effects and wake-ups. All of it is soft state that the
hosts' inventories rebuild. Decides nothing."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from scheduler.core.effects import AnyEffect, SendToHost
from scheduler.core.limits import SchedulerLimits
from shoal.wire.control import Address, HostInfo, Member, Parent, SchedulerMessage, TaskDescriptor
from shoal.wire.geometry import Geometry
from shoal.wire.ids import CollectionId, Dice, HostId, LeaseNumber, SourceId, TaskId
from shoal.wire.limits import MIB
from shoal.wire.wakeups import WakeUps

LEASE_WINDOW_START_BYTES = 1 * MIB
"""A host's first lease window. It is at least two units, and grows when it holds the host up."""


@dataclass(slots=True)
class Host:
    """A host, connected or within its grace time."""

    info: HostInfo
    generation: int
    session: int | None
    lost_ns: int = 0
    away: bool = False
    """Its stream broke a while ago: what it holds does not count until it is back."""
    collections: dict[CollectionId, None] = field(default_factory=dict)
    holdings: dict[TaskId, None] = field(default_factory=dict)
    free_upload_slots: int = 0
    blamed: dict[tuple[TaskId, int], None] = field(default_factory=dict)
    """Different pieces that others got wrong from it: the first few."""
    lease_window_bytes: int = LEASE_WINDOW_START_BYTES
    """Bytes leased to it and not yet read at most, of one collection."""
    lease_took_ns: int = 0
    """How long it read on the last lease that it used up."""
    lease_ended_ns: int = 0
    report_interval_ns: int = 0
    """What it was told last."""
    asked_since_ns: int = 0
    asked_tasks: int = 0
    """Tasks that it asked about since then: for the holders of so many."""
    as_parent: Parent = field(init=False)
    """What others are told of it: one object, so that it is serialised once."""

    def __post_init__(self) -> None:
        """Makes what follows from the rest."""
        self.as_parent = Parent(
            host_id=self.info.host_id, addresses=self.info.addresses, zone=self.info.zone
        )

    @property
    def host_id(self) -> HostId:
        """The host's id."""
        return self.info.host_id

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where its piece port is."""
        return self.info.addresses


@dataclass(slots=True)
class Waiting:
    """A host that wants a source."""

    collection_id: CollectionId
    member: Member
    served: bool = False
    """It was told the task and takes part in the swarm."""
    task_id: TaskId | None = None
    """The task that it was told; a plain URL may be another task for the next host."""


@dataclass(slots=True)
class Source:
    """What users name, and what it was last found to be."""

    source_id: SourceId
    digest: str | None
    piece_length_bytes: int | None
    known_task_id: TaskId | None
    """For content named by its digest."""
    display_url: str = ""
    task_id: TaskId | None = None
    public: bool = False
    """The origin answered a host that showed no credential."""
    checked_ns: int | None = None
    waiting: dict[HostId, Waiting] = field(default_factory=dict)
    verdicts: dict[HostId, int] = field(default_factory=dict)
    """Until when each host's own credential counts as accepted."""
    asked: dict[HostId, int] = field(default_factory=dict)
    """Hosts that were asked for a stat, with the deadline of their answer."""
    failures: int = 0
    retry_at_ns: int = 0


@dataclass(slots=True)
class Lease:
    """The exclusive right of a host to read pieces from the origin."""

    number: LeaseNumber
    task_id: TaskId
    host_id: HostId
    pieces: int
    """What is not yet stated. Empty for a sequential lease of unknown size."""
    sequential: bool
    expires_ns: int
    granted_ns: int = 0
    """0: by a scheduler before this one."""


@dataclass(slots=True)
class Reader:
    """How one host reads one task from the origin."""

    leases: dict[LeaseNumber, None] = field(default_factory=dict)
    failures: int = 0
    retry_at_ns: int = 0
    excluded: bool = False


@dataclass(slots=True)
class Stated:
    """A piece digest and who stated it."""

    digest: bytes
    lease_number: LeaseNumber
    host_id: HostId


@dataclass(slots=True)
class Task:
    """One content and its swarm."""

    descriptor: TaskDescriptor
    token: bytes
    token_expires_ns: int
    known_ns: int
    """Since when this scheduler knows of it."""
    wanted: dict[HostId, CollectionId] = field(default_factory=dict)
    """Hosts that fetch it now."""
    collections: dict[CollectionId, int] = field(default_factory=dict)
    """Collections with members that it is part of, and its number in each."""
    holders: dict[HostId, int] = field(default_factory=dict)
    sealed: dict[HostId, None] = field(default_factory=dict)
    doubted: dict[HostId, int] = field(default_factory=dict)
    """Pieces that a holder claims and did not give, or gave wrong, as others reported."""
    listed: dict[int, Stated] = field(default_factory=dict)
    listed_pieces: int = 0
    """The same as a mask."""
    old_lists: list[dict[int, Stated]] = field(default_factory=list)
    """Of the epochs before, to find out who stated wrong digests."""
    sole_reader: HostId | None = None
    """After a mismatch one host reads everything, so that it is known whose reading is checked."""
    sole_readers: dict[HostId, None] = field(default_factory=dict)
    """All that were it."""
    leased: int = 0
    covered: int = 0
    """Pieces that some host holds and nobody doubts."""
    readers: dict[HostId, Reader] = field(default_factory=dict)
    tokens_told: dict[HostId, int] = field(default_factory=dict)
    fresh: list[int] = field(default_factory=list)
    """Pieces whose digest the swarm was not told yet."""
    digests_asked: dict[HostId, int] = field(default_factory=dict)
    """Holders that were asked for digests that nobody told, and when."""
    settle_until_ns: int = 0
    """After a restart: no lease before the other hosts had time to say what they hold."""
    settle_latest_ns: int = 0
    """The latest that this may become."""
    origin_failures: int = 0
    last_failure: str = ""

    @property
    def task_id(self) -> TaskId:
        """The task's id."""
        return self.descriptor.task_id

    def recount(self) -> None:
        """Works out anew what is covered."""
        covered = 0
        for host_id, held in self.holders.items():
            covered |= held & ~self.doubted.get(host_id, 0)
        self.covered = covered


@dataclass(slots=True)
class Collection:
    """The hosts that want a collection now, and what each was told of the others."""

    collection_id: CollectionId
    sources: tuple[SourceId, ...]
    members: dict[HostId, None] = field(default_factory=dict)
    told: dict[HostId, dict[HostId, None]] = field(default_factory=dict)


class SchedulerState:
    """All that the parts of one scheduler core share."""

    def __init__(
        self,
        *,
        limits: SchedulerLimits,
        dice: Dice,
        scheduler_id: str,
        token_source: Callable[[], bytes],
        piece_digest: str,
        cut: Callable[[int | None, int | None], Geometry],
    ) -> None:
        self.limits = limits
        self.dice = dice
        self.scheduler_id = scheduler_id
        self.token_source = token_source
        self.piece_digest = piece_digest
        self.cut = cut
        self.now_ns = 0
        self.effects: list[AnyEffect] = []
        self.hosts: dict[HostId, Host] = {}
        self.sessions: dict[int, HostId | None] = {}
        self.sources: dict[SourceId, Source] = {}
        self.tasks: dict[TaskId, Task] = {}
        self.collections: dict[CollectionId, Collection] = {}
        self.leases: dict[LeaseNumber, Lease] = {}
        self.stories: dict[str, deque[tuple[int, str]]] = {}
        self.leases_granted = 0
        self.stats_asked = 0
        # The high bits are drawn, so that numbers of a scheduler before a restart never recur.
        self._lease_number = dice.getrandbits(40) << 22
        self._outgoing: dict[int, list[SchedulerMessage]] = {}
        self._held: dict[int, list[SchedulerMessage]] = {}
        self._wake_ups = WakeUps()

    def next_lease_number(self) -> LeaseNumber:
        """A number never used before, also not by a scheduler before this one."""
        self._lease_number += 1
        return LeaseNumber(self._lease_number)

    def report_interval_ns(self) -> int:
        """How often each host is to report, by how many there are."""
        return max(
            self.limits.report_interval_min_ns,
            min(
                self.limits.report_interval_max_ns,
                len(self.hosts) * self.limits.report_interval_per_host_ns,
            ),
        )

    def send(self, host_id: HostId, *messages: SchedulerMessage) -> None:
        """Queues messages for a host; they leave together at the end of the event. Dropped for a
        host that is not connected: its next `Hello` and `Join` bring it up to date."""
        host = self.hosts.get(host_id)
        if host is None or host.session is None:
            return
        outgoing = self._outgoing.get(host.session)
        if outgoing is None:
            outgoing = self._outgoing[host.session] = self._held.pop(host.session, [])
        outgoing += messages

    def send_with_next(self, host_id: HostId, *messages: SchedulerMessage) -> None:
        """Queues messages for a host that is to be told more soon: they leave together with what is
        sent to it next, or when they are released, for it is batches that cost."""
        host = self.hosts.get(host_id)
        if host is None or host.session is None:
            return
        outgoing = self._outgoing.get(host.session)
        if outgoing is None:
            outgoing = self._held.setdefault(host.session, [])
        outgoing += messages

    def release(self, host_id: HostId) -> None:
        """What is held back for a host leaves now."""
        host = self.hosts.get(host_id)
        if host is not None and host.session in self._held:
            self.send(host_id)

    @property
    def held_sessions(self) -> list[int]:
        """Sessions for which something is held back."""
        return list(self._held)

    def take_effects(self) -> list[AnyEffect]:
        """What the present event led to."""
        effects, self.effects = self.effects, []
        for session, messages in self._outgoing.items():
            effects.append(SendToHost(session=session, messages=tuple(messages)))
        self._outgoing = {}
        return effects

    def drop_outgoing(self, session: int) -> None:
        """The session is closed: what was queued for it is void."""
        self._outgoing.pop(session, None)
        self._held.pop(session, None)

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
        """Keeps a line for `SchedulerEngine.story`; bounded per subject."""
        story = self.stories.get(subject)
        if story is None:
            story = self.stories[subject] = deque(maxlen=self.limits.story_events_max)
        story.append((self.now_ns, what))

    def tasks_of(self, collection: Collection) -> Iterator[tuple[int, Task]]:
        """The tasks of a collection that are known, with their numbers, in its order."""
        for number, source_id in enumerate(collection.sources):
            source = self.sources.get(source_id)
            if source is not None and source.task_id is not None:
                task = self.tasks.get(source.task_id)
                if task is not None:
                    yield number, task

    def may_read(self, source: Source, host_id: HostId) -> bool:
        """Whether the origin's word lets this host have the content."""
        return source.public or source.verdicts.get(host_id, 0) > self.now_ns
