"""Following one download: its milestones, with progress in between and an end by timeout.

Used by the local API and by a standalone `shoal get` alike. Progress is sampled, so a download
costs nothing per piece here, and one that ends soon is never slowed or reported. Never decides
when a download is done.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Final

from peer.shell.api_types import Done, Download, DownloadEvent, DownloadRequest, Failed, Progress
from shoal.wire.errors import Reason

PROGRESS_FIRST_MS: Final = 200
"""Nobody wants to see the progress of something that is over by then."""

PROGRESS_INTERVAL_MS: Final = 100
"""Ten lines a second are as much as an eye can use."""

RATE_WINDOW_S: Final = 2.0
"""Long enough for a steady number, short enough to show a stall."""


class RateMeter:
    """How fast a counter of bytes rose over the last `RATE_WINDOW_S` seconds."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque(maxlen=64)

    def update(self, now_s: float, total_bytes: int) -> int:
        """Takes a sample and returns the present rate in bytes per second."""
        samples = self._samples
        samples.append((now_s, total_bytes))
        while len(samples) > 2 and samples[1][0] <= now_s - RATE_WINDOW_S:
            samples.popleft()
        first_s, first_bytes = samples[0]
        if now_s <= first_s:
            return 0
        return max(0, round((total_bytes - first_bytes) / (now_s - first_s)))


def follow_as_asked(
    download: Download, request: DownloadRequest
) -> AsyncGenerator[DownloadEvent, None]:
    """`follow` as the request says."""
    interval_ms = max(PROGRESS_INTERVAL_MS, request.progress_ms)
    return follow(
        download,
        timeout_ms=request.timeout_ms,
        first_ms=max(PROGRESS_FIRST_MS, request.progress_ms),
        interval_ms=interval_ms,
    )


async def follow(
    download: Download,
    *,
    timeout_ms: int = 0,
    first_ms: int = PROGRESS_FIRST_MS,
    interval_ms: int = PROGRESS_INTERVAL_MS,
) -> AsyncGenerator[DownloadEvent, None]:
    """Every event of a download, ending with `Done` or `Failed`, with `Progress` in between where
    it changed. After `timeout_ms` (0: never) the last event is `Failed(TIMEOUT)`. The download is
    closed on every way out, also when the caller stops iterating (use `contextlib.aclosing`)."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    deadline = began + timeout_ms / 1000 if timeout_ms else None
    progress_at = began + first_ms / 1000
    shown: Progress | None = None
    shown_rate = 0
    meter = RateMeter()
    meter.update(began, 0)
    events = download.events()
    upcoming = asyncio.ensure_future(anext(events))
    try:
        while True:
            wake_at = progress_at if deadline is None else min(progress_at, deadline)
            await asyncio.wait({upcoming}, timeout=max(0.0, wake_at - loop.time()))
            if upcoming.done():
                event = upcoming.result()
                if isinstance(event, Failed):
                    # What has arrived is worth a next try, however fast the failure came.
                    last = download.progress()
                    if last != (shown or Progress()):
                        yield _changed(last, shown, meter.update(loop.time(), _moved(last)))
                yield event
                if isinstance(event, Done | Failed):
                    return
                upcoming = asyncio.ensure_future(anext(events))
                continue
            now = loop.time()
            if deadline is not None and now >= deadline:
                yield Failed(reason=Reason.TIMEOUT, detail=f"not done after {timeout_ms} ms")
                return
            if now >= progress_at:
                progress_at = now + interval_ms / 1000
                progress = download.progress()
                rate = meter.update(now, _moved(progress))
                if progress != shown or rate != shown_rate:
                    yield _changed(progress, shown, rate)
                    shown, shown_rate = progress, rate
    finally:
        upcoming.cancel()
        await asyncio.wait({upcoming})
        if not upcoming.cancelled():
            upcoming.exception()  # Looked at, so that the loop does not report it a second time.
        if isinstance(events, AsyncGenerator):
            await events.aclose()
        await download.close()


def _moved(progress: Progress) -> int:
    return progress.origin_bytes + progress.peer_bytes


def _changed(progress: Progress, shown: Progress | None, rate_bytes_s: int) -> Progress:
    """What to say of a progress after another one."""
    known = set(shown.files) if shown is not None else set()
    files = tuple(file for file in progress.files if file not in known)
    return replace(progress, rate_bytes_s=rate_bytes_s, files=files)
