"""What every host of a swarm is told of the others: its parents, where the others are, who holds
what. Decides what is published and when: in batches, one message object for all hosts, and more
rarely the more they are, so that a large swarm costs a scheduler no more messages than a small one.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from scheduler.core.flow import Flow
from scheduler.core.overlay import SLOTS_PER_HOST_MAX, STRIPES, Overlay, Place
from scheduler.core.state import Collection, Host, SchedulerState, Task
from shoal.wire import bitfield
from shoal.wire import control as msg
from shoal.wire.ids import CollectionId, HostId
from shoal.wire.limits import (
    MAP_UNITS_TARGET,
    UNIT_BYTES_MAX,
    UNIT_BYTES_MIN,
)

ENOUGH_SLOTS = 0.97
"""A few hosts may have a child too many rather than all the weak ones feed others."""


@dataclass(slots=True)
class Board:
    """What is published of one collection."""

    overlay: Overlay = field(default_factory=Overlay)
    unit_bytes: int = 0
    numbers: dict[HostId, int] = field(default_factory=dict)
    """By host: its number in the directory. Numbers are not used twice."""
    directory: list[msg.Parent] = field(default_factory=list)
    published: int = 0
    """So many of the directory were told to all."""
    told: dict[HostId, dict[int, int]] = field(default_factory=dict)
    """By host and task: the units that the swarm knows it to hold, by their first piece."""
    counts: dict[int, bitfield.Counts] = field(default_factory=dict)
    dirty: dict[tuple[HostId, int], None] = field(default_factory=dict)
    gone: dict[int, None] = field(default_factory=dict)
    """Numbers of hosts of which nothing counts any more."""
    touched: dict[int, None] = field(default_factory=dict)
    """Tasks of which such a host held something."""
    fed: dict[HostId, tuple[HostId, ...]] = field(default_factory=dict)
    """The parents that each member was told."""
    fresh: dict[HostId, None] = field(default_factory=dict)
    """Members that were told no map yet."""
    flow: Flow = field(default_factory=Flow)
    due_ns: int | None = None
    last_ns: int = -(1 << 62)

    def forget(self, host_id: HostId) -> None:
        """Nothing that the host held counts any more."""
        for number, starts in self.told.pop(host_id, {}).items():
            self.counts[number].remove(starts)
            self.touched[number] = None
        self.flow.forget(host_id)
        if host_id in self.numbers:
            self.gone[self.numbers[host_id]] = None


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
        if host.host_id in collection.members and host.host_id not in board.fed:
            board.fresh[host.host_id] = None
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

    def _enlist(self, collection: Collection, board: Board, host_id: HostId) -> None:
        if host_id in board.numbers or len(board.numbers) >= self._state.limits.map_hosts_max:
            return
        host = self._state.hosts[host_id]
        board.numbers[host_id] = len(board.directory)
        board.directory.append(
            msg.Parent(host_id=host_id, addresses=host.addresses, zone=host.info.zone)
        )
        self._let_in(collection, host_id)
        for number, task in self._state.tasks_of(collection):
            if host_id in task.holders:
                board.dirty[host_id, number] = None

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
        board.told.clear()
        board.fed.clear()
        board.flow.restart()
        for host_id in board.numbers:
            for number, task in self._state.tasks_of(collection):
                if host_id in task.holders:
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
        if host_id not in board.overlay:
            return
        if not self._complete(collection, host_id):
            board.overlay.remove(host_id)
            board.fed.pop(host_id, None)
            self._plan(board)

    def _complete(self, collection: Collection, host_id: HostId) -> bool:
        for _, task in self._state.tasks_of(collection):
            geometry = task.descriptor.geometry
            if geometry.size_bytes is None or (geometry.all_pieces & ~task.holders.get(host_id, 0)):
                return False
        return True

    def host_back(self, host_id: HostId) -> None:
        """A host has a new stream, perhaps at another address: it is told everything again."""
        for collection_id, board in self._boards.items():
            if host_id not in board.numbers:
                continue
            collection = self._state.collections[collection_id]
            board.forget(host_id)
            number = board.numbers[host_id]
            if board.directory[number].addresses != self._state.hosts[host_id].addresses:
                del board.numbers[host_id]
            board.fed.pop(host_id, None)
            self._enlist(collection, board, host_id)
            for number, task in self._state.tasks_of(collection):
                if host_id in task.holders:
                    board.dirty[host_id, number] = None
            self._plan(board)

    def host_gone(self, host_id: HostId) -> None:
        """A host is gone: nobody is fed by it any more."""
        for board in self._boards.values():
            if host_id not in board.numbers and host_id not in board.overlay:
                continue
            board.forget(host_id)
            board.fresh.pop(host_id, None)
            if host_id in board.overlay:
                board.overlay.remove(host_id)
                board.fed.pop(host_id, None)
            self._plan(board)

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
            if host_id not in board.numbers:
                self._enlist(collection, board, host_id)
            if host_id in board.numbers:
                board.dirty[host_id, number] = None
            if (
                host_id in board.overlay
                and host_id not in collection.members
                and not self._complete(collection, host_id)
            ):
                # It fed others after it had left: it does not get back what it lost.
                board.overlay.remove(host_id)
                board.fed.pop(host_id, None)
            self._plan(board)

    # ------------------------------------------------------------ publishing

    def interval_ns(self, hosts: int) -> int:
        """The time between two messages to each of so many hosts."""
        limits = self._state.limits
        return min(
            limits.map_interval_ns,
            max(limits.push_interval_min_ns, hosts * limits.push_interval_per_host_ns),
        )

    def _plan(self, board: Board) -> None:
        if board.due_ns is not None:
            return
        interval_ns = self.interval_ns(len(board.numbers))
        board.due_ns = max(self._state.now_ns, board.last_ns) + interval_ns
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
                early_ns = board.due_ns - self.interval_ns(len(board.numbers)) // 2
                if early_ns <= now_ns < board.due_ns:
                    board.due_ns = self._next_due_ns = now_ns
        if self._next_due_ns is None or now_ns < self._next_due_ns:
            return
        self._next_due_ns = None
        for collection_id, board in self._boards.items():
            if board.due_ns is None:
                continue
            if board.due_ns <= now_ns:
                board.due_ns, board.last_ns = None, now_ns
                self._publish(self._state.collections[collection_id], board)
            elif self._next_due_ns is None or board.due_ns < self._next_due_ns:
                self._next_due_ns = board.due_ns

    def _publish(self, collection: Collection, board: Board) -> None:
        board.flow.judge(board.overlay, self._state.now_ns, collection.members)
        if board.overlay.dirty:
            roots = board.overlay.roots
            self._value_all(board)
            board.overlay.build()
            if board.overlay.roots != roots:
                self._on_roots(collection)
            for place in board.overlay.places:
                if place.host_id in collection.members:
                    self._assign(collection, board, place.host_id)
        for host_id in board.fresh:
            self._assign(collection, board, host_id)
        self._publish_directory(collection, board)
        self._publish_map(collection, board)
        board.fresh.clear()

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

    def _publish_directory(self, collection: Collection, board: Board) -> None:
        if board.published < len(board.directory):
            news = msg.Directory(
                collection_id=collection.collection_id,
                first=board.published,
                hosts=tuple(board.directory[board.published :]),
            )
            self._broadcast(collection, board, news, fresh=False)
            board.published = len(board.directory)
        if board.fresh:
            everything = msg.Directory(
                collection_id=collection.collection_id, first=0, hosts=tuple(board.directory)
            )
            self._broadcast(collection, board, everything, fresh=True)

    def _publish_map(self, collection: Collection, board: Board) -> None:
        tasks = dict(self._state.tasks_of(collection))
        gone = tuple(board.gone)
        board.gone.clear()
        changes = []
        touched, board.touched = board.touched, {}
        for host_id, number in board.dirty:
            task = tasks.get(number)
            if task is None or task.descriptor.geometry.size_bytes is None:
                continue
            touched[number] = None
            change = self._change(board, task, host_id, number)
            if change is not None:
                changes.append(change)
        board.dirty.clear()
        alive = max(1, len(board.told))
        if changes or gone:
            news = self._map(collection, board, tasks, touched, alive, gone, changes)
            self._broadcast(collection, board, news, fresh=False)
        if board.fresh:
            everything = [
                msg.HostRuns(
                    board.numbers[host_id],
                    number,
                    bitfield.units_of_starts(starts, self._unit_pieces(board, tasks[number])),
                )
                for host_id, by_task in board.told.items()
                for number, starts in by_task.items()
                if number in tasks
            ]
            all_tasks = dict.fromkeys(board.counts)
            whole = self._map(collection, board, tasks, all_tasks, alive, None, everything)
            self._broadcast(collection, board, whole, fresh=True)

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
        known = board.told.get(host_id, {}).get(number, 0)
        # What is lost is rarely told: whoever asks for it in vain tries another host.
        new = starts & ~known
        if not new:
            return None
        board.told.setdefault(host_id, {})[number] = known | new
        stripes = len(board.overlay.parents)
        board.flow.took_in(
            host_id,
            [
                (
                    new
                    & bitfield.stripe_mask(
                        unit_pieces, geometry.piece_count, stripes, (stripe - number) % stripes
                    )
                ).bit_count()
                for stripe in range(stripes)
            ],
        )
        board.counts.setdefault(number, bitfield.Counts()).add(new)
        return msg.HostRuns(
            board.numbers[host_id], number, bitfield.units_of_starts(new, unit_pieces)
        )

    def _map(
        self,
        collection: Collection,
        board: Board,
        tasks: dict[int, Task],
        touched: dict[int, None],
        alive: int,
        gone: tuple[int, ...] | None,
        changes: list[msg.HostRuns],
    ) -> msg.SwarmMap:
        def at_least(count: int) -> tuple[tuple[int, int], ...]:
            return tuple(
                (
                    number,
                    bitfield.units_of_starts(
                        board.counts[number].at_least(count),
                        self._unit_pieces(board, tasks[number]),
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
            covered=at_least(1),
            spread=at_least(-(-alive // 2)),
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
