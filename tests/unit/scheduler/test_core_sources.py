"""One stat per source, a verdict per credential, and what becomes of failures."""

from scheduler.core.limits import SchedulerLimits
from shoal.wire import control as msg
from shoal.wire.errors import Reason
from shoal.wire.limits import SECOND_NS
from tests.unit.scheduler.core_rig import (
    DIGEST_SOURCE,
    DIGEST_TASK,
    PIECE_BYTES,
    Rig,
    descriptor_of,
    join_of,
    member,
)


def asked(rig: Rig, *names: str) -> list[str]:
    """The hosts that were asked for a stat since the last look."""
    return [name for name in names if rig.got(name, msg.StatWanted)]


def joined(*names: str, url: bool = False, anonymous: bool = True) -> Rig:
    rig = Rig()
    for name in names:
        rig.connect(name)
        rig.join(name, url=url, anonymous=anonymous)
    return rig


def test_one_stat_serves_all_joiners_of_public_content() -> None:
    rig = joined("a", "b", "c")
    assert asked(rig, "a", "b", "c") == ["a"]
    rig.answer("a")
    assert all(rig.got(name, msg.Described) for name in "abc")
    assert all(rig.got(name, msg.SwarmToken) for name in "abc")
    rig.connect("d", join_of(member()))
    assert asked(rig, "a", "b", "c", "d") == []
    assert rig.got("d", msg.Described)


def test_a_stat_that_is_not_answered_goes_to_another_host() -> None:
    rig = joined("a", "b")
    assert asked(rig, "a", "b") == ["a"]
    rig.wait(29)
    assert asked(rig, "a", "b") == []
    rig.wait(2)
    assert asked(rig, "a", "b"), "somebody is asked again"
    rig.answer("a")
    assert rig.got("a", msg.Described)
    assert rig.got("b", msg.Described)


def test_a_stat_goes_to_another_host_when_the_stream_breaks_or_the_host_leaves() -> None:
    rig = joined("a", "b", "c")
    assert asked(rig, "a") == ["a"]
    rig.disconnect("a")
    assert asked(rig, "b", "c") == ["b"]
    rig.leave("b")
    assert asked(rig, "c") == ["c"]


def test_a_deadline_is_not_lost_when_another_event_comes_just_behind_it() -> None:
    rig = joined("a", "b")
    rig.disconnect("a")
    rig.now_ns += 31 * SECOND_NS
    asked(rig, "b")
    rig.connect("c")
    assert rig.engine.next_deadline_ns() is None or rig.engine.state.now_ns == rig.now_ns
    assert asked(rig, "b") == ["b"]
    assert "a" not in rig.engine.state.hosts


def test_a_cancelled_stat_is_asked_of_somebody() -> None:
    rig = joined("a", "b")
    asked(rig, "a", "b")
    rig.refuse("a", Reason.CANCELLED)
    assert len(asked(rig, "a", "b")) == 1


def test_an_answer_of_a_host_that_left_counts_for_nothing_but_others_are_asked() -> None:
    rig = joined("a", "b")
    asked(rig, "a", "b")
    rig.leave("a")
    rig.answer("a")
    assert not rig.engine.state.tasks
    assert asked(rig, "b") == ["b"]
    rig.leave("b")
    rig.answer("b")
    assert not rig.engine.state.sources


def test_transient_failures_pause_as_long_as_the_origin_says_and_then_end_it() -> None:
    rig = joined("a")
    asked(rig, "a")
    rig.refuse("a", Reason.ORIGIN_BUSY, retry_after_ms=3_000)
    rig.wait(2.9)
    assert asked(rig, "a") == []
    rig.wait(0.2)
    assert asked(rig, "a") == ["a"]
    for _ in range(3):
        rig.refuse("a", Reason.ORIGIN_FAILED)
        assert asked(rig, "a") == []
        rig.wait(5)
        assert asked(rig, "a") == ["a"]
    assert rig.failures("a") == []
    rig.refuse("a", Reason.ORIGIN_FAILED)
    assert rig.failures("a") == [(Reason.ORIGIN_FAILED, "origin says no")]
    assert "failed" in rig.engine.story(DIGEST_SOURCE)[0][1]


def test_a_good_answer_ends_the_count_of_failures() -> None:
    rig = joined("a")
    for _ in range(4):
        rig.refuse("a", Reason.ORIGIN_FAILED)
        rig.wait(5)
    rig.answer("a")
    assert rig.engine.state.sources[DIGEST_SOURCE].failures == 0


