"""Where no redirect may lead."""

import ipaddress
import socket

import pytest

from peer.shell.origin.internal import InternalAddressError, InternalHosts, is_internal
from shoal.wire.errors import UsageError

INTERNAL = (
    "127.0.0.1",
    "127.8.9.10",
    "10.0.0.5",
    "172.31.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "fe80::1",
    "fd00:ec2::254",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::10.0.0.5",
    "64:ff9b::10.0.0.5",
    "64:ff9b:1::7f00:1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
)
PUBLIC = (
    "1.1.1.1",
    "172.32.0.1",
    "169.253.0.1",
    "2606:4700::1111",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
)


@pytest.mark.parametrize("address", INTERNAL)
def test_internal_addresses_in_every_form(address: str) -> None:
    assert is_internal(ipaddress.ip_address(address))
    assert not InternalHosts().allows(address)
    with pytest.raises(InternalAddressError):
        InternalHosts().socket_for((socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, 80)))


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address: str) -> None:
    assert not is_internal(ipaddress.ip_address(address))
    assert InternalHosts().allows(address)


def test_what_is_no_address_and_what_has_a_zone() -> None:
    assert not InternalHosts().allows("localhost")
    assert not InternalHosts().allows("fe80::1%eth0")
    assert InternalHosts(["fe80::/10"]).allows("fe80::1%eth0")


def test_listed_networks_and_names() -> None:
    hosts = InternalHosts(["10.1.0.0/16", "[::1]", "minio.lan", "store.lan:9000", "10.2.0.9"])
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "::1", "10.2.0.9"):
        assert hosts.allows(address)
    for address in ("10.2.0.3", "127.0.0.1", "169.254.169.254"):
        assert not hosts.allows(address)
    assert hosts.names("http://minio.lan/a")
    assert hosts.names("https://MINIO.lan.:9000/a")
    assert hosts.names("http://store.lan:9000/a")
    assert not hosts.names("http://store.lan/a")
    assert not hosts.names("http://other.lan/a")
    assert InternalHosts(["store.lan:443"]).names("https://store.lan/a")


@pytest.mark.parametrize(
    "text", ["", "http://minio.lan", "a/b", "user@host", "host:x", "ü.example"]
)
def test_what_is_no_host_is_an_error_at_start(text: str) -> None:
    with pytest.raises(UsageError, match="host"):
        InternalHosts([text])
