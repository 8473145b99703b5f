"""The codec of frames between peers: what goes in comes out, and nothing but frames comes out."""

import struct
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.wire import frames
from shoal.wire.errors import ProtocolError, Reason
from shoal.wire.frames import Frame, FrameDecoder, encode
from shoal.wire.limits import (
    FRAME_BYTES_MAX,
    HOST_ID_CHARACTERS_MAX,
    PIECE_LENGTH_BYTES_MAX,
    PIECES_PER_TASK_MAX,
    RANGES_PER_FRAME_MAX,
    REQUESTS_PER_FRAME_MAX,
)

U63 = (1 << 63) - 1

numbers = st.integers(0, U63)
pieces = st.integers(0, PIECES_PER_TASK_MAX)
reasons = st.sampled_from(Reason)
stretches = st.lists(st.tuples(pieces, pieces), max_size=20).map(tuple)
short_bytes = st.binary(max_size=64)
names = st.text(min_size=1, max_size=HOST_ID_CHARACTERS_MAX)

KINDS: dict[type[Any], st.SearchStrategy[Any]] = {
    frames.Hello: st.builds(
        frames.Hello, st.integers(0, 65535), st.integers(0, 65535), names, short_bytes
    ),
    frames.Open: st.builds(frames.Open, numbers, names, short_bytes),
    frames.Opened: st.builds(frames.Opened, numbers, numbers, st.binary(max_size=300)),
    frames.Refused: st.builds(frames.Refused, numbers, reasons),
    frames.Close: st.builds(frames.Close, numbers),
    frames.Have: st.builds(frames.Have, numbers, stretches),
    frames.Withdraw: st.builds(frames.Withdraw, numbers, stretches),
    frames.Request: st.builds(
        frames.Request,
        numbers,
        st.lists(st.tuples(numbers, pieces), max_size=20).map(tuple),
        st.booleans(),
    ),
    frames.Cancel: st.builds(frames.Cancel, st.lists(numbers, max_size=20).map(tuple)),
    frames.Busy: st.builds(frames.Busy, numbers, st.integers(0, 3_600_000)),
    frames.Reject: st.builds(frames.Reject, numbers, reasons),
    frames.Piece: st.builds(
        frames.Piece,
        numbers,
        st.integers(0, PIECE_LENGTH_BYTES_MAX),
        short_bytes,
        numbers,
        numbers,
    ),
}
any_frame: st.SearchStrategy[Frame] = st.one_of(*KINDS.values())
without_payload: st.SearchStrategy[Frame] = st.one_of(
    *(strategy for kind, strategy in KINDS.items() if kind is not frames.Piece)
)


def raw_frame(*fields: object) -> bytes:
    """A frame of any fields, legal or not."""
    body: bytes = msgpack.packb(list(fields), use_bin_type=True)
    return struct.pack(">I", len(body)) + body


def decode_one(data: bytes) -> Frame | None:
    """The first frame of some bytes."""
    decoder = FrameDecoder()
    decoder.feed(data)
    return decoder.next_frame()


def drain(decoder: FrameDecoder) -> list[Frame]:
    """Every frame that is whole; payload is read and dropped."""
    found: list[Frame] = []
    room = memoryview(bytearray(4096))
    while True:
        while decoder.payload_remaining_bytes and decoder.take_payload(room):
            pass
        if decoder.payload_remaining_bytes:
            return found
        frame = decoder.next_frame()
        if frame is None:
            return found
        found.append(frame)


# ---------------------------------------------------------------- there and back


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_a_frame_comes_out_as_it_went_in(kind: type[Any], data: st.DataObject) -> None:
    frame = data.draw(KINDS[kind])
    decoder = FrameDecoder()
    decoder.feed(encode(frame))
    assert decoder.next_frame() == frame
    assert decoder.buffered_bytes == 0


@given(st.lists(without_payload, max_size=5))
def test_frames_come_out_whole_when_fed_byte_by_byte(sent: list[Frame]) -> None:
    decoder = FrameDecoder()
    received: list[Frame] = []
    for byte in b"".join(map(encode, sent)):
        assert decoder.next_frame() is None
        decoder.feed(bytes([byte]))
        received += drain(decoder)
    assert received == sent


