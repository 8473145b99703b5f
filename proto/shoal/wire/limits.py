"""Every cap of the protocol and the cores, each with its unit and the reason for its value."""

from dataclasses import dataclass
from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * 1024
GIB: Final = 1024 * 1024 * 1024
MILLISECOND_NS: Final = 1_000_000
SECOND_NS: Final = 1_000_000_000

PIECE_LENGTH_BYTES_MIN: Final = 256 * KIB
"""Below this the cost per piece (frames, hashing calls, bookkeeping) outweighs its bytes."""

PIECE_LENGTH_BYTES_MAX: Final = 8 * MIB
"""A piece is held in memory until it is verified; larger ones would eat the buffer budget."""

PIECE_LENGTH_BYTES_USUAL: Final = 512 * KIB
"""Contents of more than 16 MiB have no shorter pieces: each piece costs a host a millisecond or two
of CPU in all, however short."""

PIECES_PER_TASK_FEW: Final = 64
"""Pieces that a shorter content is cut into at least, as far as they may be that short."""

PIECES_PER_TASK_TARGET: Final = 1024
"""Pieces that a task is cut into where the bounds above allow it."""

PIECES_PER_TASK_MAX: Final = 1 << 20
"""8 TiB at the largest piece; bounds bitmaps to 128 KiB."""

RUN_BYTES_MAX: Final = 64 * MIB
"""The largest unit of leases and of the swarm map; larger ones leave the last host waiting."""

UNIT_BYTES_MIN: Final = 1 * MIB
"""The least unit that is dealt out to stripes and read from the origin at once: each costs the
origin a request."""

UNIT_BYTES_MAX: Final = RUN_BYTES_MAX

MAP_UNITS_TARGET: Final = 512
"""Units that a collection is cut into where the bounds above allow it: enough that the last one
costs a five hundredth, few enough to tell everybody of everybody's."""

STRIPES_MAX: Final = 64
"""Trees of one swarm that a host can be told of; a handful is the best that simulations know."""

DIRECTORY_HOSTS_MAX: Final = 1 << 20
"""Numbers that hosts of one swarm get, one after the other, while it lasts."""

MAP_CHANGES_MAX: Final = 65_536
"""Entries of each kind in one map: some ten bytes each, so that they fit a message. A larger map
is told in several."""

FRAME_BYTES_MAX: Final = 256 * KIB
"""Longest frame without payload: a bitmap of the largest task and its envelope."""

REQUESTS_PER_FRAME_MAX: Final = 256
"""More than a full pipeline of one parent."""

RANGES_PER_FRAME_MAX: Final = 8192
"""Worst case of alternating pieces still fits a frame; a longer list is split."""

COLLECTION_TASKS_MAX: Final = 10_000
"""Files of the largest model repositories seen, times ten."""

ADDRESSES_PER_HOST_MAX: Final = 16
HOST_ID_CHARACTERS_MAX: Final = 64
VALIDATOR_CHARACTERS_MAX: Final = 1024
TEXT_CHARACTERS_MAX: Final = 2048
"""Free text from another host (an error's detail) is cut to this before it is kept."""

STATEMENTS_PER_MESSAGE_MAX: Final = 8192
"""Piece digests in one control message: about 200 kB, well under gRPC's own 4 MiB."""

CONTROL_MESSAGE_BYTES_MAX: Final = 4 * MIB


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
    downloads_max: int = 1024
    collections_max: int = 4096
    story_events_max: int = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """What bounds a scheduler core."""

    hosts_max: int = 20_000
    collections_max: int = 100_000
    collections_per_host_max: int = 4096
    parents_max: int = 64
    """Parents named to one host per collection at most."""
    mesh_hosts_max: int = 16
    """Swarms up to this size connect everybody to everybody; beyond, each host is told its parents
    and a map of who holds what."""
    map_hosts_usual: int = 256
    """Hosts of one swarm that the others are told of; the rest are fed, and feed, all the same.
    What half of a swarm holds, half of so many hold."""
    map_zone_hosts: int = 4
    """So many of each zone are told of beyond that: pulls stay in the zone."""
    map_hosts_max: int = 2048
    """And with all zones, and those who alone hold something, at most so many."""
    lease_ttl_ns: int = 30 * SECOND_NS
    """A lease without progress for so long is given to another host."""
    lease_window_runs_min: int = 2
    """Leases a host holds at least while runs are left, so that its origin reads never pause."""
    lease_window_bytes_max: int = 512 * MIB
    """Leased and unread bytes of one host and task at most."""
    stat_ttl_ns: int = 30 * SECOND_NS
    """A stat not answered in this time is given to another host."""
    verdict_ttl_ns: int = 300 * SECOND_NS
    """How long an origin's acceptance of a host's credential is believed."""
    freshness_ns: int = 10 * SECOND_NS
    """How long a plain URL's validator is believed before a new join asks the origin again."""
    host_grace_ns: int = 10 * SECOND_NS
    """A host whose stream broke keeps its place so long."""
    token_ttl_ns: int = 3600 * SECOND_NS
    epochs_max: int = 3
    digests_per_message_max: int = 4096
    report_interval_min_ns: int = 200 * MILLISECOND_NS
    report_interval_max_ns: int = 2 * SECOND_NS
    report_interval_per_host_ns: int = 1 * MILLISECOND_NS
    """Reports per second over all hosts stay near a thousand, between these two."""
    map_interval_ns: int = 250 * MILLISECOND_NS
    """Maps, parents and digests are pushed to each host of a swarm at least so often while they
    change."""
    push_interval_min_ns: int = 50 * MILLISECOND_NS
    push_interval_per_host_ns: int = 250_000
    """And at most so often, times the hosts: four messages a millisecond, all hosts together."""
    push_first_ns: int = 25 * MILLISECOND_NS
    """The first news after a pause is told to a small swarm after this time: a small file does not
    wait, and what comes one behind the other goes together."""
    story_events_max: int = 256
