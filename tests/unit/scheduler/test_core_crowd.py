"""Newcomers one behind the other: a few are answered at once, a crowd together, in one message."""

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.board import PLACED_AT_ONCE
from scheduler.core.limits import SchedulerLimits
from shoal.wire import control as msg
from shoal.wire.limits import MILLISECOND_NS, SECOND_NS
from tests.unit.scheduler.core_rig import Rig, join_of, member

LIMITS = SchedulerLimits()
CROWD = 2 * LIMITS.mesh_hosts_max + 4
WHOLE_ANSWER = [
    msg.SwarmToken,
    msg.Described,
    msg.Parents,
    msg.Assigned,
    msg.Directory,
    msg.SwarmMap,
]


def known(limits: SchedulerLimits = LIMITS) -> Rig:
    """A content that one host fetches, and a crowd of others that are welcome and no more."""
    rig = Rig(limits)
    rig.start("first", pieces=64)
    for number in range(CROWD):
        rig.connect(f"h{number}")
        rig.told(f"h{number}")
    rig.wait(1)
    return rig


def test_one_of_a_crowd_is_told_all_that_it_needs_in_one_message() -> None:
    rig = known()
    for number in range(CROWD):
        rig.join(f"h{number}")
        rig.wait(0.001)
    rig.wait(0.1)
    last = rig.told(f"h{CROWD - 1}")
    assert last[0][: len(WHOLE_ANSWER)] == WHOLE_ANSWER
    assert len(last) == 1


def test_the_first_newcomers_are_answered_at_once() -> None:
    rig = known()
    for number in range(LIMITS.mesh_hosts_max - 1):
        rig.join(f"h{number}")
        assert msg.Described in rig.told(f"h{number}")[0]


def test_whoever_comes_long_before_the_next_news_is_answered_at_once() -> None:
    limits = SchedulerLimits(push_interval_per_host_ns=10 * MILLISECOND_NS)
    rig = known(limits)
    half = CROWD // 2
    for number in range(half):
        rig.join(f"h{number}")
    rig.wait(0.04)
    assert rig.got("h0", msg.Assigned)
    for number in range(half, CROWD):
        rig.join(f"h{number}")
        assert rig.told(f"h{number}")[0][:2] == [msg.SwarmToken, msg.Described]


def test_a_crowd_that_goes_on_coming_is_answered_after_the_swarms_usual_pause() -> None:
    rig = known()
    pause_s = LIMITS.crowd_quiet_ns / SECOND_NS / 2
    answered = []
    for number in range(CROWD):
        rig.join(f"h{number}")
        rig.wait(pause_s)
        if number == CROWD // 2:
            answered = rig.told(f"h{LIMITS.mesh_hosts_max}")
    assert msg.Described in answered[0]


def test_whoever_leaves_is_owed_nothing() -> None:
    rig = known()
    for number in range(CROWD):
        rig.join(f"h{number}")
    rig.told(f"h{CROWD - 1}")
    rig.leave(f"h{CROWD - 1}")  # The rig checks that nothing is held back for good.
    rig.wait(0.1)
    rig.join(f"h{CROWD - 1}")
    rig.wait(0.1)
    assert rig.got(f"h{CROWD - 1}", msg.Assigned)


def test_what_is_said_for_another_reason_takes_the_answer_along() -> None:
    rig = known()
    for number in range(CROWD):
        rig.join(f"h{number}")
    last = f"h{CROWD - 1}"
    assert rig.told(last) == []
    rig.send(last, join_of(member(url=True)))
    assert rig.told(last) == [[msg.SwarmToken, msg.Described, msg.StatWanted]]


@settings(max_examples=20)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["join", "leave", "lose", "back", "wait", "other"]),
            st.integers(0, CROWD - 1),
        ),
        max_size=30,
    )
)
def test_nothing_is_held_back_for_long(steps: list[tuple[str, int]]) -> None:
    rig = known()
    for number in range(CROWD):
        rig.join(f"h{number}")
        rig.wait(0.0003)
    away: dict[int, None] = {}
    for step, number in steps:
        name = f"h{number}"
        if step == "wait":
            rig.wait(number / 1000)
        elif step == "back":
            if number in away:
                del away[number]
                rig.connect(name, join_of(member()), generation=2)
        elif number in away:
            continue
        elif step == "join":
            rig.join(name)
        elif step == "leave":
            rig.leave(name)
        elif step == "other":
            rig.send(name, join_of(member(url=True)))
        else:
            away[number] = None
            rig.disconnect(name)
    rig.wait(LIMITS.map_interval_ns / SECOND_NS + 0.1)
    assert rig.engine.state.held_sessions == []


def test_a_few_are_fewer_than_a_small_swarm() -> None:
    """Or one of a small swarm would wait for news that the others are told at once."""
    assert LIMITS.mesh_hosts_max > PLACED_AT_ONCE
