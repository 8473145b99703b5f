"""Newer clients than this machine's own, and those that are not of its packages at all: containerd
2, skopeo and podman as of 2026, Docker, oras and crane.

Each follows the rules of `client_rig`: state in a directory of its own, bounded in time, and judged
by the bytes that it stored.
"""

import json
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Final

from tests.clients.client_rig import (
    CALL_S,
    PULL_S,
    Client,
    Containerd,
    Outcome,
    Podman,
    Skopeo,
    check_file,
    check_files,
    containerd_configuration,
)
from tests.clients.images import Image
from tests.clients.registry_rig import Program
from tests.conftest import require_root
from tests.integration.swarm_rig import wait_for

CHUNK_BYTES: Final = 512 * 1024
NOWHERE: Final = "http://127.0.0.1:1"
"""A proxy that is not there: what goes beyond this host fails at once."""


class ContainerdTwo(Containerd):
    """Version 2: the daemon itself pulls and unpacks, by its transfer service."""

    name = "containerd-2"
    newer = True
    settings = (
        '[[plugins."io.containerd.transfer.v1.local".unpack_config]]\n'
        'platform = "linux/amd64"\nsnapshotter = "native"\ndiffer = "walking"\n'
    )
    pull_options: tuple[str, ...] = ()


class ContainerdInChunks(ContainerdTwo):
    """Fetches each layer by several requests at once, with ranges that have no end: it reads what
    it wants of each and closes the connection."""

    name = "containerd-2-chunks"
    settings = (
        '[plugins."io.containerd.transfer.v1.local"]\n'
        "max_concurrent_downloads = 8\n"
        f"concurrent_layer_fetch_buffer = {CHUNK_BYTES}\n"
        f"{ContainerdTwo.settings}"
    )


class ContainerdLocal(ContainerdTwo):
    """Version 2 as its libraries are used: its client pulls, and writes into the daemon's store."""

    name = "containerd-2-local"
    pull_options = ("--local", "--snapshotter", "native")


class SkopeoOf2026(Skopeo):
    """Goes on where a body broke off."""

    name = "skopeo-1.22"
    newer = True


class PodmanFive(Podman):
    """Knows artifacts beside images."""

    name = "podman-5"
    newer = True
    pull_options = ("--retry", "0")
    takes_models = True

    def pull_model(self, reference: str, mirror: str | None = None) -> Outcome:
        """As an artifact."""
        return self.pull_with(("artifact", "pull"), reference, mirror)

    def check_model(self, image: Image) -> None:
        """All blobs, in the store of artifacts."""
        _check_layout(self.root / "artifacts", image, self.name)