def test_one_refused_credential_does_not_refuse_another() -> None:
    rig = joined("a", "b", anonymous=False)
    asked(rig, "a", "b")
    rig.refuse("a", Reason.ORIGIN_UNAUTHORIZED, anonymous=False)
    assert rig.failures("a") == [(Reason.ORIGIN_UNAUTHORIZED, "origin says no")]
    assert rig.failures("b") == []
    assert asked(rig, "b") == ["b"]
    rig.answer("b", anonymous=False)
    assert rig.got("b", msg.Described)


def test_an_anonymous_refusal_holds_for_all_who_would_ask_anonymously() -> None:
    rig = joined("a", "b")
    rig.connect("c")
    rig.join("c", anonymous=False)
    rig.refuse("a", Reason.ORIGIN_NOT_FOUND)
    assert rig.failures("a") == rig.failures("b") == [(Reason.ORIGIN_NOT_FOUND, "origin says no")]
    assert rig.failures("c") == []
    assert asked(rig, "c") == ["c"]


def test_private_content_needs_the_verdict_on_each_host() -> None:
    rig = joined("a", "b", anonymous=False)
    assert asked(rig, "a", "b") == ["a"]
    rig.answer("a", anonymous=False)
    assert rig.got("a", msg.Described)
    assert not rig.got("b", msg.Described)
    assert not rig.got("b", msg.SwarmToken)
    assert asked(rig, "b") == ["b"]
    rig.connect("c")
    rig.join("c", anonymous=False)
    assert asked(rig, "c") == ["c"], "asked at once, not behind b"
    rig.refuse("b", Reason.ORIGIN_FORBIDDEN, anonymous=False)
    assert rig.failures("b")
    assert not rig.got("b", msg.Described)
    rig.answer("c", anonymous=False)
    assert rig.got("c", msg.Described)


def test_a_right_that_one_user_showed_opens_nothing_for_another_without_one() -> None:
    rig = joined("a", "d", anonymous=False)
    for name in "ad":
        rig.answer(name, anonymous=False)
    assert rig.got("a", msg.Described)
    asked(rig, "a", "d")
    rig.leave("a")
    # Another user of the same host, and two elsewhere, while d goes on.
    rig.join("a")
    for name in "bc":
        rig.connect(name)
        rig.join(name)
    assert not any(rig.got(name, msg.Described) for name in "abc")
    assert asked(rig, "a", "b", "c") == ["a", "b", "c"]
    rig.refuse("a", Reason.ORIGIN_UNAUTHORIZED)
    assert all(rig.failures(name) for name in "abc")
    assert not any(rig.got(name, msg.SwarmToken) for name in "bc")
    assert not rig.failures("d")


def test_what_is_public_after_all_is_for_everybody() -> None:
    rig = joined("a", anonymous=False)
    rig.answer("a", anonymous=False)
    asked(rig, "a")
    for name in "bc":
        rig.connect(name)
        rig.join(name)
    assert asked(rig, "b", "c") == ["b", "c"]
    rig.answer("b")
    assert rig.got("b", msg.Described)
    assert rig.got("c", msg.Described)


def test_a_verdict_expires() -> None:
    rig = joined("a", "b", anonymous=False)
    rig.answer("a", anonymous=False)
    rig.answer("b", anonymous=False)
    asked(rig, "a", "b")
    rig.leave("b")
    rig.join("b", anonymous=False)
    assert asked(rig, "b") == [], "believed for a while"
    rig.leave("b")
    rig.wait(301)
    rig.join("b", anonymous=False)
    assert asked(rig, "b") == ["b"]


def test_a_reader_of_private_content_is_asked_anew_when_its_verdict_expired() -> None:
    rig = joined("a", anonymous=False)
    rig.answer("a", anonymous=False, pieces=400)
    asked(rig, "a")
    rig.wait(301)
    asked_again = asked(rig, "a")
    rig.granted("a")
    assert asked_again == ["a"], "without it nobody would ever read what is missing"
    rig.answer("a", anonymous=False, pieces=400)
    assert rig.granted("a")


def test_a_reader_that_is_refused_later_reads_no_more() -> None:
    rig = joined("a", "b", anonymous=False)
    rig.answer("a", anonymous=False, pieces=400)
    rig.answer("b", anonymous=False, pieces=400)
    rig.wait(301)
    rig.granted("a")
    rig.granted("b")
    rig.refuse("a", Reason.ORIGIN_FORBIDDEN, anonymous=False)
    rig.answer("b", anonymous=False, pieces=400)
    rig.wait(60)
    assert not rig.granted("a")
    assert rig.granted("b")
    assert asked(rig, "a") in ([], ["a"])
    rig.wait(60)
    assert asked(rig, "a") == []


