"""The local API's server: HTTP/1.1 with JSON on a Unix socket, from start to close.

Owns the socket and the routes; what they do is in `peer.shell.api_routes`. Never touches the
engine or the store: it knows `Downloads` only.
"""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

from aiohttp import web

from peer.shell.api_routes import ApiRoutes
from peer.shell.api_socket import listening_socket, peer_uid, remove_socket
from peer.shell.api_types import Downloads
from shoal.runtime.clock import Clock
from shoal.runtime.tasks import Offload

REQUEST_BODY_BYTES_MAX: Final = 64 * 1024 * 1024
"""A collection of the largest legal size with signed URLs and tokens in every header."""

CLOSE_GRACE_S: Final = 5.0
"""How long requests that still run may take to end when the API closes."""


class LocalApi:
    """The API of one daemon. `start()` listens, `close()` ends every request and removes the
    socket. `socket_group` opens the socket (0660) and its directory to a group."""

    def __init__(
        self,
        downloads: Downloads,
        socket_path: Path,
        *,
        offload: Offload,
        clock: Clock,
        socket_mode: int | None = None,
        socket_group: str | None = None,
        identify: Callable[[int], int] = peer_uid,
    ) -> None:
        self._path = socket_path
        self._mode = socket_mode if socket_mode is not None else 0o660 if socket_group else 0o600
        self._group = socket_group
        routes = ApiRoutes(
            downloads, offload=offload, clock=clock, daemon_uid=os.getuid(), identify=identify
        )
        application = web.Application(
            client_max_size=REQUEST_BODY_BYTES_MAX, middlewares=[routes.errors_to_json]
        )
        application.add_routes(routes.table())
        self._runner = web.AppRunner(
            application,
            access_log=None,
            handle_signals=False,
            # A client that closes its connection cancels what it asked for.
            handler_cancellation=True,
            shutdown_timeout=CLOSE_GRACE_S,
        )
        self._socket: socket.socket | None = None
        self._inode = 0

    @property
    def socket_path(self) -> Path:
        """Where it listens."""
        return self._path

    async def start(self) -> None:
        """Listens. Raises UsageError if the socket cannot be made or another daemon has it."""
        assert self._socket is None, "started twice"
        self._socket = listening_socket(self._path, mode=self._mode, group=self._group)
        self._inode = self._path.lstat().st_ino
        await self._runner.setup()
        await web.SockSite(self._runner, self._socket).start()

    async def close(self) -> None:
        """Takes no new connections, gives running requests a moment, then cancels them. Safe to
        call twice, and before `start()`."""
        if self._socket is None:
            return
        listener, self._socket = self._socket, None
        remove_socket(self._path, self._inode)
        await self._runner.cleanup()
        listener.close()
