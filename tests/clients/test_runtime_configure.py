"""Runtimes that read what `shoal runtime configure` wrote pull through the mirror; after `--undo`
every file is as it was, and they pull straight again.
"""

import json
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peer.shell.mirror.relay import LOOP_HEADER
from tests.clients.configured_runtimes import (
    Configured,
    ConfiguredContainerd,
    ConfiguredContainerdTwo,
    ConfiguredDocker,
    ConfiguredPodman,
    ConfiguredPodmanFive,
)
from tests.clients.images import make_image
from tests.clients.mirror_rig import DOCKER_HUB, NAME, Mirrors, mirrors_of
from tests.clients.registry_rig import bare_environment
from tests.integration.swarm_rig import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

KINDS = [
    ConfiguredContainerd,
    ConfiguredContainerdTwo,
    ConfiguredPodman,
    ConfiguredPodmanFive,
    ConfiguredDocker,
]


@pytest.fixture(scope="module")
def mirrors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mirrors]:
    """One node. Images are named by where the registry really is, or as Docker Hub's."""
    with mirrors_of(tmp_path_factory.mktemp("mirrors")) as made:
        at = made.proxy.address
        made.add(
            1,
            upstreams=f"{at}=http://{at},{DOCKER_HUB}=http://{at}",
            dedicated=f"127.0.0.1:0={at}",
        )
        yield made


@pytest.fixture
def host(tmp_path: Path) -> Path:
    made = tmp_path / "host"
    made.mkdir()
    return made


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def runtime(
    request: pytest.FixtureRequest, mirrors: Mirrors, tmp_path: Path, host: Path
) -> Iterator[Configured]:
    with request.param(tmp_path / "runtime", host, mirrors.proxy.address) as made:
        yield made


def files_of(host: Path) -> dict[str, bytes]:
    """Everything below the directory; a directory counts as an empty file."""
    return {
        str(path.relative_to(host)): b"" if path.is_dir() else path.read_bytes()
        for path in host.rglob("*")
    }


def configure(runtime: Configured, host: Path, *options: str) -> dict[str, Any]:
    """Runs the command as an administrator does; what it tells."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "peer.cli", "runtime", "configure", runtime.runtime),
            *("--config-root", str(host), "--state-dir", str(host.parent / "state"), "--json"),
            *options,
        ],
        capture_output=True,
        text=True,
        timeout=20,
        cwd=ROOT,
        env={
            **bare_environment(host.parent / "home"),
            "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}",
        },
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_what_was_configured_is_what_the_runtime_does(
    runtime: Configured, mirrors: Mirrors, host: Path, request: pytest.FixtureRequest
) -> None:
    image = make_image(zlib.crc32(request.node.nodeid.encode()))
    path = f"lib/{image.manifest.digest[7:19]}"
    mirrors.registry.push(image, path)
    hub = isinstance(runtime, ConfiguredDocker)
    named = f"{DOCKER_HUB if hub else mirrors.proxy.address}/{path}:v1"
    before = files_of(host)

    registry = () if hub else ("--registry", mirrors.proxy.address)
    listener = mirrors.address(0)
    if isinstance(runtime, ConfiguredPodman):
        registry, listener = (*registry, "--dedicated"), mirrors.address(0, dedicated=NAME)
    told = configure(runtime, host, "--mirror", f"http://{listener}", *registry)
    assert told["changed"], told
    assert files_of(host) != before
    runtime.read_files()
    mirrors.proxy.forget()
    outcome = runtime.pull_named(named)
    assert outcome.ok, f"{outcome.text}\n{mirrors.proxy.told()}"
    runtime.check(image)
    manifests = [seen for seen in mirrors.proxy.seen if "/manifests/" in seen.path]
    assert manifests
    assert all(seen.header(LOOP_HEADER) for seen in manifests), mirrors.proxy.told()
    mirrors.check_read_once(image)
    clients = {seen.header("User-Agent") for seen in manifests}
    readers = {
        seen.header("User-Agent")
        for blob in image.blobs
        for seen in mirrors.proxy.blob_reads(blob.digest)
    }
    assert not clients & readers, "a blob was read straight"

    runtime.forget(named)
    assert configure(runtime, host, "--undo")["changed"]
    assert files_of(host) == before
    runtime.read_files(undone=True)
    mirrors.proxy.forget()
    outcome = runtime.pull_named(named)
    assert not any(seen.header(LOOP_HEADER) for seen in mirrors.proxy.seen)
    if hub:
        # Docker Hub itself cannot be reached from here.
        assert not outcome.ok
        assert mirrors.proxy.seen == []
        return
    assert outcome.ok, f"{outcome.text}\n{mirrors.proxy.told()}"
    runtime.check(image)
    mirrors.check_read_once(image)
