"""Who is judged slow by how fast a swarm flows, and who is not."""

from scheduler.core.flow import PROBATION_NS, UNITS_MIN, WINDOW_NS, WINDOW_NS_MAX, Flow
from scheduler.core.overlay import STRIPES, Overlay, Place
from shoal.wire.ids import HostId

COUNT = 24
FULL = 12
"""Units of each stripe that a host usually takes in within a window."""


class Swarm:
    """Equal hosts, their flow, and time in windows."""

    def __init__(self) -> None:
        self.overlay = Overlay()
        self.names = [HostId(f"h{number}") for number in range(COUNT)]
        for name in self.names:
            self.overlay.add(Place(name, ""))
        self.overlay.build()
        self.flow = Flow()
        self.now_ns = 10 * WINDOW_NS
        self.fetching: dict[HostId, None] = dict.fromkeys(self.names)
        self.window({})

    def window(self, gains: dict[HostId, list[int]], windows: int = 1) -> None:
        """Everybody takes in the usual, or what is said here; then it is judged."""
        for _ in range(windows):
            for name in self.names:
                self.flow.took_in(name, gains.get(name, [FULL] * STRIPES))
            self.now_ns += WINDOW_NS
            self.flow.judge(self.overlay, self.now_ns, self.fetching)

    def slots(self, name: HostId) -> int:
        return self.overlay.place(name).slots

    def parent(self, least: int = 2) -> tuple[HostId, int, list[HostId]]:
        """A host that feeds some others a stripe without being its root, and those."""
        for stripe, tree in enumerate(self.overlay.parents):
            for host in tree:
                fed = [child for child, parent in tree.items() if parent == host]
                if len(fed) >= least:
                    return host, stripe, fed
        raise AssertionError("no parent at all")


def test_nobody_is_judged_while_all_are_alike() -> None:
    swarm = Swarm()
    swarm.window({}, 20)
    assert {swarm.slots(name) for name in swarm.names} == {STRIPES}
    assert not swarm.flow.slowed


