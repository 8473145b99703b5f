"""Who may read what from the origin, until when. Decides leases, never reads anything.

Each piece is leased once while nobody holds it. Who gets the next lease, `scheduler.core.granting`
decides.
"""

from collections.abc import Callable

from scheduler.core.effects import Noted
from scheduler.core.granting import Granting
from scheduler.core.state import Collection, Lease, Reader, SchedulerState, Source, Stated, Task
from shoal.wire import bitfield
from shoal.wire import control as msg
from shoal.wire.errors import TRANSIENT_ORIGIN, Reason
from shoal.wire.ids import NO_LEASE, HostId, LeaseNumber
from shoal.wire.limits import MILLISECOND_NS, SECOND_NS

LEASE_GRACE_NS = 1 * SECOND_NS
"""A host whose stream broke keeps its leases so long: a new stream takes less."""

HOST_FAILURES_MAX = 3
"""Transient failures of one host in a row before it reads no more of this task."""

TASK_FAILURES_MAX = 12
"""Transient failures in a row, over all hosts, before the task is given up."""

RETRY_BASE_MS = 200


class LeaseOffice:
    """Grants, renews and takes back leases. `on_hopeless(task, reason, detail)`: nobody can read
    what is missing. `on_unproven(source, host)`: the host's verdict expired, ask the origin anew;
    gives the time to look again. `roots_of(collection)`: who reads each stripe, and the length of a
    unit in bytes; `on_slow(collection, host)`: a root keeps all others waiting."""

    def __init__(
        self,
        state: SchedulerState,
        *,
        on_hopeless: Callable[[Task, Reason, str], None],
        on_unproven: Callable[[Source, HostId], int],
        roots_of: Callable[[Collection], tuple[list[HostId], int]],
        on_slow: Callable[[Collection, HostId], None],
    ) -> None:
        self._state = state
        self._on_hopeless = on_hopeless
        self._granting = Granting(
            state,
            give=self._give,
            outstanding_bytes=self._outstanding_bytes,
            look_again_at=self._check_at,
            on_hopeless=on_hopeless,
            on_unproven=on_unproven,
            roots_of=roots_of,
            on_slow=on_slow,
        )
        self._by_host: dict[HostId, dict[LeaseNumber, Lease]] = {}
        self._next_check_ns: int | None = None

    def changed(self, task: Task) -> None:
        """Leases of the task may be granted that could not be before."""
        self._granting.changed(task)

    def grant_all(self) -> None:
        """Grants what can be granted now. Called at the end of every event."""
        self._granting.grant_all()

    # ------------------------------------------------------------ leases

    def _outstanding_bytes(self, host_id: HostId) -> int:
        """Bytes leased to a host and not yet read."""
        held = self._by_host.get(host_id, {})
        for number in [number for number in held if number not in self._state.leases]:
            del held[number]
        return sum(
            self._state.tasks[lease.task_id].descriptor.geometry.held_bytes(lease.pieces)
            for lease in held.values()
        )

    def _give(self, task: Task, host_id: HostId, first: int, count: int | None) -> None:
        number = self._state.next_lease_number()
        expires_ns = self._state.now_ns + self._state.limits.lease_ttl_ns
        if count is not None:
            pieces = bitfield.mask_of(first, count)
        elif task.descriptor.geometry.size_bytes is not None:
            pieces = task.descriptor.geometry.all_pieces & ~task.covered
        else:
            pieces = 0
        self._keep(
            Lease(
                number=number,
                task_id=task.task_id,
                host_id=host_id,
                pieces=pieces,
                sequential=count is None,
                expires_ns=expires_ns,
                granted_ns=self._state.now_ns,
            )
        )
        task.leased |= pieces
        task.readers.setdefault(host_id, Reader()).leases[number] = None
        self._state.leases_granted += 1
        self._check_at(expires_ns)
        self._state.tell(task.task_id, f"lease {number}: {first}+{count} to {host_id}")
        lease = msg.Lease(
            number=number,
            task_id=task.task_id,
            epoch=task.descriptor.epoch,
            first_piece=first,
            piece_count=count,
            ttl_ms=self._state.limits.lease_ttl_ns // MILLISECOND_NS,
        )
        self._state.send(host_id, msg.Leases(granted=(lease,)))

    def _keep(self, lease: Lease) -> None:
        self._state.leases[lease.number] = lease
        self._by_host.setdefault(lease.host_id, {})[lease.number] = lease

    # ------------------------------------------------------------ answers

    def stated(self, host_id: HostId, statement: msg.Statement) -> None:
        """A host states the digest of a piece that it read."""
        task = self._state.tasks.get(statement.task_id)
        if task is None or statement.epoch != task.descriptor.epoch:
            return
        geometry = task.descriptor.geometry
        bit = 1 << statement.piece
        if geometry.size_bytes is not None and bit > geometry.all_pieces:
            return
        lease = self._state.leases.get(statement.lease_number)
        if lease is not None and lease.host_id == host_id and lease.task_id == task.task_id:
            if not lease.sequential and not lease.pieces & bit:
                return
            lease.pieces &= ~bit
            lease.expires_ns = self._state.now_ns + self._state.limits.lease_ttl_ns
            self._check_at(lease.expires_ns)
            task.leased &= ~bit
            reader = task.readers.get(host_id)
            if reader is not None:
                reader.failures = 0
            task.origin_failures = 0
            self.changed(task)
            self._granting.got_room(host_id)
        elif task.leased & bit or statement.piece in task.listed:
            # A lease that was taken back, or an old one: the present holder's word counts.
            return
        known = task.listed.get(statement.piece)
        if known is not None and known.digest == statement.digest:
            return
        # Another digest under a later lease: the earlier copy was lost or doubted, and so is its
        # digest. If both are wrong the whole digest will tell.
        self._list(task, statement.piece, statement.digest, statement.lease_number, host_id)

    def _list(
        self, task: Task, piece: int, digest: bytes, number: LeaseNumber, host_id: HostId
    ) -> None:
        task.listed[piece] = Stated(digest, number, host_id)
        task.listed_pieces |= 1 << piece
        task.fresh.append(piece)

    def name_liars(self, task: Task) -> None:
        """The epoch's whole digest has passed: whoever stated otherwise before was wrong."""
        liars: dict[HostId, int] = {}
        for old in task.old_lists:
            for piece, stated in old.items():
                now = task.listed.get(piece)
                if now is not None and now.digest != stated.digest:
                    liars.setdefault(stated.host_id, piece)
        task.old_lists.clear()
        task.sole_reader = None
        for liar, piece in liars.items():
            self._state.effects.append(
                Noted(
                    kind="blamed",
                    text=f"stated a wrong digest, among others for piece {piece}",
                    host_id=liar,
                    task_id=task.task_id,
                    reason=Reason.PEER_CORRUPT,
                )
            )
            reader = task.readers.get(liar)
            if reader is not None:
                reader.excluded = True
        if not liars:
            return
        message = msg.EpochVoided(
            task_id=task.task_id, epoch=task.descriptor.epoch, liars=tuple(liars)
        )
        for host_id in task.wanted:
            self._state.send(host_id, message)

    def listed_by_holder(self, host_id: HostId, answer: msg.DigestList) -> None:
        """A holder tells digests that this scheduler does not know (it was restarted)."""
        task = self._state.tasks.get(answer.task_id)
        if (
            task is None
            or answer.epoch != task.descriptor.epoch
            or host_id not in task.digests_asked
        ):
            return
        for offset, digest in enumerate(answer.digests):
            piece = answer.first_piece + offset
            if digest and piece not in task.listed and task.holders.get(host_id, 0) >> piece & 1:
                self._list(task, piece, digest, NO_LEASE, host_id)

    def ended(self, host_id: HostId, end: msg.LeaseEnd) -> None:
        """A host used a lease up, or gives it back."""
        lease = self._state.leases.get(end.number)
        if lease is None or lease.host_id != host_id:
            return
        task = self._state.tasks.get(lease.task_id)
        self._take_back(lease)
        if task is None:
            return
        reader = task.readers.get(host_id)
        if reader is None:
            return
        if end.outcome is None:
            self._measure(lease)
            if not self._outstanding_bytes(host_id):
                self._granting.ran_dry(host_id)
        elif end.outcome is not Reason.CANCELLED:
            self._failed(task, reader, host_id, end)
        self.changed(task)

    def _measure(self, lease: Lease) -> None:
        host = self._state.hosts[lease.host_id]
        if lease.granted_ns:
            began_ns = max(lease.granted_ns, host.lease_ended_ns)
            host.lease_took_ns = self._state.now_ns - began_ns
        host.lease_ended_ns = self._state.now_ns

    def _failed(self, task: Task, reader: Reader, host_id: HostId, end: msg.LeaseEnd) -> None:
        assert end.outcome is not None
        self._state.effects.append(
            Noted(
                kind="origin-read-failed",
                text=end.detail,
                host_id=host_id,
                task_id=task.task_id,
                reason=end.outcome,
            )
        )
        task.last_failure = end.detail or end.outcome.value
        if end.outcome is Reason.ORIGIN_CHANGED:
            self._on_hopeless(task, end.outcome, end.detail)
            return
        reader.failures += 1
        if end.outcome in TRANSIENT_ORIGIN:
            task.origin_failures += 1
            if task.origin_failures > TASK_FAILURES_MAX:
                self._on_hopeless(task, end.outcome, end.detail)
                return
            pause_ms = max(end.retry_after_ms, RETRY_BASE_MS << min(reader.failures, 8))
            reader.retry_at_ns = self._state.now_ns + pause_ms * MILLISECOND_NS
            self._check_at(reader.retry_at_ns)
            reader.excluded = reader.failures > HOST_FAILURES_MAX
        else:
            reader.excluded = True
            source = self._state.sources.get(task.descriptor.source_id)
            if source is not None:
                source.verdicts.pop(host_id, None)

    def _take_back(self, lease: Lease) -> None:
        del self._state.leases[lease.number]
        self._granting.got_room(lease.host_id)
        task = self._state.tasks.get(lease.task_id)
        if task is None:
            return
        task.leased &= ~lease.pieces
        reader = task.readers.get(lease.host_id)
        if reader is not None:
            reader.leases.pop(lease.number, None)
        self.changed(task)

    def adopt(self, host_id: HostId, held: msg.HeldLease, *, epoch: int | None) -> None:
        """A host still works on a lease: of this scheduler before the stream broke, or of one
        before a restart. It keeps it, unless others read those pieces meanwhile, or it is of an
        epoch that is void by now. `epoch`: the one that the host told, if it did."""
        task = self._state.tasks.get(held.task_id)
        if task is None:
            return
        present = self._state.leases.get(held.number)
        if present is not None:
            if present.host_id == host_id:
                present.expires_ns = self._state.now_ns + self._state.limits.lease_ttl_ns
                self._check_at(present.expires_ns)
            return
        geometry = task.descriptor.geometry
        pieces = held.pieces & ~task.leased & ~task.covered
        if geometry.size_bytes is not None:
            pieces &= geometry.all_pieces
        sequential = geometry.size_bytes is None or not task.descriptor.ranges
        taken = sequential and any(reader.leases for reader in task.readers.values())
        void = epoch not in (None, task.descriptor.epoch)
        if taken or void or not (pieces or sequential):
            self._state.send(host_id, msg.Leases(revoked=(held.number,)))
            return
        expires_ns = self._state.now_ns + self._state.limits.lease_ttl_ns
        self._keep(Lease(held.number, task.task_id, host_id, pieces, sequential, expires_ns))
        self._check_at(expires_ns)
        task.leased |= pieces
        reader = task.readers.setdefault(host_id, Reader())
        reader.leases[held.number] = None

    def forget_run(self, host_id: HostId, kept: tuple[msg.HeldLease, ...]) -> None:
        """A host has a new stream: nobody works on the leases that it does not name, those of an
        earlier run or ones that it was never told."""
        numbers = {held.number for held in kept}
        for lease in list(self._state.leases.values()):
            if lease.host_id == host_id and lease.number not in numbers:
                self._take_back(lease)

    # ------------------------------------------------------------ taking back

    def _check_at(self, when_ns: int) -> None:
        if self._next_check_ns is None or when_ns < self._next_check_ns:
            self._next_check_ns = when_ns
            self._state.wake_at(when_ns)

    def tick(self) -> None:
        """Takes back leases without progress, and those of hosts that are gone."""
        now_ns = self._state.now_ns
        if self._next_check_ns is None or self._next_check_ns > now_ns:
            return
        self._next_check_ns = None
        for lease in list(self._state.leases.values()):
            host = self._state.hosts.get(lease.host_id)
            gone = host is None or (
                host.session is None and now_ns - host.lost_ns >= LEASE_GRACE_NS
            )
            if not gone and lease.expires_ns > now_ns:
                self._check_at(lease.expires_ns)
                if host is not None and host.session is None:
                    self._check_at(host.lost_ns + LEASE_GRACE_NS)
                continue
            self._state.tell(lease.task_id, f"lease {lease.number} of {lease.host_id} expired")
            self._take_back(lease)
            if not gone:
                self._state.send(lease.host_id, msg.Leases(revoked=(lease.number,)))
        for task in self._state.tasks.values():
            if task.wanted:
                self.changed(task)

    def host_lost(self) -> None:
        """A stream broke: its leases are looked at again after a short grace."""
        self._check_at(self._state.now_ns + LEASE_GRACE_NS)

    def release(self, task: Task, host_id: HostId) -> None:
        """A host wants a task no longer: its leases of it are free again."""
        reader = task.readers.pop(host_id, None)
        if reader is None or not reader.leases:
            return
        self._state.send(host_id, msg.Leases(revoked=tuple(reader.leases)))
        for number in reader.leases:
            self._take_back(self._state.leases[number])

    def exclude(self, task: Task, host_id: HostId, detail: str) -> None:
        """The origin does not let a host read the task any more."""
        reader = task.readers.setdefault(host_id, Reader())
        reader.excluded = True
        task.last_failure = detail
        self.changed(task)

    def void(self, task: Task) -> None:
        """A new epoch: all leases of the old one are void."""
        for host_id, reader in task.readers.items():
            if reader.leases:
                self._granting.got_room(host_id)
            for number in list(reader.leases):
                del self._state.leases[number]
            reader.leases.clear()
        task.leased = 0

    def source_checked(self, source: Source) -> None:
        """A host's right was proven: leases of the task may go to it."""
        if source.task_id is not None and source.task_id in self._state.tasks:
            self.changed(self._state.tasks[source.task_id])
