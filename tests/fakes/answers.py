"""What fakes of web servers answer with: a part of a content, and its digest."""

import hashlib
from collections.abc import Mapping

from aiohttp import web


def digest_of(content: bytes) -> str:
    """As registries and the daemon name it."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


async def begin_part(
    request: web.Request, content: bytes, headers: Mapping[str, str] | None = None
) -> tuple[web.StreamResponse, bytes]:
    """Sends the head of an answer with what `Range` asks for; that part is to be sent by the
    caller, unless the request is a HEAD."""
    response = web.StreamResponse(headers=headers)
    response.headers["Accept-Ranges"] = "bytes"
    first, end, _ = request.http_range.indices(len(content))
    if "Range" in request.headers:
        response.set_status(206)
        response.headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(content)}"
    response.content_length = end - first
    await response.prepare(request)
    return response, content[first:end]
