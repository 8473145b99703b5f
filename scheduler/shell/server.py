"""The gRPC end of the control streams: one session per stream of a host.

Turns streams into events (connected, messages, gone) and effects into messages. What a session has
not been sent yet waits in a bounded queue; a host that reads too slowly loses its session, for it
will be told everything again when it comes back. Decides nothing: who may stay is the core's word,
except for streams that break the protocol or never say who they are.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from scheduler.core.events import AnyEvent, FromHost, HostConnected, HostDisconnected
from scheduler.shell.gathering import Gathering
from shoal.runtime.clock import Clock
from shoal.runtime.config_values import Endpoint
from shoal.runtime.control_codec import (
    decode_host_batch,
    entries_of,
    pack_entries,
    parse_host_batch,
)
from shoal.runtime.control_memory import JoinMemory
from shoal.runtime.grpc_polling import grpc
from shoal.runtime.grpc_tls import grpc_server_credentials
from shoal.runtime.logs import Log
from shoal.runtime.sections import TlsSection
from shoal.wire.errors import ProtocolError, Reason, UsageError
from shoal.wire.limits import CONTROL_MESSAGE_BYTES_MAX, MIB

SERVICE: Final = "shoal.v1.Control"
METHOD: Final = "Connect"

_Context = grpc.aio.ServicerContext[Any, Any]
_CODES: Final = {
    Reason.UNAUTHORIZED: grpc.StatusCode.PERMISSION_DENIED,
    Reason.OVERLOADED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.SHUTTING_DOWN: grpc.StatusCode.UNAVAILABLE,
    Reason.PEER_PROTOCOL: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.TIMEOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """What bounds the server of control streams."""

    sessions_max: int = 20_000
    first_message_s: float = 10.0
    """A host that does not say who it is in this time is cut."""
    queue_bytes_max: int = 8 * MIB
    """Unsent bytes of one session. Messages for many hosts are one object in all their queues."""
    batch_bytes_max: int = CONTROL_MESSAGE_BYTES_MAX
    flush_s: float = 0.2
    """How long a session that the core closes may still take in what waits for it."""
    stop_s: float = 0.3
    """How long streams get to end when the server stops."""
    keepalive_ms: int = 10_000
    """A host that is silent for so long is asked whether it lives."""
    keepalive_timeout_ms: int = 20_000
    """A host that does not answer in this time is gone."""

    def grpc_options(self) -> tuple[tuple[str, int], ...]:
        """The same as gRPC wants them told."""
        return (
            # Two schedulers on one port would share the hosts at random, not fail clearly.
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", self.batch_bytes_max),
            ("grpc.max_send_message_length", self.batch_bytes_max),
            ("grpc.keepalive_time_ms", self.keepalive_ms),
            ("grpc.keepalive_timeout_ms", self.keepalive_timeout_ms),
            # The timeout of the ping itself: 60 s unless set, whatever the line above says.
            ("grpc.http2.ping_timeout_ms", self.keepalive_timeout_ms),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            # Hosts may ask the same of us, but not more often.
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            # A host needs one stream; a second one may overlap it for a moment.
            ("grpc.max_concurrent_streams", 4),
            # A probe of bandwidth with every batch costs more than the batch; a window of 64 KiB is
            # enough for what a host says.
            ("grpc.http2.bdp_probe", 0),
        )


@dataclass(slots=True)
class ServerCounters:
    """What the server counts, for metrics."""

    sessions_opened: int = 0
    sessions_closed: int = 0
    batches_received: int = 0
    batches_sent: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    unknown_messages: int = 0
    """Messages of a kind that this version does not know."""
    protocol_errors: int = 0
    overflows: int = 0
    """Sessions closed because their host read too slowly."""
    silent: int = 0
    """Sessions closed because their host never said who it is."""


class _Session:
    """One stream: what waits to be sent, and how it ends."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.queue: list[bytes] = []
        self.queued_bytes = 0
        self.ending: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiter: asyncio.Future[None] | None = None
        """What its writer waits on while there is nothing to write."""
        self.reason: Reason | None = None
        self.detail = ""

    def end(self, reason: Reason | None, detail: str) -> None:
        """Lets the stream end; the first word counts."""
        if not self.ending.done():
            self.reason, self.detail = reason, detail
            self.ending.set_result(None)
            self.wake()

    def wake(self) -> None:
        """Lets its writer look again."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class ControlServer:
    """Serves control streams. Events go to `post`, on the event loop's thread."""

    def __init__(
        self,
        *,
        listen: Endpoint,
        tls: TlsSection,
        clock: Clock,
        post: Callable[[AnyEvent], None],
        limits: ServerLimits | None = None,
    ) -> None:
        self._listen = listen
        self._tls = tls
        self._clock = clock
        self._post = post
        self._limits = limits or ServerLimits()
        self._sessions: dict[int, _Session] = {}
        self._next_session = 1
        self._server: grpc.aio.Server | None = None
        self._address: Endpoint | None = None
        self._stopping = False
        self._log = Log("scheduler.shell.server")
        self._joins = JoinMemory()
        self._gathering = Gathering()
        self.counters = ServerCounters()

    @property
    def address(self) -> Endpoint:
        """Where it listens in fact. Only after `start`."""
        assert self._address is not None, "not started"
        return self._address

    @property
    def session_count(self) -> int:
        """Streams that are open now."""
        return len(self._sessions)

    async def start(self) -> None:
        """Begins to listen. Raises UsageError if the endpoint or the TLS files cannot be used."""
        credentials = grpc_server_credentials(self._tls) if self._tls.enabled else None
        server = grpc.aio.server(options=self._limits.grpc_options())
        # Bytes in and out: batches are checked and joined here, not by generated code.
        handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(
            self._connect
        )
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),)
        )
        try:
            if credentials is None:
                port = server.add_insecure_port(str(self._listen))
            else:
                port = server.add_secure_port(str(self._listen), credentials)
        except RuntimeError:
            port = 0
        if port == 0:
            await server.stop(None)
            raise UsageError(f"listen = {self._listen}: cannot listen there: is it in use?")
        await server.start()
        self._server = server
        self._address = Endpoint(self._listen.host, port)

    async def close(self) -> None:
        """Ends every stream, so that hosts turn elsewhere at once, and stops. Takes well under a
        second. Safe to call twice."""
        self._stopping = True
        for session in list(self._sessions.values()):
            session.end(Reason.SHUTTING_DOWN, "the scheduler stops")
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(self._limits.stop_s)

    # ------------------------------------------------------------ effects

    def send(self, session: int, entries: Iterable[bytes]) -> None:
        """Queues messages (entries of `control_codec`) for a session; none if it is gone. A
        session whose queue would overflow is closed."""
        target = self._sessions.get(session)
        if target is None or target.ending.done():
            return
        batch_bytes_max = self._limits.batch_bytes_max
        for entry in entries:
            size_bytes = len(entry)
            if size_bytes > batch_bytes_max:
                parts = list(entries_of(entry))
                if max(map(len, parts)) > batch_bytes_max:
                    self._log.error("message too large", session=session, size_bytes=size_bytes)
                    target.end(Reason.OVERLOADED, "what this host must be told fits in no message")
                    return
                target.queue += parts
            else:
                target.queue.append(entry)
            target.queued_bytes += size_bytes
        if target.queued_bytes > self._limits.queue_bytes_max:
            self.counters.overflows += 1
            target.queue.clear()
            target.end(Reason.OVERLOADED, "the host reads too slowly")
            return
        self._gathering.call(target.wake)

    def close_session(self, session: int, reason: Reason, detail: str) -> None:
        """Ends a stream after what was queued for it was sent, or soon in any case."""
        if (target := self._sessions.get(session)) is not None:
            target.end(reason, detail)

    # ------------------------------------------------------------ one stream

    async def _connect(self, _requests: AsyncIterator[bytes], context: _Context) -> None:
        subject = await self._subject(context)
        if self._stopping or len(self._sessions) >= self._limits.sessions_max:
            reason = Reason.SHUTTING_DOWN if self._stopping else Reason.OVERLOADED
            await context.abort(_CODES[reason], f"{reason.value}: no more sessions here")
        try:
            # Apart from any message: gRPC would send it twice, and fail, if the first write of a
            # stream were given up.
            await context.send_initial_metadata(())
        except grpc.aio.BaseError:
            return  # The host is gone already.
        session = _Session(self._next_session)
        self._next_session += 1
        self._sessions[session.number] = session
        self.counters.sessions_opened += 1
        self._post(
            HostConnected(now_ns=self._clock.now_ns(), session=session.number, subject=subject)
        )
        try:
            await self._serve(session, context)
        finally:
            del self._sessions[session.number]
            self.counters.sessions_closed += 1
            gone = HostDisconnected(now_ns=self._clock.now_ns(), session=session.number)
            self._post(gone)
        if session.reason is not None:
            self._log.info(
                "control stream closed",
                session=session.number,
                reason=session.reason.value,
                detail=session.detail,
            )
            code = _CODES.get(session.reason, grpc.StatusCode.ABORTED)
            await context.abort(code, f"{session.reason.value}: {session.detail}")

    async def _serve(self, session: _Session, context: _Context) -> None:
        loop = asyncio.get_running_loop()
        reader = loop.create_task(self._read(session, context))
        writer = loop.create_task(self._write(session, context))
        try:
            await asyncio.wait(
                (reader, writer, session.ending), return_when=asyncio.FIRST_COMPLETED
            )
            session.end(None, "")
            if session.reason is not None:
                await asyncio.wait((writer,), timeout=self._limits.flush_s)
        finally:
            reader.cancel()
            writer.cancel()
            await asyncio.wait((reader, writer))
        for task in (reader, writer):
            error = None if task.cancelled() else task.exception()
            # A stream that broke under a read or write is an end like any other.
            if error is not None and not isinstance(error, grpc.aio.BaseError):
                raise error

    async def _read(self, session: _Session, context: _Context) -> None:
        """Until the host closes its side, the stream breaks or it breaks the protocol."""
        silence = asyncio.get_running_loop().call_later(
            self._limits.first_message_s, self._silent, session
        )
        try:
            end = grpc.aio.EOF
            ending = session.ending
            while (data := await context.read()) is not end:
                silence.cancel()
                if ending.done():
                    return
                self._received(session, data)
        except ProtocolError as error:
            self.counters.protocol_errors += 1
            session.end(Reason.PEER_PROTOCOL, str(error))
        finally:
            silence.cancel()

    def _received(self, session: _Session, data: bytes) -> None:
        self.counters.batches_received += 1
        self.counters.bytes_received += len(data)
        messages = self._joins.decode(data)
        if messages is None:
            messages = decode_host_batch(parse_host_batch(data), self._unknown)
        if messages:
            event = FromHost(now_ns=self._clock.now_ns(), session=session.number, messages=messages)
            self._post(event)

    async def _write(self, session: _Session, context: _Context) -> None:
        """Until the session ends and its queue is empty."""
        loop = asyncio.get_running_loop()
        while True:
            await self._empty_queue(session, context)
            if session.ending.done():
                return
            session.waiter = loop.create_future()
            await session.waiter

    async def _empty_queue(self, session: _Session, context: _Context) -> None:
        # Apart from the loop above, which waits for long: what was sent is not to be kept meanwhile
        # for thousands of sessions.
        batch_bytes_max = self._limits.batch_bytes_max
        counters = self.counters
        while session.queue:
            entries, session.queue = session.queue, []
            for batch in pack_entries(entries, batch_bytes_max):
                await context.write(batch)
                size_bytes = len(batch)
                session.queued_bytes -= size_bytes
                counters.batches_sent += 1
                counters.bytes_sent += size_bytes

    def _silent(self, session: _Session) -> None:
        self.counters.silent += 1
        session.end(Reason.TIMEOUT, "no hello in time")

    def _unknown(self) -> None:
        self.counters.unknown_messages += 1

    async def _subject(self, context: _Context) -> str:
        """The name that the host's certificate proves, "" without TLS."""
        if not self._tls.enabled:
            return ""
        names = list(context.auth_context().get("x509_common_name", ()))
        if len(names) != 1 or not names[0]:
            await context.abort(
                grpc.StatusCode.UNAUTHENTICATED,
                f"{Reason.UNAUTHORIZED.value}: the certificate has no common name",
            )
        return names[0].decode(errors="replace")
