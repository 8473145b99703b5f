"""A model of no distribution at all: every host reads everything from the origin.

One stream per layer and host, all at once, sharing the origin fairly. What every system is when
nobody holds anything yet and nobody coordinates.
"""

from benchmarks.scale.baselines.swarm import ORIGIN, Swarm


class OriginOnly(Swarm):
    """All hosts at the origin."""

    def arrive(self, host: int) -> None:
        """Reads each layer in one stream; after a crash, from its beginning."""
        if not self.origin_there:
            return
        self.left_bytes[host] = self.plan.size_bytes
        for size in self.plan.task_sizes:
            self.fetch(
                ORIGIN,
                host,
                size,
                lambda size=size: self.gained(host, size),  # type: ignore[misc]
                lambda: None,
            )
