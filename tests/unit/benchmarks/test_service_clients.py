"""The process that plays hosts: what it makes of a host that fails."""

import pytest

from benchmarks.scale.service_clients import Crowd
from benchmarks.scale.service_hosts import Host, Plan
from benchmarks.scale.service_streams import Listener
from benchmarks.scale.service_words import Track

STEADY = {
    "seconds": 0.01,
    "warm_up_s": 0.0,
    "report_min_ms": 1,
    "report_max_ms": 1,
    "task_s": 1.0,
    "processes": 1,
}


class Silent:
    """A stream that carries nothing."""

    def say(self, batch: bytes) -> None:
        pass

    async def close(self) -> None:
        pass


def silent(_address: str, _listener: Listener) -> Silent:
    return Silent()


class Broken(Host):
    """A host that ends as nobody expects."""

    async def steady(self, track: Track, plan: Plan) -> None:
        raise KeyError(self.number)


async def test_a_host_that_breaks_ends_the_measurement() -> None:
    crowd = Crowd("127.0.0.1:1", silent)
    for kind in (Host, Broken):
        crowd.hosts.append(kind(0, "127.0.0.1:1", silent, lambda: None))
    with pytest.raises(KeyError):
        await crowd.steady(STEADY)
