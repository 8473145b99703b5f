"""Container runtimes of a host whose files below `/etc` are those of a directory of the test.

Each is started with the files that an administrator could have written, and reads them again as
`shoal runtime configure` advises. Pulls go by the names that users give, and nothing but the files
says where to. Judges nothing.
"""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

import grpc

from tests.clients.client_rig import (
    PULL_S,
    Containerd,
    Outcome,
    Podman,
    containerd_configuration,
)
from tests.clients.images import Image
from tests.clients.newer_clients import ContainerdTwo, Docker, PodmanFive
from tests.clients.registry_rig import Program, seconds_since
from tests.integration.swarm_rig import wait_for

CRI: Final = "io.containerd.grpc.v1.cri"
_ANSWER_S: Final = 5.0


class Configured(Protocol):
    """What the tests need of a runtime."""

    runtime: str
    """As the command calls it."""

    def read_files(self, *, undone: bool = False) -> None:
        """Reads what lies in its files now."""

    def pull_named(self, reference: str) -> Outcome:
        """Pulls by a name, from wherever its files say."""

    def check(self, image: Image) -> None:
        """Raises AssertionError unless it holds this image."""

    def forget(self, reference: str) -> None:
        """Removes what was pulled."""


class ConfiguredContainerd(Containerd):
    """Asked as Kubernetes asks: by the interface of container runtimes (CRI)."""

    name = "containerd"
    runtime = "containerd"
    cri_settings = (
        f'\n[plugins."{CRI}".containerd]\n  snapshotter = "native" # no overlay on this disk\n'
        f'\n[plugins."{CRI}".cni]\n  conf_dir = "NETWORKS"\n'
    )

    def __init__(self, directory: Path, host: Path, registry: str) -> None:
        del registry
        self._etc = host / "etc" / "containerd"
        self.binds = ((self._etc, "/etc/containerd"),)
        super().__init__(directory)
        self._process: Program | None = None

    def start(self) -> None:
        """With the administrator's file."""
        short = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="ctr-"))
        self._socket = f"{short}/c.sock"
        text = containerd_configuration(self.directory / "root", short)
        text = text.replace(f"{json.dumps(CRI)}, ", "") + self.cri_settings
        self._etc.mkdir(parents=True)
        (self._etc / "config.toml").write_text(
            "# Kept by the site.\n" + text.replace("NETWORKS", str(self.directory / "networks"))
        )
        self._stack.callback(self._stop)
        self.read_files()

    def _stop(self) -> None:
        if self._process is not None:
            self._process.close()

    def read_files(self, *, undone: bool = False) -> None:
        """Starts anew, and waits until it knows images."""
        del undone
        self._stop()
        process = self._process = Program(
            [*self._daemon, "-c", "/etc/containerd/config.toml"],
            self.directory / "containerd.log",
            self.environment,
        )

        def there() -> bool:
            assert process.running, f"containerd ended:\n{process.tail()}"
            return Path(self._socket).exists() and self._ask("ListImages", b"", _ANSWER_S).ok

        wait_for(there, "containerd knows images")

    def pull_named(self, reference: str) -> Outcome:
        """By CRI."""
        return self._ask("PullImage", _image(reference), PULL_S)

    def forget(self, reference: str) -> None:
        """Waits until the contents are gone."""
        self._ask("RemoveImage", _image(reference), PULL_S)
        for named in (self._run("-n", "k8s.io", "images", "ls", "-q").text).split():
            self._run("-n", "k8s.io", "images", "rm", "--sync", named)

    def _ask(self, method: str, message: bytes, timeout_s: float) -> Outcome:
        """One call of the image service; its messages are read as bytes."""
        began_s = time.monotonic()
        with grpc.insecure_channel(f"unix://{self._socket}") as channel:
            call: Callable[..., bytes] = channel.unary_unary(f"/runtime.v1.ImageService/{method}")
            try:
                call(message, timeout=timeout_s, wait_for_ready=True)
            except grpc.RpcError as error:
                return Outcome(1, str(error), seconds_since(began_s))
        return Outcome(0, "", seconds_since(began_s))


class ConfiguredContainerdTwo(ConfiguredContainerd):
    """With a configuration of version 3."""

    name = "containerd-2"
    newer = ContainerdTwo.newer
    cri_settings = (
        "\n[plugins.'io.containerd.cri.v1.images']\n"
        '  snapshotter = "native" # no overlay on this disk\n'
        "\n[plugins.'io.containerd.cri.v1.runtime'.cni]\n  conf_dir = \"NETWORKS\"\n\n"
        f"{ContainerdTwo.settings}"
    )


class ConfiguredPodman(Podman):
    """Reads its files at each pull."""

    runtime = "podman"

    def __init__(self, directory: Path, host: Path, registry: str) -> None:
        etc = host / "etc" / "containers"
        self.binds = ((etc, "/etc/containers"),)
        super().__init__(directory)
        etc.mkdir(parents=True)
        anything = {"default": [{"type": "insecureAcceptAnything"}]}
        (etc / "policy.json").write_text(json.dumps(anything))
        (etc / "registries.conf").write_text(
            f'# Kept by the site.\n[[registry]]\nlocation = "{registry}" # in the basement\n'
            "insecure = true\n"
        )

    def read_files(self, *, undone: bool = False) -> None:
        """Nothing runs."""
        del undone

    def pull_named(self, reference: str) -> Outcome:
        """As a user types it."""
        return self.call(
            *self._program, *self.global_options(), "pull", reference, timeout_s=PULL_S
        )


class ConfiguredPodmanFive(ConfiguredPodman):
    """The same, newer."""

    name = PodmanFive.name
    newer = PodmanFive.newer


class ConfiguredDocker(Docker):
    """Reads the mirrors of its file again when it is told to."""

    runtime = "docker"

    def __init__(self, directory: Path, host: Path, registry: str) -> None:
        super().__init__(directory, {self.registry: registry})
        self._file = host / "etc" / "docker" / "daemon.json"
        self._file.parent.mkdir(parents=True)

    @property
    def configuration(self) -> Path:
        """Of the host."""
        return self._file

    def read_files(self, *, undone: bool = False) -> None:
        """By the signal that its service sends; without the mirrors it has to start anew."""
        if undone:
            self.restart()
        else:
            self.reload()

    def pull_named(self, reference: str) -> Outcome:
        """As a user types it."""
        return self.pull_as_configured(reference)


def _image(reference: str) -> bytes:
    """The messages for pulling and removing: an image with a name. Both fields have number 1."""
    name = reference.encode()
    spec = b"\x0a" + bytes((len(name),)) + name
    assert len(spec) < 128, "a length of one byte"
    return b"\x0a" + bytes((len(spec),)) + spec
