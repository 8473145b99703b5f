"""What bounds a scheduler core, each with its unit and, where names are too little, the reason."""

from dataclasses import dataclass

from shoal.wire.limits import COLLECTION_TASKS_MAX, MIB, MILLISECOND_NS, SECOND_NS


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
    crowd_quiet_ns: int = 15 * MILLISECOND_NS
    """When nobody has come for so long, a crowd of newcomers is all there. They are answered then,
    with one message each: the longer it is, the later, and the shorter, the more crowds are taken
    for several, whose members need two."""
    holder_tasks_per_s_max: int = 2 * COLLECTION_TASKS_MAX
    """Tasks that one host may ask for the holders of in a second: two of the largest collections.
    Each costs a look at all of its holders."""
    holder_look_ns: int = 1_000
    """Each look at a holder is paid with so much time of all hosts' questions together. It takes a
    tenth of that, a third where hosts are away: questions never hold up the swarms for long."""
    holder_looks_saved_ns: int = 10 * SECOND_NS
    """Time that was not asked in is saved up to this: one question for the largest collection, of a
    thousand hosts that have all of it, is answered."""
    story_events_max: int = 256
