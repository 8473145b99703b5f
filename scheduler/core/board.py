"""What every host of a swarm is told of the others: its parents, where the others are, who holds
what. Decides who is on the board, and what goes to whom and when: in batches, one message object
for all hosts, and more rarely the more they are, so that a large swarm costs a scheduler no more
messages than a small one. Never who feeds whom (`scheduler.core.overlay`) or what a map says
(`scheduler.core.maps`).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from scheduler.core.flow import Flow
from scheduler.core.holders import Holders, is_complete, look_for_holders
from scheduler.core.listing import Listing
from scheduler.core.maps import Maps
from scheduler.core.overlay import STRIPES, Overlay, Place
from scheduler.core.state import Collection, Host, SchedulerState, Task
from shoal.wire import control as msg
from shoal.wire.ids import CollectionId, HostId
from shoal.wire.limits import SECOND_NS

PLACED_AT_ONCE = 8
"""Newcomers between two messages who are told parents before the trees have a place for them. More
of them are a crowd, and what they were told would not hold until they had done it."""

REPORTS_JUDGED = 4
"""Of so many reports of each host its progress is judged: of fewer, one that comes a moment later
would make a host slow."""

LONE_NS = 1 * SECOND_NS
"""A unit that for so long only hosts hold that nobody was told of is not on its way to others."""


@dataclass(slots=True)
class Board:
    """What is published of one collection."""

    overlay: Overlay = field(default_factory=Overlay)
    listing: Listing = field(default_factory=Listing)
    flow: Flow = field(default_factory=Flow)
    maps: Maps = field(init=False)
    fed: dict[HostId, tuple[HostId, ...]] = field(default_factory=dict)
    """The parents that each member was told."""
    fresh: dict[HostId, None] = field(default_factory=dict)
    """Members that were told no map yet."""
    holders: Holders | None = None
    """Who has everything already, once it was looked for. None: look again."""
    newcomers: bool = False
    """Somebody came since the last message: perhaps one who may read from the origin."""
    joined_ns: int = -(1 << 62)
    """When somebody came last."""
    due_ns: int | None = None
    planned_ns: int = 0
    """Since when something is due."""
    last_ns: int = -(1 << 62)

    def __post_init__(self) -> None:
        """Makes what looks at the rest."""
        self.maps = Maps(self.listing, self.overlay, self.flow)


class Boards:
    """Keeps the boards. `let_in(collection, hosts)`: holders must know the swarm's tokens;
    `name(collection, host, parents)`: a host must be connected to these parents; `on_roots`: who
    reads from the origin may have changed."""

    def __init__(
        self,
        state: SchedulerState,
        *,
        let_in: Callable[[Collection, Iterable[HostId]], None],
        name: Callable[[Collection, HostId, tuple[HostId, ...]], None],
        on_roots: Callable[[Collection], None],
    ) -> None:
        self._state = state
        self._let_in = let_in
        self._name = name
        self._on_roots = on_roots
        self._boards: dict[CollectionId, Board] = {}
        self._next_due_ns: int | None = None

    def of(self, collection_id: CollectionId) -> Board | None:
        """The board of a collection that has members."""
        return self._boards.get(collection_id)

    @property
    def all(self) -> dict[CollectionId, Board]:
        """Every board, by its collection."""
        return self._boards

    # ------------------------------------------------------------ members

    def task_known(self, collection: Collection) -> None:
        """One more task of a collection is known."""
        board = self._boards.get(collection.collection_id)
        if board is None:
            board = self._boards[collection.collection_id] = Board()
            for holder in self._holders(collection):
                self._enlist(collection, board, holder)
        board.holders = None
        self._measure(collection, board)

    def joined(self, collection: Collection, host: Host) -> None:
        """A host may have (some of) a collection: it takes part in the swarm from now on."""
        board = self._boards[collection.collection_id]
        if host.host_id not in board.overlay:
            self._enlist(collection, board, host.host_id)
            board.overlay.add(Place(host.host_id, host.info.zone))
        board.newcomers = True
        board.joined_ns = self._state.now_ns
        if host.host_id in collection.members and host.host_id not in board.fed:
            board.fresh[host.host_id] = None
            if len(board.fresh) <= PLACED_AT_ONCE:
                self._assign(collection, board, host.host_id)
        self._plan(board)

    def waits(self, collection: Collection, host_id: HostId) -> bool:
        """Whether a newcomer is one of a crowd that is told its parents soon, and not before."""
        board = self._boards.get(collection.collection_id)
        return (
            board is not None
            and host_id not in board.fed
            and len(board.fresh) >= PLACED_AT_ONCE
            and board.due_ns is not None
            and board.due_ns <= self._state.now_ns + self._state.limits.push_first_ns
        )

    def _holders(self, collection: Collection) -> dict[HostId, None]:
        holders: dict[HostId, None] = {}
        for _, task in self._state.tasks_of(collection):
            holders.update(dict.fromkeys(task.holders))
        return holders

    def _enlist(
        self, collection: Collection, board: Board, host_id: HostId, *, needed: bool = False
    ) -> bool:
        """Looks at what a host holds, and lists it if there is room. Whether it is listed now and
        was not before."""
        host = self._state.hosts[host_id]
        if host_id in board.listing.numbers:
            return False
        board.maps.look_at(host_id, self._state.tasks_of(collection))
        if not board.listing.has_room(host.info.zone, self._state.limits, needed=needed):
            return False
        board.listing.add(host.as_parent)
        self._let_in(collection, (host_id,))
        board.maps.listed(host_id)
        return True

    def _unlist(self, board: Board, host_id: HostId) -> None:
        """There is nothing to be had from a host: its place in the directory is another's."""
        board.maps.forget(host_id)
        board.listing.remove(host_id)
        self._plan(board)

    def _measure(self, collection: Collection, board: Board) -> None:
        """Fixes how long a unit is. Where that changes, everybody is told everything again."""
        if not board.maps.measure(dict(self._state.tasks_of(collection))):
            return
        board.fed.clear()
        for member in collection.members:
            if member in board.overlay:
                board.fresh[member] = None

    def left(self, collection: Collection, host_id: HostId) -> None:
        """A host wants the collection no longer. If it has all of it, it goes on feeding others."""
        board = self._boards.get(collection.collection_id)
        if board is None:
            return
        self._state.release(host_id)
        if not collection.members:
            del self._boards[collection.collection_id]
            return
        board.fresh.pop(host_id, None)
        if host_id in board.overlay and not is_complete(self._state, collection, host_id):
            board.overlay.remove(host_id)
            board.fed.pop(host_id, None)
            self._plan(board)
        self._unlist_if_empty(collection, board, host_id)

    def _unlist_if_empty(self, collection: Collection, board: Board, host_id: HostId) -> None:
        if host_id not in board.overlay and not any(
            host_id in task.holders for _, task in self._state.tasks_of(collection)
        ):
            self._unlist(board, host_id)

    def host_back(self, host_id: HostId) -> None:
        """A host has a new stream, perhaps at another address: it is told everything again."""
        for collection_id, board in self._boards.items():
            number = board.listing.numbers.get(host_id)
            if number is None and host_id not in board.maps.untold and host_id not in board.fed:
                continue
            collection = self._state.collections[collection_id]
            board.holders = None
            board.maps.forget(host_id)
            if number is not None and (
                board.listing.hosts[number] != self._state.hosts[host_id].as_parent
            ):
                board.listing.remove(host_id)
            board.fed.pop(host_id, None)
            self._enlist(collection, board, host_id)
            board.maps.look_at(host_id, self._state.tasks_of(collection))
            self._plan(board)

    def host_gone(self, host_id: HostId) -> None:
        """A host is gone: nobody is fed by it any more."""
        for board in self._boards.values():
            if (
                host_id not in board.listing.numbers
                and host_id not in board.maps.untold
                and host_id not in board.overlay
            ):
                continue
            board.fresh.pop(host_id, None)
            board.holders = None
            if host_id in board.overlay:
                board.overlay.remove(host_id)
                board.fed.pop(host_id, None)
            self._unlist(board, host_id)

    def slow(self, collection: Collection, host_id: HostId) -> bool:
        """A root reads so slowly that all wait for it: another one is found at once. False: there
        are too few others."""
        board = self._boards.get(collection.collection_id)
        if board is None or host_id not in board.overlay:
            return False
        if sum(1 for place in board.overlay.places if place.slots) <= STRIPES:
            return False
        board.flow.lower(board.overlay, host_id, 0, self._state.now_ns)
        board.due_ns = self._next_due_ns = self._state.now_ns
        return True

    # ------------------------------------------------------------ holdings

    def changed(self, task: Task, host_id: HostId) -> None:
        """What a host holds of a task changed."""
        for collection_id, number in task.collections.items():
            board = self._boards.get(collection_id)
            if board is None:
                continue
            collection = self._state.collections[collection_id]
            if host_id not in board.listing.numbers and host_id in task.holders:
                self._enlist(collection, board, host_id)
            board.maps.dirty[host_id, number] = None
            if board.holders is not None and (
                host_id not in board.overlay or host_id in board.holders.hosts
            ):
                self._holders_changed(collection, board, host_id)
            if (
                host_id in board.overlay
                and host_id not in collection.members
                and not is_complete(self._state, collection, host_id)
            ):
                # It fed others after it had left: it does not get back what it lost.
                board.overlay.remove(host_id)
                board.fed.pop(host_id, None)
            if host_id not in task.holders:
                self._unlist_if_empty(collection, board, host_id)
            self._plan(board)

    def _holders_changed(self, collection: Collection, board: Board, host_id: HostId) -> None:
        host = self._state.hosts.get(host_id)
        complete = is_complete(self._state, collection, host_id)
        if board.holders is not None and (
            host is None or board.holders.may_change(host, complete=complete)
        ):
            board.holders = None

    # ------------------------------------------------------------ publishing

    def interval_ns(self, hosts: int) -> int:
        """The time between two messages to each of so many hosts."""
        limits = self._state.limits
        return min(
            limits.map_interval_ns,
            max(limits.push_interval_min_ns, hosts * limits.push_interval_per_host_ns),
        )

    @staticmethod
    def _audience(board: Board) -> int:
        """How many hosts a message for all goes to, about."""
        return max(len(board.overlay), len(board.listing.numbers))

    def _plan(self, board: Board) -> None:
        if board.due_ns is not None:
            return
        now_ns, limits = self._state.now_ns, self._state.limits
        interval_ns = self.interval_ns(self._audience(board))
        wait_ns = interval_ns
        if interval_ns <= limits.push_interval_min_ns:
            wait_ns = min(limits.push_first_ns, interval_ns)
        board.planned_ns = now_ns
        board.due_ns = max(now_ns + wait_ns, board.last_ns + interval_ns)
        if self._next_due_ns is None or board.due_ns < self._next_due_ns:
            self._next_due_ns = board.due_ns
        self._state.wake_at(board.due_ns)

    def publish_if_due(self, told: dict[CollectionId, None]) -> None:
        """Sends what is due. At the end of every event. `told`: collections whose members are sent
        something in this event anyway; what is due soon goes along in the same batch, for it is
        batches that cost."""
        now_ns = self._state.now_ns
        for collection_id in told:
            board = self._boards.get(collection_id)
            if board is not None and board.due_ns is not None:
                early_ns = board.due_ns - self.interval_ns(self._audience(board)) // 2
                if early_ns <= now_ns < board.due_ns:
                    board.due_ns = self._next_due_ns = now_ns
        if self._next_due_ns is None or now_ns < self._next_due_ns:
            return
        self._next_due_ns = None
        for collection_id, board in self._boards.items():
            if board.due_ns is None:
                continue
            if board.due_ns <= now_ns:
                board.due_ns = self._after_the_crowd_ns(board)
                self._state.wake_at(board.due_ns)
            if board.due_ns <= now_ns:
                board.due_ns, board.last_ns = None, now_ns
                self._publish(self._state.collections[collection_id], board)
            elif self._next_due_ns is None or board.due_ns < self._next_due_ns:
                self._next_due_ns = board.due_ns

    def _after_the_crowd_ns(self, board: Board) -> int:
        """When what is due is to be sent. While newcomers come one behind the other, trees are not
        built for each handful of them, only to be built anew for the next: as long as the
        newcomers may wait that are there by now."""
        quiet_ns = board.joined_ns + self._state.limits.crowd_quiet_ns
        return min(quiet_ns, board.planned_ns + self.interval_ns(self._audience(board)))

    def _publish(self, collection: Collection, board: Board) -> None:
        if self._state.now_ns - board.flow.since_ns >= REPORTS_JUDGED * (
            self._state.report_interval_ns()
        ):
            board.flow.judge(board.overlay, self._state.now_ns, collection.members)
        if board.overlay.dirty:
            roots = board.overlay.roots
            board.overlay.value_by_rates(
                {
                    place.host_id: self._state.hosts[place.host_id].info.upload_rate_bytes_s
                    for place in board.overlay.places
                },
                settled=board.flow.slowed,
            )
            board.overlay.build()
            for root in board.overlay.roots:
                # What the swarm has, they have first.
                self._enlist(collection, board, root, needed=True)
            if board.overlay.roots != roots:
                board.newcomers = True
            board.holders = None
        anew = board.holders is None
        if anew:
            for place in board.overlay.places:
                if place.host_id in collection.members:
                    self._assign(collection, board, place.host_id)
        if board.newcomers:
            board.newcomers = False
            self._on_roots(collection)
        for host_id in () if anew else board.fresh:
            self._assign(collection, board, host_id)
        self._publish_directory(collection, board)
        self._publish_map(collection, board)
        board.fresh.clear()
        self._look_for_lone_units(collection, board)

    def _assign(self, collection: Collection, board: Board, host_id: HostId) -> None:
        if board.holders is None:
            board.holders = look_for_holders(self._state, collection, board.overlay)
        feeds = board.overlay.feeds(host_id)
        feeds = board.holders.feeds(board.overlay, host_id, feeds)
        if not feeds or board.fed.get(host_id) == feeds:
            return
        board.fed[host_id] = feeds
        self._name(collection, host_id, feeds)
        self._state.send(
            host_id,
            msg.Assigned(
                collection_id=collection.collection_id,
                unit_bytes=board.maps.unit_bytes,
                parents=feeds,
            ),
        )

    def _look_for_lone_units(self, collection: Collection, board: Board) -> None:
        """Lists hosts without whom the swarm would not find what it has."""
        limits = self._state.limits
        if not board.maps.untold or not board.listing.has_room("", limits, needed=True):
            return
        if self._state.now_ns - board.maps.lone_ns < LONE_NS:
            self._plan(board)
            return
        for number, stuck in board.maps.look_for_lone_units(self._state.now_ns):
            for host_id in list(board.maps.untold) if stuck else ():
                mine = board.maps.untold[host_id].get(number, 0) & stuck
                if mine and self._enlist(collection, board, host_id, needed=True):
                    stuck &= ~mine
            self._plan(board)

    def _publish_directory(self, collection: Collection, board: Board) -> None:
        for fresh, pages in (
            (False, board.listing.news()),
            (True, board.listing.everything() if board.fresh else []),
        ):
            for first, hosts in pages:
                page = msg.Directory(
                    collection_id=collection.collection_id, first=first, hosts=hosts
                )
                self._broadcast(collection, board, page, fresh=fresh)

    def _publish_map(self, collection: Collection, board: Board) -> None:
        tasks = dict(self._state.tasks_of(collection))
        news = board.maps.news(collection.collection_id, tasks)
        if news is not None:
            self._broadcast(collection, board, news, fresh=False)
        if board.fresh:
            everything = board.maps.everything(collection.collection_id, tasks)
            self._broadcast(collection, board, everything, fresh=True)

    def _broadcast(
        self, collection: Collection, board: Board, message: msg.SchedulerMessage, *, fresh: bool
    ) -> None:
        for host_id in board.fresh if fresh else collection.members:
            if fresh or (host_id not in board.fresh and host_id in board.fed):
                self._state.send(host_id, message)
