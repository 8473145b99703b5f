"""`shoal peer`: a peer with its local API, status endpoints and an orderly end.

The place where the configuration becomes objects. Decides nothing.
"""

import asyncio
import os
import secrets
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from peer.shell.api import LocalApi
from peer.shell.config import PeerConfig
from peer.shell.node import NodeOptions, PeerNode
from peer.shell.origin.http import HttpOptions
from peer.shell.origin.internal import InternalHosts
from peer.shell.store.space import SpaceLimits
from shoal.garbage import collect_less
from shoal.runtime import tls
from shoal.runtime.clock import MonotonicClock
from shoal.runtime.config_values import Endpoint
from shoal.runtime.logs import Log
from shoal.runtime.metrics import Metrics
from shoal.runtime.status_http import StatusServer
from shoal.runtime.version import software_version
from shoal.wire.control import Address
from shoal.wire.errors import UsageError
from shoal.wire.ids import HostId

if TYPE_CHECKING:
    from collections.abc import Mapping

    from peer.shell.mirror.server import RegistryMirror
    from peer.shell.proxy.server import ForwardProxy

HOST_ID_FILE: Final = "host-id"
DRAIN_S: Final = 10.0
"""How long pieces that are being sent may still take at the end."""


def stable_host_id(store_root: Path) -> HostId:
    """The id kept in the store's root, or a new one. `keep_host_id` writes it down later: a
    directory that is not a store yet must stay empty until the store has made itself in it."""
    path = store_root / HOST_ID_FILE
    try:
        text = path.read_text().strip() if path.exists() else ""
    except OSError as error:
        raise UsageError(
            f"store.root {store_root}: {error.strerror}; give a directory that this user may read"
        ) from error
    return HostId(text or f"{os.uname().nodename[:40] or 'host'}-{secrets.token_hex(4)}")


def keep_host_id(store_root: Path, host_id: HostId) -> None:
    """Writes the id down. Raises UsageError."""
    try:
        (store_root / HOST_ID_FILE).write_text(host_id + "\n")
    except OSError as error:
        raise UsageError(f"store.root {store_root}: {error.strerror}") from error


def host_id_of(config: PeerConfig) -> HostId:
    """Who this host is. With TLS the certificate says it, and everybody compares. Raises
    UsageError."""
    if not config.tls.enabled:
        return HostId(config.host_id) if config.host_id else stable_host_id(config.store.root)
    name = tls.own_name(config.tls)
    if config.host_id and config.host_id != name:
        raise UsageError(
            f"host_id = {config.host_id}: tls.certificate {config.tls.certificate} is of {name!r}, "
            "and the common name must be the host_id: leave host_id empty to use it"
        )
    return HostId(name)


def node_options(config: PeerConfig, *, schedulers: tuple[str, ...]) -> NodeOptions:
    """The configuration as the node wants it."""
    return NodeOptions(
        host_id=host_id_of(config),
        store_root=config.store.root,
        zone=config.zone,
        space=SpaceLimits(
            capacity_bytes=config.store.capacity,
            high_water_percent=config.store.high_water_percent,
            low_water_percent=config.store.low_water_percent,
        ),
        listen=((config.piece.listen.host, config.piece.listen.port),),
        advertise=tuple(Address(each.host, each.port) for each in config.piece.advertise),
        upload_rate_bytes_s=config.piece.upload_rate,
        download_rate_bytes_s=config.piece.download_rate,
        memory_budget_bytes=config.piece.memory_budget,
        workers=config.piece.workers,
        schedulers=schedulers,
        tls=config.tls,
        http=HttpOptions(
            connections_per_host=config.origin.connections_per_host,
            connections_total=config.origin.connections_total,
            connect_timeout_s=config.origin.connect_timeout.seconds,
            stall_timeout_s=config.origin.stall_timeout.seconds,
            internal_hosts=InternalHosts(config.origin.internal_hosts),
            ca_file=config.origin.ca_file,
        ),
        ca_file=config.origin.ca_file,
        software_version=software_version(),
    )


class Embedded(Protocol):
    """What the daemon needs of a scheduler in the same process."""

    @property
    def address(self) -> Endpoint:
        """Where it listens."""
        ...

    async def start(self) -> None:
        """Begins to serve."""
        ...

    async def wait_failed(self) -> None:
        """Raises the error of a part that failed; waits until then."""
        ...

    async def close(self) -> None:
        """Ends."""
        ...


