"""The peer graph of every collection as plain dicts, for people who run a swarm.

Only reads: who feeds whom now, as `scheduler.core.overlay` and `scheduler.core.holders` say. The
form is that of node-link JSON, which graph libraries read. Nothing in it is secret: ids, zones and
numbers.
"""

from collections.abc import Mapping

from scheduler.core.board import Board
from scheduler.core.holders import Holders
from scheduler.core.overlay import Overlay
from shoal.wire.ids import CollectionId


def graphs_of(boards: Mapping[CollectionId, Board]) -> list[dict[str, object]]:
    """One graph per collection. O(members x stripes)."""
    return [
        {
            "directed": True,
            "multigraph": True,
            "graph": {
                "collection": collection_id,
                "unit_bytes": board.maps.unit_bytes,
                "stripes": len(board.overlay.parents),
                # A root may have left since the trees were built.
                "roots": [root if root in board.overlay else "" for root in board.overlay.roots],
            },
            "nodes": _nodes(board.overlay, holders),
            "edges": _edges(board.overlay, holders),
        }
        for collection_id, board in boards.items()
        for holders in (board.holders or Holders(),)
    ]


def _nodes(overlay: Overlay, holders: Holders) -> list[dict[str, object]]:
    """Members, then those outside who only give."""
    return [
        {"id": place.host_id, "zone": place.zone, "slots": place.slots} for place in overlay.places
    ] + [
        {"id": host_id, "zone": zone, "slots": 0}
        for host_id, zone in holders.hosts.items()
        if host_id not in overlay
    ]


def _edges(overlay: Overlay, holders: Holders) -> list[dict[str, object]]:
    """From parent to child. A parent that left since the trees were built feeds nobody."""
    edges: list[dict[str, object]] = []
    for place in overlay.places:
        feeds = holders.feeds(overlay, place.host_id, overlay.feeds(place.host_id))
        for stripe, parent in enumerate(feeds):
            if parent in overlay or parent in holders.hosts:
                edges.append({"source": parent, "target": place.host_id, "key": stripe})
    return edges