@given(st.lists(without_payload, min_size=1, max_size=5), st.lists(st.integers(1, 40), min_size=1))
def test_how_bytes_are_cut_does_not_matter(sent: list[Frame], cuts: list[int]) -> None:
    data = memoryview(b"".join(map(encode, sent)))
    decoder = FrameDecoder()
    received: list[Frame] = []
    turn = 0
    while data:
        count = cuts[turn % len(cuts)]
        decoder.feed(data[:count])
        data = data[count:]
        received += drain(decoder)
        turn += 1
    assert received == sent


# ---------------------------------------------------------------- payload


def test_payload_comes_between_frames() -> None:
    piece = frames.Piece(7, 10, b"d" * 16, 3, 4)
    decoder = FrameDecoder()
    decoder.feed(encode(piece) + b"0123")
    assert decoder.next_frame() == piece
    assert decoder.payload_remaining_bytes == 10
    target = bytearray(10)
    assert decoder.take_payload(memoryview(target)) == 4
    assert decoder.payload_remaining_bytes == 6
    assert decoder.take_payload(memoryview(target)[4:]) == 0
    decoder.payload_received(2)
    decoder.feed(b"6789" + encode(frames.Close(1)))
    assert decoder.take_payload(memoryview(target)[6:]) == 4
    assert bytes(target) == b"0123\0\x006789"
    assert decoder.payload_remaining_bytes == 0
    assert decoder.next_frame() == frames.Close(1)


def test_payload_is_never_written_beyond_its_target() -> None:
    decoder = FrameDecoder()
    decoder.feed(encode(frames.Piece(1, 8, b"", 0, 0)) + b"abcdefgh")
    decoder.next_frame()
    first, second = bytearray(3), bytearray(20)
    assert decoder.take_payload(memoryview(first)) == 3
    assert decoder.take_payload(memoryview(second)) == 5
    assert (bytes(first), bytes(second[:5])) == (b"abc", b"defgh")


def test_payload_of_one_piece_does_not_reach_into_the_next_frame() -> None:
    after = frames.Busy(2, 10)
    decoder = FrameDecoder()
    decoder.feed(encode(frames.Piece(1, 3, b"", 0, 0)) + b"abc" + encode(after))
    decoder.next_frame()
    target = bytearray(64)
    assert decoder.take_payload(memoryview(target)) == 3
    assert target[:4] == b"abc\0"
    assert decoder.next_frame() == after


def test_a_piece_without_bytes_has_no_payload() -> None:
    decoder = FrameDecoder()
    decoder.feed(encode(frames.Piece(1, 0, b"", 0, 0)) + encode(frames.Close(2)))
    assert isinstance(decoder.next_frame(), frames.Piece)
    assert decoder.next_frame() == frames.Close(2)


def test_misuse_of_payload_is_caught() -> None:
    decoder = FrameDecoder()
    decoder.feed(encode(frames.Piece(1, 4, b"", 0, 0)) + b"ab")
    decoder.next_frame()
    with pytest.raises(AssertionError, match="take the payload first"):
        decoder.next_frame()
    with pytest.raises(AssertionError, match="buffered payload comes first"):
        decoder.payload_received(1)
    decoder.take_payload(memoryview(bytearray(4)))
    with pytest.raises(AssertionError):
        decoder.payload_received(3)


# ---------------------------------------------------------------- hostile bytes


@given(st.binary(max_size=400))
def test_arbitrary_bytes_give_frames_or_a_protocol_error(data: bytes) -> None:
    decoder = FrameDecoder()
    decoder.feed(data)
    try:
        received = drain(decoder)
    except ProtocolError:
        return
    assert all(type(frame) in KINDS for frame in received)


@given(st.binary(min_size=1, max_size=400))
def test_arbitrary_bodies_give_frames_or_a_protocol_error(body: bytes) -> None:
    try:
        frame = decode_one(struct.pack(">I", len(body)) + body)
    except ProtocolError:
        return
    assert type(frame) in KINDS


