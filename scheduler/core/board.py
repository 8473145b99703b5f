"""What every host of a swarm is told of the others: its parents, where the others are, who holds
what. Decides what is published and when: in batches, one message object for all hosts, and more
rarely the more they are, so that a large swarm costs a scheduler no more messages than a small one.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from scheduler.core.flow import Flow
from scheduler.core.listing import Listing
from scheduler.core.overlay import SLOTS_PER_HOST_MAX, STRIPES, Overlay, Place
from scheduler.core.state import Collection, Host, SchedulerState, Task
from shoal.wire import bitfield
from shoal.wire import control as msg
from shoal.wire.ids import CollectionId, HostId
from shoal.wire.limits import (
    MAP_UNITS_TARGET,
    SECOND_NS,
    UNIT_BYTES_MAX,
    UNIT_BYTES_MIN,
)

ENOUGH_SLOTS = 0.97
"""A few hosts may have a child too many rather than all the weak ones feed others."""

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
    unit_bytes: int = 0
    listing: Listing = field(default_factory=Listing)
    told: dict[HostId, dict[int, int]] = field(default_factory=dict)
    """By host and task: the units that the swarm knows it to hold, by their first piece."""
    untold: dict[HostId, dict[int, int]] = field(default_factory=dict)
    """The same of what only this scheduler knows, since the host is not listed."""
    to_tell: dict[HostId, None] = field(default_factory=dict)
    """Hosts that are listed now, of whom so much was known before."""
    counts: dict[int, bitfield.Counts] = field(default_factory=dict)
    """By task: how many hosts hold each unit, told or not."""
    told_counts: dict[int, bitfield.Counts] = field(default_factory=dict)
    spread: dict[int, int] = field(default_factory=dict)
    """By task: the units that half of the swarm was last told to hold."""
    lone: dict[int, int] = field(default_factory=dict)
    """Units that were held at the last look and not by anybody of whom the swarm is told."""
    lone_ns: int = 0
    """When that look was."""
    dirty: dict[tuple[HostId, int], None] = field(default_factory=dict)
    gone: dict[int, None] = field(default_factory=dict)
    """Numbers of hosts of which nothing counts any more."""
    touched: dict[int, None] = field(default_factory=dict)
    """Tasks of which such a host held something."""
    fed: dict[HostId, tuple[HostId, ...]] = field(default_factory=dict)
    """The parents that each member was told."""
    fresh: dict[HostId, None] = field(default_factory=dict)
    """Members that were told no map yet."""
    newcomers: bool = False
    """Somebody came since the last message: perhaps one who may read from the origin."""
    flow: Flow = field(default_factory=Flow)
    joined_ns: int = -(1 << 62)
    """When somebody came last."""
    due_ns: int | None = None
    planned_ns: int = 0
    """Since when something is due."""
    last_ns: int = -(1 << 62)

    def forget(self, host_id: HostId) -> None:
        """Nothing that the host held counts any more."""
        for number, starts in self.told.pop(host_id, {}).items():
            self.counts[number].remove(starts)
            self.told_counts[number].remove(starts)
            self.touched[number] = None
        for number, starts in self.untold.pop(host_id, {}).items():
            self.counts[number].remove(starts)
            self.touched[number] = None
        self.to_tell.pop(host_id, None)
        self.flow.forget(host_id)
        if host_id in self.listing.numbers:
            self.gone[self.listing.numbers[host_id]] = None

    def covered(self, number: int) -> int:
        """The units of a task, by their first piece, that a host holds of whom the swarm knows."""
        counts = self.told_counts.get(number)
        return 0 if counts is None else counts.at_least(1)


class Boards:
    """Keeps the boards. `let_in(collection, host)`: a holder must know the swarm's tokens;
    `name(collection, host, parents)`: a host must be connected to these parents; `on_roots`: who
    reads from the origin may have changed."""

    def __init__(
        self,
        state: SchedulerState,
        *,
        let_in: Callable[[Collection, HostId], None],
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

    def _value_all(self, board: Board) -> None:
        """The children that each member is worth, by the rates that they told."""
        told = {
            place.host_id: rate
            for place in board.overlay.places
            if (rate := self._state.hosts[place.host_id].info.upload_rate_bytes_s)
        }
        if not told:
            return
        usual = _full_share(list(told.values()))
        for place in board.overlay.places:
            rate = told.get(place.host_id, usual)
            slots = min(SLOTS_PER_HOST_MAX, STRIPES * rate // usual)
            if place.host_id not in board.flow.slowed:
                place.slots = place.rank = slots

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
        for number, task in self._state.tasks_of(collection):
            if host_id in task.holders:
                board.dirty[host_id, number] = None
        if not board.listing.has_room(host.info.zone, self._state.limits, needed=needed):
            return False
        board.listing.add(host.as_parent)
        self._let_in(collection, host_id)
        known = board.untold.pop(host_id, None)
        if known is not None:
            board.told[host_id] = known
            board.to_tell[host_id] = None
            for number, starts in known.items():
                board.told_counts.setdefault(number, bitfield.Counts()).add(starts)
        return True

    def _unlist(self, board: Board, host_id: HostId) -> None:
        """There is nothing to be had from a host: its place in the directory is another's."""
        board.forget(host_id)
        board.listing.remove(host_id)
        self._plan(board)

    def _measure(self, collection: Collection, board: Board) -> None:
        """Fixes how long a unit is: enough of them to keep every link busy, few enough to tell."""
        total_bytes = sum(
            task.descriptor.geometry.size_bytes or 0 for _, task in self._state.tasks_of(collection)
        )
        unit_bytes = UNIT_BYTES_MIN
        while unit_bytes < UNIT_BYTES_MAX and unit_bytes * MAP_UNITS_TARGET < total_bytes:
            unit_bytes *= 2
        if unit_bytes == board.unit_bytes:
            return
        board.unit_bytes = unit_bytes
        board.counts.clear()
        board.told_counts.clear()
        board.told.clear()
        board.untold.clear()
        board.to_tell.clear()
        board.spread.clear()
        board.lone.clear()
        board.fed.clear()
        board.flow.restart()
        for number, task in self._state.tasks_of(collection):
            for host_id in task.holders:
                board.dirty[host_id, number] = None
        for member in collection.members:
            if member in board.overlay:
                board.fresh[member] = None

    def left(self, collection: Collection, host_id: HostId) -> None:
        """A host wants the collection no longer. If it has all of it, it goes on feeding others."""
        board = self._boards.get(collection.collection_id)
        if board is None:
            return
        if not collection.members:
            del self._boards[collection.collection_id]
            return
        board.fresh.pop(host_id, None)
        if host_id in board.overlay and not self._complete(collection, host_id):
            board.overlay.remove(host_id)
            board.fed.pop(host_id, None)
            self._plan(board)
        self._unlist_if_empty(collection, board, host_id)

    def _unlist_if_empty(self, collection: Collection, board: Board, host_id: HostId) -> None:
        if host_id not in board.overlay and not any(
            host_id in task.holders for _, task in self._state.tasks_of(collection)
        ):
            self._unlist(board, host_id)

    def _complete(self, collection: Collection, host_id: HostId) -> bool:
        for _, task in self._state.tasks_of(collection):
            geometry = task.descriptor.geometry
            if geometry.size_bytes is None or (geometry.all_pieces & ~task.holders.get(host_id, 0)):
                return False
        return True

    def host_back(self, host_id: HostId) -> None:
        """A host has a new stream, perhaps at another address: it is told everything again."""
        for collection_id, board in self._boards.items():
            number = board.listing.numbers.get(host_id)
            if number is None and host_id not in board.untold and host_id not in board.fed:
                continue
            collection = self._state.collections[collection_id]
            board.forget(host_id)
            if number is not None and (
                board.listing.hosts[number] != self._state.hosts[host_id].as_parent
            ):
                board.listing.remove(host_id)
            board.fed.pop(host_id, None)
            self._enlist(collection, board, host_id)
            for number, task in self._state.tasks_of(collection):
                if host_id in task.holders:
                    board.dirty[host_id, number] = None
            self._plan(board)

    def host_gone(self, host_id: HostId) -> None:
        """A host is gone: nobody is fed by it any more."""
        for board in self._boards.values():
            if (
                host_id not in board.listing.numbers
                and host_id not in board.untold
                and host_id not in board.overlay
            ):
                continue
            board.fresh.pop(host_id, None)
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
            board.dirty[host_id, number] = None
            if (
                host_id in board.overlay
                and host_id not in collection.members
                and not self._complete(collection, host_id)
            ):
                # It fed others after it had left: it does not get back what it lost.
                board.overlay.remove(host_id)
                board.fed.pop(host_id, None)
            if host_id not in task.holders:
                self._unlist_if_empty(collection, board, host_id)
            self._plan(board)

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
        interval_ns = self.interval_ns(self._audience(board))
        board.planned_ns = max(self._state.now_ns, board.last_ns)
        board.due_ns = board.planned_ns + interval_ns
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
        quiet_ns = board.joined_ns + self._state.limits.push_interval_min_ns
        return min(quiet_ns, board.planned_ns + self.interval_ns(self._audience(board)))

    def _publish(self, collection: Collection, board: Board) -> None:
        if self._state.now_ns - board.flow.since_ns >= REPORTS_JUDGED * (
            self._state.report_interval_ns()
        ):
            board.flow.judge(board.overlay, self._state.now_ns, collection.members)
        if board.overlay.dirty:
            roots = board.overlay.roots
            self._value_all(board)
            board.overlay.build()
            for root in board.overlay.roots:
                # What the swarm has, they have first.
                self._enlist(collection, board, root, needed=True)
            if board.overlay.roots != roots:
                board.newcomers = True
            for place in board.overlay.places:
                if place.host_id in collection.members:
                    self._assign(collection, board, place.host_id)
        if board.newcomers:
            board.newcomers = False
            self._on_roots(collection)
        for host_id in board.fresh:
            self._assign(collection, board, host_id)
        self._publish_directory(collection, board)
        self._publish_map(collection, board)
        board.fresh.clear()
        self._look_for_lone_units(collection, board)

    def _assign(self, collection: Collection, board: Board, host_id: HostId) -> None:
        feeds = board.overlay.feeds(host_id)
        if not feeds or board.fed.get(host_id) == feeds:
            return
        board.fed[host_id] = feeds
        self._name(collection, host_id, feeds)
        self._state.send(
            host_id,
            msg.Assigned(
                collection_id=collection.collection_id,
                unit_bytes=board.unit_bytes,
                parents=feeds,
            ),
        )

    def _look_for_lone_units(self, collection: Collection, board: Board) -> None:
        """Lists hosts without whom the swarm would not find what it has."""
        limits = self._state.limits
        if not board.untold or not board.listing.has_room("", limits, needed=True):
            return
        if self._state.now_ns - board.lone_ns < LONE_NS:
            self._plan(board)
            return
        before, board.lone, board.lone_ns = board.lone, {}, self._state.now_ns
        for number, counts in board.counts.items():
            lone = counts.at_least(1) & ~board.covered(number)
            stuck = lone & before.get(number, 0)
            for host_id in list(board.untold) if stuck else ():
                mine = board.untold[host_id].get(number, 0) & stuck
                if mine and self._enlist(collection, board, host_id, needed=True):
                    stuck &= ~mine
            if lone:
                board.lone[number] = lone
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
        gone = tuple(board.gone)
        board.gone.clear()
        touched, board.touched = board.touched, {}
        changes: list[msg.HostRuns] = []
        for host_id in board.to_tell:
            changes += self._all_of(board, tasks, host_id)
            touched.update(dict.fromkeys(board.told[host_id]))
        board.to_tell.clear()
        for host_id, number in board.dirty:
            task = tasks.get(number)
            if task is None or task.descriptor.geometry.size_bytes is None:
                continue
            touched[number] = None
            change = self._change(board, task, host_id, number)
            if change is not None:
                changes.append(change)
        board.dirty.clear()
        spread_more = self._note_spread(board, touched)
        if changes or gone or spread_more:
            news = self._map(collection, board, tasks, touched, gone, changes)
            self._broadcast(collection, board, news, fresh=False)
        if board.fresh:
            everything = [
                runs for host_id in board.told for runs in self._all_of(board, tasks, host_id)
            ]
            all_tasks = dict.fromkeys(board.counts)
            whole = self._map(collection, board, tasks, all_tasks, None, everything)
            self._broadcast(collection, board, whole, fresh=True)

    def _all_of(
        self, board: Board, tasks: dict[int, Task], host_id: HostId
    ) -> Iterator[msg.HostRuns]:
        """Everything that the swarm knows a host to hold."""
        for number, starts in board.told[host_id].items():
            if number in tasks:
                yield msg.HostRuns(
                    board.listing.numbers[host_id],
                    number,
                    bitfield.units_of_starts(starts, self._unit_pieces(board, tasks[number])),
                )

    @staticmethod
    def _note_spread(board: Board, touched: dict[int, None]) -> bool:
        """What at least half of those hold who hold anything. Whether that changed."""
        half = max(1, -(-(len(board.told) + len(board.untold)) // 2))
        changed = False
        for number in touched:
            if number in board.counts:
                spread = board.counts[number].at_least(half)
                changed = changed or spread != board.spread.get(number, 0)
                board.spread[number] = spread
        return changed

    @staticmethod
    def _unit_pieces(board: Board, task: Task) -> int:
        return max(1, board.unit_bytes // task.descriptor.geometry.piece_length_bytes)

    def _change(
        self, board: Board, task: Task, host_id: HostId, number: int
    ) -> msg.HostRuns | None:
        geometry = task.descriptor.geometry
        unit_pieces = self._unit_pieces(board, task)
        held = task.holders.get(host_id, 0) & ~task.doubted.get(host_id, 0)
        starts = bitfield.whole_units(held, unit_pieces, geometry.piece_count)
        listed = board.listing.numbers.get(host_id)
        book = board.untold if listed is None else board.told
        known = book.get(host_id, {}).get(number, 0)
        # What is lost is rarely told: whoever asks for it in vain tries another host.
        new = starts & ~known
        if not new:
            return None
        book.setdefault(host_id, {})[number] = known | new
        self._count(board, task, host_id, number, new)
        if listed is None:
            return None
        board.told_counts.setdefault(number, bitfield.Counts()).add(new)
        return msg.HostRuns(listed, number, bitfield.units_of_starts(new, unit_pieces))

    def _count(self, board: Board, task: Task, host_id: HostId, number: int, new: int) -> None:
        """Counts more units, by their first piece, that a host holds."""
        stripes = len(board.overlay.parents)
        unit_pieces = self._unit_pieces(board, task)
        piece_count = task.descriptor.geometry.piece_count
        board.flow.took_in(
            host_id,
            [
                (
                    new
                    & bitfield.stripe_mask(
                        unit_pieces, piece_count, stripes, (stripe - number) % stripes
                    )
                ).bit_count()
                for stripe in range(stripes)
            ],
        )
        board.counts.setdefault(number, bitfield.Counts()).add(new)

    def _map(
        self,
        collection: Collection,
        board: Board,
        tasks: dict[int, Task],
        touched: dict[int, None],
        gone: tuple[int, ...] | None,
        changes: list[msg.HostRuns],
    ) -> msg.SwarmMap:
        def told(units: Callable[[int], int]) -> tuple[tuple[int, int], ...]:
            return tuple(
                (
                    number,
                    bitfield.units_of_starts(
                        units(number), self._unit_pieces(board, tasks[number])
                    ),
                )
                for number in touched
                if number in board.counts and number in tasks
            )

        return msg.SwarmMap(
            collection_id=collection.collection_id,
            unit_bytes=board.unit_bytes,
            full=gone is None,
            gone=gone or (),
            changes=tuple(changes),
            covered=told(board.covered),
            spread=told(lambda number: board.spread.get(number, 0)),
        )

    def _broadcast(
        self, collection: Collection, board: Board, message: msg.SchedulerMessage, *, fresh: bool
    ) -> None:
        for host_id in board.fresh if fresh else collection.members:
            if fresh or (host_id not in board.fresh and host_id in board.fed):
                self._state.send(host_id, message)


def _full_share(rates: list[int]) -> int:
    """The greatest of the rates that, taken for a full share, leaves nearly enough children's
    places for all. Greater ones overload the strong hosts, smaller ones use the weak."""
    counted = Counter(rates)
    for share in sorted(counted, reverse=True):
        slots = sum(STRIPES * rate // share * hosts for rate, hosts in counted.items())
        if slots >= ENOUGH_SLOTS * STRIPES * len(rates):
            return share
    return min(counted)
