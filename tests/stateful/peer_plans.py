"""The part of the peer machine that draws plans, directories and maps of large swarms."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import shoal.wire.control as msg
from peer.core.state import LinkPhase, TaskPhase
from shoal.wire import bitfield
from shoal.wire.ids import HostId
from tests.unit.peer.core_rig import COLLECTION, PIECE, TASK, Rig

PIECES = 5
ALL = (1 << PIECES) - 1
HOSTS = [HostId(f"p{number}") for number in range(3)]
MASKS = st.integers(min_value=0, max_value=ALL)


class PlanRules(RuleBasedStateMachine):
    """What a scheduler of a large swarm may say, and what must follow from it."""

    rig: Rig
    session: int

    def tell(self, *messages: msg.SchedulerMessage) -> None:
        """The scheduler says something."""
        raise NotImplementedError

    @precondition(lambda self: self.session)
    @rule(
        feeds=st.lists(st.sampled_from([*HOSTS, HostId("")]), min_size=1, max_size=3),
        unit_pieces=st.sampled_from([1, 2]),
    )
    def assign(self, feeds: list[HostId], unit_pieces: int) -> None:
        self.tell(
            msg.Assigned(
                collection_id=COLLECTION, unit_bytes=unit_pieces * PIECE, parents=tuple(feeds)
            )
        )

    @precondition(lambda self: self.session)
    @rule(first=st.integers(0, 2), count=st.integers(1, 4), port=st.integers(1, 2))
    def tell_directory(self, first: int, count: int, port: int) -> None:
        everybody = [*HOSTS, HostId("me"), HostId("p3"), HostId("p4")]
        hosts = tuple(
            msg.Parent(host_id=host, addresses=(msg.Address("10.0.0.1", port),))
            for host in everybody[first : first + count]
        )
        self.tell(msg.Directory(collection_id=COLLECTION, first=first, hosts=hosts))

    @precondition(lambda self: self.session)
    @rule(
        changes=st.lists(st.tuples(st.integers(0, 6), MASKS), max_size=3),
        covered=MASKS,
        spread=MASKS,
        full=st.booleans(),
        gone=st.lists(st.integers(0, 6), max_size=1),
        unit_pieces=st.sampled_from([1, 2]),
    )
    def tell_map(
        self,
        changes: list[tuple[int, int]],
        covered: int,
        spread: int,
        full: bool,
        gone: list[int],
        unit_pieces: int,
    ) -> None:
        self.tell(
            msg.SwarmMap(
                collection_id=COLLECTION,
                unit_bytes=unit_pieces * PIECE,
                full=full,
                gone=tuple(gone),
                changes=tuple(msg.HostRuns(host, 0, units) for host, units in changes),
                covered=((0, covered),),
                spread=((0, spread),),
            )
        )

    @invariant()
    def every_stripe_flows(self) -> None:
        """L2: a healthy parent of a stripe is asked for what is missing of it."""
        state = self.rig.engine.state
        task = state.tasks.get(TASK)
        if task is None or task.phase is not TaskPhase.ACTIVE or not state.planned(task):
            return
        assert task.flow is not None
        count = len(task.flow.feeds)
        unit_pieces = task.flow.unit_bytes // PIECE
        for link in state.links.values():
            channel = link.channels.get(TASK)
            blocked = max(link.quarantined_until_ns, link.busy_until_ns) > state.now_ns
            if link.phase is not LinkPhase.UP or channel is None or not channel.open or blocked:
                continue
            for collection, stripe in link.feeds:
                mine = bitfield.stripe_mask(unit_pieces, PIECES, count, stripe)
                asked = link.standing.get((collection.collection_id, stripe), 0)
                missing = task.missing_unrequested & ~task.pulled & mine
                assert asked or not missing, f"L2: {link.host_id} is not asked for its stripe"
