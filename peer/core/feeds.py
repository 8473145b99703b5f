"""What comes from whom in a large swarm: by the scheduler's plan, and around it where it fails.

Each stripe of a collection has one parent, at which this host keeps standing requests for the next
pieces in order: what the parent does not hold yet it sends as soon as it does. That needs no news
of single pieces. What is late, although half of the swarm has it, and what has no parent is pulled
from hosts that the map names. Decides pieces and parents; the requests are `Fetcher`'s.
"""

from collections.abc import Iterator

from peer.core.parents import ParentTable
from peer.core.state import Collection, Link, LinkPhase, PeerState, Task, TaskPhase
from peer.core.swarm_view import SwarmView, fold
from shoal.wire import bitfield
from shoal.wire.control import Assigned, Directory, SwarmMap
from shoal.wire.ids import TaskId
from shoal.wire.limits import SECOND_NS

PULLS_MIN = 2
"""Units of one collection that are pulled at once while all its stripes flow."""

PULLS_PER_IDLE_STRIPE = 2
"""And so many more for each stripe that brings nothing now."""

CHANNELS_AHEAD = 2
AHEAD_PIECES = 8
"""When so few pieces of a task are left to ask a parent for, the channels of so many tasks behind
it are opened, so that the change from one to the next costs no round trip."""

LAGGING_SHARE = 0.35
"""A stripe that brings less than this part of what this host's usual stripe does lags."""

LATE_NS_MIN = 1 * SECOND_NS
LATE_NS_MAX = 20 * SECOND_NS
LATE_PIECES = 4
"""A piece is late when half of the swarm has had it for a second, and for the time that so many
pieces take on one stripe."""

SEARCHES = 3
"""Hosts that are asked at a time for pieces that the map does not show."""

CONNECT_NS = 2 * SECOND_NS
"""A host to which a connection takes longer is not waited for."""

HOLDER_SAMPLES = 8
"""Hosts that are looked at for a piece before all of them are."""


