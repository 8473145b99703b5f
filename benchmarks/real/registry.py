"""The real `docker-registry`, filled over HTTP, and what its own log says that it sent."""

import http.client
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlencode, urlsplit

from benchmarks.real.model import OCI_MANIFEST, Model
from benchmarks.real.processes import Server
from shoal.wire.errors import ShoalError
from shoal.wire.limits import MIB

PUSH_TIMEOUT_S: Final = 120.0
"""Of silence: the registry hashes a whole blob before it answers."""
CHUNK_BYTES: Final = MIB

_CONFIGURATION: Final = """\
version: 0.1
log: {{level: warn, accesslog: {{disabled: false}}}}
storage:
  filesystem: {{rootdirectory: {root}}}
  delete: {{enabled: true}}
http:
  addr: {address}
  relativeurls: true
"""

_READ: Final = re.compile(r'"GET /v2/\S+/blobs/(sha256:[0-9a-f]{64})\S* HTTP/[^"]*" (\d+) (\d+)')
"""A line of the access log, in Apache's form: request, status, bytes of the body."""


@dataclass(slots=True)
class Reads:
    """What clients have read of blobs, as the registry logged it."""

    requests: int = 0
    body_bytes: Counter[str] = field(default_factory=Counter)
    """By digest."""


class Registry(Server):
    """One process over a directory of storage, which several may share."""

    name = "docker-registry"
    package = "docker-registry"

    def __init__(self, work: Path, storage: Path, host: str = "127.0.0.1") -> None:
        super().__init__(work, host)
        self.storage = storage
        self._seen_bytes = 0

    def configure(self) -> list[str]:
        """Writes its configuration."""
        configuration = self.work / "registry.yml"
        configuration.write_text(_CONFIGURATION.format(root=self.storage, address=self.address))
        return ["serve", str(configuration)]

    def reads(self) -> Reads:
        """Of requests that have ended since the last call. A request is logged when its answer has
        ended, which may be after its bytes have arrived."""
        with self.log.open("rb") as log:
            log.seek(self._seen_bytes)
            text = log.read()
        text = text[: text.rfind(b"\n") + 1]
        self._seen_bytes += len(text)
        reads = Reads()
        for digest, status, size in _READ.findall(text.decode(errors="replace")):
            reads.requests += 1
            if status in ("200", "206"):
                reads.body_bytes[digest] += int(size)
        return reads

    def push(self, model: Model, repository: str) -> str:
        """Uploads a model; its reference. Raises ShoalError for a refusal."""
        index = json.loads((model.layout / "index.json").read_text())
        manifest = _blob(model, index["manifests"][0]["digest"]).read_bytes()
        told = json.loads(manifest)
        for each in (told["config"], *told["layers"]):
            content = _chunks(_blob(model, each["digest"]))
            push_blob(self.address, repository, each["digest"], each["size"], content)
        push_manifest(self.address, repository, model.tag, manifest)
        return f"{self.address}/{repository}:{model.tag}"


def push_blob(
    address: str, repository: str, digest: str, size_bytes: int, content: Iterable[bytes]
) -> None:
    """Uploads one blob in one piece to a registry. Raises ShoalError for a refusal."""
    with closing(http.client.HTTPConnection(address, timeout=PUSH_TIMEOUT_S)) as connection:
        place = urlsplit(_call(connection, "POST", f"/v2/{repository}/blobs/uploads/"))
        query = "&".join(filter(None, (place.query, urlencode({"digest": digest}))))
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size_bytes)}
        _call(connection, "PUT", f"{place.path}?{query}", content, headers)


def push_manifest(
    address: str, repository: str, tag: str, manifest: bytes, media_type: str = OCI_MANIFEST
) -> str:
    """Uploads a manifest; the path of a request for it. Raises ShoalError for a refusal."""
    path = f"/v2/{repository}/manifests/{tag}"
    with closing(http.client.HTTPConnection(address, timeout=PUSH_TIMEOUT_S)) as connection:
        _call(connection, "PUT", path, manifest, {"Content-Type": media_type})
    return path


def _blob(model: Model, digest: str) -> Path:
    return model.layout / "blobs" / digest.replace(":", "/")


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _call(
    connection: http.client.HTTPConnection,
    method: str,
    target: str,
    body: Iterable[bytes] | bytes = b"",
    headers: dict[str, str] | None = None,
) -> str:
    """The Location of the answer. Raises ShoalError for a refusal."""
    connection.request(method, target, body, headers or {})
    response = connection.getresponse()
    told = response.read()
    if response.status not in (201, 202):
        raise ShoalError(f"registry: {method} {target}: {response.status} {told[:500]!r}")
    return response.headers.get("Location", "")
