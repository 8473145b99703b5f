"""The real `docker-registry` on a host of a benchmark's network, and what its own log says it sent.

Filled by skopeo on its own host, past the link. Keeps everything in a directory of its own and
ends only what it started.
"""

import re
import shutil
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from benchmarks.real.model import Model
from benchmarks.real.network import Network
from shoal.wire.errors import ShoalError

PORT: Final = 5000
START_TIMEOUT_S: Final = 15.0
PUSH_TIMEOUT_S: Final = 600.0
STOP_TIMEOUT_S: Final = 5.0

_CONFIGURATION: Final = """\
version: 0.1
log: {{level: warn, accesslog: {{disabled: false}}}}
storage:
  filesystem: {{rootdirectory: {root}}}
http:
  addr: {address}:{port}
"""

_READ: Final = re.compile(r'"GET /v2/\S+/blobs/(sha256:[0-9a-f]{64})\S* HTTP/[^"]*" (\d+) (\d+)')
"""A line of the access log, in Apache's form: request, status, bytes of the body."""


@dataclass(slots=True)
class Reads:
    """What clients have read, as the registry logged it."""

    requests: int = 0
    body_bytes: Counter[str] = field(default_factory=Counter)
    """By digest."""


class Registry:
    """`docker-registry` on the host `name` of a network. A context manager."""

    def __init__(self, network: Network, name: str, directory: Path) -> None:
        self._network = network
        self._name = name
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._log = directory / "registry.log"
        for program in ("docker-registry", "skopeo"):
            if shutil.which(program) is None:
                raise ShoalError(
                    f"{program} is not installed; on Debian: apt-get install {program}"
                )

    @property
    def address(self) -> str:
        """Host and port."""
        return f"{self._network.address_of(self._name)}:{PORT}"

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None, "not started"
        return self._process.pid

    def __enter__(self) -> Self:
        configuration = self._directory / "registry.yml"
        host = self._network.address_of(self._name)
        configuration.write_text(
            _CONFIGURATION.format(root=self._directory / "storage", address=host, port=PORT)
        )
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                [
                    *self._network.command(self._name),
                    "docker-registry",
                    "serve",
                    str(configuration),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self._directory,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def push(self, model: Model, repository: str) -> str:
        """Uploads the model; its reference. Raises ShoalError with what skopeo said."""
        reference = f"{self.address}/{repository}:{model.tag}"
        end_s = time.monotonic() + START_TIMEOUT_S
        while (told := self._push_once(model, reference)) is not None:
            refused = "connection refused" in told
            if not refused or time.monotonic() > end_s:
                raise ShoalError(f"the model can't be pushed: {told[-1000:]}{self._tail()}")
            time.sleep(0.1)
        return reference

    def _push_once(self, model: Model, reference: str) -> str | None:
        """What went wrong."""
        done = subprocess.run(
            [
                *self._network.command(self._name),
                *("skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"),
                *("--dest-no-creds", f"oci:{model.layout}:{model.tag}", f"docker://{reference}"),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            text=True,
            timeout=PUSH_TIMEOUT_S,
        )
        return (done.stderr or done.stdout or "skopeo says nothing") if done.returncode else None

    def reads(self) -> Reads:
        """All reads of blobs so far whose answer has ended."""
        reads = Reads()
        for line in self._log.read_text(errors="replace").splitlines():
            if found := _READ.search(line):
                digest, status, size = found.groups()
                reads.requests += 1
                if status in ("200", "206"):
                    reads.body_bytes[digest] += int(size)
        return reads

    def _tail(self) -> str:
        return "\n" + self._log.read_text(errors="replace")[-1000:]
