"""Which piece from which parent, and when. Decides requests, their time limits and duplicates.

A parent is kept busy with a pipeline sized by its measured rate times the delay; pieces are chosen
rarest first, or in order for the reader's share. When everything that is missing is on its way,
idle parents are asked for the same pieces again (the endgame), so that one slow parent never holds
the tail.
"""

import heapq
from collections.abc import Callable

from peer.core.download import TaskKeeper
from peer.core.effects import CancelFetch, DropPieces, FetchPiece
from peer.core.events import FetchEnded, PieceRecord, Reading
from peer.core.feeds import Feeds
from peer.core.parents import ParentTable
from peer.core.picker import pick
from peer.core.state import Collection, Fetch, Link, LinkPhase, PeerState, Task, TaskPhase
from shoal.wire import bitfield
from shoal.wire.errors import Reason
from shoal.wire.ids import CollectionId, RequestId
from shoal.wire.limits import MILLISECOND_NS, SECOND_NS

PIPELINE_HORIZON_NS = 30 * MILLISECOND_NS
"""Beside twice the round trip: how far ahead of a parent's sending its queue is filled. Long
enough to bridge a busy event loop, short enough that rarity is judged on fresh news."""

STANDING_MIN = 2
"""Standing requests of one stripe: the one that comes, and the one that its parent sends next."""

STANDING_MAX = 16
"""And at most: a parent keeps a bounded list of what each child waits for."""

MAP_LOOK_NS = 500 * MILLISECOND_NS
"""How often it is looked for what is late while nothing new is told."""

REFUSED_NS = 500 * MILLISECOND_NS
"""How long a host is not asked again by plan for anything when it refused something."""

FIRST_IN_ORDER = 4
"""The first requests of a streamed task all go in order, so that its reader starts at once. Who
reads from elsewhere waits for so many at most."""

READERS_MAX = 4096
"""Readers of one task whose places are heeded."""

PARENT_FAULTS = frozenset(
    {Reason.PEER_CORRUPT, Reason.PEER_STALLED, Reason.PEER_PROTOCOL, Reason.PEER_CONTRADICTED}
)
LOCAL_FAULTS = frozenset({Reason.DISK_FULL, Reason.DISK_FAILED, Reason.DISK_READ_ONLY})


