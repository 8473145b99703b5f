"""Models of systems that hand on whole layers: a host serves a layer only once all of it is there.

Facts they rest on: Spegel advertises a layer when containerd has committed it, serves one stream
from one peer per request, asks peers for 20 ms at most three times and then goes to the registry,
so a simultaneous cold start reads the registry once per host. ModelExpress, too, makes a replica a
source only when it is ready. Whole layers cost log2(n) transfers one after the other at best.

`WholeFile` is that best: somebody tells every host whom to wait for, each holder serves one host
at a time at full rate, so holders double each round. Nobody ships this; it is the floor of the
whole family. `Spegel` decides as Spegel does: from a holder if there is one at arrival, else from
the registry. Left out in their favour: lookups cost one round trip, no stream ever fails.
"""

from benchmarks.scale.baselines.swarm import ORIGIN, Swarm


class WholeFile(Swarm):
    """Doubling: every holder and the origin serve one waiting host each."""

    def begin(self) -> None:
        """Seeds hold all layers from the beginning."""
        self.count = len(self.plan.task_sizes)
        everything = set(range(self.count))
        self.held = [set(everything) if host.seed else set() for host in self.hosts]
        self.holders = [sum(host.seed for host in self.hosts)] * self.count
        self.waiting: dict[int, None] = {}
        """Hosts that want something and fetch nothing, in order of arrival."""
        self.serving: dict[int, int] = {}
        """By who serves: whom."""
        self.free: dict[int, None] = dict.fromkeys([ORIGIN] if self.origin_there else [])
        """Holders that serve nobody."""
        for index, host in enumerate(self.hosts):
            if host.seed:
                self.free[index] = None

    def arrive(self, host: int) -> None:
        """Waits for whoever becomes free."""
        if len(self.held[host]) < self.count:
            self.waiting[host] = None
        if self.held[host]:
            self.free[host] = None
        self._match()

    def gone(self, host: int) -> None:
        """Its layers went with it until it is back; what it was fetching is lost."""
        self.waiting.pop(host, None)
        self.free.pop(host, None)
        self.serving.pop(host, None)
        for source in [source for source, child in self.serving.items() if child == host]:
            self._freed(source)
        self._match()

    def _freed(self, source: int) -> None:
        self.serving.pop(source, None)
        if source == ORIGIN or self.present[source]:
            self.free[source] = None

    def _match(self) -> None:
        """Gives each free holder a waiting host, with the layer that the fewest hold."""
        for source in list(self.free):
            for host in self.waiting:
                layer = self._layer_for(source, host)
                if layer is not None and host != source:
                    del self.free[source], self.waiting[host]
                    self.serving[source] = host
                    self._send(source, host, layer)
                    break

    def _layer_for(self, source: int, host: int) -> int | None:
        offered = range(self.count) if source == ORIGIN else sorted(self.held[source])
        useful = [layer for layer in offered if layer not in self.held[host]]
        return min(useful, key=lambda layer: (self.holders[layer], layer), default=None)

    def _send(self, source: int, host: int, layer: int) -> None:
        def done() -> None:
            self.held[host].add(layer)
            self.holders[layer] += 1
            self._freed(source)
            if host not in self.serving:
                self.free[host] = None
            if len(self.held[host]) < self.count:
                self.waiting[host] = None
            self.gained(host, self.plan.task_sizes[layer])
            self._match()

        def lost() -> None:
            self.waiting[host] = None
            self._match()

        self.fetch(source, host, self.plan.task_sizes[layer], done, lost)


class Spegel(Swarm):
    """From a holder if there is one when a host asks, else from the registry."""

    def begin(self) -> None:
        """Seeds hold all layers from the beginning."""
        seeds = [index for index, host in enumerate(self.hosts) if host.seed]
        self.holders: list[dict[int, None]] = [dict.fromkeys(seeds) for _ in self.plan.task_sizes]

    def arrive(self, host: int) -> None:
        """Asks for every layer that it does not hold, all at once."""
        for layer in range(len(self.holders)):
            if host not in self.holders[layer]:
                self._ask(host, layer)

    def gone(self, host: int) -> None:
        """Committed layers survive on its disk; `arrive` finds them there."""

    def _ask(self, host: int, layer: int) -> None:
        there = [holder for holder in self.holders[layer] if self.present[holder]]
        if not there and not self.origin_there:
            return
        size = self.plan.task_sizes[layer]

        def done() -> None:
            self.holders[layer][host] = None
            self.gained(host, size)

        # A broken stream is asked for again, from the beginning of the layer.
        source = self.dice.choice(there) if there else ORIGIN
        self.fetch(source, host, size, done, lambda: self._ask(host, layer), round_trips=2)
