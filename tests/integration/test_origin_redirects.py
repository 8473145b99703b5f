"""Where an origin's redirects may lead, over real sockets: to no internal address that nobody
listed, whatever it is called and whatever a name resolved to before.
"""

import socket
from typing import Any

import pytest

from peer.shell.errors import OriginError
from peer.shell.origin.internal import InternalHosts
from peer.shell.origin.request import OriginRequest
from shoal.wire.errors import Reason
from tests.integration.origin_rig import http_origin, read_range
from tests.integration.origin_server import Failure, OriginServer, Resource

CONTENT = bytes(range(256)) * 40
SIZE = len(CONTENT)


def resolving(monkeypatch: pytest.MonkeyPatch, name: str, *addresses: str) -> None:
    """The name resolves to each address in turn, and then to the last one."""
    left = list(addresses)
    real = socket.getaddrinfo

    def answer(host: Any, port: Any, *rest: Any, **named: Any) -> Any:
        if host != name:
            return real(host, port, *rest, **named)
        address = left.pop(0) if len(left) > 1 else left[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", answer)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433", "127.1", "inside.example"],
)
async def test_a_redirect_to_an_internal_address_is_refused(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolving(monkeypatch, "inside.example", "127.0.0.1")
    async with OriginServer() as server, OriginServer() as inner, http_origin() as origin:
        inner.put("/secret", Resource(content=CONTENT))
        server.put("/f", Resource(redirect=inner.url("/secret", host)))
        with pytest.raises(OriginError) as caught:
            await origin.stat(OriginRequest(server.url("/f")))
        assert caught.value.reason is Reason.ORIGIN_INVALID
        assert "secret" not in caught.value.detail
        assert inner.connections == 0
        if host not in ("2130706433", "127.1"):  # No address at all for the HTTP library.
            assert "origin.internal_hosts" in caught.value.detail


async def test_a_name_that_is_bound_anew_gets_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    # Whoever checked the name before connecting would have seen the first address.
    resolving(monkeypatch, "rebound.example", "192.88.99.1", "127.0.0.1")
    checked = socket.getaddrinfo("rebound.example", 80)[0][4][0]
    assert InternalHosts().places.allows(str(checked))
    async with OriginServer() as server, OriginServer() as inner, http_origin() as origin:
        inner.put("/f", Resource(content=CONTENT))
        server.put("/f", Resource(redirect=inner.url("/f", "rebound.example")))
        with pytest.raises(OriginError, match="internal address"):
            await origin.stat(OriginRequest(server.url("/f")))
        assert inner.connections == 0


async def test_a_connection_that_a_user_made_serves_no_redirect() -> None:
    async with OriginServer() as server, OriginServer() as inner, http_origin() as origin:
        inner.put("/f", Resource(content=CONTENT))
        server.put("/f", Resource(redirect=inner.url("/f")))
        # A user may name any address, and its connection is kept.
        assert (await origin.stat(OriginRequest(inner.url("/f")))).size_bytes == SIZE
        with pytest.raises(OriginError, match="internal address"):
            await origin.stat(OriginRequest(server.url("/f")))
        assert inner.total_requests == 1


@pytest.mark.parametrize("listed", ["127.0.0.1", "127.0.0.0/8", "inside.example"])
async def test_what_is_listed_is_followed(listed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, "inside.example", "127.0.0.1")
    hosts = InternalHosts([listed])
    async with (
        OriginServer() as server,
        OriginServer() as inner,
        http_origin(internal_hosts=hosts) as origin,
    ):
        inner.put("/f", Resource(content=CONTENT))
        server.put("/f", Resource(redirect=inner.url("/f", "inside.example")))
        request = OriginRequest(server.url("/f"), (("Authorization", "mine"),))
        assert await read_range(origin, request, start_byte=5, end_byte=9) == CONTENT[5:9]
        assert "authorization" not in inner.requests["/f"][0].headers


@pytest.mark.parametrize("status", [401, 403])
async def test_a_signed_url_that_has_expired_is_asked_for_anew(status: int) -> None:
    hosts = InternalHosts(["127.0.0.1"])
    async with (
        OriginServer() as server,
        OriginServer() as storage,
        http_origin(internal_hosts=hosts) as origin,
    ):
        storage.put("/f", Resource(content=CONTENT, failures=(Failure(status),)))
        server.put("/f", Resource(redirect=storage.url("/f") + "?sig=1", authorization="mine"))
        request = OriginRequest(server.url("/f"), (("Authorization", "mine"),))
        part = await read_range(origin, request, start_byte=100, end_byte=200, size_bytes=SIZE)
        assert part == CONTENT[100:200]
        assert [seen.headers["range"] for seen in storage.requests["/f"]] == ["bytes=100-199"] * 2
        assert len(server.requests["/f"]) == 2
        assert all(seen.headers["authorization"] == "mine" for seen in server.requests["/f"])


async def test_a_storage_that_refuses_for_good_is_asked_twice_and_an_origin_once() -> None:
    hosts = InternalHosts(["127.0.0.1"])
    async with (
        OriginServer() as server,
        OriginServer() as storage,
        http_origin(internal_hosts=hosts) as origin,
    ):
        storage.put("/f", Resource(always=Failure(403)))
        server.put("/f", Resource(redirect=storage.url("/f")))
        server.put("/own", Resource(redirect="/refused"))
        server.put("/refused", Resource(always=Failure(403)))
        for path, asked in (("/f", storage.requests["/f"]), ("/own", server.requests["/refused"])):
            with pytest.raises(OriginError) as caught:
                await origin.stat(OriginRequest(server.url(path)))
            assert caught.value.reason is Reason.ORIGIN_FORBIDDEN
            assert len(asked) == (2 if path == "/f" else 1)
