"""What tests of the piece plane stand on: a child and a parent on real sockets, a tiny
store."""

import asyncio
import contextlib
import functools
import inspect
import itertools
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from random import Random
from typing import Any, Final, TypeVar

import pytest
import uvloop

from peer.core import effects as fx
from peer.core import events as ev
from peer.shell.buffers import BufferPool
from peer.shell.store.errors import StoreError
from peer.shell.transfer.child_side import ParentConnections
from peer.shell.transfer.parent_side import PiecePort
from shoal.runtime import tls
from shoal.runtime.clock import MonotonicClock
from shoal.runtime.config_values import SecretFile
from shoal.runtime.rates import RateLimiter
from shoal.runtime.sections import TlsSection
from shoal.runtime.tasks import InlineOffload, Supervisor
from shoal.runtime.turns import Turns
from shoal.wire import frames
from shoal.wire.control import Address
from shoal.wire.ids import ConnectionId, HostId, LeaseNumber, RequestId, TaskId
from shoal.wire.limits import KIB, MIB
from shoal.wire.piece_digest import piece_digest

WAIT_S = 10.0
CERTIFICATES = Path(__file__).parents[1] / "unit" / "runtime" / "certificates"
PARENT = HostId("alpha")
CHILD = HostId("beta")
TASK = TaskId("7a" * 32)
TOKEN = b"token of the swarm"
PIECE_BYTES = 256 * KIB

E = TypeVar("E", bound=ev.AnyEvent)


class Events:
    """Events as they come, and a way to wait for them without sleeping."""

    def __init__(self) -> None:
        self.seen: list[ev.AnyEvent] = []
        self.hook: Callable[[ev.AnyEvent], None] = lambda event: None
        self._news = asyncio.Event()

    def post(self, event: ev.AnyEvent) -> None:
        self.seen.append(event)
        self._news.set()
        self.hook(event)

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.seen if isinstance(event, kind)]

    async def wait(self, kind: type[E], count: int = 1) -> E:
        """The last of so many events of a kind, as soon as they are there."""
        async with asyncio.timeout(WAIT_S):
            while len(self.of(kind)) < count:
                self._news.clear()
                await self._news.wait()
        return self.of(kind)[count - 1]

    async def ended(self, request_id: int) -> ev.FetchEnded:
        """The end of one request."""
        async with asyncio.timeout(WAIT_S):
            while True:
                for event in self.of(ev.FetchEnded):
                    if event.request_id == request_id:
                        return event
                self._news.clear()
                await self._news.wait()


class LentFile:
    """A descriptor of its own for each loan."""

    def __init__(self, store: "TinyStore") -> None:
        self._store = store
        self.fd = os.open(store.path, os.O_RDONLY)
        store.lent += 1

    def release(self) -> None:
        os.close(self.fd)
        self._store.lent -= 1


class TinyStore:
    """One file to lend, and a place to write pieces to."""

    def __init__(self, path: Path, content: bytes = b"") -> None:
        self.path = path
        self.content = content
        path.write_bytes(content)
        self.written: dict[int, bytes] = {}
        self.records: dict[int, ev.PieceRecord] = {}
        self.failure: StoreError | None = None
        self.lent = 0

    def lend(self, task_id: TaskId) -> LentFile:
        if self.failure is not None:
            raise self.failure
        return LentFile(self)

    def write_piece(
        self, task_id: TaskId, piece: int, epoch: int, data: memoryview, record: ev.PieceRecord
    ) -> None:
        if self.failure is not None:
            raise self.failure
        assert piece not in self.written
        self.written[piece] = bytes(data)
        self.records[piece] = record


def section(host: str) -> TlsSection:
    return TlsSection(
        certificate=CERTIFICATES / f"{host}.pem",
        key=SecretFile(CERTIFICATES / f"{host}.key"),
        ca=CERTIFICATES / "trusted-ca.pem",
    )


