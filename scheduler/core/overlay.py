"""Who feeds whom in a large swarm: the peer graph, as interior-disjoint trees.

A collection's units are dealt out to a few *stripes*; each stripe flows from its root, which reads
it from the origin, down a tree that reaches every host. A host is interior in its *home* stripe,
with as many children as its upload rate is worth, and a leaf in all others. So every link carries
as many steady flows in as out, whatever the number of hosts, and nobody has to be told anything
per piece (Castro et al., "SplitStream", SOSP 2003; the delay of a tree against the pipeline of
Mundinger, Weber and Weiss, "Optimal scheduling of peer-to-peer file dissemination", 2008).

Every zone has a tree of its own below one host, and only that host's feed crosses into the zone.
Decides parents, and how many children a told rate is worth; knows nothing of pieces or messages.
The same members in the same order always give the same trees, and a newcomer moves few of those who
are there.
"""

from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from itertools import combinations

from shoal.wire.ids import HostId

STRIPES = 4
"""Trees of one swarm of so many hosts or more. More of them make a lost parent cheaper and a tree
shallower, but each hop of a unit slower in the same measure; 3 to 6 are alike."""

SLOTS_PER_HOST_MAX = 64
"""Children of one host at most, however fast it is."""

ENOUGH_SLOTS = 0.97
"""A few hosts may have a child too many rather than all the weak ones feed others."""

ZONE_FANOUT = 2
"""Zones that one zone feeds per stripe: a short tree without a hotspot at its root."""


@dataclass(slots=True)
class Place:
    """One member, and what its links are worth."""

    host_id: HostId
    zone: str
    slots: int = STRIPES
    """Children that its upload rate can feed at a full share of a stripe each."""
    rank: int = STRIPES
    """What its slots were when it came: the strong stand near the roots. It does not follow the
    slots, since every change of place costs those below a moment."""
    reads: bool = True
    """Whether it may read from the origin: roots are chosen among those that may."""


