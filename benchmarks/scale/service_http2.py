"""Control streams over nothing but HTTP/2, for hosts that cost little.

The hosts of the benchmark share the machine with the scheduler that is measured: CPU that they take
is not there for it. A gRPC channel per host takes about as much as the scheduler's end of it, and
so does an HTTP/2 library in Python, frame by frame. So this speaks what one stream of gRPC needs
and no more: no TLS, no compression, one stream, and windows so large that replies need no
WINDOW_UPDATE of their own. It trusts the scheduler, as a host of a benchmark may, except for sizes.
"""

import asyncio
from functools import cache
from typing import Final, cast
from urllib.parse import unquote

from hpack import Decoder, Encoder
from hpack.exceptions import HPACKError

from benchmarks.scale import service_frames as wire
from benchmarks.scale.service_frames import Kind, Setting
from benchmarks.scale.service_streams import Listener
from peer.shell.control import METHOD
from shoal.runtime.config_values import parse_endpoint
from shoal.runtime.grpc_polling import grpc
from shoal.wire.errors import ProtocolError
from shoal.wire.limits import MIB

WAITING_BYTES_MAX: Final = wire.MESSAGE_BYTES_MAX
"""What a host has said and the scheduler does not let in yet; then the stream is given up."""
WINDOW_BYTES: Final = 16 * MIB
ACKNOWLEDGED_BYTES: Final = WINDOW_BYTES // 4
"""So much is read before the scheduler is told that it was."""
HEADERS_BYTES_MAX: Final = 64 * 1024

STREAM: Final = 1
_DEFAULT_WINDOW_BYTES: Final = 65_535
_CODES: Final = {str(code.value[0]): code.name for code in grpc.StatusCode}


@cache
def opening(authority: str) -> bytes:
    """All that a host sends before its first message, the same for each: what HPACK remembers
    begins anew with every connection."""
    headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", METHOD),
        (":authority", authority),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("user-agent", "shoal-benchmark"),
    ]
    return b"".join(
        (
            wire.PREFACE,
            wire.settings({Setting.ENABLE_PUSH: 0, Setting.INITIAL_WINDOW_SIZE: WINDOW_BYTES}),
            wire.window_update(0, WINDOW_BYTES - _DEFAULT_WINDOW_BYTES),
            wire.frame(Kind.HEADERS, wire.END_HEADERS, STREAM, Encoder().encode(headers)),
        )
    )


