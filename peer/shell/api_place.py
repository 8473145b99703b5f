"""Where the local API listens by default: the one rule that daemon and commands share.

Imports next to nothing, because a command that only talks to the daemon pays for every import.
Looks at no file.
"""

from collections.abc import Mapping

SYSTEM_SOCKET = "/run/shoal/peer.sock"
"""The machine's own daemon, run by root or by the service manager."""

SOCKET_VARIABLE = "SHOAL_PEER_API_SOCKET"
"""The daemon's option `api.socket` in the environment."""


def default_socket(environment: Mapping[str, str], uid: int) -> str:
    """Where a daemon of this user listens unless it was told otherwise: root has the machine's
    place, everybody else a private one of their session."""
    if uid == 0:
        return SYSTEM_SOCKET
    if runtime_directory := environment.get("XDG_RUNTIME_DIR"):
        return f"{runtime_directory}/shoal/peer.sock"
    return f"/tmp/shoal-{uid}/peer.sock"


def sockets_to_try(environment: Mapping[str, str], uid: int) -> tuple[str, ...]:
    """Where a command looks for a daemon when it was not told: the place in the environment
    alone, else the user's own daemon, then the machine's."""
    if told := environment.get(SOCKET_VARIABLE):
        return (told,)
    own = default_socket(environment, uid)
    return (own,) if own == SYSTEM_SOCKET else (own, SYSTEM_SOCKET)
