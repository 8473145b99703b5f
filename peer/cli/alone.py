"""`shoal get` without a daemon: a whole peer inside this process for the time of the download.

Its state lies beside the output, so that the same command resumes after Ctrl-C or kill -9, and is
removed when the file is there.
"""

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peer.cli.outcome import Outcome
from peer.shell.api_json import decode_request, encode_event
from peer.shell.standalone import download_standalone
from shoal.runtime.logs import configure_logs
from shoal.wire.errors import UsageError

if TYPE_CHECKING:
    from peer.cli.progress import Bar
    from peer.shell.api_types import DownloadEvent


def state_root(outputs: list[Path | None]) -> Path:
    """Beside the first output; for stdout a fresh directory in the user's cache."""
    first = outputs[0]
    if first is not None:
        return first.parent / f".{first.name}.shoal"
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    base = Path(cache) / "shoal"
    base.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="stream-", dir=base))


def download_alone(
    options: argparse.Namespace,
    body: dict[str, Any],
    outputs: list[Path | None],
    outcome: Outcome,
    bar: "Bar",
) -> None:
    """Runs the download to its end and takes its events."""
    configure_logs("info" if options.verbose else "error", "text")
    root = state_root(outputs)

    def on_event(event: "DownloadEvent") -> None:
        outcome.take(encode_event(event))
        bar.update()

    async def write_chunk(chunk: bytes) -> None:
        await asyncio.to_thread(sys.stdout.buffer.write, chunk)

    try:
        request = decode_request(body)
        asyncio.run(
            download_standalone(
                request,
                tuple(options.scheduler),
                root,
                on_event,
                write_chunk if outputs == [None] else None,
            )
        )
        sys.stdout.buffer.flush()
    except UsageError as error:
        outcome.fail("usage", str(error))
    finally:
        # A failed download keeps its pieces for the next try; nobody resumes a stream.
        if outcome.ok or outputs == [None]:
            shutil.rmtree(root, ignore_errors=True)
