"""Parents: whom to connect to, how healthy each is, and what it holds.

Decides connections and quarantines. A strike doubles the quarantine, every quarantine expires, and
a parent without a new strike for a while starts clean: a ban for ever can leave a host with no
parent at all.
"""

from collections.abc import Callable

from peer.core.effects import CloseChannel, Connect, Disconnect, Noted, OpenChannel
from peer.core.events import (
    ParentActive,
    ParentClosed,
    ParentConnected,
    ParentConnectFailed,
    ParentHave,
    ParentOpened,
    ParentRefused,
    ParentWithdrew,
)
from peer.core.state import (
    Channel,
    Collection,
    Link,
    LinkPhase,
    PeerState,
    Task,
    TaskPhase,
)
from shoal.wire.control import Parent, Parents
from shoal.wire.errors import Reason
from shoal.wire.ids import CollectionId, HostId, TaskId
from shoal.wire.limits import MILLISECOND_NS, SECOND_NS

STRIKE_DOUBLINGS_MAX = 10
"""Beyond this the quarantine has reached its maximum anyway."""

REFUSAL_RETRY_NS = 2 * SECOND_NS
"""A parent that refused a task (it holds nothing of it yet, our token is older than its own) is
asked again after this time."""

RATE_GAIN = 0.25
"""Weight of the newest sample in a parent's measured rate."""


