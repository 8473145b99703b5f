"""Hosts with links of their own on one machine: a network namespace each, joined by a bridge.

Every limited link is a veth pair with a token bucket at both ends, so what a host sends and what it
receives are limited apart, as on a full-duplex port. Needs root. Everything is in namespaces of its
own, named after this process; nothing of the machine's network is touched, and all of it is
removed at the end.
"""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from shoal.wire.errors import ShoalError

PREFIX: Final = "shoal-bench"
SUBNET: Final = "10.99.0"
HOSTS_MAX: Final = 200
COMMAND_TIMEOUT_S: Final = 20.0

BURST_S: Final = 0.02
"""Of the token bucket, as time at the full rate: how late the kernel may come to send what is due,
on a machine that is busy or shared, without taking capacity from the link. Once per link it is a
gift: of 0.02 s."""
BURST_BYTES_MIN: Final = 64 * 1024
"""One packet of segmentation offload has to fit."""
QUEUE_S: Final = 0.04
"""How long a packet may wait for its turn: a switch's buffer, and no more."""
QUEUE_BYTES_MIN: Final = 512 * 1024
"""Slow links would otherwise drop what several hosts send at once, a segment of 64 KiB each."""

_NAMESPACES: Final = Path("/run/netns")
"""Where ip-netns(8) keeps them."""
_OWN_NAMESPACE: Final = Path("/proc/thread-self/ns/net")
_BRIDGE_RULES: Final = tuple(
    Path(f"/proc/sys/net/bridge/bridge-nf-call-{table}") for table in ("iptables", "ip6tables")
)
"""Whether a switch hands each packet to the machine's firewall: that is not a host's CPU time."""
_CLONE_NEWNET: Final = 0x40000000
"""setns(2)."""


class Network:
    """Namespaces and links. A context manager; `add` only inside of it."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._hosts: dict[str, str] = {}
        self._switch = self._namespace("switch")

    def __enter__(self) -> Self:
        check_possible()
        _remove_left_over()
        try:
            self._make(self._switch)
            _run("ip", "-n", self._switch, "link", "add", "bridge", "type", "bridge")
            _run("ip", "-n", self._switch, "link", "set", "bridge", "up")
            with self.inside("switch"):
                for rules in _BRIDGE_RULES:
                    # They are there if the machine has br_netfilter loaded, for each namespace.
                    if rules.exists():
                        rules.write_text("0")
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def add(self, name: str, rate_bytes_s: int) -> str:
        """A host whose link carries so much each way (0: no limit); its address."""
        assert name not in self._hosts, f"two hosts named {name}"
        assert len(self._hosts) < HOSTS_MAX, "a subnet has so many addresses"
        address = f"{SUBNET}.{len(self._hosts) + 1}"
        inside = self._namespace(name)
        port = f"port{len(self._hosts)}"
        self._hosts[name] = address
        self._make(inside)
        _run("ip", "-n", inside, "link", "set", "lo", "up")
        _run(
            "ip", "-n", inside, "link", "add", "eth0", "type", "veth",
            "peer", "name", port, "netns", self._switch,
        )  # fmt: skip
        _run("ip", "-n", inside, "address", "add", f"{address}/24", "dev", "eth0")
        _run("ip", "-n", inside, "link", "set", "eth0", "up")
        _run("ip", "-n", self._switch, "link", "set", port, "master", "bridge", "up")
        if rate_bytes_s:
            _shape(inside, "eth0", rate_bytes_s)
            _shape(self._switch, port, rate_bytes_s)
        return address

    def address_of(self, name: str) -> str:
        """The IPv4 address of a host."""
        return self._hosts[name]

    def command(self, name: str) -> tuple[str, ...]:
        """What to write before a command that is to run on a host."""
        return ("ip", "netns", "exec", self._namespace(name))

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """This thread, and the threads and processes that it starts, are on a host for the time of
        the block. Sockets stay where they were opened."""
        with _OWN_NAMESPACE.open("rb") as before:
            with (_NAMESPACES / self._namespace(name)).open("rb") as host:
                _enter(host.fileno())
            try:
                yield
            finally:
                _enter(before.fileno())

    def sent_bytes(self, name: str) -> int:
        """What the host has sent over its link so far, headers and all."""
        told = _run(*self.command(name), "cat", "/sys/class/net/eth0/statistics/tx_bytes")
        return int(told)

    def _namespace(self, name: str) -> str:
        return f"{PREFIX}-{os.getpid()}-{name}"

    def _make(self, namespace: str) -> None:
        _run("ip", "netns", "add", namespace)
        # A namespace takes its devices with it, once nothing runs in it any more.
        self._stack.callback(_run, "ip", "netns", "delete", namespace)


def check_possible() -> None:
    """Raises ShoalError unless this process may make namespaces and links."""
    if os.geteuid() != 0:
        raise ShoalError("network namespaces and shaped links need root: run it with sudo")
    for program in ("ip", "tc"):
        if shutil.which(program) is None:
            raise ShoalError(f"{program} is not installed; on Debian: apt-get install iproute2")


def _shape(namespace: str, device: str, rate_bytes_s: int) -> None:
    burst_bytes = max(BURST_BYTES_MIN, int(rate_bytes_s * BURST_S))
    queue_bytes = max(QUEUE_BYTES_MIN, int(rate_bytes_s * QUEUE_S)) + burst_bytes
    _run(
        "ip", "netns", "exec", namespace, "tc", "qdisc", "add", "dev", device, "root", "tbf",
        "rate", f"{8 * rate_bytes_s}bit", "burst", f"{burst_bytes}b", "limit", f"{queue_bytes}b",
    )  # fmt: skip


def _enter(namespace: int) -> None:
    # `os.setns` is there from Python 3.12 on.
    if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET):
        raise ShoalError(f"a network namespace: {os.strerror(ctypes.get_errno())}")


def _remove_left_over() -> None:
    """What a run left that was killed with SIGKILL."""
    for line in _run("ip", "netns", "list").splitlines():
        name = line.split(maxsplit=1)[0]
        owner = name.removeprefix(f"{PREFIX}-").partition("-")[0]
        if name.startswith(f"{PREFIX}-") and owner.isdigit() and not _runs(int(owner)):
            _run("ip", "netns", "delete", name)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _run(*command: str) -> str:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, check=False, text=True,
        timeout=COMMAND_TIMEOUT_S,
    )  # fmt: skip
    if done.returncode:
        raise ShoalError(f"`{' '.join(command)}` failed: {done.stderr.strip()[:500]}")
    return done.stdout
