"""Drives one `PeerEngine`: events in, effects out to the shells that carry them out.

Decides nothing. An effect that has an answer is answered by an event whatever happens; errors of
the disk come back as events with a reason.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from peer.core import effects as fx
from peer.core import events as ev
from peer.core.engine import PeerEngine
from peer.shell.hasher import ContentHasher
from peer.shell.origin.reader import OriginReader
from peer.shell.store.content import ContentStore
from peer.shell.store.errors import StoreError
from peer.shell.transfer.child_side import ParentConnections
from peer.shell.transfer.parent_side import PiecePort
from shoal.runtime.alarm import Alarm
from shoal.runtime.clock import Clock
from shoal.runtime.logs import Log
from shoal.runtime.tasks import Offload, Supervisor
from shoal.wire.errors import Reason
from shoal.wire.ids import RequestId, TaskId


class Clients(Protocol):
    """Who tells local clients what became of their wishes."""

    def take(self, effect: fx.AnyEffect) -> None:
        """One of the effects that are meant for clients."""
        ...


class Control(Protocol):
    """The stream to the scheduler."""

    def send(self, effect: fx.SendToScheduler) -> None:
        """Sends a batch."""
        ...


class PeerDriver:
    """Runs one engine on the event loop's thread. `attach` comes before the first event."""

    def __init__(
        self,
        *,
        engine: PeerEngine,
        store: ContentStore,
        offload: Offload,
        clock: Clock,
        supervisor: Supervisor,
        validate: bool = False,
    ) -> None:
        self.engine = engine
        self._store = store
        self._offload = offload
        self._clock = clock
        self._supervisor = supervisor
        self._validate = validate
        self._log = Log("peer.shell.driver")
        self._events: deque[ev.AnyEvent] = deque()
        self._handling = False
        self._stopped = False
        self._alarm = Alarm(next_deadline_ns=engine.next_deadline_ns, on_due=self._due, clock=clock)
        self._carriers: dict[type[Any], Callable[[Any], None]] = {}
        self._removals: dict[RequestId, asyncio.Future[fx.RemoveEnded]] = {}
        self._counts: dict[RequestId, asyncio.Future[fx.HoldersCounted]] = {}
        self._last_own_request = 0
        self._task_locks: dict[TaskId, tuple[asyncio.Lock, int]] = {}
        self.events_handled = 0
        self.busy_ns = 0

    def attach(
        self,
        *,
        origin: OriginReader,
        parents: ParentConnections,
        port: PiecePort,
        hasher: ContentHasher,
        control: Control | None,
        clients: Clients,
    ) -> None:
        """Says who carries out what."""
        self._carriers = {
            fx.OpenTask: self._open_task,
            fx.DropPieces: self._drop_pieces,
            fx.HashPrefix: hasher.advance,
            fx.SealTask: self._seal_task,
            fx.RemoveTask: lambda effect: self._remove_task(effect, hasher),
            fx.SendToScheduler: control.send if control is not None else _ignore,
            fx.Connect: parents.connect,
            fx.Disconnect: parents.disconnect,
            fx.OpenChannel: parents.open_channel,
            fx.CloseChannel: parents.close_channel,
            fx.FetchPiece: parents.fetch,
            fx.CancelFetch: parents.cancel,
            fx.AcceptChild: port.accept,
            fx.RefuseChild: port.refuse,
            fx.Announce: port.announce,
            fx.Withdraw: port.withdraw,
            fx.ServePiece: port.serve,
            fx.SendBusy: port.busy,
            fx.SendReject: port.reject,
            fx.DropChild: port.drop,
            fx.StatOrigin: origin.stat,
            fx.ReadOrigin: origin.read,
            fx.CancelOrigin: origin.cancel,
            fx.SourceResolved: clients.take,
            fx.PiecesReadable: clients.take,
            fx.PiecesRevoked: clients.take,
            fx.SourceEnded: clients.take,
            fx.DownloadEnded: clients.take,
            fx.RemoveEnded: self._remove_ended,
            fx.HoldersCounted: self._holders_counted,
            fx.Noted: self._note,
        }

    # ------------------------------------------------------------ events

    def post(self, event: ev.AnyEvent) -> None:
        """Takes an event. One that comes while another is handled waits for its turn."""
        if self._stopped:
            return
        self._events.append(event)
        if self._handling:
            return
        self._handling = True
        started_ns = time.perf_counter_ns()
        try:
            self._drain()
        except Exception as error:  # noqa: BLE001 - kept, and raised by the supervisor
            self._supervisor.fail(error)
        finally:
            self._handling = False
            self.busy_ns += time.perf_counter_ns() - started_ns

    def _drain(self) -> None:
        engine = self.engine
        while self._events and not self._stopped:
            effects = engine.handle(self._events.popleft())
            if self._validate:
                engine.validate()
            for effect in effects:
                self._carriers[type(effect)](effect)
            self.events_handled += 1
        if not self._stopped:
            self._alarm.arm()

    def _due(self, now_ns: int) -> None:
        self.post(ev.Tick(now_ns=now_ns))

    def close(self) -> None:
        """Handles nothing from now on."""
        self._stopped = True
        self._events.clear()
        self._alarm.cancel()
        for removal in self._removals.values():
            removal.cancel()
        for counted in self._counts.values():
            counted.cancel()

    # ------------------------------------------------------------ store

    def _drop_pieces(self, effect: fx.DropPieces) -> None:
        self._store.drop_pieces(effect.task_id, effect.pieces)

    def _open_task(self, effect: fx.OpenTask) -> None:
        self._supervisor.spawn(self._opening(effect), "open task")

    async def _opening(self, effect: fx.OpenTask) -> None:
        descriptor = effect.descriptor
        task_id = descriptor.task_id
        # Descriptors of one task reach the store in the order in which they were sent: a lock is
        # dropped only when nobody holds it or waits for it.
        lock, users = self._task_locks.get(task_id, (asyncio.Lock(), 0))
        self._task_locks[task_id] = (lock, users + 1)
        event: ev.AnyEvent
        async with lock:
            try:
                try:
                    stored = await self._offload(self._store.open_task, descriptor)
                except StoreError as error:
                    if not error.needed_bytes or not await self._make_room(error.needed_bytes):
                        raise
                    stored = await self._offload(self._store.open_task, descriptor)
                event = ev.TaskOpened(now_ns=self._clock.now_ns(), stored=stored)
            except StoreError as error:
                event = ev.TaskOpenFailed(
                    now_ns=self._clock.now_ns(),
                    task_id=task_id,
                    reason=error.reason,
                    detail=error.detail,
                )
        _, users = self._task_locks[task_id]
        if users == 1:
            del self._task_locks[task_id]
        else:
            self._task_locks[task_id] = (lock, users - 1)
        self.post(event)

    async def _make_room(self, needed_bytes: int) -> bool:
        """Removes tasks that nobody uses; whether any went."""
        candidates = await self._offload(self._store.candidates_to_evict, needed_bytes)
        gone = [await self.remove(task_id) for task_id in candidates]
        return any(ended.reason is None for ended in gone)

    async def evict(self) -> int:
        """Keeps the store below its high-water mark; how many tasks went."""
        candidates = await self._offload(self._store.candidates_to_evict, 0)
        count = 0
        for task_id in candidates:
            ended = await self.remove(task_id)
            count += ended.reason is None
        return count

    async def remove(self, task_id: TaskId) -> fx.RemoveEnded:
        """Withdraws and deletes a task, if nobody uses it."""
        request_id = self._own_request_id()
        future: asyncio.Future[fx.RemoveEnded] = asyncio.get_running_loop().create_future()
        self._removals[request_id] = future
        self.post(ev.Remove(now_ns=self._clock.now_ns(), request_id=request_id, task_id=task_id))
        return await future

    def _remove_ended(self, effect: fx.RemoveEnded) -> None:
        future = self._removals.pop(effect.request_id, None)
        if future is not None and not future.done():
            future.set_result(effect)

    def _own_request_id(self) -> RequestId:
        """Below zero: those that the core makes are above."""
        self._last_own_request -= 1
        return RequestId(self._last_own_request)

    def _seal_task(self, effect: fx.SealTask) -> None:
        self._supervisor.spawn(self._sealing(effect), "seal task")

    async def _sealing(self, effect: fx.SealTask) -> None:
        reason: Reason | None = None
        detail = ""
        try:
            await self._offload(self._store.seal, effect.task_id, effect.digest)
        except StoreError as error:
            reason, detail = error.reason, error.detail
        self.post(
            ev.TaskSealed(
                now_ns=self._clock.now_ns(), task_id=effect.task_id, reason=reason, detail=detail
            )
        )

    def _remove_task(self, effect: fx.RemoveTask, hasher: ContentHasher) -> None:
        hasher.forget(effect.task_id)
        self._supervisor.spawn(self._removing(effect), "remove task")

    async def _removing(self, effect: fx.RemoveTask) -> None:
        try:
            await self._offload(self._store.remove, effect.task_id)
        except StoreError as error:
            if error.reason is not Reason.UNKNOWN_TASK:
                self._log.error("a task could not be removed", detail=error.detail)
        self.post(ev.TaskRemoved(now_ns=self._clock.now_ns(), task_id=effect.task_id))

    # ------------------------------------------------------------ questions to the scheduler

    async def count_holders(self, task_ids: tuple[TaskId, ...]) -> fx.HoldersCounted:
        """How many hosts hold these tasks, or why that is not known. The core bounds the wait."""
        request_id = self._own_request_id()
        future: asyncio.Future[fx.HoldersCounted] = asyncio.get_running_loop().create_future()
        self._counts[request_id] = future
        now_ns = self._clock.now_ns()
        self.post(ev.CountHolders(now_ns=now_ns, request_id=request_id, task_ids=task_ids))
        return await future

    def _holders_counted(self, effect: fx.HoldersCounted) -> None:
        future = self._counts.pop(effect.request_id, None)
        if future is not None and not future.done():
            future.set_result(effect)

    # ------------------------------------------------------------ people

    def _note(self, effect: fx.Noted) -> None:
        about = {
            "host": effect.host_id,
            "task": effect.task_id,
            "piece": effect.piece,
            "reason": effect.reason.value if effect.reason is not None else None,
        }
        fields = {name: value for name, value in about.items() if value is not None}
        write = self._log.warning if effect.reason is not None else self._log.info
        write(effect.text, kind=effect.kind, **fields)


def _ignore(_effect: object) -> None:
    """Nobody to send to: no scheduler is configured."""
