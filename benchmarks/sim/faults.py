"""What goes wrong in a world: a plan, drawn from a seed, and what carries it out.

Each kind of fault draws from a generator of its own name, so that a new draw in one kind leaves the
others as they were, and an old seed goes on meaning the same.
"""

import random
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from shoal.wire.limits import MILLISECOND_NS, SECOND_NS

if TYPE_CHECKING:
    from benchmarks.sim.node import SimNode
    from benchmarks.sim.world import World


class Kind(StrEnum):
    """What happens at a planned moment."""

    CRASH = "crash"
    """A host's process dies; with `lasts_ns` it comes back with its disk, else never."""
    LEAVE = "leave"
    JOIN = "join"
    """A host that was not there comes and wants the content."""
    SLOW = "slow"
    """Both links of a host have only a share of their rates left."""
    SCHEDULER = "scheduler"
    """The scheduler dies and comes back, knowing nothing, after `lasts_ns`."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One planned fault."""

    at_ns: int
    kind: Kind
    host: int = 0
    """Which of the hosts that are there from the start."""
    lasts_ns: int | None = None
    """None: for good."""
    share: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultPlan:
    """All that goes wrong in a run. The chances end with `end_ns`, and what is slow or dead but
    not gone for good is well again then."""

    seed: int = 0
    end_ns: int = 0
    faults: tuple[Fault, ...] = ()
    lost_chance: float = 0.0
    """Of a control message to be lost, whereupon its stream stalls and breaks."""
    stall_max_ns: int = 3 * SECOND_NS
    late_chance: float = 0.0
    """Of a control message to come late, and all behind it with it."""
    late_max_ns: int = 300 * MILLISECOND_NS
    flip_chance: float = 0.0
    """Of a piece to arrive with a bit turned, though nobody lies."""

    def any(self) -> bool:
        """Whether anything goes wrong at all."""
        return bool(self.faults or self.lost_chance or self.late_chance or self.flip_chance)

    @classmethod
    def draw(cls, seed: int, *, hosts: int, span_s: float, start_s: float = 0.0) -> "FaultPlan":
        """A plan for a swarm that would need about `span_s` from `start_s` on."""
        return _Draw(seed, hosts, int(start_s * SECOND_NS), int(span_s * SECOND_NS)).plan()