class PeerDaemon:
    """One peer daemon. `embedded` makes a scheduler in the same process: given by the command
    line, which alone may see both daemons. `ready` is told addresses once everything listens."""

    def __init__(
        self,
        config: PeerConfig,
        *,
        embedded: Callable[[], Embedded] | None = None,
        ready: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self._config = config
        self._embedded_factory = embedded
        self._embedded: Embedded | None = None
        self._ready = ready
        self._log = Log("peer.shell.daemon")
        self._clock = MonotonicClock()
        self.metrics = Metrics("peer")
        self._node: PeerNode | None = None
        self._api: LocalApi | None = None
        self._mirror: RegistryMirror | None = None
        self._proxy: ForwardProxy | None = None
        self._status: StatusServer | None = None
        self._started = False
        self._closing = False
        self._started_ns = self._clock.now_ns()

    def not_ready(self) -> str:
        """Why the daemon cannot serve now, "" if it can."""
        if self._node is not None and self._node.supervisor.failure is not None:
            return "failed"
        if self._closing:
            return "draining"
        return "" if self._started else "starting"

    async def start(self) -> None:
        """Begins to serve. Raises UsageError or StoreError; then nothing is left running."""
        try:
            await self._start()
        except BaseException:
            await self.close()
            raise

    async def _start(self) -> None:
        config = self._config
        schedulers = tuple(str(address) for address in config.scheduler.addresses)
        if self._embedded_factory is not None:
            self._embedded = self._embedded_factory()
            await self._embedded.start()
            schedulers = (str(self._embedded.address), *schedulers)
        options = node_options(config, schedulers=schedulers)
        node = self._node = PeerNode(options, clock=self._clock, describe=self._describe)
        await node.start()
        keep_host_id(options.store_root, options.host_id)
        self._api = LocalApi(
            node.downloads,
            config.api.socket,
            offload=node.offload,
            clock=self._clock,
            socket_group=config.api.group or None,
        )
        await self._api.start()
        if config.mirror.enabled or (config.proxy.enabled and config.mirror.upstreams):
            self._mirror = self._mirror_of(node)
            await self._mirror.start()
        if config.proxy.enabled:
            self._proxy = self._proxy_of(node)
            await self._proxy.start()
        if config.status.listen is not None:
            self._declare_metrics(node)
            self._status = StatusServer(config.status.listen, self.metrics, self.not_ready)
            await self._status.start()
        self._started = True
        self._log.info(
            "peer started",
            host=options.host_id,
            socket=config.api.socket,
            pieces=", ".join(f"{each.ip}:{each.port}" for each in node.port.addresses),
            status=self._status.address if self._status is not None else None,
            recovered=str(node.store.recovered),
        )
        if self._ready is not None:
            self._ready(self._addresses(node))

    # A mirror and a proxy are a fifth of the daemon, and loaded where there is one.

    def _mirror_of(self, node: PeerNode) -> "RegistryMirror":
        from peer.shell.mirror.server import MirrorOptions, RegistryMirror
        from peer.shell.mirror.upstreams import parse_upstream

        section = self._config.mirror
        return RegistryMirror(
            MirrorOptions(
                listen=section.listen,
                dedicated=section.listeners,
                upstreams=tuple(parse_upstream(text) for text in section.upstreams),
                default=section.default,
                verdict_ttl_ns=section.verdict_ttl.nanoseconds,
                writes=section.writes,
                internal_hosts=InternalHosts(self._config.origin.internal_hosts),
                ca_file=self._config.origin.ca_file,
            ),
            start=node.downloads.start,
            unready=self.not_ready,
            clock=self._clock,
            is_here=node.downloads.is_here,
        )

    def _proxy_of(self, node: PeerNode) -> "ForwardProxy":
        from peer.shell.mirror.upstreams import parse_upstream
        from peer.shell.origin.places import parse_network
        from peer.shell.proxy.policy import Policy
        from peer.shell.proxy.rules import parse_rule
        from peer.shell.proxy.server import ForwardProxy, ProxyOptions
        from peer.shell.proxy.targets import parse_pattern

        config, section = self._config, self._config.proxy
        policy = Policy(
            allow=tuple(parse_pattern(text) for text in section.allow),
            intercept=tuple(parse_pattern(text) for text in section.intercept),
            networks=tuple(parse_network(text) for text in section.networks),
            rules=tuple(parse_rule(text) for text in section.rules),
            upstreams=tuple(parse_upstream(text) for text in config.mirror.upstreams),
        )
        return ForwardProxy(
            ProxyOptions(
                listen=section.listen,
                policy=policy,
                ca_cert=section.ca_cert,
                ca_key=section.ca_key,
                ca_file=config.origin.ca_file,
            ),
            start=node.downloads.start,
            mirror=self._mirror.answer if self._mirror is not None else None,
            unready=self.not_ready,
        )

    def _addresses(self, node: PeerNode) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "host_id": node.options.host_id,
            "socket": str(self._config.api.socket),
            "piece_port": node.port.addresses[0].port,
            "status_port": self._status.address.port if self._status is not None else None,
            "mirrors": [str(each) for each in self._mirror.addresses] if self._mirror else [],
            "proxies": [str(each) for each in self._proxy.addresses] if self._proxy else [],
            "address": str(self._embedded.address) if self._embedded is not None else None,
        }

    def _describe(self) -> dict[str, Any]:
        assert self._node is not None
        options = self._node.options
        return {
            "host_id": options.host_id,
            "version": options.software_version,
            "pid": os.getpid(),
            "uptime_s": (self._clock.now_ns() - self._started_ns) / 1e9,
            "piece_addresses": [f"{each.ip}:{each.port}" for each in self._node.port.addresses],
            "schedulers": list(options.schedulers),
            "store_root": str(options.store_root),
        }

    def _declare_metrics(self, node: PeerNode) -> None:
        def core() -> "Mapping[str, int]":
            state = node.driver.engine.state
            return {
                "tasks": len(state.tasks),
                "downloads": len(state.downloads),
                "parents": sum(1 for _ in state.live_links()),
                "children": len(state.children),
                "in_flight_bytes": state.in_flight_bytes,
                "scheduler_connected": int(state.scheduled),
                "origin_read_bytes_total": sum(t.origin_bytes for t in state.tasks.values()),
                "events_total": node.driver.events_handled,
                "core_busy_ns_total": node.driver.busy_ns,
                "peer_received_bytes_total": node.parents.received_bytes,
                "peer_sent_bytes_total": node.port.sent_bytes,
            }

        self.metrics.mirror("What the peer does", core)
        if self._mirror is not None:
            self.metrics.mirror("What the registry mirror does", self._mirror.counters)
        if self._proxy is not None:
            self.metrics.mirror("What the forward proxy does", self._proxy.counters)

    async def close(self) -> None:
        """Drains and ends. Safe to call twice and without `start`."""
        self._closing = True
        if self._node is not None and self._node.loaded:
            await self._node.drain()
        if self._proxy is not None:
            await self._proxy.close()
        if self._mirror is not None:
            await self._mirror.close()
        if self._api is not None:
            await self._api.close()
        if self._node is not None:
            await self._drained(self._node)
            await self._node.close()
        if self._status is not None:
            await self._status.close()
        if self._embedded is not None:
            await self._embedded.close()

    async def _drained(self, node: PeerNode) -> None:
        """Lets pieces that are being sent go out, for a bounded time."""
        if not node.loaded:
            return
        loop = asyncio.get_running_loop()
        end = loop.time() + DRAIN_S
        while self._sending(node) and loop.time() < end:  # noqa: ASYNC110 - once, at the end
            await asyncio.sleep(0.05)

    @staticmethod
    def _sending(node: PeerNode) -> bool:
        children = node.driver.engine.state.children
        return any(child.serving for child in children.values())

    async def run(self) -> None:
        """Serves until SIGTERM or SIGINT, then drains. Raises what made it fail."""
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        signals = (signal.SIGTERM, signal.SIGINT)
        for number in signals:
            loop.add_signal_handler(number, stop.set)
        try:
            await self.start()
            collect_less()
            assert self._node is not None
            stopped = asyncio.ensure_future(stop.wait())
            failed = [asyncio.ensure_future(self._node.supervisor.wait_failed())]
            if self._embedded is not None:
                failed.append(asyncio.ensure_future(self._embedded.wait_failed()))
            await asyncio.wait((stopped, *failed), return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            for each in failed:
                if each.done():
                    each.result()
                each.cancel()
        finally:
            # A second signal during the drain ends the process at once.
            for number in signals:
                loop.remove_signal_handler(number)
            await self.close()
        self._log.info("peer stopped")
