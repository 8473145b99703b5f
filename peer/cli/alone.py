"""`shoal get` without a daemon: a whole peer inside this process for the time of the download.

Its state lies beside the output, so that the same command resumes after Ctrl-C or kill -9, and is
removed when the file is there or when nothing of it ever arrived.
"""

import argparse
import asyncio
import functools
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peer.cli.held_state import held_state
from peer.cli.outcome import Outcome, disk_reason
from peer.shell.api_json import decode_request, encode_event
from peer.shell.wanted_urls import origin_request
from shoal.runtime.config_values import parse_endpoint
from shoal.runtime.logs import configure_logs
from shoal.runtime.tasks import Offload
from shoal.wire.errors import UsageError

if TYPE_CHECKING:
    from peer.cli.progress import Bar
    from peer.shell.api_types import DownloadEvent, DownloadRequest, DownloadStandalone, Renew


def state_root(outputs: list[Path | None]) -> Path:
    """Beside the first output, where a hard link can reach it; for stdout in the user's cache."""
    first = outputs[0]
    if first is not None:
        return first.parent / f".{first.name}.shoal"
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "shoal" / f"stream-{os.getpid()}"


def download_alone(
    options: argparse.Namespace,
    body: dict[str, Any],
    outputs: list[Path | None],
    outcome: Outcome,
    bar: "Bar",
    *,
    root: Path | None = None,
    renew: Callable[[], str | None] | None = None,
    download: "DownloadStandalone | None" = None,
) -> None:
    """Runs the download to its end and takes its events. `root` is where its state lies if that is
    not beside the first output; `renew` gives fresh rights, and may block. `download` is given by
    tests alone."""
    configure_logs("info" if options.verbose else "error", "text")
    try:
        request = decode_request(body)
        for wanted in request.urls:
            # The peer would refuse it as well, but takes a second to load.
            origin_request(wanted.url, wanted.headers)
        schedulers = tuple(str(parse_endpoint(each)) for each in options.scheduler)
        root = root or state_root(outputs)
        resumes = root.exists()
        with held_state(root):
            try:
                _run(request, schedulers, root, outcome, bar, download or _peer(renew))
            except UsageError as error:
                outcome.fail("usage", str(error))
            finally:
                # A failed download keeps its pieces for the next try, and those of the one before
                # it, which it may not even have looked at; nobody resumes a stream.
                arrived = outcome.received_bytes or outcome.origin_bytes or outcome.peer_bytes
                left = bool(outcome.reason) and not arrived and not resumes
                if outcome.ok or outputs == [None] or left:
                    shutil.rmtree(root, ignore_errors=True)
    except UsageError as error:
        outcome.fail("usage", str(error))
    except BrokenPipeError:
        raise
    except OSError as error:
        outcome.fail(disk_reason(error), str(error))


def _peer(renew: Callable[[], str | None] | None) -> "DownloadStandalone":
    """A whole peer, which is loaded once it is known that there is work for it."""
    from peer.shell.standalone import download_standalone

    if renew is None:
        return download_standalone
    return functools.partial(download_standalone, renew=beside(renew))


def beside(renew: Callable[[], str | None]) -> "Renew":
    """The same call, in a thread while the loop goes on. A command that ends does not wait for it,
    as it would for `asyncio.to_thread`: a registry may take minutes to answer."""
    return functools.partial(Offload(1, "renewal"), renew)


def _run(
    request: "DownloadRequest",
    schedulers: tuple[str, ...],
    root: Path,
    outcome: Outcome,
    bar: "Bar",
    download: "DownloadStandalone",
) -> None:
    import uvloop

    def on_event(event: "DownloadEvent") -> None:
        encoded = encode_event(event)
        outcome.take(encoded)
        bar.update(encoded)

    async def write_chunk(chunk: bytes) -> None:
        # A slow reader must not hold up the loop, which may be serving others.
        await asyncio.to_thread(_write, chunk)

    async def until_done() -> None:
        streaming = request.outputs == (None,)
        # A stream has no events of its own to end it in time.
        limit_s = request.timeout_ms / 1000 if streaming and request.timeout_ms else None
        try:
            async with asyncio.timeout(limit_s):
                await download(
                    request, schedulers, root, on_event, write_chunk if streaming else None
                )
        except TimeoutError:
            outcome.fail("timeout", f"not done after {request.timeout_ms} ms")

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(until_done())


def _write(chunk: bytes) -> None:
    sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()
