"""Which addresses nobody is sent to by a server: those of this machine, its networks and its cloud.

A user may name any address; a redirect may not, unless the operator lists it. The check is made on
the address of each connection when its socket is made, so that a name which resolves to something
else the second time gets no further. Decides; connects nothing itself.
"""

import ipaddress
import socket
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from shoal.wire.errors import UsageError

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_CLOUD: Final = tuple(ipaddress.ip_network(text) for text in ("168.63.129.16/32", "192.0.0.0/24"))
"""Where clouds answer their machines at addresses that are public by their form."""
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
_NAT64_OWN: Final = ipaddress.ip_network("64:ff9b:1::/48")


class InternalAddressError(OSError):
    """A connection that a redirect asks for leads to an internal address. It has no number, for no
    system call failed."""


class InternalHosts:
    """The internal hosts that a redirect may lead to all the same: addresses, networks as
    10.1.0.0/16, and names, each with or without a port. Raises UsageError."""

    def __init__(self, listed: Iterable[str] = ()) -> None:
        self._networks: list[_Network] = []
        self._names: set[tuple[str, int | None]] = set()
        for text in listed:
            try:
                self._networks.append(ipaddress.ip_network(text.strip("[]"), strict=False))
            except ValueError:
                self._names.add(_name(text))

    def names(self, url: str) -> bool:
        """Whether the host of a URL is listed by name, whatever it resolves to."""
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".")
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
        return (host, None) in self._names or (host, port) in self._names

    def allows(self, address: str) -> bool:
        """Whether a redirect may lead to an address, IPv6 with or without its zone."""
        try:
            found = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        plain = _embedded(found) or found
        if not is_internal(plain):
            return True
        return any(each in network for network in self._networks for each in (found, plain))

    def socket_for(self, place: tuple[int, int, int, str, tuple[object, ...]]) -> socket.socket:
        """A socket to connect to an address with, as aiohttp asks for one. Raises
        InternalAddressError."""
        family, kind, protocol, _, address = place
        if not self.allows(str(address[0])):
            raise InternalAddressError("an internal address")
        return socket.socket(family, kind, protocol)


def is_internal(address: _Address) -> bool:
    """Whether an address is of this machine, a private network, a link, a cloud's own service, or
    nobody's."""
    inner = _embedded(address)
    if inner is not None:
        return is_internal(inner)
    internal = not address.is_global or address.is_multicast
    return internal or any(address in network for network in _CLOUD)


def _embedded(address: _Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 address stands for, in whatever way; None for none."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in _NAT64 or address in _NAT64_OWN:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address.teredo is not None:
        return address.teredo[1]
    if int(address) >> 32 == 0 and int(address) > 1:
        return ipaddress.IPv4Address(int(address))
    return address.ipv4_mapped or address.sixtofour


def _name(text: str) -> tuple[str, int | None]:
    wrong = UsageError(f"{text!r}: write a host, host:port, an address or a network as 10.1.0.0/16")
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise wrong from None
    if not host or text != parts.netloc or "/" in text or "@" in text or not host.isascii():
        raise wrong
    return host.rstrip("."), port
