"""Random lives of a small swarm against one scheduler core.

Hosts come, go, repeat themselves, speak on stale streams and lie; behind every event all
invariants must hold, among them that no piece has two live leases.
"""

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from scheduler.core import events as ev
from scheduler.core.limits import SchedulerLimits
from scheduler.core.state import Task
from shoal.runtime.control_codec import decode_scheduler_batch, encode_scheduler_batch
from shoal.wire import bitfield
from shoal.wire import control as msg
from shoal.wire.errors import Reason
from shoal.wire.ids import HostId, LeaseNumber
from shoal.wire.limits import SECOND_NS
from tests.unit.scheduler.core_rig import (
    DIGEST_SOURCE,
    DIGEST_TASK,
    PIECE_BYTES,
    URL_SOURCE,
    Rig,
    descriptor_of,
    digest_of,
    join_of,
    member,
)

PIECES = 6
HOSTS = st.sampled_from(["a", "b", "c", "d"])
MASKS = st.integers(0, (1 << PIECES) - 1)
OUTCOMES = st.sampled_from(
    [
        None,
        Reason.CANCELLED,
        Reason.ORIGIN_BUSY,
        Reason.ORIGIN_FAILED,
        Reason.ORIGIN_FORBIDDEN,
        Reason.ORIGIN_CHANGED,
    ]
)
LIMITS = SchedulerLimits(
    hosts_max=3,
    collections_per_host_max=1,
    parents_max=2,
    map_hosts_max=2,
    verdict_ttl_ns=20 * SECOND_NS,
    stat_ttl_ns=5 * SECOND_NS,
    token_ttl_ns=60 * SECOND_NS,
    digests_per_message_max=2,
)


