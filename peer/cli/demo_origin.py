"""The demo's origin: one file over HTTP with ranges, at a limited rate, in a process of its own.

Run as `python -m peer.cli.demo_origin FILE RATE_BYTES_S READY_FILE`. Counts the payload bytes that
it sent and tells them at `/-/stats`.
"""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Final

from aiohttp import web

from shoal.runtime.clock import MonotonicClock
from shoal.runtime.rates import BURST_MS_DEFAULT, RateLimiter

SLICE_BYTES: Final = 64 * 1024
"""Sent in one go: connections take turns at this grain, so the rate is shared fairly."""


class DemoOrigin:
    """Serves one file to everybody, all connections out of one token bucket."""

    def __init__(self, path: Path, rate_bytes_s: int, *, burst_ms: int = BURST_MS_DEFAULT) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        self._size_bytes = os.fstat(self._descriptor).st_size
        self._limiter = RateLimiter(rate_bytes_s, MonotonicClock(), burst_ms)
        self._etag = f'"demo-{self._size_bytes}"'
        self.sent_bytes = 0
        self.requests = 0

    def application(self) -> web.Application:
        """The routes."""
        application = web.Application()
        application.router.add_get("/-/stats", self._stats)
        application.router.add_get("/{name}", self._file)
        return application

    async def _stats(self, _request: web.Request) -> web.Response:
        return web.json_response({"sent_bytes": self.sent_bytes, "requests": self.requests})

    async def _file(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        size = self._size_bytes
        try:
            first, end, _ = request.http_range.indices(size)
        except ValueError:
            return web.Response(status=400)
        partial = "Range" in request.headers
        response = web.StreamResponse(status=206 if partial else 200)
        response.headers["ETag"] = self._etag
        response.headers["Accept-Ranges"] = "bytes"
        if partial:
            if first >= end:
                return web.Response(status=416, headers={"Content-Range": f"bytes */{size}"})
            response.headers["Content-Range"] = f"bytes {first}-{end - 1}/{size}"
        response.content_length = end - first
        await response.prepare(request)
        while first < end:
            count = min(SLICE_BYTES, end - first)
            await self._limiter.acquire(count)
            # Without a debt nobody waited: let the others have their turn at the burst too.
            await asyncio.sleep(0)
            await response.write(os.pread(self._descriptor, count, first))
            self.sent_bytes += count
            first += count
        await response.write_eof()
        return response


async def serve(path: Path, rate_bytes_s: int, ready_file: Path) -> None:
    """Serves until SIGTERM."""
    origin = DemoOrigin(path, rate_bytes_s)
    runner = web.AppRunner(origin.application(), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    part = ready_file.with_suffix(".part")
    part.write_text(json.dumps({"pid": os.getpid(), "port": port}))
    part.replace(ready_file)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    await runner.cleanup()


if __name__ == "__main__":
    import uvloop

    uvloop.run(serve(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])))
