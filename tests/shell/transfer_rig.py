"""Both ends of a transfer for tests: real sockets and connections, a tiny store, and instead of a
core a recorder of events that can serve whatever is asked."""

import asyncio
import functools
import inspect
import itertools
import os
import ssl
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, Final, TypeVar

import pytest
import trustme
import uvloop

from peer.core import effects as fx
from peer.core import events as ev
from peer.shell.buffers import BufferPool
from peer.shell.store.errors import StoreError
from peer.shell.transfer.parents import ParentConnections
from peer.shell.transfer.port import PiecePort
from shoal.runtime.clock import Clock, MonotonicClock
from shoal.runtime.rates import RateLimiter
from shoal.runtime.tasks import InlineOffload, Offload, Supervisor
from shoal.wire.control import Address
from shoal.wire.digest import piece_digest
from shoal.wire.errors import Reason
from shoal.wire.ids import ConnectionId, HostId, LeaseNumber, RequestId, TaskId
from shoal.wire.limits import KIB, MIB

E = TypeVar("E")

TASK = TaskId("7a" * 32)
OTHER_TASK = TaskId("7b" * 32)
TOKEN = b"the swarm's token"
LEASE = LeaseNumber(41)
PIECE_BYTES = 256 * KIB


LOOPS: Final[dict[str, Callable[[], asyncio.AbstractEventLoop]]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


def on_both_loops(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs an async test on the standard library's event loop and on uvloop."""

    @functools.wraps(test)
    def run(*args: Any, loop: str, **kwargs: Any) -> None:
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(test(*args, **kwargs))

    signature = inspect.signature(test)
    added = inspect.Parameter("loop", inspect.Parameter.KEYWORD_ONLY)
    parameters = [*signature.parameters.values(), added]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    marked: Callable[..., None] = pytest.mark.parametrize("loop", list(LOOPS))(run)
    return marked


async def turns_until(condition: Callable[[], bool]) -> None:
    """Lets the loop turn until a condition holds that no event tells of."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0)


def some_content(size_bytes: int, seed: int = 1) -> bytes:
    """Bytes that no two pieces share."""
    return Random(seed).randbytes(size_bytes)


class HandClock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.time_ns = 1_000_000_000

    def now_ns(self) -> int:
        """The present moment."""
        return self.time_ns

    def pass_s(self, seconds: float) -> None:
        """Time passes."""
        self.time_ns += int(seconds * 1e9)


class Lent:
    """A descriptor on loan."""

    def __init__(self, store: "TinyStore", fd: int) -> None:
        self.fd = fd
        self._store = store
        self._given_back = False

    def release(self) -> None:
        """Gives it back."""
        assert not self._given_back, "given back twice"
        self._given_back = True
        self._store.lent -= 1


class TinyStore:
    """Files of tasks, without any bookkeeping. `broken`: what every call fails with."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self._root = root
        self._fds: dict[TaskId, int] = {}
        self.lent = 0
        self.written: dict[tuple[TaskId, int], ev.PieceRecord] = {}
        self.broken: StoreError | None = None
        self.gate: threading.Event | None = None
        """While set and closed, writes wait for it."""
        self.writing = False
        """Whether a write has begun."""

    def put(self, task_id: TaskId, content: bytes) -> None:
        """A content that is held whole."""
        (self._root / task_id).write_bytes(content)

    def content(self, task_id: TaskId = TASK) -> bytes:
        """What was written of a task."""
        return (self._root / task_id).read_bytes()

    def shorten(self, task_id: TaskId, size_bytes: int) -> None:
        """Somebody cut the file."""
        os.truncate(self._root / task_id, size_bytes)

    def lend(self, task_id: TaskId) -> Lent:
        """See `ContentStore`."""
        if self.broken is not None:
            raise self.broken
        self.lent += 1
        return Lent(self, self._fd(task_id))

    def write_piece(
        self, task_id: TaskId, piece: int, epoch: int, data: memoryview, record: ev.PieceRecord
    ) -> None:
        """See `ContentStore`."""
        self.writing = True
        if self.gate is not None:
            assert self.gate.wait(10)
        if self.broken is not None:
            raise self.broken
        assert epoch == 1
        os.pwrite(self._fd(task_id), data, piece * PIECE_BYTES)
        self.written[task_id, piece] = record

    def _fd(self, task_id: TaskId) -> int:
        if task_id not in self._fds:
            self._fds[task_id] = os.open(self._root / task_id, os.O_RDWR | os.O_CREAT)
        return self._fds[task_id]

    def close(self) -> None:
        """Closes the files."""
        for fd in self._fds.values():
            os.close(fd)


class Recorder:
    """In place of a core: keeps events and lets tests wait for them."""

    def __init__(self) -> None:
        self.events: list[ev.AnyEvent] = []
        self.react: dict[type[Any], Callable[[Any], None]] = {}
        self._changed = asyncio.Event()

    def post(self, event: ev.AnyEvent) -> None:
        """Takes an event and reacts at once, as a core would."""
        self.events.append(event)
        reaction = self.react.get(type(event))
        if reaction is not None:
            reaction(event)
        self._changed.set()

    def all(self, kind: type[E]) -> list[E]:
        """Every event of a kind so far."""
        return [event for event in self.events if isinstance(event, kind)]

    def index(self, kind: type[Any]) -> int:
        """Place of the first event of a kind."""
        return next(at for at, event in enumerate(self.events) if isinstance(event, kind))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits until a condition holds, which only events can bring about."""
        async with asyncio.timeout(20):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def wait(self, kind: type[E], count: int = 1) -> list[E]:
        """Waits for so many events of a kind, and gives them."""
        await self.until(lambda: len(self.all(kind)) >= count)
        return self.all(kind)


class Side:
    """What both sides have."""

    def __init__(self, store: TinyStore, clock: Clock) -> None:
        self.store = store
        self.clock = clock
        self.core = Recorder()
        self.supervisor = Supervisor()
        numbers = itertools.count(1)
        self.next_connection_id = lambda: ConnectionId(next(numbers))


class Parent(Side):
    """A host that serves: `held` pieces of TASK, to everybody who asks, in order."""

    def __init__(
        self,
        root: Path,
        content: bytes,
        *,
        host_id: str = "parent",
        clock: Clock | None = None,
        upload_rate_bytes_s: int = 0,
        ssl_context: ssl.SSLContext | None = None,
        listen: tuple[tuple[str, int], ...] = (("127.0.0.1", 0),),
        connections_max: int = 1024,
        serving: bool = True,
    ) -> None:
        super().__init__(TinyStore(root), clock or MonotonicClock())
        self.host_id = HostId(host_id)
        self.full = content
        self.store.put(TASK, content)
        self.port = PiecePort(
            host_id=self.host_id,
            listen=listen,
            store=self.store,
            upload_limiter=RateLimiter(upload_rate_bytes_s, self.clock),
            clock=self.clock,
            post=self.core.post,
            next_connection_id=self.next_connection_id,
            connections_max=connections_max,
            ssl_context=ssl_context,
        )
        self.held = (1 << -(-len(content) // PIECE_BYTES)) - 1
        self.epoch = 1
        self.core.react[ev.ChildOpened] = self._opened
        if serving:
            self.core.react[ev.ChildRequested] = self._requested

    async def __aenter__(self) -> "Parent":
        await self.port.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.port.close()
        await self.supervisor.close()
        if error[0] is None:
            assert self.store.lent == 0, "a lent file was not given back"
        self.store.close()

    @property
    def address(self) -> Address:
        """Where it listens first."""
        return self.port.addresses[0]

    def _opened(self, event: ev.ChildOpened) -> None:
        self.port.accept(
            fx.AcceptChild(
                connection_id=event.connection_id,
                task_id=event.task_id,
                epoch=self.epoch,
                held=self.held,
            )
        )

    def _requested(self, event: ev.ChildRequested) -> None:
        for request, piece in event.requests:
            self.serve(event.connection_id, request, piece)

    def serve(self, connection_id: ConnectionId, request: int, piece: int) -> None:
        """Has a piece sent."""
        data = self.full[piece * PIECE_BYTES : (piece + 1) * PIECE_BYTES]
        self.port.serve(
            fx.ServePiece(
                connection_id=connection_id,
                child_request=request,
                task_id=TASK,
                piece=piece,
                offset_bytes=piece * PIECE_BYTES,
                length_bytes=len(data),
                record=ev.PieceRecord(piece_digest("xxh3-128", data), LEASE, read_here=True),
                epoch=self.epoch,
            )
        )


class Child(Side):
    """A host that fetches pieces of TASK, a content that the test knows."""

    def __init__(
        self,
        root: Path,
        content: bytes,
        *,
        host_id: str = "child",
        download_rate_bytes_s: int = 0,
        buffers_bytes: int = 32 * MIB,
        offload: Offload | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(TinyStore(root), MonotonicClock())
        self.full = content
        self.buffers = BufferPool(buffers_bytes)
        self.connections = ParentConnections(
            host_id=HostId(host_id),
            store=self.store,
            buffers=self.buffers,
            offload=offload or InlineOffload(),
            download_limiter=RateLimiter(download_rate_bytes_s, self.clock),
            clock=self.clock,
            post=self.core.post,
            supervisor=self.supervisor,
            next_connection_id=self.next_connection_id,
            ssl_context=ssl_context,
        )
        self._requests = itertools.count(1)

    async def __aenter__(self) -> "Child":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.connections.close()
        await self.supervisor.close()
        if kind is None:
            assert self.supervisor.failure is None
            assert self.buffers.used_bytes == 0, "a buffer was not given back"
            ends = [event.request_id for event in self.core.all(ev.FetchEnded)]
            assert sorted(ends) == sorted(set(ends)), "a request ended twice"
            assert len(ends) == next(self._requests) - 1, "a request did not end"
        self.store.close()

    async def connect(self, *addresses: Address, host_id: str = "parent") -> ConnectionId:
        """Connects, and gives the connection's number."""
        count = len(self.core.all(ev.ParentConnected))
        self.connections.connect(fx.Connect(host_id=HostId(host_id), addresses=addresses))
        return (await self.core.wait(ev.ParentConnected, count + 1))[count].connection_id

    async def open(self, connection_id: ConnectionId, task_id: TaskId = TASK) -> ev.ParentOpened:
        """Opens a task's channel."""
        count = len(self.core.all(ev.ParentOpened))
        self.ask_to_open(connection_id, task_id)
        return (await self.core.wait(ev.ParentOpened, count + 1))[count]

    def ask_to_open(self, connection_id: ConnectionId, task_id: TaskId = TASK) -> None:
        """Asks for a task's channel."""
        self.connections.open_channel(
            fx.OpenChannel(
                connection_id=connection_id,
                task_id=task_id,
                token=TOKEN,
                piece_count_max=self.piece_count,
            )
        )

    @property
    def piece_count(self) -> int:
        """Pieces of the content."""
        return -(-len(self.full) // PIECE_BYTES)

    def piece(self, piece: int) -> bytes:
        """The right bytes of a piece."""
        return self.full[piece * PIECE_BYTES : (piece + 1) * PIECE_BYTES]

    def fetch(
        self,
        connection_id: ConnectionId,
        piece: int,
        *,
        expected: bytes = b"",
        algorithm: str = "xxh3-128",
    ) -> RequestId:
        """Asks for a piece."""
        request_id = RequestId(next(self._requests))
        self.connections.fetch(
            fx.FetchPiece(
                request_id=request_id,
                connection_id=connection_id,
                task_id=TASK,
                piece=piece,
                offset_bytes=piece * PIECE_BYTES,
                length_bytes=len(self.piece(piece)),
                algorithm=algorithm,
                expected=expected,
                epoch=1,
            )
        )
        return request_id

    def cancel(self, request_id: RequestId) -> None:
        """Gives up a request."""
        self.connections.cancel(fx.CancelFetch(request_id=request_id))

    async def ended(self, request_id: RequestId) -> ev.FetchEnded:
        """How a request ended."""
        await self.core.until(lambda: self.end_of(request_id) is not None)
        end = self.end_of(request_id)
        assert end is not None
        return end

    def end_of(self, request_id: RequestId) -> ev.FetchEnded | None:
        """How a request ended, if it did."""
        ends = [one for one in self.core.all(ev.FetchEnded) if one.request_id == request_id]
        return ends[0] if ends else None

    async def reason(self, request_id: RequestId) -> Reason | None:
        """Why a request ended; None is success."""
        return (await self.ended(request_id)).reason


class Certificates:
    """A test authority and one certificate per host, whose common name is the host's id."""

    def __init__(self) -> None:
        self._ca = trustme.CA()

    def server(self, host_id: str) -> ssl.SSLContext:
        """For the listening side."""
        return self._context(ssl.PROTOCOL_TLS_SERVER, host_id)

    def client(self, host_id: str) -> ssl.SSLContext:
        """For the connecting side."""
        return self._context(ssl.PROTOCOL_TLS_CLIENT, host_id)

    def _context(self, protocol: int, host_id: str) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        if protocol == ssl.PROTOCOL_TLS_CLIENT:
            context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        self._ca.issue_cert(f"{host_id}.example", common_name=host_id).configure_cert(context)
        self._ca.configure_trust(context)
        return context