class ParentTable:
    """Keeps the links to parents. `on_change(link)` is called when one may take requests."""

    def __init__(self, state: PeerState, *, on_change: Callable[[Link], None]) -> None:
        self._state = state
        self._on_change = on_change
        self._refresh_at_ns: int | None = None
        self._stale = False

    # ------------------------------------------------------------ membership

    def named(self, message: Parents, collection: Collection) -> None:
        """The scheduler names parents of a collection, or takes some back."""
        for parent in message.added:
            if parent.host_id == self._state.host.host_id:
                continue
            link = self._state.links.get(parent.host_id)
            if link is None:
                link = self._new_link(parent)
            elif link.addresses != parent.addresses:
                # The host came back elsewhere: what was learnt of its old place says nothing.
                link.addresses = parent.addresses
                link.quarantined_until_ns = 0
                if link.phase is LinkPhase.UP and link.connection_id is not None:
                    self._state.emit(Disconnect(connection_id=link.connection_id))
            elif link.phase is LinkPhase.IDLE:
                # It was gone, and the scheduler hears from it again.
                link.quarantined_until_ns = min(link.quarantined_until_ns, link.wrong_until_ns)
            link.collections[collection.collection_id] = None
            session = self._state.session
            collection.parents[parent.host_id] = session.number if session is not None else 0
        for host_id in message.removed:
            collection.parents.pop(host_id, None)
            link = self._state.links.get(host_id)
            if link is not None:
                link.collections.pop(collection.collection_id, None)
        self.refresh()

    def _new_link(self, parent: Parent) -> Link:
        link = Link(host_id=parent.host_id, addresses=parent.addresses, zone=parent.zone)
        link.met_ns = self._state.now_ns
        # It may have been assigned before it was named, or be named again after it was forgotten.
        link.feeds = [
            (collection, stripe)
            for collection in self._state.collections.values()
            for stripe, feed in enumerate(collection.feeds)
            if feed == parent.host_id
        ]
        self._state.links[parent.host_id] = link
        return link

    def meet(self, parent: Parent, collection: Collection) -> Link | None:
        """A link to a host of the swarm that was not named as a parent; None if it is not to be
        used now. It connects if it has to."""
        link = self._state.links.get(parent.host_id)
        if link is None:
            if len(self._state.links) >= self._state.limits.parents_max:
                self._make_room(collection)
            if len(self._state.links) >= self._state.limits.parents_max:
                return None
            link = self._new_link(parent)
        if (
            max(link.quarantined_until_ns, link.busy_until_ns, link.no_pulls_until_ns)
            > self._state.now_ns
        ):
            return None
        link.collections[collection.collection_id] = None
        link.met_ns = self._state.now_ns
        if link.phase is LinkPhase.IDLE:
            self._connect(link)
        return link

    def _make_room(self, collection: Collection) -> None:
        """Lets go of a host that was met for a pull and is not needed any more."""
        for link in self._state.links.values():
            if (
                not link.pulls
                and not link.requests
                and link.phase is not LinkPhase.CONNECTING
                and link.host_id not in collection.parents
                and list(link.collections) == [collection.collection_id]
            ):
                link.collections.clear()
                self._release(link)
                return

    def forget_unnamed(self, collection: Collection, session: int) -> None:
        """A new scheduler had time to name parents: those of the last one that bring nothing are
        let go, or they would add up."""
        for host_id, named_in in list(collection.parents.items()):
            link = self._state.links.get(host_id)
            if named_in != session and (link is None or not (link.requests or link.feeds)):
                del collection.parents[host_id]
                if link is not None:
                    link.collections.pop(collection.collection_id, None)
        self.refresh()

    def forget_collection(self, collection: Collection) -> None:
        """The collection is no longer wanted: links that served only it are closed."""
        for host_id in collection.parents:
            link = self._state.links.get(host_id)
            if link is not None:
                link.collections.pop(collection.collection_id, None)
        collection.parents.clear()
        self.refresh()

    def refresh(self) -> None:
        """What is needed may have changed: it is looked at once at the end of the event, however
        many tasks the event is about."""
        self._stale = True

    def refresh_if_stale(self) -> None:
        """Connects what is needed, opens channels, closes what is not needed any more. Channels of
        tasks that flow by a plan are opened when they are needed."""
        if not self._stale:
            return
        self._stale = False
        if not self._state.links:
            return
        wanted = self._wanted_tasks()
        up = 0
        # There is room for so many only: those that feed this host come first.
        for link in sorted(self._state.links.values(), key=lambda link: not link.feeds):
            needed = False
            tasks: dict[TaskId, Task] = {}
            for collection_id in link.collections:
                if collection_id in wanted:
                    needed = True
                    tasks.update(wanted[collection_id])
            if not needed:
                self._release(link)
                continue
            if up >= self._state.limits.parents_max:
                continue
            up += 1
            if link.phase is LinkPhase.IDLE:
                self._connect(link)
            elif link.phase is LinkPhase.UP:
                for task in tasks.values():
                    self.open_channel(link, task)

    def _wanted_tasks(self) -> dict[CollectionId, dict[TaskId, Task]]:
        """By collection that still lacks something: the tasks that do not flow by a plan."""
        wanted: dict[CollectionId, dict[TaskId, Task]] = {}
        for task in self._state.tasks.values():
            if task.phase is not TaskPhase.ACTIVE or not task.watchers or task.complete:
                continue
            planned = self._state.planned(task)
            for download_id in task.watchers:
                collection_id = self._state.downloads[download_id].collection_id
                tasks = wanted.setdefault(collection_id, {})
                if not planned:
                    tasks[task.task_id] = task
        return wanted

    def _release(self, link: Link) -> None:
        if link.phase is LinkPhase.UP and link.connection_id is not None:
            for task_id in list(link.channels):
                self._close_channel(link, task_id)
            if not link.collections:
                self._state.emit(Disconnect(connection_id=link.connection_id))
        elif link.phase is LinkPhase.IDLE and not link.collections:
            quiet_ns = self._state.now_ns - link.last_strike_ns
            if not link.strikes or quiet_ns > self._state.limits.strike_memory_ns:
                del self._state.links[link.host_id]

    def _connect(self, link: Link) -> None:
        if link.quarantined_until_ns > self._state.now_ns:
            self._refresh_at(link.quarantined_until_ns)
            return
        link.phase = LinkPhase.CONNECTING
        self._state.emit(Connect(host_id=link.host_id, addresses=link.addresses))

    def open_channel(self, link: Link, task: Task) -> None:
        """Opens the channel of a task, unless it is open, refused for now, or no token is here."""
        if link.phase is not LinkPhase.UP:
            return
        assert link.connection_id is not None
        channel = link.channels.get(task.task_id)
        if channel is not None:
            if channel.refused_until_ns == 0:
                return
            if channel.refused_until_ns > self._state.now_ns:
                self._refresh_at(channel.refused_until_ns)
                return
        token = self.token(task.task_id)
        if token is None:
            return
        link.channels[task.task_id] = Channel()
        self._state.emit(
            OpenChannel(
                connection_id=link.connection_id,
                task_id=task.task_id,
                token=token,
                piece_count_max=task.piece_count_max,
            )
        )

    def token(self, task_id: TaskId) -> bytes | None:
        """The newest swarm token of a task that is still good."""
        tokens = self._state.tokens.get(task_id, [])
        good = [token for token, expires_ns in tokens if expires_ns > self._state.now_ns]
        return good[-1] if good else None

    def finished(self, task: Task) -> None:
        """The task needs nothing from parents any more."""
        for link in self._state.live_links():
            if task.task_id in link.channels:
                self._close_channel(link, task.task_id)

    def _close_channel(self, link: Link, task_id: TaskId) -> None:
        channel = link.channels.pop(task_id)
        self._lower(task_id, channel)
        if link.connection_id is not None and channel.refused_until_ns == 0:
            self._state.emit(CloseChannel(connection_id=link.connection_id, task_id=task_id))

    def _lower(self, task_id: TaskId, channel: Channel) -> None:
        task = self._state.tasks.get(task_id)
        if task is not None and channel.held:
            task.availability.remove(channel.held)
        channel.held = 0
        channel.open = False

    # ------------------------------------------------------------ connection events

    def connected(self, event: ParentConnected) -> None:
        """A connection stands."""
        link = self._state.links.get(event.host_id)
        if link is None or link.phase is not LinkPhase.CONNECTING:
            self._state.emit(Disconnect(connection_id=event.connection_id))
            return
        link.phase = LinkPhase.UP
        link.connection_id = event.connection_id
        link.round_trip_ns = event.round_trip_ns
        self._state.links_by_connection[event.connection_id] = link
        self.refresh()
        self._on_change(link)

    def connect_failed(self, event: ParentConnectFailed) -> None:
        """No connection to a parent could be made."""
        link = self._state.links.get(event.host_id)
        if link is not None and link.phase is LinkPhase.CONNECTING:
            link.phase = LinkPhase.IDLE
            self.strike(link.host_id, event.reason, lost=True)

    def closed(self, event: ParentClosed) -> None:
        """A connection is gone."""
        link = self._state.links_by_connection.pop(event.connection_id, None)
        if link is None:
            return
        for task_id, channel in link.channels.items():
            self._lower(task_id, channel)
        link.channels.clear()
        link.phase = LinkPhase.IDLE
        link.connection_id = None
        if link.collections and event.reason is not Reason.CANCELLED:
            self.strike(link.host_id, event.reason, lost=event.reason is Reason.PEER_LOST)
        self.refresh()

    def opened(self, event: ParentOpened) -> None:
        """A parent tells what it holds of a task."""
        link, channel = self._channel(event.connection_id, event.task_id)
        task = self._state.tasks.get(event.task_id)
        if link is None or channel is None or task is None:
            return
        self._lower(event.task_id, channel)
        channel.open = True
        # A parent of another epoch has nothing that we could use until it reports again.
        channel.held = event.held if event.epoch == task.descriptor.epoch else 0
        task.availability.add(channel.held)
        self._on_change(link)

    def refused(self, event: ParentRefused) -> None:
        """A parent does not serve a task to us (any more)."""
        link, channel = self._channel(event.connection_id, event.task_id)
        if link is None or channel is None:
            return
        self._lower(event.task_id, channel)
        channel.refused_until_ns = self._state.now_ns + REFUSAL_RETRY_NS
        self._refresh_at(channel.refused_until_ns)

    def have(self, event: ParentHave) -> None:
        """A parent has new pieces."""
        link, channel = self._channel(event.connection_id, event.task_id)
        task = self._state.tasks.get(event.task_id)
        if link is None or channel is None or task is None or not channel.open:
            return
        new = event.new & ~channel.held
        channel.held |= new
        task.availability.add(new)
        if not self._state.planned(task):
            self._on_change(link)

    def withdrew(self, event: ParentWithdrew) -> None:
        """A parent lost pieces."""
        _, channel = self._channel(event.connection_id, event.task_id)
        task = self._state.tasks.get(event.task_id)
        if channel is None or task is None:
            return
        gone = event.gone & channel.held
        channel.held &= ~gone
        task.availability.remove(gone)

    def _channel(
        self, connection_id: int, task_id: TaskId
    ) -> tuple[Link, Channel] | tuple[None, None]:
        link = self._state.links_by_connection.get(connection_id)  # type: ignore[call-overload]
        if link is None:
            return None, None
        channel = link.channels.get(task_id)
        if channel is None:
            return None, None
        return link, channel

    # ------------------------------------------------------------ health

    def strike(self, host_id: HostId, reason: Reason, *, lost: bool = False) -> None:
        """A parent failed us: quarantine it for a time that doubles with each strike. `lost`: there
        is no connection to it."""
        link = self._state.links.get(host_id)
        if link is None:
            return
        now_ns, limits = self._state.now_ns, self._state.limits
        if now_ns - link.last_strike_ns > limits.strike_memory_ns:
            link.strikes = 0
        wrong = reason in (Reason.PEER_CORRUPT, Reason.PEER_CONTRADICTED, Reason.PEER_PROTOCOL)
        base_ns = limits.quarantine_corrupt_ns if wrong else limits.quarantine_fault_ns
        duration_ns = min(
            limits.quarantine_max_ns, base_ns << min(link.strikes, STRIKE_DOUBLINGS_MAX)
        )
        # Half of the time is drawn: hosts that lost the same parent do not come back as one.
        duration_ns = duration_ns // 2 + int(duration_ns // 2 * self._state.dice.random())
        link.strikes += 1
        link.last_strike_ns = now_ns
        link.quarantined_until_ns = max(link.quarantined_until_ns, now_ns + duration_ns)
        if not lost:
            link.wrong_until_ns = max(link.wrong_until_ns, now_ns + duration_ns)
        self._refresh_at(link.quarantined_until_ns)
        if wrong:
            self._state.emit(
                Noted(
                    kind="quarantined",
                    text=f"not asked for {duration_ns // MILLISECOND_NS} ms",
                    host_id=host_id,
                    reason=reason,
                )
            )

    def active(self, event: ParentActive) -> None:
        """Payload arrives from a parent: it is not stalled."""
        link = self._state.links_by_connection.get(event.connection_id)
        if link is not None:
            link.last_active_ns = self._state.now_ns

    def delivered(self, link: Link, length_bytes: int, sent_ns: int) -> None:
        """A piece came from a parent: its measured rate follows (an exponential average)."""
        now_ns = self._state.now_ns
        spent_ns = max(1, now_ns - max(link.last_end_ns, sent_ns))
        sample = length_bytes * SECOND_NS / spent_ns
        if link.rate_bytes_s == 0.0:
            link.rate_bytes_s = sample
        else:
            link.rate_bytes_s += RATE_GAIN * (sample - link.rate_bytes_s)
        link.last_end_ns = link.last_active_ns = now_ns
        link.received_bytes += length_bytes

    def tick(self) -> None:
        """Time passed: quarantines expire, refusals are asked again."""
        if self._refresh_at_ns is not None and self._refresh_at_ns <= self._state.now_ns:
            self._refresh_at_ns = None
            self.refresh()
            for link in self._state.live_links():
                self._on_change(link)

    def _refresh_at(self, when_ns: int) -> None:
        if self._refresh_at_ns is None or when_ns < self._refresh_at_ns:
            self._refresh_at_ns = when_ns
        self._state.wake_at(when_ns)
