"""The two kinds of streams of the service benchmark do the same with a real gRPC server."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from benchmarks.scale.service_clients import CONNECT_BY_KIND
from benchmarks.scale.service_streams import KINDS
from peer.shell.control import METHOD
from shoal.runtime.grpc_polling import grpc
from tests.fakes.ears import Ears

Context = grpc.aio.ServicerContext[Any, Any]
Behavior = Callable[[AsyncIterator[bytes], Context], AsyncIterator[bytes]]


@asynccontextmanager
async def serving(behavior: Behavior) -> AsyncIterator[tuple[str, grpc.aio.Server]]:
    """A server with one method, and where it listens."""
    server = grpc.aio.server()
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(behavior)
    _, service, method = METHOD.split("/")
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {method: handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}", server
    finally:
        await server.stop(None)


async def echo(requests: AsyncIterator[bytes], _context: Context) -> AsyncIterator[bytes]:
    """Says what it hears."""
    async for request in requests:
        yield request


async def refuse(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
    """Ends every stream after its first message."""
    yield await anext(aiter(requests))
    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "overloaded: über 100%")


async def leave(requests: AsyncIterator[bytes], _context: Context) -> AsyncIterator[bytes]:
    """Ends every stream after its first message, and finds nothing wrong."""
    yield await anext(aiter(requests))


@pytest.mark.parametrize("kind", KINDS)
async def test_batches_of_any_size_come_back(kind: str) -> None:
    batches = [b"a", b"", b"x" * 300_000, *(bytes([n]) * 100 for n in range(100)), b"z" * 3_000_000]
    async with serving(echo) as (address, _):
        ears = Ears()
        stream = CONNECT_BY_KIND[kind](address, ears)
        for batch in batches:
            stream.say(batch)
        await ears.wait(batches=len(batches))
        await stream.close()
        await stream.close()
        stream.say(b"into nothing")
    assert ears.batches == batches
    assert ears.reasons == []


@pytest.mark.parametrize("kind", KINDS)
async def test_both_kinds_give_the_same_reasons(kind: str) -> None:
    reasons = []
    for behavior in (refuse, leave):
        async with serving(behavior) as (address, _):
            ears = Ears()
            stream = CONNECT_BY_KIND[kind](address, ears)
            stream.say(b"a")
            await ears.wait(batches=1, reasons=1)
            await stream.close()
        assert ears.batches == [b"a"]
        reasons += ears.reasons
    assert reasons == ["RESOURCE_EXHAUSTED: overloaded: über 100%", "ended by the scheduler"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_server_that_stops_loses_the_stream(kind: str) -> None:
    async with serving(echo) as (address, server):
        ears = Ears()
        stream = CONNECT_BY_KIND[kind](address, ears)
        stream.say(b"a")
        await ears.wait(batches=1)
        await server.stop(None)
        await ears.wait(reasons=1)
        await stream.close()
    assert len(ears.reasons) == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_a_server_that_is_not_there_loses_the_stream(kind: str) -> None:
    async with serving(echo) as (address, _):
        pass
    ears = Ears()
    stream = CONNECT_BY_KIND[kind](address, ears)
    stream.say(b"a")
    await ears.wait(reasons=1)
    await stream.close()
    assert "onnect" in ears.reasons[0]


def test_each_kind_has_its_stream() -> None:
    assert tuple(CONNECT_BY_KIND) == KINDS
