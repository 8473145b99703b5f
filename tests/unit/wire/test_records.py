"""Values that are made often."""

from peer.core.events import Tick
from shoal.wire import frames


def test_records_compare_and_hash_by_their_fields() -> None:
    assert Tick(now_ns=1) == Tick(now_ns=1)
    assert Tick(now_ns=1) != Tick(now_ns=2)
    assert len({frames.Close(3), frames.Close(3), frames.Close(4)}) == 2


def test_records_have_slots_and_say_what_they_are() -> None:
    assert not hasattr(Tick(now_ns=1), "__dict__")
    assert not hasattr(frames.Close(3), "__dict__")
    assert repr(frames.Close(3)) == "Close(channel=3)"
