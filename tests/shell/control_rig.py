"""What tests of the scheduler's shell stand on: a scripted core, a host's end of a stream, and a
network that can be cut."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import grpc
import grpc.aio

from scheduler.core.effects import AnyEffect
from scheduler.core.events import AnyEvent
from shoal.runtime.config_values import Endpoint
from shoal.runtime.control_codec import (
    decode_scheduler_batch,
    host_entry,
    parse_scheduler_batch,
)
from shoal.wire.control import Hello, HostInfo, HostMessage, SchedulerMessage
from shoal.wire.ids import HostId

WAIT_S = 10.0

E = TypeVar("E", bound=AnyEvent)


def hello(host_id: str = "h1") -> Hello:
    return Hello(host=HostInfo(host_id=HostId(host_id), addresses=()), generation=1, holdings=())


class Events:
    """Events as they come, and a way to wait for them without sleeping."""

    def __init__(self) -> None:
        self.seen: list[AnyEvent] = []
        self.hook: Callable[[AnyEvent], None] = lambda event: None
        self._news = asyncio.Event()

    def post(self, event: AnyEvent) -> None:
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


class FakeEngine:
    """A core that answers as its script says."""

    def __init__(self, script: Callable[[AnyEvent], list[AnyEffect]] = lambda event: []) -> None:
        self.events = Events()
        self.script = script
        self.deadline_ns: int | None = None
        self.validated = 0

    def handle(self, event: AnyEvent) -> list[AnyEffect]:
        self.events.post(event)
        return self.script(event)

    def next_deadline_ns(self) -> int | None:
        return self.deadline_ns

    def validate(self) -> None:
        self.validated += 1

    def counters(self) -> dict[str, int]:
        return {"hosts": 1, "leases_granted_total": 7}

    def graph(self) -> list[dict[str, object]]:
        return []


class Host:
    """A host's end of one control stream."""

    def __init__(
        self, address: Endpoint, credentials: grpc.ChannelCredentials | None = None
    ) -> None:
        # A channel of its own for each: hosts do not share connections.
        options = (("grpc.use_local_subchannel_pool", 1),)
        if credentials is None:
            self.channel = grpc.aio.insecure_channel(str(address), options=options)
        else:
            self.channel = grpc.aio.secure_channel(str(address), credentials, options=options)
        connect: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = self.channel.stream_stream(
            "/shoal.v1.Control/Connect"
        )
        self.call: grpc.aio.StreamStreamCall[bytes, bytes] = connect(wait_for_ready=False)

    async def send(self, *messages: HostMessage) -> None:
        await self.send_bytes(b"".join(host_entry(message) for message in messages))

    async def send_bytes(self, data: bytes) -> None:
        async with asyncio.timeout(WAIT_S):
            await self.call.write(data)

    async def read(self) -> tuple[SchedulerMessage, ...] | None:
        """The next batch, None at the stream's end."""
        async with asyncio.timeout(WAIT_S):
            try:
                data = await self.call.read()
            except grpc.aio.AioRpcError:
                return None
        if not isinstance(data, bytes):
            return None
        return decode_scheduler_batch(parse_scheduler_batch(data))

    async def ended(self) -> tuple[grpc.StatusCode, str]:
        """Reads until the stream's end; how it ended."""
        while await self.read() is not None:
            pass
        async with asyncio.timeout(WAIT_S):
            return await self.call.code(), await self.call.details()

    async def close(self) -> None:
        self.call.cancel()
        await self.channel.close()


@contextlib.asynccontextmanager
async def connected(
    address: Endpoint, credentials: grpc.ChannelCredentials | None = None
) -> AsyncIterator[Host]:
    """A host that leaves no trace."""
    host = Host(address, credentials)
    try:
        yield host
    finally:
        await host.close()


class Wire:
    """A network between a host and a scheduler that can be cut or go dead."""

    def __init__(self, target: Endpoint) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []
        self._pumps: list[asyncio.Task[None]] = []
        self._alive = asyncio.Event()
        self._alive.set()

    async def __aenter__(self) -> "Wire":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    @property
    def address(self) -> Endpoint:
        assert self._server is not None
        return Endpoint("127.0.0.1", self._server.sockets[0].getsockname()[1])

    def cut(self) -> None:
        """Every connection is reset."""
        for writer in self._writers:
            writer.transport.abort()

    def go_dead(self) -> None:
        """Nothing comes through any more, and nobody is told."""
        self._alive.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(self._target.host, self._target.port)
        self._writers += [writer, back]
        for source, sink in ((reader, back), (there, writer)):
            self._pumps.append(asyncio.create_task(self._pump(source, sink)))

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65536):
                await self._alive.wait()
                sink.write(data)
                await sink.drain()