class _Draw:
    """Draws the parts of a plan, each from its own dice."""

    def __init__(self, seed: int, hosts: int, start_ns: int, span_ns: int) -> None:
        self._seed = seed
        self._hosts = hosts
        self._start_ns = start_ns
        self._span_ns = span_ns

    def _dice(self, name: str) -> random.Random:
        return random.Random(f"{self._seed}/faults/{name}")

    def _when(self, dice: random.Random) -> int:
        return self._start_ns + int(dice.random() * self._span_ns)

    def _lasting(self, dice: random.Random, kind: Kind, count_max: int) -> list[Fault]:
        return [
            Fault(
                self._when(dice),
                kind,
                host=int(dice.random() * self._hosts),
                lasts_ns=int(dice.random() ** 2 * self._span_ns / 2),
                share=0.02 + 0.5 * dice.random(),
            )
            for _ in range(int(dice.random() * (count_max + 1)))
        ]

    def _gone(self) -> list[Fault]:
        """Hosts that go for good: no host twice, and at most a third of all."""
        dice = self._dice("gone")
        order = list(range(self._hosts))
        dice.shuffle(order)
        faults = []
        for host in order[: int(dice.random() * (self._hosts // 3 + 1))]:
            kind = Kind.CRASH if dice.random() < 0.5 else Kind.LEAVE
            faults.append(Fault(self._when(dice), kind, host=host))
        return faults

    def _chance(self, name: str, most: float) -> float:
        dice = self._dice(name)
        return dice.random() ** 2 * most if dice.random() < 0.5 else 0.0

    def plan(self) -> FaultPlan:
        """All parts together."""
        few = max(2, self._hosts // 4)
        faults = self._gone()
        faults += self._lasting(self._dice("crash"), Kind.CRASH, few)
        faults += self._lasting(self._dice("slow"), Kind.SLOW, few)
        faults += self._lasting(self._dice("join"), Kind.JOIN, 2)
        faults += self._lasting(self._dice("scheduler"), Kind.SCHEDULER, 2)
        end_ns = max(
            [self._start_ns + self._span_ns, *(f.at_ns + (f.lasts_ns or 0) for f in faults)]
        )
        return FaultPlan(
            seed=self._seed,
            end_ns=end_ns,
            faults=tuple(faults),
            lost_chance=self._chance("lost", 0.02),
            late_chance=self._chance("late", 0.2),
            flip_chance=self._chance("flip", 0.02),
        )


class Fate(NamedTuple):
    """What becomes of a control message: how much later than usual it comes, or, if it is lost,
    how long it takes until its stream breaks."""

    lost: bool
    delay_ns: int


NO_FAULT = Fate(lost=False, delay_ns=0)


class Faults:
    """Carries a plan out in a world."""

    def __init__(self, world: "World", plan: FaultPlan) -> None:
        self._world = world
        self._plan = plan
        self._control = random.Random(f"{plan.seed}/faults/of-control-messages")
        self._flips = random.Random(f"{plan.seed}/faults/of-pieces")
        self._hosts: list[SimNode] = list(world.nodes.values())
        self.counts: dict[str, int] = {}
        """What happened how often."""
        for fault in plan.faults:
            world.at(fault.at_ns, self._happen, fault)
        world.at(plan.end_ns, self.stop)

    def _note(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def _happen(self, fault: Fault) -> None:
        world = self._world
        if fault.kind is Kind.SCHEDULER:
            if world.scheduler is None:
                return
            world.kill_scheduler()
            world.after(fault.lasts_ns or 0, self._scheduler_back)
        elif fault.kind is Kind.JOIN:
            node = world.add_node(f"late-{len(world.nodes)}", self._hosts[fault.host].spec)
            node.want()
        else:
            node = self._hosts[fault.host]
            if not node.alive:
                return
            self._befall(node, fault)
        self._note(fault.kind.value)

    def _befall(self, node: "SimNode", fault: Fault) -> None:
        world = self._world
        if fault.kind is Kind.LEAVE:
            node.leave()
        elif fault.kind is Kind.SLOW:
            node.slow_down(fault.share)
            world.after(fault.lasts_ns or 0, node.slow_down, 1.0)
        else:
            node.crash()
            if fault.lasts_ns is None:
                node.wants = False
            else:
                world.after(fault.lasts_ns, self._back, node, node.runs)

    def _back(self, node: "SimNode", run: int) -> None:
        if not node.alive and node.runs == run and node.wants:
            node.restart()

    def _scheduler_back(self) -> None:
        if self._world.scheduler is None:
            self._world.start_scheduler()

    def stop(self) -> None:
        """Nothing goes wrong any more."""
        self._plan = replace(
            self._plan, faults=(), lost_chance=0.0, late_chance=0.0, flip_chance=0.0
        )
        for node in self._hosts:
            node.slow_down(1.0)
            self._back(node, node.runs)
        if self._world.options.with_scheduler:
            self._scheduler_back()

    def control_fate(self) -> Fate:
        """What becomes of the next control message."""
        plan = self._plan
        if not plan.lost_chance and not plan.late_chance:
            return NO_FAULT
        draw = self._control.random()
        if draw < plan.lost_chance:
            self._note("lost")
            return Fate(lost=True, delay_ns=int(self._control.random() * plan.stall_max_ns))
        if draw < plan.lost_chance + plan.late_chance:
            self._note("late")
            return Fate(lost=False, delay_ns=int(self._control.random() * plan.late_max_ns))
        return NO_FAULT

    def flips_a_byte(self) -> bool:
        """Whether the next piece arrives with a bit turned."""
        chance = self._plan.flip_chance
        if not chance or self._flips.random() >= chance:
            return False
        self._note("flip")
        return True
