"""A connection's bytes: one non-blocking socket, plain or under TLS, behind one interface.

The sockets are owned here and not by an event loop's transport, because payload must go between a
socket and a piece's buffer, or a file and a socket, without passing through Python objects. Decides
nothing: no framing, no waiting.
"""

import errno
import os
import socket
import ssl
from typing import Final, Protocol

from shoal.runtime.net import why
from shoal.runtime.tls import common_name
from shoal.wire.errors import Reason, ShoalError
from shoal.wire.limits import KIB

STAGED_BYTES: Final = 128 * KIB
"""TLS reads so much of a file at once: eight of its records."""

_FILE_ERRORS: Final = frozenset({errno.EIO, errno.EBADF, errno.EINVAL, errno.ESTALE, errno.EISDIR})


class StreamLost(ShoalError):
    """The connection cannot be used any more; `reason` and text tell why."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class FileUnreadable(ShoalError):
    """The file that was to be sent does not give its bytes."""


class Stream(Protocol):
    """Every method returns at once. "Would block" is None or 0; all else that fails raises
    StreamLost."""

    short_read_is_last: bool
    """Whether fewer bytes than asked for mean that there are no more for now."""
    read_wants_write: bool
    """TLS alone: reading goes on only when the socket can be written."""
    write_wants_read: bool
    """TLS alone: writing goes on only when the socket can be read."""

    def fileno(self) -> int:
        """The socket's descriptor."""
        ...

    def handshake(self) -> bool:
        """Goes on with the handshake; True when it is done. Plain: always."""
        ...

    def peer_name(self) -> str | None:
        """The host id that the other side's certificate proved; None if it showed none."""
        ...

    def receive_into(self, target: memoryview) -> int | None:
        """Bytes received; None for would block. The end of the stream raises StreamLost."""
        ...

    def pending(self) -> bool:
        """Whether bytes wait in here, of which the socket's readiness tells nothing."""
        ...

    def send(self, data: memoryview, *, more: bool) -> int:
        """Bytes sent, 0 for would block. After 0 the same data must come again. `more`: payload
        follows at once, so a short packet need not leave now."""
        ...

    def send_file(self, fd: int, offset_bytes: int, count: int) -> int:
        """Bytes of the file sent, 0 for would block. After 0 or a part the next call must go on
        there. Raises FileUnreadable."""
        ...

    def close(self) -> None:
        """Closes the socket."""
        ...


def lost(error: OSError) -> StreamLost:
    """What an error of a socket means for its connection."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return StreamLost(Reason.UNAUTHORIZED, f"TLS: {error.verify_message}")
    if isinstance(error, ssl.SSLError):
        return StreamLost(Reason.PEER_LOST, f"TLS: {error.reason or error.strerror or 'failed'}")
    return StreamLost(Reason.PEER_LOST, why(error))


def ended() -> StreamLost:
    """The other side closed the connection."""
    return StreamLost(Reason.PEER_LOST, "closed by the other side")


class PlainStream:
    """Plaintext TCP: `recv_into` and `sendfile`."""

    short_read_is_last = True
    read_wants_write = False
    write_wants_read = False

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._fd = connected.fileno()

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._fd

    def handshake(self) -> bool:
        """There is none."""
        return True

    def peer_name(self) -> str | None:
        """Nothing is proved."""
        return None

    def receive_into(self, target: memoryview) -> int | None:
        """See `Stream`."""
        try:
            count = self._socket.recv_into(target)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            raise lost(error) from error
        if not count:
            raise ended()
        return count

    def pending(self) -> bool:
        """Nothing is kept here."""
        return False

    def send(self, data: memoryview, *, more: bool) -> int:
        """See `Stream`."""
        try:
            return self._socket.send(data, socket.MSG_MORE if more else 0)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            raise lost(error) from error

    def send_file(self, fd: int, offset_bytes: int, count: int) -> int:
        """See `Stream`. Straight from the page cache."""
        try:
            sent = os.sendfile(self._fd, fd, offset_bytes, count)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            if error.errno in _FILE_ERRORS:
                raise FileUnreadable(why(error)) from error
            raise lost(error) from error
        if not sent:
            raise FileUnreadable("the file is shorter than the content")
        return sent

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()


class TlsStream:
    """TLS over TCP. Files go through one staging buffer, because Python 3.11's TLS has no
    `sendfile`."""

    short_read_is_last = False  # One read gives one record at most.

    def __init__(
        self, connected: socket.socket, context: ssl.SSLContext, *, server_side: bool
    ) -> None:
        self._socket = context.wrap_socket(
            connected, server_side=server_side, do_handshake_on_connect=False
        )
        self._fd = self._socket.fileno()
        self.read_wants_write = False
        self.write_wants_read = False
        self._staging: bytearray | None = None
        # What TLS refused to take must be offered again unchanged (SSL_write(3)).
        self._staged = memoryview(b"")

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._fd

    def handshake(self) -> bool:
        """See `Stream`."""
        self.read_wants_write = False
        try:
            self._socket.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLWantWriteError:
            self.read_wants_write = True
            return False
        except OSError as error:
            raise lost(error) from error
        return True

    def peer_name(self) -> str | None:
        """The certificate's common name."""
        return common_name(self._socket) if self._socket.getpeercert() else None

    def receive_into(self, target: memoryview) -> int | None:
        """See `Stream`."""
        self.read_wants_write = False
        try:
            count = self._socket.recv_into(target)
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLWantWriteError:
            self.read_wants_write = True
            return None
        except OSError as error:
            raise lost(error) from error
        if not count:
            raise ended()
        return count

    def pending(self) -> bool:
        """Whether a record was decrypted and not yet read."""
        return self._socket.pending() > 0

    def send(self, data: memoryview, *, more: bool) -> int:
        """See `Stream`. `more` means nothing here."""
        self.write_wants_read = False
        try:
            return self._socket.send(data)
        except ssl.SSLWantWriteError:
            return 0
        except ssl.SSLWantReadError:
            self.write_wants_read = True
            return 0
        except OSError as error:
            raise lost(error) from error

    def send_file(self, fd: int, offset_bytes: int, count: int) -> int:
        """See `Stream`. Sends what it staged before even if that is more than `count`."""
        if not self._staged:
            self._stage(fd, offset_bytes, count)
        sent = self.send(self._staged, more=False)
        self._staged = self._staged[sent:]
        return sent

    def _stage(self, fd: int, offset_bytes: int, count: int) -> None:
        if self._staging is None:
            self._staging = bytearray(STAGED_BYTES)
        target = memoryview(self._staging)[: min(count, STAGED_BYTES)]
        try:
            got = os.preadv(fd, [target], offset_bytes)
        except OSError as error:
            raise FileUnreadable(why(error)) from error
        if not got:
            raise FileUnreadable("the file is shorter than the content")
        self._staged = target[:got]

    def close(self) -> None:
        """Closes the socket; without a farewell, because frames say all that is to be said."""
        self._socket.close()
