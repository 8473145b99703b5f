"""Prometheus metrics of one daemon: a registry of its own, so that two daemons in one process (an
embedded scheduler, tests) never share a number. Decides nothing.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""Of Prometheus' text exposition format 0.0.4, which `render` writes."""


class Metrics:
    """A daemon's metrics. Names get the prefix `shoal_<daemon>_`; counters end in `_total`."""

    def __init__(self, daemon: str, *, process: bool = True) -> None:
        self._prefix = f"shoal_{daemon}_"
        self._registry = CollectorRegistry(auto_describe=False)
        if process:
            ProcessCollector(registry=self._registry)

    def counter(self, name: str, help: str, labels: Sequence[str] = ()) -> Counter:
        """A number that only rises."""
        return Counter(self._prefix + name, help, labels, registry=self._registry)

    def gauge(self, name: str, help: str, labels: Sequence[str] = ()) -> Gauge:
        """A number that rises and falls."""
        return Gauge(self._prefix + name, help, labels, registry=self._registry)

    def histogram(
        self, name: str, help: str, buckets: Sequence[float], labels: Sequence[str] = ()
    ) -> Histogram:
        """A distribution, counted in buckets."""
        return Histogram(
            self._prefix + name, help, labels, registry=self._registry, buckets=buckets
        )

    def mirror_counters(self, help: str, read: Callable[[], Mapping[str, int]]) -> None:
        """Shows numbers that are counted elsewhere (in a core), read when somebody scrapes. Each
        name becomes a counter."""
        self._registry.register(_Mirror(self._prefix, help, read, CounterMetricFamily))

    def mirror_gauges(self, help: str, read: Callable[[], Mapping[str, int]]) -> None:
        """The same for numbers that rise and fall."""
        self._registry.register(_Mirror(self._prefix, help, read, GaugeMetricFamily))

    def render(self) -> bytes:
        """All metrics as `CONTENT_TYPE`."""
        return generate_latest(self._registry)


class _Mirror(Collector):
    def __init__(
        self,
        prefix: str,
        help: str,
        read: Callable[[], Mapping[str, int]],
        family: type[CounterMetricFamily] | type[GaugeMetricFamily],
    ) -> None:
        self._prefix = prefix
        self._help = help
        self._read = read
        self._family = family

    def collect(self) -> Iterable[Metric]:
        """The present numbers."""
        for name, value in self._read().items():
            key = self._prefix + name.replace("-", "_").replace(".", "_")
            yield self._family(key, f"{self._help}: {name}", value=value)
