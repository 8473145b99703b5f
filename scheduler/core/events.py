"""What can happen to a scheduler: the inputs of `SchedulerEngine.handle`."""

from shoal.wire.control import HostMessage
from shoal.wire.records import record


@record(frozen=True, slots=True, kw_only=True)
class Event:
    """Base of all events; `now_ns` is monotonic."""

    now_ns: int


@record(frozen=True, slots=True, kw_only=True)
class HostConnected(Event):
    """A host opened a control stream. `session` is never used twice. `subject` is the name that
    its credential proved, "" where there is none."""

    session: int
    subject: str = ""


@record(frozen=True, slots=True, kw_only=True)
class HostDisconnected(Event):
    """The stream is gone."""

    session: int


@record(frozen=True, slots=True, kw_only=True)
class FromHost(Event):
    """Messages of one batch, in order. The first of a session must be `Hello`."""

    session: int
    messages: tuple[HostMessage, ...]


@record(frozen=True, slots=True, kw_only=True)
class Tick(Event):
    """Time passed; sent when `next_deadline_ns()` is reached."""


AnyEvent = HostConnected | HostDisconnected | FromHost | Tick
