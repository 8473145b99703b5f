"""Who of a swarm holds what, in units, and what of that the others know: the map. Decides how long
a unit is, which of a host's units count, and what a map says. Never who is listed, when a map is
sent, or to whom.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from scheduler.core.flow import Flow
from scheduler.core.listing import Listing
from scheduler.core.overlay import Overlay
from scheduler.core.state import Task
from shoal.wire import bitfield
from shoal.wire import control as msg
from shoal.wire.ids import CollectionId, HostId
from shoal.wire.limits import (
    MAP_UNITS_FEW,
    MAP_UNITS_TARGET,
    UNIT_BYTES_MAX,
    UNIT_BYTES_MIN,
    UNIT_BYTES_USUAL,
)


@dataclass(slots=True)
class Maps:
    """What the hosts of one swarm hold. Tasks go by their numbers in the collection, units by
    their first piece."""

    listing: Listing
    """Read only: of whom the swarm is told."""
    overlay: Overlay
    """Read only: how many stripes there are."""
    flow: Flow
    """Told of every unit that counts."""
    unit_bytes: int = 0
    told: dict[HostId, dict[int, int]] = field(default_factory=dict)
    """By host and task: the units that the swarm knows it to hold."""
    untold: dict[HostId, dict[int, int]] = field(default_factory=dict)
    """The same of what only this scheduler knows, since the host is not listed."""
    to_tell: dict[HostId, None] = field(default_factory=dict)
    """Hosts that are listed now, of whom so much was known before."""
    counts: dict[int, bitfield.Counts] = field(default_factory=dict)
    """By task: how many hosts hold each unit, told or not."""
    told_counts: dict[int, bitfield.Counts] = field(default_factory=dict)
    half: int = 1
    """How many hosts half of the swarm was at the last map."""
    spread: dict[int, int] = field(default_factory=dict)
    """By task: the units that half of the swarm was last told to hold."""
    lone: dict[int, int] = field(default_factory=dict)
    """Units that were held at the last look and not by anybody of whom the swarm is told."""
    lone_ns: int = 0
    """When that look was."""
    dirty: dict[tuple[HostId, int], None] = field(default_factory=dict)
    """What to look at for the next map."""
    gone: dict[int, None] = field(default_factory=dict)
    """Numbers of hosts of which nothing counts any more."""
    touched: dict[int, None] = field(default_factory=dict)
    """Tasks of which such a host held something."""

    # ------------------------------------------------------------ what counts

    def measure(self, tasks: dict[int, Task]) -> bool:
        """Fixes how long a unit is: enough of them to keep every link busy, few enough to tell.
        Whether that changed: then all that was told is void."""
        total_bytes = sum(task.descriptor.geometry.size_bytes or 0 for task in tasks.values())
        unit_bytes = UNIT_BYTES_MIN
        while unit_bytes < UNIT_BYTES_USUAL and unit_bytes * MAP_UNITS_FEW < total_bytes:
            unit_bytes *= 2
        while unit_bytes < UNIT_BYTES_MAX and unit_bytes * MAP_UNITS_TARGET < total_bytes:
            unit_bytes *= 2
        if unit_bytes == self.unit_bytes:
            return False
        self.unit_bytes = unit_bytes
        self.counts.clear()
        self.told_counts.clear()
        self.told.clear()
        self.untold.clear()
        self.to_tell.clear()
        self.spread.clear()
        self.lone.clear()
        self.flow.restart()
        for number, task in tasks.items():
            for host_id in task.holders:
                self.dirty[host_id, number] = None
        return True

    def look_at(self, host_id: HostId, tasks: Iterable[tuple[int, Task]]) -> None:
        """All that a host holds is looked at for the next map."""
        for number, task in tasks:
            if host_id in task.holders:
                self.dirty[host_id, number] = None

    def listed(self, host_id: HostId) -> None:
        """A host is listed from now on: the next map says what was known of it before."""
        known = self.untold.pop(host_id, None)
        if known is not None:
            self.told[host_id] = known
            self.to_tell[host_id] = None
            for number, starts in known.items():
                self.told_counts.setdefault(number, bitfield.Counts()).add(starts)

    def forget(self, host_id: HostId) -> None:
        """Nothing that the host held counts any more. Before its number is another's."""
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
        """The units of a task that a host holds of whom the swarm knows."""
        counts = self.told_counts.get(number)
        return 0 if counts is None else counts.at_least(1)

    def look_for_lone_units(self, now_ns: int) -> Iterator[tuple[int, int]]:
        """Each task with units that are held, but not by anybody of whom the swarm is told; and
        those of them that were so at the last look already. Hosts may be listed in between."""
        before, self.lone, self.lone_ns = self.lone, {}, now_ns
        for number, counts in self.counts.items():
            lone = counts.at_least(1) & ~self.covered(number)
            if lone:
                self.lone[number] = lone
                yield number, lone & before.get(number, 0)

    # ------------------------------------------------------------ what a map says

    def news(self, collection_id: CollectionId, tasks: dict[int, Task]) -> msg.SwarmMap | None:
        """What changed since the last map, as of now told. None: nothing did."""
        gone = tuple(self.gone)
        self.gone.clear()
        touched, self.touched = self.touched, {}
        changes: list[msg.HostRuns] = []
        for host_id in self.to_tell:
            changes += self._all_of(tasks, host_id)
            touched.update(dict.fromkeys(self.told[host_id]))
        self.to_tell.clear()
        for host_id, number in self.dirty:
            task = tasks.get(number)
            if task is None or task.descriptor.geometry.size_bytes is None:
                continue
            touched[number] = None
            change = self._change(task, host_id, number)
            if change is not None:
                changes.append(change)
        self.dirty.clear()
        spread_more = self._note_spread(touched)
        if not (changes or gone or spread_more):
            return None
        return self._map(collection_id, tasks, touched, gone, changes)

    def everything(self, collection_id: CollectionId, tasks: dict[int, Task]) -> msg.SwarmMap:
        """All that was told so far, for those who were told nothing yet."""
        everything = [runs for host_id in self.told for runs in self._all_of(tasks, host_id)]
        return self._map(collection_id, tasks, dict.fromkeys(self.counts), None, everything)

    def _all_of(self, tasks: dict[int, Task], host_id: HostId) -> Iterator[msg.HostRuns]:
        """Everything that the swarm knows a host to hold."""
        for number, starts in self.told[host_id].items():
            if number in tasks:
                yield msg.HostRuns(
                    self.listing.numbers[host_id],
                    number,
                    bitfield.units_of_starts(starts, self._unit_pieces(tasks[number])),
                )

    def _note_spread(self, touched: dict[int, None]) -> bool:
        """What at least half of the swarm holds. Whether that changed."""
        hosts = max(len(self.overlay), len(self.told) + len(self.untold))
        half = max(1, -(-hosts // 2))
        if half != self.half:
            self.half = half
            touched.update(dict.fromkeys(self.counts))
        changed = False
        for number in touched:
            if number in self.counts:
                spread = self.counts[number].at_least(half)
                changed = changed or spread != self.spread.get(number, 0)
                self.spread[number] = spread
        return changed

    def _unit_pieces(self, task: Task) -> int:
        return max(1, self.unit_bytes // task.descriptor.geometry.piece_length_bytes)

    def _change(self, task: Task, host_id: HostId, number: int) -> msg.HostRuns | None:
        geometry = task.descriptor.geometry
        unit_pieces = self._unit_pieces(task)
        held = task.holders.get(host_id, 0) & ~task.doubted.get(host_id, 0)
        starts = bitfield.whole_units(held, unit_pieces, geometry.piece_count)
        listed = self.listing.numbers.get(host_id)
        book = self.untold if listed is None else self.told
        known = book.get(host_id, {}).get(number, 0)
        # What is lost is rarely told: whoever asks for it in vain tries another host.
        new = starts & ~known
        if not new:
            return None
        book.setdefault(host_id, {})[number] = known | new
        self._count(task, host_id, number, new)
        if listed is None:
            return None
        self.told_counts.setdefault(number, bitfield.Counts()).add(new)
        return msg.HostRuns(listed, number, bitfield.units_of_starts(new, unit_pieces))

    def _count(self, task: Task, host_id: HostId, number: int, new: int) -> None:
        """Counts more units that a host holds."""
        stripes = len(self.overlay.parents)
        unit_pieces = self._unit_pieces(task)
        piece_count = task.descriptor.geometry.piece_count
        self.flow.took_in(
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
        self.counts.setdefault(number, bitfield.Counts()).add(new)

    def _map(
        self,
        collection_id: CollectionId,
        tasks: dict[int, Task],
        touched: dict[int, None],
        gone: tuple[int, ...] | None,
        changes: list[msg.HostRuns],
    ) -> msg.SwarmMap:
        def told(units: Callable[[int], int]) -> tuple[tuple[int, int], ...]:
            return tuple(
                (number, bitfield.units_of_starts(units(number), self._unit_pieces(tasks[number])))
                for number in touched
                if number in self.counts and number in tasks
            )

        return msg.SwarmMap(
            collection_id=collection_id,
            unit_bytes=self.unit_bytes,
            full=gone is None,
            gone=gone or (),
            changes=tuple(changes),
            covered=told(self.covered),
            spread=told(lambda number: self.spread.get(number, 0)),
        )
