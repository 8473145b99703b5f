"""A child without manners: writes any frames, reads only when told. A double for tests of the
parent's side."""

import asyncio
import socket
from typing import TypeVar

from shoal.wire.control import Address
from shoal.wire.digest import piece_digest
from shoal.wire.frames import Frame, FrameDecoder, Hello, Open, Opened, Piece, encode

F = TypeVar("F")


class RawChild:
    """A plain socket that speaks frames. Use as a context."""

    def __init__(
        self, address: Address, *, host_id: str = "raw", receive_buffer_bytes: int = 0
    ) -> None:
        self._address = address
        self._host_id = host_id
        self._socket = socket.socket(
            socket.AF_INET6 if ":" in address.ip else socket.AF_INET, socket.SOCK_STREAM
        )
        self._socket.setblocking(False)
        if receive_buffer_bytes:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self._decoder = FrameDecoder()
        self.frames: list[Frame] = []
        """All that came, in order."""
        self.pieces: list[tuple[Piece, bytes]] = []
        """Pieces that came whole."""

    async def __aenter__(self) -> "RawChild":
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self._socket, (self._address.ip, self._address.port))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._socket.close()

    async def send(self, *frames: Frame) -> None:
        """Sends frames."""
        await self.send_bytes(b"".join(map(encode, frames)))

    async def send_bytes(self, data: bytes) -> None:
        """Sends anything."""
        await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def greet(self) -> Hello:
        """Exchanges hellos."""
        await self.send(Hello(1, 1, self._host_id, bytes(16)))
        return await self.receive(Hello)

    async def open(self, channel: int, task_id: str) -> Opened:
        """Opens a channel."""
        await self.send(Open(channel, task_id, b"proof"))
        return await self.receive(Opened)

    async def receive(self, kind: type[F]) -> F:
        """Reads until a frame of a kind has come."""
        seen = len(self.frames)
        async with asyncio.timeout(20):
            while True:
                for frame in self.frames[seen:]:
                    if isinstance(frame, kind):
                        return frame
                seen = len(self.frames)
                assert await self.read(), f"closed before {kind.__name__}"

    async def receive_pieces(self, count: int) -> list[tuple[Piece, bytes]]:
        """Reads until so many pieces have come whole, and right."""
        async with asyncio.timeout(20):
            while len(self.pieces) < count:
                assert await self.read(), "closed before the piece"
        for header, data in self.pieces:
            assert header.digest == piece_digest("xxh3-128", data)
        return self.pieces

    async def closed(self) -> None:
        """Reads until the parent has closed the connection."""
        async with asyncio.timeout(20):
            while await self.read():
                pass

    async def read(self) -> bool:
        """Reads a portion; False at the end."""
        try:
            data = await asyncio.get_running_loop().sock_recv(self._socket, 65536)
        except ConnectionResetError:
            return False
        self._decoder.feed(data)
        self._take_in()
        return bool(data)

    def _take_in(self) -> None:
        decoder = self._decoder
        while True:
            remaining = decoder.payload_remaining_bytes
            if remaining:
                if decoder.buffered_bytes < remaining:
                    return
                payload = bytearray(remaining)
                decoder.take_payload(memoryview(payload))
                header = self.frames[-1]
                assert isinstance(header, Piece)
                self.pieces.append((header, bytes(payload)))
                continue
            frame = decoder.next_frame()
            if frame is None:
                return
            self.frames.append(frame)