class Feeds:
    """Keeps the plans of collections."""

    def __init__(self, state: PeerState, parents: ParentTable) -> None:
        self._state = state
        self._parents = parents
        self.searching = False
        """Pieces are searched for since this was last looked at."""

    # ------------------------------------------------------------ news

    def assigned(self, message: Assigned, collection: Collection) -> None:
        """The scheduler says which parent feeds each stripe."""
        collection.unit_bytes = message.unit_bytes
        collection.feeds = message.parents
        collection.plan_is_old = False
        self.parents_named(collection)

    def parents_named(self, collection: Collection) -> None:
        """Tells links which stripes they feed."""
        for link in self._state.links.values():
            link.feeds = [pair for pair in link.feeds if pair[0] is not collection]
        for stripe, feed in enumerate(collection.feeds):
            fed_by = self._state.links.get(feed) if feed else None
            if fed_by is not None:
                fed_by.feeds.append((collection, stripe))

    def directory(self, message: Directory, collection: Collection) -> None:
        """Where hosts of the swarm are."""
        for number, host in enumerate(message.hosts, message.first):
            collection.directory[number] = host

    def mapped(self, message: SwarmMap, collection: Collection) -> None:
        """The scheduler tells who holds what."""
        collection.view = fold(collection.view, message)
        collection.history.append((self._state.now_ns, collection.view))

    def _late_ns(self, collection: Collection) -> int:
        """How long the swarm may have a piece before whoever lacks it is late."""
        rates = sorted(
            link.rate_bytes_s
            for feed in collection.feeds
            if (link := self._state.links.get(feed)) is not None and link.rate_bytes_s > 0
        )
        late_ns = LATE_NS_MIN
        if rates:
            piece_s = collection.piece_bytes_max / rates[len(rates) // 2]
            late_ns = max(late_ns, min(LATE_NS_MAX, int(LATE_PIECES * piece_s * SECOND_NS)))
        return late_ns

    def _settled(self, collection: Collection, late_ns: int) -> SwarmView:
        """The view of so long ago that whoever lacks what it shows is late."""
        history = collection.history
        while len(history) > 1 and history[1][0] <= self._state.now_ns - late_ns:
            history.popleft()
        if not history or history[0][0] > self._state.now_ns - late_ns:
            return SwarmView()
        return history[0][1]

    def _lagging(self, collection: Collection) -> list[int]:
        """Stripes that bring much less than the others of this host."""
        links = [self._state.links.get(feed) if feed else None for feed in collection.feeds]
        rates = sorted(link.rate_bytes_s for link in links if link is not None)
        if not rates or rates[-1] <= 0:
            return []
        least = LAGGING_SHARE * rates[len(rates) // 2]
        now_ns = self._state.now_ns
        return [
            stripe
            for stripe, link in enumerate(links)
            if link is not None and (link.rate_bytes_s < least or link.quiet_since(now_ns))
        ]

    def forget(self, collection: Collection) -> None:
        """The plan is over, or the collection is."""
        collection.feeds = ()
        self.parents_named(collection)
        for link in self._state.links.values():
            for task_id in list(link.pulls):
                task = self._state.tasks.get(task_id)
                if task is None or task.flow is collection:
                    self._drop_pull(link, task_id)

    # ------------------------------------------------------------ standing requests

    def next_piece(
        self, link: Link, collection: Collection, stripe: int
    ) -> tuple[Task, int] | None:
        """The next piece of a stripe to ask its parent for. Opens channels on the way; None: there
        is nothing that can be asked for now."""
        found = None
        ahead = CHANNELS_AHEAD
        for task in self._open_tasks(collection):
            if found is None:
                missing = task.missing_unrequested & ~task.pulled & self._of_stripe(task, stripe)
                if not missing:
                    continue
                channel = link.channels.get(task.task_id)
                if channel is not None and channel.open:
                    found = task, bitfield.lowest(missing)
                    if missing.bit_count() > AHEAD_PIECES:
                        break
                    continue
            if task.task_id not in link.channels:
                self._parents.open_channel(link, task)
            ahead -= 1
            if not ahead:
                break
        return found

    def _open_tasks(self, collection: Collection) -> Iterator[Task]:
        count = len(collection.sources)
        at_start = True
        for number in range(collection.first, count):
            task_id = collection.tasks.get(number)
            task = None if task_id is None else self._state.tasks.get(task_id)
            if task is not None and task.phase in (
                TaskPhase.CHECKING,
                TaskPhase.SEALING,
                TaskPhase.SEALED,
            ):
                if at_start:
                    collection.first = number + 1
                continue
            at_start = False
            if (
                task is not None
                and task.phase is TaskPhase.ACTIVE
                and task.watchers
                and task.flow is collection
                and self._state.planned(task)
            ):
                yield task

    @staticmethod
    def _unit_pieces(task: Task) -> int:
        assert task.flow is not None
        return max(1, task.flow.unit_bytes // task.descriptor.geometry.piece_length_bytes)

    def _of_stripe(self, task: Task, stripe: int) -> int:
        assert task.flow is not None
        stripes = len(task.flow.feeds)
        return bitfield.stripe_mask(
            self._unit_pieces(task),
            task.descriptor.geometry.piece_count,
            stripes,
            (stripe - task.number) % stripes,
        )

    def belongs(self, task: Task, piece: int, stripe: int) -> bool:
        """Whether a piece is of a stripe, as units are dealt out now."""
        return task.flow is not None and bool(self._of_stripe(task, stripe) >> piece & 1)

    def ahead_units(self, task: Task) -> int:
        """How many more units this host has of a stripe that it reads from the origin than of one
        that it is fed, on average. 0 where it does not do both, or no plan holds."""
        collection = task.flow
        if collection is None or not self._state.planned(task):
            return 0
        own = sum(1 for feed in collection.feeds if not feed)
        if not 0 < own < len(collection.feeds):
            return 0
        missing_own = missing_fed = 0
        for open_task in self._open_tasks(collection):
            unit_pieces = self._unit_pieces(open_task)
            for stripe, feed in enumerate(collection.feeds):
                missing = (open_task.missing & self._of_stripe(open_task, stripe)).bit_count()
                if feed:
                    missing_fed += missing // unit_pieces
                else:
                    missing_own += missing // unit_pieces
        return missing_fed // (len(collection.feeds) - own) - missing_own // own

    # ------------------------------------------------------------ pulls

    def plan_pulls(self, collection: Collection) -> list[tuple[Link, Task, int]]:
        """Chooses what to have from others than the stripes' parents: (link, task, pieces)."""
        self._drop_hopeless(collection)
        late_ns = self._late_ns(collection)
        settled = self._settled(collection, late_ns)
        lagging = self._lagging(collection)
        chosen: list[tuple[Link, Task, int]] = []
        orphaned = [
            stripe for stripe, feed in enumerate(collection.feeds) if not self._usable(feed)
        ]
        room = PULLS_MIN + PULLS_PER_IDLE_STRIPE * len({*orphaned, *lagging})
        front = self._front(collection, settled)
        last = max(front[0], max(collection.view.covered, default=-1))
        room -= self._active_pulls(collection)
        for task in self._open_tasks(collection):
            if len(chosen) >= room or task.number > last:
                break
            self._search(collection, task, orphaned, front)
            if not (orphaned or lagging or task.urgent or settled.spread.get(task.number)):
                continue  # Nothing of it can be late: most of the time that is so of all.
            coming = self._coming(task, late_ns) if lagging else 0
            units = self._pullable(collection, task, orphaned, lagging, settled, coming)
            if not units:
                continue
            if not lagging:
                coming = self._coming(task, late_ns)
            unit_pieces = self._unit_pieces(task)
            urgent = _units_with(task.urgent, unit_pieces, task.descriptor.geometry.piece_count)
            # Another pull may bring a part of a unit.
            wanted = task.missing & ~task.reading_mask & ~task.pulled & ~coming
            while units and len(chosen) < room:
                unit = _draw(units & urgent or units, self._state.dice.random())
                units &= ~(1 << unit)
                link = self._holder(collection, task, unit)
                if link is None:
                    continue
                pieces = bitfield.pieces_of_units(
                    1 << unit, unit_pieces, task.descriptor.geometry.piece_count
                )
                chosen.append((link, task, pieces & wanted))
        for link, task, pieces in chosen:
            link.pulls[task.task_id] = link.pulls.get(task.task_id, 0) | pieces
            task.pulled |= pieces
        return chosen

    def _front(self, collection: Collection, settled: SwarmView) -> tuple[int, int]:
        """How far the swarm had come a while ago, as (task, unit): what is missing before that is
        stuck. Where nothing new was told for long, everything is."""
        history = collection.history
        if history and self._state.now_ns - history[-1][0] >= LATE_NS_MIN:
            return len(collection.sources), 0
        last = max((number for number, units in settled.covered.items() if units), default=-1)
        return last, settled.covered.get(last, 0).bit_length() - 1

    def _drop_hopeless(self, collection: Collection) -> None:
        """Pulls from hosts that failed us since, or to which no connection comes about."""
        now_ns = self._state.now_ns
        for link in self._state.links.values():
            down = link.phase is not LinkPhase.UP and now_ns - link.met_ns >= CONNECT_NS
            if link.pulls and (down or link.quarantined_until_ns > now_ns):
                for task_id in list(link.pulls):
                    if self._state.tasks[task_id].flow is collection:
                        self._drop_pull(link, task_id)

    def _active_pulls(self, collection: Collection) -> int:
        """Units being pulled: parts of one count as one."""
        count = 0
        for link in self._state.links.values():
            for task_id, pieces in link.pulls.items():
                task = self._state.tasks[task_id]
                if task.flow is collection:
                    count += -(-pieces.bit_count() // self._unit_pieces(task))
        return count

    def _usable(self, feed: str) -> bool:
        if not feed:
            return False
        link = self._state.links.get(feed)  # type: ignore[call-overload]
        return (
            link is not None
            and max(link.quarantined_until_ns, link.feeds_again_ns) <= self._state.now_ns
        )

    def _pullable(
        self,
        collection: Collection,
        task: Task,
        orphaned: list[int],
        lagging: list[int],
        settled: SwarmView,
        coming: int,
    ) -> int:
        """Units of a task that are late, or that no parent brings."""
        unit_pieces = self._unit_pieces(task)
        count = task.descriptor.geometry.piece_count
        missing = task.missing & ~task.reading_mask & ~task.pulled
        # What is on its way is left to it, unless its whole stripe lags, and for long.
        late = settled.spread.get(task.number, 0)
        units = late and late & _units_with(missing & ~task.flying_mask, unit_pieces, count)
        if task.urgent:
            # Somebody waits for it who may not come to the stripes' turn for long.
            waited_for = missing & task.urgent & ~task.flying_mask
            covered = collection.view.covered.get(task.number, 0)
            units |= covered & _units_with(waited_for, unit_pieces, count)
        for stripes, view, wanted in (
            (orphaned, collection.view, missing & ~task.flying_mask),
            (lagging, settled, missing & ~coming),
        ):
            covered = view.covered.get(task.number, 0) if stripes else 0
            if covered:
                mine = 0
                for stripe in stripes:
                    mine |= self._of_stripe(task, stripe)
                units |= covered & _units_with(wanted & mine, unit_pieces, count)
        return units

    def _coming(self, task: Task, late_ns: int) -> int:
        """Pieces that were asked for only a moment ago. Whoever has them from elsewhere has them
        twice, since what is being sent is not called back, and never finds out what the parent is
        worth that was asked."""
        since_ns = self._state.now_ns - late_ns
        coming = 0
        for piece, requests in task.flying.items():
            if any(self._state.fetches[number].sent_ns > since_ns for number in requests):
                coming |= 1 << piece
        return coming

    def _search(
        self, collection: Collection, task: Task, orphaned: list[int], front: tuple[int, int]
    ) -> None:
        """Where units are in parts at several hosts, the map shows nobody: asks drawn hosts for
        what they hold while nothing else brings the orphaned stripes on."""
        task.searched = 0
        if (
            not orphaned
            or task.number > front[0]
            or task.reading_mask
            or task.pulled
            or not collection.directory
        ):
            return
        covered = bitfield.pieces_of_units(
            collection.view.covered.get(task.number, 0),
            self._unit_pieces(task),
            task.descriptor.geometry.piece_count,
        )
        mine = 0
        for stripe in orphaned:
            mine |= self._of_stripe(task, stripe)
        task.searched = task.missing & mine & ~covered & ~task.flying_mask
        if task.number == front[0]:
            task.searched &= (1 << max(0, front[1]) * self._unit_pieces(task)) - 1
        if not task.searched:
            return
        self.searching = True
        numbers = list(collection.directory)
        for _ in range(SEARCHES):
            number = numbers[int(self._state.dice.random() * len(numbers))]
            parent = collection.directory[number]
            if parent.host_id == self._state.host.host_id:
                continue
            link = self._parents.meet(parent, collection)
            if link is not None:
                self._parents.open_channel(link, task)

    def _holder(self, collection: Collection, task: Task, unit: int) -> Link | None:
        """A drawn host that holds a unit: of this zone if any there does."""
        holders = collection.view.holders.get(task.number, {})
        numbers = list(holders)
        zone = self._state.host.zone
        best: Link | None = None
        start = int(self._state.dice.random() * len(numbers)) if numbers else 0
        looked = 0
        for step in range(len(numbers)):
            number = numbers[(start + step * 7919) % len(numbers)]
            if not holders[number] >> unit & 1:
                continue
            parent = collection.directory.get(number)
            if parent is None or parent.host_id == self._state.host.host_id:
                continue
            looked += 1
            near = parent.zone == zone
            if near or best is None:
                link = self._parents.meet(parent, collection)
                if link is None:
                    continue
                if near:
                    return link
                best = link
            if looked > HOLDER_SAMPLES and not zone:
                break
        return best

    def end_pull(self, link: Link, task: Task, piece: int) -> None:
        """A pulled piece came, or will not come from there."""
        left = link.pulls.get(task.task_id, 0)
        if not left >> piece & 1:
            return
        task.pulled &= ~(1 << piece)
        left &= ~(1 << piece)
        if left:
            link.pulls[task.task_id] = left
        else:
            del link.pulls[task.task_id]

    def came(self, task: Task, pieces: int) -> None:
        """These pieces are here, from whomever: nobody needs to bring them any more."""
        if not task.pulled & pieces:
            return
        task.pulled &= ~pieces
        for link in self._state.links.values():
            left = link.pulls.get(task.task_id, 0)
            if left & ~pieces:
                link.pulls[task.task_id] = left & ~pieces
            elif left:
                del link.pulls[task.task_id]

    def task_over(self, task: Task) -> None:
        """The task needs nothing from anybody any more."""
        for link in self._state.links.values():
            if task.task_id in link.pulls:
                self._drop_pull(link, task.task_id)

    def drop_pulls(self, link: Link) -> None:
        """A parent is gone, or does not come up: its pulls are free for others."""
        for task_id in list(link.pulls):
            self._drop_pull(link, task_id)

    def _drop_pull(self, link: Link, task_id: TaskId) -> None:
        pieces = link.pulls.pop(task_id)
        task = self._state.tasks.get(task_id)
        if task is not None:
            task.pulled &= ~pieces


def _units_with(pieces: int, unit_pieces: int, piece_count: int) -> int:
    """Units that have any of the pieces."""
    if unit_pieces == 1:
        return pieces
    if not pieces:
        return 0
    # A unit without any of them is one whose complement is whole.
    rest = ((1 << piece_count) - 1) & ~pieces
    without = bitfield.whole_units(rest, unit_pieces, piece_count)
    everything = bitfield.whole_units((1 << piece_count) - 1, unit_pieces, piece_count)
    return bitfield.units_of_starts(everything & ~without, unit_pieces)


def _draw(mask: int, chance: float) -> int:
    """A drawn bit of a mask that is not empty: the first at or behind a drawn place."""
    return bitfield.lowest_from(mask, int(chance * mask.bit_length()))
