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

    def mirror(self, help: str, read: Callable[[], Mapping[str, int]]) -> None:
        """Shows numbers that are kept elsewhere (in a core), read when somebody scrapes. Names
        that end in `_total` become counters, all others gauges."""
        self._registry.register(_Mirror(self._prefix, help, read))

    def render(self) -> bytes:
        """All metrics as `CONTENT_TYPE`."""
        return generate_latest(self._registry)


class _Mirror(Collector):
    def __init__(self, prefix: str, help: str, read: Callable[[], Mapping[str, int]]) -> None:
        self._prefix = prefix
        self._help = help
        self._read = read

    def collect(self) -> Iterable[Metric]:
        """The present numbers."""
        for name, value in self._read().items():
            family = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            words = name.removesuffix("_total").replace("_", " ")
            yield family(self._prefix + name, f"{self._help}: {words}", value=value)
