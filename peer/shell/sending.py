"""Stored bytes to a client's plain connection, from the page cache to the socket (sendfile).

Beside the transport that owns the connection, and only while that has nothing of its own to send.
Takes no memory per client, and waits while a client does not read. Decides nothing about what may
be sent.
"""

import asyncio
import contextlib
import os
from typing import Final

from peer.shell.errors import DownloadError
from peer.shell.store.content import ContentStore
from peer.shell.store.errors import StoreError
from shoal.runtime.tasks import Offload
from shoal.wire.errors import Reason
from shoal.wire.ids import TaskId
from shoal.wire.limits import MIB

TURN_BYTES: Final = 2 * MIB
"""Sent in one call of a thread at most: many clients take turns."""

STALL_TIMEOUT_S: Final = 300.0
"""A client that takes nothing for so long is given up. It may be unpacking meanwhile."""


def can_send(transport: asyncio.Transport | None) -> bool:
    """Whether a connection takes bytes as they are: it is open, and not TLS."""
    return (
        transport is not None
        and not transport.is_closing()
        and transport.get_extra_info("sslcontext") is None
        and transport.get_extra_info("socket") is not None
    )


class FileSender:
    """One answer's body on the connection of `transport`, for which `can_send` holds. To be closed
    when the body is over; the connection stays its owner's."""

    def __init__(self, transport: asyncio.Transport, store: ContentStore, offload: Offload) -> None:
        self._transport = transport
        self._store = store
        self._offload = offload
        # A number of its own: loops let nobody else watch the number that a transport watches, and
        # it stays valid for a thread that still sends when the transport is gone.
        self._fd = os.dup(transport.get_extra_info("socket").fileno())
        self._working: asyncio.Future[int] | None = None

    async def send(self, task_id: TaskId, position: int, up_to: int) -> None:
        """Sends bytes of a content that may be sent. Raises DownloadError where the store does not
        give them, and ConnectionError where the client is gone or takes nothing for long."""
        await self._settle()
        while position < up_to:
            count = min(TURN_BYTES, up_to - position)
            self._working = asyncio.ensure_future(
                self._offload(self._send_some, task_id, position, count)
            )
            # A thread cannot be stopped: what it uses is closed when it has ended.
            sent = await asyncio.shield(self._working)
            position += sent
            if sent < count:
                await self._writable()

    async def _settle(self) -> None:
        """Waits until the transport has sent what was written to it before."""
        while self._transport.get_write_buffer_size():
            await self._writable()
            await asyncio.sleep(0)

    async def _writable(self) -> None:
        if self._transport.is_closing():
            raise ConnectionResetError("the client is gone")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        loop.add_writer(self._fd, _wake, future)
        try:
            async with asyncio.timeout(STALL_TIMEOUT_S):
                await future
        except TimeoutError:
            raise ConnectionAbortedError(f"took nothing for {STALL_TIMEOUT_S:.0f} s") from None
        finally:
            loop.remove_writer(self._fd)

    def _send_some(self, task_id: TaskId, position: int, count: int) -> int:
        """In a thread: until so much is sent or the socket is full."""
        sent = 0
        try:
            with self._store.lend(task_id) as lent, contextlib.suppress(BlockingIOError):
                while sent < count:
                    part = os.sendfile(self._fd, lent.fd, position + sent, count - sent)
                    if not part:
                        raise DownloadError(
                            Reason.DISK_FAILED, "the stored file is shorter than its content"
                        )
                    sent += part
        except StoreError as error:
            raise DownloadError(error.reason, error.detail) from error
        except ConnectionError:
            raise
        except OSError as error:
            raise DownloadError(Reason.DISK_FAILED, f"sending: {error.strerror}") from error
        return sent

    def close(self) -> None:
        """Gives up what it used, once nothing is being sent. Safe to call twice."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        working = self._working
        if working is None:
            os.close(fd)
        elif working.done():
            _end(working, fd)
        else:
            working.add_done_callback(lambda done: _end(done, fd))


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _end(done: asyncio.Future[int], fd: int) -> None:
    # Nobody waits for it any more: its client is gone, and so may be its outcome.
    if not done.cancelled():
        done.exception()
    os.close(fd)
