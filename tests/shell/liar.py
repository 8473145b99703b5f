"""A parent that speaks the protocol and does not keep to it: a double for tests.

Independent of the production connections (asyncio's own streams and the codec alone), so that a
mistake there is not made here too. It lets everybody in, claims to hold every piece of one content
and answers requests as its `Lie` says.
"""

import asyncio
import secrets
from enum import Enum, auto

from shoal.wire import bitfield
from shoal.wire.control import Address
from shoal.wire.digest import piece_digest
from shoal.wire.errors import Reason
from shoal.wire.frames import (
    Frame,
    FrameDecoder,
    Have,
    Hello,
    Open,
    Opened,
    Piece,
    Refused,
    Reject,
    Request,
    encode,
)
from shoal.wire.limits import FRAME_BYTES_MAX

FLOOD_FRAMES = 2000


class Lie(Enum):
    """What is wrong with its answers."""

    NOTHING = auto()
    """An honest parent."""
    CORRUPT = auto()
    """Wrong bytes under the right digest."""
    FORGED = auto()
    """Wrong bytes under their own digest: only the list of digests can tell."""
    STALL = auto()
    """A header and half of the bytes, then silence."""
    SILENT = auto()
    """No answer at all."""
    CLAIMS = auto()
    """Has nothing of what it claims to hold: every request is rejected."""
    BLAMES_DISK = auto()
    """Rejects with a reason that only our own disk may give."""
    FLOOD = auto()
    """Thousands of useless but legal frames before every answer."""
    BREAKS_OFF = auto()
    """Closes the connection in the middle of a piece."""
    WRONG_LENGTH = auto()
    SHORT_DIGEST = auto()
    OLD_EPOCH = auto()
    """Holds the pieces of another epoch."""
    UNSOLICITED = auto()
    """A piece that nobody asked for, before the answer."""
    TWICE = auto()
    """Every answer comes twice."""
    UNKNOWN_CHANNEL = auto()
    BEYOND_THE_END = auto()
    """Announces pieces behind the end of the task."""
    GARBAGE = auto()
    HUGE_FRAME = auto()
    SECOND_HELLO = auto()
    OTHER_HOST = auto()
    """Greets under another host's id."""
    OTHER_VERSION = auto()
    NO_HELLO = auto()
    """Takes the connection and says nothing."""
    REFUSES = auto()


class Liar:
    """Serves `content`, cut into pieces, for whatever task it is asked. Use as a context."""

    def __init__(
        self, host_id: str, content: bytes, piece_length_bytes: int, lie: Lie, *, epoch: int = 1
    ) -> None:
        self.host_id = host_id
        self.lie = lie
        self.requested: list[int] = []
        """Pieces that it was asked for."""
        self.connections = 0
        self._pieces = [
            content[start : start + piece_length_bytes]
            for start in range(0, len(content), piece_length_bytes)
        ]
        self._epoch = epoch
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> "Liar":
        self._server = await asyncio.start_server(self._converse, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.close()
        await self._server.wait_closed()

    @property
    def address(self) -> Address:
        """Where it listens."""
        assert self._server is not None
        ip, port = self._server.sockets[0].getsockname()[:2]
        return Address(ip, port)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        decoder = FrameDecoder()
        try:
            while data := await reader.read(65536):
                decoder.feed(data)
                while (frame := decoder.next_frame()) is not None:
                    await self._answer(frame, writer)
        except ConnectionError:
            return  # The honest side hung up, as it should.
        finally:
            writer.close()

    async def _answer(self, frame: Frame, writer: asyncio.StreamWriter) -> None:
        match frame:
            case Hello():
                self._greet(writer)
            case Open():
                self._open(frame, writer)
            case Request():
                for request_id, piece in frame.requests:
                    self.requested.append(piece)
                    self._serve(frame.channel, request_id, piece, writer)
            case _:
                pass
        await writer.drain()

    def _greet(self, writer: asyncio.StreamWriter) -> None:
        if self.lie is Lie.NO_HELLO:
            return
        host_id = "somebody-else" if self.lie is Lie.OTHER_HOST else self.host_id
        version = 9 if self.lie is Lie.OTHER_VERSION else 1
        writer.write(encode(Hello(version, version, host_id, secrets.token_bytes(16))))
        if self.lie is Lie.SECOND_HELLO:
            writer.write(encode(Hello(1, 1, host_id, secrets.token_bytes(16))))

    def _open(self, frame: Open, writer: asyncio.StreamWriter) -> None:
        if self.lie is Lie.REFUSES:
            writer.write(encode(Refused(frame.channel, Reason.UNAUTHORIZED)))
            return
        bitmap = bitfield.to_bytes((1 << len(self._pieces)) - 1)
        writer.write(encode(Opened(frame.channel, self._epoch, bitmap)))

    def _serve(self, channel: int, request: int, piece: int, writer: asyncio.StreamWriter) -> None:
        data = self._pieces[piece]
        digest = piece_digest("xxh3-128", data)
        wrong = bytes(byte ^ 0xFF for byte in data[:64]) + data[64:]
        right = self._piece(request, data, digest)
        half = self._header(request, len(data), digest) + data[: len(data) // 2]
        answers = {
            Lie.CORRUPT: self._piece(request, wrong, digest),
            Lie.FORGED: self._piece(request, wrong, piece_digest("xxh3-128", wrong)),
            Lie.STALL: half,
            Lie.SILENT: b"",
            Lie.CLAIMS: encode(Reject(request, Reason.NOT_HELD)),
            Lie.BLAMES_DISK: encode(Reject(request, Reason.DISK_FULL)),
            Lie.FLOOD: encode(Have(channel, ((0, 1),))) * FLOOD_FRAMES + right,
            Lie.BREAKS_OFF: half,
            Lie.WRONG_LENGTH: self._piece(request, data + b"!", digest),
            Lie.SHORT_DIGEST: self._piece(request, data, digest[:4]),
            Lie.OLD_EPOCH: encode(Piece(request, len(data), digest, 1, self._epoch + 1)) + data,
            Lie.UNSOLICITED: self._piece(request + 1000, data, digest) + right,
            Lie.TWICE: right + right,
            Lie.UNKNOWN_CHANNEL: encode(Have(channel + 77, ((0, 1),))),
            Lie.BEYOND_THE_END: encode(Have(channel, ((len(self._pieces), 1),))),
            Lie.GARBAGE: b"\x00\x00\x00\x08GET / HT",
            Lie.HUGE_FRAME: (FRAME_BYTES_MAX + 1).to_bytes(4, "big"),
        }
        writer.write(answers.get(self.lie, right))
        if self.lie is Lie.BREAKS_OFF:
            writer.close()

    def _header(self, request: int, length_bytes: int, digest: bytes) -> bytes:
        return encode(Piece(request, length_bytes, digest, 1, self._epoch))

    def _piece(self, request: int, data: bytes, digest: bytes) -> bytes:
        return self._header(request, len(data), digest) + data
