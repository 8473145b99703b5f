"""HTTP/2 frames, and gRPC's messages in them: bytes taken apart and put together. Does no IO.

No more than a host with one stream needs, and nothing but slices of what came.
"""

from enum import IntEnum
from typing import Final, NamedTuple

from shoal.wire.errors import ProtocolError
from shoal.wire.limits import CONTROL_MESSAGE_BYTES_MAX

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER_BYTES: Final = 9
FRAME_BYTES_MAX: Final = 16_384
"""Of a frame's payload, each way: what HTTP/2 allows unless other settings are made."""
PREFIX_BYTES: Final = 5
MESSAGE_BYTES_MAX: Final = CONTROL_MESSAGE_BYTES_MAX + 64 * 1024
"""As much as real hosts take."""

END_STREAM: Final = 0x01
ACK: Final = 0x01
END_HEADERS: Final = 0x04
PADDED: Final = 0x08
PRIORITY: Final = 0x20


class Kind(IntEnum):
    """Kinds of frames that mean something to a client that wants no pushes."""

    DATA = 0
    HEADERS = 1
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class Setting(IntEnum):
    """Settings that matter to such a client."""

    ENABLE_PUSH = 2
    INITIAL_WINDOW_SIZE = 4


_ERRORS: Final = (
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "STREAM_CLOSED",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
    "HTTP_1_1_REQUIRED",
)


def error_name(code: int) -> str:
    """What HTTP/2 calls an error."""
    return _ERRORS[code] if code < len(_ERRORS) else f"error {code}"


class Frame(NamedTuple):
    """One frame; its kind may be none that is known here."""

    kind: int
    flags: int
    stream: int
    payload: bytes


def frame(kind: Kind, flags: int, stream: int, payload: bytes) -> bytes:
    """A frame as it is sent."""
    head = len(payload) << 48 | kind << 40 | flags << 32 | stream
    return head.to_bytes(HEADER_BYTES, "big") + payload


def settings(values: dict[Setting, int]) -> bytes:
    """A SETTINGS frame."""
    pairs = (key.to_bytes(2, "big") + value.to_bytes(4, "big") for key, value in values.items())
    return frame(Kind.SETTINGS, 0, 0, b"".join(pairs))


def window_update(stream: int, more_bytes: int) -> bytes:
    """A WINDOW_UPDATE frame; stream 0 is the connection."""
    return frame(Kind.WINDOW_UPDATE, 0, stream, more_bytes.to_bytes(4, "big"))


class Frames:
    """Takes the bytes of a connection apart into frames."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that these bytes complete. Raises ProtocolError if one is too large."""
        if self._rest:
            data = self._rest + data
        frames = []
        start = 0
        size = len(data)
        while size - start >= HEADER_BYTES:
            length = data[start] << 16 | data[start + 1] << 8 | data[start + 2]
            if length > FRAME_BYTES_MAX:
                raise ProtocolError(f"a frame of {length} bytes, at most {FRAME_BYTES_MAX}")
            body = start + HEADER_BYTES
            if body + length > size:
                break
            stream = int.from_bytes(data[start + 5 : body], "big") & 0x7FFF_FFFF
            payload = data[body : body + length]
            frames.append(Frame(data[start + 3], data[start + 4], stream, payload))
            start = body + length
        self._rest = data[start:]
        return frames


def unpadded(heard: Frame) -> bytes:
    """What a frame of data or headers carries, without padding and priority. Raises
    ProtocolError."""
    payload = heard.payload
    if heard.flags & PADDED:
        padding = payload[0] if payload else 0
        if len(payload) < 1 + padding:
            raise ProtocolError("more padding than frame")
        payload = payload[1 : len(payload) - padding]
    if heard.kind == Kind.HEADERS and heard.flags & PRIORITY:
        payload = payload[5:]
    return payload


def prefixed(message: bytes) -> bytes:
    """A message as gRPC sends it: not compressed, its length, itself."""
    return b"\0" + len(message).to_bytes(4, "big") + message


class Messages:
    """Takes the data of a stream apart into gRPC's messages, however they were cut into frames."""

    def __init__(self, message_bytes_max: int = MESSAGE_BYTES_MAX) -> None:
        self._message_bytes_max = message_bytes_max
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that this data completes. Raises ProtocolError if one is compressed or too
        large, as soon as its length is known."""
        if (
            not self._rest
            and len(data) >= PREFIX_BYTES
            and PREFIX_BYTES + self._length(data, 0) == len(data)
        ):
            # Nearly always: one message, whole, in one frame.
            return [data[PREFIX_BYTES:]]
        self._rest += data
        messages = []
        position = 0
        while len(self._rest) - position >= PREFIX_BYTES:
            start = position + PREFIX_BYTES
            end = start + self._length(self._rest, position)
            if end > len(self._rest):
                break
            messages.append(bytes(self._rest[start:end]))
            position = end
        del self._rest[:position]
        return messages

    def _length(self, data: bytes | bytearray, position: int) -> int:
        if data[position] != 0:
            raise ProtocolError("a compressed message")
        length = int.from_bytes(data[position + 1 : position + PREFIX_BYTES], "big")
        if length > self._message_bytes_max:
            raise ProtocolError(f"a message of {length} bytes, at most {self._message_bytes_max}")
        return length

    @property
    def between(self) -> bool:
        """Whether the last message is whole."""
        return not self._rest
