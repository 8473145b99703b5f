"""Real clients of registries, each with its state in a directory of its own.

A client pulls a reference straight or through a mirror, is bounded in time, and its result is read
from where it stores it: bytes are hashed here and not believed. Ends only processes that it
started and unmounts only what is mounted below its directory. Judges nothing but digests. One file
lies elsewhere: run by root, skopeo, podman and buildah keep their notes of where blobs were seen in
`/var/lib/containers/cache`, and no option of theirs moves it.
"""

import base64
import hashlib
import json
import shutil
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.clients.images import Image
from tests.clients.newer import bound, newer_command
from tests.clients.registry_rig import Program, bare_environment, seconds_since
from tests.conftest import require_root, require_tool
from tests.integration.swarm_rig import sha256_of, wait_for

PULL_S: Final = 40.0
"""A client that retries on its own is given up after so long."""

CALL_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a pull ended."""

    code: int
    text: str
    """What the client printed, both streams."""
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether the client calls it a success."""
        return self.code == 0


def registry_of(reference: str) -> str:
    """The registry's name in a reference, with its port."""
    return reference.partition("/")[0]


class Client(ABC):
    """One client. `places` tells where registries are that do not listen where they are named."""

    name: str
    login_file = "auth.json"
    newer = False
    """Whether it is of the newer clients, which this machine's own packages do not have."""
    knows_mirrors = True
    """Whether it goes on to the registry itself when a mirror fails."""
    takes_models = False
    """Whether it pulls what is no image of a system."""
    binds: tuple[tuple[Path, str], ...] = ()
    """Directories that it sees in place of this machine's."""
    registry = "registry.test"
    """The name of the registry that tests have it pull from."""

    def __init__(self, directory: Path, places: dict[str, str] | None = None) -> None:
        self.directory = directory
        self.places = places or {}
        self.login: dict[str, tuple[str, str]] = {}
        """User and password, by the host:port that demands them."""
        self.dedicated = False
        """The mirror stands for one registry: what it is asked for does not begin with a name."""
        directory.mkdir(parents=True, exist_ok=True)
        self.environment = bare_environment(directory / "home")
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.callback(unmount_below, self.directory)
        try:
            self.start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @abstractmethod
    def start(self) -> None:
        """Whatever has to run before a pull."""

    @abstractmethod
    def pull(self, reference: str, mirror: str | None = None) -> Outcome:
        """Pulls, through the mirror at this host:port if one is given."""

    @abstractmethod
    def check(self, image: Image) -> None:
        """Raises AssertionError unless the client holds this image, right to the last byte."""

    def pull_model(self, reference: str, mirror: str | None = None) -> Outcome:
        """Pulls what is no image of a system."""
        return self.pull(reference, mirror)

    def check_model(self, image: Image) -> None:
        """What `check` is for an image."""
        self.check(image)

    @abstractmethod
    def forget(self, reference: str) -> None:
        """Removes what was pulled, so that the next pull reads everything again."""

    def command(self, name: str) -> tuple[str, ...]:
        """What starts a program of this client, in front of its arguments."""
        if self.newer:
            return newer_command(name, *self.binds)
        return (*bound(*self.binds), require_tool(name))

    def place_of(self, reference: str) -> str:
        """Where the reference's registry listens."""
        name = registry_of(reference)
        return self.places.get(name, name)

    def write_login(self) -> Path:
        """The file with credentials, as `docker login` writes it; it may have none."""
        path = self.directory / self.login_file
        pairs = {
            host: {"auth": base64.b64encode(":".join(pair).encode()).decode()}
            for host, pair in self.login.items()
        }
        path.write_text(json.dumps({"auths": pairs}))
        path.chmod(0o600)
        return path

    def call(self, *arguments: str, timeout_s: float = CALL_S) -> Outcome:
        """Runs a program to its end."""
        began_s = time.monotonic()
        try:
            done = subprocess.run(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env=self.environment,
                timeout=timeout_s,
            )
        except subprocess.TimeoutExpired as error:
            told = (error.stdout or b"").decode(errors="replace")
            raise AssertionError(f"{arguments[0]}: not within {timeout_s} s:\n{told}") from None
        return Outcome(
            done.returncode, done.stdout.decode(errors="replace"), seconds_since(began_s)
        )


