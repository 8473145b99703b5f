"""`shoal runtime configure` on files: dry runs, writing, the way back, and the errors."""

import json
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.cli.main import run as shoal
from peer.cli.runtimes import files
from peer.cli.runtimes.command import diff_of
from peer.cli.runtimes.files import Root, State
from peer.cli.runtimes.wanted import Edit, Refused, mirror_of, registries_of
from shoal.wire.errors import UsageError

Captured = pytest.CaptureFixture[str]
SITE = '{\n  "debug": true\n}\n'


class Machine:
    """A root directory and a state directory, and the command run on them."""

    def __init__(self, base: Path) -> None:
        self.root, self.state = base / "root", base / "state" / "runtime"
        self.root.mkdir()
        self.options = ["--config-root", str(self.root), "--state-dir", str(self.state)]

    def run(self, *arguments: str) -> int:
        return shoal(["runtime", "configure", *arguments, *self.options])

    def path(self, name: str) -> Path:
        return self.root / name.lstrip("/")

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def snapshot(self) -> dict[str, tuple[int, bytes]]:
        return {
            str(path.relative_to(self.root.parent)): (
                stat.S_IMODE(path.stat().st_mode),
                b"" if path.is_dir() else path.read_bytes(),
            )
            for path in self.root.parent.rglob("*")
        }


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


RUNS = [
    ["containerd", "--registry", "reg.example:5000", "--registry", "_default"],
    ["crio", "--registry", "docker.io"],
    ["podman", "--registry", "models=https://reg.example"],
    ["docker"],
]


@pytest.mark.parametrize("arguments", RUNS, ids=lambda arguments: str(arguments[0]))
def test_there_and_back(machine: Machine, arguments: list[str], capsys: Captured) -> None:
    before = machine.snapshot()
    assert machine.run(*arguments, "--dry-run") == 0
    assert "+++" in capsys.readouterr().out
    assert machine.snapshot() == before
    assert machine.run(*arguments) == 0
    assert "to make the runtime read it" in capsys.readouterr().out
    between = machine.snapshot()
    assert machine.run(*arguments) == 0
    printed = capsys.readouterr().out
    assert "nothing changed" in printed
    assert "+++" not in printed
    assert machine.snapshot() == between
    assert machine.run(arguments[0], "--undo", "--dry-run") == 0
    assert machine.snapshot() == between
    assert machine.run(arguments[0], "--undo") == 0
    assert machine.snapshot() == before
    assert machine.run(arguments[0], "--undo") == 0
    assert "nothing to undo" in capsys.readouterr().out


def test_all_runtimes_undone_in_the_order_of_their_coming(machine: Machine) -> None:
    before = machine.snapshot()
    for arguments in RUNS:
        assert machine.run(*arguments) == 0
    for runtime in ("containerd", "podman", "docker"):
        assert machine.run(runtime, "--undo") == 0
    assert machine.snapshot() == before


def test_the_mode_stays_and_links_are_followed(machine: Machine) -> None:
    real = machine.write("/etc/site/daemon.json", SITE)
    real.chmod(0o640)
    link = machine.path("/etc/docker/daemon.json")
    link.parent.mkdir()
    link.symlink_to("../site/daemon.json")
    assert machine.run("docker") == 0
    assert link.is_symlink()
    assert "registry-mirrors" in real.read_text()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert stat.S_IMODE((machine.state / "docker").stat().st_mode) == 0o700
    assert machine.run("docker", "--undo") == 0
    assert (real.read_text(), stat.S_IMODE(real.stat().st_mode)) == (SITE, 0o640)


@pytest.mark.parametrize("target", ["/nowhere-at-all", "missing.json"])
def test_links_that_lead_astray_are_refused(
    machine: Machine, target: str, capsys: Captured
) -> None:
    link = machine.path("/etc/docker/daemon.json")
    link.parent.mkdir(parents=True)
    link.symlink_to(target)
    assert machine.run("docker") == 1
    assert "is a link" in capsys.readouterr().err


def test_undo_spares_what_others_wrote(machine: Machine, capsys: Captured) -> None:
    path = machine.write("/etc/docker/daemon.json", SITE)
    assert machine.run("docker") == 0
    path.write_text(path.read_text().replace("true", "false"))
    # Another run of ours does not make the change of somebody else ours.
    assert machine.run("docker") == 0
    changed = path.read_text()
    assert machine.run("docker", "--undo") == 1
    assert "--force" in capsys.readouterr().err
    assert path.read_text() == changed
    assert machine.run("docker", "--undo", "--force") == 0
    assert path.read_text() == SITE


def test_a_change_of_others_between_two_of_ours_is_remembered(machine: Machine) -> None:
    path = machine.write(
        "/etc/containers/registries.conf", '[[registry]]\nlocation = "a.example"\n'
    )
    assert machine.run("podman", "--registry", "a.example") == 0
    path.write_text(path.read_text() + '[[registry]]\nlocation = "b.example"\n')
    assert machine.run("podman", "--registry", "b.example") == 0
    assert machine.run("podman", "--undo") == 1


def test_directories_with_files_of_others_stay(machine: Machine, capsys: Captured) -> None:
    assert machine.run("docker") == 0
    other = machine.write("/etc/docker/key.json", "{}")
    assert machine.run("docker", "--undo") == 0
    assert "stays" in capsys.readouterr().err
    assert os.listdir(other.parent) == ["key.json"]


