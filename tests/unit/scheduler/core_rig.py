"""A scheduler core with hosts at its sessions, for tests. Keeps what every host was sent and checks
all invariants after each event; never decides anything itself."""

import random
from typing import TypeVar

from scheduler.core import events as ev
from scheduler.core.effects import CloseSession, Noted, SendToHost
from scheduler.core.engine import SchedulerEngine
from scheduler.core.limits import SchedulerLimits
from shoal.wire import bitfield
from shoal.wire import control as msg
from shoal.wire.errors import Reason
from shoal.wire.geometry import Geometry, choose_geometry
from shoal.wire.ids import (
    CollectionId,
    HostId,
    LeaseNumber,
    TaskId,
    collection_of,
    source_of_digest,
    source_of_url,
    task_of_digest,
)
from shoal.wire.limits import KIB, SECOND_NS

Message = TypeVar("Message")

PIECE_BYTES = 256 * KIB
DIGEST = "sha256:" + "ab" * 32
URL_SOURCE = source_of_url("http://origin/file", "", "", None)
DIGEST_SOURCE = source_of_digest(DIGEST, None)
DIGEST_TASK = task_of_digest(DIGEST, None)


def member(
    *,
    url: bool = False,
    anonymous: bool = True,
    origin_allowed: bool = True,
    length: int | None = None,
) -> msg.Member:
    """The one source of most tests, named by its digest or by a plain URL."""
    return msg.Member(
        source_id=URL_SOURCE if url else DIGEST_SOURCE,
        task_id=None if url else DIGEST_TASK,
        digest=None if url else DIGEST,
        display_url="http://origin/file",
        piece_length_bytes=length,
        anonymous=anonymous,
        origin_allowed=origin_allowed,
    )


def join_of(*members: msg.Member) -> msg.Join:
    """A join of the collection of these members."""
    sources = tuple(one.source_id for one in members)
    return msg.Join(collection_id=collection_of(sources), members=members)


def descriptor_of(pieces: int | None, *, epoch: int = 1, ranges: bool = True) -> msg.TaskDescriptor:
    """The descriptor of the digest task as an inventory names it."""
    return msg.TaskDescriptor(
        task_id=DIGEST_TASK,
        source_id=DIGEST_SOURCE,
        geometry=Geometry(
            size_bytes=None if pieces is None else pieces * PIECE_BYTES,
            piece_length_bytes=PIECE_BYTES,
            run_pieces=1,
        ),
        digest=DIGEST,
        validator=None,
        ranges=ranges,
        epoch=epoch,
    )


def digest_of(piece: int, salt: str = "") -> bytes:
    """A digest that this piece might have."""
    return f"{salt}{piece}".encode().ljust(16, b".")


