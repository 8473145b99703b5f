"""A client of the daemon's local API on nothing but a Unix socket: HTTP/1.1, one request each.

Exists because importing an HTTP library takes several times as long as fetching a small file from
the daemon. Speaks exactly what the local API answers: a length, chunks, or until the end. Decides
nothing.
"""

import json
import os
import socket
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from peer.shell.api_place import sockets_to_try
from shoal.wire.errors import ShoalError

HEAD_BYTES_MAX = 64 * 1024
LINE_BYTES_MAX = 1024 * 1024
ERROR_BODY_BYTES_MAX = 64 * 1024
JSON_BODY_BYTES_MAX = 256 * 1024 * 1024
RECEIVE_BYTES = 256 * 1024
CONNECT_TIMEOUT_S = 5.0

Json = dict[str, Any]


class DaemonError(ShoalError):
    """The daemon refused or broke off. `reason` is `usage` or the value of a `Reason`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail or reason)
        self.reason = reason
        self.detail = detail


class DaemonAbsent(DaemonError):
    """Nobody listens on the socket, or this user may not connect to it."""


def socket_path(endpoint: str | None) -> str:
    """The socket that was named (a path, or `unix://` and a path), else the first of the usual
    places where there is one, else the first of them."""
    if endpoint:
        return endpoint.removeprefix("unix://").removeprefix("unix:")
    places = sockets_to_try(os.environ, os.getuid())
    return next((place for place in places if os.path.exists(place)), places[0])


class LocalClient:
    """Makes requests to the daemon at one socket, each on a connection of its own. `deadline_s`,
    in `time.monotonic()`, bounds every wait; a daemon that hangs ends in DaemonError with the
    reason `timeout`."""

    def __init__(self, path: str | os.PathLike[str], deadline_s: float | None = None) -> None:
        self.path = os.fspath(path)
        self.deadline_s = deadline_s

    def answers(self) -> bool:
        """Whether a daemon listens there and lets this user in."""
        try:
            self._connect().close()
        except DaemonAbsent:
            return False
        return True

    def request(self, method: str, path: str, body: Json | None = None) -> "Response":
        """Sends a request and reads the head of the answer. Raises DaemonAbsent if nobody
        answers, and DaemonError for every status of 400 and above."""
        connection = self._connect()
        try:
            return connection.send(method, path, body)
        except BaseException:
            connection.close()
            raise

    def get_json(self, path: str) -> Json:
        """The object that a GET answers with. Raises DaemonError."""
        with self.request("GET", path) as response:
            return response.json()

    def lines(self, path: str, body: Json) -> Iterator[Json]:
        """Sends a POST and yields the objects of its answer as they arrive. Raises DaemonError.
        Closing the iterator closes the connection, which cancels the request."""
        with self.request("POST", path, body) as response:
            for line in response.lines():
                yield json.loads(line)

    def _connect(self) -> "Connection":
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            link.settimeout(CONNECT_TIMEOUT_S)
            link.connect(self.path)
        except OSError as error:
            link.close()
            why = "it does not answer" if isinstance(error, TimeoutError) else error.strerror
            raise DaemonAbsent("no-daemon", f"no daemon at {self.path}: {why or error}") from None
        return Connection(link, self.deadline_s)


class Connection:
    """One connection to the daemon, for one request."""

    def __init__(self, link: socket.socket, deadline_s: float | None) -> None:
        self._link = link
        self._deadline_s = deadline_s
        self._buffer = b""

    def close(self) -> None:
        """Closes; the daemon cancels what was still running for it."""
        self._link.close()

    def send(self, method: str, path: str, body: Json | None) -> "Response":
        """Sends the one request and reads the head of its answer."""
        payload = b"" if body is None else json.dumps(body).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: shoal\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
        )
        self._set_timeout()
        try:
            self._link.sendall(head.encode() + payload)
        except OSError as error:
            raise DaemonError("failed", f"the daemon broke off: {error}") from None
        status_line, *lines = self._read_until(b"\r\n\r\n", HEAD_BYTES_MAX).split(b"\r\n")
        headers = {}
        for line in lines:
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
        try:
            status = int(status_line.split(b" ", 2)[1])
        except (IndexError, ValueError):
            raise DaemonError("failed", "what answered on the socket is no shoal daemon") from None
        response = Response(self, status, headers, has_body=method != "HEAD" and status != 204)
        if status >= 400:
            raise response.error()
        return response

    def receive(self, count: int) -> bytes:
        """Up to so many bytes; b"" at the end. Raises DaemonError if the link breaks."""
        if self._buffer:
            data, self._buffer = self._buffer[:count], self._buffer[count:]
            return data
        self._set_timeout()
        try:
            return self._link.recv(min(count, RECEIVE_BYTES))
        except TimeoutError:
            raise DaemonError("timeout", "the daemon did not answer in time") from None
        except OSError as error:
            raise DaemonError("failed", f"the daemon broke off: {error.strerror}") from None

    def read_line(self) -> bytes:
        """A line of the HTTP framing, without its end."""
        return self._read_until(b"\r\n", HEAD_BYTES_MAX)

    def _read_until(self, mark: bytes, most_bytes: int) -> bytes:
        gathered = b""
        while mark not in gathered:
            data = self.receive(RECEIVE_BYTES)
            if not data:
                raise DaemonError("failed", "the daemon closed the connection")
            gathered += data
            if len(gathered) > most_bytes and mark not in gathered:
                raise DaemonError("failed", "what answered on the socket is no shoal daemon")
        found, _, rest = gathered.partition(mark)
        self._buffer = rest + self._buffer
        return found

    def _set_timeout(self) -> None:
        if self._deadline_s is not None:
            # Zero would mean "never wait" here.
            self._link.settimeout(max(0.001, self._deadline_s - time.monotonic()))
        else:
            self._link.settimeout(None)


class Response:
    """The answer to one request: status, headers (names in lower case) and a body to read once."""

    def __init__(
        self, connection: Connection, status: int, headers: dict[str, str], *, has_body: bool
    ) -> None:
        self.status = status
        self.headers = headers
        self._connection = connection
        self._has_body = has_body

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()

    def chunks(self) -> Iterator[bytes]:
        """The body in order. Raises DaemonError if it breaks off before its end."""
        if not self._has_body:
            return
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            yield from self._chunked()
        elif "content-length" in self.headers:
            yield from self._exactly(int(self.headers["content-length"]))
        else:
            while data := self._connection.receive(RECEIVE_BYTES):
                yield data

    def lines(self) -> Iterator[bytes]:
        """The body's lines as they arrive, without their ends."""
        rest = b""
        for chunk in self.chunks():
            *whole, rest = (rest + chunk).split(b"\n")
            yield from whole
            if len(rest) > LINE_BYTES_MAX:
                raise DaemonError("failed", "the daemon sent an endless line")
        if rest:
            yield rest

    def json(self, most_bytes: int = JSON_BODY_BYTES_MAX) -> Json:
        """The whole body as a JSON object. Raises DaemonError if it is none."""
        body = b""
        for chunk in self.chunks():
            body += chunk
            if len(body) > most_bytes:
                raise DaemonError("failed", "the daemon's answer is too long")
        try:
            value = json.loads(body)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise DaemonError("failed", "the daemon's answer is no JSON object")
        return value

    def error(self) -> DaemonError:
        """The error in the body of an answer with a status of 400 or above."""
        try:
            error = self.json(ERROR_BODY_BYTES_MAX).get("error")
        except DaemonError:
            error = None
        if isinstance(error, dict):
            return DaemonError(str(error.get("reason")), str(error.get("detail")))
        return DaemonError("failed", f"the daemon answered with HTTP status {self.status}")

    def _exactly(self, count: int) -> Iterator[bytes]:
        while count:
            data = self._connection.receive(count)
            if not data:
                raise DaemonError("failed", f"the daemon broke off {count} bytes before the end")
            count -= len(data)
            yield data

    def _chunked(self) -> Iterator[bytes]:
        while True:
            try:
                count = int(self._connection.read_line().partition(b";")[0], 16)
            except ValueError:
                raise DaemonError("failed", "the daemon's answer is malformed") from None
            if count == 0:
                while self._connection.read_line():
                    pass
                return
            yield from self._exactly(count)
            if self._connection.read_line():
                raise DaemonError("failed", "the daemon's answer is malformed")
