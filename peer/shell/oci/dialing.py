"""A TCP connection to the first address of a name that answers, without an event loop.

The addresses of both families take turns, and the next one is tried as soon as one has failed or
has been silent for a moment (RFC 8305): a broken IPv6 costs a quarter of a second, not a timeout.
Resolves names; how long that takes is the system's business.
"""

import select
import socket
import time
from collections.abc import Sequence
from typing import Any, Final

STAGGER_S: Final = 0.25
"""After which the next address is tried beside the one that is silent."""

Place = tuple[int, int, int, str, Any]
"""As `socket.getaddrinfo` has it."""


def dial(host: str, port: int, end_s: float) -> socket.socket:
    """A connection, made by `end_s` (`time.monotonic()`). Raises TimeoutError after that, and
    OSError: `socket.gaierror` for a name that is not known, else what the first address said."""
    # As bytes: for text Python loads all of Unicode's rules for names, whatever its letters.
    name = host.encode("ascii" if host.isascii() else "idna")
    found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return _first(by_turns(found), end_s)


def by_turns(places: Sequence[Place]) -> list[Place]:
    """The families alternately, in each the system's order; the family that it prefers first."""
    first = [place for place in places if place[0] == places[0][0]]
    second = [place for place in places if place[0] != places[0][0]]
    mixed: list[Place] = []
    for at in range(max(len(first), len(second))):
        mixed += [*first[at : at + 1], *second[at : at + 1]]
    return mixed


def _first(places: list[Place], end_s: float) -> socket.socket:
    trying: dict[int, socket.socket] = {}
    waiting = places[::-1]
    poll = select.poll()
    problem: OSError | None = None
    try:
        while waiting or trying:
            if waiting:
                try:
                    link = _begin(waiting.pop())
                except OSError as error:
                    problem = problem or error
                    continue
                trying[link.fileno()] = link
                poll.register(link, select.POLLOUT)
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            for descriptor, _ in poll.poll(1000 * (min(left_s, STAGGER_S) if waiting else left_s)):
                poll.unregister(descriptor)
                link = trying.pop(descriptor)
                code = link.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if not code:
                    return link
                link.close()
                problem = problem or OSError(code, "")
    finally:
        for link in trying.values():
            link.close()
    raise problem or OSError("no address")


def _begin(place: Place) -> socket.socket:
    """Begins to connect; raises OSError where the system refuses at once."""
    family, kind, protocol, _, address = place
    link = socket.socket(family, kind, protocol)
    try:
        link.settimeout(0)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.connect(address)
    except BlockingIOError:
        pass  # Under way.
    except BaseException:
        link.close()
        raise
    return link