class Docker(Client):
    """The daemon with a containerd of its own. Mirrors are for `docker.io` alone, and whatever they
    do not have it would look for there: nothing here lets it reach that."""

    name = "docker"
    newer = True
    registry = "docker.io"

    def __init__(self, directory: Path, places: dict[str, str] | None = None) -> None:
        require_root()
        self._daemon = self.command("dockerd")
        self._docker = self.command("docker")
        self._containerd = self.command("containerd")
        super().__init__(directory, places)
        self._data = directory / "data"
        self._short = ""
        self._mirrors: list[str] = []
        self._process: Program | None = None

    def start(self) -> None:
        """Waits until both daemons answer."""
        short = self._short = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="dkr-"))
        self.environment |= {"HTTP_PROXY": NOWHERE, "HTTPS_PROXY": NOWHERE}
        configuration = self.directory / "containerd.toml"
        configuration.write_text(containerd_configuration(self.directory / "containerd", short))
        containerd = Program(
            [*self._containerd, "-c", str(configuration)],
            self.directory / "containerd.log",
            self.environment,
        )
        self._stack.callback(containerd.close)
        wait_for(lambda: Path(f"{short}/c.sock").exists(), "Docker's containerd listens")
        self.write_configuration([])
        self._stack.callback(self._stop)
        self.restart()

    def _stop(self) -> None:
        if self._process is not None:
            self._process.close()

    def restart(self) -> None:
        """Starts it anew, with what its file says now, and waits until it answers."""
        self._stop()
        docker = self._process = Program(
            [*self._daemon, "--config-file", str(self.configuration)],
            self.directory / "dockerd.log",
            self.environment,
        )

        def there() -> bool:
            assert docker.running, f"dockerd ended:\n{docker.tail()}"
            return Path(f"{self._short}/d.sock").exists() and self._run("version").ok

        wait_for(there, "dockerd answers")

    @property
    def configuration(self) -> Path:
        """Its daemon.json."""
        return self.directory / "daemon.json"

    def write_configuration(self, mirrors: list[str]) -> None:
        """With these mirrors, as URLs."""
        told = {
            "data-root": str(self._data),
            "exec-root": f"{self._short}/exec",
            "pidfile": f"{self._short}/pid",
            "hosts": [f"unix://{self._short}/d.sock"],
            "containerd": f"{self._short}/c.sock",
            "storage-driver": "vfs",
            "iptables": False,
            "ip6tables": False,
            "bridge": "none",
            "max-download-attempts": 2,
            "features": {"containerd-snapshotter": False},
            **({"registry-mirrors": mirrors} if mirrors else {}),
        }
        self.configuration.write_text(json.dumps(told, indent=2) + "\n")

    def reload(self) -> None:
        """Has it read its file again, as `systemctl reload docker` does, and waits until the
        mirrors of the file hold."""
        assert self._process is not None
        wanted = json.loads(self.configuration.read_text()).get("registry-mirrors", [])
        self._process.signal(signal.SIGHUP)

        def held() -> bool:
            told = self._run("info", "--format", "{{json .RegistryConfig.Mirrors}}")
            mirrors = json.loads(told.text.strip().splitlines()[-1]) or []
            return bool([url.rstrip("/") for url in mirrors] == wanted)

        wait_for(held, f"dockerd uses the mirrors {wanted}")

    def pull(self, reference: str, mirror: str | None = None) -> Outcome:
        """Pulls and unpacks."""
        mirrors = [] if mirror is None else [f"http://{mirror}"]
        if mirrors != self._mirrors:
            self.write_configuration(mirrors)
            self.reload()
            self._mirrors = mirrors
        return self.pull_as_configured(reference)

    def pull_as_configured(self, reference: str) -> Outcome:
        """Through whatever its file says."""
        return self._run("pull", reference, timeout_s=PULL_S)

    def check(self, image: Image) -> None:
        """The digests that it found and the files that it unpacked; it keeps no layer as sent."""
        shown = "{{.Id}} {{json .RepoDigests}}"
        told = self._run("image", "inspect", "--format", shown, image.config.digest)
        assert told.ok, f"{self.name}: the image is not there:\n{told.text}"
        assert image.manifest.digest in told.text, told.text
        check_files(image, list((self._data / "vfs" / "dir").iterdir()), self.name)

    def forget(self, reference: str) -> None:
        """Removes the image with its layers."""
        self._run("image", "rm", "--force", reference)

    def _run(self, *arguments: str, timeout_s: float = CALL_S) -> Outcome:
        socket = f"unix://{self._short}/d.sock"
        return self.call(*self._docker, "--host", socket, *arguments, timeout_s=timeout_s)


class _ByName(Client):
    """Clients that know no mirrors: whoever uses them names the mirror in front of the registry."""

    login_file = "config.json"
    newer = True
    knows_mirrors = False
    takes_models = True

    def __init__(self, directory: Path, places: dict[str, str] | None = None) -> None:
        self._program = self.command(self.name)
        super().__init__(directory, places)
        self._output = directory / "out"

    def start(self) -> None:
        """Nothing has to run."""
        self.environment["DOCKER_CONFIG"] = str(self.directory)

    def named(self, reference: str, mirror: str | None) -> str:
        """What to ask for in place of the reference."""
        if mirror is not None and not self.dedicated:
            return f"{mirror}/{reference}"
        return f"{mirror or self.place_of(reference)}/{reference.partition('/')[2]}"

    def check(self, image: Image) -> None:
        """All blobs with the manifest, in a layout."""
        _check_layout(self._output, image, self.name)

    def forget(self, reference: str) -> None:
        """Removes the layout."""
        del reference
        shutil.rmtree(self._output, ignore_errors=True)


class Oras(_ByName):
    """Copies whatever a manifest names."""

    name = "oras"

    def pull(self, reference: str, mirror: str | None = None) -> Outcome:
        """Into a layout, as it is."""
        return self.call(
            *self._program,
            "copy",
            *("--from-registry-config", str(self.write_login()), "--from-plain-http"),
            self.named(reference, mirror),
            *("--to-oci-layout", f"{self._output}:v1"),
            timeout_s=PULL_S,
        )


class Crane(_ByName):
    """Like the tools around its library: kaniko, ko, Tekton."""

    name = "crane"

    def pull(self, reference: str, mirror: str | None = None) -> Outcome:
        """Into a layout, as it is."""
        self.write_login()
        return self.call(
            *self._program,
            *("pull", "--format", "oci", self.named(reference, mirror), str(self._output)),
            timeout_s=PULL_S,
        )


def _check_layout(directory: Path, image: Image, client: str) -> None:
    for blob in (image.manifest, *image.blobs):
        hexadecimal = blob.digest.removeprefix("sha256:")
        check_file(directory / "blobs" / "sha256" / hexadecimal, blob.digest, client)


NEWER_CLIENTS: Final[tuple[type[Client], ...]] = (
    ContainerdTwo,
    SkopeoOf2026,
    PodmanFive,
    Oras,
    Crane,
)
"""Those that pull from any registry, each as it is without further settings; Docker has mirrors for
`docker.io` alone."""
