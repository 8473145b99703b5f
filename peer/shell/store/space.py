"""How much room the store has, uses and has promised, and what to evict: arithmetic alone.

A task's *share* is the room it takes: bytes written are used, bytes still to come are reserved
from the moment the task is opened until it is whole or removed. Used plus reserved is what it
occupies. Nothing here does IO; the caller serialises access.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from shoal.wire.errors import UsageError
from shoal.wire.ids import TaskId
from shoal.wire.limits import KIB

PERCENT: Final = 100
UNITS: Final = ("KiB", "MiB", "GiB", "TiB")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceLimits:
    """The configured limits of the store."""

    capacity_bytes: int = 0
    """Most bytes occupied; 0: what the file system has."""
    high_water_percent: int = 90
    """Eviction begins when so much of the capacity is occupied,"""
    low_water_percent: int = 80
    """and goes on until no more than this is."""

    def __post_init__(self) -> None:
        if self.capacity_bytes < 0:
            raise UsageError("store capacity: must not be negative")
        if not 0 <= self.low_water_percent < self.high_water_percent <= PERCENT:
            raise UsageError(
                f"store water marks {self.low_water_percent} % and {self.high_water_percent} %: "
                "low must be below high, both between 0 and 100"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreUsage:
    """The store's room. capacity = used + reserved + free, unless more is occupied than allowed
    (then free is 0)."""

    capacity_bytes: int
    """The configured capacity, or what the file system could give if that is less."""
    used_bytes: int
    """Written pieces."""
    reserved_bytes: int
    """Promised to tasks that are not whole yet."""
    free_bytes: int
    """What a new task may take now, without evicting anything."""

    @property
    def occupied_bytes(self) -> int:
        """Used or reserved."""
        return self.used_bytes + self.reserved_bytes


@dataclass(frozen=True, slots=True)
class Share:
    """The room of one task, in bytes."""

    used: int = 0
    reserved: int = 0
    unbacked: int = 0
    """The part of `reserved` that has no disk behind it yet (no preallocation)."""


NO_SHARE: Final = Share()


def share_of(size_bytes: int | None, written_bytes: int, *, backed: bool) -> Share:
    """The room of a task. `size_bytes` None: not known, so nothing can be reserved. `backed`: the
    file system has set its blocks aside already."""
    assert written_bytes >= 0
    if size_bytes is None:
        return Share(used=written_bytes)
    reserved = max(0, size_bytes - written_bytes)
    return Share(used=written_bytes, reserved=reserved, unbacked=0 if backed else reserved)


class Ledger:
    """The shares of all tasks and their sums."""

    def __init__(self) -> None:
        self._shares: dict[TaskId, Share] = {}
        self.used_bytes = 0
        self.reserved_bytes = 0
        self.unbacked_bytes = 0

    def share(self, task_id: TaskId) -> Share:
        """The room of a task; nothing for one that is not known."""
        return self._shares.get(task_id, NO_SHARE)

    def set(self, task_id: TaskId, share: Share) -> None:
        """A task's room is this now."""
        self._move(self._shares.get(task_id, NO_SHARE), share)
        self._shares[task_id] = share

    def clear(self, task_id: TaskId) -> None:
        """A task is gone."""
        self._move(self._shares.pop(task_id, NO_SHARE), NO_SHARE)

    def known(self) -> tuple[TaskId, ...]:
        """Every task with a share."""
        return tuple(self._shares)

    def validate(self) -> None:
        """Reservations balance: every sum is that of its parts, and nothing is negative."""
        shares = self._shares.values()
        assert self.used_bytes == sum(share.used for share in shares)
        assert self.reserved_bytes == sum(share.reserved for share in shares)
        assert self.unbacked_bytes == sum(share.unbacked for share in shares)
        for share in shares:
            assert share.used >= 0
            assert 0 <= share.unbacked <= share.reserved

    def _move(self, old: Share, new: Share) -> None:
        self.used_bytes += new.used - old.used
        self.reserved_bytes += new.reserved - old.reserved
        self.unbacked_bytes += new.unbacked - old.unbacked

    def usage(self, limits: SpaceLimits, disk_free_bytes: int) -> StoreUsage:
        """What there is, when the file system has so much free."""
        # Preallocated files are gone from what the file system calls free; promises without
        # blocks behind them still have to come out of it.
        disk_free = max(0, disk_free_bytes - self.unbacked_bytes)
        occupied = self.used_bytes + self.reserved_bytes
        capacity = occupied + disk_free
        if limits.capacity_bytes:
            capacity = min(capacity, limits.capacity_bytes)
        return StoreUsage(
            capacity_bytes=capacity,
            used_bytes=self.used_bytes,
            reserved_bytes=self.reserved_bytes,
            free_bytes=max(0, capacity - occupied),
        )


def in_words(size_bytes: int) -> str:
    """A size as people like to read it, in powers of 1024."""
    if size_bytes < KIB:
        return f"{size_bytes} bytes"
    steps = min((size_bytes.bit_length() - 1) // 10, len(UNITS))
    return f"{size_bytes / KIB**steps:.1f} {UNITS[steps - 1]}"


def no_room_text(usage: StoreUsage, needed_bytes: int) -> str:
    """Tells people that a task does not fit, and what to do."""
    return (
        f"{in_words(needed_bytes)} are needed and {in_words(usage.free_bytes)} are free in the "
        f"store: of {in_words(usage.capacity_bytes)} there are {in_words(usage.used_bytes)} in use "
        f"and {in_words(usage.reserved_bytes)} promised to unfinished downloads. Remove tasks with "
        "`shoal tasks rm`, free disk space or raise the capacity in the configuration"
    )


@dataclass(frozen=True, slots=True)
class Occupant:
    """A task as eviction sees it."""

    task_id: TaskId
    access_order: int
    """Rises with each use; the smallest is the least recently used."""
    occupied_bytes: int
    busy: bool
    """Pinned, lent or being written: never evicted."""


def choose_evictions(
    occupants: Iterable[Occupant], usage: StoreUsage, limits: SpaceLimits, room_bytes: int = 0
) -> list[TaskId]:
    """The least recently used tasks to evict so that the store, once above its high water mark,
    comes down to the low one, and so that `room_bytes` more fit. Fewer than needed if the rest is
    busy."""
    occupied = usage.occupied_bytes
    excess = max(0, occupied + room_bytes - usage.capacity_bytes) if room_bytes else 0
    if occupied * PERCENT >= usage.capacity_bytes * limits.high_water_percent and occupied:
        low = usage.capacity_bytes * limits.low_water_percent // PERCENT
        excess = max(excess, occupied - low)
    chosen: list[TaskId] = []
    if excess <= 0:
        return chosen
    idle = [one for one in occupants if not one.busy and one.occupied_bytes > 0]
    for occupant in sorted(idle, key=lambda one: (one.access_order, one.task_id)):
        if excess <= 0:
            break
        chosen.append(occupant.task_id)
        excess -= occupant.occupied_bytes
    return chosen
