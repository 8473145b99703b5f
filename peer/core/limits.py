"""What bounds a peer core, each with its unit and, where names are too little, the reason."""

from dataclasses import dataclass

from shoal.wire.limits import MIB, MILLISECOND_NS, SECOND_NS


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerLimits:
    """What bounds a peer core. Tests and the simulator draw other values."""

    in_flight_bytes_max: int = 128 * MIB
    """Bytes requested and not yet stored, all sources together: the daemon's buffer budget."""
    pipeline_pieces_min: int = 2
    """Requests kept at one parent, so that it always has a next one to send."""
    pipeline_pieces_max: int = 64
    parents_max: int = 64
    """Connections to parents per collection; a wide view costs little, a narrow one much."""
    children_max: int = 1024
    """Connections from children that are served at once."""
    upload_queue_pieces_max: int = 64
    """Requests of one child waiting here; more get `busy`."""
    upload_queue_total_max: int = 4096
    """Requests of all children waiting here."""
    serving_max: int = 32
    """Pieces being sent at the same moment, over all children."""
    origin_reads_max: int = 4
    """Origin reads that run at once on this host."""
    origin_retries_max: int = 5
    """Transient origin failures in a row, without one good byte, before a task fails."""
    origin_retry_base_ns: int = 200 * MILLISECOND_NS
    origin_retry_max_ns: int = 30 * SECOND_NS
    duplicate_requests_max: int = 2
    """Copies of one piece asked for at once in the endgame."""
    request_timeout_min_ns: int = 2 * SECOND_NS
    """A parent from which nothing came for so long is stalled, however slow it was."""
    request_timeout_max_ns: int = 120 * SECOND_NS
    """No request is waited for longer, even if its bytes drip in."""
    request_timeout_factor: int = 6
    """Times the time that the parent's measured rate lets expect."""
    quarantine_corrupt_ns: int = 30 * SECOND_NS
    """First quarantine after wrong bytes; doubles with each strike."""
    quarantine_fault_ns: int = 1 * SECOND_NS
    """First quarantine after a stall or a lost connection; doubles with each strike."""
    quarantine_max_ns: int = 600 * SECOND_NS
    """Every quarantine expires: a ban for ever can leave a host with no parent at all."""
    strike_memory_ns: int = 600 * SECOND_NS
    """A parent without a new strike for so long starts clean."""
    connect_retry_ns: int = 1 * SECOND_NS
    report_interval_ns: int = 100 * MILLISECOND_NS
    """Progress is told to the scheduler at most so often, until it names another interval."""
    announce_interval_ns: int = 2 * MILLISECOND_NS
    """New pieces are told to children in batches of this time."""
    streaming_share_percent: int = 25
    """Of a streaming reader's requests, those that go in order while the rest goes rare first."""
    scheduler_grace_ns: int = 2 * SECOND_NS
    """How long a download waits for a scheduler before it helps itself, and how long the plan and
    the rules of a lost one hold."""
    orphan_origin_jitter_ns: int = 2 * SECOND_NS
    """Hosts that lost the scheduler turn to the origin spread over this time: no storm."""
    epochs_max: int = 3
    """Whole-content mismatches of one task before it fails for good."""
    holder_answer_ns: int = 2 * SECOND_NS
    """How long a scheduler may take to count holders: somebody sits before it, and one of an older
    version will never answer."""
    holder_questions_max: int = 32
    """Messages with such questions that wait for answers: three of the largest collections."""
    downloads_max: int = 1024
    collections_max: int = 4096
    story_events_max: int = 256
