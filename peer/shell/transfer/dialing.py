"""Finding a parent: its addresses are raced until one leads to the host that was meant.

An attempt is a TCP connection, the TLS handshake and the hello, because an address may well lead
to another host (private networks reuse addresses). Every step is bounded in time. Decides which
connection wins, and nothing about whom to connect to.
"""

import asyncio
import functools
import ssl
from collections.abc import Callable, Sequence
from typing import Final

from peer.shell.transfer.parent import ParentLink, Surroundings
from peer.shell.transfer.stream import PlainStream, Stream, StreamLost, TlsStream
from shoal.runtime.net import AllFailed, interleave, new_socket, race, show, tune, why
from shoal.wire.control import Address
from shoal.wire.errors import Reason
from shoal.wire.ids import HostId

CONNECT_TIMEOUT_S: Final = 3.0
"""For TCP: a host that did not answer by then is down, or so loaded that it is no use."""

HELLO_TIMEOUT_S: Final = 5.0
"""For the TLS handshake and the hello: a loaded host may need a moment."""


class Dialer:
    """Makes connections to parents. `tls` None: plaintext."""

    def __init__(
        self,
        around: Surroundings,
        tls: ssl.SSLContext | None,
        on_closed: Callable[[ParentLink], None],
    ) -> None:
        self._around = around
        self._tls = tls
        self._on_closed = on_closed

    async def dial(self, host_id: HostId, addresses: Sequence[Address]) -> tuple[ParentLink, int]:
        """A connection on which the host answered, and the round trip to it in nanoseconds.
        Raises StreamLost with the reason that says most."""
        if not addresses:
            raise StreamLost(Reason.PEER_LOST, f"host {host_id!r} has no address")
        attempts = [
            functools.partial(self._attempt, host_id, address) for address in interleave(addresses)
        ]
        try:
            return await race(attempts, _discard)
        except AllFailed as failed:
            reasons = [error.reason for error in failed.errors if isinstance(error, StreamLost)]
            # That somebody answered wrongly says more than that somebody did not answer.
            telling = (reason for reason in reasons if reason is not Reason.PEER_LOST)
            raise StreamLost(next(telling, Reason.PEER_LOST), str(failed)) from failed

    async def _attempt(self, host_id: HostId, address: Address) -> tuple[ParentLink, int]:
        clock = self._around.clock
        began_ns = clock.now_ns()
        stream = await self._connect(address)
        connect_ns = clock.now_ns() - began_ns
        link = ParentLink(host_id, stream, self._around, self._on_closed)
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                await link.greet()
        except TimeoutError:
            raise StreamLost(Reason.PEER_LOST, f"{show(address)}: no hello in time") from None
        except StreamLost as error:
            raise StreamLost(error.reason, f"{show(address)}: {error}") from error
        # Either may be inflated by a busy event loop; the network alone is in both.
        return link, min(connect_ns, link.hello_round_trip_ns)

    async def _connect(self, address: Address) -> Stream:
        try:
            made = new_socket(address)
        except OSError as error:
            raise _unreachable(address, error) from error
        try:
            tune(made)
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._around.loop.sock_connect(made, (address.ip, address.port))
            if self._tls is None:
                return PlainStream(made)
            return TlsStream(made, self._tls, server_side=False)
        except TimeoutError:
            made.close()
            raise StreamLost(
                Reason.PEER_LOST, f"{show(address)}: no connection in {CONNECT_TIMEOUT_S:.0f} s"
            ) from None
        except OSError as error:
            made.close()
            raise _unreachable(address, error) from error
        except BaseException:
            made.close()
            raise


def _unreachable(address: Address, error: OSError) -> StreamLost:
    return StreamLost(Reason.PEER_LOST, f"{show(address)}: {why(error)}")


def _discard(loser: tuple[ParentLink, int]) -> None:
    loser[0].connection.close(Reason.CANCELLED, "another address was quicker")
