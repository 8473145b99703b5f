"""What `shoal pull` writes down while it works, through a daemon."""

import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peer.cli import pull_work
from peer.cli.main import run
from peer.shell.oci import unpack
from peer.shell.oci.pull_state import STATE_FILE, PullState
from tests.fakes.local_daemon import LocalDaemon
from tests.fakes.registry import REPOSITORY, Registry

KIND = "application/vnd.cncf.model.weight.v1."
METADATA = json.dumps({"mtime": "2024-01-02T03:04:05Z", "mode": 0o640})
FILES = {"a.safetensors": b"weights" * 1000, "b.safetensors": b"more" * 1000, "c.json": b"{}"}


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as registry:
        yield registry


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[LocalDaemon]:
    with LocalDaemon(tmp_path) as daemon:
        yield daemon


def raw_layers(registry: Registry) -> list[dict[str, Any]]:
    return [
        registry.layer(body, f"{KIND}raw", org_cncf_model_filepath=path)
        for path, body in FILES.items()
    ]


def dated_layers(registry: Registry) -> list[dict[str, Any]]:
    """Raw layers that say when their files were changed."""
    layers = raw_layers(registry)
    for layer in layers:
        layer["annotations"]["org.cncf.model.file.metadata+json"] = METADATA
    return layers


def publish(registry: Registry, daemon: LocalDaemon, layers: list[dict[str, Any]]) -> None:
    registry.tag(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "artifactType": "application/vnd.cncf.model.manifest.v1+json",
            "config": registry.layer(b"{}", "application/vnd.cncf.model.config.v1+json"),
            "layers": layers,
        }
    )
    for digest, body in registry.blobs.items():
        at = registry.reference.partition("/")[0]
        daemon.downloads.add(f"http://{at}/v2/{REPOSITORY}/blobs/{digest}", body)


def pull(registry: Registry, daemon: LocalDaemon, target: Path) -> int:
    return run(
        ["pull", registry.reference, "--plain-http", "-o", str(target), "-e", daemon.socket, "-q"]
    )


def whole_files(target: Path) -> set[str]:
    """Files of layers that the state on disk calls whole."""
    layers = json.loads((target / STATE_FILE).read_bytes())["layers"].values()
    return {path for layer in layers if layer["whole"] for path in layer["files"]}


def fitting_files(target: Path) -> set[str]:
    """Files that are as the state on disk says: the next pull need not read them."""
    layers = json.loads((target / STATE_FILE).read_bytes())["layers"].values()
    marks = {path: mark for layer in layers for path, mark in layer["files"].items()}
    now = {path: os.stat(target / path) for path in marks}
    return {
        path for path, mark in marks.items()
        if mark == [now[path].st_size, now[path].st_mtime_ns]
    }  # fmt: skip


def test_the_state_is_written_once_when_all_has_arrived(
    registry: Registry, daemon: LocalDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(registry, daemon, raw_layers(registry))
    monkeypatch.setattr(pull_work, "SAVE_EVERY_S", 1e9)
    target, written = tmp_path / "model", []
    save = PullState.save

    def saving(state: PullState) -> None:
        save(state)
        written.append(whole_files(target))

    monkeypatch.setattr(PullState, "save", saving)
    assert pull(registry, daemon, target) == 0
    assert {path.name: path.read_bytes() for path in target.glob("[!.]*")} == FILES
    assert written == [set(), set(FILES)], "once before anything is fetched, once at the end"


@pytest.mark.parametrize("archive_first", [False, True])
def test_a_pull_killed_while_it_unpacks_has_written_down_what_arrived(
    registry: Registry,
    daemon: LocalDaemon,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    archive_first: bool,
) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("d.txt"))
    archived = registry.layer(packed.getvalue(), f"{KIND}tar")
    layers = dated_layers(registry)
    publish(registry, daemon, [archived, *layers] if archive_first else [*layers, archived])
    target, known = tmp_path / "model", []
    unpacking = unpack.unpack

    def looking(*arguments: Any) -> None:
        known.append((whole_files(target), fitting_files(target)))
        unpacking(*arguments)

    monkeypatch.setattr(unpack, "unpack", looking)
    assert pull(registry, daemon, target) == 0
    assert known == [(set(FILES), set(FILES))]
    assert whole_files(target) == fitting_files(target) == {*FILES, "d.txt"}


def test_a_pull_that_fails_while_it_unpacks_has_written_down_what_arrived(
    registry: Registry, daemon: LocalDaemon, tmp_path: Path
) -> None:
    archived = registry.layer(b"no archive at all", f"{KIND}tar")
    publish(registry, daemon, [*raw_layers(registry), archived])
    assert pull(registry, daemon, tmp_path / "model") != 0
    assert whole_files(tmp_path / "model") == set(FILES)
