"""Frames between peers: a sans-IO codec. Decides what a legal frame is; never touches a socket.

A connection is made by the child. Every frame is a 32-bit big-endian length and a msgpack array
whose first element is the frame's kind; a `Piece` frame is followed by exactly `length_bytes` raw
bytes. `docs/protocol.md` is the normative text.

The decoder never copies payload: after a `Piece` frame it hands out what it already buffered
(`take_payload`) and the caller reads the rest straight into its own buffer (`payload_received`).
"""

import struct
from collections.abc import Callable
from typing import Any, Final

import msgpack

from shoal.wire.errors import ProtocolError, Reason
from shoal.wire.limits import (
    FRAME_BYTES_MAX,
    HOST_ID_CHARACTERS_MAX,
    PIECE_LENGTH_BYTES_MAX,
    PIECES_PER_TASK_MAX,
    RANGES_PER_FRAME_MAX,
    REQUESTS_PER_FRAME_MAX,
)
from shoal.wire.records import record

PEER_VERSION_MIN: Final = 1
PEER_VERSION_MAX: Final = 1
NONCE_BYTES: Final = 16
_LENGTH: Final = struct.Struct(">I")
_U63: Final = (1 << 63) - 1


@record(frozen=True, slots=True)
class Hello:
    """First frame of both sides. The parent answers the child's with its own nonce."""

    version_min: int
    version_max: int
    host_id: str
    nonce: bytes


@record(frozen=True, slots=True)
class Open:
    """Child: let me see and request this task under this channel number."""

    channel: int
    task_id: str
    proof: bytes


@record(frozen=True, slots=True)
class Opened:
    """Parent: you may; this is what I hold."""

    channel: int
    epoch: int
    bitmap: bytes


@record(frozen=True, slots=True)
class Refused:
    """Parent: the channel is not open (any more)."""

    channel: int
    reason: Reason


@record(frozen=True, slots=True)
class Close:
    """Child: I need nothing more of this channel."""

    channel: int


@record(frozen=True, slots=True)
class Have:
    """Parent: I hold these too now; stretches of (first piece, count)."""

    channel: int
    ranges: tuple[tuple[int, int], ...]


@record(frozen=True, slots=True)
class Withdraw:
    """Parent: I hold these no longer."""

    channel: int
    ranges: tuple[tuple[int, int], ...]


@record(frozen=True, slots=True)
class Request:
    """Child: send me these; (request id, piece) each, answered in any order, each exactly once by
    `Piece`, `Busy` or `Reject`. `wait`: what is not held yet, as soon as it is."""

    channel: int
    requests: tuple[tuple[int, int], ...]
    wait: bool = False


@record(frozen=True, slots=True)
class Cancel:
    """Child: no longer wanted. A piece already on its way still arrives whole; one that was
    dropped from the queue is answered by `Reject(cancelled)`."""

    request_ids: tuple[int, ...]


@record(frozen=True, slots=True)
class Busy:
    """Parent: not now; ask again after this time."""

    request_id: int
    retry_after_ms: int


@record(frozen=True, slots=True)
class Reject:
    """Parent: not from me."""

    request_id: int
    reason: Reason


@record(frozen=True, slots=True)
class Piece:
    """Parent: the piece's header; `length_bytes` raw bytes follow."""

    request_id: int
    length_bytes: int
    digest: bytes
    lease_number: int
    epoch: int


Frame = (
    Hello
    | Open
    | Opened
    | Refused
    | Close
    | Have
    | Withdraw
    | Request
    | Cancel
    | Busy
    | Reject
    | Piece
)


def encode(frame: Frame) -> bytes:
    """The bytes of one frame, its length prefix included."""
    body: bytes = msgpack.packb(_ENCODERS[type(frame)](frame), use_bin_type=True)
    assert len(body) <= FRAME_BYTES_MAX, f"frame of {len(body)} bytes"
    return _LENGTH.pack(len(body)) + body


def have_frames(
    channel: int, stretches: list[tuple[int, int]], kind: type[Have] | type[Withdraw] = Have
) -> list[Have | Withdraw]:
    """`Have` or `Withdraw` frames for any number of stretches, split at the cap."""
    return [
        kind(channel, tuple(stretches[start : start + RANGES_PER_FRAME_MAX]))
        for start in range(0, len(stretches), RANGES_PER_FRAME_MAX)
    ]


