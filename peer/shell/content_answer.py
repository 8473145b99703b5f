"""A content that arrives as the answer to an HTTP request: whole, or one range of it.

Sends bytes as they are verified. What breaks off is broken off for the client, too: it must not
take a part for the whole. Decides neither who may have the content nor what is fetched.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import aclosing

from aiohttp import web

from peer.shell.api_routes import break_off
from peer.shell.errors import DownloadError
from peer.shell.ranges import Unsatisfiable, parse_range
from peer.shell.sending import can_send
from peer.shell.streams import RunningContent


async def answer_content(
    http: web.Request,
    content: RunningContent,
    headers: Mapping[str, str],
    *,
    sent: Callable[[int], None],
    broke_off: Callable[[DownloadError], None],
) -> web.StreamResponse:
    """Answers GET and HEAD with what `Range` asks for. `sent` is told how many bytes went,
    `broke_off` why the rest does not come. Raises DownloadError while nothing is known of the
    content yet, and ConnectionError where the client is gone."""
    size = (await content.known()).geometry.size_bytes
    told = dict(headers)
    first, end, status = 0, size, 200
    if size is not None:
        told["Accept-Ranges"] = "bytes"
        try:
            found = parse_range(http.headers.get("Range"), size)
        except Unsatisfiable:
            return web.Response(status=416, headers={**told, "Content-Range": f"bytes */{size}"})
        if found is not None:
            first, end, status = found.start, found.end, 206
            told["Content-Range"] = f"bytes {first}-{found.end - 1}/{size}"
    response = web.StreamResponse(status=status, headers=told)
    if end is not None:
        response.content_length = end - first
    await response.prepare(http)
    if http.method == "HEAD":
        return response
    try:
        await _send(http, response, content, first, end, sent)
        await response.write_eof()
    except DownloadError as error:
        broke_off(error)
        break_off(http)
    except (ConnectionError, asyncio.CancelledError):
        break_off(http)
        raise
    return response


async def _send(
    http: web.Request,
    response: web.StreamResponse,
    content: RunningContent,
    first: int,
    end: int | None,
    sent: Callable[[int], None],
) -> None:
    if can_send(http.transport):
        assert http.transport is not None
        await content.send(http.transport, first, end, sent)
        return
    async with aclosing(content.chunks(first, end)) as chunks:
        async for chunk in chunks:
            await response.write(chunk)
            sent(len(chunk))
