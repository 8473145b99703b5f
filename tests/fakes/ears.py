"""A listener of the service benchmark's streams that tests can ask what it heard."""

import asyncio
from typing import Final

WAIT_S: Final = 10.0


class Ears:
    """Remembers what it is told, and lets tests wait for it."""

    def __init__(self) -> None:
        self.batches: list[bytes] = []
        self.reasons: list[str] = []
        self._news = asyncio.Event()

    def heard(self, batch: bytes) -> None:
        """One batch of the scheduler."""
        self.batches.append(batch)
        self._news.set()

    def lose(self, why: str) -> None:
        """The stream is over."""
        self.reasons.append(why)
        self._news.set()

    async def wait(self, *, batches: int = 0, reasons: int = 0) -> None:
        """Until it has heard so many of both."""
        async with asyncio.timeout(WAIT_S):
            while len(self.batches) < batches or len(self.reasons) < reasons:
                self._news.clear()
                await self._news.wait()
