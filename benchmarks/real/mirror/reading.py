"""A plain client: one GET on a connection of its own, timed from before it connects.

Blocking, into one buffer that is used again, so that it is never the slower side.
"""

import hashlib
import socket
import time
from dataclasses import dataclass
from typing import Final

from benchmarks.real.model import OCI_MANIFEST
from shoal.wire.errors import ShoalError

BUFFER_BYTES: Final = 256 * 1024
HEAD_BYTES_MAX: Final = 64 * 1024
TIMEOUT_S: Final = 300.0
"""The longest silence: a crowd on a slow machine has its turns."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One answer read to its end."""

    first_byte_s: float
    """Until the first byte of the body was there."""
    total_s: float
    received_bytes: int
    digest: str
    """`sha256:hex` of the body; "" if it was not asked for."""


def read(address: str, path: str, *, asked_range: str = "", with_digest: bool = False) -> Reading:
    """GET. Raises ShoalError unless the answer is good and as long as it says."""
    host, _, port = address.rpartition(":")
    buffer = memoryview(bytearray(BUFFER_BYTES))
    hasher = hashlib.sha256() if with_digest else None
    request = "\r\n".join(
        (
            f"GET {path} HTTP/1.1",
            f"Host: {address}",
            f"Accept: */*, {OCI_MANIFEST}",
            *((f"Range: {asked_range}",) if asked_range else ()),
            "Connection: close\r\n\r\n",
        )
    )
    began = time.monotonic()
    try:
        with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as connection:
            connection.sendall(request.encode())
            head, body = _head(connection)
            length = _length_of(head, path)
            first = time.monotonic() if body else 0.0
            received = len(body)
            if hasher is not None:
                hasher.update(body)
            while received < length:
                count = connection.recv_into(buffer)
                if not count:
                    raise ShoalError(f"GET {path}: {received} of {length} bytes came")
                first = first or time.monotonic()
                received += count
                if hasher is not None:
                    hasher.update(buffer[:count])
    except OSError as error:
        raise ShoalError(f"GET {path} of {address}: {error}") from error
    ended = time.monotonic()
    digest = f"sha256:{hasher.hexdigest()}" if hasher is not None else ""
    return Reading(first - began, ended - began, received, digest)


def _head(connection: socket.socket) -> tuple[bytes, bytes]:
    """The head of the answer, and what came of the body with it."""
    told = b""
    while b"\r\n\r\n" not in told:
        part = connection.recv(HEAD_BYTES_MAX)
        if not part or len(told) > HEAD_BYTES_MAX:
            raise ShoalError("the answer broke off in its head")
        told += part
    head, _, body = told.partition(b"\r\n\r\n")
    return head, body


def _length_of(head: bytes, path: str) -> int:
    status, *lines = head.decode("latin-1").split("\r\n")
    if status.split(" ")[1] not in ("200", "206"):
        raise ShoalError(f"GET {path}: {status}")
    for line in lines:
        name, _, value = line.partition(":")
        if name.lower() == "content-length":
            return int(value)
    raise ShoalError(f"GET {path}: no Content-Length")
