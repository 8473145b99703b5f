"""One peer put together: store, origin, connections, control stream, core, clients.

A composition root: `daemon` wraps it with the local API and signals, `standalone` runs it for the
time of one download. Decides nothing.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from peer.core import events as ev
from peer.core.engine import PeerEngine
from peer.core.limits import PeerLimits
from peer.shell.addresses import addresses_to_tell, ips_to_tell
from peer.shell.buffers import BufferPool
from peer.shell.downloads import LocalDownloads
from peer.shell.driver import PeerDriver
from peer.shell.hasher import ContentHasher
from peer.shell.origin.base import Origins
from peer.shell.origin.http import HttpOptions, HttpOrigin
from peer.shell.origin.reader import OriginReader
from peer.shell.store.content import ContentStore
from peer.shell.store.errors import StoreError
from peer.shell.store.space import SpaceLimits
from peer.shell.transfer.child_side import ParentConnections
from peer.shell.transfer.parent_side import PiecePort
from shoal.runtime import tls
from shoal.runtime.clock import Clock, MonotonicClock
from shoal.runtime.logs import Log
from shoal.runtime.rates import RateLimiter
from shoal.runtime.sections import TlsSection
from shoal.runtime.tasks import Offload, Supervisor
from shoal.runtime.turns import Turns
from shoal.wire.control import Address, HostInfo
from shoal.wire.ids import ConnectionId, HostId
from shoal.wire.limits import MIB

FLUSH_INTERVAL_S: Final = 0.2
"""How often finished pieces are journalled: what a killed daemon may have to fetch again."""

SYNC_INTERVAL_S: Final = 1.0
"""While much is written at once, everybody else on the machine waits for the disk, not least a
command that has all it wanted."""

EVICT_INTERVAL_S: Final = 5.0
HASH_THREADS: Final = 2
UPKEEP_THREADS: Final = 2
"""One for what waits for the disk, one for what a slow disk must not hold up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOptions:
    """What a peer is made of. Rates in bytes per second, 0 for no limit."""

    host_id: HostId
    store_root: Path
    zone: str = ""
    space: SpaceLimits = field(default_factory=SpaceLimits)
    listen: tuple[tuple[str, int], ...] = (("127.0.0.1", 0),)
    advertise: tuple[Address, ...] = ()
    upload_rate_bytes_s: int = 0
    download_rate_bytes_s: int = 0
    memory_budget_bytes: int = 128 * MIB
    workers: int = 2
    schedulers: tuple[str, ...] = ()
    tls: TlsSection | None = None
    http: HttpOptions = field(default_factory=HttpOptions)
    ca_file: Path | None = None
    software_version: str = ""


