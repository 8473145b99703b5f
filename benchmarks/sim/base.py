"""The process and the disk of one simulated host, around the production `PeerEngine`.

Carries out effects as the shell does, after the time that they would take; never decides.
"""

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks.sim.ledger import Ledger
from benchmarks.sim.options import HostSpec
from benchmarks.sim.origin import Truth
from peer.core import effects as fx
from peer.core import events as ev
from peer.core.engine import PeerEngine
from shoal.wire.control import Address, Demand, HostInfo, SchedulerMessage, TaskDescriptor
from shoal.wire.errors import Reason
from shoal.wire.ids import DownloadId, HostId, TaskId, collection_of
from shoal.wire.limits import MILLISECOND_NS, SECOND_NS

if TYPE_CHECKING:
    from benchmarks.sim.world import World

RECONNECT_NS = 200 * MILLISECOND_NS
STORE_NS = MILLISECOND_NS // 10


class Content:
    """One task on a disk."""

    __slots__ = ("descriptor", "false", "pieces", "sealed", "truth")

    def __init__(self, descriptor: TaskDescriptor, truth: Truth) -> None:
        self.descriptor = descriptor
        self.truth = truth
        self.pieces: dict[int, ev.PieceRecord] = {}
        self.false = 0
        """How many of them are not what they should be; no host can know."""
        self.sealed = False

    def stored(self) -> ev.StoredTask:
        """As the store tells it."""
        held = 0
        for piece in self.pieces:
            held |= 1 << piece
        return ev.StoredTask(self.descriptor, held, self.sealed, dict(self.pieces))

    def put(self, piece: int, record: ev.PieceRecord) -> bool:
        """Writes a piece, over what was there; whether it is a new one."""
        old = self.pieces.get(piece)
        truth = self.truth[piece]
        if old is not None and old.digest != truth:
            self.false -= 1
        if record.digest != truth:
            self.false += 1
        self.pieces[piece] = record
        return old is None

    def drop(self, piece: int) -> None:
        """Forgets a piece."""
        if self.pieces.pop(piece).digest != self.truth[piece]:
            self.false -= 1


