"""A peer core with a shell of plain lists: tests feed events and read what the core decided.

Decides nothing. It keeps the time, answers nothing by itself, and validates the core after every
event. Numbers of connections and sessions are the tests' own.
"""

import random
from dataclasses import replace
from typing import Any, TypeVar

import peer.core.effects as fx
import peer.core.events as ev
import shoal.wire.control as msg
from peer.core.engine import PeerEngine
from peer.core.limits import PeerLimits
from peer.core.state import Task
from shoal.wire.errors import Reason
from shoal.wire.geometry import Geometry
from shoal.wire.ids import (
    CollectionId,
    ConnectionId,
    DownloadId,
    HostId,
    LeaseNumber,
    RequestId,
    SourceId,
    TaskId,
    collection_of,
)
from shoal.wire.limits import KIB, MILLISECOND_NS

PIECE = 256 * KIB
SOURCE = SourceId("5" * 64)
TASK = TaskId("7" * 64)
COLLECTION = collection_of((SOURCE,))
TOKEN = b"t" * 32
NO_TOKEN = b""
DIGEST = "sha256:" + "a" * 64
WRONG = "sha256:" + "b" * 64

EffectT = TypeVar("EffectT")


def digest_of(piece: int) -> bytes:
    """The right digest of a piece."""
    return b"right%11d" % piece


def describe(
    pieces: int | None = 4, *, digest: str | None = DIGEST, epoch: int = 1, ranges: bool = True
) -> msg.TaskDescriptor:
    """A task of so many whole pieces; None: of unknown size."""
    size = None if pieces is None else pieces * PIECE
    return msg.TaskDescriptor(
        task_id=TASK,
        source_id=SOURCE,
        geometry=Geometry(size_bytes=size, piece_length_bytes=PIECE, run_pieces=1),
        digest=digest,
        validator='"v"',
        ranges=ranges,
        epoch=epoch,
    )


def source(
    *, credential: str = "", task_id: TaskId | None = None, piece_length_bytes: int | None = None
) -> ev.Source:
    """What a client asks for."""
    return ev.Source(SOURCE, task_id, DIGEST, "http://o/x", piece_length_bytes, credential)


