"""The Unix socket of the local API: how it is made safely, and who is at its end.

Access is by file mode (0600, or 0660 with a group) inside a directory of the daemon's own, and by
the peer credentials that the kernel vouches for. Never decides what a user may do.
"""

import contextlib
import errno
import grp
import os
import socket
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from peer.shell.api_place import default_socket
from shoal.wire.errors import UsageError

SOCKET_PATH_BYTES_MAX: Final = 107
"""`sun_path` of Linux has 108 bytes, one of them for the end."""

LISTEN_BACKLOG: Final = 128


def default_socket_path(environment: Mapping[str, str], uid: int) -> Path:
    """Where a daemon of this user listens unless it was told otherwise."""
    return Path(default_socket(environment, uid))


def listening_socket(path: Path, *, mode: int = 0o600, group: str | None = None) -> socket.socket:
    """A socket that listens at `path`. The directory is made (0700, or 0750 with a group) if it
    is missing; a socket that nobody answers on is replaced. Raises UsageError if somebody does,
    or if the place cannot be used."""
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
        raise UsageError(f"socket path {path}: longer than {SOCKET_PATH_BYTES_MAX} bytes")
    group_id = _group_id(group)
    try:
        _make_directory(path.parent, group_id)
        _remove_stale(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(os.fspath(path))
            # Nobody can connect before listen(), so the mode is right from the first moment.
            os.chmod(path, mode)
            if group_id is not None:
                os.chown(path, -1, group_id)
            listener.listen(LISTEN_BACKLOG)
            listener.settimeout(0)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise UsageError(f"cannot listen on {path}: {error.strerror or error}") from error
    return listener


def remove_socket(path: Path, inode: int) -> None:
    """Removes the socket at `path` if it is still the one with this inode."""
    with contextlib.suppress(FileNotFoundError):
        if path.lstat().st_ino == inode:
            path.unlink()


def peer_uid(descriptor: int) -> int:
    """The user at the other end of a connected Unix socket (SO_PEERCRED)."""
    # A duplicate, because uvloop's own socket objects have no getsockopt.
    with socket.fromfd(descriptor, socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        size = struct.calcsize("3i")
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    _pid, uid, _gid = struct.unpack("3i", credentials)
    return int(uid)


def _group_id(group: str | None) -> int | None:
    if group is None:
        return None
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise UsageError(f"socket group {group!r}: no such group on this machine") from None


def _make_directory(directory: Path, group_id: int | None) -> None:
    try:
        directory.mkdir(mode=0o700 if group_id is None else 0o750)
    except FileExistsError:
        return
    except FileNotFoundError:
        _make_directory(directory.parent, None)
        _make_directory(directory, group_id)
        return
    if group_id is not None:
        os.chown(directory, -1, group_id)


def _remove_stale(path: Path) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise UsageError(f"{path} exists and is not a socket; name another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # Non-blocking: a full backlog (EAGAIN) is a living daemon too.
        probe.settimeout(0)
        outcome = probe.connect_ex(os.fspath(path))
    if outcome == errno.ECONNREFUSED:
        path.unlink()
    elif outcome != errno.ENOENT:
        raise UsageError(f"another daemon already listens on {path}; stop it or name another path")
