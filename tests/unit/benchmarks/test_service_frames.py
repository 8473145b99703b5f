"""HTTP/2 frames and gRPC messages of the service benchmark, however their bytes are cut."""

import pytest

from benchmarks.scale import service_frames as wire
from benchmarks.scale.service_frames import Frame, Frames, Kind, Messages
from shoal.wire.errors import ProtocolError

FRAMES = [
    Frame(Kind.SETTINGS, wire.ACK, 0, b""),
    Frame(Kind.DATA, 0, 1, b"x" * 300),
    Frame(Kind.DATA, wire.END_STREAM, 0x7FFF_FFFF, b"y" * wire.FRAME_BYTES_MAX),
    Frame(Kind.PING, 0, 0, b"12345678"),
]
MESSAGES = [b"one", b"", b"x" * 70_000, b"two"]


def joined() -> bytes:
    return b"".join(wire.frame(Kind(each.kind), *each[1:]) for each in FRAMES)


@pytest.mark.parametrize("cut", [1, 2, 8, 9, 10, 299, 16_384, 1 << 20])
def test_frames_come_out_as_they_went_in(cut: int) -> None:
    frames = Frames()
    data = joined()
    found = [
        each
        for start in range(0, len(data), cut)
        for each in frames.feed(data[start : start + cut])
    ]
    assert found == FRAMES


def test_a_reserved_bit_is_no_part_of_a_stream_number() -> None:
    data = bytearray(wire.frame(Kind.DATA, 0, 5, b""))
    data[5] |= 0x80
    (found,) = Frames().feed(bytes(data))
    assert found.stream == 5


def test_a_frame_that_is_too_large_is_refused_by_its_head() -> None:
    head = wire.frame(Kind.DATA, 0, 1, b"x" * (wire.FRAME_BYTES_MAX + 1))[: wire.HEADER_BYTES]
    with pytest.raises(ProtocolError, match="16385 bytes"):
        Frames().feed(head)


def test_padding_and_priority_are_taken_off() -> None:
    assert wire.unpadded(Frame(Kind.DATA, 0, 1, b"data")) == b"data"
    assert wire.unpadded(Frame(Kind.DATA, wire.PADDED, 1, b"\x03data\0\0\0")) == b"data"
    both = wire.PADDED | wire.PRIORITY
    assert wire.unpadded(Frame(Kind.HEADERS, both, 1, b"\x02\0\0\0\0\x10data\0\0")) == b"data"
    with pytest.raises(ProtocolError):
        wire.unpadded(Frame(Kind.DATA, wire.PADDED, 1, b"\x05data"))
    with pytest.raises(ProtocolError):
        wire.unpadded(Frame(Kind.DATA, wire.PADDED, 1, b""))


@pytest.mark.parametrize("cut", [1, 3, 5, 8, 9, 13, 16_384, 1 << 20])
def test_messages_come_out_as_they_went_in(cut: int) -> None:
    messages = Messages()
    data = b"".join(wire.prefixed(each) for each in MESSAGES)
    found = []
    for start in range(0, len(data), cut):
        found += messages.feed(data[start : start + cut])
    assert found == MESSAGES
    assert messages.between


def test_a_message_that_began_is_not_the_end() -> None:
    messages = Messages()
    assert messages.feed(wire.prefixed(b"one") + b"\0") == [b"one"]
    assert not messages.between


def test_a_message_that_is_too_large_is_refused_by_its_length() -> None:
    messages = Messages(10)
    assert messages.feed(wire.prefixed(b"x" * 10)) == [b"x" * 10]
    with pytest.raises(ProtocolError, match="11 bytes"):
        messages.feed(wire.prefixed(b"x" * 11)[: wire.PREFIX_BYTES])
    with pytest.raises(ProtocolError, match="11 bytes"):
        Messages(10).feed(wire.prefixed(b"x") + wire.prefixed(b"x" * 11)[: wire.PREFIX_BYTES])


def test_a_compressed_message_is_refused() -> None:
    with pytest.raises(ProtocolError, match="compressed"):
        Messages().feed(b"\x01\0\0\0\x01x")


def test_errors_have_names() -> None:
    assert wire.error_name(8) == "CANCEL"
    assert wire.error_name(99) == "error 99"
