"""`/graph` of the scheduler's status endpoints: who feeds whom, and what that comes to.

The core's answer is taken on the event loop; JSON and analysis are made in a thread, one request at
a time, so that curiosity holds up no host for long. networkx is imported when it is first asked
for. Decides nothing.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

Graphs = list[dict[str, object]]


class GraphPage:
    """Answers `/graph` and `/graph?summary=1`. `graphs` takes a copy of every collection's graph
    that nobody changes afterwards."""

    def __init__(self, graphs: Callable[[], Graphs]) -> None:
        self._graphs = graphs
        self._work: asyncio.Future[bytes] | None = None

    async def answer(self, query: Mapping[str, str]) -> bytes | None:
        """JSON, or None while another request is being answered."""
        if self._work is not None and not self._work.done():
            return None
        render = _summaries if query.get("summary") == "1" else _whole
        self._work = asyncio.get_running_loop().run_in_executor(None, render, self._graphs())
        # Who asked may be gone before the thread has ended: the next one waits for it all the same.
        return await asyncio.shield(self._work)


def _whole(graphs: Graphs) -> bytes:
    return json.dumps({"collections": graphs}).encode()


def _summaries(graphs: Graphs) -> bytes:
    return json.dumps({"collections": [summary(graph) for graph in graphs]}).encode()


def summary(graph: dict[str, Any]) -> dict[str, object]:
    """What one graph (node-link) comes to: edges between zones, zones that hang by a single other
    one, children of each host, and by stripe how deep its tree is and whom it does not reach."""
    import networkx

    feeds = networkx.node_link_graph(graph, edges="edges")
    zone_of: dict[str, str] = dict(feeds.nodes(data="zone"))
    crossing = [
        {"stripe": stripe, "parent": parent, "child": child}
        | {"from": zone_of[parent], "to": zone_of[child]}
        for parent, child, stripe in feeds.edges(keys=True)
        if zone_of[parent] != zone_of[child]
    ]
    zones = networkx.Graph()
    zones.add_nodes_from(zone_of.values())
    zones.add_edges_from((edge["from"], edge["to"]) for edge in crossing)
    slots: dict[str, int] = dict(feeds.nodes(data="slots"))
    load = sorted(feeds.out_degree(), key=lambda pair: (-pair[1], pair[0]))
    return {
        "collection": graph["graph"]["collection"],
        "hosts": len(feeds),
        "zones": len(zones),
        "between_zones": crossing,
        "bridges": sorted(sorted(bridge) for bridge in networkx.bridges(zones)),
        "load": [
            {"host": host, "children": children, "slots": slots[host]} for host, children in load
        ],
        "stripes": [
            _tree(networkx, feeds, stripe, root)
            for stripe, root in enumerate(graph["graph"]["roots"])
        ],
    }


def _tree(networkx: Any, feeds: Any, stripe: int, root: str) -> dict[str, object]:
    tree = networkx.DiGraph()
    tree.add_nodes_from(feeds)
    tree.add_edges_from((a, b) for a, b, key in feeds.edges(keys=True) if key == stripe)
    levels = networkx.single_source_shortest_path_length(tree, root) if root else {}
    return {
        "root": root,
        "depth": max(levels.values(), default=0),
        "unreached": sorted(host for host in tree if host not in levels),
    }
