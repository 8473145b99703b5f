"""The whole-content digest, computed behind the contiguous prefix in threads of its own.

Reads what was written from the page cache, never from the network path, so that hashing does not
hold pieces up. Carries out `HashPrefix`; decides nothing.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from peer.core.effects import HashPrefix
from peer.core.events import AnyEvent, ContentHashed, StoreFailed
from peer.shell.store.errors import StoreError, from_os_error
from peer.shell.transfer.socket_channel import Lent
from shoal.runtime.clock import Clock
from shoal.runtime.tasks import Offload, Supervisor
from shoal.wire.digest import Hasher, content_hasher
from shoal.wire.errors import Reason
from shoal.wire.ids import TaskId
from shoal.wire.limits import MIB

TURN_BYTES: Final = 16 * MIB
"""Hashed in one call of a thread: several tasks take turns, and a stop never waits long."""

TURN_BYTES_MIN: Final = 4 * MIB
"""And at least so much while there is more to come: waking a thread costs as much as hashing some
hundred KiB. Larger pieces are hashed as they come."""

READ_BYTES: Final = 256 * 1024
"""Read at once: it stays in the processor's cache until it is hashed."""


class Lender(Protocol):
    """The part of the content store that hashing needs."""

    def lend(self, task_id: TaskId) -> Lent:
        """A file to read from. Raises StoreError."""
        ...


@dataclass(slots=True)
class _Progress:
    attempt: int
    hasher: Hasher
    done_bytes: int = 0
    target_bytes: int = 0
    final: bool = False
    running: bool = False


class ContentHasher:
    """Keeps one running digest per task. `offload` should have threads of its own."""

    def __init__(
        self,
        *,
        store: Lender,
        offload: Offload,
        clock: Clock,
        post: Callable[[AnyEvent], None],
        supervisor: Supervisor,
    ) -> None:
        self._store = store
        self._offload = offload
        self._clock = clock
        self._post = post
        self._supervisor = supervisor
        self._tasks: dict[TaskId, _Progress] = {}

    def advance(self, effect: HashPrefix) -> None:
        """The content is there up to here. A new attempt begins from the start."""
        progress = self._tasks.get(effect.task_id)
        if progress is None or progress.attempt != effect.epoch:
            progress = _Progress(effect.epoch, content_hasher(effect.algorithm))
            self._tasks[effect.task_id] = progress
        progress.target_bytes = effect.up_to_bytes
        progress.final = effect.final
        if not progress.running:
            progress.running = True
            self._supervisor.spawn(self._run(effect, progress), "content hash")

    def forget(self, task_id: TaskId) -> None:
        """The task is gone."""
        self._tasks.pop(task_id, None)

    async def _run(self, effect: HashPrefix, progress: _Progress) -> None:
        task_id = effect.task_id
        try:
            while self._tasks.get(task_id) is progress:
                waiting_bytes = progress.target_bytes - progress.done_bytes
                if waiting_bytes >= (1 if progress.final else TURN_BYTES_MIN):
                    await self._offload(self._hash_some, task_id, progress)
                elif progress.final:
                    self._end(effect, progress)
                    return
                else:
                    return
        except StoreError as error:
            if self._tasks.get(task_id) is progress:
                del self._tasks[task_id]
                self._post(
                    StoreFailed(
                        now_ns=self._clock.now_ns(),
                        task_id=task_id,
                        reason=error.reason,
                        detail=error.detail,
                    )
                )
        finally:
            progress.running = False

    def _end(self, effect: HashPrefix, progress: _Progress) -> None:
        del self._tasks[effect.task_id]
        self._post(
            ContentHashed(
                now_ns=self._clock.now_ns(),
                task_id=effect.task_id,
                epoch=progress.attempt,
                digest=f"{effect.algorithm}:{progress.hasher.digest().hex()}",
            )
        )

    def _hash_some(self, task_id: TaskId, progress: _Progress) -> None:
        """In a thread; the only one that touches this hasher."""
        end = min(progress.target_bytes, progress.done_bytes + TURN_BYTES)
        buffer = bytearray(min(READ_BYTES, end - progress.done_bytes))
        view = memoryview(buffer)
        lent = self._store.lend(task_id)
        try:
            while progress.done_bytes < end:
                part = view[: min(len(view), end - progress.done_bytes)]
                count = os.preadv(lent.fd, [part], progress.done_bytes)
                if count == 0:
                    raise StoreError(
                        Reason.DISK_FAILED, f"the stored file of task {task_id[:16]} is too short"
                    )
                progress.hasher.update(part[:count])
                progress.done_bytes += count
        except OSError as error:
            raise from_os_error(error, "hashing stored content") from error
        finally:
            lent.release()
