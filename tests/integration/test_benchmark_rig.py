"""How the processes of the service benchmark end."""

import os
from pathlib import Path

import pytest

from benchmarks.scale.service_rig import Clients, Rig
from benchmarks.scale.service_streams import KINDS
from shoal.wire.errors import ShoalError

WAIT_S = 10.0


def test_clients_that_ended_early_say_why_and_can_be_closed(tmp_path: Path) -> None:
    clients = Clients("127.0.0.1:1", "no such kind", 0, 1, tmp_path / "log")
    with pytest.raises(ShoalError, match="no such kind"):
        clients.answer(WAIT_S)
    os.waitid(os.P_PID, clients.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(ShoalError, match="no such kind"):
        clients.tell("open")
    assert clients.close() == 1
    assert clients.close() == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_hosts_leave_before_their_process_ends(kind: str) -> None:
    with Rig(engine="stub", kind=kind, hosts=4, processes=2) as rig:
        rig.tell_all("open")
        rig.answers(WAIT_S)
        assert [clients.close() for clients in rig.clients] == [0, 0]