def test_a_plain_url_is_believed_for_a_short_time_only() -> None:
    rig = joined("a", url=True)
    rig.answer("a", url=True)
    rig.read_all("a")
    rig.leave("a", url=True)
    asked(rig, "a")
    old = rig.task_id
    rig.wait(9)
    rig.join("a", url=True)
    assert asked(rig, "a") == []
    rig.leave("a", url=True)
    rig.wait(2)
    rig.join("a", url=True)
    assert asked(rig, "a") == ["a"]
    rig.answer("a", url=True, validator='"v2"')
    (*_, described) = rig.got("a", msg.Described)
    assert described.descriptor.task_id != old
    assert described.descriptor.validator == '"v2"'


def test_a_url_that_changed_under_one_host_keeps_the_tasks_apart() -> None:
    rig = joined("a", "b", url=True, anonymous=False)
    rig.answer("a", url=True, anonymous=False)
    rig.answer("b", url=True, anonymous=False, validator='"v2"')
    first = rig.got("a", msg.Described)[-1].descriptor
    second = rig.got("b", msg.Described)[-1].descriptor
    assert first.task_id != second.task_id
    rig.leave("a", url=True)
    rig.disconnect("a")
    rig.wait(60)
    assert list(rig.engine.state.tasks) == [second.task_id]
    rig.leave("b", url=True)
    assert not rig.engine.state.tasks


def test_two_origins_of_one_digest_must_agree_on_the_size() -> None:
    rig = joined("a", "b", anonymous=False)
    rig.answer("a", anonymous=False, pieces=4)
    rig.answer("b", anonymous=False, pieces=5)
    ((reason, detail),) = rig.failures("b")
    assert reason == Reason.ORIGIN_INVALID
    assert str(4 * PIECE_BYTES) in detail
    assert str(5 * PIECE_BYTES) in detail
    assert rig.failures("a") == []


def test_an_illegal_piece_length_fails_the_source() -> None:
    rig = Rig()
    rig.connect("a", join_of(member(length=1000)))
    rig.answer("a")
    ((reason, detail),) = rig.failures("a")
    assert reason == Reason.ORIGIN_INVALID
    assert "power of two" in detail


def test_an_unreachable_source_is_served_from_a_public_whole_copy() -> None:
    rig = joined("a", url=True)
    rig.answer("a", url=True)
    rig.read_all("a")
    rig.check("a", passed=True)
    rig.leave("a", url=True)
    rig.wait(60)
    rig.connect("b")
    rig.join("b", url=True)
    assert asked(rig, "b") == ["b"]
    rig.refuse("b", Reason.ORIGIN_FAILED, url=True)
    assert rig.got("b", msg.Described)
    assert [note.kind for note in rig.notes] == ["origin-unreachable"]


def test_a_host_without_origin_permission_waits_for_others_and_never_reads() -> None:
    rig = Rig()
    rig.connect("a")
    rig.join("a", allowed=False)
    ((reason, _),) = rig.failures("a")
    assert reason == Reason.NO_SOURCE
    rig.connect("b")
    rig.join("b")
    rig.leave("a")
    rig.join("a", allowed=False)
    assert asked(rig, "a", "b") == ["b"]
    rig.answer("b", pieces=400)
    assert rig.got("a", msg.Described)
    assert not rig.granted("a")
    assert rig.granted("b")


def test_a_host_without_origin_permission_fails_when_the_last_reader_leaves() -> None:
    rig = Rig()
    rig.connect("b", join_of(member()))
    rig.connect("a")
    rig.join("a", allowed=False)
    rig.leave("b")
    assert rig.failures("a")[0][0] == Reason.NO_SOURCE


def test_a_host_without_origin_permission_gets_a_sealed_public_copy() -> None:
    rig = joined("a", url=True)
    rig.answer("a", url=True)
    rig.read_all("a")
    rig.check("a", passed=True)
    rig.leave("a", url=True)
    rig.wait(60)
    rig.connect("b")
    rig.join("b", url=True, allowed=False)
    assert rig.got("b", msg.Described)
    assert rig.failures("b") == []


def test_an_inventory_makes_content_known_but_not_everybodys_right() -> None:
    rig = Rig()
    holding = msg.Holding(descriptor=descriptor_of(4), held=0b1111, sealed=True)
    rig.connect("a", holdings=(holding,))
    rig.connect("b")
    rig.join("b", anonymous=False)
    assert asked(rig, "b") == ["b"]
    assert not rig.got("b", msg.Described)
    rig.answer("b", anonymous=False)
    assert rig.got("b", msg.Described)[0].descriptor.task_id == DIGEST_TASK


def test_stats_are_bounded_by_their_own_time_limit() -> None:
    rig = Rig(SchedulerLimits(stat_ttl_ns=SECOND_NS))
    rig.connect("a", join_of(member()))
    asked(rig, "a")
    rig.wait(1)
    assert asked(rig, "a") == ["a"]
