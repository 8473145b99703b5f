"""The light hosts of the service benchmark against a server side of HTTP/2 that checks them."""

import asyncio
import socket
from typing import Any

import pytest
import uvloop
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, PingAckReceived, RequestReceived
from h2.settings import SettingCodes

from benchmarks.scale import service_frames, service_http2
from benchmarks.scale.service_frames import MESSAGE_BYTES_MAX, Messages, prefixed
from benchmarks.scale.service_http2 import STREAM, WINDOW_BYTES, Http2Stream
from tests.fakes.ears import Ears

HEADERS = [(":status", "200"), ("content-type", "application/grpc")]


class Wire(asyncio.Transport):
    """Keeps what is written until the other side reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed
        self.written += bytes(data)

    def abort(self) -> None:
        self.closed = True


class Line:
    """A stream of a host, connected to a server side; h2 raises on anything that is not legal."""

    def __init__(self, window_bytes: int | None = None, said: bytes | None = None) -> None:
        self.ears = Ears()
        self.stream = Http2Stream("127.0.0.1:1", self.ears)
        self.wire = Wire()
        self.server = H2Connection(
            H2Configuration(
                client_side=False, header_encoding="utf-8", validate_inbound_headers=True
            )
        )
        self.server.initiate_connection()
        if window_bytes is not None:
            self.server.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: window_bytes})
        self.events: list[Any] = []
        self.received = Messages()
        if said is not None:
            self.stream.say(said)
        self.stream.connection_made(self.wire)
        self.pump()

    def pump(self, cut: int = 1 << 30) -> None:
        """Both sides hear what the other wrote, in pieces so large, until neither has more."""
        while True:
            written, self.wire.written = self.wire.written, b""
            self.events += self.server.receive_data(written)
            data = self.server.data_to_send()
            for start in range(0, len(data), cut):
                self.stream.data_received(data[start : start + cut])
            if not data and not self.wire.written:
                return

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def said(self) -> list[bytes]:
        """The messages that the server has got, each time those since the last."""
        found = []
        for event in self.of(DataReceived):
            found += self.received.feed(event.data)
        self.events = [event for event in self.events if not isinstance(event, DataReceived)]
        return found

    def accept(self) -> None:
        self.server.send_headers(STREAM, HEADERS)

    def answer(self, data: bytes) -> None:
        """Data in frames as HTTP/2 wants them."""
        size = self.server.max_outbound_frame_size
        for start in range(0, len(data), size):
            self.server.send_data(STREAM, data[start : start + size])

    def end(self, *trailers: tuple[str, str]) -> None:
        self.server.send_headers(STREAM, list(trailers), end_stream=True)


def test_a_host_begins_as_grpc_does() -> None:
    line = Line()
    (request,) = line.of(RequestReceived)
    headers = dict(request.headers)
    assert headers[":method"] == "POST"
    assert headers[":path"] == "/shoal.v1.Control/Connect"
    assert headers[":authority"] == "127.0.0.1:1"
    assert headers["te"] == "trailers"
    assert headers["content-type"] == "application/grpc"
    assert line.server.remote_settings.initial_window_size == WINDOW_BYTES
    assert line.server.local_flow_control_window(STREAM) == WINDOW_BYTES
    assert line.server.remote_settings.enable_push == 0


def test_what_was_said_before_the_connection_is_sent_once() -> None:
    line = Line(said=b"hello")
    line.stream.say(b"join")
    line.pump()
    assert line.said() == [b"hello", b"join"]


@pytest.mark.parametrize("cut", [1, 7, 1000, 1 << 30])
def test_messages_are_heard_however_they_come(cut: int) -> None:
    line = Line()
    batches = [b"x" * 40_000, b"one", b"", b"two"]
    line.accept()
    data = b"".join(map(prefixed, batches))
    line.answer(data[:50])  # A message over several frames, and several messages in one.
    line.answer(data[50:])
    line.pump(cut)
    assert line.ears.batches == batches
    assert line.ears.reasons == []


def test_padding_is_not_heard() -> None:
    line = Line()
    line.accept()
    line.server.send_data(STREAM, prefixed(b"one"), pad_length=20)
    line.pump()
    assert line.ears.batches == [b"one"]


def test_a_message_that_is_too_large_ends_the_connection() -> None:
    line = Line()
    line.accept()
    line.answer(b"\0" + (MESSAGE_BYTES_MAX + 1).to_bytes(4, "big"))
    line.pump()
    (reason,) = line.ears.reasons
    assert reason.startswith("protocol error: a message of")
    assert line.wire.closed
    line.stream.say(b"more")  # Into nothing.
    line.stream.connection_lost(None)
    assert len(line.ears.reasons) == 1


def test_a_status_says_why_a_stream_ended() -> None:
    line = Line()
    line.accept()
    line.answer(prefixed(b"one"))
    line.end(("grpc-status", "8"), ("grpc-message", "overloaded: 100%25 full"))
    line.pump()
    assert line.ears.batches == [b"one"]
    assert line.ears.reasons == ["RESOURCE_EXHAUSTED: overloaded: 100% full"]
    line.stream.connection_lost(None)
    assert len(line.ears.reasons) == 1


def test_a_refusal_has_its_status_in_the_headers() -> None:
    line = Line()
    line.server.send_headers(STREAM, [*HEADERS, ("grpc-status", "14")], end_stream=True)
    line.pump()
    assert line.ears.reasons == ["UNAVAILABLE: "]


def test_a_long_explanation_needs_several_frames() -> None:
    line = Line()
    line.accept()
    line.end(("grpc-status", "99"), ("grpc-message", "~" * 11_000))
    line.pump()
    assert line.ears.reasons == ["status 99: " + "~" * 11_000]


def test_explanations_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_http2, "HEADERS_BYTES_MAX", 1000)
    line = Line()
    line.accept()
    line.end(("grpc-status", "8"), ("grpc-message", "~" * 1000))
    line.pump()
    assert line.ears.reasons == ["protocol error: more than 1000 bytes of headers"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (prefixed(b"one"), "ended by the scheduler"),
        (prefixed(b"one")[:-1], "ended by the scheduler within a message"),
    ],
)
def test_an_end_without_an_error(data: bytes, reason: str) -> None:
    line = Line()
    line.accept()
    line.answer(data)
    line.end(("grpc-status", "0"))
    line.pump()
    assert line.ears.reasons == [reason]


def test_an_end_without_a_status() -> None:
    line = Line()
    line.server.send_headers(STREAM, [(":status", "404")], end_stream=True)
    line.pump()
    assert line.ears.reasons == ["ended without a status, HTTP status 404"]
    line = Line()
    line.accept()
    line.server.send_data(STREAM, b"", end_stream=True)
    line.pump()
    assert line.ears.reasons == ["ended without a status"]


def test_a_stream_that_is_reset() -> None:
    line = Line()
    line.accept()
    line.server.reset_stream(STREAM, ErrorCodes.REFUSED_STREAM)
    line.pump()
    assert line.ears.reasons == ["RST_STREAM: REFUSED_STREAM"]


def test_a_connection_that_is_given_up() -> None:
    line = Line()
    line.server.close_connection(ErrorCodes.ENHANCE_YOUR_CALM, b"too_many_pings")
    line.pump()
    assert line.ears.reasons == ["GOAWAY: ENHANCE_YOUR_CALM: too_many_pings"]


def test_a_stream_outlives_a_polite_goodbye() -> None:
    line = Line()
    line.accept()
    line.end(("grpc-status", "14"), ("grpc-message", "stops"))
    status = line.server.data_to_send()
    line.server.close_connection(last_stream_id=STREAM)
    line.stream.data_received(line.server.data_to_send() + status)
    assert line.ears.reasons == ["UNAVAILABLE: stops"]


def test_a_stream_that_the_goodbye_does_not_count_is_lost() -> None:
    line = Line()
    line.server.close_connection(last_stream_id=0)
    line.stream.data_received(line.server.data_to_send())
    assert line.ears.reasons == ["GOAWAY: NO_ERROR"]


@pytest.mark.parametrize(
    ("polite", "error", "reason"),
    [
        (False, None, "connection closed by the scheduler"),
        (False, OSError("reset"), "connection lost: reset"),
        (True, None, "GOAWAY: NO_ERROR"),
    ],
)
def test_a_connection_that_ends(polite: bool, error: Exception | None, reason: str) -> None:
    line = Line()
    if polite:
        line.server.close_connection(last_stream_id=STREAM)
        line.stream.data_received(line.server.data_to_send())
    line.stream.connection_lost(error)
    assert line.ears.reasons == [reason]


@pytest.mark.parametrize("broken", [b"\0\0\0\0\0\0\0\0\3", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_what_is_not_such_http2_ends_the_connection(broken: bytes) -> None:
    line = Line()
    line.stream.data_received(broken)
    assert line.ears.reasons[0].startswith("protocol error")
    assert line.wire.closed


def test_pings_are_answered() -> None:
    line = Line()
    line.server.ping(b"12345678")
    line.pump()
    (answer,) = line.of(PingAckReceived)
    assert answer.ping_data == b"12345678"


def test_a_host_sends_no_more_than_it_is_allowed() -> None:
    line = Line(window_bytes=100)
    message = b"x" * 40_000
    line.stream.say(message)
    line.stream.say(b"one")
    line.pump()
    got = sum(len(event.data) for event in line.of(DataReceived))
    assert got == 100
    line.server.increment_flow_control_window(50_000, STREAM)
    line.pump()
    assert line.said() == [message, b"one"]  # h2 refuses frames that are too large.


def test_a_window_of_the_connection_holds_as_well() -> None:
    line = Line(window_bytes=1 << 20)
    message = b"x" * 70_000
    line.stream.say(message)
    line.pump()
    assert sum(len(event.data) for event in line.of(DataReceived)) == 65_535
    line.server.increment_flow_control_window(10_000)
    line.pump()
    assert line.said() == [message]


def test_a_scheduler_that_does_not_read_loses_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_http2, "WAITING_BYTES_MAX", 1000)
    line = Line(window_bytes=0)
    line.stream.say(b"x" * 900)
    assert line.ears.reasons == []
    line.stream.say(b"x" * 100)
    assert line.ears.reasons == ["the scheduler does not read"]
    assert line.wire.closed


def test_a_full_socket_gets_no_more() -> None:
    line = Line()
    line.stream.pause_writing()
    line.stream.say(b"one")
    assert line.wire.written == b""
    line.stream.resume_writing()
    line.pump()
    assert line.said() == [b"one"]


def test_what_was_read_is_told_in_bulk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_http2, "ACKNOWLEDGED_BYTES", 20_000)
    line = Line()
    line.accept()
    line.answer(prefixed(b"x" * 10_000))
    line.pump()
    left = WINDOW_BYTES - len(prefixed(b"x" * 10_000))
    assert line.server.local_flow_control_window(STREAM) == left
    line.answer(prefixed(b"x" * 10_000))
    line.pump()
    assert line.server.local_flow_control_window(STREAM) == WINDOW_BYTES


async def test_a_host_that_leaves_hears_nothing_more() -> None:
    line = Line()
    line.accept()
    closing = asyncio.create_task(line.stream.close())
    await asyncio.sleep(0)
    assert line.wire.closed
    line.answer(prefixed(b"one"))
    line.stream.data_received(line.server.data_to_send())
    line.stream.connection_lost(None)
    await closing
    await line.stream.close()
    assert line.ears.batches == []
    assert line.ears.reasons == []


async def test_a_host_leaves_a_scheduler_that_does_not_read() -> None:
    near, far = socket.socketpair()
    stream = Http2Stream("127.0.0.1:1", Ears())
    with far:
        near.setblocking(False)
        await asyncio.get_running_loop().create_connection(lambda: stream, sock=near)
        windows = (service_frames.window_update(number, 1 << 24) for number in (0, STREAM))
        stream.data_received(b"".join(windows))
        stream.say(b"x" * 4_000_000)  # Far more than the socket takes.
        async with asyncio.timeout(0.5):
            await stream.close()


def test_a_host_leaves_just_as_it_is_connected() -> None:
    class Leaving(Http2Stream):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            closing.append(asyncio.get_running_loop().create_task(self.close()))

    closing: list[asyncio.Task[None]] = []

    async def leave() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            stream = Leaving("127.0.0.1:1", Ears())
            stream.connect(*listener.getsockname())
            async with asyncio.timeout(5):
                while not closing:  # noqa: ASYNC110
                    await asyncio.sleep(0)
                await closing[0]

    # The loop that the hosts of the benchmark run on.
    uvloop.run(leave())


def test_a_host_that_was_given_up_gets_no_connection() -> None:
    stream = Http2Stream("127.0.0.1:1", Ears())
    stream.say(b"x" * service_http2.WAITING_BYTES_MAX)
    wire = Wire()
    stream.connection_made(wire)
    assert wire.closed
    assert wire.written == b""
