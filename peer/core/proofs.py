"""Whose right to a content was shown: what origins said to which credential, and for how long it
is believed. Decides whether a yes is a proof.

Whoever names a digest names the URL beside it, and may name a server of their own that says yes to
everything. So where bytes of the content are here that did not come by that URL, its yes proves
nothing unless the same bytes can be read there: then its client could have read them without us.
Which bytes are compared is drawn, so that nobody has only them ready. Where nothing is held the
content is read from that URL itself, and its digest protects.
"""

from dataclasses import dataclass

from peer.core.effects import Sample
from peer.core.events import Source
from peer.core.state import PeerState, Task, TaskPhase
from shoal.wire import bitfield
from shoal.wire.ids import SourceId
from shoal.wire.limits import KIB, SECOND_NS

VERDICT_TTL_NS = 300 * SECOND_NS
"""How long the origin's acceptance of a credential is believed for content with a digest."""

FRESHNESS_NS = 10 * SECOND_NS
"""The same for a plain URL, whose content may change."""

SAMPLE_BYTES = 64 * KIB
"""Compared with what an origin has: no piece is shorter, but for the last one, and it is nothing
beside reading the content there."""


@dataclass(slots=True)
class _Verdict:
    accepted_until_ns: int
    proven_until_ns: int


class Proofs:
    """Verdicts of origins, by source and credential."""

    def __init__(self, state: PeerState) -> None:
        self._state = state
        self._verdicts: dict[tuple[SourceId, str], _Verdict] = {}

    def accept(
        self, source_id: SourceId, credential: str, *, has_digest: bool, proven: bool
    ) -> None:
        """The origin said yes to a credential, or the scheduler says that it says so to anybody.
        `proven`: it is the content's own origin."""
        now_ns = self._state.now_ns
        if len(self._verdicts) > 2 * self._state.limits.collections_max:
            self._verdicts = {
                key: verdict
                for key, verdict in self._verdicts.items()
                if verdict.accepted_until_ns > now_ns
            }
        until_ns = now_ns + (VERDICT_TTL_NS if has_digest else FRESHNESS_NS)
        before = self._verdicts.get((source_id, credential))
        proven_until_ns = before.proven_until_ns if before is not None else 0
        self._verdicts[source_id, credential] = _Verdict(
            until_ns, until_ns if proven else proven_until_ns
        )

    def accepted(self, source: Source) -> bool:
        """Whether the origin said yes to the client's credential lately."""
        verdict = self._verdicts.get((source.source_id, source.credential))
        return verdict is not None and verdict.accepted_until_ns > self._state.now_ns

    def lacking(self, source: Source, task: Task | None) -> bool:
        """Whether a yes alone does not do: bytes of the content are here, or are coming for others
        who showed another right, and that the URL has them was not shown lately. Where somebody
        fetches it with the very same right, one more changes nothing."""
        if source.digest is None or source.origin_trusted or task is None:
            return False
        verdict = self._verdicts.get((source.source_id, source.credential))
        if verdict is not None and verdict.proven_until_ns > self._state.now_ns:
            return False
        shared = False
        for download_id in task.watchers:
            wish = self._state.downloads[download_id].wishes.get(source.source_id)
            if wish is None or wish.ended:
                continue
            if wish.source.credential == source.credential:
                return False
            shared = True
        return bool(self.comparable(task)) or (shared and task.origin_allowed)

    @staticmethod
    def comparable(task: Task) -> int:
        """The pieces that are here to be compared: of a content that is not sealed only what is
        confirmed, where anything is."""
        if task.phase is TaskPhase.REMOVING:
            return 0
        if task.phase is TaskPhase.SEALED:
            return task.held
        return task.held & task.confirmed or task.held

    def sample(self, task: Task) -> Sample | None:
        """A drawn range of what is here, all of it where that is less; None: there is nothing."""
        held = self.comparable(task)
        geometry = task.descriptor.geometry
        place = int(self._state.dice.random() * geometry.held_bytes(held))
        for first, count in bitfield.ranges(held):
            start, end = geometry.span_bytes(first, count)
            if place < end - start:
                start = max(start, min(start + place, end - SAMPLE_BYTES))
                return Sample(
                    task_id=task.task_id,
                    size_bytes=geometry.size_bytes,
                    start_byte=start,
                    end_byte=min(end, start + SAMPLE_BYTES),
                )
            place -= end - start
        return None

    def holds(self, sample: Sample) -> bool:
        """Whether the bytes are held still: what replaced others meanwhile proves nothing."""
        task = self._state.tasks.get(sample.task_id)
        if task is None:
            return False
        length = task.descriptor.geometry.piece_length_bytes
        first, last = sample.start_byte // length, (sample.end_byte - 1) // length
        pieces = bitfield.mask_of(first, last - first + 1)
        return not pieces & ~self.comparable(task)