class Rig:
    """One engine and its hosts."""

    def __init__(self, limits: SchedulerLimits | None = None, seed: int = 1) -> None:
        self._tokens = 0
        self.engine = SchedulerEngine(
            limits=limits or SchedulerLimits(),
            dice=random.Random(seed),
            scheduler_id="scheduler",
            token_source=self._token,
            # In short pieces, however many: what is written here counts in them.
            cut=lambda size_bytes, length: choose_geometry(size_bytes, length or PIECE_BYTES),
        )
        self.now_ns = SECOND_NS
        self.sessions: dict[str, int] = {}
        self.inbox: dict[int, list[msg.SchedulerMessage]] = {}
        self.batches: dict[int, list[tuple[msg.SchedulerMessage, ...]]] = {}
        self.closed: dict[int, CloseSession] = {}
        self.notes: list[Noted] = []
        self._last_session = 0

    def _token(self) -> bytes:
        self._tokens += 1
        return self._tokens.to_bytes(32, "big")

    # ------------------------------------------------------------ driving

    def handle(self, event: ev.AnyEvent) -> None:
        """One event; every invariant is checked behind it."""
        for effect in self.engine.handle(event):
            match effect:
                case SendToHost():
                    self.inbox.setdefault(effect.session, []).extend(effect.messages)
                    self.batches.setdefault(effect.session, []).append(effect.messages)
                case CloseSession():
                    self.closed[effect.session] = effect
                case Noted():
                    self.notes.append(effect)
        self.engine.validate()

    def open_session(self, subject: str = "") -> int:
        """A stream without a Hello yet, of a host whose certificate has this name."""
        self._last_session += 1
        self.handle(
            ev.HostConnected(now_ns=self.now_ns, session=self._last_session, subject=subject)
        )
        return self._last_session

    def connect(
        self,
        name: str,
        *messages: msg.HostMessage,
        generation: int = 1,
        holdings: tuple[msg.Holding, ...] = (),
        leases: tuple[msg.HeldLease, ...] = (),
        port: int = 1,
        zone: str = "",
        upload_rate_bytes_s: int = 0,
    ) -> int:
        """A host with a fresh stream says Hello, and more in the same batch."""
        session = self.open_session()
        self.sessions[name] = session
        hello = msg.Hello(
            host=msg.HostInfo(
                host_id=HostId(name),
                addresses=(msg.Address("10.0.0.1", port),),
                zone=zone,
                upload_rate_bytes_s=upload_rate_bytes_s,
            ),
            generation=generation,
            holdings=holdings,
            leases=leases,
        )
        self.send_on(session, hello, *messages)
        return session

    def send_on(self, session: int, *messages: msg.HostMessage) -> None:
        """Messages of one session."""
        self.handle(ev.FromHost(now_ns=self.now_ns, session=session, messages=messages))

    def send(self, name: str, *messages: msg.HostMessage) -> None:
        """Messages of a host on its present stream."""
        self.send_on(self.sessions[name], *messages)

    def disconnect(self, name: str) -> None:
        """The host's present stream breaks."""
        self.handle(ev.HostDisconnected(now_ns=self.now_ns, session=self.sessions[name]))

    def wait(self, seconds: float) -> None:
        """Time passes; ticks come when the core asks for them, and only then."""
        end_ns = self.now_ns + int(seconds * SECOND_NS)
        while (due_ns := self.engine.next_deadline_ns()) is not None and due_ns <= end_ns:
            self.now_ns = max(self.now_ns, due_ns)
            self.handle(ev.Tick(now_ns=self.now_ns))
        self.now_ns = end_ns

    # ------------------------------------------------------------ looking

    def got(self, name: str, kind: type[Message]) -> list[Message]:
        """Messages of a kind that the host's present stream was sent since this was last asked."""
        inbox = self.inbox.get(self.sessions[name], [])
        found: list[Message] = [message for message in inbox if isinstance(message, kind)]
        inbox[:] = [message for message in inbox if not isinstance(message, kind)]
        return found

    def told(self, name: str) -> list[list[type[msg.SchedulerMessage]]]:
        """The kinds of messages in each batch that the host's present stream was sent since this
        was last asked."""
        batches = self.batches.pop(self.sessions[name], [])
        return [[type(message) for message in batch] for batch in batches]

    def granted(self, name: str) -> list[msg.Lease]:
        """Leases granted to a host since this was last asked; revocations stay in the inbox."""
        inbox = self.inbox.get(self.sessions[name], [])
        found = [one for m in inbox if isinstance(m, msg.Leases) for one in m.granted]
        inbox[:] = [m for m in inbox if not (isinstance(m, msg.Leases) and m.granted)]
        return found

    def revoked(self, name: str) -> list[LeaseNumber]:
        """Leases taken back from a host since this was last asked; grants stay in the inbox."""
        inbox = self.inbox.get(self.sessions[name], [])
        found = [one for m in inbox if isinstance(m, msg.Leases) for one in m.revoked]
        inbox[:] = [m for m in inbox if not (isinstance(m, msg.Leases) and m.revoked)]
        return found

    def failures(self, name: str) -> list[tuple[str, str]]:
        """(reason, detail) of each source that failed for the host."""
        return [(str(m.reason), m.detail) for m in self.got(name, msg.SourceFailed)]

    # ------------------------------------------------------------ shortcuts

    def join(
        self, name: str, *, url: bool = False, anonymous: bool = True, allowed: bool = True
    ) -> None:
        """The host wants the collection of the one source."""
        self.send(name, join_of(member(url=url, anonymous=anonymous, origin_allowed=allowed)))

    def leave(self, name: str, *, url: bool = False) -> None:
        """The host wants the collection no longer."""
        self.send(name, msg.Leave(collection_id=self.collection(url=url)))

    @staticmethod
    def collection(*, url: bool = False) -> CollectionId:
        """The collection of the one source."""
        return collection_of((URL_SOURCE if url else DIGEST_SOURCE,))

    def answer(
        self,
        name: str,
        *,
        pieces: int | None = 4,
        url: bool = False,
        anonymous: bool = True,
        ranges: bool = True,
        validator: str | None = '"v1"',
    ) -> None:
        """The origin accepted the host."""
        self.send(
            name,
            msg.StatAnswer(
                source_id=URL_SOURCE if url else DIGEST_SOURCE,
                outcome=None,
                size_bytes=None if pieces is None else pieces * PIECE_BYTES,
                validator=validator,
                ranges=ranges,
                anonymous=anonymous,
            ),
        )

    def refuse(
        self,
        name: str,
        reason: Reason,
        *,
        anonymous: bool = True,
        retry_after_ms: int = 0,
        url: bool = False,
    ) -> None:
        """The origin did not answer the host as it should."""
        self.send(
            name,
            msg.StatAnswer(
                source_id=URL_SOURCE if url else DIGEST_SOURCE,
                outcome=reason,
                anonymous=anonymous,
                retry_after_ms=retry_after_ms,
                detail="origin says no",
            ),
        )

    def start(self, *names: str, pieces: int | None = 4, ranges: bool = True) -> None:
        """The hosts connect and join a public content, and know it."""
        for name in names:
            self.connect(name, join_of(member()))
        self.answer(names[0], pieces=pieces, ranges=ranges)

    @property
    def task_id(self) -> TaskId:
        """The only task there is."""
        (task_id,) = self.engine.state.tasks
        return task_id

    @property
    def epoch(self) -> int:
        """The only task's epoch."""
        return self.engine.state.tasks[self.task_id].descriptor.epoch

    def read(self, name: str, lease: msg.Lease, *, salt: str = "", end: bool = True) -> None:
        """The host reads all of a lease, and says so in one report."""
        assert lease.piece_count is not None
        span = range(lease.first_piece, lease.first_piece + lease.piece_count)
        self.send(
            name,
            msg.Report(
                statements=tuple(
                    msg.Statement(lease.task_id, lease.epoch, p, digest_of(p, salt), lease.number)
                    for p in span
                ),
                progress=(
                    msg.Progress(
                        task_id=lease.task_id,
                        epoch=lease.epoch,
                        new=bitfield.mask_of(lease.first_piece, lease.piece_count),
                    ),
                ),
                lease_ends=(
                    (msg.LeaseEnd(number=lease.number, task_id=lease.task_id, outcome=None),)
                    if end
                    else ()
                ),
            ),
        )

    def read_at_once(self, name: str, leases: list[msg.Lease]) -> None:
        """The host reads all of these leases before it says so: nothing is left to read for it."""
        statements: list[msg.Statement] = []
        progress: list[msg.Progress] = []
        for lease in leases:
            assert lease.piece_count is not None
            span = range(lease.first_piece, lease.first_piece + lease.piece_count)
            statements += [
                msg.Statement(lease.task_id, lease.epoch, piece, digest_of(piece), lease.number)
                for piece in span
            ]
            new = bitfield.mask_of(lease.first_piece, lease.piece_count)
            progress.append(msg.Progress(task_id=lease.task_id, epoch=lease.epoch, new=new))
        ends = tuple(
            msg.LeaseEnd(number=lease.number, task_id=lease.task_id, outcome=None)
            for lease in leases
        )
        report = msg.Report(statements=tuple(statements), progress=tuple(progress), lease_ends=ends)
        self.send(name, report)

    def read_all(self, name: str, *, salt: str = "") -> None:
        """The host reads all that it was leased and goes on being leased."""
        while leases := self.granted(name):
            for lease in leases:
                self.read(name, lease, salt=salt)

    def hold(self, name: str, pieces: int) -> None:
        """The host reports pieces of the only task as held."""
        progress = msg.Progress(task_id=self.task_id, epoch=self.epoch, new=pieces)
        self.send(name, msg.Report(progress=(progress,)))

    def check(self, name: str, *, passed: bool, digest: str = DIGEST) -> None:
        """The host computed the whole content's digest."""
        self.send(
            name,
            msg.Checked(task_id=self.task_id, epoch=self.epoch, passed=passed, digest=digest),
        )

    def fail_lease(
        self, name: str, lease: msg.Lease, reason: Reason, retry_after_ms: int = 0
    ) -> None:
        """The host gives a lease back with a reason."""
        end = msg.LeaseEnd(
            number=lease.number,
            task_id=lease.task_id,
            outcome=reason,
            retry_after_ms=retry_after_ms,
            detail=f"read failed: {reason}",
        )
        self.send(name, msg.Report(lease_ends=(end,)))

    def blame(self, name: str, other: str, piece: int, reason: Reason) -> None:
        """The host complains of a parent."""
        blame = msg.Blame(host_id=HostId(other), task_id=self.task_id, piece=piece, reason=reason)
        self.send(name, msg.Report(blames=(blame,)))
