"""`shoal get` without a daemon: what is kept for the next try, and what is not left behind."""

import asyncio
import fcntl
import os
import threading
from pathlib import Path

import pytest

from peer.cli.alone import beside, download_alone, state_root
from peer.cli.get_options import parser, request_of
from peer.cli.outcome import FileOutcome, Outcome
from peer.cli.progress import Bar
from peer.shell.api_types import (
    Delivered,
    Done,
    DownloadEvent,
    DownloadRequest,
    Failed,
    OnEvent,
    Progress,
    WriteChunk,
)
from shoal.wire.errors import Reason, UsageError

URL = "http://origin.example/model.bin"
CONTENT = b"weights" * 100
HALF = Progress(received_bytes=50, size_bytes=100, origin_bytes=50)


class Standalone:
    """Stands in for a whole peer: leaves a piece in its state, and ends as it was told."""

    def __init__(self, *events: DownloadEvent, error: BaseException | None = None) -> None:
        self.events = events
        self.error = error
        self.request: DownloadRequest | None = None
        self.schedulers: tuple[str, ...] = ()
        self.hangs = False
        self.root = Path()

    async def __call__(
        self,
        request: DownloadRequest,
        scheduler_addresses: tuple[str, ...],
        state_root: Path,
        on_event: OnEvent,
        write_chunk: WriteChunk | None = None,
    ) -> None:
        self.request, self.schedulers = request, scheduler_addresses
        self.root = state_root
        assert state_root.is_dir()
        (state_root / "pieces").write_bytes(CONTENT[:50])
        for event in self.events:
            on_event(event)
        if write_chunk is not None:
            await write_chunk(CONTENT)
        if self.hangs:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error


def delivered(path: Path) -> Delivered:
    return Delivered(
        index=0, task_id="t", size_bytes=100, digest="sha256:d", path=path, how="hard-link"
    )


DONE = Done(size_bytes=100, origin_bytes=100, peer_bytes=0)


def get(standalone: Standalone, output: str, *arguments: str) -> Outcome:
    options = parser().parse_args([URL, "-O", output, *arguments])
    body, outputs = request_of(options)
    outcome = Outcome([FileOutcome(URL, output)])
    bar = Bar("model.bin", outcome, wanted=False)
    download_alone(options, body, outputs, outcome, bar, download=standalone)
    return outcome


def test_success_leaves_no_state(tmp_path: Path) -> None:
    target = tmp_path / "out.bin"
    standalone = Standalone(delivered(target), DONE)
    outcome = get(standalone, str(target), "--scheduler", "10.0.0.1:4001", "--tag", "x")
    assert outcome.exit_code == 0
    assert outcome.files[0].how == "hard-link"
    assert standalone.request is not None
    assert standalone.request.outputs == (target,)
    assert standalone.request.tag == "x"
    assert standalone.schedulers == ("10.0.0.1:4001",)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_keeps_what_arrived(tmp_path: Path) -> None:
    failed = Failed(reason=Reason.ORIGIN_FAILED, detail="broke off")
    outcome = get(Standalone(HALF, failed), str(tmp_path / "out.bin"))
    assert outcome.exit_code == 1
    assert (tmp_path / ".out.bin.shoal" / "pieces").exists()


def test_a_failure_before_anything_arrived_leaves_nothing(tmp_path: Path) -> None:
    failed = Failed(reason=Reason.ORIGIN_NOT_FOUND, detail="404")
    outcome = get(Standalone(failed), str(tmp_path / "out.bin"))
    assert outcome.exit_code == 4
    assert list(tmp_path.iterdir()) == []


def test_a_next_try_that_fails_at_once_keeps_what_an_earlier_one_got(tmp_path: Path) -> None:
    refused = Failed(reason=Reason.ORIGIN_UNAUTHORIZED, detail="401")
    get(Standalone(HALF, refused), str(tmp_path / "out.bin"))
    # The registry's answer comes before the store is even looked at.
    outcome = get(Standalone(refused), str(tmp_path / "out.bin"))
    assert outcome.exit_code == 4
    assert (tmp_path / ".out.bin.shoal" / "pieces").exists()


def test_wrong_usage_leaves_nothing(tmp_path: Path) -> None:
    outcome = get(Standalone(error=UsageError("no such scheme")), str(tmp_path / "out.bin"))
    assert (outcome.exit_code, outcome.detail) == (2, "no such scheme")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_keeps_what_arrived(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        get(Standalone(HALF, error=KeyboardInterrupt()), str(tmp_path / "out.bin"))
    assert (tmp_path / ".out.bin.shoal" / "pieces").exists()


@pytest.mark.parametrize("address", ["no-port", "host:99999", "host:port"])
def test_a_scheduler_is_host_and_port(tmp_path: Path, address: str) -> None:
    outcome = get(Standalone(DONE), str(tmp_path / "out.bin"), "--scheduler", address)
    assert outcome.exit_code == 2
    assert "host:port" in outcome.detail


def test_two_at_once_do_not_share_their_state(tmp_path: Path) -> None:
    root = tmp_path / ".out.bin.shoal"
    root.mkdir()
    descriptor = os.open(root, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    outcome = get(Standalone(DONE), str(tmp_path / "out.bin"))
    os.close(descriptor)
    assert outcome.exit_code == 2
    assert "another shoal get" in outcome.detail
    assert root.exists()


def test_stdout_gets_the_content_and_the_cache_is_empty_afterwards(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    standalone = Standalone(DONE)
    assert get(standalone, "-").exit_code == 0
    assert capfdbinary.readouterr().out == CONTENT
    assert standalone.root == tmp_path / "shoal" / f"stream-{os.getpid()}"
    assert list((tmp_path / "shoal").iterdir()) == []


def test_a_stream_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    standalone = Standalone()
    standalone.hangs = True
    assert get(standalone, "-", "--timeout", "20ms").exit_code == 124


def test_the_state_lies_where_a_hard_link_can_reach_it(tmp_path: Path) -> None:
    assert state_root([tmp_path / "a.bin"]) == tmp_path / ".a.bin.shoal"


async def test_a_fresh_right_is_asked_for_beside_the_download() -> None:
    going_on = threading.Event()
    asked = asyncio.ensure_future(beside(lambda: "a right" if going_on.wait(10) else None)())
    await asyncio.sleep(0)
    going_on.set()
    assert await asked == "a right"

    def fail() -> str:
        raise UsageError("log in again")

    with pytest.raises(UsageError, match="log in again"):
        await beside(fail)()


def test_a_command_that_ends_does_not_wait_for_a_fresh_right() -> None:
    answers, answered = threading.Event(), threading.Event()

    def renew() -> str:
        answers.wait(10)
        answered.set()
        return "too late"

    async def end_early() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(beside(renew)(), 0.01)

    asyncio.run(end_early())
    assert not answered.is_set()
    answers.set()
    assert answered.wait(10)
