"""What a host of the service benchmark needs of a control stream, whatever carries it.

Two things do. `http2` speaks no more HTTP/2 than one stream of gRPC needs: hosts share the machine
with the scheduler that they measure, so what they cost is missing there and found in its numbers.
`grpc` is what real hosts have, and shows whether the light ones flatter. The scheduler's end is
real gRPC for both.
"""

from collections.abc import Callable
from typing import Final, Protocol

KINDS: Final = ("http2", "grpc")
"""By name. Here and not beside what makes them: who only offers the choice loads neither."""


class Listener(Protocol):
    """Who is told what a stream brings."""

    def heard(self, batch: bytes) -> None:
        """One batch of the scheduler."""

    def lose(self, why: str) -> None:
        """The stream is over; the first word counts."""


class Stream(Protocol):
    """One connection with one control stream, from `connect` on: what is said before the
    connection stands waits for it."""

    def say(self, batch: bytes) -> None:
        """Sends a batch as soon as it can be sent. Loses the stream if more waits than is
        allowed; does nothing once it is lost."""

    async def close(self) -> None:
        """Ends stream and connection; its listener hears no more. Safe to call twice."""


Connect = Callable[[str, Listener], Stream]
"""What opens streams of a kind: takes an address and a listener, returns at once. Only in a running
loop."""