class Fetcher:
    """Keeps the requests to parents. `on_local_failure(task, reason, detail)`: our disk failed."""

    def __init__(
        self,
        state: PeerState,
        keeper: TaskKeeper,
        parents: ParentTable,
        *,
        feeds: Feeds,
        on_local_failure: Callable[[Task, Reason, str], None],
    ) -> None:
        self._state = state
        self._keeper = keeper
        self._parents = parents
        self._feeds = feeds
        self._on_local_failure = on_local_failure
        self._deadlines: list[tuple[int, RequestId]] = []
        self._next_look_ns: int | None = None
        self._dirty: dict[str, Link] = {}
        self._blocked: dict[str, Link] = {}
        """Parents passed over because of a quarantine or a `busy` that will expire."""
        self._all_dirty = False
        self._starved: dict[str, Link] = {}
        """Parents that could have been asked for more, had the budget of bytes allowed it."""
        self._budget_spent = False
        self._maps_due_ns: int | None = None
        self._mapped: dict[CollectionId, Collection] = {}
        """Collections whose pulls are to be looked at again."""

    def map_changed(self, collection: Collection) -> None:
        """There is news of who holds what."""
        self._mapped[collection.collection_id] = collection

    def link_changed(self, link: Link) -> None:
        """This parent may take requests that it could not before."""
        self._dirty[link.host_id] = link

    def reassigned(self, collection: Collection) -> None:
        """Other parents feed some stripes now: what the old ones lack is asked of the new."""
        for fetch in list(self._state.fetches.values()):
            if fetch.feed is None or fetch.feed[0] != collection.collection_id:
                continue
            stripe = fetch.feed[1]
            stays = (
                stripe < len(collection.feeds)
                and collection.feeds[stripe] == fetch.link.host_id
                and self._feeds.belongs(fetch.task, fetch.piece, stripe)
            )
            if not stays and not self._owed(fetch):
                self._cancel(fetch)
        self._all_dirty = True
        self.map_changed(collection)

    def plan_over(self, collection: Collection) -> None:
        """Nobody feeds anything any more: what parents were to bring may come from anybody."""
        for fetch in list(self._state.fetches.values()):
            if fetch.feed is not None and fetch.feed[0] == collection.collection_id:
                self._cancel(fetch)

    def task_changed(self, _task: Task) -> None:
        """Pieces of a task may be requested from anybody again."""
        self._all_dirty = True

    @staticmethod
    def read_first(task: Task, event: Reading) -> bool:
        """Heeds what a reader waits for. False: nothing is to be asked for that was not before."""
        before = task.urgent
        geometry = task.descriptor.geometry
        # It begins at once, and has later what it waits for and no more: what all hosts read in
        # the same order they cannot give one another.
        ahead = FIRST_IN_ORDER if event.reader not in task.readers else 1
        task.readers.pop(event.reader, None)
        if event.piece_count and len(task.readers) < READERS_MAX:
            waits = bitfield.mask_of(event.first_piece, min(event.piece_count, ahead))
            if geometry.size_bytes is not None:
                waits &= geometry.all_pieces
            task.readers[event.reader] = waits
        task.urgent = 0
        for waits in task.readers.values():
            task.urgent |= waits
        return bool(task.urgent & ~before & ~task.held)

    # ------------------------------------------------------------ choosing

    def fill(self) -> None:
        """Sends what can be sent now. Called at the end of every event."""
        self._plan_pulls()
        if self._all_dirty:
            self._all_dirty = False
            self._dirty.clear()
            links = list(self._state.live_links())
            # Parents with the fewest requests first: they have room and the others are busy.
            links.sort(key=lambda link: len(link.requests))
        elif self._dirty:
            links = list(self._dirty.values())
            self._dirty.clear()
        else:
            links = []
        for link in links:
            self._fill_link(link)
        # Whatever ended made room for one of them at least; they take turns.
        for host_id, link in list(self._starved.items()):
            if self._budget_spent:
                return
            del self._starved[host_id]
            self._fill_link(link)

    def _fill_link(self, link: Link) -> None:
        now_ns = self._state.now_ns
        if link.phase is not LinkPhase.UP:
            return
        blocked_until_ns = max(link.quarantined_until_ns, link.busy_until_ns)
        if blocked_until_ns > now_ns:
            self._blocked[link.host_id] = link
            self._state.wake_at(blocked_until_ns)
            return
        if not self._fill_planned(link):
            return
        tasks = [
            (task, channel)
            for task_id, channel in link.channels.items()
            if channel.open
            and (task := self._state.tasks[task_id]).phase is TaskPhase.ACTIVE
            and (
                not self._state.planned(task)
                or (task.searched and link.no_pulls_until_ns <= now_ns)
            )
        ]
        if len(tasks) > 1:
            tasks.sort(key=lambda pair: (not pair[0].urgent, -pair[0].priority))
        for task, channel in tasks:
            depth = self._depth(link, task)
            while _counted(link) < depth:
                candidates = channel.held & ~task.held & ~task.flying_mask & ~task.reading_mask
                if task.descriptor.geometry.size_bytes is not None:
                    candidates &= task.missing  # A parent may have told of pieces behind the end.
                if self._state.planned(task):
                    candidates &= task.searched
                    if not candidates:
                        break
                if not candidates:
                    candidates = self._endgame(link, task, channel.held)
                    if not candidates:
                        break
                if not self._request(link, task, candidates):
                    return

    # ------------------------------------------------------------ by plan

    def _plan_pulls(self) -> None:
        due = self._maps_due_ns is not None and self._maps_due_ns <= self._state.now_ns
        if due:
            # What is late, and who may be asked, changes with time alone.
            self._maps_due_ns = None
            for collection in self._state.collections.values():
                if collection.feeds:
                    self.map_changed(collection)
        if not self._mapped:
            return
        if self._maps_due_ns is None and not self._state.on_our_own:
            self._maps_due_ns = self._state.now_ns + MAP_LOOK_NS
            self._state.wake_at(self._maps_due_ns)
        mapped, self._mapped = self._mapped, {}
        for collection in mapped.values():
            if self._state.on_our_own or collection.collection_id not in self._state.collections:
                continue
            for link, task, pieces in self._feeds.plan_pulls(collection):
                # Who was to bring them is late: they come from elsewhere now.
                self.cancel_pieces(task, pieces)
                self.link_changed(link)

            if self._feeds.searching:
                self._feeds.searching = False
                self._all_dirty = True

    def _fill_planned(self, link: Link) -> bool:
        """Pulls and standing requests at a parent. False: there is no room for any request."""
        for task_id, pieces in list(link.pulls.items()):
            task = self._state.tasks[task_id]
            if task.phase is not TaskPhase.ACTIVE:
                continue
            channel = link.channels.get(task_id)
            if channel is None or not channel.open:
                self._parents.open_channel(link, task)
                continue
            pulling = _counted(link)
            for piece in bitfield.pieces(pieces & ~task.flying_mask):
                if pulling >= self._depth(link, task):
                    break
                pulling += 1
                if not self._send(link, task, piece):
                    return False
        return self._fill_feeds(link)

    def _fill_feeds(self, link: Link) -> bool:
        if link.feeds and link.feeds_again_ns > self._state.now_ns:
            self._blocked[link.host_id] = link
            self._state.wake_at(link.feeds_again_ns)
            return True
        for collection, stripe in link.feeds:
            feed = (collection.collection_id, stripe)
            # As deep as it was last found to be worth: most of the time it is full. Several
            # requests in one frame cost both sides no more than one does.
            depth = link.depths.get(feed, STANDING_MAX)
            if link.standing.get(feed, 0) > depth - max(1, depth // 4):
                continue
            while link.standing.get(feed, 0) < link.depths.get(feed, STANDING_MAX):
                found = self._feeds.next_piece(link, collection, stripe)
                if found is None:
                    break
                task, piece = found
                link.depths[feed] = self._standing_depth(link, task)
                if link.standing.get(feed, 0) >= link.depths[feed]:
                    break
                if not self._send(link, task, piece, feed=feed):
                    return False
        return True

    def _standing_depth(self, link: Link, task: Task) -> int:
        """Pieces of one stripe asked for ahead: what the rate of its parent brings while a request
        travels, and at least two units, for a root reads as many at once."""
        assert task.flow is not None
        unit = task.flow.unit_bytes // task.descriptor.geometry.piece_length_bytes
        return min(STANDING_MAX, max(STANDING_MIN, self._depth(link, task), 2 * unit))

    def _depth(self, link: Link, task: Task) -> int:
        limits = self._state.limits
        horizon_ns = 2 * link.round_trip_ns + PIPELINE_HORIZON_NS
        length = task.descriptor.geometry.piece_length_bytes
        pieces = int(link.rate_bytes_s * horizon_ns / SECOND_NS / length) + 1
        return max(limits.pipeline_pieces_min, min(limits.pipeline_pieces_max, pieces))

    def _endgame(self, link: Link, task: Task, parent_held: int) -> int:
        """Pieces that are on their way from elsewhere and may be asked for once more: only when
        nothing else is missing, and never twice from the same parent."""
        geometry = task.descriptor.geometry
        if geometry.size_bytes is None or link.requests:
            return 0
        if task.missing_unrequested:
            return 0
        candidates = 0
        for piece, requests in task.flying.items():
            if len(requests) < self._state.limits.duplicate_requests_max:
                candidates |= 1 << piece
        return candidates & parent_held

    def _request(self, link: Link, task: Task, candidates: int) -> bool:
        urgent = candidates & task.urgent
        piece = pick(
            urgent or candidates,
            task.availability,
            self._state.dice,
            in_order=bool(urgent) or self._goes_in_order(task),
        )
        return self._send(link, task, piece)

    def _send(
        self, link: Link, task: Task, piece: int, feed: tuple[CollectionId, int] | None = None
    ) -> bool:
        """Requests a piece. False: the budget of bytes in flight is used up. Standing requests are
        no part of it: they take no memory before the piece comes, and are few."""
        geometry = task.descriptor.geometry
        length = geometry.length_bytes(piece)
        if feed is None:
            in_flight = self._state.in_flight_bytes
            if in_flight and in_flight + length > self._state.limits.in_flight_bytes_max:
                self._starved[link.host_id] = link
                self._budget_spent = True
                return False
            self._state.in_flight_bytes += length
        now_ns = self._state.now_ns
        request_id = self._state.next_request_id()
        link.queued_bytes += length
        deadline_ns = now_ns + self._patience_ns(link)
        fetch = Fetch(request_id, link, task, piece, length, now_ns, deadline_ns, feed)
        self._state.fetches[request_id] = fetch
        link.requests[request_id] = None
        if feed is not None:
            link.standing[feed] = link.standing.get(feed, 0) + 1
        task.flying.setdefault(piece, []).append(request_id)
        task.flying_mask |= 1 << piece
        self._look_again_at(deadline_ns, request_id)
        assert link.connection_id is not None
        self._state.emit(
            FetchPiece(
                request_id=request_id,
                connection_id=link.connection_id,
                task_id=task.task_id,
                piece=piece,
                offset_bytes=geometry.offset_bytes(piece),
                length_bytes=length,
                algorithm=task.descriptor.piece_digest,
                expected=task.listed.get(piece, b""),
                epoch=task.descriptor.epoch,
                provisional=self._state.on_our_own,
                wait=feed is not None,
            )
        )
        return True

    def _goes_in_order(self, task: Task) -> bool:
        if not task.streaming:
            return False
        task.ordered_requests += 1
        if task.ordered_requests <= FIRST_IN_ORDER:
            return True
        share = self._state.limits.streaming_share_percent
        return task.ordered_requests * share % 100 < share

    def _patience_ns(self, link: Link) -> int:
        limits = self._state.limits
        if link.rate_bytes_s <= 0.0:
            return limits.request_timeout_min_ns
        expected_ns = int(link.queued_bytes / link.rate_bytes_s * SECOND_NS)
        patience_ns = limits.request_timeout_factor * expected_ns
        return max(limits.request_timeout_min_ns, min(limits.request_timeout_max_ns, patience_ns))

    # ------------------------------------------------------------ ending

    def ended(self, event: FetchEnded) -> None:
        """A request was answered."""
        fetch = self._state.fetches.get(event.request_id)
        if fetch is None:
            return  # A late answer to a request that was given up.
        self._forget(fetch)
        link, task = fetch.link, fetch.task
        self.link_changed(link)
        if fetch.task.pulled >> fetch.piece & 1:
            self._feeds.end_pull(link, task, fetch.piece)
            if task.flow is not None and event.reason is not Reason.PEER_BUSY:
                # Where one is busy others are: they are tried at the next news, not one by one.
                self.map_changed(task.flow)
        if event.reason is None:
            self._stored(fetch, event)
        elif event.reason is Reason.PEER_BUSY:
            self._busy(fetch, event.retry_after_ms)
        elif event.reason in LOCAL_FAULTS:
            self._on_local_failure(task, event.reason, event.detail)
        else:
            self._all_dirty = True
            if event.reason in (Reason.NOT_HELD, Reason.UNKNOWN_TASK, Reason.UNAUTHORIZED):
                self._not_held(fetch)
                self._refused(fetch)
            elif event.reason is Reason.PEER_CONTRADICTED or event.reason is Reason.PEER_CORRUPT:
                self._keeper.convict(task, fetch.piece, link.host_id, event.reason)
            elif event.reason in PARENT_FAULTS:
                self._parents.strike(link.host_id, event.reason)

    def _busy(self, fetch: Fetch, retry_after_ms: int) -> None:
        link = fetch.link
        until_ns = self._state.now_ns + retry_after_ms * MILLISECOND_NS
        if fetch.feed is None and self._state.planned(fetch.task):
            link.no_pulls_until_ns = until_ns
        else:
            link.busy_until_ns = until_ns
        self._all_dirty = True
        if fetch.feed is None:
            # Meanwhile others may bring what was to be pulled from there.
            self._feeds.drop_pulls(link)

    def _stored(self, fetch: Fetch, event: FetchEnded) -> None:
        task, link = fetch.task, fetch.link
        self._parents.delivered(link, fetch.length_bytes, fetch.sent_ns)
        if task.phase not in (TaskPhase.ACTIVE, TaskPhase.OPENING):
            return
        if event.epoch != task.descriptor.epoch and (event.epoch or not self._state.on_our_own):
            # Of a void epoch, or a piece that nobody confirmed while there is a scheduler again.
            if not task.held >> fetch.piece & 1:
                self._state.emit(DropPieces(task_id=task.task_id, pieces=1 << fetch.piece))
            self._not_held(fetch)
            self._refused(fetch)
            self._all_dirty = True
            return
        task.peer_bytes += fetch.length_bytes
        record = PieceRecord(event.digest, event.lease_number, read_here=False)
        supplier = link.host_id if event.epoch else None
        kept = self._keeper.store_fetched(task, fetch.piece, record, supplier)
        if not kept:
            self._all_dirty = True
            return
        self._feeds.came(task, 1 << fetch.piece)
        for duplicate in list(task.flying.get(fetch.piece, ())):
            self._cancel(self._state.fetches[duplicate])
        if not task.complete and not task.missing_unrequested:
            # Nothing else can be asked for: whoever is idle may help with what is on its way.
            self._all_dirty = True

    def _not_held(self, fetch: Fetch) -> None:
        channel = fetch.link.channels.get(fetch.task.task_id)
        if channel is not None and channel.held >> fetch.piece & 1:
            channel.held &= ~(1 << fetch.piece)
            fetch.task.availability.remove(1 << fetch.piece)

    def _refused(self, fetch: Fetch) -> None:
        """Where a plan holds, requests do not follow what a parent told: what it refuses would be
        asked for again and again."""
        if fetch.feed is not None:
            fetch.link.feeds_again_ns = self._state.now_ns + REFUSED_NS
        elif self._state.planned(fetch.task):
            fetch.link.no_pulls_until_ns = self._state.now_ns + REFUSED_NS

    def _forget(self, fetch: Fetch) -> None:
        del self._state.fetches[fetch.request_id]
        if fetch.feed is None:
            self._state.in_flight_bytes -= fetch.length_bytes
            self._budget_spent = False
        fetch.link.requests.pop(fetch.request_id, None)
        fetch.link.queued_bytes -= fetch.length_bytes
        if fetch.feed is not None:
            fetch.link.standing[fetch.feed] -= 1
        requests = fetch.task.flying[fetch.piece]
        requests.remove(fetch.request_id)
        if not requests:
            del fetch.task.flying[fetch.piece]
            fetch.task.flying_mask &= ~(1 << fetch.piece)

    def _cancel(self, fetch: Fetch) -> None:
        self._forget(fetch)
        self._state.emit(CancelFetch(request_id=fetch.request_id))
        self.link_changed(fetch.link)

    def cancel_task(self, task: Task) -> None:
        """Nothing of this task is needed from parents any more."""
        for piece in list(task.flying):
            for request_id in list(task.flying.get(piece, ())):
                self._cancel(self._state.fetches[request_id])

    def cancel_pieces(self, task: Task, pieces: int) -> None:
        """These pieces came by another way."""
        for piece in bitfield.pieces(pieces & task.flying_mask):
            for request_id in list(task.flying.get(piece, ())):
                self._cancel(self._state.fetches[request_id])

    def _look_again_at(self, deadline_ns: int, request_id: RequestId) -> None:
        heapq.heappush(self._deadlines, (deadline_ns, request_id))
        if self._next_look_ns is None or deadline_ns < self._next_look_ns:
            self._next_look_ns = deadline_ns
            self._state.wake_at(deadline_ns)

    @staticmethod
    def _owed(fetch: Fetch) -> bool:
        """Whether a parent said that it holds what a standing request asks for."""
        channel = fetch.link.channels.get(fetch.task.task_id)
        return channel is not None and bool(channel.held >> fetch.piece & 1)

    def tick(self) -> None:
        """Gives up requests whose time is over."""
        now_ns = self._state.now_ns
        self._give_up_late(now_ns)
        for host_id, link in list(self._blocked.items()):
            blocked_until_ns = max(
                link.quarantined_until_ns, link.busy_until_ns, link.feeds_again_ns
            )
            if blocked_until_ns <= now_ns:
                del self._blocked[host_id]
                self.link_changed(link)

    def _give_up_late(self, now_ns: int) -> None:
        if self._next_look_ns is None or now_ns < self._next_look_ns:
            return
        self._next_look_ns = None
        while self._deadlines and self._deadlines[0][0] <= now_ns:
            _, request_id = heapq.heappop(self._deadlines)
            fetch = self._state.fetches.get(request_id)
            if fetch is None:
                continue
            link = fetch.link
            if fetch.feed is not None and not self._owed(fetch):
                # It does not have the piece itself yet.
                fetch.deadline_ns = now_ns + self._state.limits.request_timeout_min_ns
                self._look_again_at(fetch.deadline_ns, request_id)
                continue
            quiet_ns = now_ns - max(fetch.sent_ns, link.last_active_ns)
            too_late = now_ns - fetch.sent_ns >= self._state.limits.request_timeout_max_ns
            if quiet_ns < self._state.limits.request_timeout_min_ns and not too_late:
                # The parent does send, only more slowly than it did: give it more time.
                fetch.deadline_ns = now_ns + self._patience_ns(link)
                self._look_again_at(fetch.deadline_ns, request_id)
                continue
            self._state.tell(fetch.task.task_id, f"piece {fetch.piece}: {link.host_id} stalled")
            self._keeper.accuse(fetch.task, fetch.piece, link.host_id, Reason.PEER_STALLED)
            self._cancel(fetch)
            if link.quarantined_until_ns <= now_ns:
                self._parents.strike(link.host_id, Reason.PEER_STALLED)
            self._all_dirty = True
        while self._deadlines and self._deadlines[0][1] not in self._state.fetches:
            heapq.heappop(self._deadlines)  # It was answered: nobody has to wake up for it.
        if self._deadlines:
            self._next_look_ns = self._deadlines[0][0]
            self._state.wake_at(self._next_look_ns)


def _counted(link: Link) -> int:
    """Requests that fill a parent's pipeline. Standing ones do not: they may wait for the very
    piece that is to be asked for, round a circle."""
    return len(link.requests) - sum(link.standing.values())
