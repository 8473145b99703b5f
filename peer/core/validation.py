"""Every invariant of a peer core in one pass. Tests and the simulator run it after each event.

The numbers are those of the reliability rules: S3 nothing announced before it is verified and
written, S4 every request ends once, S5 bounds, S7 budgets balance, L2 nothing starves.
"""

from typing import TYPE_CHECKING

from peer.core.state import LinkPhase, PeerState, Task, TaskPhase
from shoal.wire import bitfield
from shoal.wire.ids import CollectionId

if TYPE_CHECKING:
    from peer.core.download import TaskKeeper
    from peer.core.origin_reads import OriginReads
    from peer.core.uploads import Uploads


def validate(
    state: PeerState, keeper: "TaskKeeper", reads: "OriginReads", uploads: "Uploads"
) -> None:
    """Raises AssertionError with the invariant that does not hold."""
    for task in state.tasks.values():
        _validate_task(state, keeper, task)
    _validate_links(state)
    _validate_feeds(state)
    _validate_budget(state, reads)
    _validate_uploads(state, uploads)
    _validate_awaited(state, uploads)
    _validate_wishes(state)


def _validate_task(state: PeerState, keeper: "TaskKeeper", task: Task) -> None:
    name = task.task_id[:8]
    geometry = task.descriptor.geometry
    if geometry.size_bytes is not None:
        assert not task.held & ~geometry.all_pieces, f"{name}: holds pieces behind the end"
    assert not task.confirmed & ~task.held, f"{name}: confirmed pieces that are not held"
    assert not task.told & ~task.held, f"{name}: S3: told of pieces that are not held"
    if state.scheduled and task.phase is not TaskPhase.SEALED:
        assert not task.told & ~task.confirmed, f"{name}: S3: told of unconfirmed pieces"
    assert set(task.records) == set(bitfield.pieces(task.held)), f"{name}: records and held differ"
    assert not task.readable & ~task.held, f"{name}: pieces may be read that are not held"
    if geometry.size_bytes is not None and task.phase is not TaskPhase.SEALED:
        last = geometry.all_pieces & ~(geometry.all_pieces >> 1)
        assert not task.readable & last, f"{name}: its end may be read before its digest passed"
    waited_for = 0
    for pieces in task.readers.values():
        waited_for |= pieces
    assert task.urgent == waited_for, f"{name}: urgent is stale"
    assert task.watchers or not task.readers, f"{name}: readers of what nobody wants"
    for piece, digest in task.listed.items():
        if task.confirmed >> piece & 1 and not task.records[piece].read_here:
            sealed = task.phase is TaskPhase.SEALED
            assert sealed or task.records[piece].digest == digest, f"{name}: S2: {piece} is false"
    flying = 0
    for piece, requests in task.flying.items():
        assert requests, f"{name}: piece {piece} flies without a request"
        assert len(requests) <= state.limits.duplicate_requests_max, f"{name}: S5: duplicates"
        flying |= 1 << piece
        for request_id in requests:
            fetch = state.fetches[request_id]
            assert fetch.task is task, f"{name}: S4: request {request_id} is of another task"
            assert fetch.piece == piece, f"{name}: S4: request {request_id} is of another piece"
    assert flying == task.flying_mask, f"{name}: flying_mask is stale"
    if task.phase in (TaskPhase.CHECKING, TaskPhase.SEALING, TaskPhase.SEALED):
        assert task.complete, f"{name}: {task.phase.name} with pieces missing"
        assert not task.flying, f"{name}: {task.phase.name} with requests"
    if task.phase is TaskPhase.ACTIVE:
        assert not task.complete, f"{name}: whole and not being checked"
        _validate_availability(state, task)


def _validate_availability(state: PeerState, task: Task) -> None:
    counts: dict[int, int] = {}
    for link in state.links.values():
        channel = link.channels.get(task.task_id)
        if channel is not None and channel.open:
            for piece in bitfield.pieces(channel.held):
                counts[piece] = counts.get(piece, 0) + 1
    for piece, count in counts.items():
        assert task.availability.count(piece) == count, f"availability of {piece} is stale"
    assert set(bitfield.pieces(task.availability.available)) == set(counts)


def _validate_links(state: PeerState) -> None:
    for link in state.links.values():
        up = link.phase is LinkPhase.UP
        assert up == (link.connection_id is not None), f"{link.host_id}: phase and connection"
        if up:
            assert link.connection_id is not None
            assert state.links_by_connection[link.connection_id] is link
        else:
            assert not link.channels, f"{link.host_id}: channels without a connection"
        assert len(link.requests) <= state.limits.pipeline_pieces_max, f"{link.host_id}: S5"
        queued = sum(state.fetches[number].length_bytes for number in link.requests)
        assert queued == link.queued_bytes, f"{link.host_id}: queued bytes do not balance"
        horizon_ns = state.now_ns + state.limits.quarantine_max_ns
        assert link.quarantined_until_ns <= horizon_ns, f"{link.host_id}: L3: quarantined for ever"


