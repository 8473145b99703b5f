"""Who reads what next from the origin. Decides grants; the leases themselves, and what becomes of
them, are `scheduler.core.origin_lease`'s.

Leases go out in the collection's order, to the roots of its stripes (`scheduler.core.overlay`): a
few hosts whose reads keep the origin busy, and who pass each unit on while they read the next. A
window per host: enough that its reads never pause between two reports.
"""

from collections.abc import Callable
from dataclasses import dataclass

from scheduler.core.state import Collection, SchedulerState, Source, Task
from shoal.wire import bitfield
from shoal.wire.errors import Reason
from shoal.wire.ids import CollectionId, HostId
from shoal.wire.limits import MIB, MILLISECOND_NS, RUN_BYTES_MAX

ALONE_WINDOW_BYTES = 4 * MIB
"""The least window of a lone reader: a small file whole."""

AHEAD_UNITS_MIN = 2
"""Units that a stripe may be read ahead of the one that is furthest behind. Stripes in step end
together; one that lags has but a part of the hosts to pass it on when the others are done."""

OTHERS_MIN = 2
"""Of two roots it is not known which is the slow one."""

SLOW_NS_MIN = 500 * MILLISECOND_NS
SLOW_LEASES = 3
"""A root that keeps all others from reading for so long, and for as long as so many of their leases
took, is none any more."""


