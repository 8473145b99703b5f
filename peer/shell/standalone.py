"""A whole peer for the time of one download: `shoal get` on a machine with nothing set up.

Without a scheduler it reads from the origin alone; with one it joins the swarm. Its state root is
an ordinary store, so that the next try resumes. Decides nothing.
"""

import asyncio
import contextlib
import os
import secrets
from pathlib import Path

from peer.shell.api_events import follow_as_asked
from peer.shell.api_types import (
    Download,
    DownloadRequest,
    Failed,
    OnEvent,
    Renew,
    RightNeeded,
    WriteChunk,
)
from peer.shell.errors import DownloadError
from peer.shell.node import NodeOptions, PeerNode
from peer.shell.origin.http import HttpOptions
from peer.shell.origin.internal import InternalHosts
from peer.shell.store.errors import StoreError
from shoal.runtime.version import software_version
from shoal.wire.ids import HostId


def standalone_options(scheduler_addresses: tuple[str, ...], state_root: Path) -> NodeOptions:
    """Loopback only: a machine that wants to serve others runs the daemon."""
    return NodeOptions(
        host_id=HostId(f"get-{os.uname().nodename[:32]}-{secrets.token_hex(4)}"),
        store_root=state_root,
        schedulers=scheduler_addresses,
        http=HttpOptions(internal_hosts=InternalHosts(_internal_hosts())),
        software_version=software_version(),
    )


def _internal_hosts() -> list[str]:
    """The daemon's option, as its environment has it: there are no others here."""
    listed = os.environ.get("SHOAL_PEER_ORIGIN_INTERNAL_HOSTS", "")
    return [text.strip() for text in listed.split(",") if text.strip()]


async def download_standalone(
    request: DownloadRequest,
    scheduler_addresses: tuple[str, ...],
    state_root: Path,
    on_event: OnEvent,
    write_chunk: WriteChunk | None = None,
    *,
    renew: Renew | None = None,
) -> None:
    """See `peer.shell.api_types.DownloadStandalone`; `renew` gives fresh rights to a renewable
    download. Raises UsageError."""
    node = PeerNode(standalone_options(scheduler_addresses, state_root))
    try:
        try:
            await node.start()
        except StoreError as error:
            on_event(Failed(reason=error.reason, detail=error.detail))
            return
        if write_chunk is not None:
            await _stream(node, request, on_event, write_chunk)
        else:
            await _download(node, request, on_event, renew)
    finally:
        await node.close()


async def _download(
    node: PeerNode, request: DownloadRequest, on_event: OnEvent, renew: Renew | None
) -> None:
    download = node.downloads.start(request)
    events = follow_as_asked(download, request)
    async with contextlib.aclosing(events), asyncio.TaskGroup() as renewals:
        async for event in events:
            on_event(event)
            if isinstance(event, RightNeeded):
                # Beside the events: what needs no fresh right goes on.
                renewals.create_task(_renew(download, renew))


async def _renew(download: Download, renew: Renew | None) -> None:
    download.renew(await renew() if renew is not None else None)


async def _stream(
    node: PeerNode, request: DownloadRequest, on_event: OnEvent, write_chunk: WriteChunk
) -> None:
    from peer.shell.api_types import Done, Resolved

    try:
        stream = await node.downloads.stream(request)
    except DownloadError as error:
        on_event(Failed(reason=error.reason, detail=error.detail))
        return
    try:
        on_event(
            Resolved(
                index=0, task_id=stream.task_id, size_bytes=stream.size_bytes, digest=stream.digest
            )
        )
        written = 0
        async for chunk in stream.chunks():
            await write_chunk(chunk)
            written += len(chunk)
            on_event(stream.progress())
        progress = stream.progress()
        on_event(
            Done(
                size_bytes=written,
                origin_bytes=progress.origin_bytes,
                peer_bytes=progress.peer_bytes,
            )
        )
    except DownloadError as error:
        on_event(Failed(reason=error.reason, detail=error.detail))
    finally:
        await stream.close()
