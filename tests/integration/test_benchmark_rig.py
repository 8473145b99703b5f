"""How the processes of the service benchmark end."""

import os
import time
from pathlib import Path

import pytest

from benchmarks.scale.service_rig import STOP_TIMEOUT_S, Clients, Rig
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


@pytest.mark.slow
def test_every_process_ends_though_one_cannot_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(engine="stub", kind="http2", hosts=2, processes=2)

    def interrupted(*, at_once: bool) -> int:
        raise KeyboardInterrupt

    def use() -> None:
        with rig:
            monkeypatch.setattr(rig.clients[1], "close", interrupted)

    with pytest.raises(KeyboardInterrupt):
        use()
    try:
        ended = [rig.pid, rig.clients[0].pid]
        assert not [pid for pid in ended if Path(f"/proc/{pid}").exists()]
    finally:
        monkeypatch.undo()
        rig.clients[1].close(at_once=True)


@pytest.mark.slow
def test_an_error_ends_processes_that_work_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    failed_s = 0.0

    def use() -> None:
        nonlocal failed_s
        with Rig(engine="stub", kind="http2", hosts=2, processes=2) as rig:
            rig.tell_all("rest", seconds=60.0)
            failed_s = time.monotonic()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use()
    assert time.monotonic() - failed_s < STOP_TIMEOUT_S
    assert "ended by themselves" not in capfd.readouterr().err