@dataclass(slots=True)
class _Turn:
    """One root's way through the tasks of a collection while leases are granted."""

    root: HostId
    stripes: list[int]
    stripes_all: int
    at: int = 0
    behind: int = 0
    """Units of the tasks that are passed."""

    def mask(self, number: int, task: Task, unit_bytes: int) -> int:
        """The pieces of a task that belong to the root's stripes."""
        geometry = task.descriptor.geometry
        unit_pieces = max(1, unit_bytes // geometry.piece_length_bytes)
        if len(self.stripes) == self.stripes_all:
            return geometry.all_pieces
        mask = 0
        for stripe in self.stripes:
            mask |= bitfield.stripe_mask(
                unit_pieces,
                geometry.piece_count,
                self.stripes_all,
                (stripe - number) % self.stripes_all,
            )
        return mask


class Granting:
    """Chooses readers. `give(task, host, first piece, count)`: hand out this lease, to the end
    where the count is None; `outstanding_bytes(host)`: leased and not yet read; `look_again_at`:
    time will tell then; `on_hopeless(task, reason, detail)`: nobody can read what is missing;
    `on_unproven(source, host)`: the host's verdict expired, ask the origin anew; gives the time to
    look again. `roots_of(collection)`: who reads each stripe, and the length of a unit in
    bytes. `on_slow(collection, host)`: a root keeps all others waiting."""

    def __init__(
        self,
        state: SchedulerState,
        *,
        give: Callable[[Task, HostId, int, int | None], None],
        outstanding_bytes: Callable[[HostId], int],
        look_again_at: Callable[[int], None],
        on_hopeless: Callable[[Task, Reason, str], None],
        on_unproven: Callable[[Source, HostId], int],
        roots_of: Callable[[Collection], tuple[list[HostId], int]],
        on_slow: Callable[[Collection, HostId], None],
    ) -> None:
        self._state = state
        self._give = give
        self._outstanding_bytes = outstanding_bytes
        self._look_again_at = look_again_at
        self._on_hopeless = on_hopeless
        self._on_unproven = on_unproven
        self._roots_of = roots_of
        self._on_slow = on_slow
        self._held_up: dict[CollectionId, tuple[HostId, int]] = {}
        """Collections of which all roots wait for one: for which, and since when."""
        self._dry: dict[HostId, None] = {}
        """Hosts that read all that they were leased before more came."""
        self._crowded: dict[HostId, dict[CollectionId, None]] = {}
        """Collections whose next lease waits for room in the window of a host: its other
        collections fill it."""
        self._roomy: dict[HostId, None] = {}
        """Those of them whose window has got room."""
        self._dirty: dict[str, Task] = {}

    def changed(self, task: Task) -> None:
        """Leases of the task may be granted that could not be before."""
        self._dirty[task.task_id] = task

    def ran_dry(self, host_id: HostId) -> None:
        """A host read all that it was leased before more came."""
        self._dry[host_id] = None

    def got_room(self, host_id: HostId) -> None:
        """A host read, or gave back, some of what it was leased."""
        if host_id in self._crowded:
            self._roomy[host_id] = None

    def grant_all(self) -> None:
        """Grants what can be granted now. Called at the end of every event."""
        if not self._dirty and not self._roomy:
            return
        dirty = list(self._dirty.values())
        self._dirty.clear()
        collections: dict[CollectionId, None] = {}
        for task in dirty:
            if self._state.tasks.get(task.task_id) is not task or not self._grantable(task):
                # What was waited for may be over with it, and the next task's turn has come.
                collections.update(dict.fromkeys(self._held_up))
                collections.update(dict.fromkeys(task.wanted.values()))
                continue
            if task.descriptor.geometry.size_bytes is None or not task.descriptor.ranges:
                self._grant_sequential(task)
            else:
                collections.update(dict.fromkeys(task.wanted.values()))
        for collection_id in collections:
            collection = self._state.collections.get(collection_id)
            if collection is not None and collection.members:
                self._grant_collection(collection)
            else:
                self._held_up.pop(collection_id, None)
        roomy, self._roomy = self._roomy, {}
        for host_id in roomy:
            self._fill_room(host_id, collections)
        self._dry.clear()

    def _fill_room(self, host_id: HostId, looked_at: dict[CollectionId, None]) -> None:
        """The room in a host's window goes to the collections that wait for it, in turn."""
        waiting = self._crowded.pop(host_id, {})
        for collection_id in [each for each in waiting if each not in looked_at]:
            if host_id in self._crowded:
                break  # It is full again.
            del waiting[collection_id]
            collection = self._state.collections.get(collection_id)
            if collection is not None and collection.members:
                self._grant_collection(collection)
        if waiting and host_id in self._state.hosts:
            self._crowded[host_id] = {**waiting, **self._crowded.get(host_id, {})}

    # ------------------------------------------------------------ who may

    def _grantable(self, task: Task) -> bool:
        if not task.wanted:
            return False
        if task.settle_until_ns > self._state.now_ns:
            self._look_again_at(task.settle_until_ns)
            return False
        geometry = task.descriptor.geometry
        return geometry.size_bytes is None or bool(geometry.all_pieces & ~task.covered)

    def _free(self, task: Task) -> int:
        return task.descriptor.geometry.all_pieces & ~task.covered & ~task.leased

    def _may(self, task: Task, host_id: HostId) -> bool:
        """Whether a host may read from the origin now; looks again later where time will tell."""
        source = self._state.sources.get(task.descriptor.source_id)
        host = self._state.hosts.get(host_id)
        if source is None or host is None or host.session is None or host_id not in task.wanted:
            return False
        waiting = source.waiting.get(host_id)
        if waiting is None or not waiting.member.origin_allowed:
            return False
        reader = task.readers.get(host_id)
        if reader is not None:
            if reader.excluded:
                return False
            if reader.retry_at_ns > self._state.now_ns:
                self._look_again_at(reader.retry_at_ns)
                return False
        if not self._state.may_read(source, host_id):
            self._look_again_at(self._on_unproven(source, host_id))
            return False
        return True

    def _reader(self, task: Task, preferred: list[HostId], free: int = -1) -> HostId | None:
        """Who reads (some of the pieces `free` of) a task: the first of the preferred who may, else
        anybody. Nobody reads again what it claimed to hold and did not give."""
        if task.sole_reader is not None and self._may(task, task.sole_reader):
            return task.sole_reader
        for hosts in (preferred, task.wanted):
            for host_id in hosts:
                if free & ~task.doubted.get(host_id, 0) and self._may(task, host_id):
                    return host_id
        return None

    def _grant_collection(self, collection: Collection) -> None:
        roots, unit_bytes = self._roots_of(collection)
        stripes: dict[HostId, list[int]] = {}
        for stripe, root in enumerate(roots):
            stripes.setdefault(root, []).append(stripe)
        tasks = [
            (number, task)
            for number, task in self._state.tasks_of(collection)
            if task.descriptor.geometry.size_bytes is not None
            and task.descriptor.ranges
            and self._grantable(task)
        ]
        if not tasks:
            self._held_up.pop(collection.collection_id, None)
            return
        # In turns, a lease each: the origin's link is shared from the first moment.
        turns = [_Turn(root, mine, len(roots)) for root, mine in stripes.items()]
        horizon = self._horizon(tasks[0][1], list(stripes), len(roots), unit_bytes)
        while turns:
            turns = [
                turn
                for turn in turns
                if self._grant_next(tasks, turn, list(stripes), unit_bytes, horizon)
            ]
        self._watch(collection, tasks[0][1], list(stripes))

    def _watch(self, collection: Collection, first: Task, roots: list[HostId]) -> None:
        """Stripes are read in step, so that one slow root holds up the whole swarm: it is found by
        that, since how fast it reads depends on how the others share the origin with it."""
        key = collection.collection_id
        laggard = self._reader_of_lowest(first)
        others = [root for root in roots if root != laggard]
        if (
            laggard not in roots
            or len(others) < OTHERS_MIN
            or any(self._outstanding_bytes(root) for root in others)
        ):
            self._held_up.pop(key, None)
            return
        known = self._held_up.get(key)
        if known is None or known[0] != laggard:
            known = self._held_up[key] = (laggard, self._state.now_ns)
        usual_ns = max(self._state.hosts[root].lease_took_ns for root in others)
        until_ns = known[1] + max(SLOW_NS_MIN, SLOW_LEASES * usual_ns)
        if self._state.now_ns < until_ns:
            self._look_again_at(until_ns)
            return
        del self._held_up[key]
        self._on_slow(collection, laggard)

    def _reader_of_lowest(self, task: Task) -> HostId | None:
        """Who is to read the first piece that nobody holds."""
        lowest = bitfield.lowest(task.descriptor.geometry.all_pieces & ~task.covered)
        for host_id, reader in task.readers.items():
            for number in reader.leases:
                if self._state.leases[number].pieces >> lowest & 1:
                    return host_id
        return None

    def _horizon(self, first: Task, roots: list[HostId], stripes: int, unit_bytes: int) -> int:
        """The end of what may be leased now, in units from the start of the first task that is
        not whole."""
        geometry = first.descriptor.geometry
        lowest = bitfield.lowest(geometry.all_pieces & ~first.covered)
        unit_pieces = max(1, unit_bytes // geometry.piece_length_bytes)
        windows = [
            host.lease_window_bytes for root in roots if (host := self._state.hosts.get(root))
        ]
        ahead = max(AHEAD_UNITS_MIN, min(windows, default=0) // unit_bytes)
        return lowest // unit_pieces + stripes * (1 + ahead)

    def _grant_next(
        self,
        tasks: list[tuple[int, Task]],
        turn: _Turn,
        roots: list[HostId],
        unit_bytes: int,
        horizon: int,
    ) -> bool:
        preferred = [turn.root, *(root for root in roots if root != turn.root)]
        while turn.at < len(tasks):
            number, task = tasks[turn.at]
            geometry = task.descriptor.geometry
            unit_pieces = max(1, unit_bytes // geometry.piece_length_bytes)
            free = self._free(task) & turn.mask(number, task, unit_bytes)
            if free:
                if turn.behind + bitfield.lowest(free) // unit_pieces >= horizon:
                    return False
                host_id = self._reader(task, preferred, free)
                if host_id is not None:
                    if host_id != task.sole_reader:
                        free &= ~task.doubted.get(host_id, 0)
                    alone = len(roots) == 1
                    return self._grant_some(task, host_id, free, unit_bytes, alone=alone)
                self._check_hope(task)
            turn.at += 1
            turn.behind += -(-geometry.piece_count // unit_pieces)
        return False

    def _grant_some(
        self, task: Task, host_id: HostId, free: int, unit_bytes: int, *, alone: bool
    ) -> bool:
        geometry = task.descriptor.geometry
        limits = self._state.limits
        host = self._state.hosts[host_id]
        if host_id in self._dry:
            # Only its window held it up, no other stripe: a wider one from now on.
            del self._dry[host_id]
            host.lease_window_bytes = min(
                2 * max(host.lease_window_bytes, unit_bytes), limits.lease_window_bytes_max
            )
        outstanding = self._outstanding_bytes(host_id)
        least = limits.lease_window_runs_min * unit_bytes
        if alone:
            # Nobody else reads, and nobody waits for what comes first.
            least = max(least, ALONE_WINDOW_BYTES)
        window = max(host.lease_window_bytes, least)
        if outstanding and outstanding + unit_bytes > window:
            self._crowded.setdefault(host_id, {})[task.wanted[host_id]] = None
            return False
        part_bytes = min(window - outstanding, max(window // 2, unit_bytes))
        part_bytes = min(part_bytes, RUN_BYTES_MAX)
        first = bitfield.lowest(free)
        count = min(
            bitfield.prefix(free >> first), max(1, part_bytes // geometry.piece_length_bytes)
        )
        self._give(task, host_id, first, count)
        return True

    def _grant_sequential(self, task: Task) -> None:
        if any(reader.leases for reader in task.readers.values()):
            return
        collection = self._state.collections[next(iter(task.wanted.values()))]
        roots, _ = self._roots_of(collection)
        number = task.collections.get(collection.collection_id, 0)
        turned = [roots[(number + step) % len(roots)] for step in range(len(roots))]
        host_id = self._reader(task, turned)
        if host_id is None:
            self._check_hope(task)
            return
        self._give(task, host_id, bitfield.prefix(task.covered), None)

    def _check_hope(self, task: Task) -> None:
        """Nobody may read: if what is missing is also held by nobody, say so."""
        geometry = task.descriptor.geometry
        if not task.wanted or any(reader.leases for reader in task.readers.values()):
            return
        source = self._state.sources.get(task.descriptor.source_id)
        for host_id in task.wanted:
            reader = task.readers.get(host_id)
            excluded = reader is not None and reader.excluded
            waiting = source.waiting.get(host_id) if source is not None else None
            allowed = waiting is not None and waiting.member.origin_allowed
            if allowed and not excluded:
                return  # It may read later: after a pause, a new stream, or a new verdict.
        if geometry.size_bytes is not None and not geometry.all_pieces & ~task.covered:
            return
        detail = task.last_failure or "no host that wants it may read it from the origin"
        self._on_hopeless(task, Reason.NO_SOURCE, detail)
