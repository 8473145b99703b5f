"""A scheduler daemon whose core decides nothing: what the shell alone costs.

Answers each join with a reply of the size that a real one has (about 1.5 kB: description, token,
eight parents, a few leases), takes reports in, and tells everybody one message a few times a
second. Only for measurements.
"""

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import uvloop

from scheduler.core.effects import AnyEffect, SendToHost
from scheduler.core.events import AnyEvent, FromHost, HostDisconnected
from scheduler.shell.config import SchedulerConfig, StatusSection
from scheduler.shell.daemon import SchedulerDaemon
from shoal.runtime.config_values import parse_endpoint
from shoal.runtime.logs import configure_logs
from shoal.wire import bitfield
from shoal.wire import control as msg
from shoal.wire.geometry import choose_geometry
from shoal.wire.ids import HostId, LeaseNumber
from shoal.wire.limits import MAP_UNITS_TARGET, MIB, MILLISECOND_NS

PARENTS: Final = 8
LEASES: Final = 4
PUSH_INTERVAL_NS: Final = 500 * MILLISECOND_NS
PUSH_HOSTS: Final = 2000
"""Hosts in each map that is told at most; such a map has about 30 kB."""
STRETCHES: Final = 2


class StubEngine:
    """Answers without state to speak of."""

    def __init__(self) -> None:
        self._dice = random.Random(1)
        self._hosts: dict[int, msg.Parent] = {}
        self._parents: list[msg.Parent] = []
        self._joined: dict[int, None] = {}
        self._held: dict[HostId, int] = {}
        self._join_said: msg.Join | None = None
        self._described: msg.Described | None = None
        self._token: msg.SwarmToken | None = None
        self._fresh: list[tuple[int, bytes, LeaseNumber]] = []
        self._reported: dict[HostId, None] = {}
        self._push_ns: int | None = None
        self._lease_number = 1 << 50
        self._effects: list[AnyEffect] = []
        self._handlers: dict[type[Any], Callable[[int, Any], None]] = {
            msg.Hello: self._hello,
            msg.Join: self._join,
            msg.StatAnswer: self._stat,
            msg.Report: self._report,
        }

    def handle(self, event: AnyEvent, /) -> list[AnyEffect]:
        """Takes one event and says what to do."""
        if isinstance(event, FromHost):
            for message in event.messages:
                handler = self._handlers.get(type(message))
                if handler is not None:
                    handler(event.session, message)
        elif isinstance(event, HostDisconnected):
            self._hosts.pop(event.session, None)
            self._joined.pop(event.session, None)
        if self._push_ns is None:
            if self._fresh or self._reported:
                self._push_ns = event.now_ns + PUSH_INTERVAL_NS
        elif event.now_ns >= self._push_ns:
            self._push()
        effects, self._effects = self._effects, []
        return effects

    def next_deadline_ns(self) -> int | None:
        """When news are told."""
        return self._push_ns

    def validate(self) -> None:
        """Nothing to check."""

    def counters(self) -> dict[str, int]:
        """Nothing worth a metric."""
        return {"hosts": len(self._hosts)}

    def graph(self) -> list[dict[str, object]]:
        """Nobody feeds anybody."""
        return []

    def _send(self, session: int, *messages: msg.SchedulerMessage) -> None:
        self._effects.append(SendToHost(session=session, messages=messages))

    def _hello(self, session: int, hello: msg.Hello) -> None:
        host = hello.host
        parent = msg.Parent(host_id=host.host_id, addresses=host.addresses, zone=host.zone)
        self._hosts[session] = parent
        self._parents.append(parent)
        self._send(session, msg.Welcome(scheduler_id="stub", version=1, report_interval_ms=250))

    def _stat(self, session: int, answer: msg.StatAnswer) -> None:
        assert self._token is not None
        descriptor = msg.TaskDescriptor(
            task_id=self._token.task_id,
            source_id=answer.source_id,
            geometry=choose_geometry(answer.size_bytes),
            digest="sha256:" + "5a" * 32,
            validator=None,
            ranges=answer.ranges,
        )
        assert self._join_said is not None
        self._described = msg.Described(
            collection_id=self._join_said.collection_id,
            source_id=answer.source_id,
            descriptor=descriptor,
        )
        for waiting in self._joined:
            self._reply(waiting, self._join_said)

    def _join(self, session: int, join: msg.Join) -> None:
        self._joined[session] = None
        if self._described is not None:
            self._reply(session, join)
        elif self._token is None:
            member = join.members[0]
            assert member.task_id is not None
            self._join_said = join
            self._token = msg.SwarmToken(task_id=member.task_id, token=b"t" * 32, ttl_ms=3_600_000)
            self._send(session, msg.StatWanted(source_id=member.source_id))

    def _reply(self, session: int, join: msg.Join) -> None:
        assert self._token is not None
        assert self._described is not None
        count = len(self._parents)
        draw = self._dice.random
        parents = tuple(self._parents[int(draw() * count)] for _ in range(PARENTS))
        leases = []
        for _ in range(LEASES):
            self._lease_number += 1
            lease = msg.Lease(
                number=LeaseNumber(self._lease_number),
                task_id=self._token.task_id,
                epoch=1,
                first_piece=int(draw() * 1000) * 8,
                piece_count=8,
                ttl_ms=30_000,
            )
            leases.append(lease)
        self._send(
            session,
            self._token,
            self._described,
            msg.Parents(collection_id=join.collection_id, added=parents),
            msg.Leases(granted=tuple(leases)),
        )

    def _report(self, session: int, report: msg.Report) -> None:
        host_id = self._hosts[session].host_id
        for progress in report.progress:
            self._held[host_id] = self._held.get(host_id, 0) | progress.new
            self._reported[host_id] = None
        for statement in report.statements:
            self._fresh.append((statement.piece, statement.digest, statement.lease_number))

    def _push(self) -> None:
        assert self._token is not None
        assert self._described is not None
        messages: list[msg.SchedulerMessage] = []
        task_id = self._token.task_id
        if self._fresh:
            entries = tuple(self._fresh[:4096])
            messages.append(msg.Digests(task_id=task_id, epoch=1, entries=entries))
        changes = tuple(
            msg.HostRuns(host=number, task=0, units=self._some_units())
            for number in range(min(len(self._reported), PUSH_HOSTS))
        )
        if changes:
            collection_id = self._described.collection_id
            messages.append(
                msg.SwarmMap(
                    collection_id=collection_id, unit_bytes=MIB, full=False, changes=changes
                )
            )
        for session in self._joined:
            self._send(session, *messages)
        self._fresh.clear()
        self._reported.clear()
        self._push_ns = None

    def _some_units(self) -> int:
        """What a host may have got since the last map: a few stretches."""
        units = 0
        for _ in range(STRETCHES):
            units |= bitfield.mask_of(int(self._dice.random() * MAP_UNITS_TARGET), 4)
        return units


async def run(listen: str, ready: Path) -> None:
    """Serves until a signal; writes the address into a file once it listens."""
    config = SchedulerConfig(
        listen=parse_endpoint(listen), status=StatusSection(listen=parse_endpoint(listen))
    )
    daemon = SchedulerDaemon(config, engine=lambda _config, _name: StubEngine())

    def started() -> None:
        part = ready.with_suffix(".part")
        part.write_text(json.dumps({"address": str(daemon.address)}))
        part.replace(ready)

    await daemon.run(on_started=started)


def main() -> None:
    """Takes the options of `shoal scheduler` that the benchmark gives."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale.service_stub")
    for option in ("--listen", "--status", "--log-level", "--ready-file"):
        parser.add_argument(option, required=True)
    options = parser.parse_args()
    configure_logs(options.log_level, "text")
    uvloop.run(run(options.listen, Path(options.ready_file)))


if __name__ == "__main__":
    main()
