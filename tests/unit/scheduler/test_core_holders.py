"""Hosts that have everything already feed the roots, in the place of the origin."""

from collections import Counter

from scheduler.core.graph import graphs_of
from scheduler.core.overlay import STRIPES
from shoal.wire import control as msg
from shoal.wire.ids import HostId
from shoal.wire.limits import UNIT_BYTES_MIN
from tests.unit.scheduler.core_rig import (
    DIGEST_TASK,
    PIECE_BYTES,
    Rig,
    descriptor_of,
    join_of,
    member,
)

PIECES = 6 * (UNIT_BYTES_MIN // PIECE_BYTES)
ALL = (1 << PIECES) - 1


def with_holders(
    rates: dict[str, int], *, held: int = ALL, zones: dict[str, str] | None = None
) -> Rig:
    """Hosts that hold (some of) the task and want nothing, by name with their rates."""
    rig = Rig()
    for name, rate in rates.items():
        holding = msg.Holding(descriptor=descriptor_of(PIECES), held=held, sealed=held == ALL)
        rig.connect(
            name,
            holdings=(holding,),
            upload_rate_bytes_s=rate,
            zone=(zones or {}).get(name, ""),
        )
    rig.wait(5)
    return rig


def come(rig: Rig, count: int, *, zone: str = "", first: int = 0) -> None:
    """Members who hold nothing."""
    for number in range(first, first + count):
        rig.connect(f"h{number}", join_of(member()), zone=zone)
        rig.answer(f"h{number}", pieces=PIECES)
    rig.wait(3)


def plans(rig: Rig, count: int) -> dict[str, tuple[HostId, ...]]:
    """By host: the parents that it was last told."""
    told = {f"h{number}": rig.got(f"h{number}", msg.Assigned) for number in range(count)}
    return {name: messages[-1].parents for name, messages in told.items() if messages}


def fed_by(rig: Rig, count: int) -> Counter[str]:
    return Counter(parent for parents in plans(rig, count).values() for parent in parents)


def test_one_that_has_everything_feeds_each_stripe_once() -> None:
    rig = with_holders({"full": 0})
    come(rig, 8)
    told = plans(rig, 8)
    feeds: Counter[str] = Counter(parent for parents in told.values() for parent in parents)
    assert feeds["full"] == STRIPES
    assert not feeds[""], "nobody waits for the origin"
    stripes = [parents.index(HostId("full")) for parents in told.values() if "full" in parents]
    assert sorted(stripes) == list(range(STRIPES))
    assert not any(rig.granted(f"h{number}") for number in range(8))


def test_several_share_the_stripes_by_their_rates() -> None:
    rig = with_holders({"slow": 1_000_000, "fast": 3_000_000})
    come(rig, 8)
    feeds = fed_by(rig, 8)
    assert (feeds["fast"], feeds["slow"]) == (3, 1)


def test_one_that_has_a_part_feeds_no_root() -> None:
    rig = with_holders({"part": 0}, held=ALL >> 1)
    come(rig, 8)
    feeds = fed_by(rig, 8)
    assert feeds["part"] == 0
    assert feeds[""] == STRIPES


def test_one_that_is_lost_or_deletes_it_is_replaced() -> None:
    for how in ("disconnect", "withdraw"):
        rig = with_holders({"full": 0, "other": 0})
        come(rig, 8)
        before = fed_by(rig, 8)
        assert (before["full"], before["other"]) == (2, 2)
        if how == "disconnect":
            rig.disconnect("full")
        else:
            rig.send("full", msg.Withdrawn(task_id=DIGEST_TASK, generation=1))
        rig.wait(1)
        changed = plans(rig, 8)
        assert len(changed) == 2, "only those whom it fed"
        assert all("full" not in parents and "" not in parents for parents in changed.values())


def test_one_that_comes_later_takes_over() -> None:
    rig = Rig()
    come(rig, 8)
    assert fed_by(rig, 8)[""] == STRIPES
    holding = msg.Holding(descriptor=descriptor_of(PIECES), held=ALL, sealed=True)
    rig.connect("full", holdings=(holding,))
    rig.wait(2)
    assert fed_by(rig, 8)["full"] == STRIPES


def test_a_zone_that_has_one_gets_nothing_from_other_zones() -> None:
    rig = with_holders({"west": 0, "east": 0}, zones={"west": "w", "east": "e"})
    come(rig, 8, zone="w")
    come(rig, 8, zone="e", first=8)
    told = plans(rig, 16)
    west = {"west", *(f"h{number}" for number in range(8))}
    for name, parents in told.items():
        assert all((parent in west) == (name in west) for parent in parents), (name, parents)


def test_many_that_have_everything_do_not_feed_a_few_newcomers_all_alike() -> None:
    rig = with_holders({f"full{number}": 0 for number in range(12)})
    come(rig, 8)
    feeds = fed_by(rig, 8)
    assert sorted(feeds[f"full{number}"] for number in range(12)) == [0] * 8 + [1] * 4


def test_a_parent_that_left_since_the_trees_were_built_is_no_trouble() -> None:
    rig = with_holders({"west": 0, "east": 0}, zones={"west": "w", "east": "e"})
    come(rig, 4, zone="w")
    come(rig, 4, zone="e", first=4)
    (board,) = rig.engine._swarms.boards.values()
    assert board.holders is not None
    for number in range(4):
        board.overlay.remove(HostId(f"h{number}"))
    for place in board.overlay.places:
        feeds = board.holders.feeds(
            board.overlay, place.host_id, board.overlay.feeds(place.host_id)
        )
        assert len(feeds) == STRIPES


def test_the_graph_shows_them() -> None:
    rig = with_holders({"full": 0}, zones={"full": "w"})
    come(rig, 8)
    (graph,) = graphs_of(rig.engine._swarms.boards)
    nodes, edges = graph["nodes"], graph["edges"]
    assert isinstance(nodes, list)
    assert isinstance(edges, list)
    assert {"id": "full", "zone": "w", "slots": 0} in nodes
    assert len(edges) == 8 * STRIPES
    assert sorted(edge["key"] for edge in edges if edge["source"] == "full") == list(range(STRIPES))


def test_a_second_one_shares_the_stripes_once_it_has_everything() -> None:
    rig = with_holders({"full": 0})
    come(rig, 8)
    assert fed_by(rig, 8)["full"] == STRIPES
    part = msg.Holding(descriptor=descriptor_of(PIECES), held=ALL >> 1, sealed=False)
    rig.connect("other", holdings=(part,))
    rig.wait(2)
    assert not fed_by(rig, 8)["other"]
    last = msg.Progress(task_id=DIGEST_TASK, epoch=1, new=ALL & ~(ALL >> 1))
    rig.send("other", msg.Report(progress=(last,)))
    rig.wait(2)
    assert fed_by(rig, 8)["other"] == STRIPES // 2, "the first one keeps the others"
