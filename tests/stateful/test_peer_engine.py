"""A peer core under any order of events: what it may never do, and what it may never leave undone.

The model plays shell, store, scheduler, parents, child and origin. It knows the truth (what is
written, which requests are open, what was answered) and checks each effect against it.
"""

import dataclasses
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

import peer.core.effects as fx
import peer.core.events as ev
import shoal.wire.control as msg
from peer.core.state import LinkPhase, TaskPhase
from shoal.wire.errors import Reason
from shoal.wire.ids import ConnectionId, DownloadId, HostId, LeaseNumber
from shoal.wire.proof import swarm_proof
from tests.stateful.peer_plans import HOSTS, MASKS, PIECES, PlanRules
from tests.stateful.peer_questions import QuestionRules
from tests.unit.peer.core_rig import (
    COLLECTION,
    DIGEST,
    PIECE,
    SOURCE,
    TASK,
    TOKEN,
    WRONG,
    Rig,
    describe,
    digest_of,
    stored,
)

CHILD = ConnectionId(1000)
CHILD_HOST = HostId("child")
NONCE = b"n" * 16

FETCH_FAILURES = [
    Reason.PEER_CORRUPT,
    Reason.PEER_CONTRADICTED,
    Reason.PEER_STALLED,
    Reason.PEER_BUSY,
    Reason.PEER_LOST,
    Reason.PEER_PROTOCOL,
    Reason.NOT_HELD,
    Reason.UNAUTHORIZED,
    Reason.CANCELLED,
    Reason.DISK_FULL,
]
READ_FAILURES = [Reason.ORIGIN_BUSY, Reason.ORIGIN_FAILED, Reason.ORIGIN_CHANGED, Reason.CANCELLED]


