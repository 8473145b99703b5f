"""Which addresses are told to other hosts."""

import socket

import pytest

from peer.shell.addresses import addresses_to_tell, ips_to_tell, local_ip_towards
from shoal.wire.control import Address
from shoal.wire.errors import UsageError

ROUTES = {
    "10.0.0.1": "10.0.0.7",
    "10.9.0.1": "10.9.0.7",
    "127.0.0.1": "127.0.0.1",
    "fd00::1": "fd00::7",
    "fe80::1": "fe80::7",
}


def local_ip(family: int, target: tuple[object, ...]) -> str | None:
    assert (family == socket.AF_INET6) == (":" in str(target[0]))
    return ROUTES.get(str(target[0]))


async def told(listen_ip: str, *schedulers: str) -> tuple[str, ...] | None:
    return await ips_to_tell(listen_ip, schedulers, local_ip=local_ip)


@pytest.mark.parametrize("ip", ["127.0.0.1", "10.0.0.7", "fd00::7", "localhost"])
async def test_an_address_stands_for_itself(ip: str) -> None:
    assert await told(ip, "10.9.0.1:4001") is None


async def test_all_addresses_are_those_that_lead_to_schedulers() -> None:
    assert await told("0.0.0.0", "10.0.0.1:4001") == ("10.0.0.7",)
    assert await told("0.0.0.0", "127.0.0.1:1", "10.0.0.1:1", "10.9.0.1:1", "10.0.0.1:2") == (
        "10.0.0.7",
        "10.9.0.7",
    )
    assert await told("::", "[fd00::1]:4001", "10.0.0.1:4001") == ("fd00::7",)


@pytest.mark.parametrize(
    ("ip", "scheduler"),
    [
        ("0.0.0.0", "127.0.0.1:4001"),
        ("0.0.0.0", "10.77.0.1:4001"),
        ("0.0.0.0", "[fd00::1]:4001"),
        ("::", "[fe80::1]:4001"),
        ("::", "10.0.0.1:4001"),
    ],
)
async def test_an_address_that_nobody_reaches_is_never_told(ip: str, scheduler: str) -> None:
    with pytest.raises(UsageError, match=r"set piece\.advertise"):
        await told(ip, scheduler)


async def test_without_a_scheduler_nobody_is_told() -> None:
    assert await told("0.0.0.0") == ()


def test_ports() -> None:
    listening = (Address("0.0.0.0", 4000), Address("::1", 5))
    assert addresses_to_tell((), listening, (("10.0.0.7", "10.9.0.7"), None)) == (
        Address("10.0.0.7", 4000),
        Address("10.9.0.7", 4000),
        Address("::1", 5),
    )
    advertise = (Address("192.0.2.1", 0), Address("192.0.2.2", 9))
    assert addresses_to_tell(advertise, listening, ((), ())) == (
        Address("192.0.2.1", 4000),
        Address("192.0.2.2", 9),
    )


def test_the_way_to_this_machine_is_loopback() -> None:
    assert local_ip_towards(socket.AF_INET, ("127.0.0.1", 9)) == "127.0.0.1"
