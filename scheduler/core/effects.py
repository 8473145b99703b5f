"""What a scheduler does: the outputs of `SchedulerEngine.handle`."""

from shoal.wire.control import SchedulerMessage
from shoal.wire.errors import Reason
from shoal.wire.ids import HostId, TaskId
from shoal.wire.records import record


@record(frozen=True, slots=True, kw_only=True)
class SendToHost:
    """Messages for one session, in order; dropped if it is gone. The same message objects may go
    to many sessions, so that the shell can serialise them once."""

    session: int
    messages: tuple[SchedulerMessage, ...]


@record(frozen=True, slots=True, kw_only=True)
class CloseSession:
    """End a stream: it broke the protocol, or a newer one of the same host took its place."""

    session: int
    reason: Reason
    detail: str


@record(frozen=True, slots=True, kw_only=True)
class Noted:
    """Something that people must be able to read in the log."""

    kind: str
    text: str
    host_id: HostId | None = None
    task_id: TaskId | None = None
    reason: Reason | None = None


AnyEffect = SendToHost | CloseSession | Noted
