"""Work beside the event loop: blocking calls in threads, and background coroutines under watch.

`Offload` runs blocking calls (disk, hashing) in a few threads; `Supervisor` keeps
background coroutines alive and turns a crash of one into the end of the daemon, because a daemon
that lost a part of itself and goes on is worse than one that restarts. Decides nothing else.
"""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar, TypeVarTuple, cast

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")


Ended = Callable[[T | None, BaseException | None], None]
"""Told of a call's end on the loop's thread: what it returned, or what it raised."""


class _Call:
    """A call on its way through a thread and back."""

    __slots__ = ("arguments", "ended", "error", "function", "value")

    def __init__(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], ended: Ended[Any]
    ) -> None:
        self.function = function
        self.arguments = arguments
        self.ended = ended
        self.value: Any = None
        self.error: BaseException | None = None


class Offload:
    """Runs blocking calls in threads of its own, which it starts when they are first needed.

    At most `waiting_max` calls run or wait for a thread; later ones wait their turn behind them,
    first come, first served. Calls that end together wake the loop once. Belongs to one event loop.
    `fail` is handed what whoever is told of an end raises: a programmer's error. Without it the
    loop's own handler says so.
    """

    # An executor would do, but takes two futures with locks, and a wake-up of the loop, for each
    # piece.

    def __init__(
        self,
        threads_max: int,
        name: str = "offload",
        *,
        waiting_max: int = 256,
        fail: Callable[[BaseException], None] | None = None,
    ) -> None:
        assert threads_max > 0
        assert waiting_max > 0
        self._threads_max = threads_max
        self._name = name
        self._waiting_max = waiting_max
        self._fail = fail or self._say
        self._threads: list[threading.Thread] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._handed = 0
        """Calls that run or wait in the queue of the threads."""
        self._later: deque[_Call] = deque()
        # Bounded by `waiting_max`, as what is handed to threads is.
        self._over: deque[_Call] = deque()
        self._waking = False
        self._closed = False

    @property
    def handed(self) -> int:
        """Calls that run or wait for a thread; others wait behind them."""
        return self._handed

    async def __call__(self, function: Callable[[*Arguments], T], *args: *Arguments) -> T:
        """Runs `function(*args)` in a thread; returns or raises what it does. A caller that is
        cancelled does not stop a call that already runs: what it uses must stay valid until it
        ends. One that does not run yet never will."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def run() -> T | None:
            return None if future.cancelled() else function(*args)

        def ended(value: T | None, error: BaseException | None) -> None:
            if future.cancelled():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(cast("T", value))

        self.start(ended, run)
        return await future

    def start(
        self, ended: Ended[T], function: Callable[[*Arguments], T], *args: *Arguments
    ) -> None:
        """Runs `function(*args)` in a thread, then `ended` on the loop, which is never called
        before this returns. Raises RuntimeError once closed."""
        if self._closed:
            raise RuntimeError("the threads are closed")
        call = _Call(function, args, ended)
        if self._handed >= self._waiting_max:
            self._later.append(call)
            return
        self._hand(call)

    def _hand(self, call: _Call) -> None:
        if self._handed >= len(self._threads) < self._threads_max:
            self._start_thread()
        self._handed += 1
        self._calls.put(call)

    def _start_thread(self) -> None:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        # A process that ends without `close` is not held up by them.
        name = f"{self._name}_{len(self._threads)}"
        thread = threading.Thread(target=self._work, args=(self._loop,), name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        """A thread's life."""
        while (call := self._calls.get()) is not None:
            try:
                call.value = call.function(*call.arguments)
            except BaseException as error:  # noqa: BLE001 - handed to whoever waits for the call
                call.error = error
            self._over.append(call)
            # Nothing that the call held may live on while this thread waits for the next.
            del call
            if not self._waking:
                self._waking = True
                with contextlib.suppress(RuntimeError):  # The loop is closed: nobody waits.
                    loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        """On the loop: tells of all calls that have ended."""
        # First: a thread that is too late to be seen here wakes the loop again.
        self._waking = False
        while self._over:
            call = self._over.popleft()
            self._handed -= 1
            if self._later:
                self._hand(self._later.popleft())
            try:
                call.ended(call.value, call.error)
            except Exception as error:  # noqa: BLE001 - handed on; the others are told all the same
                self._fail(error)

    def _say(self, error: BaseException) -> None:
        """As for every callback of the loop."""
        assert self._loop is not None
        what = {"message": "the end of a call in a thread", "exception": error}
        self._loop.call_exception_handler(what)

    def close(self) -> None:
        """Waits, blocking, until every call has run, and ends the threads. Safe to call twice."""
        self._closed = True
        while self._later:
            self._hand(self._later.popleft())
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()


class InlineOffload(Offload):
    """`Offload` that runs the call at once on the caller's thread: for tests and the simulator."""

    def __init__(self) -> None:
        # No threads and no queue: the base class's constructor has nothing to set up here.
        pass

    async def __call__(self, function: Callable[[*Arguments], T], *args: *Arguments) -> T:
        """Runs `function(*args)` here and now. Raises what it raises."""
        return function(*args)

    def start(
        self, ended: Ended[T], function: Callable[[*Arguments], T], *args: *Arguments
    ) -> None:
        """Runs `function(*args)` here and now, and tells of it in the loop's next turn."""
        value: T | None = None
        failure: BaseException | None = None
        try:
            value = function(*args)
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits for the call
            failure = error
        asyncio.get_running_loop().call_soon(ended, value, failure)

    def close(self) -> None:
        """There is nothing to end."""


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
