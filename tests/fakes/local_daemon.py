"""A fake daemon on a real Unix socket: the local API over `FakeDownloads`, in its own thread."""

import asyncio
import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from peer.shell.api import LocalApi
from shoal.runtime.clock import MonotonicClock
from shoal.runtime.tasks import InlineOffload
from tests.fakes.downloads import FakeDownloads


class LocalDaemon:
    """Answers on `socket` until the `with` block ends. `uid` is what it takes clients for."""

    def __init__(self, root: Path) -> None:
        store = root / "store"
        store.mkdir()
        self.downloads = FakeDownloads(store)
        self.socket = str(root / "run" / "peer.sock")
        self.uid = os.getuid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._api = LocalApi(
            self.downloads,
            Path(self.socket),
            offload=InlineOffload(),
            clock=MonotonicClock(),
            identify=lambda _descriptor: self.uid,
        )

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._api.start(), self._loop).result(10)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._api.close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