class Rig:
    """A parent that serves whatever is asked, unless `serve` says otherwise, and its child."""

    def __init__(
        self,
        root: Path,
        *,
        secured: bool = False,
        pieces: int = 4,
        piece_bytes: int = PIECE_BYTES,
        upload_bytes_s: int = 0,
        download_bytes_s: int = 0,
        memory_bytes: int = 64 * MIB,
    ) -> None:
        self.piece_bytes = piece_bytes
        self.pieces = pieces
        self.secured = secured
        self.clock = MonotonicClock()
        self.supervisor = Supervisor()
        self.buffers = BufferPool(memory_bytes)
        self.at_child = Events()
        self.at_parent = Events()
        self.at_parent.hook = self._at_parent
        content = Random(3).randbytes(pieces * piece_bytes)
        self.source = TinyStore(root / "source", content)
        self.target = TinyStore(root / "target")
        numbers = itertools.count(1)
        self.serve: Callable[[int, int, ConnectionId], None] = self.serve_right
        self._requests = itertools.count(1)

        def next_id() -> ConnectionId:
            return ConnectionId(next(numbers))

        self.port = PiecePort(
            host_id=PARENT,
            listen=(("127.0.0.1", 0),),
            store=self.source,
            upload_turns=Turns(RateLimiter(upload_bytes_s, self.clock)),
            clock=self.clock,
            post=self.at_parent.post,
            supervisor=self.supervisor,
            next_connection_id=next_id,
            ssl_context=tls.server_context(section(PARENT)) if secured else None,
        )
        self.parents = ParentConnections(
            host_id=CHILD,
            store=self.target,
            buffers=self.buffers,
            offload=InlineOffload(),
            download_turns=Turns(RateLimiter(download_bytes_s, self.clock)),
            clock=self.clock,
            post=self.at_child.post,
            supervisor=self.supervisor,
            next_connection_id=next_id,
            ssl_context=tls.client_context(section(CHILD)) if secured else None,
        )

    # ------------------------------------------------------------ the parent

    def _at_parent(self, event: ev.AnyEvent) -> None:
        match event:
            case ev.ChildOpened():
                self.port.accept(
                    fx.AcceptChild(
                        connection_id=event.connection_id,
                        task_id=event.task_id,
                        epoch=1,
                        held=(1 << self.pieces) - 1,
                    )
                )
            case ev.ChildRequested():
                for number, piece in event.requests:
                    self.serve(number, piece, event.connection_id)
            case _:
                pass

    def part(self, piece: int) -> bytes:
        return self.source.content[piece * self.piece_bytes : (piece + 1) * self.piece_bytes]

    def serve_right(
        self,
        number: int,
        piece: int,
        connection_id: ConnectionId,
        *,
        epoch: int = 1,
        digest: bytes | None = None,
    ) -> None:
        digest = piece_digest("xxh3-128", self.part(piece)) if digest is None else digest
        self.port.serve(
            fx.ServePiece(
                connection_id=connection_id,
                child_request=number,
                task_id=TASK,
                piece=piece,
                offset_bytes=piece * self.piece_bytes,
                length_bytes=self.piece_bytes,
                record=ev.PieceRecord(digest, LeaseNumber(9), read_here=False),
                epoch=epoch,
            )
        )

    def serve_nothing(self, number: int, piece: int, connection_id: ConnectionId) -> None:
        """A parent that lets its child wait."""

    # ------------------------------------------------------------ the child

    async def connect(
        self, host_id: HostId = PARENT, addresses: tuple[Address, ...] | None = None
    ) -> ConnectionId:
        addresses = self.port.addresses if addresses is None else addresses
        before = len(self.at_child.of(ev.ParentConnected))
        self.parents.connect(fx.Connect(host_id=host_id, addresses=addresses))
        return (await self.at_child.wait(ev.ParentConnected, before + 1)).connection_id

    async def refused(
        self, host_id: HostId = PARENT, addresses: tuple[Address, ...] | None = None
    ) -> ev.ParentConnectFailed:
        addresses = self.port.addresses if addresses is None else addresses
        self.parents.connect(fx.Connect(host_id=host_id, addresses=addresses))
        return await self.at_child.wait(ev.ParentConnectFailed)

    async def opened(self) -> ConnectionId:
        connection_id = await self.connect()
        before = len(self.at_child.of(ev.ParentOpened))
        self.open(connection_id)
        await self.at_child.wait(ev.ParentOpened, before + 1)
        return connection_id

    def open(self, connection_id: ConnectionId) -> None:
        self.parents.open_channel(
            fx.OpenChannel(
                connection_id=connection_id,
                task_id=TASK,
                token=TOKEN,
                piece_count_max=self.pieces,
            )
        )

    def fetch(
        self,
        connection_id: ConnectionId,
        piece: int = 0,
        *,
        expected: bytes = b"",
        epoch: int = 1,
        provisional: bool = False,
        wait: bool = False,
    ) -> RequestId:
        request_id = RequestId(next(self._requests))
        self.parents.fetch(
            fx.FetchPiece(
                request_id=request_id,
                connection_id=connection_id,
                task_id=TASK,
                piece=piece,
                offset_bytes=piece * self.piece_bytes,
                length_bytes=self.piece_bytes,
                algorithm="xxh3-128",
                expected=expected,
                epoch=epoch,
                provisional=provisional,
                wait=wait,
            )
        )
        return request_id

    async def first_bytes(self) -> None:
        """Waits until a piece's first bytes arrive."""
        async with asyncio.timeout(WAIT_S):
            while not self.buffers.used_bytes:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0)

    async def close(self) -> None:
        await self.parents.close()
        await self.port.close()
        for _ in range(3):
            await asyncio.sleep(0)
        await self.supervisor.close()
        assert self.supervisor.failure is None
        assert self.buffers.used_bytes == 0
        assert self.source.lent == 0


