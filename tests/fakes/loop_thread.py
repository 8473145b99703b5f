"""A server of the test that runs in a thread of its own, so that blocking clients can be tested."""

import asyncio
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Final, Self, TypeVar

T = TypeVar("T")

CALL_S: Final = 20.0
STOP_S: Final = 10.0


class LoopThread:
    """Runs from the beginning of a `with` block to its end. For one block."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)

    async def start(self) -> None:
        """Listens."""
        raise NotImplementedError

    async def close(self) -> None:
        """Ends, also what began to start only."""
        raise NotImplementedError

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """What comes of it, on the thread's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_S)

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self.call(self.start())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        try:
            self.call(self.close())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(STOP_S)
            assert not self._thread.is_alive(), "a server of the test did not stop"
            self._loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
