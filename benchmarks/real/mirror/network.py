"""A network of two namespaces and one link between them whose rate is held in both directions.

The near side is the namespace that this process was started in by `unshare --net`, the far side is
one that a child process holds. Needs root; touches nothing outside of the two. What it made goes
with the processes that are in it.
"""

import os
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from shoal.wire.errors import ShoalError

NEAR_ADDRESS: Final = "192.0.2.1"
FAR_ADDRESS: Final = "192.0.2.2"
"""Of the block for documentation (RFC 5737): no host has them."""

_NEAR: Final = "near"
_FAR: Final = "far"
BURST_BYTES: Final = 256 * 1024
"""More than the longest packet that a host hands to its interface at once."""
LATENCY_MS: Final = 20
"""The longest that a packet waits in the shaper's queue: what a switch's buffers hold."""
COMMAND_S: Final = 10.0
HOLDER_S: Final = 5.0


def run(*command: str) -> None:
    """Raises ShoalError with what the program said if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ShoalError(f"{command[0]}: {error}") from None
    if done.returncode != 0:
        raise ShoalError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")


def wake_loopback() -> None:
    """A new namespace has its loopback down."""
    run("ip", "link", "set", "lo", "up")


class Link:
    """The far namespace and the link to it. A context manager."""

    def __init__(self) -> None:
        self._holder: subprocess.Popen[bytes] | None = None

    @property
    def enter(self) -> tuple[str, ...]:
        """What a command begins with that is to run on the far side."""
        assert self._holder is not None, "not started"
        return ("nsenter", f"--net=/proc/{self._holder.pid}/ns/net", "--")

    def __enter__(self) -> Self:
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--", "sleep", "infinity"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._wait_apart()
            self._connect(self._holder.pid)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _wait_apart(self) -> None:
        assert self._holder is not None
        own = os.readlink("/proc/self/ns/net")
        end = time.monotonic() + HOLDER_S
        while True:
            if self._holder.poll() is not None or time.monotonic() > end:
                raise ShoalError("a network namespace could not be made: run as root, with unshare")
            if os.readlink(f"/proc/{self._holder.pid}/ns/net") != own:
                return
            time.sleep(0.01)

    def _connect(self, pid: int) -> None:
        run("ip", "link", "add", _NEAR, "type", "veth", "peer", "name", _FAR, "netns", str(pid))
        run("ip", "address", "add", f"{NEAR_ADDRESS}/30", "dev", _NEAR)
        run("ip", "link", "set", _NEAR, "up")
        run(*self.enter, "ip", "link", "set", "lo", "up")
        run(*self.enter, "ip", "address", "add", f"{FAR_ADDRESS}/30", "dev", _FAR)
        run(*self.enter, "ip", "link", "set", _FAR, "up")

    def shape(self, rate_bits_s: int) -> None:
        """Holds both directions at a rate from now on."""
        shaper = (
            *("root", "tbf", "rate", f"{rate_bits_s}bit"),
            *("burst", str(BURST_BYTES), "latency", f"{LATENCY_MS}ms"),
        )
        run("tc", "qdisc", "replace", "dev", _NEAR, *shaper)
        run(*self.enter, "tc", "qdisc", "replace", "dev", _FAR, *shaper)

    def received_bytes(self) -> int:
        """What came over the link to the near side so far, headers of packets included."""
        return int(Path(f"/sys/class/net/{_NEAR}/statistics/rx_bytes").read_text())

    def close(self) -> None:
        """Ends the process that holds the namespace. Safe to call twice."""
        holder, self._holder = self._holder, None
        if holder is not None:
            holder.kill()
            holder.wait()
