"""Which epoch of piece digests a task is in, and when a newer one begins. Decides that alone.

An epoch is one attempt at the piece digests of a content; it is void when the whole content's
digest does not fit. What is sealed has passed that digest: it outlives every epoch, and its host
only calls it by the present number, because hosts take pieces of no other epoch than their own.
"""

from collections.abc import Callable
from dataclasses import replace

from scheduler.core.effects import Noted
from scheduler.core.origin_lease import LeaseOffice
from scheduler.core.state import SchedulerState, Task
from scheduler.core.swarm import Swarms
from shoal.wire import control as msg
from shoal.wire.errors import Reason
from shoal.wire.ids import HostId


class Epochs:
    """Keeps the epochs of tasks. `on_hopeless(task, reason, detail)`: nobody will get it right;
    `on_host_false(task, host, detail)`: one host did not, and others have."""

    def __init__(
        self,
        state: SchedulerState,
        *,
        leases: LeaseOffice,
        swarms: Swarms,
        on_hopeless: Callable[[Task, Reason, str], None],
        on_host_false: Callable[[Task, HostId, str], None],
    ) -> None:
        self._state = state
        self._leases = leases
        self._swarms = swarms
        self._on_hopeless = on_hopeless
        self._on_host_false = on_host_false

    # ------------------------------------------------------------ of this scheduler

    def checked(self, host_id: HostId, checked: msg.Checked) -> None:
        """A host computed the whole content's digest."""
        task = self._state.tasks.get(checked.task_id)
        if task is None or checked.epoch != task.descriptor.epoch:
            return
        if checked.passed:
            task.sealed[host_id] = None
            self._leases.name_liars(task)
            geometry = task.descriptor.geometry
            if geometry.size_bytes is not None:
                self._swarms.holds(task, host_id, geometry.all_pieces)
            return
        expected = task.descriptor.digest
        detail = f"the content has the digest {checked.digest}, not {expected}"
        if task.sealed:
            detail += "; other hosts have it right: check this host's memory and disk"
            self._on_host_false(task, host_id, detail)
        elif _same_twice(task) or task.descriptor.epoch >= self._state.limits.epochs_max:
            detail += ": check the digest that was asked for, and the origin"
            self._on_hopeless(task, Reason.DIGEST_MISMATCH, detail)
        else:
            self._void(task, host_id, detail)

    def _void(self, task: Task, host_id: HostId, detail: str) -> None:
        task.old_lists.append(task.listed)
        # One host alone reads everything now, the one that complained if it did not before.
        choices = [host_id, *(other for other in task.wanted if other != host_id)]
        task.sole_reader = next((h for h in choices if h not in task.sole_readers), None)
        if task.sole_reader is not None:
            task.sole_readers[task.sole_reader] = None
        epoch = task.descriptor.epoch + 1
        self._begin(task, epoch, host_id, f"as {host_id} found: {detail}; read again as epoch")

    def _begin(self, task: Task, epoch: int, host_id: HostId, why: str) -> None:
        """All that was told of the present epoch is void."""
        task.listed = {}
        task.listed_pieces = 0
        task.fresh = []
        task.descriptor = replace(task.descriptor, epoch=epoch)
        self._leases.void(task)
        for holder in list(task.holders):
            if holder not in task.sealed:
                self._swarms.lost(task, holder)
        task.digests_asked.clear()
        self._state.effects.append(
            Noted(
                kind="epoch-voided",
                text=f"{why} {epoch}",
                host_id=host_id,
                task_id=task.task_id,
                reason=Reason.DIGEST_MISMATCH,
            )
        )
        for other in dict.fromkeys((*task.wanted, *task.sealed)):
            self._tell(task, other)
        self._leases.changed(task)

    def _tell(self, task: Task, host_id: HostId) -> None:
        epoch = task.descriptor.epoch
        self._state.send(host_id, msg.EpochVoided(task_id=task.task_id, epoch=epoch))

    # ------------------------------------------------------------ of a scheduler before it

    def is_possible(self, epoch: int) -> bool:
        """Whether any scheduler ever names such an epoch."""
        return 1 <= epoch <= self._state.limits.epochs_max

    def heard(self, task: Task, host_id: HostId, holding: msg.Holding, *, reads: bool) -> bool:
        """Takes in the epoch of an inventory; whether what it holds of the task counts. `reads`:
        the host works on a lease of it.

        A scheduler that was restarted knows of no epoch but from inventories, and hosts that
        missed a void one still tell of it: the newest counts that anybody tells of. That is a
        host's word and no proof, like all of an inventory, so a liar may void what is not sealed.
        Its word is bounded in what it can do:

        - An epoch that no scheduler names is not believed (`is_possible`), so that nobody can do
          it more often than mismatches, which any host may report, could.
        - It counts only while hosts that lost a scheduler come back: for the grace time since
          this one heard of the task first. What this scheduler has had read since then is not
          voided by a latecomer.
        - A host that has nothing of that epoch loses nothing by the present one, and voids nothing.
        - What is sealed stays, wherever it is.

        Whoever tells of a newer epoch that does not count gives way: the present one is described
        to it, and it begins anew. What it claims to hold is checked as everything is, by those who
        fetch it.
        """
        told = holding.descriptor.epoch
        grace_ends_ns = task.known_ns + self._state.limits.host_grace_ns
        if (
            told > task.descriptor.epoch
            and self._state.now_ns <= grace_ends_ns
            and (holding.held or holding.sealed or reads)
        ):
            self._begin(task, told, host_id, f"{host_id} tells of epoch")
        if told == task.descriptor.epoch:
            return True
        if holding.sealed:
            self._tell(task, host_id)
        return holding.sealed


def _same_twice(task: Task) -> bool:
    """A whole second reading by other hosts gave the same pieces: the origin is what it is."""
    if not task.old_lists:
        return False
    return all(
        (stated := task.listed.get(piece)) is not None and stated.digest == old.digest
        for piece, old in task.old_lists[-1].items()
    )