class Swarm(RuleBasedStateMachine):
    """Four hosts of which three find room, one digest and one plain URL."""

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig(LIMITS)
        self.granted: dict[LeaseNumber, tuple[str, msg.Lease]] = {}
        self.epochs: list[tuple[Task, int]] = []
        """The last one seen of each task; one that is forgotten begins anew."""

    def _send(self, name: str, *messages: msg.HostMessage) -> None:
        session = self.rig.sessions.get(name)
        if session is not None:
            self.rig.send_on(session, *messages)
        self._collect()

    def _collect(self) -> None:
        for name in self.rig.sessions:
            for lease in self.rig.granted(name):
                assert lease.number not in self.granted, "a lease number is used twice"
                self.granted[lease.number] = (name, lease)

    def _some_lease(self, draw: st.DataObject) -> tuple[str, msg.Lease] | None:
        """One that is live if there is any, else an old one."""
        live = sorted(number for number in self.granted if number in self.rig.engine.state.leases)
        numbers = (
            live
            if live and draw.draw(st.sampled_from([True, True, True, False]))
            else sorted(self.granted)
        )
        return self.granted[draw.draw(st.sampled_from(numbers))] if numbers else None

    # ------------------------------------------------------------ coming and going

    @rule(
        name=HOSTS,
        generation=st.integers(1, 2),
        held=MASKS,
        sealed=st.booleans(),
        epoch=st.sampled_from([1, 1, 1, 2, 3, 99]),
        number=st.integers(1, 3),
        reading=MASKS,
        port=st.integers(1, 2),
    )
    def connect(
        self,
        name: str,
        generation: int,
        held: int,
        sealed: bool,
        epoch: int,
        number: int,
        reading: int,
        port: int,
    ) -> None:
        everything = (1 << PIECES) - 1
        holding = msg.Holding(
            descriptor=descriptor_of(PIECES, epoch=epoch),
            held=everything if sealed else held,
            sealed=sealed,
        )
        self.rig.connect(
            name,
            generation=generation,
            port=port,
            upload_rate_bytes_s=number * 1_000_000 if sealed else 0,
            holdings=(holding,) if held else (),
            leases=(
                msg.HeldLease(number=LeaseNumber(number), task_id=DIGEST_TASK, pieces=reading),
            ),
        )
        self._collect()

    @initialize(url=st.booleans(), anonymous=st.booleans())
    def two_hosts_want_the_same(self, url: bool, anonymous: bool) -> None:
        for name in "ab":
            self.rig.connect(name, join_of(member(url=url, anonymous=anonymous)))

    @rule(name=HOSTS, url=st.booleans(), anonymous=st.booleans())
    def come_with_nothing(self, name: str, url: bool, anonymous: bool) -> None:
        self.rig.connect(name, join_of(member(url=url, anonymous=anonymous)), generation=2)
        self._collect()

    @rule(name=HOSTS)
    def disconnect(self, name: str) -> None:
        if name in self.rig.sessions:
            self.rig.disconnect(name)

    @rule(name=HOSTS, draw=st.data())
    def speak_on_a_stale_stream(self, name: str, draw: st.DataObject) -> None:
        session = draw.draw(st.integers(0, max(self.rig.sessions.values(), default=0)))
        url = draw.draw(st.booleans())
        self.rig.send_on(session, join_of(member(url=url)))
        if draw.draw(st.booleans()):
            self.rig.handle(ev.HostDisconnected(now_ns=self.rig.now_ns, session=session))
        self._collect()

    @rule(name=HOSTS, url=st.booleans(), anonymous=st.booleans(), allowed=st.booleans())
    def join(self, name: str, url: bool, anonymous: bool, allowed: bool) -> None:
        self._send(name, join_of(member(url=url, anonymous=anonymous, origin_allowed=allowed)))

    @rule(name=HOSTS, url=st.booleans())
    def leave(self, name: str, url: bool) -> None:
        self._send(name, msg.Leave(collection_id=self.rig.collection(url=url)))

    # ------------------------------------------------------------ the origin

    @rule(
        anonymous=st.booleans(),
        ranges=st.sampled_from([True, True, True, False]),
        size=st.sampled_from([PIECES, PIECES, PIECES, None]),
        validator=st.sampled_from(["1", "1", "2"]),
    )
    def accept_all_who_were_asked(
        self, anonymous: bool, ranges: bool, size: int | None, validator: str
    ) -> None:
        for name in self.rig.sessions:
            for wanted in self.rig.got(name, msg.StatWanted):
                answer = msg.StatAnswer(
                    source_id=wanted.source_id,
                    outcome=None,
                    size_bytes=None if size is None else size * PIECE_BYTES,
                    validator=validator,
                    ranges=ranges,
                    anonymous=anonymous,
                )
                self._send(name, answer)

    @rule(
        name=HOSTS,
        url=st.booleans(),
        outcome=OUTCOMES,
        size=st.sampled_from([None, PIECES, PIECES, PIECES, PIECES - 1]),
        validator=st.sampled_from(["1", "2"]),
        ranges=st.booleans(),
        anonymous=st.booleans(),
    )
    def answer(
        self,
        name: str,
        url: bool,
        outcome: Reason | None,
        size: int | None,
        validator: str,
        ranges: bool,
        anonymous: bool,
    ) -> None:
        answer = msg.StatAnswer(
            source_id=URL_SOURCE if url else DIGEST_SOURCE,
            outcome=outcome,
            size_bytes=None if size is None else size * PIECE_BYTES,
            validator=validator,
            ranges=ranges,
            anonymous=anonymous,
        )
        self._send(name, answer)

    # ------------------------------------------------------------ reports

    @rule(draw=st.data(), salt=st.sampled_from(["", "", "x"]), twice=st.booleans())
    def read(self, draw: st.DataObject, salt: str, twice: bool) -> None:
        chosen = self._some_lease(draw)
        if chosen is None:
            return
        name, lease = chosen
        count = lease.piece_count or PIECES - lease.first_piece
        span = range(lease.first_piece, lease.first_piece + count)
        report = msg.Report(
            statements=tuple(
                msg.Statement(
                    lease.task_id, lease.epoch, piece, digest_of(piece, salt), lease.number
                )
                for piece in span
            ),
            progress=(
                msg.Progress(
                    task_id=lease.task_id,
                    epoch=lease.epoch,
                    new=bitfield.mask_of(lease.first_piece, count),
                ),
            ),
            lease_ends=(msg.LeaseEnd(number=lease.number, task_id=lease.task_id, outcome=None),),
        )
        self._send(name, *((report, report) if twice else (report,)))

    @rule(draw=st.data(), name=HOSTS, own=st.booleans(), outcome=OUTCOMES)
    def end_a_lease(
        self, draw: st.DataObject, name: str, own: bool, outcome: Reason | None
    ) -> None:
        chosen = self._some_lease(draw)
        if chosen is None:
            return
        owner, lease = chosen
        end = msg.LeaseEnd(number=lease.number, task_id=lease.task_id, outcome=outcome)
        self._send(owner if own else name, msg.Report(lease_ends=(end,)))

    @rule(draw=st.data(), size=st.integers(1, PIECES * PIECE_BYTES))
    def find_the_size(self, draw: st.DataObject, size: int) -> None:
        chosen = self._some_lease(draw)
        if chosen is not None:
            name, lease = chosen
            found = msg.SizeFound(task_id=lease.task_id, lease_number=lease.number, size_bytes=size)
            self._send(name, found)

    @rule(draw=st.data(), name=HOSTS, new=MASKS, lost=MASKS, epoch=st.integers(1, 3))
    def progress(self, draw: st.DataObject, name: str, new: int, lost: int, epoch: int) -> None:
        tasks = sorted(self.rig.engine.state.tasks) or [DIGEST_TASK]
        progress = msg.Progress(
            task_id=draw.draw(st.sampled_from(tasks)), epoch=epoch, new=new, lost=lost & ~new
        )
        self._send(name, msg.Report(progress=(progress,)))

    @rule(
        name=HOSTS,
        other=HOSTS,
        piece=st.integers(0, PIECES - 1),
        reason=st.sampled_from([Reason.PEER_CORRUPT, Reason.PEER_STALLED]),
    )
    def blame(self, name: str, other: str, piece: int, reason: Reason) -> None:
        blame = msg.Blame(host_id=HostId(other), task_id=DIGEST_TASK, piece=piece, reason=reason)
        self._send(name, msg.Report(blames=(blame,)))

    @rule(draw=st.data(), name=HOSTS, epoch=st.integers(1, 3), passed=st.booleans())
    def check(self, draw: st.DataObject, name: str, epoch: int, passed: bool) -> None:
        tasks = sorted(self.rig.engine.state.tasks) or [DIGEST_TASK]
        task_id = draw.draw(st.sampled_from(tasks))
        self._send(
            name, msg.Checked(task_id=task_id, epoch=epoch, passed=passed, digest="sha256:00")
        )

    @rule(name=HOSTS, generation=st.integers(1, 2))
    def withdraw(self, name: str, generation: int) -> None:
        self._send(name, msg.Withdrawn(task_id=DIGEST_TASK, generation=generation))

    @rule(name=HOSTS, first=st.integers(0, PIECES))
    def list_digests(self, name: str, first: int) -> None:
        digests = (digest_of(first), b"", digest_of(first + 2))
        self._send(
            name,
            msg.DigestList(task_id=DIGEST_TASK, epoch=1, first_piece=first, digests=digests),
        )

    @rule(name=HOSTS)
    def count_holders(self, name: str) -> None:
        tasks = (*sorted(self.rig.engine.state.tasks), DIGEST_TASK)
        self._send(name, msg.HoldersWanted(number=1, task_ids=tasks))
        answers = self.rig.got(name, msg.HolderCounts) if name in self.rig.sessions else []
        # Whoever reads them closes a stream on which they make no sense.
        assert decode_scheduler_batch(encode_scheduler_batch(answers)) == tuple(answers)

    # ------------------------------------------------------------ time

    @rule(seconds=st.sampled_from([0.02, 0.5, 2.0, 11.0, 31.0]))
    def wait(self, seconds: float) -> None:
        self.rig.wait(seconds)
        self._collect()

    @rule(seconds=st.sampled_from([0.5, 12.0]))
    def time_passes_without_a_tick(self, seconds: float) -> None:
        self.rig.now_ns += int(seconds * SECOND_NS)

    # ------------------------------------------------------------ what must hold

    @invariant()
    def no_piece_has_two_leases(self) -> None:
        leased: dict[str, int] = {}
        for lease in self.rig.engine.state.leases.values():
            assert not leased.get(lease.task_id, 0) & lease.pieces
            leased[lease.task_id] = leased.get(lease.task_id, 0) | lease.pieces

    @invariant()
    def every_live_lease_will_be_looked_at(self) -> None:
        if self.rig.engine.state.leases:
            assert self.rig.engine.next_deadline_ns() is not None

    @invariant()
    def epochs_only_rise(self) -> None:
        for task, epoch in self.epochs:
            assert task.descriptor.epoch >= epoch
        tasks = self.rig.engine.state.tasks.values()
        self.epochs = [(task, task.descriptor.epoch) for task in tasks]

    @invariant()
    def leases_are_of_the_present_epoch(self) -> None:
        state = self.rig.engine.state
        for _, lease in self.granted.values():
            if lease.number in state.leases:
                assert lease.epoch == state.tasks[lease.task_id].descriptor.epoch

    def teardown(self) -> None:
        """When all hosts are gone for good nothing is left, whatever happened before."""
        for session in list(self.rig.engine.state.sessions):
            self.rig.handle(ev.HostDisconnected(now_ns=self.rig.now_ns, session=session))
        self.rig.wait(60)
        state = self.rig.engine.state
        for kept in (state.hosts, state.collections, state.sources, state.tasks, state.leases):
            assert not kept
        assert not state.sessions
        assert not state.stories


TestSwarm = pytest.mark.slow(Swarm.TestCase)
TestSwarm.settings = settings(
    max_examples=120,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
