"""Which links a transfer passes: of hosts, racks, zones and the origin. Moves no bytes itself."""

from typing import TYPE_CHECKING

from benchmarks.sim.fluid import FluidNetwork
from benchmarks.sim.options import HostSpec, WorldOptions

if TYPE_CHECKING:
    from benchmarks.sim.base import NodeBase


class Topology:
    """The links of a world, as numbers of its network."""

    def __init__(self, network: FluidNetwork, options: WorldOptions) -> None:
        self._network = network
        self.origin_link = network.add_link(options.origin_spec().rate_bytes_s)
        add = network.add_link
        self.zones = [(add(zone.in_bytes_s), add(zone.out_bytes_s)) for zone in options.zones]
        """The links (in, out) of each zone."""
        self.racks = [(add(rack.in_bytes_s), add(rack.out_bytes_s)) for rack in options.racks]

    def add_host(self, spec: HostSpec) -> tuple[int, int]:
        """A host's own links: up and down."""
        return self._network.add_link(spec.up_bytes_s), self._network.add_link(spec.down_bytes_s)

    def path(self, sender: "NodeBase", receiver: "NodeBase") -> tuple[int, ...]:
        """The links between two hosts."""
        here, there = sender.spec, receiver.spec
        links = [sender.up_link]
        other_rack = here.rack != there.rack or here.zone != there.zone
        other_zone = here.zone != there.zone
        if other_rack and here.rack is not None:
            links.append(self.racks[here.rack][1])
        if other_zone and here.zone is not None:
            links.append(self.zones[here.zone][1])
        if other_zone and there.zone is not None:
            links.append(self.zones[there.zone][0])
        if other_rack and there.rack is not None:
            links.append(self.racks[there.rack][0])
        links.append(receiver.down_link)
        return tuple(links)

    def origin_path(self, reader: "NodeBase") -> tuple[int, ...]:
        """The links between the origin and a host."""
        links = [self.origin_link]
        if reader.spec.zone is not None:
            links.append(self.zones[reader.spec.zone][0])
        if reader.spec.rack is not None:
            links.append(self.racks[reader.spec.rack][0])
        links.append(reader.down_link)
        return tuple(links)


def bound_s(options: WorldOptions) -> float:
    """The fluid minimum time of a run: origin, slowest way into a host, sum of all uploads, and a
    copy through the cut around each zone and rack."""
    hosts = options.host_specs()
    size = sum(options.sizes())
    spec = options.origin_spec()
    origin = min(spec.rate_bytes_s, spec.per_connection_bytes_s * spec.connections_max)
    terms = [size / origin]
    terms += [
        size / min(host.down_bytes_s, options.hash_bytes_s, options.disk_bytes_s) for host in hosts
    ]
    terms.append(len(hosts) * size / (origin + sum(host.up_bytes_s for host in hosts)))
    lived_in = {(host.zone, host.rack) for host in hosts}
    zones = {zone for zone, _ in lived_in if zone is not None}
    racks = {rack for _, rack in lived_in if rack is not None}
    terms += [size / options.zones[zone].in_bytes_s for zone in zones]
    terms += [size / options.racks[rack].in_bytes_s for rack in racks]
    return max(terms)
