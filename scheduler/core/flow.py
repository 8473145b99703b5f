"""How fast a swarm really flows, host by host: whose upload is worth fewer children than it was
given. Decides slots from what hosts report to hold; never moves anybody itself.

A host that takes in less than half of what the others do, although most of its parents have more
for it, is slow: it feeds nobody. One that is behind together with its parents is not. A parent that
is ahead of all its children in the stripe that it feeds them, and does not bring them what the
swarm's stripes bring, is as good as what it does bring. Both are told to nobody beforehand, and
both are looked at again after a while.
"""

from dataclasses import dataclass, field

from scheduler.core.overlay import STRIPES, Overlay, Place
from shoal.wire.ids import HostId
from shoal.wire.limits import SECOND_NS

WINDOW_NS = 1 * SECOND_NS
"""Over which progress is measured at least."""

WINDOW_NS_MAX = 8 * SECOND_NS

UNITS_MIN = 24
"""Units that the median host must have taken in within a window: six of each stripe. Of fewer it
would be chance which host has half of what the others have. A window lasts until there are so many;
one in which there never are says nothing."""

SLOW_SHARE = 0.5
BEHIND_UNITS = 2
"""So far behind its parent a child waits for that parent, not for what the parent waits for."""

PROBATION_NS = 15 * SECOND_NS
"""After so long a slow host is tried again."""


@dataclass(slots=True)
class Flow:
    """Progress of one swarm, counted in units by stripe."""

    counts: dict[HostId, list[int]] = field(default_factory=dict)
    before: dict[HostId, list[int]] = field(default_factory=dict)
    since_ns: int = 0
    stripes: int = 0
    slowed: dict[HostId, int] = field(default_factory=dict)
    """When each host's slots were last lowered."""
    trees: list[list[dict[HostId, HostId]]] = field(default_factory=list)
    """Who fed whom when it was last judged, and the time before that."""

    def took_in(self, host_id: HostId, by_stripe: list[int]) -> None:
        """A host holds so many more units."""
        if len(by_stripe) != self.stripes:
            # Units are dealt out otherwise now: only what comes from here on can be compared.
            self.stripes = len(by_stripe)
            self.restart()
        counts = self.counts.setdefault(host_id, [0] * self.stripes)
        for stripe, more in enumerate(by_stripe):
            counts[stripe] += more

    def restart(self) -> None:
        """What was counted before cannot be compared with what comes."""
        self.counts.clear()
        self.before.clear()

    def forget(self, host_id: HostId) -> None:
        """A host is gone, or begins anew."""
        self.counts.pop(host_id, None)
        self.before.pop(host_id, None)
        self.slowed.pop(host_id, None)

    def judge(self, overlay: Overlay, now_ns: int, fetching: dict[HostId, None]) -> None:
        """Looks at the window that ends now, if it is long enough, and sets slots."""
        if now_ns - self.since_ns < WINDOW_NS or len(overlay.parents) < STRIPES:
            return
        gained = self._gained(overlay, fetching)
        totals = sorted(sum(gains) for gains in gained.values())
        median = totals[len(totals) // 2] if totals else 0
        is_clear = median >= UNITS_MIN
        are_most = 0 < len(fetching) <= 2 * len(gained)
        if not is_clear and are_most and now_ns - self.since_ns < WINDOW_NS_MAX:
            return
        self.before = {host_id: list(counts) for host_id, counts in self.counts.items()}
        self.since_ns = now_ns
        if not is_clear:
            return
        for host_id, gains in gained.items():
            place = overlay.place(host_id)
            slow = sum(gains) < SLOW_SHARE * median * _fair_share(place)
            if place.slots and slow and self._lags_by_itself(overlay, host_id):
                self.lower(overlay, host_id, 0, now_ns)
            elif not place.slots and self._is_over(host_id, now_ns) and sum(gains) > median // 2:
                del self.slowed[host_id]
                overlay.value(host_id, STRIPES)
        # A host that takes in little of everything says nothing about those who feed it.
        fit = {
            host_id: gains
            for host_id, gains in gained.items()
            if sum(gains) >= SLOW_SHARE * median * _fair_share(overlay.place(host_id))
        }
        self._judge_parents(overlay, fit, median / STRIPES, now_ns)

    def _gained(self, overlay: Overlay, fetching: dict[HostId, None]) -> dict[HostId, list[int]]:
        """What those who were there all the window took in, by stripe."""
        return {
            host_id: [now - then for now, then in zip(self.counts[host_id], before, strict=True)]
            for host_id, before in self.before.items()
            if host_id in overlay and host_id in fetching and host_id in self.counts
        }

    def _lags_by_itself(self, overlay: Overlay, host_id: HostId) -> bool:
        """Whether most of a host's parents have more for it than it takes in. Where they lack it
        too, the fault is above them."""
        mine = self.counts[host_id]
        ahead = [
            self.counts[parent][stripe] - mine[stripe] >= BEHIND_UNITS
            for stripe, tree in enumerate(overlay.parents)
            # One that had everything from the start was never counted.
            if (parent := tree.get(host_id)) is not None and parent in self.counts
        ]
        return 2 * sum(ahead) >= len(ahead)

    def _is_over(self, host_id: HostId, now_ns: int) -> bool:
        return host_id in self.slowed and now_ns - self.slowed[host_id] >= PROBATION_NS

    def lower(self, overlay: Overlay, host_id: HostId, slots: int, now_ns: int) -> None:
        """A host turned out to be worth fewer children."""
        self.slowed[host_id] = now_ns
        overlay.value(host_id, slots)

    def _judge_parents(
        self, overlay: Overlay, gained: dict[HostId, list[int]], usual: float, now_ns: int
    ) -> None:
        # After a change of parents all have to make up for the time that it took.
        trees, self.trees = self.trees, [overlay.parents, *self.trees[:1]]
        if len(trees) < 2:
            return
        for stripe, tree in enumerate(overlay.parents):
            children: dict[HostId, list[HostId]] = {}
            for child, parent in tree.items():
                lasting = all(before[stripe].get(child) == parent for before in trees)
                if lasting and child in gained and parent in self.counts:
                    children.setdefault(parent, []).append(child)
            for parent, fed in children.items():
                if parent not in overlay or self.slowed.get(parent, -PROBATION_NS) > (
                    now_ns - 3 * WINDOW_NS
                ):
                    continue
                ahead = self.counts[parent][stripe]
                if any(ahead - self.counts[child][stripe] < BEHIND_UNITS for child in fed):
                    continue
                brought = sum(
                    gained[child][stripe] / (usual * _fair_share(overlay.place(child)))
                    for child in fed
                )
                place = overlay.place(parent)
                if brought < SLOW_SHARE * len(fed) and int(brought) < place.slots:
                    self.lower(overlay, parent, int(brought), now_ns)


def _fair_share(place: Place) -> float:
    """What a host may be expected to take in, as a part of what others do: one whose links are
    slower by what it told does what it can."""
    return min(1.0, place.rank / STRIPES) if place.rank else 1.0
