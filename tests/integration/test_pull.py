"""`shoal pull` and `shoal inspect` as whole processes, from a registry that wants tokens."""

import base64
import gzip
import hashlib
import io
import json
import os
import signal
import ssl
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trustme
import zstandard

from benchmarks.real.site import wait_connected
from peer.cli.demo_processes import Processes, Started
from tests.fakes.registry import Registry

pytestmark = pytest.mark.slow

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
MODEL = "application/vnd.cncf.model.manifest.v1+json"
KIND = "application/vnd.cncf.model.weight.v1."
WEIGHTS = Random(7).randbytes(3 << 20)


def tar_of(*members: tuple[str, bytes], **links: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, body in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = len(body), 1_700_000_000, 0o640
            archive.addfile(info, io.BytesIO(body))
        for name, target in links.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return packed.getvalue()


def publish(registry: Registry, layers: list[dict[str, Any]]) -> str:
    config = registry.layer(
        json.dumps({"descriptor": {"name": "tiny"}, "config": {"paramSize": "1B"}}).encode(),
        "application/vnd.cncf.model.config.v1+json",
    )
    return registry.tag(
        {
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": MODEL,
            "config": config, "layers": layers,
        }
    )  # fmt: skip


def model(registry: Registry) -> dict[str, bytes]:
    """A model with a layer of every packing; its files."""
    metadata = json.dumps({"mode": 0o600, "mtime": "2024-05-06T07:08:09Z", "typeflag": 48})
    raw = registry.layer(WEIGHTS, f"{KIND}raw", org_cncf_model_filepath="weights/a.safetensors")
    raw["annotations"]["org.cncf.model.file.metadata+json"] = metadata
    publish(
        registry,
        [
            raw,
            registry.layer(
                tar_of(("config.json", b"{}")), f"{KIND}tar", org_cnai_model_filepath="config.json"
            ),
            registry.layer(gzip.compress(tar_of(("docs/a.md", b"a" * 5000))), f"{KIND}tar+gzip"),
            registry.layer(
                zstandard.compress(tar_of(("code/run.py", b"pass"), link="code/run.py")),
                f"{KIND}tar+zstd",
            ),
        ],
    )
    return {
        "weights/a.safetensors": WEIGHTS, "config.json": b"{}",
        "docs/a.md": b"a" * 5000, "code/run.py": b"pass",
    }  # fmt: skip


@pytest.fixture
def registry() -> Iterator[Registry]:
    """With a user and tokens."""
    with Registry() as started:
        started.users = {"ann": "correct-horse"}
        yield started


def environment(tmp_path: Path, secret: str = "correct-horse") -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    return {
        **kept,
        "HOME": str(tmp_path),
        "SHOAL_PEER_API_SOCKET": str(tmp_path / "no-daemon.sock"),
        "SHOAL_REGISTRY_USERNAME": "ann",
        "SHOAL_REGISTRY_PASSWORD": secret,
    }


def shoal(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [sys.executable, "-m", "peer.cli.main", *arguments],
        capture_output=True, check=False, timeout=55, **options,
    )  # fmt: skip


def pull(
    registry: Registry, tmp_path: Path, *more: str, secret: str = "correct-horse"
) -> "subprocess.CompletedProcess[bytes]":
    return shoal(
        "pull", registry.reference, "-o", str(tmp_path / "out"), "--plain-http", "--json", *more,
        # The registry of these tests redirects to another port of this machine.
        env={**environment(tmp_path, secret), "SHOAL_PEER_ORIGIN_INTERNAL_HOSTS": "127.0.0.1"},
    )  # fmt: skip


def found(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and not path.is_symlink() and path.name != ".shoal-pull.json"
    }


def test_a_model_of_every_packing_without_a_daemon(tmp_path: Path, registry: Registry) -> None:
    files = model(registry)
    registry.redirects = True
    done = pull(registry, tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    out = tmp_path / "out"
    assert found(out) == files
    status = (out / "weights/a.safetensors").stat()
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_mtime == 1714979289
    assert stat.S_IMODE((out / "config.json").stat().st_mode) == 0o640
    assert os.readlink(out / "link") == "code/run.py"
    assert registry.leaked == 0
    asked = dict(registry.asked)
    again = pull(registry, tmp_path)
    assert again.returncode == 0, again.stderr.decode()
    assert {layer["how"] for layer in json.loads(again.stdout)["layers"]} == {"there"}
    # Only the manifest and its token.
    assert {name for name, count in registry.asked.items() if count != asked[name]} == {
        "manifest", "token",
    }  # fmt: skip


def test_only_what_is_changed_is_fetched_again(tmp_path: Path, registry: Registry) -> None:
    files = model(registry)
    assert pull(registry, tmp_path).returncode == 0
    (tmp_path / "out/config.json").write_bytes(b"other")
    done = pull(registry, tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    assert found(tmp_path / "out") == files
    how = [layer["how"] for layer in json.loads(done.stdout)["layers"]]
    assert how == ["there", "unpacked", "there", "there"]


def daemon_in(directory: Path, processes: Processes, *options: str) -> str:
    """The socket of a daemon that belongs to no swarm."""
    facts = processes.start(
        "peer", "peer.cli.main", "peer", "--status", "", "--listen", "127.0.0.1:0",
        "--store-root", str(directory / "store"), "--socket", str(directory / "p.sock"),
        *options, "--ready-file",
    ).facts()  # fmt: skip
    return str(facts["socket"])


def test_through_a_daemon(tmp_path: Path, registry: Registry) -> None:
    files = model(registry)
    with Processes(tmp_path) as processes:
        socket = daemon_in(tmp_path, processes)
        done = pull(registry, tmp_path, "-e", socket)
        assert done.returncode == 0, done.stderr.decode()
        told = shoal(
            "inspect", registry.reference, "--plain-http", "--json", "-e", socket,
            env=environment(tmp_path),
        )  # fmt: skip
    assert found(tmp_path / "out") == files
    assert told.returncode == 0, told.stderr.decode()
    seen = json.loads(told.stdout)
    assert seen["held_bytes"] == seen["size_bytes"]
    assert seen["config"]["descriptor"]["name"] == "tiny"
    assert [layer["path"] for layer in seen["layers"]][:2] == [
        "weights/a.safetensors", "config.json",
    ]  # fmt: skip


def test_files_of_their_own_through_a_daemon(tmp_path: Path, registry: Registry) -> None:
    files = model(registry)
    weights = tmp_path / "out/weights/a.safetensors"
    with Processes(tmp_path) as processes:
        socket = daemon_in(tmp_path, processes)
        assert pull(registry, tmp_path, "-e", socket).returncode == 0
        linked, read_bytes = weights.stat(), registry.sent_bytes.total()
        # Where the file system has reflinks, it is independent already.
        assert linked.st_nlink == 2 or stat.S_IMODE(linked.st_mode) == 0o600
        done = pull(registry, tmp_path, "-e", socket, "--own-files")
        assert done.returncode == 0, done.stderr.decode()
        own = weights.stat()
        weights.write_bytes(b"mine")
        # What is in the store is not what was written to.
        assert pull(registry, tmp_path, "-e", socket).returncode == 0
        assert found(tmp_path / "out") == files
    assert (own.st_nlink, stat.S_IMODE(own.st_mode), own.st_mtime) == (1, 0o600, 1714979289)
    # Each pull shows of a part of what is held that it may read it.
    assert registry.sent_bytes.total() < read_bytes + len(WEIGHTS) // 4, "no layer was read again"


def test_a_pull_on_its_own_copies_nothing_to_make_files_of_their_own(
    tmp_path: Path, registry: Registry
) -> None:
    model(registry)
    done = pull(registry, tmp_path, "--own-files")
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout)["layers"][0]["how"] in ("hard-link", "reflink")
    own = (tmp_path / "out/weights/a.safetensors").stat()
    assert (own.st_nlink, stat.S_IMODE(own.st_mode), own.st_mtime) == (1, 0o600, 1714979289)


@pytest.mark.parametrize("alone", [False, True])
def test_a_registry_at_an_ipv6_address_with_a_certificate_of_its_own(
    tmp_path: Path, alone: bool
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("::1").configure_cert(context)
    with Registry("::1", context) as registry, Processes(tmp_path) as processes:
        registry.users = {"ann": "correct-horse"}
        registry.redirects = True
        files = model(registry)
        assert registry.reference.startswith("[::1]:")
        # The storage that the registry redirects to.
        own = {**environment(tmp_path), "SHOAL_PEER_ORIGIN_INTERNAL_HOSTS": "::1"}
        internal = ("--set", "origin.internal_hosts=::1")
        daemon = () if alone else ("-e", daemon_in(tmp_path, processes, *internal))
        arguments = ("pull", registry.reference, "--json", *daemon)
        unknown = shoal(*arguments, "-o", str(tmp_path / "no"), env=environment(tmp_path))
        assert unknown.returncode == 1
        assert "certificate" in unknown.stderr.decode()
        trusted = shoal(
            *arguments, "-o", str(tmp_path / "out"), "--ca-file", str(tmp_path / "ca.pem"),
            env=own,
        )  # fmt: skip
        assert trusted.returncode == 0, trusted.stderr.decode()
    assert found(tmp_path / "out") == files
    assert registry.leaked == 0


def test_events_tell_what_happens(tmp_path: Path, registry: Registry) -> None:
    slow_model(registry)
    registry.token_life_s = 2
    done = pull(registry, tmp_path, "--events")
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[-1]["event"] == "result"
    assert events[-1]["ok"] is True
    layers = {f"{number}.bin" for number in range(12)}
    for kind in ("resolved", "delivered"):
        assert {event["layer"] for event in events if event["event"] == kind} == layers
    told: dict[int, int] = {}
    for event in events:
        if event["event"] == "progress":
            told.update(event["files"])
            assert sum(told.values()) == event["bytes"]
    assert set(told) <= set(range(12))
    assert sum(told.values()) > 6 << 20
    assert b"Bearer" not in done.stdout


def auth_files(tmp_path: Path, registry: Registry, way: str) -> tuple[dict[str, str], list[str]]:
    """What a user has who logged in with another tool: environment and options."""
    env = environment(tmp_path)
    for name in list(env):
        if name.startswith(("SHOAL_REGISTRY_", "XDG_", "DOCKER_", "REGISTRY_AUTH")):
            del env[name]
    host = registry.reference.partition("/")[0]
    entry = {"auth": base64.b64encode(b"ann:correct-horse").decode()}
    options: list[str] = []
    file = tmp_path / "login.json"
    stored: dict[str, Any] = {"auths": {host: entry}}
    match way:
        case "authfile":
            # Theirs alone: this one would be wrong.
            env["REGISTRY_AUTH_FILE"] = str(tmp_path / "nothing.json")
            options = ["--authfile", str(file)]
        case "REGISTRY_AUTH_FILE":
            env["REGISTRY_AUTH_FILE"] = str(file)
        case "podman's auth.json":
            env["XDG_RUNTIME_DIR"] = str(tmp_path / "run")
            file = tmp_path / "run/containers/auth.json"
            stored = {"auths": {f"{host}/team": entry, host: {"auth": "d3Jvbmc6d3Jvbmc="}}}
        case "DOCKER_CONFIG":
            env["DOCKER_CONFIG"] = str(tmp_path / "docker")
            file = tmp_path / "docker/config.json"
        case "helper":
            file = tmp_path / ".docker/config.json"
            stored = {"credHelpers": {host: "vault"}}
        case _:
            assert way == "store"
            file = tmp_path / ".docker/config.json"
            stored = {"auths": {host: {}}, "credsStore": "vault"}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(stored))
    helper = tmp_path / "bin/docker-credential-vault"
    helper.parent.mkdir()
    helper.write_text(
        f"""#!/bin/sh
read -r server
if [ "$1" = get ] && [ "$server" = "{host}" ]; then
    echo '{{"ServerURL": "{host}", "Username": "ann", "Secret": "correct-horse"}}'
else
    echo "credentials not found in native keychain"; exit 1
fi
"""
    )
    helper.chmod(0o755)
    env["PATH"] = f"{helper.parent}:{env['PATH']}"
    return env, options


@pytest.mark.parametrize(
    "way",
    ["authfile", "REGISTRY_AUTH_FILE", "podman's auth.json", "DOCKER_CONFIG", "helper", "store"],
)
def test_who_logged_in_with_another_tool(tmp_path: Path, registry: Registry, way: str) -> None:
    model(registry)
    env, options = auth_files(tmp_path, registry, way)
    arguments = ["inspect", registry.reference, "--plain-http", "--json", *options]
    told = shoal(*arguments, env=env)
    assert told.returncode == 0, told.stderr.decode()
    assert json.loads(told.stdout)["config"]["descriptor"]["name"] == "tiny"
    assert registry.asked["token"] == 1


def test_patterns_choose_files(tmp_path: Path, registry: Registry) -> None:
    model(registry)
    done = pull(registry, tmp_path, "--include", "*.json", "--include", "docs/**")
    assert done.returncode == 0, done.stderr.decode()
    assert set(found(tmp_path / "out")) == {"config.json", "docs/a.md"}


def test_a_killed_pull_goes_on(tmp_path: Path, registry: Registry) -> None:
    big = Random(3).randbytes(24 << 20)
    layer = registry.layer(big, f"{KIND}raw", org_cncf_model_filepath="big.bin")
    publish(registry, [layer])
    registry.slow_s = 0.03
    arguments = [
        sys.executable, "-m", "peer.cli.main", "pull", registry.reference, "--plain-http",
        "-o", str(tmp_path / "out"),
    ]  # fmt: skip
    with subprocess.Popen(arguments, env=environment(tmp_path), stderr=subprocess.PIPE) as first:
        while first.poll() is None and registry.asked[layer["digest"]] < 48:
            continue
        first.send_signal(signal.SIGKILL)
        first.communicate(timeout=30)
    assert first.returncode == -signal.SIGKILL
    assert not (tmp_path / "out/big.bin").exists()
    registry.slow_s = 0
    done = pull(registry, tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    assert hashlib.sha256((tmp_path / "out/big.bin").read_bytes()).digest() == (
        hashlib.sha256(big).digest()
    )
    assert json.loads(done.stdout)["origin_bytes"] < len(big)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"big.bin", ".shoal-pull.json"}


def slow_model(registry: Registry) -> list[str]:
    """Layers that take some seconds to read, two each, with tokens of two; their digests."""
    layers = [
        registry.layer(
            Random(seed).randbytes(1 << 20), f"{KIND}raw", org_cncf_model_filepath=f"{seed}.bin"
        )
        for seed in range(12)
    ]
    publish(registry, layers)
    registry.token_life_s, registry.slow_s = 2, 0.4
    return [layer["digest"] for layer in layers]


LOOKS_BYTES = 16
"""A look at a layer reads one byte: one for each host and right."""


def check_read_once(registry: Registry, digests: list[str]) -> None:
    """Each layer was sent once, beside looks at it."""
    sent = [registry.sent_bytes[digest] for digest in digests]
    assert all(1 << 20 <= each <= (1 << 20) + LOOKS_BYTES for each in sent), sent


@pytest.mark.timeout(120)
@pytest.mark.parametrize("status", [401, 403])
def test_a_right_that_runs_out_is_renewed_while_the_download_goes_on(
    tmp_path: Path, registry: Registry, status: int
) -> None:
    digests = slow_model(registry)
    registry.expired_status = status
    done = pull(registry, tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    assert len(found(tmp_path / "out")) == 12
    assert registry.asked["token"] >= 2
    assert registry.asked["run out"] >= 1
    check_read_once(registry, digests)


def swarm_in(directory: Path, processes: Processes) -> tuple[Started, list[str]]:
    """A scheduler, and the sockets of the daemons `a` and `b` that are connected to it."""
    scheduler = processes.start(
        "scheduler", "peer.cli.main", "scheduler", "--listen", "127.0.0.1:0", "--status", "",
        "--ready-file",
    )  # fmt: skip
    address = scheduler.facts()["address"]
    started = [
        processes.start(
            name, "peer.cli.main", "peer", "--status", "", "--listen", "127.0.0.1:0",
            "--store-root", str(directory / f"{name}.store"), "--host-id", name,
            "--socket", str(directory / f"{name}.sock"), "--scheduler", address,
            "--ready-file",
        )
        for name in ("a", "b")
    ]  # fmt: skip
    sockets = [str(each.facts()["socket"]) for each in started]
    for name, socket in zip("ab", sockets, strict=True):
        wait_connected(name, Path(socket))
    return scheduler, sockets


def inspected(registry: Registry, tmp_path: Path, socket: str) -> dict[str, Any]:
    """What `shoal inspect` tells scripts through a daemon."""
    told = shoal(
        "inspect", registry.reference, "--plain-http", "--json", "-e", socket,
        env=environment(tmp_path),
    )  # fmt: skip
    assert told.returncode == 0, told.stderr.decode()
    facts: dict[str, Any] = json.loads(told.stdout)
    return facts


@pytest.mark.timeout(120)
def test_before_a_roll_out_a_node_tells_where_a_model_is(
    tmp_path: Path, registry: Registry
) -> None:
    layers = [
        registry.layer(
            Random(seed).randbytes(1 << 20), f"{KIND}raw", org_cncf_model_filepath=f"{seed}.bin"
        )
        for seed in range(3)
    ]
    publish(registry, layers)
    nothing = {"hosts": 0, "whole_hosts": 0, "covered_bytes": 0}
    with Processes(tmp_path) as processes:
        scheduler, (a, b) = swarm_in(tmp_path, processes)
        seen = inspected(registry, tmp_path, b)
        assert (seen["held_bytes"], seen["swarm"]) == (0, nothing)
        done = pull(registry, tmp_path, "-e", a, "--include", "1.bin")
        assert done.returncode == 0, done.stderr.decode()
        seen = inspected(registry, tmp_path, b)
        one = {"hosts": 1, "whole_hosts": 1, "covered_bytes": 1 << 20}
        assert [layer["swarm"] for layer in seen["layers"]] == [nothing, one, nothing]
        assert (seen["held_bytes"], seen["swarm"]) == (0, {**one, "whole_hosts": 0})
        done = pull(registry, tmp_path / "more", "-e", b)
        assert done.returncode == 0, done.stderr.decode()
        seen = inspected(registry, tmp_path, a)
        assert seen["held_bytes"] == 1 << 20
        assert seen["swarm"] == {"hosts": 2, "whole_hosts": 1, "covered_bytes": 3 << 20}
        assert [layer["swarm"]["hosts"] for layer in seen["layers"]] == [1, 2, 1]
        people = shoal(
            "inspect", registry.reference, "--plain-http", "-e", a, env=environment(tmp_path)
        ).stdout.decode()
        assert "this node        33 % (1.0 MiB)\n" in people
        assert "swarm            100 % on 2 hosts (1 whole)\n" in people
        scheduler.process.terminate()
        scheduler.process.wait(20)
        seen = inspected(registry, tmp_path, a)
    assert (seen["held_bytes"], seen["swarm"]) == (1 << 20, None)
    assert seen["swarm_unknown"]["reason"] == "no-scheduler"


@pytest.mark.timeout(180)  # Seven processes and tokens of two seconds, on whatever machine.
def test_a_swarm_stays_one_while_its_rights_run_out(tmp_path: Path, registry: Registry) -> None:
    digests = slow_model(registry)
    with Processes(tmp_path) as processes:
        _, sockets = swarm_in(tmp_path, processes)
        running = [
            subprocess.Popen(
                [
                    sys.executable, "-m", "peer.cli.main", "pull", registry.reference, "--json",
                    "--plain-http", "-o", str(tmp_path / f"{name}.out"), "-e", socket,
                ],
                env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
            for name, socket in zip("ab", sockets, strict=True)
        ]  # fmt: skip
        ended = [process.communicate(timeout=55) for process in running]
    for process, (told, problem), name in zip(running, ended, "ab", strict=True):
        assert process.returncode == 0, problem.decode()
        assert len(found(tmp_path / f"{name}.out")) == 12
        # Neither went off on its own: each has half from the other.
        assert json.loads(told)["peer_bytes"] > 3 << 20
    assert registry.asked["run out"] >= 2
    check_read_once(registry, digests)


@pytest.mark.timeout(120)
def test_a_right_that_is_refused_for_good_ends_the_pull(tmp_path: Path, registry: Registry) -> None:
    slow_model(registry)
    registry.token_life_s = None
    registry.token_chunks = 8
    registry.tokens_max = 2
    done = pull(registry, tmp_path)
    assert done.returncode == 4
    told = json.loads(done.stdout)
    assert told["reason"] == "origin-unauthorized"
    assert "the token service" in told["detail"]
    # What has arrived is there for the next try.
    registry.tokens_max = None
    registry.token_chunks = None
    registry.slow_s = 0
    done = pull(registry, tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout)["origin_bytes"] < 12 << 20


@pytest.mark.parametrize("basic", [False, True])
def test_wrong_credentials_are_refused(tmp_path: Path, registry: Registry, basic: bool) -> None:
    model(registry)
    registry.basic = basic
    done = pull(registry, tmp_path, secret="wrong-horse")
    assert done.returncode == 4
    assert "origin-unauthorized" in done.stderr.decode()
    assert b"wrong-horse" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "archive",
    [
        tar_of(("../evil", b"x")),
        tar_of(("/evil", b"x")),
        tar_of(evil="../outside"),
        tar_of(("ok", b"x"), ("ok", b"y")),
    ],
)
def test_an_archive_that_leads_out_is_refused(
    tmp_path: Path, registry: Registry, archive: bytes
) -> None:
    publish(registry, [registry.layer(archive, f"{KIND}tar")])
    done = pull(registry, tmp_path)
    assert done.returncode == 1
    assert "refused" in done.stderr.decode()
    assert not (tmp_path / "evil").exists()
    assert set(found(tmp_path / "out")) <= {"ok", *found(tmp_path / "out/.shoal-pull")} | {
        f".shoal-pull/{path.name}" for path in (tmp_path / "out/.shoal-pull").iterdir()
    }


def test_an_image_becomes_a_layout(tmp_path: Path, registry: Registry) -> None:
    layer = registry.layer(gzip.compress(b"layer"), "application/vnd.oci.image.layer.v1.tar+gzip")
    config = registry.layer(b'{"os":"linux"}', "application/vnd.oci.image.config.v1+json")
    digest = registry.tag(
        {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]}, "inner"
    )
    registry.tag(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [
                {
                    "mediaType": MANIFEST,
                    "digest": digest,
                    "size": 1,
                    "platform": {"os": "linux", "architecture": "arm64"},
                }
            ],
        }
    )
    done = pull(registry, tmp_path, "--platform", "linux/arm64")
    assert done.returncode == 0, done.stderr.decode()
    out = tmp_path / "out"
    assert json.loads((out / "index.json").read_bytes())["manifests"][0]["digest"] == digest
    for each in (digest, config["digest"], layer["digest"]):
        body = (out / "blobs/sha256" / each.partition(":")[2]).read_bytes()
        assert hashlib.sha256(body).hexdigest() == each.partition(":")[2]
    wrong = pull(registry, tmp_path, "--platform", "linux/s390x")
    assert wrong.returncode == 4
    assert "linux/arm64" in wrong.stderr.decode()
