"""Of which hosts of a swarm the others are told where they are and what they hold.

To name everybody to everybody costs as the square of the swarm, and nobody needs it: what half of a
swarm holds, half of any few hundred of its hosts hold. So the first few hundred are listed, a few
of every zone, the roots, and whoever alone has held something for a while. Decides who is listed
and under which number; never when anything is told.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby

from scheduler.core.limits import SchedulerLimits
from shoal.wire.control import Parent
from shoal.wire.ids import HostId
from shoal.wire.limits import DIRECTORY_HOSTS_MAX


@dataclass(slots=True)
class Listing:
    """The directory of one swarm."""

    numbers: dict[HostId, int] = field(default_factory=dict)
    """Of the hosts that are listed now. Numbers are not used twice."""
    hosts: dict[int, Parent] = field(default_factory=dict)
    """The same hosts by number, rising."""
    told: int = 0
    """All numbers below were told to everybody."""
    _next: int = 0
    _zones: dict[str, int] = field(default_factory=dict)
    """By zone: how many of its hosts are listed."""

    def has_room(self, zone: str, limits: SchedulerLimits, *, needed: bool) -> bool:
        """Whether one more host is to be listed. `needed`: the swarm lacks it otherwise."""
        listed = len(self.numbers)
        if listed >= limits.map_hosts_max or self._next >= DIRECTORY_HOSTS_MAX:
            return False
        return (
            needed
            or listed < limits.map_hosts_usual
            or self._zones.get(zone, 0) < limits.map_zone_hosts
        )

    def add(self, host: Parent) -> None:
        """Lists a host under a number of its own."""
        assert host.host_id not in self.numbers
        self.numbers[host.host_id] = self._next
        self.hosts[self._next] = host
        self._next += 1
        self._zones[host.zone] = self._zones.get(host.zone, 0) + 1

    def remove(self, host_id: HostId) -> None:
        """The host is listed no longer."""
        number = self.numbers.pop(host_id, None)
        if number is None:
            return
        zone = self.hosts.pop(number).zone
        self._zones[zone] -= 1
        if not self._zones[zone]:
            del self._zones[zone]

    def news(self) -> list[tuple[int, tuple[Parent, ...]]]:
        """What was not told to everybody yet, as of now told: hosts in runs of numbers, each run
        with its first one."""
        first, self.told = self.told, self._next
        return list(self._runs(first))

    def everything(self) -> list[tuple[int, tuple[Parent, ...]]]:
        """All who are listed, in the same form."""
        return list(self._runs(0))

    def _runs(self, first: int) -> Iterator[tuple[int, tuple[Parent, ...]]]:
        numbers = [number for number in self.hosts if number >= first]
        for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
            pairs = list(run)
            yield pairs[0][1], tuple(self.hosts[number] for _, number in pairs)
