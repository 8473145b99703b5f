"""Control streams over a gRPC channel, for hosts that are as heavy as real ones."""

import asyncio
from typing import cast

from benchmarks.scale.service_streams import Listener
from peer.shell.control import METHOD, OPTIONS, OUTGOING_MAX
from shoal.runtime.grpc_polling import grpc

_Call = grpc.aio.StreamStreamCall[bytes, bytes]


class GrpcStream:
    """One channel and its stream. Only in a running loop."""

    def __init__(self, address: str, listener: Listener) -> None:
        self._listener = listener
        self._channel = grpc.aio.insecure_channel(address, options=OPTIONS)
        self._call = cast("_Call", self._channel.stream_stream(METHOD)())
        self._outgoing: asyncio.Queue[bytes] = asyncio.Queue(OUTGOING_MAX)
        self._over = False
        self._reader = asyncio.create_task(self._read())
        # gRPC breaks a stream on which two writes are under way: one task writes.
        self._writer = asyncio.create_task(self._write())

    def say(self, batch: bytes) -> None:
        """Queues a batch for the writer."""
        if self._over:
            return
        try:
            self._outgoing.put_nowait(batch)
        except asyncio.QueueFull:
            self._lose("the scheduler does not read")
            self._call.cancel()

    async def _write(self) -> None:
        try:
            while True:
                await self._call.write(await self._outgoing.get())
        except (grpc.aio.BaseError, asyncio.InvalidStateError):
            pass  # The stream broke; the reader says why.

    async def _read(self) -> None:
        try:
            while (data := await self._call.read()) is not grpc.aio.EOF:
                self._listener.heard(cast("bytes", data))
            self._lose("ended by the scheduler")
        except grpc.aio.AioRpcError as error:
            self._lose(f"{error.code().name}: {error.details()}")

    def _lose(self, why: str) -> None:
        if not self._over:
            self._over = True
            self._listener.lose(why)

    async def close(self) -> None:
        """Ends the stream and the connection."""
        self._over = True
        self._call.cancel()
        self._reader.cancel()
        self._writer.cancel()
        await asyncio.wait([self._reader, self._writer])
        await self._channel.close()
