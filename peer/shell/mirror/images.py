"""Which blobs belong together: what manifests that passed through say.

An image or a model is one collection for the swarm, so that all its layers are scheduled together.
Keeps the last manifests by their digests too. Never fetches anything.
"""

import hashlib
import json
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Final

from shoal.wire.digest import parse_digest
from shoal.wire.errors import UsageError
from shoal.wire.limits import COLLECTION_TASKS_MAX, MIB

IMAGES_MAX: Final = 512
MANIFEST_BYTES_MAX: Final = 4 * MIB
"""What registries take at most, by the distribution specification."""
KEPT_BYTES_MAX: Final = 32 * MIB
"""Of manifests that are kept for clients, all together."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest as its registry sent it."""

    digest: str
    media_type: str
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Image:
    """The blobs of one manifest, config first."""

    digest: str
    blobs: tuple[str, ...]


class ImageBook:
    """Manifests by repository (`upstream name/repository`), the least recently used forgotten."""

    def __init__(self) -> None:
        self._images: OrderedDict[tuple[str, str], Image] = OrderedDict()
        self._by_blob: dict[tuple[str, str], Image] = {}
        """The image that was seen last with each blob: many clients ask for one blob at once."""
        self._manifests: OrderedDict[tuple[str, str], Manifest] = OrderedDict()
        self._kept_bytes = 0

    def note(self, repository: str, manifest: Manifest) -> Image | None:
        """A manifest passed through. Its image, if it is one with blobs."""
        self._keep(repository, manifest)
        blobs = blobs_of(manifest.body)
        if not blobs:
            return None
        image = Image(manifest.digest, blobs)
        self._images[repository, manifest.digest] = image
        self._images.move_to_end((repository, manifest.digest))
        self._by_blob.update(dict.fromkeys(((repository, blob) for blob in blobs), image))
        if len(self._images) > IMAGES_MAX:
            self._drop(*next(iter(self._images)))
        return image

    def forget(self, repository: str, digest: str) -> None:
        """A manifest may be at its registry no longer."""
        kept = self._manifests.pop((repository, digest), None)
        if kept is not None:
            self._kept_bytes -= len(kept.body)
        if (repository, digest) in self._images:
            self._drop(repository, digest)

    def _drop(self, repository: str, digest: str) -> None:
        dropped = self._images.pop((repository, digest))
        for blob in dropped.blobs:
            if self._by_blob.get((repository, blob)) is dropped:
                del self._by_blob[repository, blob]

    def image_of(self, repository: str, blob: str) -> Image | None:
        """The image that was seen last with this blob."""
        return self._by_blob.get((repository, blob))

    def manifest(self, repository: str, digest: str) -> Manifest | None:
        """A manifest that passed through lately."""
        return self._manifests.get((repository, digest))

    def _keep(self, repository: str, manifest: Manifest) -> None:
        key = (repository, manifest.digest)
        if key in self._manifests:
            self._manifests.move_to_end(key)
            return
        self._manifests[key] = manifest
        self._kept_bytes += len(manifest.body)
        while self._kept_bytes > KEPT_BYTES_MAX:
            _, dropped = self._manifests.popitem(last=False)
            self._kept_bytes -= len(dropped.body)


def digest_of(body: bytes, algorithm: str = "sha256") -> str:
    """The digest of a manifest."""
    return f"{algorithm}:{hashlib.new(algorithm, body).hexdigest()}"


def blobs_of(body: bytes) -> tuple[str, ...]:
    """The blobs that a manifest names, each once; none for an index or what is no manifest."""
    try:
        manifest = json.loads(body)
    except ValueError:
        return ()
    if not isinstance(manifest, dict):
        return ()
    layers = manifest.get("layers")
    descriptors = [manifest.get("config"), *(layers if isinstance(layers, list) else ())]
    digests = dict.fromkeys(
        digest for descriptor in descriptors if (digest := _digest(descriptor)) is not None
    )
    return tuple(digests) if len(digests) <= COLLECTION_TASKS_MAX else ()


def _digest(descriptor: Any) -> str | None:
    digest = descriptor.get("digest") if isinstance(descriptor, dict) else None
    if not isinstance(digest, str) or "urls" in descriptor:
        return None
    try:
        return str(parse_digest(digest))
    except UsageError:
        return None
