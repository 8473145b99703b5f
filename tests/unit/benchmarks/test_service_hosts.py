"""A host of the service benchmark: what it counts, answers and reads of what it hears."""

from benchmarks.scale import service_words as words
from benchmarks.scale.service_hosts import Host
from benchmarks.scale.service_streams import Listener
from shoal.runtime.control_codec import encode_scheduler_batch
from shoal.wire.control import (
    Described,
    Lease,
    Leases,
    ReportInterval,
    SchedulerMessage,
    StatWanted,
    TaskDescriptor,
    Welcome,
)
from shoal.wire.ids import LeaseNumber

DESCRIBED = Described(
    collection_id=words.COLLECTION_ID,
    source_id=words.SOURCE_ID,
    descriptor=TaskDescriptor(
        task_id=words.TASK_ID,
        source_id=words.SOURCE_ID,
        geometry=words.GEOMETRY,
        digest=words.DIGEST,
        validator=None,
        ranges=True,
    ),
)


class Said:
    """A stream that remembers what it is given."""

    def __init__(self) -> None:
        self.batches: list[bytes] = []

    def say(self, batch: bytes) -> None:
        self.batches.append(batch)

    async def close(self) -> None:
        pass


class Scene:
    """A host, its stream, and how often it said that it got its first reply."""

    def __init__(self) -> None:
        self.said = Said()
        self.described = 0
        self.host = Host(7, "127.0.0.1:1", self._connect, self._count)

    def _connect(self, _address: str, _listener: Listener) -> Said:
        return self.said

    def _count(self) -> None:
        self.described += 1


def batch_of(*messages: SchedulerMessage) -> bytes:
    return encode_scheduler_batch(messages).SerializeToString()


def lease(number: int) -> Lease:
    return Lease(
        number=LeaseNumber(number),
        task_id=words.TASK_ID,
        epoch=1,
        first_piece=8,
        piece_count=3,
        ttl_ms=1000,
    )


def test_a_host_is_welcome_and_keeps_the_pace_it_is_told() -> None:
    host = Scene().host
    host.heard(batch_of(Welcome(scheduler_id="s", version=1, report_interval_ms=250)))
    assert host.welcomed.is_set()
    assert host.interval_ms == 250
    host.heard(batch_of(ReportInterval(report_interval_ms=500)))
    assert host.interval_ms == 500


def test_the_first_reply_counts() -> None:
    scene = Scene()
    welcome = batch_of(Welcome(scheduler_id="s", version=1, report_interval_ms=250))
    reply = batch_of(DESCRIBED, Leases(granted=(lease(1), lease(2))))
    for batch in (welcome, reply, batch_of(DESCRIBED)):
        scene.host.heard(batch)
    assert scene.described == 1
    assert scene.host.described_s is not None
    assert scene.host.described_batch_bytes == len(reply)
    assert scene.host.described_after_bytes == len(welcome) + len(reply)
    assert scene.host.batches_received == 3
    assert scene.host.leases == [(lease(1), [8, 9, 10]), (lease(2), [8, 9, 10])]
    scene.host.heard(batch_of(Leases(revoked=(LeaseNumber(1),))))
    assert scene.host.leases == [(lease(2), [8, 9, 10])]


def test_a_host_that_is_asked_tells_of_the_origin() -> None:
    scene = Scene()
    scene.host.heard(batch_of(StatWanted(source_id=words.SOURCE_ID)))
    assert scene.said.batches == [words.stat_batch()]


def test_a_host_that_hears_nonsense_is_lost() -> None:
    host = Scene().host
    host.heard(batch_of(Leases(granted=(lease(1),)))[:-3])
    assert host.lost.startswith("protocol error")
    assert host.welcomed.is_set()
    host.lose("something else")
    assert host.lost.startswith("protocol error")
