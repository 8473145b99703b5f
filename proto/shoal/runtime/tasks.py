"""Work beside the event loop: blocking calls in threads, and background coroutines under watch.

`Offload` runs blocking calls (disk, hashing) in a bounded pool of threads; `Supervisor` keeps
background coroutines alive and turns a crash of one into the end of the daemon, because a daemon
that lost a part of itself and goes on is worse than one that restarts. Decides nothing else.
"""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar, TypeVarTuple

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")


class Offload:
    """Runs a blocking call in a thread pool given at construction, and returns (or raises) what
    it does.

    At most `waiting_max` calls run or wait in the pool; later callers wait their turn outside it,
    first come, first served. The pool stays its creator's to shut down.
    """

    def __init__(self, executor: ThreadPoolExecutor, *, waiting_max: int = 256) -> None:
        assert waiting_max > 0
        self._executor = executor
        self._slots = asyncio.Semaphore(waiting_max)

    async def __call__(self, function: Callable[[*Arguments], T], *args: *Arguments) -> T:
        """Runs `function(*args)` in the pool. A caller that is cancelled does not stop a call
        that already runs: what it uses must stay valid until it ends."""
        async with self._slots:
            return await asyncio.get_running_loop().run_in_executor(self._executor, function, *args)


class InlineOffload(Offload):
    """`Offload` that runs the call at once on the caller's thread: for tests and the simulator."""

    def __init__(self) -> None:
        # No pool and no queue: the base class's constructor has nothing to set up here.
        pass

    async def __call__(self, function: Callable[[*Arguments], T], *args: *Arguments) -> T:
        """Runs `function(*args)` here and now. Raises what it raises."""
        return function(*args)


class Running(Protocol):
    """A coroutine that a supervisor runs. Nobody need wait for it, so it is no awaitable."""

    def cancel(self) -> bool:
        """Asks it to end; it ends with its clean-up done, some turns of the loop later."""
        ...

    def done(self) -> bool:
        """Whether it has ended."""
        ...


class Supervisor:
    """Owner of background coroutines. A coroutine that raises is a programmer's error: the first
    such error is kept and ends `wait_failed()`; those that return or are cancelled are forgotten.
    """

    def __init__(self) -> None:
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._failure: BaseException | None = None
        self._failed = asyncio.Event()
        self._closed = False

    def __len__(self) -> int:
        """How many coroutines run now."""
        return len(self._tasks)

    @property
    def failure(self) -> BaseException | None:
        """The first error that a coroutine ended with, if any did."""
        return self._failure

    def spawn(self, coroutine: Coroutine[Any, Any, object], name: str) -> Running:
        """Starts a coroutine and keeps it until it ends. Raises RuntimeError once closed."""
        if self._closed:
            coroutine.close()
            raise RuntimeError(f"cannot start {name!r}: the supervisor is closed")
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks[task] = None
        task.add_done_callback(self._ended)
        return task

    def fail(self, error: BaseException) -> None:
        """Records an error from elsewhere (a callback), as if a coroutine had ended with it."""
        if self._failure is None:
            self._failure = error
            self._failed.set()

    async def wait_failed(self) -> None:
        """Waits until a coroutine crashed, then raises its error."""
        await self._failed.wait()
        assert self._failure is not None
        raise self._failure

    async def close(self) -> None:
        """Cancels every coroutine and waits until all have ended. Safe to call twice."""
        self._closed = True
        current = asyncio.current_task()
        while others := [task for task in self._tasks if task is not current]:
            for task in others:
                task.cancel()
            await asyncio.wait(others)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fail(error)
