"""The scheduler daemon: the one place that constructs its parts and hands them to one another.

Runs as a process of its own (`run`) or inside a peer's (`start`, `address`, `close`). Decides
nothing.
"""

import asyncio
import random
import secrets
import signal
from collections.abc import Callable
from typing import Final

from scheduler.core.engine import SchedulerEngine
from scheduler.shell.config import SchedulerConfig
from scheduler.shell.driver import Engine, SchedulerDriver
from scheduler.shell.graph_page import GraphPage
from scheduler.shell.server import ControlServer, ServerLimits
from shoal.garbage import collect_less
from shoal.runtime.clock import Clock, MonotonicClock
from shoal.runtime.config_values import Endpoint
from shoal.runtime.logs import Log
from shoal.runtime.metrics import Metrics
from shoal.runtime.status_http import StatusServer
from shoal.runtime.tasks import Supervisor
from shoal.wire.limits import SECOND_NS

TOKEN_BYTES: Final = 32


def scheduler_engine(config: SchedulerConfig, scheduler_id: str) -> Engine:
    """The core as configured, with the operating system's randomness."""
    return SchedulerEngine(
        limits=config.limits(),
        dice=random.SystemRandom(),
        scheduler_id=scheduler_id,
        token_source=lambda: secrets.token_bytes(TOKEN_BYTES),
        piece_digest=config.swarm.piece_digest,
    )


class SchedulerDaemon:
    """One scheduler. `engine` replaces the core (tests)."""

    def __init__(
        self,
        config: SchedulerConfig,
        *,
        clock: Clock | None = None,
        engine: Callable[[SchedulerConfig, str], Engine] = scheduler_engine,
        process_metrics: bool = True,
    ) -> None:
        self.scheduler_id = config.scheduler_id or f"scheduler-{secrets.token_hex(4)}"
        self._config = config
        self._clock = clock or MonotonicClock()
        self._supervisor = Supervisor()
        self._log = Log("scheduler.shell.daemon")
        self._driver = SchedulerDriver(
            engine=engine(config, self.scheduler_id),
            clock=self._clock,
            supervisor=self._supervisor,
        )
        self._server = ControlServer(
            listen=config.listen,
            tls=config.tls,
            clock=self._clock,
            post=self._driver.post,
            limits=ServerLimits(sessions_max=config.swarm.hosts_max),
        )
        self._driver.attach(self._server)
        self.metrics = Metrics("scheduler", process=process_metrics)
        self._declare_metrics()
        self._status: StatusServer | None = None
        if config.status.listen is not None:
            self._status = StatusServer(
                config.status.listen,
                self.metrics,
                self.not_ready,
                pages={"/graph": GraphPage(self._driver.graph).answer},
            )
        self._started = False
        self._closing = False

    @property
    def address(self) -> Endpoint:
        """Where hosts connect. Only after `start`."""
        return self._server.address

    @property
    def status_address(self) -> Endpoint | None:
        """Where health checks and metrics are, if anywhere. Only after `start`."""
        return None if self._status is None else self._status.address

    def not_ready(self) -> str:
        """Why hosts cannot be served now, "" if they can."""
        if self._supervisor.failure is not None:
            return "failed"
        if self._closing:
            return "draining"
        return "" if self._started else "starting"

    async def start(self) -> None:
        """Begins to serve hosts. Raises UsageError for a configuration that cannot be served; then
        nothing is left running."""
        try:
            await self._server.start()
            if self._status is not None:
                await self._status.start()
        except BaseException:
            await self.close()
            raise
        self._started = True
        self._log.info(
            "scheduler started",
            scheduler=self.scheduler_id,
            address=self.address,
            status=self.status_address,
            tls=self._config.tls.enabled,
        )

    async def wait_failed(self) -> None:
        """Raises the error of a part that failed, as soon as one does; waits until then."""
        await self._supervisor.wait_failed()

    async def close(self) -> None:
        """Drains: no new streams, every present one is told to go elsewhere. Takes well under a
        second. Safe to call twice and without `start`."""
        self._closing = True
        await self._server.close()
        self._driver.close()
        await self._supervisor.close()
        if self._status is not None:
            await self._status.close()

    async def run(self, on_started: Callable[[], None] | None = None) -> None:
        """Serves until SIGTERM or SIGINT, then drains. Raises UsageError if it cannot start, and
        the error of a part that failed. `on_started` is called once everything listens."""
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        signals = (signal.SIGTERM, signal.SIGINT)
        for number in signals:
            loop.add_signal_handler(number, stop.set)
        try:
            await self.start()
            collect_less()
            if on_started is not None:
                on_started()
            await self._until(stop)
        finally:
            # A second signal during the drain ends the process at once.
            for number in signals:
                loop.remove_signal_handler(number)
            await self.close()
        self._log.info("scheduler stopped", scheduler=self.scheduler_id)

    async def _until(self, stop: asyncio.Event) -> None:
        stopped = asyncio.ensure_future(stop.wait())
        failed = asyncio.ensure_future(self.wait_failed())
        try:
            await asyncio.wait((stopped, failed), return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                failed.result()
        finally:
            for task in (stopped, failed):
                task.cancel()

    def _declare_metrics(self) -> None:
        self.metrics.mirror("Decisions of the scheduler", self._driver.counters)
        self.metrics.mirror("Control streams", self._stream_numbers)

    def _stream_numbers(self) -> dict[str, int]:
        counters = self._server.counters
        return {
            "sessions": self._server.session_count,
            "sessions_opened_total": counters.sessions_opened,
            "sessions_closed_total": counters.sessions_closed,
            "batches_received_total": counters.batches_received,
            "batches_sent_total": counters.batches_sent,
            "received_bytes_total": counters.bytes_received,
            "sent_bytes_total": counters.bytes_sent,
            "unknown_messages_total": counters.unknown_messages,
            "protocol_errors_total": counters.protocol_errors,
            "queue_overflows_total": counters.overflows,
            "silent_sessions_total": counters.silent,
            "events_total": self._driver.events_handled,
            "busy_milliseconds_total": self._driver.busy_ns * 1000 // SECOND_NS,
        }
