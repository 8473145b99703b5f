"""A model of Uber's Kraken: a random mesh of few neighbours and local rarest-first.

Facts it rests on: a tracker hands out at most 50 peers per announce, finished ones first, then
origins, then the others; an agent announces every 3 s while it lacks connections; at most 10 open
connections per torrent, incoming ones included, at origins too; 3 requests in flight per agent
and 5 per origin; the rarest piece among one's neighbours first; in the endgame, the last 3 pieces
are asked of several neighbours; a layer is a torrent of its own. The origin cluster is one peer
with the origin's rate.

In its favour: hosts that come at once find each other at the first announce and open connections
one by one in random order, so that the mesh is random (strict turns would give closed circles of
eleven); a connection carries its pieces back to back; announcements cost nothing; no caps on
bandwidth, no blacklists, no disk. Pieces are 4 MB there; here they are the simulated unit, as in
our own runs.
"""

from collections import deque
from typing import Final

import numpy as np

from benchmarks.scale.baselines.swarm import ORIGIN, Swarm, Transfer
from shoal.wire.limits import MILLISECOND_NS, SECOND_NS

CONNECTIONS_MAX: Final = 10
HANDOUT_MAX: Final = 50
ANNOUNCE_NS: Final = 3 * SECOND_NS
FIRST_ANNOUNCE_NS: Final = 100 * MILLISECOND_NS
"""A first announce is answered within this; who came in the same time is known."""
HANDSHAKES_NS: Final = 100 * MILLISECOND_NS
"""Connections that one announce leads to are opened within this, at drawn times."""
AGENT_PIPELINE: Final = 3
ORIGIN_PIPELINE: Final = 5
ENDGAME_PIECES: Final = 3


class Agent:
    """A host's part in one torrent."""

    def __init__(self, torrent: "Torrent", host: int, *, complete: bool = False) -> None:
        self.torrent = torrent
        self.host = host
        self.have = np.full(torrent.count, complete, dtype=np.bool_)
        self.need = ~self.have
        """Neither there nor asked for."""
        self.missing = 0 if complete else torrent.count
        self.seen = np.zeros(torrent.count, dtype=np.int32)
        """How many neighbours hold a piece."""
        self.neighbours: dict[Agent, Lane] = {}
        """By neighbour: the lane on which it sends to this agent."""
        self.there = True

    @property
    def room(self) -> bool:
        """Whether it may open or accept one more connection."""
        return self.there and len(self.neighbours) < CONNECTIONS_MAX


class Lane:
    """One direction of a connection: requests in order, one piece under way at a time."""

    __slots__ = ("child", "flying", "parent", "queue")

    def __init__(self, parent: Agent, child: Agent) -> None:
        self.parent = parent
        self.child = child
        self.queue: deque[int] = deque()
        self.flying: tuple[int, Transfer] | None = None

    @property
    def depth(self) -> int:
        """Requests that are not answered yet."""
        return len(self.queue) + (self.flying is not None)

    def asked(self, piece: int) -> bool:
        """Whether a piece is asked for on this lane."""
        return piece in self.queue or (self.flying is not None and self.flying[0] == piece)


