"""The peer graph as operators see it: what the core tells, and what its analysis makes of it."""

import asyncio
import json
import threading
from collections.abc import Callable

import networkx
import pytest

from scheduler.core.board import Board
from scheduler.core.graph import graphs_of
from scheduler.core.overlay import STRIPES, Overlay, Place
from scheduler.shell import graph_page
from scheduler.shell.graph_page import GraphPage, Graphs, summary
from shoal.wire.ids import CollectionId, HostId
from tests.unit.scheduler.core_rig import Rig


def graph_of(overlay: Overlay) -> dict[str, object]:
    """The graph of one collection, through JSON as an operator gets it."""
    board = Board(overlay=overlay)
    board.maps.unit_bytes = 1 << 20
    (graph,) = json.loads(json.dumps(graphs_of({CollectionId("c"): board})))
    assert isinstance(graph, dict)
    return graph


def overlay_of(hosts: int, zones: int = 1) -> Overlay:
    overlay = Overlay()
    for number in range(hosts):
        overlay.add(Place(HostId(f"h{number:02d}"), f"z{number % zones}"))
    overlay.build()
    return overlay


def test_every_stripe_is_a_tree_over_all_hosts() -> None:
    graph = graph_of(overlay_of(40))
    feeds = networkx.node_link_graph(graph, edges="edges")
    assert len(feeds) == 40
    for stripe in range(STRIPES):
        edges = [(a, b) for a, b, key in feeds.edges(keys=True) if key == stripe]
        assert networkx.is_arborescence(networkx.DiGraph(edges))
    assert feeds.nodes["h00"] == {"zone": "z0", "slots": STRIPES}


def test_who_left_since_the_last_build_is_in_no_graph() -> None:
    overlay = overlay_of(9)
    root = overlay.roots[0]
    overlay.remove(root)
    graph = graph_of(overlay)
    assert root not in json.dumps(graph)
    told = summary(graph)
    assert told["stripes"][0]["root"] == ""  # type: ignore[index]
    assert len(told["stripes"][0]["unreached"]) == 8  # type: ignore[index]


def test_the_engine_tells_a_graph_of_each_collection() -> None:
    rig = Rig()
    assert rig.engine.graph() == []
    rig.start("a", "b", "c")
    rig.wait(1)
    (graph,) = rig.engine.graph()
    assert [node["id"] for node in graph["nodes"]] == ["a", "b", "c"]  # type: ignore[attr-defined]
    assert len(graph["edges"]) == 3 * 2  # type: ignore[arg-type]
    (collection_id,) = rig.engine.state.collections
    assert graph["graph"]["collection"] == collection_id  # type: ignore[index]


def test_a_summary_tells_cuts_loads_and_depths() -> None:
    told: dict[str, object] = summary(graph_of(overlay_of(40, zones=2)))
    assert (told["hosts"], told["zones"]) == (40, 2)
    crossing = told["between_zones"]
    assert isinstance(crossing, list)
    assert sorted(edge["stripe"] for edge in crossing) == list(range(STRIPES)), "one feed each"
    assert all(edge["from"] != edge["to"] for edge in crossing)
    assert told["bridges"] == [["z0", "z1"]]
    load = told["load"]
    assert isinstance(load, list)
    assert sum(entry["children"] for entry in load) == STRIPES * 39
    assert load[0]["children"] == max(entry["children"] for entry in load)
    stripes = told["stripes"]
    assert isinstance(stripes, list)
    assert all(tree["unreached"] == [] and 2 <= tree["depth"] <= 5 for tree in stripes)


def test_one_zone_has_no_bridge_and_nobody_no_graph() -> None:
    assert summary(graph_of(overlay_of(5)))["bridges"] == []
    assert summary(graph_of(Overlay()))["hosts"] == 0


async def test_one_request_is_answered_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()
    whole: Callable[[Graphs], bytes] = graph_page._whole

    def slow(graphs: Graphs) -> bytes:
        loop.call_soon_threadsafe(begun.set)
        assert go_on.wait(10)
        return whole(graphs)

    monkeypatch.setattr(graph_page, "_whole", slow)
    page = GraphPage(list)
    gone = asyncio.ensure_future(page.answer({}))
    await begun.wait()
    assert await page.answer({}) is None
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    assert await page.answer({}) is None, "who asked is gone, its thread is not"
    go_on.set()
    assert page._work is not None
    await page._work
    assert await page.answer({"summary": "1"}) == b'{"collections": []}'
