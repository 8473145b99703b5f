"""The other commands: the dispatcher, status and tasks, and the daemons' options."""

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from peer.cli.daemons import FLAGS, config_type, overrides, parser
from peer.cli.local_client import DaemonAbsent, DaemonError, LocalClient, socket_path
from peer.cli.main import COMMANDS, run
from peer.shell.api_place import SYSTEM_SOCKET, default_socket, sockets_to_try
from shoal.runtime import config as configuration
from shoal.wire.errors import UsageError
from tests.fakes.local_daemon import LocalDaemon

URL = "http://origin.example/model.bin"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[LocalDaemon]:
    with LocalDaemon(tmp_path) as daemon:
        yield daemon


# ---------------------------------------------------------------- the dispatcher


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(command in printed for command in COMMANDS)


def test_an_unknown_command_is_told_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["statsu"]) == 2
    assert "'status'" in capsys.readouterr().err


def test_no_command_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 2
    assert "usage" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    if command == "version":
        assert run([command]) == 0
        return
    with pytest.raises(SystemExit) as ended:
        run([command, "--help"])
    assert ended.value.code == 0
    assert f"shoal {command}" in capsys.readouterr().out


# ---------------------------------------------------------------- status and tasks


def test_status_for_people_and_scripts(
    daemon: LocalDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["status", "-e", daemon.socket]) == 0
    printed = capsys.readouterr().out
    assert "fake" in printed
    assert "2.0 KiB" in printed
    assert run(["status", "-e", daemon.socket, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["store"] == {"used_bytes": 2048}


def test_status_without_a_daemon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "-e", str(tmp_path / "none.sock")]) == 1
    assert "none.sock" in capsys.readouterr().err


def test_tasks_are_listed(daemon: LocalDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    task_id = daemon.downloads.add(URL, b"content")
    assert run(["tasks", "-e", daemon.socket]) == 0
    assert task_id[:16] in capsys.readouterr().out
    assert run(["tasks", "-e", daemon.socket, "--json"]) == 0
    (task,) = json.loads(capsys.readouterr().out)
    assert task["task_id"] == task_id


def test_tasks_are_removed_by_the_beginning_of_their_id(daemon: LocalDaemon) -> None:
    task_id = daemon.downloads.add(URL, b"content")
    assert run(["tasks", "-e", daemon.socket, "rm", task_id[:8]]) == 0
    assert daemon.downloads.removed == [task_id]


def test_what_is_not_there_cannot_be_removed(
    daemon: LocalDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    task_id = daemon.downloads.add(URL, b"content")
    assert run(["tasks", "-e", daemon.socket, "--json", "rm", "zzzz", task_id]) == 1
    told = json.loads(capsys.readouterr().out)
    assert [each["removed"] for each in told] == [False, True]


@pytest.mark.parametrize("beginning", ["", "abc"])
def test_a_beginning_that_is_too_short_removes_nothing(
    daemon: LocalDaemon, capsys: pytest.CaptureFixture[str], beginning: str
) -> None:
    daemon.downloads.add(URL, b"content")
    assert run(["tasks", "-e", daemon.socket, "rm", beginning]) == 1
    assert "at least 4" in capsys.readouterr().err
    assert daemon.downloads.removed == []


def test_options_and_ids_may_be_mixed(daemon: LocalDaemon) -> None:
    task_id = daemon.downloads.add(URL, b"content")
    assert run(["tasks", "rm", "--json", task_id, "-e", daemon.socket]) == 0
    assert daemon.downloads.removed == [task_id]


def test_rm_needs_a_task(daemon: LocalDaemon) -> None:
    assert run(["tasks", "-e", daemon.socket, "rm"]) == 2


# ---------------------------------------------------------------- the thin client


class Answer:
    """A server that reads one request and answers with given bytes."""

    def __init__(self, path: Path, answer: bytes) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._answer = answer
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(self._answer)

    def close(self) -> None:
        self._thread.join(10)
        self._listener.close()


def ask(tmp_path: Path, answer: bytes) -> bytes:
    server = Answer(tmp_path / "s", answer)
    try:
        with LocalClient(tmp_path / "s").request("GET", "/") as response:
            return b"".join(response.chunks())
    finally:
        server.close()


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"Content-Length: 5\r\n\r\nhello",
        OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n",
        OK + b"\r\nhello",
    ],
)
def test_every_framing_of_a_body_is_read(tmp_path: Path, answer: bytes) -> None:
    assert ask(tmp_path, answer) == b"hello"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1\r\n\r\n",
        b"SSH-2.0-x\r\n",
        OK + b"Content-Length: 6\r\n\r\nhello",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel",
        OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\noops",
        b"x" * 100_000,
    ],
)
def test_what_is_cut_short_or_is_no_answer_is_an_error(tmp_path: Path, answer: bytes) -> None:
    with pytest.raises(DaemonError):
        ask(tmp_path, answer)