def mounts_below(directory: Path) -> list[str]:
    """Mount points under a directory, the deepest first."""
    points = [line.split(" ")[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    plain = [point.encode().decode("unicode_escape") for point in points]
    return sorted((point for point in plain if Path(point).is_relative_to(directory)), reverse=True)


def unmount_below(directory: Path) -> None:
    """Everything that is still mounted under a directory."""
    for point in mounts_below(directory):
        subprocess.run(["umount", "-l", point], check=True, timeout=CALL_S)


def containerd_configuration(root: Path, short: str) -> str:
    """Everything in directories of the test, nothing for Kubernetes. The socket is `c.sock` in the
    short one, as the path of a socket has to be short."""
    disabled = [
        "io.containerd.grpc.v1.cri",
        "io.containerd.internal.v1.opt",
        *(f"io.containerd.snapshotter.v1.{name}" for name in ("aufs", "btrfs", "devmapper")),
        "io.containerd.snapshotter.v1.zfs",
    ]
    return (
        "version = 2\n"
        f"root = {json.dumps(str(root))}\n"
        f"state = {json.dumps(f'{short}/state')}\n"
        f"disabled_plugins = {json.dumps(disabled)}\n"
        f"[grpc]\naddress = {json.dumps(f'{short}/c.sock')}\n"
    )


class Containerd(Client):
    """The daemon, and `ctr` as its client. Reads a folder of hosts as container runtimes do."""

    name = "containerd"
    takes_models = True
    settings = ""
    """More of its configuration."""
    pull_options: tuple[str, ...] = ("--snapshotter", "native")

    def __init__(self, directory: Path, places: dict[str, str] | None = None) -> None:
        require_root()
        self._daemon, self._ctr = self.command("containerd"), self.command("ctr")
        super().__init__(directory, places)
        self._socket = ""
        self.hosts = directory / "hosts"

    def start(self) -> None:
        """Waits until the daemon answers."""
        short = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="ctr-"))
        self._socket = f"{short}/c.sock"
        configuration = self.directory / "containerd.toml"
        configuration.write_text(
            containerd_configuration(self.directory / "root", short) + self.settings
        )
        process = Program(
            [*self._daemon, "-c", str(configuration)],
            self.directory / "containerd.log",
            self.environment,
        )
        self._stack.callback(process.close)

        def there() -> bool:
            assert process.running, f"containerd ended:\n{process.tail()}"
            return Path(self._socket).exists() and self._run("version").ok

        wait_for(there, "containerd answers")

    def pull(self, reference: str, mirror: str | None = None) -> Outcome:
        """Reads all blobs and unpacks the layers."""
        return self._pull(("images", "pull", *self.pull_options), reference, mirror)

    def pull_model(self, reference: str, mirror: str | None = None) -> Outcome:
        """Reads all blobs and unpacks nothing."""
        return self._pull(("content", "fetch"), reference, mirror)

    def write_hosts(self, reference: str, mirror: str | None) -> Path:
        """The file that says where to look for the reference's registry."""
        folder = self.hosts / registry_of(reference)
        folder.mkdir(parents=True, exist_ok=True)
        # Version 1.6 takes no file without this table.
        lines = [f'server = "http://{self.place_of(reference)}"', "[host]"]
        if mirror is not None:
            lines += [f'[host."http://{mirror}"]', 'capabilities = ["pull", "resolve"]']
        path = folder / "hosts.toml"
        path.write_text("\n".join((*lines, "")))
        return path

    def check(self, image: Image) -> None:
        """All blobs with the manifest, in the store of contents."""
        folder = self.directory / "root" / "io.containerd.content.v1.content" / "blobs" / "sha256"
        for blob in (image.manifest, *image.blobs):
            check_file(folder / blob.digest.removeprefix("sha256:"), blob.digest, self.name)

    def check_unpacked(self, image: Image) -> None:
        """Files of the layers, in the snapshots."""
        root = self.directory / "root" / "io.containerd.snapshotter.v1.native" / "snapshots"
        check_files(image, list(root.iterdir()), self.name)

    def forget(self, reference: str) -> None:
        """Waits until the contents are gone."""
        self._run("images", "rm", "--sync", reference)

    def _pull(self, verb: tuple[str, ...], reference: str, mirror: str | None) -> Outcome:
        self.write_hosts(reference, mirror)
        user = self.login.get(mirror or self.place_of(reference))
        return self._run(
            *verb,
            *("--hosts-dir", str(self.hosts), "--platform", "linux/amd64"),
            *(("--user", ":".join(user)) if user is not None else ()),
            reference,
            timeout_s=PULL_S,
        )

    def _run(self, *arguments: str, timeout_s: float = CALL_S) -> Outcome:
        return self.call(*self._ctr, "-a", self._socket, *arguments, timeout_s=timeout_s)


class _Containers(Client):
    """What the clients around one library share: registries.conf, policy and credentials."""

    def start(self) -> None:
        """Nothing has to run."""

    def write_registries(self, reference: str, mirror: str | None) -> Path:
        """With the mirror in the form that names the registry in front of the repository, unless
        it stands for that one alone."""
        name = registry_of(reference)
        lines = [
            'short-name-mode = "disabled"',
            "[[registry]]",
            f'prefix = "{name}"',
            f'location = "{self.place_of(reference)}"',
            "insecure = true",
        ]
        if mirror is not None:
            location = mirror if self.dedicated else f"{mirror}/{name}"
            lines += ["[[registry.mirror]]", f'location = "{location}"', "insecure = true"]
        path = self.directory / "registries.conf"
        path.write_text("\n".join((*lines, "")))
        return path

    def write_policy(self) -> Path:
        """Signatures are not looked at."""
        path = self.directory / "policy.json"
        path.write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
        return path


