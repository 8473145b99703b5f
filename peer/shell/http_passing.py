"""Messages of HTTP that are passed on: which of their headers go on, and bodies as they come.

Source: RFC 9110, section 7.6.1 (Connection).
"""

from collections.abc import AsyncIterable, Iterable
from typing import Final

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from peer.shell.api_routes import break_off

_OF_THE_CONNECTION: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-authentication-info",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


def going_on(
    headers: Iterable[tuple[str, str]], kept_here: frozenset[str] = frozenset()
) -> CIMultiDict[str]:
    """All headers but those of the connection, those that `Connection` names, and `kept_here` (in
    lower case)."""
    given = list(headers)
    named = {
        word.strip().lower()
        for name, value in given
        if name.lower() == "connection"
        for word in value.split(",")
    }
    ending = _OF_THE_CONNECTION | kept_here | named
    return CIMultiDict((name, value) for name, value in given if name.lower() not in ending)


async def pass_body(
    http: web.Request, response: web.StreamResponse, chunks: AsyncIterable[bytes]
) -> web.StreamResponse:
    """Sends an answer on to its client; one whose body breaks off (ClientError, TimeoutError)
    breaks off here."""
    await response.prepare(http)
    try:
        async for chunk in chunks:
            await response.write(chunk)
    except (aiohttp.ClientError, TimeoutError):
        break_off(http)
        return response
    await response.write_eof()
    return response