def test_one_broken_file_and_nothing_is_written(machine: Machine, capsys: Captured) -> None:
    machine.write("/etc/containerd/certs.d/b.example/hosts.toml", "server = \n")
    before = machine.snapshot()
    assert machine.run("containerd", "--registry", "a.example", "--registry", "b.example") == 1
    assert "b.example/hosts.toml is not valid TOML" in capsys.readouterr().err
    assert machine.snapshot() == before
    machine.write("/etc/docker/daemon.json", b"\xff\xfe")
    assert machine.run("docker") == 1
    assert "not UTF-8" in capsys.readouterr().err


def test_another_mirror_or_root_needs_the_way_back_first(
    machine: Machine, tmp_path: Path, capsys: Captured
) -> None:
    assert machine.run("docker") == 0
    assert machine.run("docker", "--mirror", "http://127.0.0.1:5000") == 1
    assert "--undo first" in capsys.readouterr().err
    machine.options[1] = str(tmp_path)
    assert machine.run("docker") == 1
    assert machine.run("docker", "--undo") == 1
    assert "--state-dir" in capsys.readouterr().err


def test_a_lost_copy_or_record_is_told(machine: Machine, capsys: Captured) -> None:
    machine.write("/etc/docker/daemon.json", SITE)
    assert machine.run("docker") == 0
    (machine.state / "docker" / "0000-daemon.json").write_text("{}")
    assert machine.run("docker", "--undo", "--force") == 1
    assert "lost or damaged" in capsys.readouterr().err
    (machine.state / "docker" / "record.json").write_text("[]")
    assert machine.run("docker", "--undo") == 1
    assert "can't be read" in capsys.readouterr().err


def test_json(machine: Machine, capsys: Captured) -> None:
    assert machine.run("docker", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["changed"]
    assert told["files"][0]["action"] == "created"
    assert told["next"] == "systemctl reload docker"


@pytest.mark.parametrize(
    "arguments",
    [
        ["docker", "--force"],
        ["docker", "--undo", "--registry", "docker.io"],
        ["docker", "--mirror", "127.0.0.1:4004"],
        ["docker", "--mirror", "http://user:word@127.0.0.1:4004"],
        ["docker", "--mirror", "http://127.0.0.1:99999"],
        ["podman"],
        ["podman", "--registry", "../a"],
        ["podman", "--registry", "a=https://b", "--registry", "a=https://c"],
        ["containerd", "--registry", "_default=https://a"],
        ["containerd", "--registry", "127.0.0.1:4004"],
    ],
)
def test_wrong_usage(machine: Machine, arguments: list[str], capsys: Captured) -> None:
    before = machine.snapshot()
    assert machine.run(*arguments) == 2
    printed = capsys.readouterr().err
    assert "shoal runtime: " in printed
    assert "word" not in printed.replace("password", "")
    assert machine.snapshot() == before


def test_a_write_that_fails_halfway_is_undone(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    before = machine.snapshot()
    whole: Callable[..., None] = files.replace

    def failing(place: Path, *rest: object) -> None:
        if place.name == "hosts.toml":
            raise OSError(28, "No space left on device", str(place))
        whole(place, *rest)

    monkeypatch.setattr(files, "replace", failing)
    assert machine.run("containerd") == 1
    assert "No space left" in capsys.readouterr().err
    assert machine.path("/etc/containerd/config.toml").exists()
    assert machine.run("containerd", "--undo") == 0
    assert machine.snapshot() == before


def test_a_file_that_changed_since_it_was_read_is_not_overwritten(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    path = machine.write("/a", "new")
    before = machine.snapshot()
    with pytest.raises(Refused, match="a moment ago"):
        State(machine.state, "x").apply(Root(machine.root), "m", [Edit("/a", "old", "ours")])
    assert path.read_text() == "new"
    assert not machine.state.exists()
    assert set(machine.snapshot()) == set(before)


def test_diffs_hold_no_credentials() -> None:
    before = 'a = 1\n  password = "hidden"\nurl = "https://me:hidden@a.example"\n"auth": "hidden"'
    shown = diff_of("/a", before, before + "\nb = 2\n")
    assert "hidden" not in shown
    assert "+b = 2" in shown


def test_registries_and_mirrors_are_read() -> None:
    mirror = mirror_of("https://mirror.example/")
    assert (mirror.url, mirror.plain) == ("https://mirror.example", False)
    assert len(registries_of(["a.example", "a.example", "[::1]:5000"], mirror)) == 2
    with pytest.raises(UsageError, match="mirror itself"):
        registries_of(["a=https://mirror.example"], mirror)


@given(
    st.dictionaries(
        st.sampled_from(["/a", "/b/c", "/b/d/e", "/f"]), st.none() | st.text(max_size=20),
        min_size=1,
    ),
    st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=3),
    st.sampled_from([0o600, 0o644, 0o755]),
)  # fmt: skip
def test_undo_restores_every_byte(
    contents: dict[str, str | None], rounds: list[str], mode: int
) -> None:
    with tempfile.TemporaryDirectory() as base:
        machine = Machine(Path(base))
        for path, content in contents.items():
            if content is not None:
                machine.write(path, content).chmod(mode)
        before = machine.snapshot()
        root, state = Root(machine.root), State(machine.state, "x")
        for text in rounds:
            edits = [
                Edit(path, None if not root.place(path).exists() else _text(root.place(path)), text)
                for path in contents
            ]
            state.apply(root, "m", edits)
        assert state.undo(root, force=False) == []
        assert machine.snapshot() == before


def _text(path: Path) -> str:
    return path.read_bytes().decode()
