"""`docker-registry` as the origin of benchmarks, filled with blobs of drawn bytes.

Counts by its own access log what it sent. Keeps all its files in one directory and ends only what
it started.
"""

import hashlib
import http.client
import json
import os
import random
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlencode, urlsplit

from shoal.wire.errors import ShoalError

REPOSITORY: Final = "bench/layers"
MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
LAYER_TYPE: Final = "application/vnd.oci.image.layer.v1.tar"
CONFIG_TYPE: Final = "application/vnd.oci.empty.v1+json"
START_TIMEOUT_S: Final = 10.0
STOP_TIMEOUT_S: Final = 5.0
PUSH_TIMEOUT_S: Final = 120.0
DRAW_BYTES: Final = 1 << 20

_CONFIGURATION: Final = """\
version: 0.1
log: {{level: error, formatter: text}}
storage:
  filesystem: {{rootdirectory: {root}}}
http:
  addr: {address}
  relativeurls: true
"""
_READ: Final = re.compile(r'"GET \S*/blobs/(sha256:[0-9a-f]{64})\S* HTTP/1\.1" 2\d\d (\d+) ')


@dataclass(frozen=True, slots=True)
class Blob:
    """A layer in the registry."""

    digest: str
    size_bytes: int

    @property
    def path(self) -> str:
        """Of a request for it."""
        return f"/v2/{REPOSITORY}/blobs/{self.digest}"


class Registry:
    """One process over a directory of storage, which several may share. `enter`: what its command
    begins with, to run elsewhere. A context manager."""

    def __init__(
        self, storage: Path, work: Path, host: str = "127.0.0.1", enter: tuple[str, ...] = ()
    ) -> None:
        self._storage = storage
        self._work = work
        self._host = host
        self._enter = enter
        self._process: subprocess.Popen[bytes] | None = None
        self._seen_bytes = 0
        self.address = ""

    def __enter__(self) -> Self:
        program = shutil.which("docker-registry")
        if program is None:
            raise ShoalError("docker-registry is not installed; apt-get install docker-registry")
        self._work.mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"{self._host}:{probe.getsockname()[1]}"
        configuration = self._work / "registry.yml"
        configuration.write_text(_CONFIGURATION.format(root=self._storage, address=self.address))
        with (self._work / "registry.log").open("wb") as log:
            self._process = subprocess.Popen(
                [*self._enter, program, "serve", str(configuration)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self._work)},
            )
        try:
            self._wait()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends it. Safe to call twice."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _wait(self) -> None:
        assert self._process is not None
        end = time.monotonic() + START_TIMEOUT_S
        host, _, port = self.address.rpartition(":")
        while True:
            with socket.socket() as probe:
                probe.settimeout(1.0)
                if probe.connect_ex((host, int(port))) == 0:
                    return
            if self._process.poll() is not None or time.monotonic() > end:
                told = (self._work / "registry.log").read_text(errors="replace")[-2000:]
                raise ShoalError(f"docker-registry did not start: {told}")
            time.sleep(0.02)

    def sent(self) -> dict[str, int]:
        """By digest: the bytes of bodies that it sent in requests that have ended since the last
        call."""
        with (self._work / "registry.log").open("rb") as log:
            log.seek(self._seen_bytes)
            text = log.read()
        text = text[: text.rfind(b"\n") + 1]
        self._seen_bytes += len(text)
        sent: dict[str, int] = {}
        for found in _READ.finditer(text.decode(errors="replace")):
            sent[found[1]] = sent.get(found[1], 0) + int(found[2])
        return sent

    # ------------------------------------------------------------ filling

    def push(self, seed: str, size_bytes: int) -> Blob:
        """A blob of bytes drawn from a seed."""
        digest = hashlib.sha256()
        for chunk in _drawn(seed, size_bytes):
            digest.update(chunk)
        blob = Blob(f"sha256:{digest.hexdigest()}", size_bytes)
        self._put(blob, _drawn(seed, size_bytes))
        return blob

    def push_manifest(self, tag: str, blobs: tuple[Blob, ...]) -> str:
        """An artifact of these layers. Returns the path of a request for it."""
        config = Blob(f"sha256:{hashlib.sha256(b'{}').hexdigest()}", 2)
        self._put(config, iter((b"{}",)))
        told = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": "application/vnd.shoal.benchmark",
            "config": _descriptor(CONFIG_TYPE, config),
            "layers": [_descriptor(LAYER_TYPE, blob) for blob in blobs],
        }
        body = json.dumps(told).encode()
        path = f"/v2/{REPOSITORY}/manifests/{tag}"
        connection = http.client.HTTPConnection(self.address, timeout=PUSH_TIMEOUT_S)
        try:
            _call(connection, "PUT", path, body, {"Content-Type": MANIFEST_TYPE})
        finally:
            connection.close()
        return path

    def _put(self, blob: Blob, body: Iterator[bytes]) -> None:
        connection = http.client.HTTPConnection(self.address, timeout=PUSH_TIMEOUT_S)
        try:
            place = urlsplit(_call(connection, "POST", f"/v2/{REPOSITORY}/blobs/uploads/"))
            query = "&".join(filter(None, (place.query, urlencode({"digest": blob.digest}))))
            headers = {
                "Content-Type": "application/octet-stream",
                "Content-Length": str(blob.size_bytes),
            }
            _call(connection, "PUT", f"{place.path}?{query}", body, headers)
        finally:
            connection.close()


def _descriptor(kind: str, blob: Blob) -> dict[str, Any]:
    return {"mediaType": kind, "digest": blob.digest, "size": blob.size_bytes}


def _drawn(seed: str, size_bytes: int) -> Iterator[bytes]:
    # One drawn block, each time turned by another amount: as hard to compress, cheap to make.
    block = random.Random(seed).randbytes(min(DRAW_BYTES, size_bytes))
    for number, start in enumerate(range(0, size_bytes, DRAW_BYTES)):
        turn = number * 4099 % len(block)
        yield (block[turn:] + block[:turn])[: size_bytes - start]


def _call(
    connection: http.client.HTTPConnection,
    method: str,
    target: str,
    body: bytes | Iterator[bytes] = b"",
    headers: dict[str, str] | None = None,
) -> str:
    """The Location of the answer. Raises ShoalError for a refusal."""
    connection.request(method, target, body, headers or {})
    response = connection.getresponse()
    told = response.read()
    if response.status not in (201, 202):
        raise ShoalError(f"registry: {method} {target}: {response.status} {told[:500]!r}")
    return response.headers.get("Location", "")
