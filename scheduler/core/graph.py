"""The peer graph of every collection as plain dicts, for people who run a swarm.

Only reads: who feeds whom now, as the trees of `scheduler.core.overlay` say. The form is that of
node-link JSON, which graph libraries read. Nothing in it is secret: ids, zones and numbers.
"""

from collections.abc import Mapping

from scheduler.core.board import Board
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
            "nodes": _nodes(board.overlay),
            "edges": _edges(board.overlay),
        }
        for collection_id, board in boards.items()
    ]


def _nodes(overlay: Overlay) -> list[dict[str, object]]:
    return [
        {"id": place.host_id, "zone": place.zone, "slots": place.slots} for place in overlay.places
    ]


def _edges(overlay: Overlay) -> list[dict[str, object]]:
    """From parent to child. A parent that left since the trees were built feeds nobody."""
    return [
        {"source": parent, "target": place.host_id, "key": stripe}
        for place in overlay.places
        for stripe, parent in enumerate(overlay.feeds(place.host_id))
        if parent and parent in overlay
    ]
