"""What the registry of the mirror's benchmarks holds: layers of drawn bytes, and manifests."""

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.real.model import OCI_MANIFEST
from benchmarks.real.registry import push_blob, push_manifest
from shoal.wire.limits import MIB

REPOSITORY: Final = "bench/layers"
LAYER_TYPE: Final = "application/vnd.oci.image.layer.v1.tar"
CONFIG_TYPE: Final = "application/vnd.oci.empty.v1+json"
DRAW_BYTES: Final = MIB


@dataclass(frozen=True, slots=True)
class Blob:
    """A layer in the registry."""

    digest: str
    size_bytes: int

    @property
    def path(self) -> str:
        """Of a request for it."""
        return f"/v2/{REPOSITORY}/blobs/{self.digest}"


def push_layer(address: str, seed: str, size_bytes: int) -> Blob:
    """Uploads a layer of bytes drawn from a seed. Raises ShoalError."""
    digest = hashlib.sha256()
    for chunk in _drawn(seed, size_bytes):
        digest.update(chunk)
    blob = Blob(f"sha256:{digest.hexdigest()}", size_bytes)
    push_blob(address, REPOSITORY, blob.digest, size_bytes, _drawn(seed, size_bytes))
    return blob


def push_artifact(address: str, tag: str, layers: tuple[Blob, ...]) -> str:
    """Uploads an artifact of layers; the path of a request for its manifest. Raises ShoalError."""
    config = Blob(f"sha256:{hashlib.sha256(b'{}').hexdigest()}", 2)
    push_blob(address, REPOSITORY, config.digest, config.size_bytes, (b"{}",))
    told = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": "application/vnd.shoal.benchmark",
        "config": _descriptor(CONFIG_TYPE, config),
        "layers": [_descriptor(LAYER_TYPE, blob) for blob in layers],
    }
    return push_manifest(address, REPOSITORY, tag, json.dumps(told).encode())


def _descriptor(kind: str, blob: Blob) -> dict[str, Any]:
    return {"mediaType": kind, "digest": blob.digest, "size": blob.size_bytes}


def _drawn(seed: str, size_bytes: int) -> Iterator[bytes]:
    # One drawn block, each time turned by another amount: as hard to compress, cheap to make.
    block = random.Random(seed).randbytes(min(DRAW_BYTES, size_bytes))
    for number, start in enumerate(range(0, size_bytes, DRAW_BYTES)):
        turn = number * 4099 % len(block)
        yield (block[turn:] + block[:turn])[: size_bytes - start]
