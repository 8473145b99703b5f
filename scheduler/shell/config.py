"""Every option of the scheduler daemon: unit, default and meaning. Decides nothing else."""

# ruff: noqa: RUF009 - option() and section() return dataclasses.field()

from dataclasses import dataclass
from typing import ClassVar, Literal

from scheduler.core.limits import SchedulerLimits
from shoal.runtime.config import option, section
from shoal.runtime.config_values import Duration, Endpoint
from shoal.runtime.sections import LogSection, TlsSection, check_listen
from shoal.wire.errors import UsageError
from shoal.wire.limits import MILLISECOND_NS, SECOND_NS

_LIMITS = SchedulerLimits()
"""The core's own defaults, so that each is written down in one place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusSection:
    """Health checks and metrics over HTTP."""

    listen: Endpoint | None = option(
        Endpoint("127.0.0.1", 4002),
        help="Where /healthz, /readyz, /metrics and /graph are served (plain HTTP; no secrets, but "
        "/graph names hosts); empty: nowhere.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginSection:
    """What hosts may ask of origins."""

    lease_ttl: Duration = option(
        Duration(_LIMITS.lease_ttl_ns),
        minimum=SECOND_NS,
        maximum=3600 * SECOND_NS,
        help="A lease without progress for so long is given to another host.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmSection:
    """Rules of the swarm."""

    hosts_max: int = option(
        _LIMITS.hosts_max, minimum=1, maximum=1_000_000, help="Most hosts connected at once."
    )
    piece_digest: Literal["xxh3-128", "blake3"] = option(
        "xxh3-128",
        help="How pieces are checked: xxh3-128 finds corruption at memory speed, blake3 also "
        "forged pieces, for hosts that are not trusted.",
    )
    token_ttl: Duration = option(
        Duration(_LIMITS.token_ttl_ns),
        minimum=60 * SECOND_NS,
        maximum=86400 * SECOND_NS,
        help="How long a swarm token opens other hosts' piece ports.",
    )
    report_interval_min: Duration = option(
        Duration(_LIMITS.report_interval_min_ns),
        minimum=10 * MILLISECOND_NS,
        maximum=60 * SECOND_NS,
        help="Hosts report progress at most so often, in a small swarm.",
    )
    report_interval_max: Duration = option(
        Duration(_LIMITS.report_interval_max_ns),
        minimum=10 * MILLISECOND_NS,
        maximum=60 * SECOND_NS,
        help="Hosts report progress at least so often, in a large swarm.",
    )

    def check(self) -> None:
        """Raises UsageError if the bounds of the report interval are the wrong way round."""
        if self.report_interval_min > self.report_interval_max:
            raise UsageError(
                f"report_interval_min = {self.report_interval_min} is longer than "
                f"report_interval_max = {self.report_interval_max}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """The scheduler daemon's configuration."""

    environment_prefix: ClassVar[str] = "SHOAL_SCHEDULER"

    listen: Endpoint = option(
        Endpoint("127.0.0.1", 4001), help="Where hosts connect; port 0: any free one."
    )
    scheduler_id: str = option("", help="The scheduler's name in logs; empty: a random one.")
    status: StatusSection = section(StatusSection)
    origin: OriginSection = section(OriginSection)
    swarm: SwarmSection = section(SwarmSection)
    tls: TlsSection = section(TlsSection)
    log: LogSection = section(LogSection)

    def check(self) -> None:
        """Raises UsageError for options that contradict one another."""
        check_listen("listen", self.listen, self.tls)

    def limits(self) -> SchedulerLimits:
        """The core's limits as configured."""
        return SchedulerLimits(
            hosts_max=self.swarm.hosts_max,
            lease_ttl_ns=self.origin.lease_ttl.nanoseconds,
            token_ttl_ns=self.swarm.token_ttl.nanoseconds,
            report_interval_min_ns=self.swarm.report_interval_min.nanoseconds,
            report_interval_max_ns=self.swarm.report_interval_max.nanoseconds,
        )
