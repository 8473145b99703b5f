"""`shoal inspect` with a registry and a daemon in this process: what it says of node and swarm."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peer.cli.main import run
from peer.shell.api_types import SwarmContent
from peer.shell.errors import DownloadError
from shoal.wire.errors import Reason
from tests.fakes.answers import digest_of
from tests.fakes.local_daemon import LocalDaemon
from tests.fakes.registry import Registry

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
KIND = "application/vnd.cncf.model.weight.v1.raw"
FIRST, SECOND = b"a" * 4000, b"b" * 6000


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as started:
        publish(started, FIRST, SECOND)
        yield started


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[LocalDaemon]:
    with LocalDaemon(tmp_path) as started:
        yield started


def publish(registry: Registry, *bodies: bytes) -> None:
    config = registry.layer(b"{}", "application/vnd.cncf.model.config.v1+json")
    layers = [
        registry.layer(body, KIND, org_cncf_model_filepath=f"{number}.bin")
        for number, body in enumerate(bodies)
    ]
    registry.tag({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers})


def in_swarm(daemon: LocalDaemon, body: bytes, hosts: int, whole: int, covered: int) -> None:
    digest = digest_of(body)
    daemon.downloads.swarm_contents[digest] = SwarmContent(
        digest=digest,
        hosts=hosts,
        whole_hosts=whole,
        covered_bytes=covered,
        size_bytes=len(body),
    )


def inspect(registry: Registry, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert run(["inspect", registry.reference, "--plain-http", *options]) == 0
    return capsys.readouterr().out


def facts_of(
    registry: Registry, capsys: pytest.CaptureFixture[str], *options: str
) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(inspect(registry, capsys, "--json", *options))
    assert facts["ok"]
    return facts


def line_of(printed: str, name: str) -> str:
    (line,) = (line for line in printed.splitlines() if line.startswith(f"{name} "))
    return line.removeprefix(name).strip()


def test_what_node_and_swarm_hold_is_told_for_each_layer_and_in_sum(
    registry: Registry, daemon: LocalDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.downloads.add("http://origin.example/first", FIRST)
    in_swarm(daemon, FIRST, 37, 20, 4000)
    in_swarm(daemon, SECOND, 30, 12, 6000)
    printed = inspect(registry, capsys, "-e", daemon.socket)
    assert line_of(printed, "this node") == "40 % (3.9 KiB)"
    assert line_of(printed, "swarm") == "100 % on 37 hosts (12 whole)"
    first, second = (line.split() for line in printed.splitlines()[-2:])
    assert first[2:8] == ["100", "%", "100", "%", "37", "20"]
    assert second[2:8] == ["0", "%", "100", "%", "30", "12"]
    assert (first[-1], second[-1]) == ("0.bin", "1.bin")


def test_scripts_are_told_numbers(
    registry: Registry, daemon: LocalDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.downloads.add("http://origin.example/first", FIRST)
    in_swarm(daemon, FIRST, 37, 20, 4000)
    in_swarm(daemon, SECOND, 1, 0, 10)
    facts = facts_of(registry, capsys, "-e", daemon.socket)
    assert facts["held_bytes"] == 4000
    assert facts["swarm"] == {"hosts": 37, "whole_hosts": 0, "covered_bytes": 4010}
    assert facts["swarm_unknown"] is None
    assert [layer["held_bytes"] for layer in facts["layers"]] == [4000, 0]
    assert [layer["swarm"] for layer in facts["layers"]] == [
        {"hosts": 37, "whole_hosts": 20, "covered_bytes": 4000},
        {"hosts": 1, "whole_hosts": 0, "covered_bytes": 10},
    ]


def test_a_little_is_neither_nothing_nor_all(
    registry: Registry, daemon: LocalDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    in_swarm(daemon, FIRST, 1, 0, 1)
    printed = inspect(registry, capsys, "-e", daemon.socket)
    assert line_of(printed, "swarm") == "<1 % on 1 host (0 whole)"
    in_swarm(daemon, FIRST, 1, 0, 4000)
    in_swarm(daemon, SECOND, 1, 0, 5999)
    printed = inspect(registry, capsys, "-e", daemon.socket)
    assert line_of(printed, "swarm") == "99 % on 1 host (0 whole)"


def test_an_empty_layer_is_not_asked_for(
    registry: Registry, daemon: LocalDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(registry, FIRST, b"", FIRST)
    in_swarm(daemon, FIRST, 2, 2, 4000)
    facts = facts_of(registry, capsys, "-e", daemon.socket)
    assert daemon.downloads.swarm_asked == [(digest_of(FIRST),)]
    assert facts["swarm"] == {"hosts": 2, "whole_hosts": 2, "covered_bytes": 8000}
    assert facts["layers"][1]["swarm"] is None
    publish(registry, b"")
    printed = inspect(registry, capsys, "-e", daemon.socket)
    assert line_of(printed, "swarm") == "not known: there is nothing to hold"


def test_without_a_daemon_neither_is_known(
    registry: Registry,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SHOAL_PEER_API_SOCKET", str(tmp_path / "none.sock"))
    facts = facts_of(registry, capsys)
    assert (facts["held_bytes"], facts["swarm"]) == (None, None)
    assert facts["swarm_unknown"]["reason"] == "no-daemon"
    assert {layer["swarm"] for layer in facts["layers"]} == {None}
    printed = inspect(registry, capsys)
    assert line_of(printed, "this node") == "not known: no daemon runs here"
    assert line_of(printed, "swarm") == "not known: no daemon runs here"


@pytest.mark.parametrize("reason", [Reason.NO_SCHEDULER, Reason.TIMEOUT, Reason.OVERLOADED])
def test_a_swarm_that_nobody_can_tell_of_is_not_known(
    registry: Registry,
    daemon: LocalDaemon,
    capsys: pytest.CaptureFixture[str],
    reason: Reason,
) -> None:
    daemon.downloads.add("http://origin.example/first", FIRST)
    daemon.downloads.swarm_refusal = DownloadError(reason, "that is why")
    facts = facts_of(registry, capsys, "-e", daemon.socket)
    assert (facts["held_bytes"], facts["swarm"]) == (4000, None)
    assert facts["swarm_unknown"] == {"reason": str(reason), "detail": "that is why"}
    printed = inspect(registry, capsys, "-e", daemon.socket)
    assert line_of(printed, "this node") == "40 % (3.9 KiB)"
    assert line_of(printed, "swarm") == "not known: that is why"


def test_a_daemon_of_an_older_version_knows_what_is_here(
    registry: Registry,
    daemon: LocalDaemon,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A path that no daemon knows stands for one that this daemon does not know.
    monkeypatch.setattr("peer.cli.inspect_holdings.SWARM_PATH", "/v1/nothing")
    printed = inspect(registry, capsys, "-e", daemon.socket)
    assert line_of(printed, "this node") == "0 % (0 B)"
    assert line_of(printed, "swarm") == "not known: the daemon is of an older version"
