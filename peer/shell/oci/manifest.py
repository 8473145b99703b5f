"""OCI and Docker manifests and indexes: read, checked, and told apart.

Turns fetched bytes into `Manifest` or `Index`, refuses what is too big, malformed or not what its
digest says, and chooses the manifest of a platform. Pure: fetches nothing, and what a layer means
for the disk is decided in `peer.shell.oci.layers`.
"""

import hashlib
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from peer.shell.errors import DownloadError
from peer.shell.oci.platforms import own_platform
from peer.shell.oci.reference import digest_of
from shoal.wire.errors import Reason, UsageError
from shoal.wire.limits import COLLECTION_TASKS_MAX

MANIFEST_BYTES_MAX: Final = 4 * 1024 * 1024
"""What registries take, by the distribution specification."""

CONFIG_BYTES_MAX: Final = 8 * 1024 * 1024
INDEX_ENTRIES_MAX: Final = 1000
BLOB_BYTES_MAX: Final = 1 << 46
"""64 TiB: more than any registry stores as one blob."""

ANNOTATIONS_MAX: Final = 256
ANNOTATION_CHARACTERS_MAX: Final = 256 * 1024

OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
ACCEPTED: Final = (OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST)

MODEL_PREFIXES: Final = ("application/vnd.cncf.model.", "application/vnd.cnai.model.")
"""ModelPack's media types, and those from before it was the CNCF's."""


_NONE: Final[Mapping[str, str]] = MappingProxyType({})


class Descriptor(NamedTuple):
    """What a manifest says of a blob or of another manifest."""

    media_type: str
    digest: str
    size_bytes: int
    annotations: Mapping[str, str] = _NONE
    artifact_type: str = ""
    platform: str = ""
    """`os/architecture[/variant]`, of an index's entry."""


class Manifest(NamedTuple):
    """One artifact: its configuration and its layers, in order."""

    media_type: str
    digest: str
    body: bytes
    config: Descriptor
    layers: tuple[Descriptor, ...]
    artifact_type: str = ""
    annotations: Mapping[str, str] = _NONE

    def __repr__(self) -> str:
        # The rest may be megabytes.
        return f"Manifest(digest={self.digest!r}, layers={len(self.layers)})"

    @property
    def is_model(self) -> bool:
        """Whether it is a ModelPack artifact."""
        return (self.artifact_type or self.config.media_type).startswith(
            MODEL_PREFIXES
        ) or self.config.media_type.startswith(MODEL_PREFIXES)

    @property
    def size_bytes(self) -> int:
        """Of all layers."""
        return sum(layer.size_bytes for layer in self.layers)


class Index(NamedTuple):
    """Several manifests under one name, one for each platform."""

    media_type: str
    digest: str
    manifests: tuple[Descriptor, ...]


def parse_manifest(body: bytes, media_type: str, digest: str | None) -> Manifest | Index:
    """Reads what a registry answered. `digest` is what it was asked for by, or None for a tag.
    Raises DownloadError for other bytes than those asked for, and for what makes no sense."""
    if len(body) > MANIFEST_BYTES_MAX:
        raise _invalid(f"it has more than {MANIFEST_BYTES_MAX} bytes")
    if digest is not None:
        check_digest(body, digest, "the manifest")
    else:
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    fields = json_object(body, "the manifest")
    stated = fields.get("mediaType") or media_type.partition(";")[0].strip().lower()
    if not isinstance(stated, str):
        raise _invalid("its mediaType is no text")
    if stated in (OCI_INDEX, DOCKER_LIST) or ("manifests" in fields and "layers" not in fields):
        return Index(stated, digest, _descriptors(fields, "manifests", INDEX_ENTRIES_MAX))
    if fields.get("schemaVersion") == 1:
        raise _invalid("it is of the old schema 1; push the image again with a current tool")
    if stated not in (OCI_MANIFEST, DOCKER_MANIFEST) and "layers" not in fields:
        raise _invalid(f"its type {stated[:100]!r} is none that shoal knows")
    return Manifest(
        media_type=stated or OCI_MANIFEST,
        digest=digest,
        body=body,
        config=_descriptor(fields.get("config"), "config"),
        layers=_descriptors(fields, "layers", COLLECTION_TASKS_MAX - 1),
        artifact_type=_text(fields, "artifactType", "manifest"),
        annotations=_annotations(fields, "manifest"),
    )