plain = st.one_of(
    st.none(), st.booleans(), st.integers(-(1 << 63), (1 << 64) - 1), st.floats(), st.text(),
    st.binary(),
)  # fmt: skip
anything = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.integers(0, 11), st.lists(anything, max_size=6))
def test_fields_of_any_type_give_frames_or_a_protocol_error(kind: int, fields: list[Any]) -> None:
    try:
        frame = decode_one(raw_frame(kind, *fields))
    except ProtocolError:
        return
    assert frame is not None
    # Whatever was let in can be said again.
    assert decode_one(encode(frame)) == frame


@given(any_frame, st.data())
def test_flipped_bits_give_frames_or_a_protocol_error(frame: Frame, data: st.DataObject) -> None:
    wire = bytearray(encode(frame))
    for _ in range(data.draw(st.integers(1, 3))):
        bit = data.draw(st.integers(0, 8 * len(wire) - 1))
        wire[bit // 8] ^= 1 << bit % 8
    decoder = FrameDecoder()
    decoder.feed(wire)
    try:
        received = drain(decoder)
    except ProtocolError:
        return
    assert all(type(each) in KINDS for each in received)


@pytest.mark.parametrize(
    "body",
    [
        b"\xc1",  # never used in msgpack
        b"\x92\x04",  # an array that ends early
        b"\x92\x04\x01\x00",  # bytes behind the array
        b"\x91" * 2000 + b"\x00",  # nested too deep
        b"\x92\x04\xa2\xff\xff",  # a text that is not UTF-8
        b"\xd7\xff" + b"\xff" * 8,  # a time stamp with impossible nanoseconds
        b"\x81\x91\x01\x01",  # a map with an array for a key
    ],
)
def test_broken_msgpack_is_a_protocol_error(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_one(struct.pack(">I", len(body)) + body)


@pytest.mark.parametrize("body", [{"a": 1}, [], ["0"], [True, 1], [None], 4, [1.0, 2]])
def test_a_frame_is_an_array_that_begins_with_its_kind(body: object) -> None:
    packed: bytes = msgpack.packb(body)
    with pytest.raises(ProtocolError, match="begins with its kind"):
        decode_one(struct.pack(">I", len(packed)) + packed)


@pytest.mark.parametrize("kind", [12, 255, -1])
def test_an_unknown_kind_is_a_protocol_error(kind: int) -> None:
    with pytest.raises(ProtocolError, match=f"unknown frame kind {kind}"):
        decode_one(raw_frame(kind, 1))


# ---------------------------------------------------------------- caps


@pytest.mark.parametrize("length", [0, FRAME_BYTES_MAX + 1, 0xFFFFFFFF])
def test_an_illegal_length_is_refused_before_its_bytes_come(length: int) -> None:
    with pytest.raises(ProtocolError, match=f"frame of {length} bytes"):
        decode_one(struct.pack(">I", length))


def test_the_longest_frame_is_only_waited_for() -> None:
    assert decode_one(struct.pack(">I", FRAME_BYTES_MAX)) is None


def test_the_largest_bitmap_fits_a_frame() -> None:
    frame = frames.Opened(U63, U63, b"\xff" * (PIECES_PER_TASK_MAX // 8))
    assert decode_one(encode(frame)) == frame


def test_a_frame_beyond_the_cap_cannot_be_made() -> None:
    with pytest.raises(AssertionError, match="frame of"):
        encode(frames.Opened(1, 1, bytes(FRAME_BYTES_MAX)))


EXCESSIVE = [
    raw_frame(0, 65536, 1, "host", b""),
    raw_frame(0, 1, 65536, "host", b""),
    raw_frame(0, 1, 1, "", b""),
    raw_frame(0, 1, 1, "h" * (HOST_ID_CHARACTERS_MAX + 1), b""),
    raw_frame(0, 1, 1, b"host", b""),
    raw_frame(0, 1, 1, "host", b"n" * 65),
    raw_frame(0, 1, 1, "host", "nonce"),
    raw_frame(1, 1, "t" * 65, b""),
    raw_frame(1, 1, "t", b"p" * 65),
    raw_frame(2, 1, 1, bytes(PIECES_PER_TASK_MAX // 8 + 1)),
    raw_frame(3, 1, "r" * 65),
    raw_frame(3, 1, 5),
    raw_frame(4, -1),
    raw_frame(4, U63 + 1),
    raw_frame(4, True),
    raw_frame(4, 1.0),
    raw_frame(5, 1, [1]),
    raw_frame(5, 1, [PIECES_PER_TASK_MAX + 1, 1]),
    raw_frame(5, 1, [1, PIECES_PER_TASK_MAX + 1]),
    raw_frame(5, 1, [0, 0] * (RANGES_PER_FRAME_MAX + 1)),
    raw_frame(6, 1, "ranges"),
    raw_frame(7, 1, [0, 0] * (REQUESTS_PER_FRAME_MAX + 1)),
    raw_frame(7, 1, [0, PIECES_PER_TASK_MAX + 1]),
    raw_frame(7, 1, [0, 0], 1),
    raw_frame(7, 1, [0, 0], None),
    raw_frame(7, 1, [0, 0], "true"),
    raw_frame(7, 1, [0, 0], []),
    raw_frame(8, [0] * (REQUESTS_PER_FRAME_MAX + 1)),
    raw_frame(8, 5),
    raw_frame(8, ["1"]),
    raw_frame(9, 1, 3_600_001),
    raw_frame(11, 1, PIECE_LENGTH_BYTES_MAX + 1, b"", 0, 0),
    raw_frame(11, 1, 1, b"d" * 65, 0, 0),
    raw_frame(11, 1, 1, b"", -1, 0),
]


@pytest.mark.parametrize("data", EXCESSIVE, ids=range(len(EXCESSIVE)))
def test_values_beyond_their_caps_are_protocol_errors(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_one(data)


@given(st.integers(0, 3 * RANGES_PER_FRAME_MAX), st.sampled_from([frames.Have, frames.Withdraw]))
def test_long_lists_of_stretches_are_split_at_the_cap(
    count: int, kind: type[frames.Have] | type[frames.Withdraw]
) -> None:
    stretches = [(2 * number, 1) for number in range(count)]
    made = frames.have_frames(5, stretches, kind)
    assert [pair for frame in made for pair in frame.ranges] == stretches
    assert len(made) == -(-count // RANGES_PER_FRAME_MAX)
    for frame in made:
        assert type(frame) is kind
        assert decode_one(encode(frame)) == frame


# ---------------------------------------------------------------- other versions


@pytest.mark.parametrize(
    ("data", "frame"),
    [
        (raw_frame(3, 1, "invented-later"), frames.Refused(1, Reason.PEER_REFUSED)),
        (raw_frame(10, 1, "invented-later"), frames.Reject(1, Reason.PEER_REFUSED)),
    ],
)
def test_a_reason_of_a_newer_version_is_a_plain_refusal(data: bytes, frame: Frame) -> None:
    assert decode_one(data) == frame


@given(any_frame, st.lists(plain, min_size=1, max_size=3))
def test_fields_that_a_newer_version_appends_are_ignored(frame: Frame, more: list[object]) -> None:
    fields = msgpack.unpackb(encode(frame)[4:])
    assert decode_one(raw_frame(*fields, *more)) == frame


@given(KINDS[frames.Request])
def test_a_request_of_an_older_version_does_not_wait(frame: frames.Request) -> None:
    *older, wait = msgpack.unpackb(encode(frame)[4:])
    assert wait is frame.wait
    assert decode_one(raw_frame(*older)) == frames.Request(frame.channel, frame.requests)


APPENDED = {frames.Request: 1}
"""Fields that an older version of the protocol did not have: they may be missing."""


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_missing_fields_are_named_in_the_error(kind: type[Any], data: st.DataObject) -> None:
    fields = msgpack.unpackb(encode(data.draw(KINDS[kind]))[4:])
    kept = data.draw(st.integers(1, len(fields) - 1 - APPENDED.get(kind, 0)))
    with pytest.raises(ProtocolError, match=f"frame kind {fields[0]} has only {kept} fields"):
        decode_one(raw_frame(*fields[:kept]))
