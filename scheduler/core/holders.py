"""Hosts that have all of a collection already, as sources for those whom no tree feeds well.

Who has everything is as good as the origin, and costs it nothing: the roots of the trees are fed by
such hosts, each stripe by one of them, so that each byte leaves them once. Where a tree would cross
into a zone that has one, it feeds the zone's head instead. Decides which host feeds whom; knows
nothing of messages.
"""

from dataclasses import dataclass, field

from scheduler.core.overlay import STRIPES, Overlay
from scheduler.core.state import Collection, Host, SchedulerState
from shoal.wire.ids import HostId

LOOKED_AT_MAX = 256
"""Hosts that are looked at. Of more, any few will do."""

PER_ZONE_MAX = STRIPES
"""Sources of one zone: each of them is to feed a stripe at least."""

SHARES_MAX = 16
"""Parts into which the stripes' sources are dealt by their rates, at most."""


def is_complete(state: SchedulerState, collection: Collection, host_id: HostId) -> bool:
    """Whether a host has all that is known of a collection, and nobody doubts it. O(tasks)."""
    for _, task in state.tasks_of(collection):
        geometry = task.descriptor.geometry
        held = task.holders.get(host_id, 0) & ~task.doubted.get(host_id, 0)
        if geometry.size_bytes is None or geometry.all_pieces & ~held:
            return False
    return True


@dataclass(slots=True)
class Holders:
    """The sources of one swarm, as of one look."""

    hosts: dict[HostId, str] = field(default_factory=dict)
    """With their zones."""
    _shares: list[HostId] = field(default_factory=list)
    """By turn: who feeds it. The faster, the more turns."""
    _by_zone: dict[str, list[HostId]] = field(default_factory=dict)

    def may_change(self, host: Host, complete: bool) -> bool:
        """Whether what became of a host outside the trees calls for another look."""
        if host.host_id in self.hosts:
            return not complete
        known = dict.fromkeys(self._by_zone.get(host.info.zone, ()))
        return complete and len(known) < PER_ZONE_MAX

    def feeds(
        self, overlay: Overlay, host_id: HostId, feeds: tuple[HostId, ...]
    ) -> tuple[HostId, ...]:
        """The parents of a member by stripe, with sources for the ones that it lacks and for those
        in other zones."""
        if not self.hosts or not feeds or host_id in self.hosts:
            return feeds
        zone = overlay.place(host_id).zone
        near = self._by_zone.get(zone, [])
        fed = []
        for stripe, feed in enumerate(feeds):
            if not feed:
                shares = near or self._shares
                feed = shares[stripe % len(shares)]
            elif near and not (feed in overlay and overlay.place(feed).zone == zone):
                feed = near[stripe % len(near)]
            fed.append(feed)
        return tuple(fed)


def look_for_holders(state: SchedulerState, collection: Collection, overlay: Overlay) -> Holders:
    """Finds them. Those who are in no tree come first, since nothing else takes of their upload;
    others only where there are none."""
    tasks = [task for _, task in state.tasks_of(collection)]
    if len(tasks) < len(collection.sources) or not tasks:
        return Holders()
    rarest = min(tasks, key=lambda task: len(task.holders))
    # Another first one for each collection: several swarms don't all take from the same.
    candidates = list(rarest.holders)
    first = int(collection.collection_id[-8:], 16) % max(1, len(candidates))
    outside: list[Host] = []
    inside: list[Host] = []
    per_zone: dict[str, int] = {}
    for host_id in [*candidates[first:], *candidates[:first]][:LOOKED_AT_MAX]:
        host = state.hosts.get(host_id)
        if host is None or host.session is None:
            continue
        is_inside = host_id in overlay
        found = len(inside) if is_inside else per_zone.get(host.info.zone, 0)
        # Each look is as long as the collection: no more of them than are needed.
        if found >= PER_ZONE_MAX or (is_inside and outside):
            continue
        if not is_complete(state, collection, host_id):
            continue
        if is_inside:
            inside.append(host)
        else:
            per_zone[host.info.zone] = found + 1
            outside.append(host)
    chosen = outside or inside
    by_zone: dict[str, list[Host]] = {}
    for host in outside:
        by_zone.setdefault(host.info.zone, []).append(host)
    return Holders(
        hosts={host.host_id: host.info.zone for host in chosen},
        _shares=_shares(chosen),
        _by_zone={zone: _shares(hosts) for zone, hosts in by_zone.items()},
    )


def _shares(hosts: list[Host]) -> list[HostId]:
    """Turns of hosts by their rates: whoever has had the least for what it can do is next."""
    if not hosts:
        return []
    usual = max((host.info.upload_rate_bytes_s for host in hosts), default=0) or 1
    rates = [host.info.upload_rate_bytes_s or usual for host in hosts]
    turns = [0] * len(hosts)
    shares = []
    for _ in range(min(SHARES_MAX, STRIPES * len(hosts))):
        number = min(range(len(hosts)), key=lambda at: ((turns[at] + 1) / rates[at], at))
        turns[number] += 1
        shares.append(hosts[number].host_id)
    return shares
