"""A fake daemon on a real Unix socket: the local API over `FakeDownloads`, in its own thread."""

import os
from pathlib import Path

from peer.shell.api import LocalApi
from shoal.runtime.clock import MonotonicClock
from shoal.runtime.tasks import InlineOffload
from tests.fakes.downloads import FakeDownloads
from tests.fakes.loop_thread import LoopThread


class LocalDaemon(LoopThread):
    """Answers on `socket` until the `with` block ends. `uid` is what it takes clients for."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        store = root / "store"
        store.mkdir()
        self.downloads = FakeDownloads(store)
        self.socket = str(root / "run" / "peer.sock")
        self.uid = os.getuid()
        self._api = LocalApi(
            self.downloads,
            Path(self.socket),
            offload=InlineOffload(),
            clock=MonotonicClock(),
            identify=lambda _descriptor: self.uid,
        )

    async def start(self) -> None:
        """Listens."""
        await self._api.start()

    async def close(self) -> None:
        """Ends."""
        await self._api.close()