class Skopeo(_Containers):
    """Copies to a plain directory, where each blob is a file."""

    name = "skopeo"
    takes_models = True

    def __init__(self, directory: Path, places: dict[str, str] | None = None) -> None:
        self._program = self.command("skopeo")
        super().__init__(directory, places)
        self._output = directory / "out"

    def pull(self, reference: str, mirror: str | None = None) -> Outcome:
        """Copies manifest, config and layers as they are."""
        return self.call(
            *self._program,
            *("--registries-conf", str(self.write_registries(reference, mirror))),
            *("--policy", str(self.write_policy())),
            *("--tmpdir", str(self.directory)),
            "copy",
            *("--src-authfile", str(self.write_login())),
            f"docker://{reference}",
            f"dir:{self._output}",
            timeout_s=PULL_S,
        )

    def check(self, image: Image) -> None:
        """All blobs and the manifest."""
        check_file(self._output / "manifest.json", image.manifest.digest, self.name)
        for blob in image.blobs:
            check_file(self._output / blob.digest.removeprefix("sha256:"), blob.digest, self.name)

    def forget(self, reference: str) -> None:
        """Removes the directory."""
        del reference
        shutil.rmtree(self._output, ignore_errors=True)


class _Storage(_Containers):
    """Clients that unpack into a store of images; here with one plain directory for each layer."""

    program: str
    pull_options: tuple[str, ...] = ()

    def __init__(self, directory: Path, places: dict[str, str] | None = None) -> None:
        require_root()
        self._program = self.command(self.program)
        super().__init__(directory, places)
        self.root = directory / "root"
        self._run_root = ""

    def start(self) -> None:
        """Writes what says where the store is."""
        # Podman takes no run root of more than fifty characters.
        self._run_root = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="run-"))
        self._stack.callback(unmount_below, Path(self._run_root))
        storage = self.directory / "storage.conf"
        storage.write_text(
            "[storage]\n"
            'driver = "vfs"\n'
            f"graphroot = {json.dumps(str(self.root))}\n"
            f"runroot = {json.dumps(self._run_root)}\n"
        )
        self.environment |= {
            "CONTAINERS_STORAGE_CONF": str(storage),
            "CONTAINERS_CONF": "/dev/null",
            "TMPDIR": str(self.directory),
        }

    def global_options(self) -> tuple[str, ...]:
        """In front of the command."""
        return (
            *("--root", str(self.root)),
            *("--runroot", self._run_root),
            *("--storage-driver", "vfs"),
        )

    def pull(self, reference: str, mirror: str | None = None) -> Outcome:
        """Pulls and unpacks."""
        policy = ("--signature-policy", str(self.write_policy()))
        return self.pull_with(("pull", *policy), reference, mirror)

    def pull_with(self, verb: tuple[str, ...], reference: str, mirror: str | None) -> Outcome:
        """One of its ways to pull."""
        self.environment["CONTAINERS_REGISTRIES_CONF"] = str(
            self.write_registries(reference, mirror)
        )
        return self.call(
            *self._program,
            *self.global_options(),
            *verb,
            *self.pull_options,
            *("--authfile", str(self.write_login())),
            reference,
            timeout_s=PULL_S,
        )

    def check(self, image: Image) -> None:
        """Digests of manifest, config and layers as stored, and the unpacked files themselves."""
        stored = _stored(self.root / "vfs-images" / "images.json")
        found = [entry for entry in stored if entry["digest"] == image.manifest.digest]
        assert found, f"{self.name}: the image is not in its store"
        assert f"sha256:{found[0]['id']}" == image.config.digest
        layers = _stored(self.root / "vfs-layers" / "layers.json")
        held = {entry["compressed-diff-digest"] for entry in layers}
        assert held >= {layer.digest for layer in image.layers}, f"{self.name}: a layer is missing"
        check_files(image, [self.root / "vfs" / "dir" / found[0]["layer"]], self.name)

    def forget(self, reference: str) -> None:
        """Removes the image with its layers."""
        self.call(*self._program, *self.global_options(), "rmi", "--force", reference)


class Podman(_Storage):
    """As an engine uses it, without a container."""

    name = program = "podman"

    def global_options(self) -> tuple[str, ...]:
        """Nothing of systemd, and its own files in the directory of the test."""
        return (
            *super().global_options(),
            *("--cgroup-manager", "cgroupfs", "--events-backend", "none"),
            *("--tmpdir", str(self.directory / "engine")),
        )


class Buildah(_Storage):
    """As a build pulls its base."""

    name = program = "buildah"


def _stored(path: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(path.read_text())
    return entries


def check_file(path: Path, digest: str, client: str) -> None:
    assert path.exists(), f"{client}: {digest} is not in its store"
    assert f"sha256:{sha256_of(path)}" == digest, f"{client}: {digest} has other bytes"


def check_files(image: Image, roots: list[Path], client: str) -> None:
    for name, sha256 in image.files.items():
        found = [root / name for root in roots if (root / name).is_file()]
        assert found, f"{client}: {name} was not unpacked"
        for path in found:
            actual = hashlib.sha256(path.read_bytes()).hexdigest()
            assert actual == sha256, f"{client}: {path} has other bytes"


CLIENTS: Final[tuple[type[Client], ...]] = (Containerd, Skopeo, Podman, Buildah)
"""Those of this machine's own packages; `newer_clients` has the others."""