def test_a_host_that_takes_in_less_than_half_feeds_nobody() -> None:
    swarm = Swarm()
    slow = swarm.names[5]
    swarm.window({slow: [FULL // 4] * STRIPES}, 2)
    assert swarm.slots(slow) == 0
    assert swarm.overlay.dirty
    assert all(swarm.slots(name) == STRIPES for name in swarm.names if name != slow)


def test_a_host_with_a_little_less_is_left_alone() -> None:
    swarm = Swarm()
    swarm.window({swarm.names[5]: [FULL - 3] * STRIPES}, 5)
    assert swarm.slots(swarm.names[5]) == STRIPES


def test_a_slow_host_is_tried_again_after_its_probation_once_it_is_fast() -> None:
    swarm = Swarm()
    slow = swarm.names[5]
    swarm.window({slow: [1] * STRIPES}, 2)
    assert swarm.slots(slow) == 0
    swarm.window({}, PROBATION_NS // WINDOW_NS - 2)
    assert swarm.slots(slow) == 0
    swarm.window({}, 3)
    assert swarm.slots(slow) == STRIPES
    assert slow not in swarm.flow.slowed


def test_a_host_that_stays_slow_is_not_tried_again() -> None:
    swarm = Swarm()
    slow = swarm.names[5]
    swarm.window({slow: [1] * STRIPES}, 40)
    assert swarm.slots(slow) == 0


def test_a_parent_that_is_ahead_of_all_its_children_and_brings_little_is_lowered() -> None:
    swarm = Swarm()
    parent, stripe, fed = swarm.parent()
    starved = [FULL] * STRIPES
    starved[stripe] = FULL // 8
    swarm.window(dict.fromkeys(fed, starved), 4)
    assert swarm.slots(parent) < len(fed)
    assert all(swarm.slots(child) == STRIPES for child in fed), "its children are its victims"


def test_a_parent_is_not_judged_by_children_that_it_has_only_just_got() -> None:
    swarm = Swarm()
    parent, stripe, fed = swarm.parent()
    swarm.window({}, 3)
    starved = [FULL] * STRIPES
    starved[stripe] = FULL // 8
    for _ in range(2):
        # They change places again and again: who feeds them now is not to blame.
        tree = swarm.overlay.parents[stripe]
        others = dict(tree)
        for child in fed:
            others[child] = next(host for host in tree.values() if host not in (*fed, parent))
        for other in (others, tree):
            swarm.overlay.parents = [*swarm.overlay.parents]
            swarm.overlay.parents[stripe] = other
            swarm.window(dict.fromkeys(fed, starved))
    assert not swarm.flow.slowed


def test_a_parent_that_has_no_more_than_its_children_is_not_to_blame() -> None:
    swarm = Swarm()
    parent, stripe, fed = swarm.parent()
    starved = [FULL] * STRIPES
    starved[stripe] = 1
    swarm.window(dict.fromkeys([*fed, parent], starved), 3)
    assert swarm.slots(parent) == STRIPES, "it waits for another"


def test_one_child_that_keeps_up_clears_its_parent() -> None:
    swarm = Swarm()
    parent, stripe, fed = swarm.parent()
    starved = [FULL] * STRIPES
    starved[stripe] = 0
    swarm.window(dict.fromkeys(fed[1:], starved), 3)
    assert swarm.slots(parent) == STRIPES


def test_a_child_that_is_slow_itself_says_nothing_about_its_parent() -> None:
    swarm = Swarm()
    leaf = swarm.names[-1]
    swarm.window({leaf: [1] * STRIPES})
    swarm.overlay.build()
    # All that its parents feed are slow on their own: they take in little of every stripe.
    parent, _, fed = swarm.parent(least=1)
    swarm.window(dict.fromkeys(fed, [1] * STRIPES), 5)
    assert swarm.slots(parent) == STRIPES
    assert all(swarm.slots(child) == 0 for child in fed)


def test_a_host_that_is_behind_together_with_its_parents_is_not_slow() -> None:
    swarm = Swarm()
    leaf = swarm.names[-1]
    parents = [tree[leaf] for tree in swarm.overlay.parents]
    starved = dict.fromkeys((leaf, *parents), [1] * STRIPES)
    for parent in parents:
        for tree in swarm.overlay.parents:
            if parent in tree:
                starved[tree[parent]] = [1] * STRIPES
    swarm.window(starved)
    assert swarm.slots(leaf) == STRIPES


def test_parents_that_were_never_counted_do_not_protect_a_slow_host() -> None:
    swarm = Swarm()
    leaf = swarm.names[-1]
    for tree in swarm.overlay.parents:
        swarm.flow.forget(tree[leaf])
        swarm.names.remove(tree[leaf])
    swarm.window({leaf: [FULL // 8] * STRIPES}, 2)
    assert swarm.slots(leaf) == 0


def test_little_progress_of_all_says_nothing() -> None:
    swarm = Swarm()
    assert 2 * WINDOW_NS_MAX // WINDOW_NS < UNITS_MIN
    few = {key: [1, 1, *([0] * (STRIPES - 2))] for key in swarm.names}
    few[swarm.names[3]] = [0] * STRIPES
    swarm.window(few, 40)
    assert not swarm.flow.slowed


def test_a_swarm_of_slow_links_is_judged_over_longer_windows() -> None:
    swarm = Swarm()
    pace = dict.fromkeys(swarm.names, [2] * STRIPES)
    late, slow = swarm.names[3], swarm.names[9]
    pace[slow] = [0] * STRIPES
    # One that had a bad second makes up for it: by chance, not by its links.
    swarm.window(pace | {late: [0] * STRIPES})
    swarm.window(pace | {late: [4] * STRIPES})
    assert not swarm.flow.slowed
    swarm.window(pace, 4)
    assert list(swarm.flow.slowed) == [slow]


def test_a_window_does_not_last_where_most_came_later() -> None:
    swarm = Swarm()
    swarm.flow.restart()
    first = swarm.names[0]
    swarm.flow.took_in(first, [1] * STRIPES)
    swarm.now_ns += WINDOW_NS
    swarm.flow.judge(swarm.overlay, swarm.now_ns, swarm.fetching)
    assert list(swarm.flow.before) == [first]
    swarm.window(dict.fromkeys(swarm.names, [1] * STRIPES))
    assert list(swarm.flow.before) == swarm.names


def test_those_who_are_done_or_gone_are_not_judged() -> None:
    swarm = Swarm()
    done, gone = swarm.names[3], swarm.names[4]
    del swarm.fetching[done]
    swarm.flow.forget(gone)
    swarm.overlay.remove(gone)
    swarm.overlay.build()
    swarm.names.remove(gone)
    swarm.window({done: [0] * STRIPES}, 5)
    assert swarm.slots(done) == STRIPES


def test_small_swarms_and_short_windows_are_not_judged() -> None:
    overlay = Overlay()
    overlay.add(Place(HostId("a"), ""))
    flow = Flow()
    flow.took_in(HostId("a"), [5])
    flow.judge(overlay, 100 * WINDOW_NS, {HostId("a"): None})
    assert not flow.before
    swarm = Swarm()
    before = swarm.flow.since_ns
    swarm.flow.judge(swarm.overlay, swarm.now_ns + WINDOW_NS // 2, swarm.fetching)
    assert swarm.flow.since_ns == before


def test_another_number_of_stripes_begins_anew() -> None:
    flow = Flow()
    flow.took_in(HostId("a"), [5])
    flow.took_in(HostId("b"), [5])
    flow.took_in(HostId("a"), [1, 2, 3, 4])
    assert flow.counts == {"a": [1, 2, 3, 4]}


def test_a_host_that_told_slower_links_is_measured_by_them() -> None:
    swarm = Swarm()
    weak = swarm.names[5]
    place = swarm.overlay.place(weak)
    place.slots = place.rank = STRIPES // 2
    swarm.window({weak: [FULL // 2 - 1] * STRIPES}, 3)
    assert swarm.slots(weak) == STRIPES // 2
    swarm.window({weak: [FULL // 8] * STRIPES}, 2)
    assert swarm.slots(weak) == 0


def test_a_child_with_slower_links_does_not_make_its_parent_look_slow() -> None:
    swarm = Swarm()
    parent, stripe, fed = swarm.parent()
    for child in fed:
        swarm.overlay.place(child).rank = STRIPES // 2
    # They are further behind their parent in each window.
    swarm.window(dict.fromkeys(fed, [FULL // 2 - 1] * STRIPES), 5)
    assert swarm.overlay.parents[stripe][fed[0]] == parent
    assert swarm.slots(parent) == STRIPES
