"""Which addresses may be connected to on behalf of somebody who is not trusted with all. Pure.

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

_METADATA: Final = frozenset({ipaddress.ip_address("168.63.129.16")})
"""Services of clouds for their own machines that lie at public addresses."""

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
        found = as_address(address)
        if found is None:
            return False
        meant = _meant(found)
        if any(each in network for network in self.networks for each in (found, meant)):
            return True
        return meant.is_global and not meant.is_multicast and meant not in _METADATA

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


def _meant(address: Address) -> Address:
    """The address that packets to this one end at."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    inner = address.ipv4_mapped or address.sixtofour
    if inner is None and address.teredo is not None:
        inner = address.teredo[1]
    if inner is None and any(address in network for network in _TRANSLATED):
        inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return inner if inner is not None else address
