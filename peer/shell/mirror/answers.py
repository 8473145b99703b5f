"""Answers of the mirror itself, in the form of the distribution protocol. Pure.

503 for whatever a client may have from elsewhere or later: clients go on to their next registry at
once, while 429 makes them wait or ask again five times. 404 only when the registry says so.
"""

from collections.abc import Mapping
from typing import Final

from aiohttp import web

from peer.shell.errors import DownloadError
from shoal.wire.errors import Reason

VERSION_HEADERS: Final = {"Docker-Distribution-Api-Version": "registry/2.0"}

_OF_REASON: Final = {
    Reason.ORIGIN_NOT_FOUND: (404, "BLOB_UNKNOWN"),
    Reason.ORIGIN_UNAUTHORIZED: (401, "UNAUTHORIZED"),
    Reason.ORIGIN_FORBIDDEN: (403, "DENIED"),
    Reason.UNAUTHORIZED: (403, "DENIED"),
}


def refusal(status: int, code: str, message: str) -> web.Response:
    """An error as clients of registries read it."""
    return web.json_response(
        {"errors": [{"code": code, "message": message, "detail": None}]},
        status=status,
        headers=VERSION_HEADERS,
    )


def refusal_of(error: DownloadError) -> web.Response:
    """What a download that failed before its first byte is answered with."""
    status, code = _OF_REASON.get(error.reason, (503, "UNAVAILABLE"))
    return refusal(status, code, str(error))


def head(status: int, headers: Mapping[str, str], length_bytes: int | None) -> web.StreamResponse:
    """An answer to HEAD: the length of a body that is not sent."""
    response = web.StreamResponse(status=status, headers=headers)
    response.content_length = length_bytes
    return response


def blob_headers(digest: str) -> dict[str, str]:
    """Of every answer with a blob."""
    return {
        **VERSION_HEADERS,
        "Content-Type": "application/octet-stream",
        "Docker-Content-Digest": digest,
        "ETag": f'"{digest}"',
    }
