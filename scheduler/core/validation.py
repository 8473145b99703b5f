"""Every invariant of a scheduler core in one pass. Tests and the simulator run it."""

from scheduler.core.board import Board
from scheduler.core.overlay import Overlay
from scheduler.core.state import Collection, SchedulerState, Task
from shoal.wire.bitfield import Counts
from shoal.wire.ids import CollectionId, HostId


def validate(state: SchedulerState, boards: dict[CollectionId, Board]) -> None:
    """Raises AssertionError with the invariant that does not hold."""
    for host in state.hosts.values():
        if host.session is not None:
            assert state.sessions[host.session] == host.host_id, "a session of another host"
        for collection_id in host.collections:
            assert host.host_id in state.collections[collection_id].members
        for task_id in host.holdings:
            assert host.host_id in state.tasks[task_id].holders
    for collection in state.collections.values():
        assert collection.members, "an empty collection is kept"
        for host_id in collection.members:
            assert collection.collection_id in state.hosts[host_id].collections
    for lease in state.leases.values():
        task = state.tasks[lease.task_id]
        assert lease.number in task.readers[lease.host_id].leases, "a lease that nobody has"
    for task in state.tasks.values():
        _validate_task(state, task)
    for collection_id, board in boards.items():
        _validate_board(state, state.collections[collection_id], board)
    for session in state.held_sessions:
        held_for = state.sessions[session]
        assert any(
            held_for in board.fresh and board.due_ns is not None for board in boards.values()
        ), "what is held back for a host that is told nothing soon"
    assert len(state.hosts) <= state.limits.hosts_max
    assert len(state.collections) <= state.limits.collections_max


def _validate_task(state: SchedulerState, task: Task) -> None:
    leased = 0
    sequential = 0
    for host_id, reader in task.readers.items():
        for number in reader.leases:
            lease = state.leases[number]
            assert lease.host_id == host_id
            assert not leased & lease.pieces, "S1: a piece is leased twice"
            leased |= lease.pieces
            sequential += lease.sequential
    assert leased == task.leased, "S7: leased pieces do not balance"
    assert sequential <= 1, "S1: two sequential leases"
    assert 1 <= task.descriptor.epoch <= state.limits.epochs_max, "an epoch out of bounds"
    assert task.listed_pieces == sum(1 << piece for piece in task.listed), "a list and its mask"
    covered = 0
    for host_id, held in task.holders.items():
        covered |= held & ~task.doubted.get(host_id, 0)
    assert covered == task.covered, "covered pieces do not balance"
    for host_id in task.wanted:
        assert host_id in state.hosts, "a host that is gone wants a task"


def _validate_board(state: SchedulerState, collection: Collection, board: Board) -> None:
    listing, maps = board.listing, board.maps
    assert len(listing.numbers) <= state.limits.map_hosts_max, "S5: too many hosts are numbered"
    assert len(listing.numbers) == len(listing.hosts), "a number of nobody"
    for host_id, number in listing.numbers.items():
        assert listing.hosts[number].host_id == host_id, "a number of another host"
        assert host_id in state.hosts, "a host that is gone is listed"
    counts: dict[int, Counts] = {}
    told_counts: dict[int, Counts] = {}
    for told, books in ((maps.told, (counts, told_counts)), (maps.untold, (counts,))):
        for host_id, by_task in told.items():
            listed = host_id in listing.numbers
            assert listed == (told is maps.told), "the swarm knows of a host without a number"
            for number, starts in by_task.items():
                for book in books:
                    book.setdefault(number, Counts()).add(starts)
    for book, kept in ((counts, maps.counts), (told_counts, maps.told_counts)):
        for number, told_of_task in kept.items():
            assert told_of_task == book.pop(number, Counts()), "counts and what is held differ"
        assert not book, "what is held is not counted"
    for host_id in maps.to_tell:
        assert host_id in maps.told, "nothing is known that could be told"
    for host_id in board.fresh:
        assert host_id in collection.members, "a map for a host that is no member"
        assert host_id in board.overlay, "a map for a host that takes no part"
    for host_id in board.fed:
        assert host_id in board.overlay, "parents of a host that takes no part"
    for place in board.overlay.places:
        assert place.host_id in state.hosts, "a host that is gone takes part"
    assert board.due_ns is None or board.due_ns <= state.now_ns + state.limits.map_interval_ns
    assert not board.overlay.dirty or board.due_ns is not None, "trees that are never built"
    _validate_overlay(board.overlay)


def _validate_overlay(overlay: Overlay) -> None:
    for place in overlay.places:
        assert overlay.place(place.host_id) is place, "the index of places is stale"
    assert len(overlay) == len(overlay.places), "a place of nobody"
    if overlay.dirty:
        return
    assert len(overlay.roots) == len(overlay.parents)
    for root, tree in zip(overlay.roots, overlay.parents, strict=True):
        assert root not in tree, "a root with a parent"
        assert len(tree) + 1 == len(overlay), "a member without a parent"
        reached: dict[HostId, None] = {root: None}
        for member in tree:
            path: dict[HostId, None] = {}
            while member not in reached:
                assert member not in path, "a circle of parents"
                path[member] = None
                member = tree[member]
            reached.update(path)
