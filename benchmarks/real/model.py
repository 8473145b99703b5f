"""A model to measure with: a ModelPack artifact of drawn weights, written as an OCI layout.

The weights are files of safetensors, each a raw layer, beside the small files that models have.
They are drawn from a seed and written as they are drawn, so a model may be larger than memory.
"""

import hashlib
import json
import random
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from shoal.wire.limits import MIB

OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
MODEL_MANIFEST: Final = "application/vnd.cncf.model.manifest.v1+json"
MODEL_CONFIG: Final = "application/vnd.cncf.model.config.v1+json"

CREATED: Final = "2024-01-01T00:00:00Z"
WIDTH: Final = 1024
"""Of the square tensors: 2 MiB each in bfloat16."""
DRAW_BYTES: Final = 4 * MIB


@dataclass(frozen=True, slots=True)
class Model:
    """What was written. `files` has the SHA-256 of each by its path."""

    layout: Path
    tag: str
    size_bytes: int
    layers: int
    files: dict[str, str]


class _Layout:
    """The blobs of a layout on disk."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._blobs = root / "blobs" / "sha256"
        self._blobs.mkdir(parents=True)

    def add(self, media_type: str, chunks: Iterable[bytes]) -> dict[str, Any]:
        """Writes a blob as it is made; its descriptor."""
        part = self.root / "part"
        hasher, size_bytes = hashlib.sha256(), 0
        with part.open("wb") as sink:
            for chunk in chunks:
                sink.write(chunk)
                hasher.update(chunk)
                size_bytes += len(chunk)
        part.rename(self._blobs / hasher.hexdigest())
        digest = f"sha256:{hasher.hexdigest()}"
        return {"mediaType": media_type, "digest": digest, "size": size_bytes}


def make_model(layout: Path, size_bytes: int, shards: int, seed: int = 1) -> Model:
    """A model of about so many bytes in so many shards, in a directory that does not exist."""
    drawn = random.Random(f"model {seed}")
    blobs = _Layout(layout)
    count = max(1, round(size_bytes / shards / (2 * WIDTH * WIDTH)))
    layers: list[dict[str, Any]] = []
    weight_map: dict[str, str] = {}
    for shard in range(1, shards + 1):
        path = f"model-{shard:05}-of-{shards:05}.safetensors"
        names = [f"model.layers.{shard}.{number}.weight" for number in range(count)]
        weight_map |= dict.fromkeys(names, path)
        layers.append(_layer(blobs, path, "weight", _safetensors(drawn, names)))
    index = {"metadata": {"total_size": size_bytes}, "weight_map": weight_map}
    for path, kind, content in (
        ("model.safetensors.index.json", "weight.config", _json(index)),
        ("config.json", "weight.config", _json({"hidden_size": WIDTH, "model_type": "drawn"})),
        ("tokenizer/vocabulary.txt", "weight.config", b"".join(b"%d\n" % n for n in range(9999))),
        ("README.md", "doc", b"# Drawn weights\n"),
    ):
        layers.append(_layer(blobs, path, kind, [content]))
    config = {
        "descriptor": {"createdAt": CREATED, "family": "drawn", "name": f"drawn-{seed}"},
        "modelfs": {"type": "layers", "diffIds": [layer["digest"] for layer in layers]},
        "config": {"architecture": "transformer", "format": "safetensors", "precision": "bfloat16"},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": MODEL_MANIFEST,
        "config": blobs.add(MODEL_CONFIG, [_json(config)]),
        "layers": layers,
    }
    described = blobs.add(OCI_MANIFEST, [_json(manifest)])
    described["annotations"] = {"org.opencontainers.image.ref.name": "v1"}
    (layout / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))
    (layout / "index.json").write_bytes(_json({"schemaVersion": 2, "manifests": [described]}))
    return Model(
        layout=layout,
        tag="v1",
        size_bytes=sum(layer["size"] for layer in layers),
        layers=len(layers),
        files={
            layer["annotations"]["org.cncf.model.filepath"]: layer["digest"].removeprefix("sha256:")
            for layer in layers
        },
    )


def _safetensors(drawn: random.Random, names: list[str]) -> Iterator[bytes]:
    """The bytes of a file of square tensors: length of the header, header, data."""
    size_bytes = 2 * WIDTH * WIDTH
    header = {
        name: {
            "dtype": "BF16",
            "shape": [WIDTH, WIDTH],
            "data_offsets": [at * size_bytes, (at + 1) * size_bytes],
        }
        for at, name in enumerate(names)
    }
    text = _json({"__metadata__": {"format": "pt"}, **header})
    # Data begins at a multiple of eight, so that tensors can be mapped as they are.
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    left = size_bytes * len(names)
    while left:
        yield drawn.randbytes(min(left, DRAW_BYTES))
        left -= min(left, DRAW_BYTES)


def _layer(blobs: _Layout, path: str, kind: str, chunks: Iterable[bytes]) -> dict[str, Any]:
    described = blobs.add(f"application/vnd.cncf.model.{kind}.v1.raw", chunks)
    metadata = {
        "name": path.rpartition("/")[2], "mode": 0o644, "uid": 0, "gid": 0,
        "size": described["size"], "mtime": CREATED, "typeflag": 48,
    }  # fmt: skip
    described["annotations"] = {
        "org.cncf.model.filepath": path,
        "org.cncf.model.file.metadata+json": json.dumps(metadata),
    }
    return described


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
