"""At which IP addresses other hosts reach this one.

Whoever listens on every address (0.0.0.0, ::) still has to name some to other hosts: those that the
machine itself uses towards its schedulers, for that is the network on which hosts know each other.
Decides nothing else.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Sequence
from typing import Any, Final

from shoal.runtime.config_values import Endpoint, parse_endpoint
from shoal.wire.control import Address
from shoal.wire.errors import UsageError
from shoal.wire.limits import ADDRESSES_PER_HOST_MAX

RESOLVE_TIMEOUT_S: Final = 5.0

_SocketAddress = tuple[Any, ...]
"""As the socket module has it for the family."""


async def ips_to_tell(
    listen_ip: str,
    schedulers: tuple[str, ...],
    *,
    local_ip: Callable[[int, _SocketAddress], str | None] | None = None,
) -> tuple[str, ...] | None:
    """The addresses to tell for one that is listened on; None: that one itself. Raises UsageError
    where every address is listened on and none of them leads to a scheduler."""
    if not Endpoint(listen_ip, 0).is_unspecified:
        return None
    family = socket.AF_INET6 if ":" in listen_ip else socket.AF_INET
    found: dict[str, None] = {}
    for scheduler in schedulers:
        for target in await _resolve(scheduler, family):
            ip = (local_ip or local_ip_towards)(family, target)
            if ip is not None and _others_reach(ip):
                found[ip] = None
    if schedulers and not found:
        raise UsageError(
            f"piece.listen = {listen_ip} stands for all addresses of this machine, and which of "
            f"them other hosts reach cannot be told from the way to {', '.join(schedulers)}: set "
            "piece.advertise, or listen on that address alone"
        )
    return tuple(found)[:ADDRESSES_PER_HOST_MAX]


def addresses_to_tell(
    advertise: tuple[Address, ...],
    listening: tuple[Address, ...],
    ips: Sequence[tuple[str, ...] | None],
) -> tuple[Address, ...]:
    """What is advertised, or else each address that is listened on, as its `ips_to_tell` say."""
    if advertise:
        return tuple(Address(each.ip, each.port or listening[0].port) for each in advertise)
    return tuple(
        Address(ip, each.port)
        for each, told in zip(listening, ips, strict=True)
        for ip in ((each.ip,) if told is None else told)
    )


def local_ip_towards(family: int, target: _SocketAddress) -> str | None:
    """Which of its addresses this machine would use to reach another one; None if it has no way
    there. Nothing is sent."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(target)
        except OSError:
            return None
        return str(probe.getsockname()[0])


async def _resolve(scheduler: str, family: int) -> list[_SocketAddress]:
    endpoint = parse_endpoint(scheduler)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(RESOLVE_TIMEOUT_S):
            found = await loop.getaddrinfo(
                endpoint.host, endpoint.port, family=family, type=socket.SOCK_DGRAM
            )
    except (OSError, TimeoutError):
        return []  # A name that is not known (yet), or none of this family.
    return [entry[4] for entry in found]


def _others_reach(ip: str) -> bool:
    address = ipaddress.ip_address(ip.partition("%")[0])
    # A link-local address means another machine on every link.
    return not (address.is_loopback or address.is_unspecified or address.is_link_local)