class PeerNode:
    """A running peer without a local API."""

    def __init__(
        self,
        options: NodeOptions,
        *,
        clock: Clock | None = None,
        describe: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self.options = options
        self.clock = clock or MonotonicClock()
        self.supervisor = Supervisor()
        self._log = Log("peer.shell.node")
        self.offload = Offload(options.workers, "piece", fail=self.supervisor.fail)
        self._hash_offload = Offload(HASH_THREADS, "hash", fail=self.supervisor.fail)
        # Of its own: the database lets flushes wait while a sync ends, which pieces must not.
        self._upkeep_offload = Offload(UPKEEP_THREADS, "upkeep", fail=self.supervisor.fail)
        self.store = ContentStore(
            options.store_root,
            now_unix_s=lambda: int(time.time()),
            limits=options.space,
            workers=options.workers,
        )
        self._describe = describe
        self._next_connection = 0
        self._closed = False
        self.loaded = False

    def _connection_id(self) -> ConnectionId:
        self._next_connection += 1
        return ConnectionId(self._next_connection)

    async def start(self) -> None:
        """Loads the store, listens, connects. Raises UsageError or StoreError."""
        options = self.options
        ips = []
        for ip, _ in options.listen:
            ips.append(() if options.advertise else await ips_to_tell(ip, options.schedulers))
        generation, stored = await self.offload(self.store.load)
        context = self.options.tls
        secured = context is not None and context.enabled
        upload = Turns(RateLimiter(self.options.upload_rate_bytes_s, self.clock))
        download = Turns(RateLimiter(self.options.download_rate_bytes_s, self.clock))
        self.port = PiecePort(
            host_id=self.options.host_id,
            listen=self.options.listen,
            store=self.store,
            upload_turns=upload,
            clock=self.clock,
            post=self._post,
            supervisor=self.supervisor,
            next_connection_id=self._connection_id,
            ssl_context=tls.server_context(context) if secured and context is not None else None,
        )
        await self.port.start()
        self.addresses = addresses_to_tell(options.advertise, self.port.addresses, ips)
        self.driver = PeerDriver(
            engine=self._engine(),
            store=self.store,
            offload=self.offload,
            clock=self.clock,
            supervisor=self.supervisor,
        )
        self._assemble(download, secured=secured)
        self._post(ev.StoreLoaded(now_ns=self.clock.now_ns(), generation=generation, tasks=stored))
        self.loaded = True
        beside = self._upkeep_offload
        for part, every_s, work in (
            ("journal", FLUSH_INTERVAL_S, lambda: beside(self.store.flush)),
            ("sync", SYNC_INTERVAL_S, lambda: beside(self.store.sync_some)),
            ("eviction", EVICT_INTERVAL_S, self.driver.evict),
        ):
            self.supervisor.spawn(self._keep_store(part, every_s, work), part)

    def _engine(self) -> PeerEngine:
        return PeerEngine(
            host=HostInfo(
                host_id=self.options.host_id,
                addresses=self.addresses,
                zone=self.options.zone,
                upload_rate_bytes_s=self.options.upload_rate_bytes_s,
                download_rate_bytes_s=self.options.download_rate_bytes_s,
                software_version=self.options.software_version,
            ),
            limits=PeerLimits(in_flight_bytes_max=self.options.memory_budget_bytes),
            dice=random.SystemRandom(),
            scheduler_configured=bool(self.options.schedulers),
        )

    def _assemble(self, download: Turns, *, secured: bool) -> None:
        options = self.options
        buffers = BufferPool(options.memory_budget_bytes)
        self.downloads = LocalDownloads(
            driver=self.driver,
            store=self.store,
            offload=self.offload,
            clock=self.clock,
            supervisor=self.supervisor,
            describe_daemon=self._describe,
            ca_file=options.ca_file,
        )
        http = HttpOrigin(options.http)
        self.origin = OriginReader(
            Origins({"http": http, "https": http}),
            self.downloads.rights,
            self.store,
            buffers,
            self.offload,
            download,
            self.clock,
            self._post,
            self.supervisor,
        )
        context = options.tls
        self.parents = ParentConnections(
            host_id=options.host_id,
            store=self.store,
            buffers=buffers,
            offload=self.offload,
            download_turns=download,
            clock=self.clock,
            post=self._post,
            supervisor=self.supervisor,
            next_connection_id=self._connection_id,
            ssl_context=tls.client_context(context) if secured and context is not None else None,
        )
        control = None
        if options.schedulers:
            # gRPC is heavy to load: only for those who speak it.
            from peer.shell.control import ControlClient

            credentials = None
            if secured and context is not None:
                from shoal.runtime.grpc_tls import grpc_channel_credentials

                credentials = grpc_channel_credentials(context)
            control = ControlClient(
                addresses=options.schedulers,
                credentials=credentials,
                clock=self.clock,
                post=self._post,
            )
        self.driver.attach(
            origin=self.origin,
            parents=self.parents,
            port=self.port,
            hasher=ContentHasher(
                store=self.store,
                offload=self._hash_offload,
                clock=self.clock,
                post=self._post,
                supervisor=self.supervisor,
            ),
            control=control,
            clients=self.downloads,
        )
        if control is not None:
            self.supervisor.spawn(control.run(), "control stream")

    def _post(self, event: ev.AnyEvent) -> None:
        self.driver.post(event)

    async def _keep_store(
        self, part: str, every_s: float, work: Callable[[], Awaitable[object]]
    ) -> None:
        """Does one part of the store's upkeep again and again, so long after it last ended, beside
        everything else. The disk's errors are told, any other ends the daemon."""
        while True:
            await asyncio.sleep(every_s)
            try:
                await work()
            except StoreError as error:
                self._log.error("upkeep of the store failed", part=part, detail=error.detail)

    async def drain(self) -> None:
        """Takes no new wishes and ends the present ones."""
        if self.loaded:
            self._post(ev.ShutDown(now_ns=self.clock.now_ns()))

    async def close(self) -> None:
        """Ends everything and makes the store durable. Safe to call twice, and without `start`."""
        if self._closed:
            return
        self._closed = True
        if self.loaded:
            await self.drain()
            await self.parents.close()
            await self.port.close()
            await self.origin.close()
            await self.driver_settled()
            self.driver.close()
        await self.supervisor.close()
        loop = asyncio.get_running_loop()
        with contextlib.suppress(StoreError):
            await loop.run_in_executor(None, self.store.close)
        self.offload.close()
        self._hash_offload.close()
        self._upkeep_offload.close()

    async def driver_settled(self) -> None:
        """Lets callbacks that are planned already run."""
        for _ in range(3):
            await asyncio.sleep(0)
