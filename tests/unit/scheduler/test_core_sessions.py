"""Streams, Hello, joins and what is forgotten when everybody left."""

import pytest

from scheduler.core import events as ev
from scheduler.core.limits import SchedulerLimits
from shoal.wire import control as msg
from shoal.wire.errors import Reason
from shoal.wire.ids import CollectionId, HostId
from shoal.wire.limits import MILLISECOND_NS, SECOND_NS
from tests.unit.scheduler.core_rig import (
    DIGEST_TASK,
    Rig,
    descriptor_of,
    join_of,
    member,
)


def hello(
    name: str, *, generation: int = 1, version_min: int = 1, version_max: int = 1
) -> msg.Hello:
    return msg.Hello(
        host=msg.HostInfo(host_id=HostId(name), addresses=()),
        generation=generation,
        holdings=(),
        version_min=version_min,
        version_max=version_max,
    )


def test_a_host_is_welcomed_with_a_bounded_report_interval() -> None:
    rig = Rig()
    rig.connect("a")
    (welcome,) = rig.got("a", msg.Welcome)
    assert (welcome.scheduler_id, welcome.version) == ("scheduler", 1)
    assert welcome.report_interval_ms == 200


def test_hosts_are_told_another_report_interval_as_they_report_in_a_swarm_that_grew() -> None:
    rig = Rig(SchedulerLimits(report_interval_per_host_ns=80 * MILLISECOND_NS))
    rig.start("a")
    rig.send("a", msg.Report())
    assert not rig.got("a", msg.ReportInterval), "nothing changed"
    for number in range(9):
        rig.connect(f"b{number}")
    rig.wait(1)
    assert not rig.got("a", msg.ReportInterval), "it does not report: it need not know"
    rig.send("a", msg.Report())
    (told,) = rig.got("a", msg.ReportInterval)
    assert told.report_interval_ms == 800
    rig.send("a", msg.Report())
    assert not rig.got("a", msg.ReportInterval), "told once"
    for number in range(8):
        rig.disconnect(f"b{number}")
    rig.wait(12)
    rig.send("a", msg.Report())
    (told,) = rig.got("a", msg.ReportInterval)
    assert told.report_interval_ms == 200


