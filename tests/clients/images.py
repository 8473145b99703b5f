"""Images and models with known digests, made by hand: OCI layouts, and pushes without any client.

Everything is drawn from a seed, so that the same call makes the same digests on every machine. An
image has layers of tar+gzip; a model is a ModelPack artifact, whose raw layers are the files of a
repository of weights. Knows nothing of mirrors and judges nothing.
"""

import gzip
import hashlib
import io
import json
import random
import struct
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.real.registry import push_blob, push_manifest

OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
MODEL_MANIFEST: Final = "application/vnd.cncf.model.manifest.v1+json"
MODEL_CONFIG: Final = "application/vnd.cncf.model.config.v1+json"

_CREATED: Final = "2024-01-01T00:00:00Z"
_KIB: Final = 1024


def digest_of(content: bytes) -> str:
    """In the form of registries."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes that a manifest names, and what it says of them."""

    media_type: str
    content: bytes = field(repr=False)
    annotations: dict[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Of its bytes."""
        return digest_of(self.content)

    def descriptor(self) -> dict[str, Any]:
        """As it stands in a manifest."""
        told: dict[str, Any] = {
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": len(self.content),
        }
        return {**told, "annotations": self.annotations} if self.annotations else told


@dataclass(frozen=True, slots=True)
class Image:
    """A manifest with all that it names."""

    config: Blob
    layers: tuple[Blob, ...]
    files: dict[str, str]
    """SHA-256 in hexadecimal of each file that is in the layers, by its path."""
    artifact_type: str | None = None

    @property
    def is_model(self) -> bool:
        """It is no image of a system."""
        return self.artifact_type is not None

    @property
    def manifest(self) -> Blob:
        """As pushed."""
        told: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI_MANIFEST}
        if self.artifact_type is not None:
            told["artifactType"] = self.artifact_type
        told["config"] = self.config.descriptor()
        told["layers"] = [layer.descriptor() for layer in self.layers]
        return Blob(OCI_MANIFEST, _json(told))

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """Config and layers."""
        return (self.config, *self.layers)

    @property
    def largest(self) -> Blob:
        """Of the layers."""
        return max(self.layers, key=lambda layer: len(layer.content))

    @property
    def size_bytes(self) -> int:
        """Of all blobs; the manifest is not counted."""
        return sum(len(blob.content) for blob in self.blobs)


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2, sort_keys=True).encode()


def _tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(content), 0o644, 0
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def make_image(seed: int = 1, layers: int = 3, size_bytes_max: int = 4096 * _KIB) -> Image:
    """An image whose last layer has about `size_bytes_max`, the others a drawn part of it."""
    drawn = random.Random(f"image {seed}")
    blobs: list[Blob] = []
    diff_ids: list[str] = []
    files: dict[str, str] = {}
    for number in range(layers):
        last = number == layers - 1
        total_bytes = size_bytes_max if last else drawn.randint(_KIB, size_bytes_max // 2)
        content = {
            f"layer-{number}/data.bin": drawn.randbytes(total_bytes),
            f"layer-{number}/note.txt": f"layer {number} of image {seed}\n".encode() * 50,
        }
        files |= {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
        archive = _tar_of(content)
        diff_ids.append(digest_of(archive))
        blobs.append(Blob(OCI_LAYER, gzip.compress(archive, compresslevel=1, mtime=0)))
    config = {
        "architecture": "amd64",
        "os": "linux",
        "created": _CREATED,
        "config": {"Cmd": ["/none"], "Labels": {"seed": str(seed)}},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [{"created": _CREATED, "created_by": "drawn"} for _ in diff_ids],
    }
    return Image(Blob(OCI_CONFIG, _json(config)), tuple(blobs), files)


def make_safetensors(drawn: random.Random, tensors: dict[str, tuple[int, ...]]) -> bytes:
    """A file of bfloat16 tensors of these shapes: length of the header, header, data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors.items():
        size_bytes = 2
        for extent in shape:
            size_bytes *= extent
        header[name] = {
            "dtype": "BF16",
            "shape": list(shape),
            "data_offsets": [end, end + size_bytes],
        }
        end += size_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    # Data begins at a multiple of eight, so that tensors can be mapped as they are.
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + drawn.randbytes(end)


def make_model(seed: int = 1, shards: int = 2, width: int = 512) -> Image:
    """A ModelPack artifact; each shard has about 4 * width * width bytes."""
    drawn = random.Random(f"model {seed}")
    files: dict[str, tuple[str, bytes]] = {}
    weight_map: dict[str, str] = {}
    total_bytes = 0
    for number in range(1, shards + 1):
        name = f"model-{number:05}-of-{shards:05}.safetensors"
        tensors = {
            f"layers.{number}.attention.weight": (width, width),
            f"layers.{number}.mlp.weight": (width, width),
            f"layers.{number}.norm.weight": (width,),
        }
        content = make_safetensors(drawn, tensors)
        weight_map |= dict.fromkeys(tensors, name)
        total_bytes += len(content)
        files[name] = ("weight", content)
    # The seed is in every file: two models have no blob in common.
    index = {"metadata": {"seed": seed, "total_size": total_bytes}, "weight_map": weight_map}
    files["model.safetensors.index.json"] = ("weight.config", _json(index))
    files["config.json"] = (
        "weight.config",
        _json({"hidden_size": width, "model_type": f"drawn-{seed}", "torch_dtype": "bfloat16"}),
    )
    files["tokenizer/vocabulary.txt"] = (
        "weight.config",
        "".join(f"token{seed}-{number}\n" for number in range(5000)).encode(),
    )
    files["README.md"] = ("doc", f"# Drawn model {seed}\n".encode())
    layers = tuple(_file_layer(name, kind, data) for name, (kind, data) in sorted(files.items()))
    config = {
        "descriptor": {"createdAt": _CREATED, "family": "drawn", "name": f"drawn-{seed}"},
        "modelfs": {"type": "layers", "diffIds": [layer.digest for layer in layers]},
        "config": {
            "architecture": "transformer",
            "format": "safetensors",
            "paramSize": "1M",
            "precision": "bfloat16",
        },
    }
    return Image(
        Blob(MODEL_CONFIG, _json(config)),
        layers,
        {name: hashlib.sha256(data).hexdigest() for name, (_, data) in files.items()},
        MODEL_MANIFEST,
    )


def _file_layer(name: str, kind: str, content: bytes) -> Blob:
    metadata = {
        "name": name.rpartition("/")[2],
        "mode": 0o644,
        "uid": 0,
        "gid": 0,
        "size": len(content),
        "mtime": _CREATED,
        "typeflag": 48,
    }
    return Blob(
        f"application/vnd.cncf.model.{kind}.v1.raw",
        content,
        {
            "org.cncf.model.filepath": name,
            "org.cncf.model.file.metadata+json": json.dumps(metadata, sort_keys=True),
            "org.cncf.model.file.mediatype.untested": "false",
        },
    )


def write_layout(image: Image, directory: Path, tag: str) -> None:
    """An OCI layout with this one image."""
    folder = directory / "blobs" / "sha256"
    folder.mkdir(parents=True)
    manifest = image.manifest
    for blob in (manifest, *image.blobs):
        (folder / blob.digest.removeprefix("sha256:")).write_bytes(blob.content)
    (directory / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))
    named = manifest.descriptor() | {"annotations": {"org.opencontainers.image.ref.name": tag}}
    (directory / "index.json").write_bytes(_json({"schemaVersion": 2, "manifests": [named]}))


def push(image: Image, address: str, repository: str, tag: str) -> None:
    """Uploads each blob in one piece, then the manifest. Raises ShoalError on a refusal."""
    for blob in image.blobs:
        push_blob(address, repository, blob.digest, len(blob.content), (blob.content,))
    manifest = image.manifest
    push_manifest(address, repository, tag, manifest.content, manifest.media_type)