class PeerMachine(PlanRules, QuestionRules):
    """One engine against a world that does what it likes within the shell's contract."""

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig(pipeline_pieces_max=4, origin_retries_max=2, upload_queue_pieces_max=3)
        self.disk: dict[int, bytes] = {}
        self.fetches: dict[int, fx.FetchPiece] = {}
        self.reads: dict[int, fx.ReadOrigin] = {}
        self.read_next: dict[int, int] = {}
        self.stats: dict[int, fx.StatOrigin] = {}
        self.connecting: list[HostId] = []
        self.connections: dict[ConnectionId, HostId] = {}
        self.closing: list[ConnectionId] = []
        self.channels: list[tuple[ConnectionId, bool]] = []
        self.opens: list[msg.TaskDescriptor] = []
        self.hashes: list[fx.HashPrefix] = []
        self.seals = 0
        self.removals = 0
        self.sealed = False
        self.epoch = 1
        self.session = 0
        self.numbers = 1
        self.questions, self.asked = set(), []
        self.wanted: set[int] = set()
        self.ended: set[int] = set()
        self.child_up = False
        self.child_asked: set[int] = set()
        self.serving: dict[int, fx.ServePiece] = {}
        self.past: list[ev.Event] = []

    # ------------------------------------------------------------ the shell

    def feed(self, kind: type[Any], **fields: Any) -> None:
        self.rig.feed(kind, **fields)
        self.past.append(kind(now_ns=0, **fields))
        self.carry_out()

    def tell(self, *messages: msg.SchedulerMessage) -> None:
        self.feed(ev.FromScheduler, session=self.session, messages=messages)

    def carry_out(self) -> None:
        for effect in self.rig.effects:
            match effect:
                case fx.OpenTask():
                    self.opens.append(effect.descriptor)
                    if effect.descriptor.epoch > self.epoch and not self.sealed:
                        self.disk.clear()
                    self.epoch = max(self.epoch, effect.descriptor.epoch)
                case fx.DropPieces():
                    for piece in range(PIECES):
                        if effect.pieces >> piece & 1:
                            self.disk.pop(piece, None)
                case fx.HashPrefix(final=True):
                    assert len(self.disk) == PIECES, "S3: hashes what is not written"
                    self.hashes.append(effect)
                case fx.SealTask():
                    self.seals += 1
                case fx.RemoveTask():
                    self.removals += 1
                case fx.DownloadEnded() | fx.HoldersCounted():
                    self.tell_client(effect)
                case fx.FetchPiece() | fx.ReadOrigin() | fx.StatOrigin():
                    self.remember_request(effect)
                case _:
                    self.carry_out_connection(effect)
                    self.check_child(effect)

    def tell_client(self, effect: fx.DownloadEnded | fx.HoldersCounted) -> None:
        if isinstance(effect, fx.HoldersCounted):
            self.question_ended(effect)
            return
        assert effect.download_id not in self.ended, "S4: a download ended twice"
        assert effect.reason is not None or self.sealed, "success without a seal"
        self.ended.add(effect.download_id)

    def remember_request(self, effect: fx.AnyEffect) -> None:
        match effect:
            case fx.FetchPiece():
                assert effect.request_id not in self.fetches, "S4: a number used twice"
                self.fetches[effect.request_id] = effect
            case fx.ReadOrigin():
                self.reads[effect.request_id] = effect
                self.read_next[effect.request_id] = effect.first_piece
            case fx.StatOrigin():
                self.stats[effect.request_id] = effect
            case _:
                pass

    def carry_out_connection(self, effect: fx.AnyEffect) -> None:
        match effect:
            case fx.Connect():
                self.connecting.append(effect.host_id)
            case fx.Disconnect() if effect.connection_id in self.connections:
                self.closing.append(effect.connection_id)
            case fx.OpenChannel():
                self.channels.append((effect.connection_id, True))
            case fx.CloseChannel():
                self.channels = [pair for pair in self.channels if pair[0] != effect.connection_id]
            case _:
                pass

    def check_child(self, effect: fx.AnyEffect) -> None:
        match effect:
            case fx.AcceptChild():
                self.assert_written(effect.held)
            case fx.Announce():
                self.assert_written(effect.new)
            case fx.ServePiece():
                self.assert_written(1 << effect.piece)
                assert effect.record.digest == self.disk[effect.piece], "S3: another digest"
                self.answered(effect.child_request)
                self.serving[effect.child_request] = effect
            case fx.SendReject() | fx.SendBusy():
                self.answered(effect.child_request)
            case _:
                pass

    def answered(self, number: int) -> None:
        assert number in self.child_asked, "S4: an answer that nobody waits for"
        self.child_asked.remove(number)

    def assert_written(self, pieces: int) -> None:
        written = sum(1 << piece for piece in self.disk)
        assert not pieces & ~written, "S3: tells of pieces that are not written"

    def next_number(self) -> int:
        self.numbers += 1
        return self.numbers

    # ------------------------------------------------------------ clients and the store

    @initialize(up=st.booleans(), parents=st.booleans())
    def begin(self, up: bool, parents: bool) -> None:
        if up:
            self.scheduler_up()
        self.want()
        if up and parents:
            self.describe()
            self.store_opens()
            self.name_parents()

    @precondition(lambda self: len(self.wanted) < 3)
    @rule()
    def want(self) -> None:
        number = self.next_number()
        self.wanted.add(number)
        source = ev.Source(SOURCE, TASK, DIGEST, "http://o/x", None)
        self.feed(
            ev.Want,
            download_id=DownloadId(number),
            collection_id=COLLECTION,
            sources=(source,),
            demand=msg.Demand.STREAMING if number % 2 else msg.Demand.WHOLE,
        )

    @rule(reader=st.integers(1, 3), first=st.integers(0, PIECES), count=st.integers(0, PIECES + 1))
    def reader_waits(self, reader: int, first: int, count: int) -> None:
        self.feed(ev.Reading, reader=reader, task_id=TASK, first_piece=first, piece_count=count)

    @precondition(lambda self: len(self.wanted) > 1)
    @rule(data=st.data())
    def unwant(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.wanted)))
        self.wanted.remove(number)
        self.feed(ev.Unwant, download_id=DownloadId(number))
        assert number in self.ended, "S4: a client without an end"

    @precondition(lambda self: self.opens)
    @rule()
    def store_opens(self) -> None:
        descriptor = self.opens.pop(0) if self.opens else None
        if descriptor is None:
            return
        if descriptor.epoch < self.epoch:
            descriptor = dataclasses.replace(descriptor, epoch=self.epoch)
        held = sum(1 << piece for piece in self.disk)
        answer = stored(descriptor, held, sealed=self.sealed)
        for piece, digest in self.disk.items():
            answer.records[piece] = dataclasses.replace(answer.records[piece], digest=digest)
        self.rig.feed(ev.TaskOpened, stored=answer)
        self.carry_out()

    @precondition(lambda self: self.hashes)
    @rule()
    def hash_ends(self) -> None:
        effect = self.hashes.pop(0)
        right = all(self.disk.get(piece) == digest_of(piece) for piece in range(PIECES))
        digest = DIGEST if right else WRONG
        self.rig.feed(ev.ContentHashed, task_id=TASK, epoch=effect.epoch, digest=digest)
        self.carry_out()

    @precondition(lambda self: self.seals)
    @rule()
    def seal_ends(self) -> None:
        self.seals -= 1
        self.sealed = len(self.disk) == PIECES
        self.feed(ev.TaskSealed, task_id=TASK, reason=None)

    @precondition(lambda self: self.removals)
    @rule()
    def removal_ends(self) -> None:
        self.removals -= 1
        self.disk.clear()
        self.sealed = False
        self.rig.feed(ev.TaskRemoved, task_id=TASK)
        self.carry_out()

    @rule(after_ms=st.sampled_from([1, 50, 500, 3000, 40_000]))
    def tick(self, after_ms: int) -> None:
        self.rig.tick(after_ms)
        self.carry_out()

    # ------------------------------------------------------------ the scheduler

    @rule()
    def scheduler_up(self) -> None:
        self.session += 1
        self.feed(ev.SchedulerUp, session=self.session)
        self.tell(
            msg.Welcome(scheduler_id="s", version=1, report_interval_ms=50),
            msg.ReportInterval(report_interval_ms=1000),
            msg.SwarmToken(task_id=TASK, token=TOKEN, ttl_ms=3_600_000),
        )

    @precondition(lambda self: self.session)
    @rule()
    def scheduler_down(self) -> None:
        self.feed(ev.SchedulerDown, session=self.session)

    @precondition(lambda self: self.session)
    @rule()
    def describe(self) -> None:
        descriptor = describe(PIECES, epoch=self.epoch)
        self.tell(msg.Described(collection_id=COLLECTION, source_id=SOURCE, descriptor=descriptor))

    @precondition(lambda self: self.session)
    @rule()
    def name_parents(self) -> None:
        parents = tuple(
            msg.Parent(host_id=host, addresses=(msg.Address("10.0.0.1", 1),)) for host in HOSTS
        )
        self.tell(msg.Parents(collection_id=COLLECTION, added=parents))

    @precondition(lambda self: self.session)
    @rule(first=st.integers(0, PIECES - 1), revoke=st.booleans())
    def lease(self, first: int, revoke: bool) -> None:
        number = LeaseNumber(self.next_number())
        lease = msg.Lease(
            number=number,
            task_id=TASK,
            epoch=self.epoch,
            first_piece=first,
            piece_count=min(2, PIECES - first),
            ttl_ms=30_000,
        )
        self.tell(msg.Leases(granted=(lease,)))
        if revoke:
            self.tell(msg.Leases(revoked=(number,)))

    @precondition(lambda self: self.session)
    @rule(piece=st.integers(0, PIECES - 1))
    def list_digest(self, piece: int) -> None:
        entry = (piece, digest_of(piece), LeaseNumber(1))
        self.tell(msg.Digests(task_id=TASK, epoch=self.epoch, entries=(entry,)))

    @precondition(lambda self: self.session and self.epoch < 3 and not self.sealed)
    @rule()
    def void(self) -> None:
        self.tell(msg.EpochVoided(task_id=TASK, epoch=self.epoch + 1))

    # ------------------------------------------------------------ parents

    @precondition(lambda self: self.connecting)
    @rule(works=st.integers(0, 3))
    def connect_ends(self, works: int) -> None:
        host = self.connecting.pop(0)
        if not works:
            self.feed(ev.ParentConnectFailed, host_id=host, reason=Reason.PEER_LOST, detail="")
            return
        connection = ConnectionId(self.next_number())
        self.connections[connection] = host
        self.feed(
            ev.ParentConnected, host_id=host, connection_id=connection, round_trip_ns=1_000_000
        )

    @precondition(lambda self: self.channels)
    @rule(held=MASKS, works=st.integers(0, 4))
    def channel_opens(self, held: int, works: int) -> None:
        connection, _ = self.channels.pop(0)
        if works:
            self.feed(
                ev.ParentOpened,
                connection_id=connection,
                task_id=TASK,
                epoch=self.epoch,
                held=held,
            )
        else:
            self.feed(
                ev.ParentRefused,
                connection_id=connection,
                task_id=TASK,
                reason=Reason.UNKNOWN_TASK,
            )

    @precondition(lambda self: self.connections)
    @rule(data=st.data(), mask=MASKS, gone=st.booleans())
    def parent_news(self, data: st.DataObject, mask: int, gone: bool) -> None:
        connection = data.draw(st.sampled_from(sorted(self.connections)))
        if gone:
            self.feed(ev.ParentWithdrew, connection_id=connection, task_id=TASK, gone=mask)
        else:
            self.feed(ev.ParentHave, connection_id=connection, task_id=TASK, new=mask)

    @precondition(lambda self: self.connections)
    @rule(data=st.data())
    def connection_closes(self, data: st.DataObject) -> None:
        waiting = [connection for connection in self.closing if connection in self.connections]
        connection = data.draw(st.sampled_from(waiting or sorted(self.connections)))
        del self.connections[connection]
        self.channels = [pair for pair in self.channels if pair[0] != connection]
        for request, fetch in list(self.fetches.items()):
            if fetch.connection_id == connection:
                del self.fetches[request]
                self.feed(ev.FetchEnded, request_id=request, reason=Reason.PEER_LOST)
        self.feed(ev.ParentClosed, connection_id=connection, reason=Reason.PEER_LOST, detail="")

    @precondition(lambda self: self.fetches)
    @rule(data=st.data(), outcome=st.sampled_from(["right", "right", "right", "false", "fails"]))
    def fetch_ends(self, data: st.DataObject, outcome: str) -> None:
        request = data.draw(st.sampled_from(sorted(self.fetches)))
        fetch = self.fetches.pop(request)
        if outcome == "fails" or fetch.epoch != self.epoch or self.sealed:
            reason = data.draw(st.sampled_from(FETCH_FAILURES))
            self.feed(ev.FetchEnded, request_id=request, reason=reason, retry_after_ms=100)
            return
        digest = digest_of(fetch.piece)
        if outcome == "false" and not fetch.expected:
            digest = b"false"
        self.disk.setdefault(fetch.piece, digest)
        digest = self.disk[fetch.piece]
        self.feed(
            ev.FetchEnded,
            request_id=request,
            reason=None,
            digest=digest,
            lease_number=LeaseNumber(1),
            epoch=fetch.epoch,
        )

    # ------------------------------------------------------------ the origin

    @precondition(lambda self: self.stats)
    @rule(works=st.booleans(), same=st.sampled_from([True, True, False, None]))
    def stat_ends(self, works: bool, same: bool | None) -> None:
        request = next(iter(self.stats))
        sample = self.stats.pop(request).sample
        self.feed(
            ev.StatEnded,
            request_id=request,
            reason=None if works else Reason.ORIGIN_FAILED,
            size_bytes=PIECES * PIECE,
            validator='"v"',
            ranges=True,
            same=None if sample is None or not works else same,
        )

    @precondition(lambda self: self.reads)
    @rule(data=st.data(), fails=st.sampled_from([None, None, None, *READ_FAILURES]))
    def read_goes_on(self, data: st.DataObject, fails: Reason | None) -> None:
        request = data.draw(st.sampled_from(sorted(self.reads)))
        read = self.reads[request]
        piece = self.read_next[request]
        assert read.piece_count is not None
        stale = read.descriptor.epoch != self.epoch or read.descriptor.task_id != TASK
        if fails is not None or stale or piece == read.first_piece + read.piece_count:
            del self.reads[request]
            self.feed(
                ev.OriginReadEnded,
                request_id=request,
                reason=Reason.CANCELLED if stale else fails,
            )
            return
        self.read_next[request] = piece + 1
        self.disk.setdefault(piece, digest_of(piece))
        self.feed(
            ev.OriginPieceStored,
            request_id=request,
            piece=piece,
            digest=self.disk[piece],
            length_bytes=PIECE,
        )

    # ------------------------------------------------------------ a child

    @rule(good=st.booleans())
    def child_opens(self, good: bool) -> None:
        token = TOKEN if good else b"x" * 32
        self.child_up = True
        self.feed(
            ev.ChildOpened,
            connection_id=CHILD,
            host_id=CHILD_HOST,
            task_id=TASK,
            nonce=NONCE,
            proof=swarm_proof(token, NONCE, CHILD_HOST, TASK),
        )

    @precondition(lambda self: self.child_up)
    @rule(pieces=st.lists(st.integers(0, PIECES), min_size=1, max_size=4), wait=st.booleans())
    def child_asks(self, pieces: list[int], wait: bool) -> None:
        requests = tuple((self.next_number(), piece) for piece in pieces)
        self.child_asked |= {number for number, _ in requests}
        self.rig.feed(
            ev.ChildRequested, connection_id=CHILD, task_id=TASK, requests=requests, wait=wait
        )
        self.carry_out()

    @precondition(lambda self: self.child_asked)
    @rule(data=st.data())
    def child_cancels(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.child_asked)))
        self.rig.feed(ev.ChildCancelled, connection_id=CHILD, requests=(number,))
        self.carry_out()
        assert number not in self.child_asked, "S4: a cancelled request has an answer"

    @precondition(lambda self: self.child_up)
    @rule()
    def child_closes_the_task(self) -> None:
        self.rig.feed(ev.ChildClosedTask, connection_id=CHILD, task_id=TASK)
        self.carry_out()

    @precondition(lambda self: self.child_up and not self.serving)
    @rule()
    def child_goes(self) -> None:
        self.child_up = False
        self.child_asked.clear()
        self.rig.feed(ev.ChildGone, connection_id=CHILD)
        self.carry_out()

    @precondition(lambda self: self.serving)
    @rule(reason=st.sampled_from([None, None, Reason.PEER_LOST]))
    def serve_ends(self, reason: Reason | None) -> None:
        number = next(iter(self.serving))
        piece = self.serving.pop(number).piece
        self.feed(
            ev.ServeEnded,
            connection_id=CHILD,
            child_request=number,
            task_id=TASK,
            piece=piece,
            reason=reason,
        )

    # ------------------------------------------------------------ late news

    @precondition(lambda self: self.past)
    @rule(data=st.data())
    def something_comes_again(self, data: st.DataObject) -> None:
        """S10: answers are repeated, stale connections and sessions speak."""
        late = [
            event
            for event in self.past
            if isinstance(
                event,
                ev.FetchEnded
                | ev.OriginReadEnded
                | ev.OriginPieceStored
                | ev.StatEnded
                | ev.ParentClosed
                | ev.ParentConnectFailed
                | ev.ServeEnded
                | ev.SchedulerDown,
            )
            and not (isinstance(event, ev.SchedulerDown) and event.session == self.session)
            and not (isinstance(event, ev.ParentConnectFailed) and self.connecting)
            and not (isinstance(event, ev.OriginPieceStored) and event.request_id in self.reads)
        ]
        if not late:
            return
        event = data.draw(st.sampled_from(late))
        state = self.rig.engine.state
        before = state.tasks[TASK].held if TASK in state.tasks else 0
        self.rig.effects = self.rig.engine.handle(
            dataclasses.replace(event, now_ns=self.rig.now_ns)
        )
        self.carry_out()
        after = state.tasks[TASK].held if TASK in state.tasks else 0
        assert after == before, "S10: late news changed what is held"

    # ------------------------------------------------------------ always

    @invariant()
    def the_core_is_consistent(self) -> None:
        self.rig.engine.validate()

    @invariant()
    def held_is_written(self) -> None:
        task = self.rig.engine.state.tasks.get(TASK)
        if task is not None:
            self.assert_written(task.held)

    @invariant()
    def nobody_idles_beside_work(self) -> None:
        """L2: what an open, healthy parent holds and nobody brings is asked for."""
        state = self.rig.engine.state
        task = state.tasks.get(TASK)
        if task is None or task.phase is not TaskPhase.ACTIVE:
            return
        if state.planned(task):
            return
        for link in state.links.values():
            channel = link.channels.get(TASK)
            blocked = max(link.quarantined_until_ns, link.busy_until_ns) > state.now_ns
            if link.phase is not LinkPhase.UP or channel is None or not channel.open or blocked:
                continue
            if link.requests:
                continue
            assert not channel.held & task.missing_unrequested, f"L2: {link.host_id} idles"


TestPeerEngine = PeerMachine.TestCase
TestPeerEngine.settings = settings(
    max_examples=80,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
