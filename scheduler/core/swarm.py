"""Who is in which swarm, and what each host must be told of the others.

Decides parents and when digests are pushed. Small swarms connect everybody to everybody; in large
ones each host is connected to its parents (`scheduler.core.overlay`), and finds others by the map
(`scheduler.core.board`).
"""

from collections.abc import Callable, Iterable, Iterator

from scheduler.core.board import Board, Boards
from scheduler.core.confirming import DigestQuestions
from scheduler.core.state import Collection, SchedulerState, Task, Waiting
from shoal.wire import control as msg
from shoal.wire.ids import CollectionId, HostId, TaskId
from shoal.wire.limits import SECOND_NS


class Swarms:
    """Keeps collections, holders and the digest lists' way to the hosts."""

    def __init__(self, state: SchedulerState, *, on_roots: Callable[[Collection], None]) -> None:
        self._state = state
        self._boards = Boards(state, let_in=self.let_in, name=self.name_parents, on_roots=on_roots)
        self._questions = DigestQuestions(state)
        self._new_parents: dict[CollectionId, dict[HostId, None]] = {}
        self._fresh: dict[str, Task] = {}
        self._descriptions: dict[TaskId, msg.Described] = {}
        self._tokens: dict[TaskId, msg.SwarmToken] = {}
        self._push_due_ns: int | None = None
        self._last_push_ns = -(1 << 62)

    # ------------------------------------------------------------ taking part

    def serve(self, task: Task, host_id: HostId, waiting: Waiting) -> None:
        """A host may have the task: tell it all that it needs to begin. One of a crowd is told it
        together with its parents: it can do nothing before."""
        task.wanted[host_id] = waiting.collection_id
        collection = self._state.collections[waiting.collection_id]
        state = self._state
        send = state.send_with_next if self._boards.waits(collection, host_id) else state.send
        self._tell_token(task, host_id, send)
        send(host_id, self._described(task, waiting))
        for digests in self._digests(task, sorted(task.listed)):
            send(host_id, digests)
        self._questions.look(task)
        self._new_parents.setdefault(waiting.collection_id, {})[host_id] = None
        if collection.collection_id not in task.collections:
            number = collection.sources.index(waiting.member.source_id)
            task.collections[collection.collection_id] = number
            self._boards.task_known(collection)
        self._boards.joined(collection, self._state.hosts[host_id])

    def roots_of(self, collection: Collection) -> tuple[list[HostId], int]:
        """Who reads each stripe of a collection, and the length of a unit in bytes."""
        board = self._boards.of(collection.collection_id)
        assert board is not None, "somebody wants a task, so there is a board"
        return board.overlay.roots, board.maps.unit_bytes

    def slow_reader(self, collection: Collection, host_id: HostId) -> bool:
        """A root keeps all others waiting. False: there is nobody to take its place."""
        return self._boards.slow(collection, host_id)

    @property
    def boards(self) -> dict[CollectionId, Board]:
        """What is published of each collection."""
        return self._boards.all

    def publish(self) -> None:
        """Parents, maps and digests that are due. At the end of every event."""
        self.push_parents()
        self._questions.ask_if_due()
        told = self.push_digests_if_due()
        self._boards.publish_if_due(told)

    def _described(self, task: Task, waiting: Waiting) -> msg.Described:
        """The same object for all hosts that are told the same: it is serialised once."""
        known = self._descriptions.get(task.task_id)
        if (
            known is None
            or known.descriptor is not task.descriptor
            or known.collection_id != waiting.collection_id
            or known.source_id != waiting.member.source_id
        ):
            known = self._descriptions[task.task_id] = msg.Described(
                collection_id=waiting.collection_id,
                source_id=waiting.member.source_id,
                descriptor=task.descriptor,
            )
        return known

    def forget(self, task_id: TaskId) -> None:
        """The task is known no longer."""
        self._descriptions.pop(task_id, None)
        self._tokens.pop(task_id, None)

    def describe_again(self, task: Task) -> None:
        """The task changed (size sealed): tell all who fetch it."""
        for host_id, collection_id in task.wanted.items():
            self._state.send(
                host_id,
                msg.Described(
                    collection_id=collection_id,
                    source_id=task.descriptor.source_id,
                    descriptor=task.descriptor,
                ),
            )

    def _tell_token(
        self, task: Task, host_id: HostId, send: Callable[[HostId, msg.SwarmToken], None]
    ) -> None:
        now_ns = self._state.now_ns
        if self._is_old(task):
            task.token = self._state.token_source()
            task.token_expires_ns = now_ns + self._state.limits.token_ttl_ns
            task.tokens_told.clear()
            for other in task.wanted:
                self._tell_token(task, other, self._state.send)
        if task.tokens_told.get(host_id) == task.token_expires_ns:
            return
        task.tokens_told[host_id] = task.token_expires_ns
        # In whole seconds, so that those who join together are told with one object.
        ttl_ms = (task.token_expires_ns - now_ns) // SECOND_NS * 1000
        known = self._tokens.get(task.task_id)
        if known is None or known.token != task.token or known.ttl_ms != ttl_ms:
            known = self._tokens[task.task_id] = msg.SwarmToken(
                task_id=task.task_id, token=task.token, ttl_ms=ttl_ms
            )
        send(host_id, known)

    def _is_old(self, task: Task) -> bool:
        """Half of the token's time is over: it is to be renewed."""
        left_ns = task.token_expires_ns - self._state.now_ns
        return left_ns < self._state.limits.token_ttl_ns // 2

    # ------------------------------------------------------------ parents

    def push_parents(self) -> None:
        """Connects newcomers of small swarms to everybody. At the end of every event."""
        if not self._new_parents:
            return
        for collection_id, newcomers in self._new_parents.items():
            collection = self._state.collections.get(collection_id)
            if collection is None:
                continue
            if len(collection.members) > self._state.limits.mesh_hosts_max:
                continue
            candidates = self._candidates(collection)
            if len(candidates) > self._state.limits.mesh_hosts_max:
                continue
            for host_id in collection.members:
                added = candidates if host_id in newcomers else list(newcomers)
                self._name(collection, host_id, added)
        self._new_parents.clear()

    def _candidates(self, collection: Collection) -> list[HostId]:
        """Everybody who has something of the collection, or soon will; one more than make a small
        swarm are enough to know that it is none."""
        candidates: dict[HostId, None] = {}
        most = self._state.limits.mesh_hosts_max
        for hosts in (
            collection.members,
            *(
                part
                for _, task in self._state.tasks_of(collection)
                for part in (task.wanted, task.holders)
            ),
        ):
            if len(hosts) > most:
                return list(hosts)
            candidates.update(dict.fromkeys(hosts))
            if len(candidates) > most:
                break
        return list(candidates)

    def name_parents(
        self, collection: Collection, host_id: HostId, parents: tuple[HostId, ...]
    ) -> None:
        """A host of a large swarm is to be connected to these, and to no others."""
        told = collection.told.setdefault(host_id, {})
        self._name(collection, host_id, [parent for parent in parents if parent])
        if len(told) <= self._state.limits.mesh_hosts_max:
            return
        removed = tuple(other for other in told if other not in parents)
        for other in removed:
            del told[other]
        if removed:
            self._state.send(
                host_id, msg.Parents(collection_id=collection.collection_id, removed=removed)
            )

    def _name(self, collection: Collection, host_id: HostId, candidates: list[HostId]) -> None:
        told = collection.told.setdefault(host_id, {})
        hosts = self._state.hosts
        fresh = [
            other
            for other in dict.fromkeys(candidates)
            if other not in told
            and other != host_id
            and (host := hosts.get(other)) is not None
            and host.session is not None
        ]
        fresh = fresh[: max(0, self._state.limits.parents_max - len(told))]
        if not fresh:
            return
        told.update(dict.fromkeys(fresh))
        self.let_in(collection, fresh)
        self._state.send(
            host_id,
            msg.Parents(
                collection_id=collection.collection_id,
                added=tuple([hosts[other].as_parent for other in fresh]),
            ),
        )

    def let_in(self, collection: Collection, holders: Iterable[HostId]) -> None:
        """Holders must know the token that will be shown to them."""
        for _, task in self._state.tasks_of(collection):
            told, expires_ns = task.tokens_told, task.token_expires_ns
            known = not self._is_old(task)
            for holder in holders:
                if known and told.get(holder) == expires_ns:
                    continue
                if holder in task.wanted or holder in task.holders:
                    self._tell_token(task, holder, self._state.send)

    def leave(self, collection: Collection, host_id: HostId) -> None:
        """A host wants a collection no longer; as a holder it stays known to the others."""
        collection.members.pop(host_id, None)
        collection.told.pop(host_id, None)
        self._boards.left(collection, host_id)

    def host_back(self, host_id: HostId) -> None:
        """A host has a new stream: it knows nothing of what was told to the old one."""
        self._boards.host_back(host_id)
        for task in self._state.tasks.values():
            task.tokens_told.pop(host_id, None)
            self._questions.host_gone(task, host_id)
        for collection in self._state.collections.values():
            collection.told.pop(host_id, None)
            # Its address may be another one now, and what it holds may help everybody again.
            for others in collection.told.values():
                others.pop(host_id, None)
            if any(
                (source := self._state.sources.get(source_id)) is not None
                and source.task_id in self._state.hosts[host_id].holdings
                for source_id in collection.sources
            ):
                self._new_parents.setdefault(collection.collection_id, {})[host_id] = None

    def host_away(self, host_id: HostId) -> None:
        """A host does not answer: it feeds nobody, and what only it holds is missing."""
        self._boards.host_gone(host_id)
        for task_id in self._state.hosts[host_id].holdings:
            task = self._state.tasks[task_id]
            task.doubted[host_id] = task.holders.get(host_id, 0)
            task.recount()

    def host_gone(self, host_id: HostId) -> None:
        """A host is gone for good: the others need not try it any more."""
        self._boards.host_gone(host_id)
        for collection in self._state.collections.values():
            for member, told in collection.told.items():
                if told.pop(host_id, 0) is None:
                    self._state.send(
                        member,
                        msg.Parents(collection_id=collection.collection_id, removed=(host_id,)),
                    )
        for task in self._state.tasks.values():
            task.tokens_told.pop(host_id, None)
            self._questions.host_gone(task, host_id)
            if host_id in task.holders:
                self.lost(task, host_id)

    # ------------------------------------------------------------ holdings

    def holds(self, task: Task, host_id: HostId, new: int) -> None:
        """A host holds more of a task."""
        if not new:
            return
        task.holders[host_id] = task.holders.get(host_id, 0) | new
        task.covered |= new & ~task.doubted.get(host_id, 0)
        self._state.hosts[host_id].holdings[task.task_id] = None
        if new & ~task.listed_pieces:
            self._questions.look(task)
        self._boards.changed(task, host_id)

    def lost(self, task: Task, host_id: HostId) -> None:
        """A host holds nothing of a task any more."""
        task.holders.pop(host_id, None)
        task.sealed.pop(host_id, None)
        host = self._state.hosts.get(host_id)
        if host is not None:
            host.holdings.pop(task.task_id, None)
        task.doubted.pop(host_id, None)
        task.recount()
        self._boards.changed(task, host_id)

    def lost_some(self, task: Task, host_id: HostId, pieces: int) -> None:
        """A host holds some pieces no longer."""
        if host_id in task.holders:
            task.holders[host_id] &= ~pieces
            # It claims them no longer: it may read them, and be believed when it has.
            if host_id in task.doubted:
                task.doubted[host_id] &= ~pieces
            task.sealed.pop(host_id, None)
            task.recount()
            self._boards.changed(task, host_id)

    def doubt(self, task: Task, host_id: HostId, pieces: int) -> bool:
        """A holder did not give pieces that it claims, or gave them wrong: they count as held only
        if somebody else holds them. Whether that uncovered any."""
        doubted = task.doubted.get(host_id, 0)
        new = task.holders.get(host_id, 0) & pieces & ~doubted
        if not new:
            return False
        task.doubted[host_id] = doubted | new
        before = task.covered
        task.recount()
        self._boards.changed(task, host_id)
        return task.covered != before

    # ------------------------------------------------------------ digests

    def listed(self, task: Task) -> None:
        """New digests of a task are known."""
        if task.fresh:
            self._fresh[task.task_id] = task
            if self._push_due_ns is None:
                interval_ns = self._boards.interval_ns(len(task.wanted))
                due_ns = max(self._state.now_ns, self._last_push_ns + interval_ns)
                self._push_due_ns = due_ns
                self._state.wake_at(due_ns)

    def push_digests_if_due(self) -> dict[CollectionId, None]:
        """Sends fresh digests to everybody who fetches the task. At the end of every event.
        Returns the collections whose members were sent some."""
        if self._push_due_ns is None or self._state.now_ns < self._push_due_ns:
            return {}
        self._push_due_ns = None
        self._last_push_ns = self._state.now_ns
        for task in self._fresh.values():
            pieces, task.fresh = task.fresh, []
            # One object for all hosts: the shell serialises it once.
            for digests in self._digests(task, pieces):
                for host_id in task.wanted:
                    self._state.send(host_id, digests)
        told = {
            collection_id: None
            for task in self._fresh.values()
            for collection_id in task.collections
        }
        self._fresh.clear()
        return told

    def _digests(self, task: Task, pieces: list[int]) -> Iterator[msg.Digests]:
        """The digests of these pieces, in messages of bounded length."""
        size = self._state.limits.digests_per_message_max
        for start in range(0, len(pieces), size):
            yield msg.Digests(
                task_id=task.task_id,
                epoch=task.descriptor.epoch,
                entries=tuple(
                    (piece, stated.digest, stated.lease_number)
                    for piece in pieces[start : start + size]
                    if (stated := task.listed.get(piece)) is not None
                ),
            )
