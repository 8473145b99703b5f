"""What a command loads: most of its time, where there is little to do. Nothing here is measured; a
module that a command has no need of must not be there when it ends."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.fakes.local_daemon import LocalDaemon
from tests.fakes.registry import REPOSITORY, Registry

DAEMONS = (
    "peer.core", "peer.shell.api_types", "peer.shell.store", "scheduler", "shoal.runtime",
    "shoal.v1", "shoal.wire.control", "shoal.wire.frames",
    "google", "grpc", "msgpack", "prometheus_client", "uvloop", "xxhash",
)  # fmt: skip
"""What clients of a daemon have no need of."""

LOOPS = ("aiohttp", "asyncio", "yarl")
"""An event loop and its HTTP client: more than the rest of a command together."""

HTTP = ("email", "http", "ssl")
"""Python's own client: for whoever asks a registry."""

DATACLASSES = ("ast", "dataclasses", "dis", "inspect", "tokenize")
"""They compile code when a module is loaded, and stand on what reads the source of functions."""

LOGIN = (
    "peer.shell.oci.challenge",
    "peer.shell.oci.credentials",
    "peer.shell.oci.tokens",
)
"""For a registry that does not let everybody in."""

SELDOM = ("lzma", "rich", "shutil", "subprocess", "tarfile", "unicodedata", "zstandard")
"""Progress bars, archives, helpers with credentials, names in other alphabets."""

SCRIPT = """\
import json, sys
from peer.cli.main import run
code = 0
try:
    code = run(sys.argv[2:])
except SystemExit as end:
    code = end.code
with open(sys.argv[1], "w") as told:
    json.dump({"code": code, "modules": sorted(sys.modules)}, told)
"""


def loaded(told: Path, script: str, *arguments: str) -> tuple[int, set[str]]:
    """The exit code of a process, and every module that it had loaded."""
    done = subprocess.run(
        [sys.executable, "-c", script, str(told), *arguments],
        capture_output=True, check=False, timeout=55,
        env={**os.environ, "SHOAL_PEER_API_SOCKET": str(told.parent / "nobody.sock")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    facts = json.loads(told.read_text())
    return facts["code"], set(facts["modules"])


def among(modules: set[str], unwanted: Sequence[str]) -> list[str]:
    """Those of the modules that are unwanted, or lie in a package that is."""
    beginnings = tuple(f"{one}." for one in unwanted)
    return sorted(name for name in modules if f"{name}.".startswith(beginnings))


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("get --help", 0),
        ("get http://origin.example/", 2),
        ("pull --help", 0),
        ("pull reg.example/a:b:c -o out", 2),
        ("pull reg.example/a -o out --timeout soon", 2),
        ("pull reg.example/a -o out --ca-file /nonexistent/ca.pem", 2),
        ("inspect --help", 0),
        ("inspect reg.example/a --platform linux", 2),
        ("status --help", 0),
        ("tasks", 1),
    ],
)
def test_help_and_wrong_arguments_are_answered_at_once(
    tmp_path: Path, arguments: str, code: int
) -> None:
    found, modules = loaded(tmp_path / "told", SCRIPT, *arguments.split())
    assert found == code
    assert not among(modules, (*DAEMONS, *LOOPS, *HTTP, *DATACLASSES, *LOGIN, *SELDOM))


@pytest.mark.parametrize("arguments", ["peer --help", "peer --check-config", "scheduler --help"])
def test_a_daemon_that_only_tells_of_itself_is_not_loaded(tmp_path: Path, arguments: str) -> None:
    code, modules = loaded(tmp_path / "told", SCRIPT, *arguments.split())
    assert code == 0
    unwanted = ("aiohttp", "asyncio", "grpc", "peer.core", "scheduler.core.engine", "uvloop")
    assert not among(modules, unwanted)


@pytest.mark.parametrize("arguments", ["get http://origin.example/a -O", "status", "tasks"])
def test_what_asks_a_daemon_alone_loads_nothing_else(tmp_path: Path, arguments: str) -> None:
    command = arguments.split()
    if command[0] == "get":
        command.append(str(tmp_path / "out"))
    with LocalDaemon(tmp_path) as daemon:
        daemon.downloads.add("http://origin.example/a", b"weights")
        code, modules = loaded(tmp_path / "told", SCRIPT, *command, "-e", daemon.socket)
    assert code == 0
    assert not among(modules, (*DAEMONS, *LOOPS, *HTTP, *DATACLASSES, *LOGIN, *SELDOM))


@pytest.mark.parametrize("command", ["pull", "inspect"])
def test_what_asks_a_registry_and_a_daemon_loads_little_else(tmp_path: Path, command: str) -> None:
    body = b"weights" * 1000
    with Registry() as registry, LocalDaemon(tmp_path) as daemon:
        kind = "application/vnd.cncf.model."
        layer = registry.layer(body, f"{kind}weight.v1.raw", org_cncf_model_filepath="a.bin")
        registry.tag(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "artifactType": f"{kind}manifest.v1+json",
                "config": registry.layer(b"{}", f"{kind}config.v1+json"),
                "layers": [layer],
            }
        )
        host = registry.reference.partition("/")[0]
        daemon.downloads.add(f"http://{host}/v2/{REPOSITORY}/blobs/{layer['digest']}", body)
        out = tmp_path / "out"
        place = ("-o", str(out)) if command == "pull" else ()
        code, modules = loaded(
            tmp_path / "told", SCRIPT,
            command, registry.reference, *place, "--plain-http", "-e", daemon.socket,
        )  # fmt: skip
    assert code == 0
    if command == "pull":
        assert (out / "a.bin").read_bytes() == body
    assert not among(modules, (*DAEMONS, *LOOPS, *DATACLASSES, *LOGIN, *SELDOM))


def test_a_whole_peer_is_loaded_for_a_request_that_makes_sense(tmp_path: Path) -> None:
    target = str(tmp_path / "out.bin")
    code, modules = loaded(tmp_path / "told", SCRIPT, "get", "ftp://origin.example/a", "-O", target)
    assert code == 2
    assert not among(modules, ("aiohttp", "peer.core", "peer.shell.store", "uvloop"))
    assert list(tmp_path.iterdir()) == [tmp_path / "told"]


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        (
            "peer.shell.daemon",
            ("cryptography", "grpc", "peer.shell.mirror.server", "peer.shell.proxy.server", "rich",
             "scheduler"),
        ),
        (
            "peer.shell.standalone",
            ("grpc", "peer.shell.api", "peer.shell.daemon", "prometheus_client", "scheduler"),
        ),
        ("scheduler.shell.daemon", ("msgpack", "networkx", "peer.core", "peer.shell")),
    ],
)  # fmt: skip
def test_a_daemon_loads_what_it_is_told_to_be(
    tmp_path: Path, module: str, unwanted: tuple[str, ...]
) -> None:
    script = (
        f"import json, sys, {module};"
        "json.dump({'code': 0, 'modules': sorted(sys.modules)}, open(sys.argv[1], 'w'))"
    )
    _, modules = loaded(tmp_path / "told", script)
    assert not among(modules, unwanted)
