"""Which addresses may be connected to on behalf of somebody who is not trusted with all. Pure.

That is a client of the proxy, or a server that redirects: both could name the machine itself, its
networks, or its cloud.

Public addresses are allowed; private, link-local and loopback ones, and those of clouds' metadata
services, only when listed. Resolves no name: that is `peer.shell.origin.resolving`.

Source: IANA's registries of special-purpose addresses, as Python's `ipaddress` has them.
"""

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from shoal.wire.errors import UsageError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_CLOUD: Final = (ipaddress.ip_network("168.63.129.16/32"), ipaddress.ip_network("192.0.0.0/24"))
"""Where clouds answer their machines at addresses that are public by their form."""

_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*", re.IGNORECASE | re.ASCII)

_TRANSLATED: Final = (
    ipaddress.IPv6Network("64:ff9b::/96"),
    ipaddress.IPv6Network("64:ff9b:1::/48"),
)
"""IPv6 addresses that stand for the IPv4 address in their last four bytes (RFC 6052, RFC 8215)."""


@dataclass(frozen=True, slots=True)
class PlaceRules:
    """What may be connected to. `networks`: what is allowed beside public addresses. `exact`:
    an address and a port, allowed to who asks for just that and not to names that lead there."""

    networks: tuple[Network, ...] = ()
    exact: tuple[str, int] | None = None

    def allows(self, address: str) -> bool:
        """Whether a name may lead to an IP address. False for what is no IP address."""
        found = as_address(address.partition("%")[0])
        if found is None:
            return False
        meant = _meant(found)
        if any(each in network for network in self.networks for each in (found, meant)):
            return True
        return not is_internal(meant)

    def allows_host(self, host: str, port: int) -> bool:
        """Whether a host of a URL, without brackets, may be connected to as far as can be told
        before it is resolved: a name may, an address as it is, and nothing that only looks like
        an address, as `127.1` or `0x7f000001`, which systems take for one."""
        if as_address(host) is not None:
            return (host, port) == self.exact or self.allows(host)
        return not _NUMBER.fullmatch(host.removesuffix(".").rpartition(".")[2])


def parse_network(text: str) -> Network:
    """`10.0.0.0/8`, or one address. Raises UsageError."""
    try:
        return ipaddress.ip_network(text.strip())
    except ValueError:
        raise UsageError(
            f"{text!r} is no network: write it as 10.1.0.0/16 or fd00::/8, without host bits"
        ) from None


def as_address(text: str) -> Address | None:
    """The IP address that a text is, without brackets; None for a name."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def is_internal(address: Address) -> bool:
    """Whether an address is of this machine, a private network, a link, a cloud's own service, or
    nobody's."""
    meant = _meant(address)
    internal = not meant.is_global or meant.is_multicast
    return internal or any(meant in network for network in _CLOUD)


def _meant(address: Address) -> Address:
    """The address that packets to this one end at: the IPv4 address that an IPv6 address stands
    for, in whatever way, else itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if any(address in network for network in _TRANSLATED):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address.teredo is not None:
        return address.teredo[1]
    if int(address) >> 32 == 0 and int(address) > 1:
        return ipaddress.IPv4Address(int(address))
    return address.ipv4_mapped or address.sixtofour or address
