"""Clients who name a digest and a URL of their choice, in any order, on one host: what is held is
given to those alone for whom the same bytes were found where they asked.

The model plays store, clients and origins, which say yes to everybody; some have the content.
"""

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import peer.core.effects as fx
import peer.core.events as ev
from peer.core.state import TaskPhase
from shoal.wire.errors import Reason
from shoal.wire.ids import DownloadId, RequestId
from tests.unit.peer.core_rig import (
    DIGEST,
    PIECE,
    SOURCE,
    TASK,
    Rig,
    describe,
    stored,
)

PIECES = 3
CREDENTIALS = ["", "right", "too", "own", "false"]
HAVE_IT = {"": True, "right": True, "too": True, "own": False, "false": False}
"""Whether the content is at the URL that is asked for with each of them."""


class Clients(RuleBasedStateMachine):
    """One host without a scheduler."""

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig(scheduler=False)
        self.number = 0
        self.rights: dict[int, str] = {}
        """Of clients that are there."""
        self.let_in: dict[int, None] = {}
        self.stats: dict[int, fx.StatOrigin] = {}
        self.reads: dict[int, tuple[fx.ReadOrigin, int]] = {}
        self.opens: list[fx.OpenTask] = []
        self.seals = self.hashes = self.removals = 0
        self.sealed = 0

    @initialize(held=st.sampled_from([0, 0b010, 0b111]), sealed=st.booleans())
    def begin(self, held: int, sealed: bool) -> None:
        if held:
            whole = sealed and held == 0b111
            self.sealed = held if whole else 0
            self.rig = Rig(scheduler=False, tasks=(stored(describe(3), held, sealed=whole),))

    def carry_out(self) -> None:
        effects, self.rig.effects = self.rig.effects, []
        for effect in effects:
            match effect:
                case fx.StatOrigin():
                    self.stats[effect.request_id] = effect
                    self.check_sample(effect)
                case fx.ReadOrigin():
                    self.reads[effect.request_id] = effect, effect.first_piece
                case fx.CancelOrigin():
                    self.stats.pop(effect.request_id, None)
                    self.reads.pop(effect.request_id, None)
                case fx.OpenTask():
                    self.opens.append(effect)
                case fx.HashPrefix():
                    self.hashes += effect.final
                case fx.SealTask():
                    self.seals += 1
                case fx.RemoveTask():
                    self.removals += 1
                case fx.SourceResolved():
                    self.check_right(effect.download_id)
                case fx.DownloadEnded():
                    self.let_in.pop(effect.download_id, None)
                case _:
                    pass

    def check_sample(self, effect: fx.StatOrigin) -> None:
        if effect.sample is not None:
            task = self.rig.engine.state.tasks[TASK]
            first, last = effect.sample.start_byte // PIECE, (effect.sample.end_byte - 1) // PIECE
            assert task.held >> first & task.held >> last & 1

    def check_right(self, number: int) -> None:
        task = self.rig.engine.state.tasks[TASK]
        mine = self.rights[number]
        with_others = [self.rights[one] for one in self.let_in if self.rights[one] != mine]
        if mine not in [self.rights[one] for one in self.let_in]:
            assert HAVE_IT[mine] or not task.held or task.phase is TaskPhase.REMOVING
            assert HAVE_IT[mine] or not with_others, "what comes for others is not from there"
        self.let_in[number] = None

    # ------------------------------------------------------------ clients

    @precondition(lambda self: len(self.rights) < 4)
    @rule(credential=st.sampled_from(CREDENTIALS))
    def want(self, credential: str) -> None:
        self.number += 1
        self.rights[self.number] = credential
        source = ev.Source(SOURCE, TASK, DIGEST, "http://o/x", None, credential)
        self.rig.want(self.number, sources=(source,))
        self.carry_out()

    @precondition(lambda self: self.rights)
    @rule(draw=st.data())
    def unwant(self, draw: st.DataObject) -> None:
        number = draw.draw(st.sampled_from(sorted(self.rights)))
        self.rig.feed(ev.Unwant, download_id=DownloadId(number))
        self.carry_out()
        del self.rights[number]

    @rule(after_ms=st.sampled_from([1, 40_000, 301_000]))
    def tick(self, after_ms: int) -> None:
        self.rig.tick(after_ms)
        self.carry_out()

    # ------------------------------------------------------------ origins

    @precondition(lambda self: self.stats)
    @rule(draw=st.data(), gone=st.sampled_from([False, False, True]))
    def stat_ends(self, draw: st.DataObject, gone: bool) -> None:
        asked = self.stats.pop(draw.draw(st.sampled_from(sorted(self.stats))))
        compared = asked.sample is not None and not gone
        self.rig.feed(
            ev.StatEnded,
            request_id=asked.request_id,
            reason=None,
            size_bytes=PIECES * PIECE,
            validator='"v"',
            ranges=True,
            same=HAVE_IT[asked.credential] if compared else None,
        )
        self.carry_out()

    @precondition(lambda self: self.reads)
    @rule(draw=st.data(), fails=st.booleans())
    def read_goes_on(self, draw: st.DataObject, fails: bool) -> None:
        request = draw.draw(st.sampled_from(sorted(self.reads)))
        read, piece = self.reads[request]
        assert read.piece_count is not None
        if fails or piece == read.first_piece + read.piece_count:
            del self.reads[request]
            reason = Reason.ORIGIN_FAILED if fails else None
            self.rig.feed(ev.OriginReadEnded, request_id=RequestId(request), reason=reason)
        else:
            self.reads[request] = read, piece + 1
            self.rig.read(RequestId(request), piece)
        self.carry_out()

    # ------------------------------------------------------------ the store

    @precondition(lambda self: self.opens)
    @rule()
    def store_opens(self) -> None:
        effect = self.opens.pop(0)
        answer = stored(effect.descriptor, self.sealed, sealed=bool(self.sealed))
        self.rig.feed(ev.TaskOpened, stored=answer)
        self.carry_out()

    @precondition(lambda self: self.hashes)
    @rule()
    def hash_and_seal(self) -> None:
        self.hashes -= 1
        if TASK not in self.rig.engine.state.tasks:
            return
        self.rig.hash()
        self.carry_out()
        if self.seals:
            self.seals -= 1
            self.sealed = self.rig.task.held
            self.rig.seal()
            self.carry_out()

    @rule()
    def remove(self) -> None:
        self.rig.feed(ev.Remove, request_id=RequestId(10_000), task_id=TASK)
        self.carry_out()

    @precondition(lambda self: self.removals)
    @rule()
    def removal_ends(self) -> None:
        self.removals -= 1
        self.sealed = 0
        self.rig.feed(ev.TaskRemoved, task_id=TASK)
        self.carry_out()

    # ------------------------------------------------------------ always

    @invariant()
    def nobody_is_forgotten(self) -> None:
        """Whoever waits is asked for, or waits for what others fetch, or for a time."""
        state = self.rig.engine.state
        for number, credential in self.rights.items():
            download = state.downloads[DownloadId(number)]
            wish = download.wishes[SOURCE]
            if wish.ended or wish.task_id is not None or wish.retry_at_ns > state.now_ns:
                continue
            if any(asked.credential == credential for asked in self.stats.values()):
                continue
            task = state.tasks[TASK]
            nothing = not task.held or task.phase is TaskPhase.REMOVING
            assert task.watchers, "nobody asks"
            assert nothing, "there is nothing to wait for"


TestClients = Clients.TestCase
TestClients.settings = settings(
    max_examples=150,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