def test_a_daemon_that_hangs_is_left(daemon: LocalDaemon) -> None:
    daemon.downloads.add(URL, b"content")
    daemon.downloads.gate.clear()
    client = LocalClient(daemon.socket, deadline_s=0.1)
    with pytest.raises(DaemonError) as caught:
        list(client.lines("/v1/downloads", {"urls": [{"url": URL}]}))
    assert caught.value.reason in ("timeout", "failed")


def test_an_absent_daemon_is_told_apart(tmp_path: Path) -> None:
    client = LocalClient(tmp_path / "none")
    assert not client.answers()
    with pytest.raises(DaemonAbsent):
        client.get_json("/v1/status")


# ---------------------------------------------------------------- where the socket is


def test_everybody_has_a_place_of_their_own() -> None:
    assert default_socket({}, 0) == SYSTEM_SOCKET
    assert default_socket({"XDG_RUNTIME_DIR": "/run/user/7"}, 7) == "/run/user/7/shoal/peer.sock"
    assert default_socket({}, 7) == "/tmp/shoal-7/peer.sock"


def test_a_command_looks_for_the_users_daemon_then_the_machines() -> None:
    assert sockets_to_try({}, 7) == ("/tmp/shoal-7/peer.sock", SYSTEM_SOCKET)
    assert sockets_to_try({}, 0) == (SYSTEM_SOCKET,)
    assert sockets_to_try({"SHOAL_PEER_API_SOCKET": "/x"}, 7) == ("/x",)


@pytest.mark.parametrize("endpoint", ["/x/y.sock", "unix:///x/y.sock", "unix:/x/y.sock"])
def test_an_endpoint_may_be_written_as_a_url(endpoint: str) -> None:
    assert socket_path(endpoint) == "/x/y.sock"


# ---------------------------------------------------------------- daemons


def test_the_configuration_is_checked_and_printed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "peer.toml"
    config.write_text('zone = "rack-1"\n[piece]\nupload_rate = "10MB"\n')
    monkeypatch.setenv("SHOAL_PEER_CONFIG", str(config))
    arguments = ["--upload-rate", "25MB", "--scheduler", "10.0.0.1:1", "--scheduler", "10.0.0.2:2"]
    assert run(["peer", "--check-config", *arguments]) == 0
    printed = capsys.readouterr().out
    assert 'zone = "rack-1"' in printed
    assert 'upload_rate = "25MB"' in printed
    assert 'addresses = ["10.0.0.1:1", "10.0.0.2:2"]' in printed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--set", "piece.listn=127.0.0.1:1"], "did you mean piece.listen"),
        (["--set", "piece.listen"], "key=value"),
        (["--upload-rate", "fast"], "upload_rate"),
        (["--listen", "0.0.0.0:1"], "TLS"),
        (["--config", "/nowhere/peer.toml"], "cannot be read"),
    ],
)
def test_a_wrong_configuration_is_told_and_exits_with_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert run(["peer", "--check-config", *arguments]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("name", ["peer", "scheduler"])
def test_help_shows_every_setting_with_its_default(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run([name, "--help"])
    printed = capsys.readouterr().out
    for entry in configuration.options(config_type(name)):
        assert f"{entry.key}  [{entry.environment_name}]" in printed
        assert entry.kind.legal in printed
    assert printed.count("default ") >= len(configuration.options(config_type(name)))


@pytest.mark.parametrize("name", ["peer", "scheduler"])
def test_every_friendly_flag_is_a_setting(name: str) -> None:
    known = {entry.key for entry in configuration.options(config_type(name))}
    assert set(FLAGS[name].values()) <= known


def test_a_flag_beats_set_and_embedded_is_a_setting() -> None:
    options = parser("peer").parse_args(
        ["--set", "zone=a", "--zone", "b", "--set", "piece.workers=3", "--embedded-scheduler"]
    )
    assert overrides("peer", options) == {
        "zone": "b",
        "piece.workers": "3",
        "scheduler.embedded": "true",
    }


def test_set_is_key_and_value() -> None:
    with pytest.raises(UsageError, match="key=value"):
        overrides("scheduler", parser("scheduler").parse_args(["--set", "listen"]))