def check_digest(body: bytes, digest: str, what: str) -> None:
    """Raises DownloadError unless the bytes have the digest."""
    algorithm, _, wanted = digest.partition(":")
    if hashlib.new(algorithm, body).hexdigest() != wanted:
        raise DownloadError(
            Reason.DIGEST_MISMATCH,
            f"{what}: the registry sent other bytes than {digest}; try again, and tell whoever "
            "runs the registry if it stays",
        )


def json_object(body: bytes, what: str) -> dict[str, Any]:
    """The object in bytes from a registry. Raises DownloadError."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise DownloadError(Reason.ORIGIN_INVALID, f"{what} from the registry is no JSON object")
    return fields


def choose(index: Index, platform: str | None) -> Descriptor:
    """The manifest for a platform (None: this machine's). Without a platform asked for, one that is
    alone in its index is taken whatever it is for. Raises DownloadError that says what there is."""
    candidates = [
        entry
        for entry in index.manifests
        if not entry.platform.startswith("unknown/")
        and entry.media_type not in (OCI_INDEX, DOCKER_LIST)
    ]
    if platform is None and len(candidates) == 1:
        return candidates[0]
    wanted = platform or own_platform()
    exact = [entry for entry in candidates if entry.platform == wanted]
    # arm64 and arm64/v8 are the same thing, and a user who names no variant takes the first.
    near = [
        entry
        for entry in candidates
        if entry.platform.startswith(f"{wanted}/")
        or (entry.platform == "linux/arm64" and wanted == "linux/arm64/v8")
    ]
    unnamed = [entry for entry in candidates if not entry.platform] if platform is None else []
    if found := exact or near or unnamed:
        return found[0]
    known = ", ".join(sorted({entry.platform or "(none named)" for entry in candidates}))
    raise DownloadError(
        Reason.ORIGIN_NOT_FOUND,
        f"nothing for the platform {wanted}; choose with --platform from: {known or 'nothing'}",
    )


def _descriptors(fields: Mapping[str, Any], name: str, most: int) -> tuple[Descriptor, ...]:
    entries = fields.get(name) or []
    if not isinstance(entries, list):
        raise _invalid(f"its {name} are no list")
    if len(entries) > most:
        raise _invalid(f"it has {len(entries)} {name}, {most} is the limit")
    return tuple(_descriptor(entry, f"{name}[{at}]") for at, entry in enumerate(entries))


def _descriptor(fields: object, where: str) -> Descriptor:
    if not isinstance(fields, dict):
        raise _invalid(f"its {where} is no descriptor")
    size = fields.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= BLOB_BYTES_MAX:
        raise _invalid(f"the size of its {where} is no sensible number")
    try:
        digest = digest_of(_text(fields, "digest", where))
    except UsageError as error:
        raise _invalid(f"its {where}: {error}") from None
    return Descriptor(
        media_type=_text(fields, "mediaType", where),
        digest=digest,
        size_bytes=size,
        annotations=_annotations(fields, where),
        artifact_type=_text(fields, "artifactType", where),
        platform=_platform(fields.get("platform"), where),
    )


def _platform(fields: object, where: str) -> str:
    if fields is None:
        return ""
    if not isinstance(fields, dict):
        raise _invalid(f"the platform of its {where} is no object")
    parts = [_text(fields, name, where) for name in ("os", "architecture", "variant")]
    return "/".join(part.lower() for part in parts if part)


def _text(fields: Mapping[str, Any], name: str, where: str) -> str:
    text = fields.get(name)
    if text is None:
        return ""
    if not isinstance(text, str) or len(text) > 1024:
        raise _invalid(f"the {name} of its {where} is no short text")
    return text


def _annotations(fields: Mapping[str, Any], where: str) -> dict[str, str]:
    found = fields.get("annotations")
    if found is None:
        return {}
    if (
        not isinstance(found, dict)
        or len(found) > ANNOTATIONS_MAX
        or not all(
            isinstance(text, str) and len(text) <= ANNOTATION_CHARACTERS_MAX
            for text in found.values()
        )
    ):
        raise _invalid(f"the annotations of its {where} are no texts")
    return dict(found)


def _invalid(detail: str) -> DownloadError:
    return DownloadError(Reason.ORIGIN_INVALID, f"the manifest can't be used: {detail}")
