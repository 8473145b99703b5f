"""Tables that dispatch by type have an entry for everything that can come: no type checker looks
into a dictionary."""

import random
import typing
from pathlib import Path
from typing import Any

from peer.core import effects as peer_effects
from peer.core import events as peer_events
from peer.shell.node import NodeOptions, PeerNode
from scheduler.core import events as scheduler_events
from scheduler.core.engine import SchedulerEngine
from scheduler.core.limits import SchedulerLimits
from shoal.wire import control as msg
from shoal.wire.ids import HostId


def kinds(union: Any) -> set[type[Any]]:
    """The members of a union."""
    return set(typing.get_args(union))


async def test_a_peer_knows_what_to_do_with_everything(tmp_path: Path) -> None:
    node = PeerNode(NodeOptions(host_id=HostId("h"), store_root=tmp_path / "store"))
    await node.start()
    try:
        engine = node.driver.engine
        assert set(node.driver._carriers) == kinds(peer_effects.AnyEffect)
        assert set(engine._handlers) == kinds(peer_events.AnyEvent)
        assert set(engine._message_handlers) == kinds(msg.SchedulerMessage)
    finally:
        await node.close()


def test_a_scheduler_knows_what_to_do_with_everything() -> None:
    engine = SchedulerEngine(
        limits=SchedulerLimits(),
        dice=random.Random(1),
        scheduler_id="scheduler",
        token_source=lambda: b"token",
    )
    assert set(engine._handlers) == kinds(scheduler_events.AnyEvent)
    # The first message of a stream has a way of its own.
    assert set(engine._message_handlers) == kinds(msg.HostMessage) - {msg.Hello}
