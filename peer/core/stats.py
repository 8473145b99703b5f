"""What origins are asked about contents, and what of their answers counts.

One stat at a time for each source and credential, whoever needs it. Decides when a yes is not
enough (`peer.core.proofs`), and then lets bytes be compared before anybody hears of it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from peer.core.effects import CancelOrigin, Noted, Sample, SendToScheduler, StatOrigin
from peer.core.events import Source, StatEnded
from peer.core.proofs import Proofs
from peer.core.state import PeerState, Task, TaskPhase
from shoal.wire.control import StatAnswer
from shoal.wire.errors import Reason
from shoal.wire.ids import RequestId, SourceId

LOCAL_FAULTS = frozenset({Reason.DISK_FAILED, Reason.DISK_FULL, Reason.DISK_READ_ONLY})
"""Of this host, which cannot read what is to be compared."""

SAMPLES_MAX = 3
"""Times that bytes are drawn for one client which are gone before they are compared."""


@dataclass(slots=True)
class _Stat:
    request_id: RequestId
    source: Source
    for_scheduler: bool
    sample: Sample | None = None
    samples: int = 0
    """How many were drawn so far."""


class Stats:
    """Keeps stats. `task_of(source)`: the content that it is, if it is known here; `is_wanted`:
    whether a client with this credential wants it still; `on_scheduler(source_id)`: the scheduler
    needs another one to ask; `on_yes(source, event)` and `on_no(source, event)`: what came of it,
    the latter where no scheduler decides what it means."""

    def __init__(
        self,
        state: PeerState,
        proofs: Proofs,
        *,
        task_of: Callable[[Source], Task | None],
        is_wanted: Callable[[Source], bool],
        on_scheduler: Callable[[SourceId], None],
        on_yes: Callable[[Source, StatEnded], None],
        on_no: Callable[[Source, StatEnded], None],
    ) -> None:
        self._state = state
        self._proofs = proofs
        self._task_of = task_of
        self._is_wanted = is_wanted
        self._on_scheduler = on_scheduler
        self._on_yes = on_yes
        self._on_no = on_no
        self._running: dict[tuple[SourceId, str], _Stat] = {}
        self._unproven: dict[tuple[SourceId, str], _Stat] = {}
        """Answered with a yes that is no proof, and nothing is held yet that could be compared."""

    def ask(self, source: Source, *, for_scheduler: bool) -> None:
        """Somebody has to know what the origin says."""
        key = (source.source_id, source.credential)
        known = self._running.get(key) or self._unproven.get(key)
        if known is not None:
            known.for_scheduler = known.for_scheduler or for_scheduler
        else:
            self._begin(_Stat(self._state.next_request_id(), source, for_scheduler))

    def _begin(self, stat: _Stat) -> None:
        source, task = stat.source, self._task_of(stat.source)
        if task is not None and self._proofs.lacking(source, task):
            stat.sample = self._proofs.sample(task)
            stat.samples += stat.sample is not None
        self._running[source.source_id, source.credential] = stat
        self._state.emit(
            StatOrigin(
                request_id=stat.request_id,
                source_id=source.source_id,
                credential=source.credential,
                sample=stat.sample,
            )
        )

    def drop(self, source: Source) -> None:
        """Nobody wants the source any more: whoever wants it again does not get the answer of a
        cancelled stat."""
        key = (source.source_id, source.credential)
        stat = self._running.get(key)
        if stat is not None and not stat.for_scheduler:
            del self._running[key]
            self._state.emit(CancelOrigin(request_id=stat.request_id))

    def go_on(self) -> None:
        """Asks again where a yes was no proof, once there is something to compare or nothing is
        lacking any more. At the end of every event."""
        if not self._unproven:
            return
        for key, stat in list(self._unproven.items()):
            task = self._task_of(stat.source)
            wanted = self._is_wanted(stat.source)
            lacking = task is not None and self._proofs.lacking(stat.source, task)
            if wanted and lacking and task is not None and not self._proofs.comparable(task):
                continue
            del self._unproven[key]
            if wanted:
                self._begin(replace(stat, request_id=self._state.next_request_id(), sample=None))
            elif stat.for_scheduler:
                self._on_scheduler(stat.source.source_id)

    # ------------------------------------------------------------ answers

    def ended(self, event: StatEnded) -> None:
        """The origin answered, or could not."""
        stat = next(
            (one for one in self._running.values() if one.request_id == event.request_id), None
        )
        if stat is None:
            return
        source = stat.source
        key = (source.source_id, source.credential)
        del self._running[key]
        judged = self._judged(stat, event)
        said_yes = judged.reason is None
        if said_yes and not judged.same and self._proofs.lacking(source, self._task_of(source)):
            # Nobody hears of it before the bytes that are here were found there.
            self._unproven[key] = stat
            return
        if self._state.scheduled and (stat.for_scheduler or said_yes):
            said_it = judged.reason is event.reason and event.reason not in LOCAL_FAULTS
            self._answer(source, judged, about_all=said_it)
        if said_yes:
            self._proofs.accept(
                source.source_id,
                source.credential,
                has_digest=source.digest is not None,
                proven=bool(judged.same) or source.origin_trusted,
            )
            self._on_yes(source, judged)
        elif not self._state.scheduled or source.credential or not stat.for_scheduler:
            self._on_no(source, judged)

    def _answer(self, source: Source, event: StatEnded, *, about_all: bool) -> None:
        """`about_all`: what the origin said, and no judgement of this host about one client."""
        answer = StatAnswer(
            source_id=source.source_id,
            outcome=event.reason,
            size_bytes=event.size_bytes,
            validator=event.validator,
            ranges=event.ranges,
            anonymous=not source.credential and about_all,
            retry_after_ms=event.retry_after_ms,
            detail=event.detail,
        )
        session = self._state.session
        assert session is not None
        self._state.emit(SendToScheduler(session=session.number, messages=(answer,)))

    def _judged(self, stat: _Stat, event: StatEnded) -> StatEnded:
        """An origin that lets a client have something of another size than the content with this
        digest, or other bytes, has said nothing about that content: it may be a page for signing
        in, or the client's own server. Nothing is wrong with what is held."""
        source, task = stat.source, self._task_of(stat.source)
        if event.reason is not None or source.digest is None or task is None:
            return event
        known = task.descriptor.geometry.size_bytes
        if known is not None and event.size_bytes not in (None, known):
            detail = f"the origin has {event.size_bytes} bytes, and the content {known}"
            return replace(event, reason=Reason.ORIGIN_CHANGED, detail=detail)
        if stat.sample is None or event.same:
            return event
        if event.same is False and self._proofs.holds(stat.sample):
            detail = "the origin has other bytes than the content with this digest: check the URL"
            if task.phase is not TaskPhase.SEALED:
                detail += (
                    "; if it is right, have the unchecked part removed that is held here "
                    f"(shoal tasks rm {task.task_id})"
                )
            self._state.emit(
                Noted(
                    kind="other-bytes",
                    text="a client named a URL that does not have the content of its digest",
                    task_id=task.task_id,
                    reason=Reason.ORIGIN_CHANGED,
                )
            )
            return replace(event, reason=Reason.ORIGIN_CHANGED, detail=detail)
        if stat.samples < SAMPLES_MAX or not self._proofs.lacking(source, task):
            return replace(event, same=None)
        detail = "what is held could not be compared with the origin: try again"
        return replace(event, reason=Reason.NOT_HELD, detail=detail)