class Rig:
    """One engine and its time."""

    def __init__(
        self, *, scheduler: bool = True, tasks: tuple[ev.StoredTask, ...] = (), **limits: Any
    ):
        host = msg.HostInfo(host_id=HostId("me"), addresses=(msg.Address("127.0.0.1", 1),))
        self.engine = PeerEngine(
            host=host,
            limits=PeerLimits(**limits),
            dice=random.Random(1),
            scheduler_configured=scheduler,
        )
        self.now_ns = 1000 * MILLISECOND_NS
        self.log: list[fx.AnyEffect] = []
        self.effects: list[fx.AnyEffect] = []
        self.feed(ev.StoreLoaded, generation=3, tasks=tasks)

    # ------------------------------------------------------------ feeding

    def feed(self, kind: type[Any], after_ms: int = 0, **fields: Any) -> list[fx.AnyEffect]:
        """One event; the effects of it alone are returned and kept in `effects`."""
        self.now_ns += after_ms * MILLISECOND_NS
        self.effects = self.engine.handle(kind(now_ns=self.now_ns, **fields))
        self.log += self.effects
        self.engine.validate()
        return self.effects

    def tick(self, after_ms: int) -> list[fx.AnyEffect]:
        """Time passes, with a tick at every deadline on the way."""
        end_ns = self.now_ns + after_ms * MILLISECOND_NS
        effects: list[fx.AnyEffect] = []
        while (due := self.engine.next_deadline_ns()) is not None and due < end_ns:
            self.now_ns = max(due, self.now_ns)
            effects += self.feed(ev.Tick)
        self.now_ns = end_ns
        effects += self.feed(ev.Tick)
        self.effects = effects
        return effects

    def tell(self, *messages: msg.SchedulerMessage, session: int = 1) -> list[fx.AnyEffect]:
        """The scheduler says something."""
        return self.feed(ev.FromScheduler, session=session, messages=messages)

    # ------------------------------------------------------------ looking

    def of(self, kind: type[EffectT]) -> list[EffectT]:
        """The last event's effects of one kind."""
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def one(self, kind: type[EffectT]) -> EffectT:
        """The only one of a kind among the last event's effects."""
        (effect,) = self.of(kind)
        return effect

    def all(self, kind: type[EffectT]) -> list[EffectT]:
        """Every effect of a kind since the start."""
        return [effect for effect in self.log if isinstance(effect, kind)]

    def said(self, kind: type[EffectT], *, ever: bool = False) -> list[EffectT]:
        """Messages of a kind that went to the scheduler with the last event, or ever."""
        return [
            message
            for effect in (self.all(fx.SendToScheduler) if ever else self.of(fx.SendToScheduler))
            for message in effect.messages
            if isinstance(message, kind)
        ]

    @property
    def task(self) -> Task:
        """The task that most tests are about."""
        return self.engine.state.tasks[TASK]

    # ------------------------------------------------------------ steps that many tests share

    def up(self, session: int = 1) -> None:
        """A control stream stands and the scheduler welcomes us."""
        self.feed(ev.SchedulerUp, session=session)
        self.tell(msg.Welcome(scheduler_id="s", version=1, report_interval_ms=50), session=session)

    def want(self, number: int = 1, **fields: Any) -> list[fx.AnyEffect]:
        """A client wants the source."""
        sources = fields.pop("sources", (source(),))
        return self.feed(
            ev.Want,
            download_id=DownloadId(number),
            collection_id=fields.pop("collection_id", COLLECTION),
            sources=sources,
            **fields,
        )

    def unwant(self, number: int = 1) -> list[fx.AnyEffect]:
        """The client is gone."""
        return self.feed(ev.Unwant, download_id=DownloadId(number))

    def described(self, descriptor: msg.TaskDescriptor | None = None) -> list[fx.AnyEffect]:
        """The scheduler describes the source."""
        return self.tell(
            msg.Described(
                collection_id=COLLECTION, source_id=SOURCE, descriptor=descriptor or describe()
            )
        )

    def open(self, held: int = 0, *, sealed: bool = False) -> list[fx.AnyEffect]:
        """The store opens the task as it was last asked to."""
        descriptor = self.all(fx.OpenTask)[-1].descriptor
        return self.feed(ev.TaskOpened, stored=stored(descriptor, held, sealed=sealed))

    def start(self, pieces: int | None = 4, **descriptor: Any) -> "Rig":
        """Up, wanted, described and opened, with a token."""
        self.up()
        self.want()
        self.described(describe(pieces, **descriptor))
        self.tell(msg.SwarmToken(task_id=TASK, token=TOKEN, ttl_ms=60_000))
        self.open()
        return self

    def parent(self, number: int = 1, held: int = 0b1111, *, epoch: int = 1) -> ConnectionId:
        """A parent is named, connected and lets us see the task."""
        host = HostId(f"p{number}")
        connection = ConnectionId(number)
        self.tell(
            msg.Parents(
                collection_id=COLLECTION,
                added=(msg.Parent(host_id=host, addresses=(msg.Address("10.0.0.1", number),)),),
            )
        )
        self.feed(
            ev.ParentConnected, host_id=host, connection_id=connection, round_trip_ns=1_000_000
        )
        self.feed(ev.ParentOpened, connection_id=connection, task_id=TASK, epoch=epoch, held=held)
        return connection

    # ------------------------------------------------------------ a swarm with a plan

    def directory(self, *names: str, first: int = 0, zones: dict[str, str] | None = None) -> None:
        """The scheduler tells where hosts of the swarm are, from a number on."""
        hosts = tuple(
            msg.Parent(
                host_id=HostId(name),
                addresses=(msg.Address("10.0.0.1", first + number + 1),),
                zone=(zones or {}).get(name, ""),
            )
            for number, name in enumerate(names)
        )
        self.tell(msg.Directory(collection_id=COLLECTION, first=first, hosts=hosts))

    def plan(self, *feeds: str, unit_bytes: int = PIECE) -> list[fx.AnyEffect]:
        """The scheduler assigns a parent to each stripe; "" for none."""
        added = tuple(
            msg.Parent(host_id=HostId(feed), addresses=(msg.Address("10.0.0.1", 1),))
            for feed in dict.fromkeys(feeds)
            if feed
        )
        return self.tell(
            msg.Parents(collection_id=COLLECTION, added=added),
            msg.Assigned(
                collection_id=COLLECTION,
                unit_bytes=unit_bytes,
                parents=tuple(HostId(feed) for feed in feeds),
            ),
        )

    def map(
        self,
        *changes: tuple[int, int],
        covered: int | None = None,
        spread: int = 0,
        gone: tuple[int, ...] = (),
        full: bool = False,
        unit_bytes: int = PIECE,
    ) -> list[fx.AnyEffect]:
        """The scheduler tells that hosts (by number) hold these units of the task."""
        units = 0
        for _, more in changes:
            units |= more
        return self.tell(
            msg.SwarmMap(
                collection_id=COLLECTION,
                unit_bytes=unit_bytes,
                full=full,
                gone=gone,
                changes=tuple(msg.HostRuns(host, 0, more) for host, more in changes),
                covered=((0, units if covered is None else covered),),
                spread=((0, spread),),
            )
        )

    def connects(self, name: str, held: int = 0, *, number: int = 0) -> ConnectionId:
        """A connection to a host stands, and where a channel is asked for it is opened."""
        connection = ConnectionId(number or sum(map(ord, name)))
        self.feed(
            ev.ParentConnected,
            host_id=HostId(name),
            connection_id=connection,
            round_trip_ns=1_000_000,
        )
        if self.of(fx.OpenChannel):
            self.feed(ev.ParentOpened, connection_id=connection, task_id=TASK, epoch=1, held=held)
        return connection

    def fetched(self, fetch: fx.FetchPiece, *, digest: bytes | None = None) -> list[fx.AnyEffect]:
        """A request brings its piece."""
        return self.feed(
            ev.FetchEnded,
            after_ms=1,
            request_id=fetch.request_id,
            reason=None,
            digest=digest_of(fetch.piece) if digest is None else digest,
            lease_number=LeaseNumber(9),
            epoch=fetch.epoch,
        )

    def fetch_fails(self, fetch: fx.FetchPiece, reason: Reason, **fields: Any) -> None:
        """A request ends without a piece."""
        self.feed(ev.FetchEnded, request_id=fetch.request_id, reason=reason, **fields)

    def list_digests(self, *pieces: int, wrong: bool = False) -> list[fx.AnyEffect]:
        """The scheduler tells digests."""
        entries = tuple(
            (piece, b"other" if wrong else digest_of(piece), LeaseNumber(9)) for piece in pieces
        )
        return self.tell(
            msg.Digests(task_id=TASK, epoch=self.task.descriptor.epoch, entries=entries)
        )

    def lease(
        self, first: int = 0, count: int | None = 4, *, number: int = 9, epoch: int = 1
    ) -> list[fx.AnyEffect]:
        """The scheduler grants a lease."""
        lease = msg.Lease(
            number=LeaseNumber(number),
            task_id=TASK,
            epoch=epoch,
            first_piece=first,
            piece_count=count,
            ttl_ms=30_000,
        )
        return self.tell(msg.Leases(granted=(lease,)))

    def read(self, request_id: RequestId, piece: int, length: int = PIECE) -> None:
        """A running origin read stored one more piece."""
        self.feed(
            ev.OriginPieceStored,
            request_id=request_id,
            piece=piece,
            digest=digest_of(piece),
            length_bytes=length,
        )

    def read_ends(self, request_id: RequestId, reason: Reason | None = None, **fields: Any) -> None:
        """An origin read is over."""
        self.feed(ev.OriginReadEnded, request_id=request_id, reason=reason, **fields)

    def hash(self, digest: str = DIGEST) -> list[fx.AnyEffect]:
        """The whole content's digest is known."""
        return self.feed(
            ev.ContentHashed, task_id=TASK, epoch=self.task.hash_attempt, digest=digest
        )

    def seal(self, reason: Reason | None = None) -> list[fx.AnyEffect]:
        """The store sealed the task."""
        return self.feed(ev.TaskSealed, task_id=TASK, reason=reason)


def stored(descriptor: msg.TaskDescriptor, held: int = 0, *, sealed: bool = False) -> ev.StoredTask:
    """What the store tells of a task; its pieces came from others."""
    records = {
        piece: ev.PieceRecord(digest_of(piece), LeaseNumber(9), read_here=False)
        for piece in range(held.bit_length())
        if held >> piece & 1
    }
    return ev.StoredTask(descriptor, held, sealed, records, DIGEST if sealed else "")


def sealed_rig(pieces: int = 4, **limits: Any) -> Rig:
    """A host that holds the whole task, with a token for it, and a scheduler."""
    descriptor = describe(pieces)
    rig = Rig(tasks=(stored(descriptor, (1 << pieces) - 1, sealed=True),), **limits)
    rig.up()
    rig.tell(msg.SwarmToken(task_id=TASK, token=TOKEN, ttl_ms=60_000))
    rig.tick(10)
    return rig


def with_geometry(descriptor: msg.TaskDescriptor, **changes: Any) -> msg.TaskDescriptor:
    """The same task, cut in another way."""
    return replace(descriptor, geometry=replace(descriptor.geometry, **changes))


OTHER_COLLECTION = CollectionId("c" * 64)