def _validate_feeds(state: PeerState) -> None:
    pulled = dict.fromkeys(state.tasks, 0)
    for link in state.links.values():
        for task_id, pieces in link.pulls.items():
            assert task_id in state.tasks, f"{link.host_id}: pulls of a task that is not here"
            assert pieces, f"{link.host_id}: a pull of nothing"
            assert not pulled[task_id] & pieces, f"{link.host_id}: pulls what another brings"
            pulled[task_id] |= pieces
        standing: dict[tuple[CollectionId, int], int] = {}
        for request_id in link.requests:
            feed = state.fetches[request_id].feed
            if feed is not None:
                standing[feed] = standing.get(feed, 0) + 1
        counted = {feed: count for feed, count in link.standing.items() if count}
        assert counted == standing, f"{link.host_id}: standing requests do not balance"
        for collection, stripe in link.feeds:
            assert collection is state.collections.get(collection.collection_id), "an old plan"
            assert collection.feeds[stripe] == link.host_id, f"{link.host_id}: feeds no stripe"
    for task in state.tasks.values():
        name = task.task_id[:8]
        assert task.pulled == pulled[task.task_id], f"{name}: pulled pieces do not balance"
        assert not task.pulled & task.held, f"{name}: pieces are pulled that are held"
    for collection in state.collections.values():
        for stripe, parent in enumerate(collection.feeds):
            fed_by = state.links.get(parent)
            assert fed_by is None or (collection, stripe) in fed_by.feeds, "a feed unknown to it"


def _validate_budget(state: PeerState, reads: "OriginReads") -> None:
    fetched = sum(fetch.length_bytes for fetch in state.fetches.values() if fetch.feed is None)
    assert fetched + reads.reserved_bytes == state.in_flight_bytes, "S7: budget does not balance"
    for request_id, fetch in state.fetches.items():
        assert request_id in fetch.link.requests, "S4: a request that its parent does not know"


def _validate_uploads(state: PeerState, uploads: "Uploads") -> None:
    serving = sum(len(child.serving) for child in state.children.values())
    queued = sum(len(child.queue) for child in state.children.values())
    assert serving == uploads.serving, "S4: pieces being served do not balance"
    assert queued == uploads.queued, "S4: waiting requests do not balance"
    pulls = sum(len(child.pulls) for child in state.children.values())
    assert pulls == uploads.pulls, "S4: pulls do not balance"
    assert serving <= state.limits.serving_max, "S5: too many pieces served at once"
    assert queued <= state.limits.upload_queue_total_max, "S5: too many requests wait"
    assert len(state.children) <= state.limits.children_max, "S5: too many children"


def _validate_awaited(state: PeerState, uploads: "Uploads") -> None:
    waiting = 0
    for child in state.children.values():
        numbers = [*child.waiting, *child.serving, *(number for number, _, _ in child.queue)]
        assert len(set(numbers)) == len(numbers), "S4: a child's request is in two states"
        depth = len(child.queue) + len(child.waiting)
        assert depth <= state.limits.upload_queue_pieces_max, "S5: too many requests of a child"
        assert all(number in numbers for number in child.pulls), "a pull of nobody"
        for number, (task_id, piece) in child.waiting.items():
            known = uploads.awaited[task_id].children[piece]
            assert known[child.connection_id, number] is child, "a standing request is forgotten"
            assert task_id in child.tasks, "S4: a standing request for a task that is closed"
            waiting += 1
    for task_id, awaited in uploads.awaited.items():
        assert task_id in state.tasks, "a task is awaited that is not here"
        assert awaited.mask, "nothing of a task is awaited"
        assert awaited.mask == sum(1 << piece for piece in awaited.children), "awaited is stale"
        assert all(awaited.children.values()), "a piece is awaited by nobody"
        waiting -= sum(map(len, awaited.children.values()))
    assert not waiting, "S4: a standing request of nobody"


def _validate_wishes(state: PeerState) -> None:
    assert len(state.downloads) <= state.limits.downloads_max, "S5: too many downloads"
    for download in state.downloads.values():
        assert download.collection_id in state.collections
        collection = state.collections[download.collection_id]
        assert download.download_id in collection.downloads
        assert download.ended == all(wish.ended for wish in download.wishes.values()), "S4: ends"
        for wish in download.wishes.values():
            if wish.task_id is not None and not wish.ended:
                task = state.tasks[wish.task_id]
                assert download.download_id in task.watchers, "a wish that its task forgot"
