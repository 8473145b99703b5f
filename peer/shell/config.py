"""Every option of the peer daemon, with its unit, default and meaning. Decides nothing else."""

# ruff: noqa: RUF009 - option() and section() return dataclasses.field()

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from peer.shell.api_socket import default_socket_path
from peer.shell.mirror.upstreams import parse_upstream
from peer.shell.origin.internal import InternalHosts
from shoal.runtime.config import option, section
from shoal.runtime.config_values import Duration, Endpoint, Rate, Size, parse_endpoint
from shoal.runtime.sections import LogSection, TlsSection, check_listen
from shoal.wire.errors import UsageError
from shoal.wire.limits import (
    ADDRESSES_PER_HOST_MAX,
    HOST_ID_CHARACTERS_MAX,
    MIB,
    MILLISECOND_NS,
    SECOND_NS,
)

WORKERS_MAX: Final = 64


def default_store_root() -> Path:
    """Where the daemon keeps content: the machine's place for root, else the user's own."""
    if os.geteuid() == 0:
        return Path("/var/lib/shoal")
    return Path("~/.local/share/shoal").expanduser()


def default_socket() -> Path:
    """Where the daemon's local API listens."""
    return default_socket_path(os.environ, os.geteuid())


def default_workers() -> int:
    """Threads for hashing and disk: more than this many cores one daemon cannot feed."""
    return min(8, max(2, os.cpu_count() or 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSection:
    """The content store."""

    root: Path = option(
        factory=default_store_root,
        default_text="`/var/lib/shoal` as root, else `~/.local/share/shoal`",
        help="Directory of the content store.",
    )
    capacity: Size = option(
        Size(0), unit="bytes", help="Most bytes of content kept; 0: all that the file system has."
    )
    high_water_percent: int = option(
        90, minimum=1, maximum=100, unit="%", help="Eviction begins when so much of it is used."
    )
    low_water_percent: int = option(
        80, minimum=0, maximum=100, unit="%", help="Eviction ends when so much is still used."
    )

    def check(self) -> None:
        """Raises UsageError if eviction could never end."""
        if self.low_water_percent >= self.high_water_percent:
            raise UsageError(
                f"low_water_percent = {self.low_water_percent} must be below "
                f"high_water_percent = {self.high_water_percent}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PieceSection:
    """The exchange of pieces with other hosts."""

    listen: Endpoint = option(
        Endpoint("127.0.0.1", 0), help="Where other hosts fetch pieces; port 0: any free one."
    )
    advertise: tuple[Endpoint, ...] = option(
        (),
        help="IP addresses and ports told to other hosts; port 0 stands for the port listened on. "
        "Empty: what is listened on; if that is 0.0.0.0 or [::], the addresses that this machine "
        "uses towards its schedulers when it starts.",
    )
    upload_rate: Rate = option(
        Rate(0), unit="bytes per second", help="Most payload sent to other hosts; 0: no limit."
    )
    download_rate: Rate = option(
        Rate(0),
        unit="bytes per second",
        help="Most payload received from other hosts and the origin; 0: no limit.",
    )
    memory_budget: Size = option(
        Size(128 * MIB), minimum=16 * MIB, unit="bytes", help="Memory for bytes in flight."
    )
    workers: int = option(
        factory=default_workers,
        default_text="cores, at least 2, at most 8",
        minimum=1,
        maximum=WORKERS_MAX,
        unit="threads",
        help="Threads that hash and write pieces.",
    )

    def check(self) -> None:
        """Raises UsageError if other hosts could not use an advertised address."""
        if len(self.advertise) > ADDRESSES_PER_HOST_MAX:
            raise UsageError(f"advertise: more than {ADDRESSES_PER_HOST_MAX} addresses")
        for endpoint in self.advertise:
            if not endpoint.is_ip:
                raise UsageError(f"advertise: {endpoint} is not an IP address with a port")
            if endpoint.is_unspecified:
                raise UsageError(f"advertise: {endpoint} is no address that other hosts can reach")


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSection:
    """The schedulers that this host belongs to."""

    addresses: tuple[Endpoint, ...] = option(
        (), help="Schedulers as host:port; without any, content comes from the origin alone."
    )
    embedded: bool = option(
        default=False, help="Run a scheduler inside this process: for a small site."
    )
    embedded_listen: Endpoint = option(
        Endpoint("127.0.0.1", 4001), help="Where the embedded scheduler listens."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSection:
    """The local API that `shoal get` and other commands use."""

    socket: Path = option(
        factory=default_socket,
        default_text="`/run/shoal/peer.sock` as root, else `$XDG_RUNTIME_DIR/shoal/peer.sock`",
        help="Unix socket of the local API.",
    )
    group: str = option(
        "", help="Users of this group may use the socket too; empty: the daemon's own user alone."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusSection:
    """Health checks and metrics over HTTP."""

    listen: Endpoint | None = option(
        Endpoint("127.0.0.1", 4003),
        help="Where /healthz, /readyz and /metrics are served (plain HTTP, nothing secret); "
        "empty: nowhere.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginSection:
    """Reading from origins."""

    connections_per_host: int = option(
        8, minimum=1, maximum=256, help="Most connections to one origin host."
    )
    connections_total: int = option(
        64,
        minimum=1,
        maximum=4096,
        help="Most connections to all origins together, and as many to where they redirect to.",
    )
    internal_hosts: tuple[str, ...] = option(
        (),
        help="Hosts at private, link-local or loopback addresses that an origin or registry may "
        "redirect to, as names, addresses or networks (10.1.0.0/16); it may always redirect to "
        "its own host and port.",
    )
    connect_timeout: Duration = option(
        Duration(10 * SECOND_NS),
        minimum=100 * MILLISECOND_NS,
        help="A connection not made in this time counts as failed.",
    )
    stall_timeout: Duration = option(
        Duration(30 * SECOND_NS),
        minimum=100 * MILLISECOND_NS,
        help="An origin that sends nothing for so long counts as failed.",
    )
    ca_file: Path | None = option(
        None, help="CA certificates, PEM, trusted for origins beside the system's own."
    )

    def check(self) -> None:
        """Raises UsageError for a host that is none."""
        InternalHosts(self.internal_hosts)


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorSection:
    """A registry mirror for container runtimes: containerd, CRI-O, podman, skopeo, Docker."""

    listen: tuple[Endpoint, ...] = option(
        (), help="Where the mirror listens (plain HTTP); empty, without dedicated: no mirror."
    )
    upstreams: tuple[str, ...] = option(
        (),
        help="Registries that may be asked, as reg.example:5000, or as name=URL where it is "
        "elsewhere or not https. No request can make this host ask any other.",
    )
    default: str = option(
        "", help="The registry of requests that name none, as Docker's; one of the upstreams."
    )
    dedicated: tuple[str, ...] = option(
        (),
        help="Listeners that each stand for one registry, as 127.0.0.1:4010=reg.example: for "
        "private registries with CRI-O, podman and skopeo, which compute what they ask a token "
        "for from the path.",
    )
    writes: bool = option(
        default=False,
        help="Pass pushes and deletions through to the registry, with the client's own credential; "
        "otherwise the mirror refuses them (405).",
    )
    verdict_ttl: Duration = option(
        Duration(60 * SECOND_NS),
        maximum=600 * SECOND_NS,
        help="How long a registry's yes to a client's credential counts for cached contents; "
        "never longer than its token says.",
    )

    @property
    def enabled(self) -> bool:
        """Whether there is a mirror."""
        return bool(self.listen or self.dedicated)

    @property
    def listeners(self) -> tuple[tuple[Endpoint, str], ...]:
        """The dedicated listeners. Raises UsageError."""
        pairs = [text.partition("=") for text in self.dedicated]
        return tuple((parse_endpoint(where.strip()), name.strip()) for where, _, name in pairs)

    def check(self) -> None:
        """Raises UsageError for a mirror that could not work."""
        names = [parse_upstream(text).name for text in self.upstreams]
        if self.enabled and not names:
            raise UsageError("upstreams: list the registries that the mirror is for")
        if self.default and self.default not in names:
            raise UsageError(f"default = {self.default}: list it among the upstreams")
        for endpoint, name in self.listeners:
            if name not in names:
                raise UsageError(f"dedicated: {endpoint}={name} is not among the upstreams")
        for endpoint in (*self.listen, *(each for each, _ in self.listeners)):
            if not endpoint.is_loopback:
                raise UsageError(
                    f"{endpoint} is not a loopback address: the mirror is for the runtime of this "
                    "host, whose credentials come to it in the clear"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerConfig:
    """The peer daemon's configuration."""

    environment_prefix: ClassVar[str] = "SHOAL_PEER"

    host_id: str = option(
        "",
        help="This host's id in the swarm; with TLS the common name of its certificate, which it "
        "must be; empty: that, or without TLS one that is made once and kept in the store.",
    )
    zone: str = option("", help="Hosts with cheap bandwidth among them (a rack, a site).")
    store: StoreSection = section(StoreSection)
    piece: PieceSection = section(PieceSection)
    scheduler: SchedulerSection = section(SchedulerSection)
    api: ApiSection = section(ApiSection)
    status: StatusSection = section(StatusSection)
    origin: OriginSection = section(OriginSection)
    mirror: MirrorSection = section(MirrorSection)
    tls: TlsSection = section(TlsSection)
    log: LogSection = section(LogSection)

    def check(self) -> None:
        """Raises UsageError for options that contradict one another."""
        if len(self.host_id) > HOST_ID_CHARACTERS_MAX:
            raise UsageError(f"host_id: more than {HOST_ID_CHARACTERS_MAX} characters")
        check_listen("piece.listen", self.piece.listen, self.tls)
        if self.scheduler.embedded:
            check_listen("scheduler.embedded_listen", self.scheduler.embedded_listen, self.tls)