class Torrent:
    """One layer."""

    def __init__(self, size: int, piece: int) -> None:
        self.size = size
        self.piece = piece
        self.count = -(-size // piece)
        self.agents: list[Agent] = []
        """Everybody that the tracker knows."""

    def length(self, piece: int) -> int:
        """Bytes of a piece."""
        return min(self.piece, self.size - piece * self.piece)


class Kraken(Swarm):
    """A tracker that hands out names, and agents that do the rest."""

    def begin(self) -> None:
        """The origin and hosts that have everything are complete agents."""
        unit = self.options.unit_bytes
        self.torrents = [Torrent(size, unit) for size in self.plan.task_sizes]
        for torrent in self.torrents:
            if self.origin_there:
                torrent.agents.append(Agent(torrent, ORIGIN, complete=True))
            for index, host in enumerate(self.plan.hosts):
                if host.seed:
                    torrent.agents.append(Agent(torrent, index, complete=True))
        self.kept: dict[tuple[int, int], Agent] = {}

    def arrive(self, host: int) -> None:
        """Announces itself for each layer."""
        for number, torrent in enumerate(self.torrents):
            agent = self.kept[host, number] = Agent(torrent, host)
            torrent.agents.append(agent)
            self.after(FIRST_ANNOUNCE_NS, lambda agent=agent: self._announce(agent))  # type: ignore[misc]

    def gone(self, host: int) -> None:
        """Its connections break; what it was sent meanwhile is lost."""
        for number, torrent in enumerate(self.torrents):
            agent = self.kept.get((host, number))
            if agent is not None and agent.there:
                agent.there = False
                torrent.agents.remove(agent)
                for other in list(agent.neighbours):
                    self._disconnect(agent, other)

    def back(self, host: int) -> None:
        """Its pieces are still on its disk."""
        for number, torrent in enumerate(self.torrents):
            agent = self.kept[host, number]
            agent.there = True
            agent.need = ~agent.have
            torrent.agents.append(agent)
            self.after(FIRST_ANNOUNCE_NS, lambda agent=agent: self._announce(agent))  # type: ignore[misc]

    # ------------------------------------------------------------ connections

    def _announce(self, agent: Agent) -> None:
        if not agent.there or not agent.missing:
            return
        self.messages += 2
        if agent.room:
            others = [other for other in agent.torrent.agents if other is not agent]
            handout = self.dice.sample(others, min(HANDOUT_MAX, len(others)))
            handout.sort(key=_handout_order)
            times = sorted(self.dice.random() for _ in handout)
            for other, part in zip(handout, times, strict=True):
                delay_ns = int(part * HANDSHAKES_NS) + 2 * self.options.latency_ns
                self.after(delay_ns, lambda other=other: self._connect(agent, other))  # type: ignore[misc]
        self.after(ANNOUNCE_NS, lambda: self._announce(agent))

    def _connect(self, one: Agent, two: Agent) -> None:
        if not one.room or not two.room or two in one.neighbours:
            return
        if not one.missing and not two.missing:
            return
        for child, parent in ((one, two), (two, one)):
            child.neighbours[parent] = Lane(parent, child)
            child.seen += parent.have
        self._ask(one.neighbours[two])
        self._ask(two.neighbours[one])

    def _disconnect(self, one: Agent, two: Agent) -> None:
        for child, parent in ((one, two), (two, one)):
            lane = child.neighbours.pop(parent)
            child.seen -= parent.have
            wanted = list(lane.queue)
            if lane.flying is not None:
                self.stop(lane.flying[1])
                wanted.append(lane.flying[0])
            for piece in wanted:
                if not child.have[piece]:
                    child.need[piece] = True
        for child in (one, two):
            if child.there:
                for lane in list(child.neighbours.values()):
                    self._ask(lane)

    # ------------------------------------------------------------ pieces

    def _ask(self, lane: Lane) -> None:
        """Fills a lane's pipeline with the rarest pieces."""
        child, parent = lane.child, lane.parent
        depth = ORIGIN_PIPELINE if parent.host == ORIGIN else AGENT_PIPELINE
        while lane.depth < depth:
            offered = np.flatnonzero(child.need & parent.have)
            if len(offered):
                rarity = child.seen[offered]
                rarest = offered[rarity == rarity.min()]
                piece = int(rarest[int(self.dice.random() * len(rarest))])
                child.need[piece] = False
            else:
                again = self._endgame(lane)
                if again is None:
                    return
                piece = again
            lane.queue.append(piece)
            if lane.flying is None:
                self._send(lane, 1.0)

    def _endgame(self, lane: Lane) -> int | None:
        """One of the last pieces, asked of one more neighbour."""
        if not 0 < lane.child.missing <= ENDGAME_PIECES:
            return None
        for piece in np.flatnonzero(~lane.child.have & lane.parent.have):
            if not lane.asked(int(piece)):
                return int(piece)
        return None

    def _send(self, lane: Lane, round_trips: float) -> None:
        piece = lane.queue.popleft()
        transfer = self.fetch(
            lane.parent.host,
            lane.child.host,
            lane.child.torrent.length(piece),
            lambda: self._got(lane, piece),
            lambda: None,
            round_trips,
        )
        lane.flying = (piece, transfer)

    def _got(self, lane: Lane, piece: int) -> None:
        lane.flying = None
        child = lane.child
        self._next(lane)
        if child.have[piece]:
            return
        child.have[piece] = True
        child.missing -= 1
        self.gained(child.host, child.torrent.length(piece))
        if child.missing < ENDGAME_PIECES:
            self._cancel_others(child, piece)
        for other in list(child.neighbours):
            other.seen[piece] += 1
            back = other.neighbours[child]
            if other.need[piece] and back.depth < AGENT_PIPELINE:
                self._ask(back)
            if not child.missing and not other.missing:
                self._disconnect(child, other)
        self._ask(lane)

    def _next(self, lane: Lane) -> None:
        """Requests behind the one answered are there already: no round trip between them."""
        if lane.queue and lane.flying is None:
            self._send(lane, 0.0)

    def _cancel_others(self, child: Agent, piece: int) -> None:
        for lane in child.neighbours.values():
            if piece in lane.queue:
                lane.queue.remove(piece)
            if lane.flying is not None and lane.flying[0] == piece:
                self.stop(lane.flying[1])
                lane.flying = None
                self._next(lane)


def _handout_order(agent: Agent) -> int:
    """Finished peers first, then origins, then the others; the sort keeps random order within."""
    if agent.host == ORIGIN:
        return 1
    return 0 if not agent.missing else 2
