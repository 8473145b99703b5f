"""`shoal get` through a daemon: exit codes, outputs, what it prints, what it imports."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peer.cli import get
from peer.cli.main import run
from peer.shell import api_json
from peer.shell.api_types import Failed
from shoal.wire.errors import Reason
from tests.fakes.answers import digest_of
from tests.fakes.local_daemon import LocalDaemon

URL = "http://origin.example/model.bin?signature=secret"
CONTENT = b"weights" * 30_000


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[LocalDaemon]:
    with LocalDaemon(tmp_path) as daemon:
        daemon.downloads.add(URL, CONTENT)
        yield daemon


def shoal_get(daemon: LocalDaemon, *arguments: str) -> int:
    return run(["get", "-e", daemon.socket, *arguments])


def test_the_file_is_there_and_named(
    daemon: LocalDaemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out.bin"
    assert shoal_get(daemon, URL, "-O", str(target)) == 0
    assert target.read_bytes() == CONTENT
    printed = capsys.readouterr()
    assert printed.out == f"{target}  {digest_of(CONTENT)}\n"
    assert printed.err == ""


def test_json_for_scripts(
    daemon: LocalDaemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out.bin"
    assert shoal_get(daemon, URL, "-O", str(target), "--json") == 0
    (line,) = capsys.readouterr().out.splitlines()
    told = json.loads(line)
    assert told.pop("seconds") >= 0
    assert told == {
        "url": "http://origin.example/model.bin",
        "output": str(target),
        "size_bytes": len(CONTENT),
        "task_id": hashlib.sha256(b"task" + CONTENT).hexdigest(),
        "digest": digest_of(CONTENT),
        "origin_bytes": len(CONTENT) - 1,
        "peer_bytes": 1,
        "how": "hard-link",
        "ok": True,
        "reason": None,
        "detail": "",
    }


def test_several_urls_are_one_download(
    daemon: LocalDaemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.downloads.add("http://origin.example/other.bin", b"other")
    urls = [URL, "http://origin.example/other.bin"]
    assert shoal_get(daemon, urls[0], "-O", str(tmp_path), "--json", urls[1]) == 0
    assert (tmp_path / "model.bin").read_bytes() == CONTENT
    assert (tmp_path / "other.bin").read_bytes() == b"other"
    assert len(daemon.downloads.requests) == 1
    told = json.loads(capsys.readouterr().out)
    assert [each["size_bytes"] for each in told["files"]] == [len(CONTENT), 5]
    assert told["ok"]


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (Reason.ORIGIN_FAILED, 1),
        (Reason.NO_SOURCE, 1),
        (Reason.DIGEST_MISMATCH, 3),
        (Reason.ORIGIN_UNAUTHORIZED, 4),
        (Reason.ORIGIN_FORBIDDEN, 4),
        (Reason.ORIGIN_NOT_FOUND, 4),
        (Reason.DISK_FULL, 5),
        (Reason.DISK_READ_ONLY, 5),
        (Reason.TIMEOUT, 124),
    ],
)
def test_the_exit_code_tells_the_reason(
    daemon: LocalDaemon,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    reason: Reason,
    code: int,
) -> None:
    daemon.downloads.failure = Failed(reason=reason, detail="because")
    target = tmp_path / "out.bin"
    assert shoal_get(daemon, URL, "-O", str(target), "--json") == code
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert (told["ok"], told["reason"], told["detail"]) == (False, str(reason), "because")
    assert "because" in printed.err
    assert not target.exists()


def test_an_output_that_exists_is_refused_before_anything_is_asked(
    daemon: LocalDaemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out.bin"
    target.write_text("precious")
    assert shoal_get(daemon, URL, "-O", str(target)) == 2
    assert target.read_text() == "precious"
    assert daemon.downloads.requests == []
    assert "--overwrite" in capsys.readouterr().err


def test_what_the_daemon_finds_wrong_is_usage_too(
    daemon: LocalDaemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = str(tmp_path / "out.bin")
    assert shoal_get(daemon, URL, "-O", target, "--digest", "md5:00") == 2
    assert "sha256" in capsys.readouterr().err


def test_a_socket_that_was_named_must_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / "none.sock")
    code = run(["get", "-e", f"unix://{missing}", URL, "-O", str(tmp_path / "out.bin")])
    assert code == 1
    assert missing in capsys.readouterr().err


def test_quiet_says_nothing(
    daemon: LocalDaemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shoal_get(daemon, "-q", URL, "-O", str(tmp_path / "out.bin")) == 0
    assert capsys.readouterr() == ("", "")


# ---------------------------------------------------------------- outputs written by the command


def test_another_users_file_is_written_by_the_command_itself(
    daemon: LocalDaemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.uid = os.getuid() + 1000
    target = tmp_path / "out.bin"
    assert shoal_get(daemon, URL, "-O", str(target), "--json") == 0
    assert target.read_bytes() == CONTENT
    assert daemon.downloads.requests[0].outputs == (None,)
    assert json.loads(capsys.readouterr().out)["how"] == "copy"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.bin", "run", "store"]


def test_so_is_one_that_the_user_wants_to_write(daemon: LocalDaemon, tmp_path: Path) -> None:
    target = tmp_path / "out.bin"
    assert shoal_get(daemon, "--transfer-from-dfdaemon", URL, "-O", str(target)) == 0
    assert target.read_bytes() == CONTENT
    assert daemon.downloads.requests[0].outputs == (None,)


def test_a_daemon_that_may_not_write_there_still_gives_the_content(
    daemon: LocalDaemon, tmp_path: Path
) -> None:
    daemon.downloads.delivery_failure = Failed(reason=Reason.DISK_READ_ONLY, detail="sandbox")
    target = tmp_path / "out.bin"
    assert shoal_get(daemon, URL, "-O", str(target)) == 0
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("existed", [False, True])
def test_a_daemon_that_writes_into_another_tmp_does_not_fool_the_user(
    daemon: LocalDaemon, tmp_path: Path, *, existed: bool
) -> None:
    daemon.downloads.delivers = False
    target = tmp_path / "out.bin"
    if existed:
        target.write_text("an older content")
    assert shoal_get(daemon, "--overwrite", URL, "-O", str(target)) == 0
    assert target.read_bytes() == CONTENT


def test_wrong_bytes_from_the_daemon_leave_no_file(
    daemon: LocalDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.fakes.downloads.digest_of", lambda _content: "sha256:" + "0" * 64)
    daemon.uid = os.getuid() + 1000
    assert shoal_get(daemon, URL, "-O", str(tmp_path / "out.bin")) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "store"]


def test_a_file_made_meanwhile_is_not_replaced(
    daemon: LocalDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.uid = os.getuid() + 1000
    target = tmp_path / "out.bin"
    plain = get._follow

    def follow(*arguments: Any) -> None:
        plain(*arguments)
        target.write_text("precious")

    monkeypatch.setattr(get, "_follow", follow)
    assert shoal_get(daemon, URL, "-O", str(target)) == 5
    assert target.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.bin", "run", "store"]


# ---------------------------------------------------------------- stdout


def test_stdout_gets_the_content_and_nothing_else(
    daemon: LocalDaemon, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert shoal_get(daemon, URL, "-O", "-", "--json") == 0
    printed = capfdbinary.readouterr()
    assert printed.out == CONTENT
    assert json.loads(printed.err)["output"] == "-"


def test_a_stream_that_fails_exits_with_its_reason(
    daemon: LocalDaemon, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    daemon.downloads.failure = Failed(reason=Reason.DIGEST_MISMATCH, detail="not it")
    assert shoal_get(daemon, URL, "-O", "-") == 3
    printed = capfdbinary.readouterr()
    assert len(printed.out) < len(CONTENT)
    assert b"not it" in printed.err


# ---------------------------------------------------------------- the whole process


def process(*arguments: str, **options: Any) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "peer.cli.main", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def test_ctrl_c_cancels_and_tells_how_to_go_on(daemon: LocalDaemon, tmp_path: Path) -> None:
    daemon.downloads.gate.clear()
    target = tmp_path / "out.bin"
    with process("get", "-v", "-e", daemon.socket, URL, "-O", str(target)) as command:
        assert command.stderr is not None
        assert command.stderr.readline().startswith(b"resolved")
        command.send_signal(signal.SIGINT)
        _, printed = command.communicate(timeout=30)
    assert command.returncode == 130
    assert b"run the same command again" in printed
    assert not target.exists()


def test_an_older_daemon_that_does_not_know_files_of_their_own_is_named(
    daemon: LocalDaemon,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = tuple(name for name in api_json.REQUEST_FIELDS if name != "own_files")
    monkeypatch.setattr(api_json, "REQUEST_FIELDS", known)
    assert shoal_get(daemon, URL, "-O", str(tmp_path / "out.bin"), "--own-files") == 2
    assert "the daemon is of an older version: update it" in capsys.readouterr().err
    # Where there is no file it is not asked for one.
    assert shoal_get(daemon, URL, "-O", "-", "--own-files") == 0


def test_a_reader_that_goes_away_is_no_traceback(daemon: LocalDaemon) -> None:
    daemon.downloads.add(URL, bytes(4 << 20))
    with process("get", "-e", daemon.socket, URL, "-O", "-") as command:
        assert command.stdout is not None
        command.stdout.close()
        assert command.stderr is not None
        printed = command.stderr.read()
        command.wait(30)
    assert command.returncode == 1
    assert b"Traceback" not in printed


HEAVY = ("aiohttp", "asyncio", "dataclasses", "grpc", "http.client", "logging", "msgpack", "rich",
         "uvloop", "xxhash")  # fmt: skip


def test_a_small_file_imports_no_library(daemon: LocalDaemon, tmp_path: Path) -> None:
    """Each of these would cost more than the download."""
    script = (
        "import sys; from peer.cli.main import run; code = run(sys.argv[1:]);"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules];"
        "sys.exit(f'{code} {loaded}' if code or loaded else 0)"
    )
    target = str(tmp_path / "out.bin")
    done = subprocess.run(
        [sys.executable, "-c", script, "get", "-e", daemon.socket, URL, "-O", target],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