@contextlib.asynccontextmanager
async def rig_of(
    root: Path,
    *,
    secured: bool = False,
    pieces: int = 4,
    piece_bytes: int = PIECE_BYTES,
    upload_bytes_s: int = 0,
    download_bytes_s: int = 0,
    memory_bytes: int = 64 * MIB,
) -> AsyncIterator[Rig]:
    """A rig whose port listens."""
    rig = Rig(
        root,
        secured=secured,
        pieces=pieces,
        piece_bytes=piece_bytes,
        upload_bytes_s=upload_bytes_s,
        download_bytes_s=download_bytes_s,
        memory_bytes=memory_bytes,
    )
    await rig.port.start()
    try:
        yield rig
    finally:
        await rig.close()


LOOPS: Final[dict[str, Callable[[], asyncio.AbstractEventLoop]]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


def with_rig(
    **options: int,
) -> Callable[[Callable[..., Coroutine[Any, Any, None]]], Callable[..., None]]:
    """Runs an async test, whose first parameter is the rig, on both event loops, with and without
    TLS."""

    def decorate(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
        async def scenario(root: Path, secured: bool, arguments: dict[str, Any]) -> None:
            async with rig_of(root, secured=secured, **options) as rig:
                await test(rig, **arguments)

        @functools.wraps(test)
        def run(tmp_path: Path, loop: str, secured: bool, **arguments: Any) -> None:
            with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
                runner.run(scenario(tmp_path, secured, arguments))

        own = list(inspect.signature(test).parameters.values())[1:]
        added = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY)
            for name in ("tmp_path", "loop", "secured")
        ]
        run.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
        del run.__wrapped__
        marked = pytest.mark.parametrize("loop", list(LOOPS))(run)
        both: Callable[..., None] = pytest.mark.parametrize(
            "secured", [False, True], ids=["plain", "tls"]
        )(marked)
        return both

    return decorate


class RawChild:
    """A child that says whatever a test wants, over plain TCP."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._decoder = frames.FrameDecoder()

    def send(self, frame: frames.Frame) -> None:
        self.writer.write(frames.encode(frame))

    def hello(self, version: int = 1, host_id: str = CHILD) -> None:
        self.send(frames.Hello(version, version, host_id, b"n" * 16))

    async def frame(self) -> frames.Frame:
        async with asyncio.timeout(WAIT_S):
            while (found := self._decoder.next_frame()) is None:
                data = await self.reader.read(4096)
                assert data, "closed"
                self._decoder.feed(data)
        return found

    async def ended(self) -> None:
        """Waits until the other side has closed."""
        async with asyncio.timeout(WAIT_S):
            with contextlib.suppress(ConnectionError):
                while await self.reader.read(65536):
                    pass


@contextlib.asynccontextmanager
async def raw_child(address: Address) -> AsyncIterator[RawChild]:
    reader, writer = await asyncio.open_connection(address.ip, address.port)
    try:
        yield RawChild(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def raw_parent(answer: bytes, *, close: bool = False) -> AsyncIterator[Address]:
    """A listener that says `answer` to everybody who connects."""
    over = asyncio.Event()

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read(1)
            writer.write(answer)
            if not close:
                await over.wait()
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            done.set()

    done = asyncio.Event()
    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    try:
        ip, port = server.sockets[0].getsockname()
        yield Address(ip, port)
    finally:
        over.set()
        server.close()
        async with asyncio.timeout(WAIT_S):
            await done.wait()
