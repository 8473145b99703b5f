"""The control stream to a scheduler: connects, reconnects with jitter, carries batches both ways.

The only file of the peer that knows gRPC. Posts `SchedulerUp`, `FromScheduler`, `SchedulerDown`;
carries out `SendToScheduler`. What is said is the core's decision.
"""

import asyncio
import random
from collections.abc import Callable
from typing import Final, cast

from peer.core.effects import SendToScheduler
from peer.core.events import AnyEvent, FromScheduler, SchedulerDown, SchedulerUp
from shoal.runtime.clock import Clock
from shoal.runtime.control_codec import (
    decode_scheduler_batch,
    host_entry,
    pack_entries,
    parse_scheduler_batch,
)
from shoal.runtime.grpc_polling import grpc
from shoal.runtime.logs import Log
from shoal.wire.errors import ProtocolError
from shoal.wire.limits import CONTROL_MESSAGE_BYTES_MAX

METHOD: Final = "/shoal.v1.Control/Connect"
CONNECT_TIMEOUT_S: Final = 3.0
BACKOFF_FIRST_S: Final = 0.1
BACKOFF_MAX_S: Final = 5.0
BACKOFF_SHARE: Final = 0.25
OUTGOING_MAX: Final = 1024
"""Batches waiting for a scheduler that does not read; then the stream is given up."""

OPTIONS: Final = (
    # Within one attempt: a second, as it is by default, is long for a scheduler that restarts.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.max_receive_message_length", CONTROL_MESSAGE_BYTES_MAX + 64 * 1024),
    ("grpc.max_send_message_length", CONTROL_MESSAGE_BYTES_MAX + 64 * 1024),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # Measuring bandwidth costs more pings than there are messages, and the window needs no growth.
    ("grpc.http2.bdp_probe", 0),
    # Our own backoff knows when a scheduler may be back; a shared one would wait on top of it.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)


class ControlClient:
    """Keeps one stream to the first scheduler that answers, for as long as it runs."""

    def __init__(
        self,
        *,
        addresses: tuple[str, ...],
        credentials: grpc.ChannelCredentials | None,
        clock: Clock,
        post: Callable[[AnyEvent], None],
    ) -> None:
        assert addresses
        self._addresses = addresses
        self._credentials = credentials
        self._clock = clock
        self._post = post
        self._log = Log("peer.shell.control")
        self._session = 0
        self._outgoing: asyncio.Queue[bytes] | None = None
        self._call: grpc.aio.StreamStreamCall[bytes, bytes] | None = None

    @property
    def connected(self) -> bool:
        """Whether a stream stands now."""
        return self._outgoing is not None

    def send(self, effect: SendToScheduler) -> None:
        """Queues a batch for the stream that it is meant for; dropped if that is gone."""
        if self._outgoing is None or effect.session != self._session:
            return
        for batch in pack_entries(host_entry(message) for message in effect.messages):
            try:
                self._outgoing.put_nowait(batch)
            except asyncio.QueueFull:
                self._log.warning("the scheduler does not read: its stream is given up")
                if self._call is not None:
                    self._call.cancel()
                return

    async def run(self) -> None:
        """Connects and reconnects until cancelled."""
        lost_s = asyncio.get_running_loop().time()
        turn = 0
        while True:
            address = self._addresses[turn % len(self._addresses)]
            turn += 1
            if await self._serve(address):
                lost_s = asyncio.get_running_loop().time()
                turn -= 1
            # A part of the time that it was away: so soon all hosts are back when it is. Half of
            # the wait is drawn: hosts that lost one scheduler do not return as one.
            away_s = asyncio.get_running_loop().time() - lost_s
            backoff_s = min(BACKOFF_MAX_S, max(BACKOFF_FIRST_S, BACKOFF_SHARE * away_s))
            await asyncio.sleep(backoff_s * (0.5 + 0.5 * random.random()))

    async def _serve(self, address: str) -> bool:
        """One stream from its beginning to its end; whether it ever stood."""
        if self._credentials is None:
            channel = grpc.aio.insecure_channel(address, options=OPTIONS)
        else:
            channel = grpc.aio.secure_channel(address, self._credentials, options=OPTIONS)
        try:
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    await channel.channel_ready()
            except TimeoutError:
                self._log.debug("the scheduler does not answer", address=address)
                return False
            await self._stream(channel, address)
            return True
        finally:
            await channel.close()

    async def _stream(self, channel: grpc.aio.Channel, address: str) -> None:
        multi = channel.stream_stream(METHOD, request_serializer=bytes, response_deserializer=bytes)
        call = cast("grpc.aio.StreamStreamCall[bytes, bytes]", multi())
        self._session += 1
        session = self._session
        self._call = call
        outgoing: asyncio.Queue[bytes] = asyncio.Queue(OUTGOING_MAX)
        self._outgoing = outgoing
        self._log.info("scheduler connected", address=address)
        self._post(SchedulerUp(now_ns=self._clock.now_ns(), session=session))
        writer = asyncio.create_task(self._write(call, outgoing), name="control writer")
        detail = "ended"
        try:
            async for data in call:
                self._received(session, data)
        except grpc.aio.AioRpcError as error:
            detail = f"{error.code().name}: {error.details()}"
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            detail = "given up"
        except ProtocolError as error:
            detail = f"protocol error: {error}"
        finally:
            self._outgoing = None
            self._call = None
            call.cancel()
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
            self._log.info("scheduler lost", address=address, detail=detail)
            self._post(SchedulerDown(now_ns=self._clock.now_ns(), session=session))

    def _received(self, session: int, data: bytes) -> None:
        messages = decode_scheduler_batch(parse_scheduler_batch(data))
        self._post(FromScheduler(now_ns=self._clock.now_ns(), session=session, messages=messages))

    @staticmethod
    async def _write(
        call: "grpc.aio.StreamStreamCall[bytes, bytes]", outgoing: asyncio.Queue[bytes]
    ) -> None:
        while True:
            await call.write(await outgoing.get())
