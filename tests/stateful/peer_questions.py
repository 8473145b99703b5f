"""The part of the peer machine in which local users ask what the swarm holds."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

import peer.core.effects as fx
import peer.core.events as ev
import shoal.wire.control as msg
from shoal.wire.ids import RequestId
from tests.unit.peer.core_rig import TASK, Rig


class QuestionRules(RuleBasedStateMachine):
    """Questions, and a scheduler that answers them late, twice or never."""

    rig: Rig
    session: int
    questions: set[int]
    """Those that have not ended."""
    asked: list[int]
    """The numbers of all that went to a scheduler."""

    def carry_out(self) -> None:
        """What the core decided is done."""
        raise NotImplementedError

    def tell(self, *messages: msg.SchedulerMessage) -> None:
        """The scheduler says something."""
        raise NotImplementedError

    def next_number(self) -> int:
        """A number never used before."""
        raise NotImplementedError

    def question_ended(self, effect: fx.HoldersCounted) -> None:
        """Each once."""
        assert effect.request_id in self.questions, "S4: a question ended twice"
        self.questions.remove(effect.request_id)

    @rule()
    def ask_for_holders(self) -> None:
        number = RequestId(-self.next_number())
        self.questions.add(number)
        self.rig.feed(ev.CountHolders, request_id=number, task_ids=(TASK,))
        self.asked += [wanted.number for wanted in self.rig.said(msg.HoldersWanted)]
        self.carry_out()

    @precondition(lambda self: self.session and self.asked)
    @rule(data=st.data())
    def count_holders(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.asked))
        holders = msg.TaskHolders(
            task_id=TASK, hosts=1, whole_hosts=0, covered_bytes=1, size_bytes=None
        )
        self.tell(msg.HolderCounts(number=number, hosts=1, whole_hosts=0, tasks=(holders,)))

    @precondition(lambda self: self.questions)
    @rule()
    def time_ends_every_question(self) -> None:
        self.rig.tick(2001)
        self.carry_out()
        assert not self.questions, "L2: somebody waits for ever"
