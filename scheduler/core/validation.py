"""Every invariant of a scheduler core in one pass. Tests and the simulator run it."""

from scheduler.core.state import SchedulerState, Task


def validate(state: SchedulerState) -> None:
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
    covered = 0
    for host_id, held in task.holders.items():
        covered |= held & ~task.doubted.get(host_id, 0)
    assert covered == task.covered, "covered pieces do not balance"
    for host_id in task.wanted:
        assert host_id in state.hosts, "a host that is gone wants a task"
