"""Deadlines are never lost, never early, and at most a millisecond late."""

from hypothesis import given
from hypothesis import strategies as st

from shoal.wire.limits import MILLISECOND_NS
from shoal.wire.wakeups import WakeUps


def test_nothing_asked_for() -> None:
    wake_ups = WakeUps()
    wake_ups.forget_until(5)
    assert wake_ups.next_ns() is None


@given(st.lists(st.integers(1, 50 * MILLISECOND_NS), min_size=1))
def test_each_deadline_is_met_in_order(deadlines_ns: list[int]) -> None:
    wake_ups = WakeUps()
    for deadline_ns in deadlines_ns:
        wake_ups.add(deadline_ns)
    rung: list[int] = []
    while (next_ns := wake_ups.next_ns()) is not None:
        assert not rung or next_ns > rung[-1]
        rung.append(next_ns)
        wake_ups.forget_until(next_ns)
    for deadline_ns in deadlines_ns:
        assert any(0 <= when_ns - deadline_ns < MILLISECOND_NS for when_ns in rung)