class FrameDecoder:
    """Bytes in, frames out. After a `Piece` frame, payload must be taken before the next frame.

    Raises ProtocolError on anything that is not a legal frame; the connection is then unusable.
    """

    __slots__ = ("_buffer", "payload_remaining_bytes")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.payload_remaining_bytes = 0
        """Raw bytes still due for the last `Piece` frame."""

    @property
    def buffered_bytes(self) -> int:
        """Bytes fed and not yet consumed."""
        return len(self._buffer)

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Takes in bytes from the connection. At most one frame beyond the cap is buffered."""
        self._buffer += data

    def next_frame(self) -> Frame | None:
        """The next whole frame, or None if more bytes are needed. Must not be called while
        payload is due."""
        assert not self.payload_remaining_bytes, "take the payload first"
        buffer = self._buffer
        if len(buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(buffer)
        if length > FRAME_BYTES_MAX or length == 0:
            raise ProtocolError(f"frame of {length} bytes")
        end = _LENGTH.size + length
        if len(buffer) < end:
            return None
        body = bytes(memoryview(buffer)[_LENGTH.size : end])
        del buffer[:end]
        frame = _decode(body)
        if type(frame) is Piece:
            self.payload_remaining_bytes = frame.length_bytes
        return frame

    def take_payload(self, target: memoryview) -> int:
        """Moves buffered payload into `target`; returns how many bytes that were."""
        count = min(len(self._buffer), self.payload_remaining_bytes, len(target))
        if count:
            with memoryview(self._buffer) as view:
                target[:count] = view[:count]
            del self._buffer[:count]
            self.payload_remaining_bytes -= count
        return count

    def payload_received(self, count: int) -> None:
        """Says that the caller read payload bytes from the connection by itself."""
        assert not self._buffer, "buffered payload comes first"
        assert 0 <= count <= self.payload_remaining_bytes
        self.payload_remaining_bytes -= count


def _flatten(stretches: tuple[tuple[int, int], ...]) -> list[int]:
    return [number for pair in stretches for number in pair]


_ENCODERS: Final[dict[type[Any], Callable[[Any], list[Any]]]] = {
    Hello: lambda f: [0, f.version_min, f.version_max, f.host_id, f.nonce],
    Open: lambda f: [1, f.channel, f.task_id, f.proof],
    Opened: lambda f: [2, f.channel, f.epoch, f.bitmap],
    Refused: lambda f: [3, f.channel, f.reason.value],
    Close: lambda f: [4, f.channel],
    Have: lambda f: [5, f.channel, _flatten(f.ranges)],
    Withdraw: lambda f: [6, f.channel, _flatten(f.ranges)],
    Request: lambda f: [7, f.channel, _flatten(f.requests), f.wait],
    Cancel: lambda f: [8, list(f.request_ids)],
    Busy: lambda f: [9, f.request_id, f.retry_after_ms],
    Reject: lambda f: [10, f.request_id, f.reason.value],
    Piece: lambda f: [11, f.request_id, f.length_bytes, f.digest, f.lease_number, f.epoch],
}


def _decode(body: bytes) -> Frame:
    try:
        fields = msgpack.unpackb(body, raw=False, strict_map_key=True, use_list=True)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise ProtocolError(f"frame is not msgpack: {type(error).__name__}") from error
    if type(fields) is not list or not fields or type(fields[0]) is not int:
        raise ProtocolError("frame is not an array that begins with its kind")
    parser = _PARSERS.get(fields[0])
    if parser is None:
        raise ProtocolError(f"unknown frame kind {fields[0]}")
    # A newer minor version may append fields; those known here must all be there.
    try:
        return parser(fields)
    except IndexError:
        raise ProtocolError(f"frame kind {fields[0]} has only {len(fields)} fields") from None


def _integer(value: object, maximum: int = _U63) -> int:
    if type(value) is not int or not 0 <= value <= maximum:
        raise ProtocolError(f"not a number from 0 to {maximum}")
    return value


def _boolean(value: object) -> bool:
    if type(value) is not bool:
        raise ProtocolError("not a boolean")
    return value


def _binary(value: object, length_max: int) -> bytes:
    if type(value) is not bytes or len(value) > length_max:
        raise ProtocolError(f"not at most {length_max} bytes")
    return value


def _text(value: object, length_max: int) -> str:
    if type(value) is not str or not 0 < len(value) <= length_max:
        raise ProtocolError(f"not a text of 1 to {length_max} characters")
    return value


def _reason(value: object) -> Reason:
    text = _text(value, 64)
    try:
        return Reason(text)
    except ValueError:
        # A reason of a newer version: the outcome is what counts.
        return Reason.PEER_REFUSED


def _pairs(value: object, count_max: int, first_max: int, second_max: int) -> Any:
    if type(value) is not list or len(value) % 2 or len(value) > 2 * count_max:
        raise ProtocolError(f"not a list of at most {count_max} pairs")
    numbers = iter(value)
    return tuple(
        (_integer(first, first_max), _integer(second, second_max))
        for first, second in zip(numbers, numbers, strict=True)
    )


def _ranges(value: object) -> Any:
    return _pairs(value, RANGES_PER_FRAME_MAX, PIECES_PER_TASK_MAX, PIECES_PER_TASK_MAX)


def _request_ids(value: object) -> tuple[int, ...]:
    if type(value) is not list or len(value) > REQUESTS_PER_FRAME_MAX:
        raise ProtocolError(f"not a list of at most {REQUESTS_PER_FRAME_MAX} numbers")
    return tuple(_integer(number) for number in value)


_PARSERS: Final[dict[int, Callable[[list[Any]], Frame]]] = {
    0: lambda f: Hello(
        _integer(f[1], 65535),
        _integer(f[2], 65535),
        _text(f[3], HOST_ID_CHARACTERS_MAX),
        _binary(f[4], 64),
    ),
    1: lambda f: Open(_integer(f[1]), _text(f[2], 64), _binary(f[3], 64)),
    2: lambda f: Opened(_integer(f[1]), _integer(f[2]), _binary(f[3], PIECES_PER_TASK_MAX // 8)),
    3: lambda f: Refused(_integer(f[1]), _reason(f[2])),
    4: lambda f: Close(_integer(f[1])),
    5: lambda f: Have(_integer(f[1]), _ranges(f[2])),
    6: lambda f: Withdraw(_integer(f[1]), _ranges(f[2])),
    7: lambda f: Request(
        _integer(f[1]),
        _pairs(f[2], REQUESTS_PER_FRAME_MAX, _U63, PIECES_PER_TASK_MAX),
        # Appended later: who does not know it does not wait.
        len(f) > 3 and _boolean(f[3]),
    ),
    8: lambda f: Cancel(_request_ids(f[1])),
    9: lambda f: Busy(_integer(f[1]), _integer(f[2], 3_600_000)),
    10: lambda f: Reject(_integer(f[1]), _reason(f[2])),
    11: lambda f: Piece(
        _integer(f[1]),
        _integer(f[2], PIECE_LENGTH_BYTES_MAX),
        _binary(f[3], 64),
        _integer(f[4]),
        _integer(f[5]),
    ),
}