class NodeBase:
    """A host of the world. `lie` makes it a liar: "bytes" sends wrong bytes under the right
    header, "header" wrong bytes with a digest that fits them, "stall" never sends, "origin" tells
    wrong digests of what it reads from the origin."""

    DO: ClassVar[dict[type[Any], Callable[[Any, Any], None]]] = {}
    """How each effect but `FetchPiece` is carried out."""

    def __init__(self, world: "World", host_id: HostId, number: int, spec: HostSpec) -> None:
        self.world = world
        self.host_id = host_id
        self.number = number
        """From 1, in the order of coming."""
        self.spec = spec
        self.up_link, self.down_link = world.topology.add_host(spec)
        self.lie = ""
        self.alive = False
        self.wants = False
        self.ended = False
        self.reason: Reason | None = None
        self.started_ns = 0
        self.ended_ns = 0
        self.runs = 0
        self.origin_bytes = 0
        self.contents: dict[TaskId, Content] = {}
        self._held_bytes = 0
        self._validate = world.options.validate
        self._rate_bytes_s = spec.up_bytes_s
        self._demand: tuple[Demand, bool, str] = (Demand.WHOLE, True, "")
        self._downloads = 0
        self._hash_free_ns = 0
        self._disk_free_ns = 0
        self._boot()

    def _boot(self) -> None:
        self.runs += 1
        spec, options = self.spec, self.world.options
        self.engine = PeerEngine(
            host=HostInfo(
                host_id=self.host_id,
                addresses=(Address("127.0.0.1", 1),),
                zone=spec.label,
                upload_rate_bytes_s=int(spec.up_bytes_s) if spec.told_rate else 0,
                download_rate_bytes_s=int(spec.down_bytes_s) if spec.told_rate else 0,
            ),
            limits=options.peer_limits,
            dice=random.Random(f"{options.seed}/{self.host_id}/{self.runs}"),
            scheduler_configured=options.with_scheduler,
        )
        self.ledger = Ledger()
        self.session: int | None = None
        self._wake_ns: int | None = None

    @property
    def rate_bytes_s(self) -> float:
        """Rate of both of the host's links (of its uplink, where they differ)."""
        return self._rate_bytes_s

    @rate_bytes_s.setter
    def rate_bytes_s(self, rate: float) -> None:
        self._rate_bytes_s = rate
        self.world.network.set_rate(self.up_link, rate)
        self.world.network.set_rate(self.down_link, rate)

    def slow_down(self, share: float) -> None:
        """Both links have only this share of their rates from now on; 1 gives all of it back."""
        self._rate_bytes_s = self.spec.up_bytes_s * share
        self.world.network.set_rate(self.up_link, self.spec.up_bytes_s * share)
        self.world.network.set_rate(self.down_link, self.spec.down_bytes_s * share)

    # ------------------------------------------------------------ life

    def start(self) -> None:
        """The daemon starts; what is on its disk survived."""
        self.alive = True
        tasks = tuple(content.stored() for content in self.contents.values())
        self.post(ev.StoreLoaded(now_ns=self.world.now_ns, generation=self.runs, tasks=tasks))
        self.connect_scheduler()

    def crash(self) -> None:
        """The process dies: connections break, memory is gone, the disk stays."""
        if not self.alive:
            return
        self.alive = False
        session, self.session = self.session, None
        if session is not None:
            self.world.control.close(session)
        self._let_go()
        self.world.broken.extend(f"{self.host_id}: {what}" for what in self.ledger.broken)

    def _let_go(self) -> None:
        raise NotImplementedError

    def restart(self) -> None:
        """The daemon comes back with its disk; a client that waited asks again."""
        self._boot()
        self.start()
        if self.wants and not self.ended:
            demand, origin_allowed, credential = self._demand
            self.want(demand, origin_allowed=origin_allowed, credential=credential)

    def leave(self) -> None:
        """The daemon is stopped in good order, and does not come back."""
        self.wants = False
        if self.alive:
            self.post(ev.ShutDown(now_ns=self.world.now_ns))
            self.crash()

    def want(
        self, demand: Demand = Demand.WHOLE, *, origin_allowed: bool = True, credential: str = ""
    ) -> None:
        """A local client wants the world's collection."""
        now_ns = self.world.now_ns
        if not self.wants:
            self.started_ns = now_ns
        self.wants = True
        self._demand = (demand, origin_allowed, credential)
        self._downloads += 1
        sources = tuple(task.source(credential) for task in self.world.tasks)
        self.post(
            ev.Want(
                now_ns=now_ns,
                download_id=DownloadId(self._downloads),
                collection_id=collection_of(tuple(source.source_id for source in sources)),
                sources=sources,
                demand=demand,
                origin_allowed=origin_allowed,
            )
        )

    # ------------------------------------------------------------ events and effects

    def post(self, event: ev.AnyEvent) -> None:
        """Hands an event to the core and carries out what it answers."""
        if not self.alive:
            return
        world = self.world
        self.ledger.answer(event)
        effects = self.engine.handle(event)
        world.events += 1
        world.trace.note(self.number, event, len(effects))
        if self._validate:
            self.engine.validate()
        if effects:
            self._carry_out(effects)
        self._plan_tick()

    def _carry_out(self, effects: list[fx.AnyEffect]) -> None:
        do, next_effect, count = self.DO, 0, len(effects)
        while next_effect < count:
            effect = effects[next_effect]
            next_effect += 1
            if type(effect) is not fx.FetchPiece:
                do[type(effect)](self, effect)
                continue
            # The shell sends what it is told at once to one parent in one frame.
            together = [effect]
            while next_effect < count:
                other = effects[next_effect]
                if (
                    type(other) is not fx.FetchPiece
                    or other.connection_id != effect.connection_id
                    or other.task_id != effect.task_id
                    or other.wait != effect.wait
                ):
                    break
                together.append(other)
                next_effect += 1
            self._fetch(together)

    def _fetch(self, effects: list[fx.FetchPiece]) -> None:
        raise NotImplementedError

    def arrive(self, run: int, event: ev.AnyEvent) -> None:
        """An event that was on its way comes, unless the process died meanwhile."""
        if self.runs == run:
            self.post(event)

    def expect(self, event: ev.AnyEvent) -> None:
        """Lets an event come at its own time."""
        self.world.at(event.now_ns, self.arrive, self.runs, event)

    def _plan_tick(self) -> None:
        deadline_ns = self.engine.next_deadline_ns()
        if deadline_ns is None:
            return
        now_ns = self.world.now_ns
        if self._wake_ns is not None and now_ns < self._wake_ns <= deadline_ns:
            return
        self._wake_ns = max(deadline_ns, now_ns)
        self.world.at(self._wake_ns, self._tick, self.runs, self._wake_ns)

    def _tick(self, run: int, wake_ns: int) -> None:
        # An earlier deadline may have taken the place of this one.
        if self.runs == run and self._wake_ns == wake_ns:
            self._wake_ns = None
            self.post(ev.Tick(now_ns=self.world.now_ns))

    # ------------------------------------------------------------ scheduler

    def connect_scheduler(self) -> None:
        """Opens the control stream, or tries again later."""
        if not self.alive or self.session is not None or not self.world.options.with_scheduler:
            return
        self.session = self.world.control.open(self)
        if self.session is None:
            self.world.after(RECONNECT_NS, self.connect_scheduler)
        else:
            self.post(ev.SchedulerUp(now_ns=self.world.now_ns, session=self.session))

    def scheduler_lost(self, session: int) -> None:
        """The stream broke."""
        if self.session == session:
            self.session = None
            self.expect(ev.SchedulerDown(now_ns=self.world.now_ns, session=session))
            self.world.after(RECONNECT_NS, self.connect_scheduler)

    def from_scheduler(self, session: int, messages: tuple[SchedulerMessage, ...]) -> None:
        """A batch arrived."""
        if self.session == session:
            self.post(
                ev.FromScheduler(now_ns=self.world.now_ns, session=session, messages=messages)
            )

    def _send_to_scheduler(self, effect: fx.SendToScheduler) -> None:
        if self.session == effect.session:
            self.world.control.from_host(effect.session, effect.messages)

    # ------------------------------------------------------------ store

    @property
    def disk(self) -> dict[TaskId, dict[int, ev.PieceRecord]]:
        """What is on the disk, by task and piece."""
        return {task_id: content.pieces for task_id, content in self.contents.items()}

    def held_bytes(self) -> int:
        """How much is on the disk."""
        return self._held_bytes

    def store_ns(self, length_bytes: int, from_ns: int) -> int:
        """When a piece that came at a time is hashed and written, one after the other."""
        options = self.world.options
        self._hash_free_ns = max(self._hash_free_ns, from_ns) + int(
            length_bytes * SECOND_NS / options.hash_bytes_s
        )
        self._disk_free_ns = max(self._disk_free_ns, self._hash_free_ns) + int(
            length_bytes * SECOND_NS / options.disk_bytes_s
        )
        return self._disk_free_ns + STORE_NS

    def keep(self, task_id: TaskId, piece: int, record: ev.PieceRecord, epoch: int) -> None:
        """A piece is written, unless it is of another epoch by now."""
        content = self.contents.get(task_id)
        if content is None or (content.descriptor.epoch != epoch and not content.sealed):
            return
        if content.put(piece, record):
            self._held_bytes += content.descriptor.geometry.length_bytes(piece)

    def _drop(self, content: Content, piece: int) -> None:
        if piece in content.pieces:
            content.drop(piece)
            self._held_bytes -= content.descriptor.geometry.length_bytes(piece)

    def _open_task(self, effect: fx.OpenTask) -> None:
        descriptor = effect.descriptor
        content = self.contents.get(descriptor.task_id)
        if content is None:
            truth = self.world.origin.truth_for(descriptor.source_id, descriptor.validator)
            content = self.contents[descriptor.task_id] = Content(descriptor, truth)
        elif content.descriptor.epoch < descriptor.epoch and not content.sealed:
            for piece in list(content.pieces):
                self._drop(content, piece)
        geometry = descriptor.geometry
        if geometry != content.descriptor.geometry:
            # The last piece is shorter than it was taken for.
            held = sum(geometry.length_bytes(piece) for piece in content.pieces)
            was = sum(content.descriptor.geometry.length_bytes(p) for p in content.pieces)
            self._held_bytes += held - was
        content.descriptor = descriptor
        self.expect(ev.TaskOpened(now_ns=self.world.now_ns + STORE_NS, stored=content.stored()))

    def _drop_pieces(self, effect: fx.DropPieces) -> None:
        content = self.contents.get(effect.task_id)
        if content is not None:
            for piece in list(content.pieces):
                if effect.pieces >> piece & 1:
                    self._drop(content, piece)

    def _hash_prefix(self, effect: fx.HashPrefix) -> None:
        if not effect.final:
            return
        self.expect(
            ev.ContentHashed(
                now_ns=self.world.now_ns + STORE_NS,
                task_id=effect.task_id,
                epoch=effect.epoch,
                digest=self.content_digest(self.contents[effect.task_id]),
            )
        )

    def content_digest(self, content: Content) -> str:
        """What hashing the whole content gives."""
        task = self.world.origin.by_source[content.descriptor.source_id]
        return "sha256:bad" if content.false else task.true_digest

    def _seal_task(self, effect: fx.SealTask) -> None:
        content = self.contents[effect.task_id]
        content.sealed = True
        # Content of a plain URL is as good as who read it.
        false = content.false and content.descriptor.digest is not None
        if false or len(content.pieces) != content.descriptor.geometry.piece_count:
            self.world.broken.append(f"{self.host_id}: seals {effect.task_id}, which is not right")
        self.expect(
            ev.TaskSealed(now_ns=self.world.now_ns + STORE_NS, task_id=effect.task_id, reason=None)
        )

    def _remove_task(self, effect: fx.RemoveTask) -> None:
        content = self.contents.pop(effect.task_id, None)
        if content is not None:
            geometry = content.descriptor.geometry
            self._held_bytes -= sum(geometry.length_bytes(piece) for piece in content.pieces)
        self.expect(ev.TaskRemoved(now_ns=self.world.now_ns + STORE_NS, task_id=effect.task_id))