class Http2Stream(asyncio.Protocol):
    """One connection and its stream. `connect` gives it its transport."""

    def __init__(self, authority: str, listener: Listener) -> None:
        self._listener = listener
        self._transport: asyncio.Transport | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._gone = asyncio.Event()
        self._over = False
        self._goodbye = ""
        self._frames = wire.Frames()
        self._messages = wire.Messages()
        self._header_blocks: list[bytes] = []
        self._header_block_open = False
        self._header_bytes = 0
        self._headers_end_stream = False
        self._unacknowledged_bytes = 0
        self._early = opening(authority)
        self._waiting = bytearray()
        self._paused = False
        self._connection_window_bytes = _DEFAULT_WINDOW_BYTES
        self._stream_window_bytes = _DEFAULT_WINDOW_BYTES
        self._initial_window_bytes = _DEFAULT_WINDOW_BYTES

    def connect(self, host: str, port: int) -> None:
        """Begins to connect; a failure loses the stream. Only in a running loop."""
        self._connecting = asyncio.create_task(self._connect(host, port))

    async def _connect(self, host: str, port: int) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: self, host, port)
        except OSError as error:
            self._lose(f"cannot connect: {error}")

    # ------------------------------------------------------------ sending

    def say(self, batch: bytes) -> None:
        """Sends what the scheduler's windows allow, the rest later."""
        if self._over:
            return
        self._waiting += wire.prefixed(batch)
        if len(self._waiting) > WAITING_BYTES_MAX:
            self._give_up("the scheduler does not read")
            return
        self._send()

    def _send(self) -> None:
        while self._waiting and not self._paused:
            size = min(
                len(self._waiting),
                self._connection_window_bytes,
                self._stream_window_bytes,
                wire.FRAME_BYTES_MAX,
            )
            if size <= 0:
                return
            self._connection_window_bytes -= size
            self._stream_window_bytes -= size
            self._write(wire.frame(Kind.DATA, 0, STREAM, bytes(self._waiting[:size])))
            del self._waiting[:size]

    def _write(self, data: bytes) -> None:
        if self._transport is None:
            self._early += data
        else:
            self._transport.write(data)

    def pause_writing(self) -> None:
        """The socket takes no more for now."""
        self._paused = True

    def resume_writing(self) -> None:
        """The socket takes more."""
        self._paused = False
        self._send()

    # ------------------------------------------------------------ hearing

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Sends what was said before."""
        self._transport = cast("asyncio.Transport", transport)
        if self._over:
            self._transport.abort()
            return
        early, self._early = self._early, b""
        self._transport.write(early)

    def data_received(self, data: bytes) -> None:
        """Takes in frames and does what they ask for."""
        try:
            for heard in self._frames.feed(data):
                if self._over:
                    return
                if heard.kind == Kind.DATA:
                    self._data(heard)
                else:
                    self._other(heard)
        except (ProtocolError, HPACKError) as error:
            self._give_up(f"protocol error: {error}")

    def _data(self, heard: wire.Frame) -> None:
        if heard.stream != STREAM:
            raise ProtocolError(f"data on stream {heard.stream}")
        self._unacknowledged_bytes += len(heard.payload)
        if self._unacknowledged_bytes >= ACKNOWLEDGED_BYTES:
            self._write(
                wire.window_update(0, self._unacknowledged_bytes)
                + wire.window_update(STREAM, self._unacknowledged_bytes)
            )
            self._unacknowledged_bytes = 0
        for message in self._messages.feed(wire.unpadded(heard) if heard.flags else heard.payload):
            self._listener.heard(message)
        if heard.flags & wire.END_STREAM:
            self._lose("ended without a status")

    def _other(self, heard: wire.Frame) -> None:
        payload = heard.payload
        match heard.kind:
            case Kind.WINDOW_UPDATE:
                more_bytes = int.from_bytes(payload, "big") & 0x7FFF_FFFF
                if heard.stream == 0:
                    self._connection_window_bytes += more_bytes
                else:
                    self._stream_window_bytes += more_bytes
                self._send()
            case Kind.SETTINGS if not heard.flags & wire.ACK:
                self._settings(payload)
            case Kind.PING if not heard.flags & wire.ACK:
                self._write(wire.frame(Kind.PING, wire.ACK, 0, payload))
            case Kind.HEADERS:
                self._headers_end_stream = bool(heard.flags & wire.END_STREAM)
                self._header_part(wire.unpadded(heard), whole=bool(heard.flags & wire.END_HEADERS))
            case Kind.CONTINUATION:
                self._header_part(payload, whole=bool(heard.flags & wire.END_HEADERS))
            case Kind.RST_STREAM:
                self._lose(f"RST_STREAM: {wire.error_name(int.from_bytes(payload, 'big'))}")
            case Kind.GOAWAY:
                self._goaway(payload)
            case _:
                pass  # Acknowledgements, and kinds that HTTP/2 wants ignored.

    def _settings(self, payload: bytes) -> None:
        for start in range(0, len(payload), 6):
            key = int.from_bytes(payload[start : start + 2], "big")
            if key == Setting.INITIAL_WINDOW_SIZE:
                value = int.from_bytes(payload[start + 2 : start + 6], "big")
                # It holds for open streams as well.
                self._stream_window_bytes += value - self._initial_window_bytes
                self._initial_window_bytes = value
        self._write(wire.frame(Kind.SETTINGS, wire.ACK, 0, b""))
        self._send()

    def _header_part(self, part: bytes, *, whole: bool) -> None:
        self._header_bytes += len(part)
        if self._header_bytes > HEADERS_BYTES_MAX:
            raise ProtocolError(f"more than {HEADERS_BYTES_MAX} bytes of headers")
        if self._header_block_open:
            self._header_blocks[-1] += part
        else:
            self._header_blocks.append(part)
        self._header_block_open = not whole
        if whole and self._headers_end_stream:
            self._ended()

    def _ended(self) -> None:
        """Reads headers and trailers, or headers alone, which are a refusal. Before the end they
        are of no use, and decoding them costs a host as much as some replies."""
        decoder = Decoder()
        headers: dict[str, str] = {}
        for block in self._header_blocks:
            headers |= {str(name): str(value) for name, value in decoder.decode(block)}
        code = headers.get("grpc-status")
        if code is None:
            self._lose(f"ended without a status, HTTP status {headers.get(':status')}")
        elif code == "0":
            cut = "" if self._messages.between else " within a message"
            self._lose("ended by the scheduler" + cut)
        else:
            details = unquote(headers.get("grpc-message", ""))
            self._lose(f"{_CODES.get(code, f'status {code}')}: {details}")

    def _goaway(self, payload: bytes) -> None:
        last_stream = int.from_bytes(payload[:4], "big") & 0x7FFF_FFFF
        code = int.from_bytes(payload[4:8], "big")
        detail = payload[8:].decode("utf-8", "replace")
        self._goodbye = f"GOAWAY: {wire.error_name(code)}" + (f": {detail}" if detail else "")
        # A scheduler that stops says it so, and ends the stream with a status of its own.
        if code or last_stream < STREAM:
            self._lose(self._goodbye)

    def connection_lost(self, exc: Exception | None) -> None:
        """Whoever ended it."""
        self._gone.set()
        closed = self._goodbye or "connection closed by the scheduler"
        self._lose(f"connection lost: {exc}" if exc else closed)

    # ------------------------------------------------------------ the end

    def _lose(self, why: str) -> None:
        if not self._over:
            self._over = True
            self._waiting.clear()
            self._listener.lose(why)

    def _give_up(self, why: str) -> None:
        self._lose(why)
        if self._transport is not None:
            # Closing would first wait for the scheduler to read all that was written.
            self._transport.abort()

    async def close(self) -> None:
        """Ends the connection, whether or not the scheduler reads; the stream ends with it."""
        self._over = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
            if self._connecting.cancelled():
                return  # The loop has closed what it was making, and need not say so.
        if self._transport is not None:
            self._transport.abort()
            await self._gone.wait()


def connect(address: str, listener: Listener) -> Http2Stream:
    """A stream to an address like 127.0.0.1:4000. Raises UsageError if it is none."""
    endpoint = parse_endpoint(address)
    stream = Http2Stream(address, listener)
    stream.connect(endpoint.host, endpoint.port)
    return stream