@dataclass(slots=True)
class Overlay:
    """The members of one swarm in a lasting order, and the trees over them."""

    places: list[Place] = field(default_factory=list)
    parents: list[dict[HostId, HostId]] = field(default_factory=list)
    """By stripe: each member's parent. A root has none."""
    roots: list[HostId] = field(default_factory=list)
    """By stripe: who reads it from the origin. Empty while there is no member."""
    dirty: bool = False
    _index: dict[HostId, int] = field(default_factory=dict)
    _built: dict[HostId, None] = field(default_factory=dict)
    """The members at the last build."""

    def __contains__(self, host_id: HostId) -> bool:
        return host_id in self._index

    def __len__(self) -> int:
        return len(self._index)

    def place(self, host_id: HostId) -> Place:
        """A member's place."""
        return self.places[self._index[host_id]]

    def add(self, place: Place) -> None:
        """A newcomer, behind all others. Until the next `build` it is fed as a leaf."""
        assert place.host_id not in self._index
        self._index[place.host_id] = len(self.places)
        self.places.append(place)
        self.dirty = True
        if len(self.places) == 1:
            self.build()

    def remove(self, host_id: HostId) -> None:
        """A member is gone; the last one takes its place, so that few others move."""
        index = self._index.pop(host_id)
        self._built.pop(host_id, None)
        last = self.places.pop()
        if last.host_id != host_id:
            self.places[index] = last
            self._index[last.host_id] = index
        self.dirty = True

    def value(self, host_id: HostId, slots: int) -> None:
        """What a member's upload is worth was found to be otherwise. One that feeds nobody any
        more changes places with the last of its rank that does, so that few others move."""
        place = self.place(host_id)
        if place.slots == slots:
            return
        place.slots = min(slots, SLOTS_PER_HOST_MAX)
        self.dirty = True
        if slots == 0:
            rank, place.rank = place.rank, 0
            index = last = self._index[host_id]
            for number in range(len(self.places) - 1, index, -1):
                if self.places[number].slots and self.places[number].rank == rank:
                    last = number
                    break
            self.places[index], self.places[last] = self.places[last], place
            self._index[self.places[index].host_id] = index
            self._index[host_id] = last

    def value_by_rates(self, rates: Mapping[HostId, int], *, settled: Container[HostId]) -> None:
        """The children that each member is worth, by the upload rates that they told, 0 where one
        told none. Before a build. `settled`: members of whom more is known than their rate."""
        known = [rate for rate in rates.values() if rate]
        if not known:
            return
        usual = _full_share(known)
        for place in self.places:
            rate = rates[place.host_id] or usual
            if place.host_id not in settled:
                place.slots = place.rank = min(SLOTS_PER_HOST_MAX, STRIPES * rate // usual)

    def feeds(self, host_id: HostId) -> tuple[HostId, ...]:
        """The parent of a member in each stripe, "" where it is the root. Empty for a newcomer
        who has to wait for the next build. A few newcomers since the last one need not: they are
        fed by members that are drawn by their number."""
        if host_id in self._built:
            root = HostId("")
            return tuple([tree.get(host_id, root) for tree in self.parents])
        turn = self._index[host_id]
        built = len(self._built)
        if 2 * (turn + 1 - built) > built:
            return ()
        stripes = len(self.parents)
        return tuple(
            self._built_from((turn * stripes + stripe) % built) for stripe in range(stripes)
        )

    def _built_from(self, start: int) -> HostId:
        """The first member from a number on that has a place in the trees: others may have come to
        numbers of members that left."""
        count = len(self.places)
        return next(
            host_id
            for step in range(count)
            if (host_id := self.places[(start + step) % count].host_id) in self._built
        )

    # ------------------------------------------------------------ building

    def build(self) -> None:
        """Works the trees out anew from the members. O(members x stripes)."""
        self.dirty = False
        self._built = dict.fromkeys(place.host_id for place in self.places)
        zones = self._zones()
        stripes = min(STRIPES, len(self.places))
        orders = [_zone_order(zones, stripe) for stripe in range(stripes)]
        homes = []
        for number, members in enumerate(zones):
            needs = [len(members) - 1 + _zones_fed(order, number) for order in orders]
            homes.append(_homes(members, needs))
        before = [*self.parents, *({} for _ in range(stripes))]
        self.parents = [{} for _ in range(stripes)]
        self.roots = []
        for stripe, order in enumerate(orders):
            heads = [homes[number][stripe][0][0].host_id for number in order]
            self.roots.append(heads[0])
            for at in range(1, len(heads)):
                self.parents[stripe][heads[at]] = heads[(at - 1) // ZONE_FANOUT]
            for number, members in enumerate(zones):
                fed = _zones_fed(order, number)
                self._grow(stripe, members, homes[number][stripe], fed, before[stripe])
        self._spread_feeds()

    def _spread_feeds(self) -> None:
        """A parent that feeds two stripes to one child has one connection for them, which gets the
        share of one: such a child changes places with another leaf where that helps both."""
        twice = self._fed_twice()
        for stripe, tree in enumerate(self.parents):
            if not twice:
                return
            feeding = set(tree.values())
            for child in [child for child in tree if child in twice]:
                parent = tree[child]
                if child in feeding or not self._feeds_twice(child, parent, stripe):
                    continue
                for other, feeder in tree.items():
                    if (
                        other not in feeding
                        and feeder not in (child, parent)
                        and parent != other
                        and self.place(other).zone == self.place(child).zone
                        and not self._feeds_twice(child, feeder, stripe)
                        and not self._feeds_twice(other, parent, stripe)
                    ):
                        tree[child], tree[other] = feeder, parent
                        break

    def _fed_twice(self) -> set[HostId]:
        """The members that some parent feeds more than one stripe."""
        return {
            child
            for one, other in combinations(self.parents, 2)
            for child, _ in one.items() & other.items()
        }

    def _feeds_twice(self, child: HostId, parent: HostId, but: int) -> bool:
        """Whether a parent feeds another stripe to the child as well."""
        return any(
            tree.get(child) == parent for stripe, tree in enumerate(self.parents) if stripe != but
        )

    def _zones(self) -> list[list[Place]]:
        zones: dict[str, list[Place]] = {}
        for place in self.places:
            zones.setdefault(place.zone, []).append(place)
        # Whoever may read from the origin first, then the strong ones; else in order of arrival.
        return [
            sorted(zones[zone], key=lambda place: (not place.reads, -place.rank))
            for zone in sorted(zones)
        ]

    def _grow(
        self,
        stripe: int,
        members: list[Place],
        home: list[tuple[Place, int]],
        fed: int,
        before: dict[HostId, HostId],
    ) -> None:
        """Breadth first: those who pass the stripe on near the root, the others as leaves. `fed`:
        other zones that the first one feeds beside its own. `before`: the stripe's tree so far."""
        interior = {place.host_id: number for number, (place, _) in enumerate(home)}
        leaves = [place.host_id for place in members if place.host_id not in interior]
        room = [slots for _, slots in home]
        room[0] = max(1, room[0] - fed)
        # Too little upload for a full share each: one child more for each, from the last on, as
        # often as it takes; all of them are slower then.
        missing = len(members) - 1 - sum(room)
        for number in range(max(0, missing)):
            room[-1 - number % len(room)] += 1
        _hang(self.parents[stripe], before, interior, leaves, room)


def _hang(
    tree: dict[HostId, HostId],
    before: dict[HostId, HostId],
    interior: dict[HostId, int],
    leaves: list[HostId],
    room: list[int],
) -> None:
    """Gives everybody but the root a parent: the one that it had if that has room still, so that a
    change of one member moves few others, else the one nearest the root that has. `interior`: who
    passes the stripe on, with the place in that order; `room`: children that each can have."""
    parents = list(interior)
    at = 0

    def feed(child: HostId, placed: int) -> None:
        # Only who is in the tree already can feed, however little room is there.
        nonlocal at
        while room[at] <= 0 and at + 1 < placed:
            at += 1
        tree[child] = parents[at]
        room[at] -= 1

    def keep(child: HostId, placed: int) -> bool:
        number = interior.get(before.get(child, child), placed)
        if number >= placed or room[number] <= 0:
            return False
        tree[child] = parents[number]
        room[number] -= 1
        return True

    for placed, child in enumerate(parents[1:], start=1):
        if not keep(child, placed):
            feed(child, placed)
    for child in [child for child in leaves if not keep(child, len(parents))]:
        feed(child, len(parents))


def _full_share(rates: list[int]) -> int:
    """The greatest of the rates that, taken for a full share, leaves nearly enough children's
    places for all. Greater ones overload the strong hosts, smaller ones use the weak."""
    counted = Counter(rates)
    for share in sorted(counted, reverse=True):
        slots = sum(STRIPES * rate // share * hosts for rate, hosts in counted.items())
        if slots >= ENOUGH_SLOTS * STRIPES * len(rates):
            return share
    return min(counted)


def _zone_order(zones: list[list[Place]], stripe: int) -> list[int]:
    """The zones as a stripe passes through them: another one first for each stripe, and one that
    may read from the origin."""
    readers = [number for number, members in enumerate(zones) if members[0].reads]
    first = readers[stripe % len(readers)] if readers else stripe % len(zones)
    return [(first + step) % len(zones) for step in range(len(zones))]


def _zones_fed(order: list[int], number: int) -> int:
    """How many other zones a zone feeds."""
    at = order.index(number)
    first_child = at * ZONE_FANOUT + 1
    return max(0, min(len(order), first_child + ZONE_FANOUT) - first_child)


def _homes(members: list[Place], needs: list[int]) -> list[list[tuple[Place, int]]]:
    """By stripe: the members that pass it on, with the children that each gets there. `needs`:
    how many children there are."""
    stripes = len(needs)
    homes: list[list[tuple[Place, int]]] = [[] for _ in range(stripes)]
    if len(members) < stripes:
        for stripe in range(stripes):
            place = members[stripe % len(members)]
            share = -(-stripes // len(members))
            homes[stripe].append((place, max(1, place.slots // share)))
        return homes
    totals = [0] * stripes
    empty = list(range(stripes))
    for place in members:
        if place.slots == 0 and not empty:
            continue
        stripe = empty[0] if empty else totals.index(min(totals))
        homes[stripe].append((place, place.slots))
        totals[stripe] += place.slots
        if empty:
            empty = [number for number in empty if not homes[number]]
    _even_out(homes, [total - need for total, need in zip(totals, needs, strict=True)])
    return homes


def _even_out(homes: list[list[tuple[Place, int]]], over: list[int]) -> None:
    """Lends slots of stripes that have more than they need to those that lack some, from the last
    members on: those have the fewest hosts below them."""
    for short in range(len(homes)):
        for rich in range(len(homes)):
            at = len(homes[rich]) - 1
            while over[short] < 0 < over[rich] and at > 0:
                place, slots = homes[rich][at]
                lent = min(slots, over[rich], -over[short])
                if lent and all(other is not place for other, _ in homes[short]):
                    homes[rich][at] = (place, slots - lent)
                    homes[short].append((place, lent))
                    over[rich] -= lent
                    over[short] += lent
                at -= 1
            homes[rich] = [pair for n, pair in enumerate(homes[rich]) if pair[1] or not n]