def test_the_report_interval_goes_on_growing_in_swarms_of_more_than_a_thousand() -> None:
    rig = Rig(SchedulerLimits(report_interval_per_host_ns=SECOND_NS // 4))
    for number in range(6):
        rig.connect(f"h{number}")
    (welcome,) = rig.got("h5", msg.Welcome)
    assert welcome.report_interval_ms == 1500


def test_the_first_message_must_be_hello_and_only_the_first() -> None:
    rig = Rig()
    session = rig.open_session()
    rig.send_on(session, join_of(member()))
    assert rig.closed[session].reason is Reason.PEER_PROTOCOL
    other = rig.connect("a")
    rig.send_on(other, hello("a"))
    assert "second Hello" in rig.closed[other].detail


@pytest.mark.parametrize("versions", [(2, 3), (0, 0)])
def test_versions_without_an_overlap_are_refused(versions: tuple[int, int]) -> None:
    rig = Rig()
    session = rig.open_session()
    rig.send_on(session, hello("a", version_min=versions[0], version_max=versions[1]))
    assert "control versions 1 to 1" in rig.closed[session].detail
    assert not rig.engine.state.hosts


def test_a_host_is_whom_its_certificate_names() -> None:
    rig = Rig()
    victim = rig.connect("a")
    session = rig.open_session(subject="mallory")
    rig.send_on(session, hello("a", generation=2), join_of(member()))
    assert rig.closed[session].reason is Reason.UNAUTHORIZED
    assert "'mallory'" in rig.closed[session].detail
    # The host that it posed as has its stream and its state still.
    assert victim not in rig.closed
    assert rig.engine.state.hosts[HostId("a")].session == victim
    assert not rig.engine.state.collections
    # What it says afterwards, before its stream is gone, counts as little.
    rig.send_on(session, hello("mallory"))
    assert HostId("mallory") not in rig.engine.state.hosts
    rig.handle(ev.HostDisconnected(now_ns=rig.now_ns, session=session))
    own = rig.open_session(subject="mallory")
    rig.send_on(own, hello("mallory"))
    assert own not in rig.closed
    assert rig.engine.state.hosts[HostId("mallory")].session == own


def test_a_newer_speaker_is_answered_in_the_version_of_both() -> None:
    rig = Rig()
    session = rig.open_session()
    rig.send_on(session, hello("a", version_max=7))
    assert isinstance(rig.inbox[session][0], msg.Welcome)


def test_an_older_generation_is_refused_and_the_newer_run_stays() -> None:
    rig = Rig()
    rig.connect("a", generation=5)
    session = rig.open_session()
    rig.send_on(session, hello("a", generation=4))
    assert "host_id used twice" in rig.closed[session].detail
    rig.join("a")
    assert rig.got("a", msg.StatWanted)


def test_a_newer_stream_takes_the_place_of_the_older_one() -> None:
    rig = Rig()
    old = rig.connect("a")
    rig.connect("a")
    assert rig.closed[old].reason is Reason.PEER_LOST
    rig.send_on(old, join_of(member()))
    assert not rig.engine.state.collections, "a stale stream is heard no more"
    rig.handle(ev.HostDisconnected(now_ns=rig.now_ns, session=old))
    rig.join("a")
    assert rig.got("a", msg.StatWanted), "the end of the old stream does not touch the new one"


def test_a_superseded_stream_may_outlive_its_host() -> None:
    rig = Rig()
    old = rig.connect("a")
    rig.connect("a")
    rig.disconnect("a")
    rig.wait(11)
    assert not rig.engine.state.hosts
    rig.send_on(old, join_of(member()))
    rig.handle(ev.HostDisconnected(now_ns=rig.now_ns, session=old))
    assert not rig.engine.state.collections


def test_a_stream_that_never_said_hello_just_ends() -> None:
    rig = Rig()
    session = rig.open_session()
    rig.handle(ev.HostDisconnected(now_ns=rig.now_ns, session=session))
    rig.send_on(session, hello("a"))
    assert not rig.engine.state.hosts


def test_hosts_max_refuses_strangers_but_not_those_who_come_back() -> None:
    rig = Rig(SchedulerLimits(hosts_max=1))
    rig.connect("a")
    session = rig.open_session()
    rig.send_on(session, hello("b"))
    assert rig.closed[session].reason is Reason.OVERLOADED
    rig.disconnect("a")
    rig.connect("a")
    assert rig.got("a", msg.Welcome)


@pytest.mark.parametrize(
    "limits", [SchedulerLimits(collections_max=1), SchedulerLimits(collections_per_host_max=1)]
)
def test_joins_beyond_a_cap_are_redirected(limits: SchedulerLimits) -> None:
    rig = Rig(limits)
    rig.connect("a")
    rig.join("a")
    rig.join("a", url=True)
    (redirected,) = rig.got("a", msg.Redirected)
    assert redirected.reason is Reason.OVERLOADED
    assert redirected.retry_after_ms > 0
    assert len(rig.engine.state.collections) == 1


def test_a_host_may_join_again_what_it_joined_at_its_cap() -> None:
    rig = Rig(SchedulerLimits(collections_per_host_max=1))
    rig.start("a")
    rig.got("a", msg.Described)
    rig.join("a")
    assert not rig.got("a", msg.Redirected)
    assert rig.engine.state.hosts[HostId("a")].collections


def test_leaving_what_nobody_joined_is_harmless() -> None:
    rig = Rig()
    rig.connect("a", msg.Leave(collection_id=CollectionId("c")))
    assert not rig.engine.state.collections


def test_everything_is_forgotten_when_all_are_gone() -> None:
    rig = Rig()
    rig.start("a", "b")
    rig.read_all("a")
    rig.disconnect("a")
    rig.leave("b")
    assert rig.engine.state.tasks, "the holder may come back within its grace time"
    rig.wait(11)
    rig.disconnect("b")
    rig.wait(11)
    state = rig.engine.state
    for kept in (state.hosts, state.collections, state.sources, state.tasks, state.leases):
        assert not kept
    assert not state.stories
    assert rig.engine.story(DIGEST_TASK) == []


def test_leaving_alone_without_a_piece_forgets_the_task_and_its_leases() -> None:
    rig = Rig()
    rig.start("a")
    assert rig.engine.state.leases
    rig.leave("a")
    state = rig.engine.state
    for kept in (state.collections, state.sources, state.tasks, state.leases):
        assert not kept


def test_a_holder_that_comes_back_empty_leaves_nothing_behind() -> None:
    rig = Rig()
    rig.start("a")
    rig.read_all("a")
    rig.leave("a")
    assert rig.engine.state.tasks
    rig.connect("a")
    assert not rig.engine.state.tasks
    assert not rig.engine.state.sources


def test_a_task_whose_url_failed_is_forgotten_with_its_holders() -> None:
    rig = Rig()
    rig.connect("a")
    rig.join("a", url=True)
    rig.answer("a", url=True)
    first, *_ = rig.granted("a")
    rig.hold("a", 1)
    rig.fail_lease("a", first, Reason.ORIGIN_CHANGED)
    assert rig.failures("a")[0][0] == Reason.ORIGIN_CHANGED
    rig.leave("a", url=True)
    rig.disconnect("a")
    rig.wait(11)
    assert not rig.engine.state.tasks
    assert not rig.engine.state.sources


def test_a_host_that_is_back_within_the_grace_time_keeps_its_place() -> None:
    rig = Rig()
    rig.start("a", "b")
    rig.disconnect("a")
    rig.wait(5)
    rig.connect("a", join_of(member()))
    rig.wait(7)
    assert rig.got("a", msg.Described)
    assert set(rig.engine.state.hosts) == {"a", "b"}


def test_grace_times_of_several_hosts_end_one_after_another() -> None:
    rig = Rig()
    rig.connect("a")
    rig.connect("b")
    rig.disconnect("a")
    rig.wait(4)
    rig.disconnect("b")
    rig.wait(7)
    assert set(rig.engine.state.hosts) == {"b"}
    rig.wait(4)
    assert not rig.engine.state.hosts


def test_withdrawn_of_this_run_counts_and_late_news_of_the_last_run_does_not() -> None:
    rig = Rig()
    holding = msg.Holding(descriptor=descriptor_of(4), held=0b1111, sealed=True)
    rig.connect("a", generation=2, holdings=(holding,))
    rig.send("a", msg.Withdrawn(task_id=DIGEST_TASK, generation=1))
    assert DIGEST_TASK in rig.engine.state.tasks
    rig.send("a", msg.Withdrawn(task_id=DIGEST_TASK, generation=2))
    assert not rig.engine.state.tasks
    rig.send("a", msg.Withdrawn(task_id=DIGEST_TASK, generation=2))


def test_counters_and_stories_tell_what_happened() -> None:
    rig = Rig()
    rig.start("a", "b")
    counters = rig.engine.counters()
    assert all(isinstance(value, int) for value in counters.values())
    story = rig.engine.story(DIGEST_TASK)
    assert "lease" in story[0][1]
    assert story == sorted(story, key=lambda line: line[0])
