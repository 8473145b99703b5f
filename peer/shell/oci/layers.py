"""What the layers of an artifact are for the disk: files with a place, or archives to unpack.

Reads ModelPack's annotations (and those from before it was the CNCF's), ORAS's titles, and refuses
paths that lead out of the directory. Pure: writes nothing.
"""

import json
import re
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple

from peer.shell.errors import DownloadError
from peer.shell.oci.manifest import MODEL_PREFIXES, Descriptor, Manifest
from peer.shell.oci.paths import Patterns, safe_path
from shoal.wire.errors import Reason

FILEPATHS: Final = (
    "org.cncf.model.filepath",
    "org.cnai.model.filepath",
    "org.opencontainers.image.title",
)
METADATA: Final = ("org.cncf.model.file.metadata+json", "org.cnai.model.file.metadata+json")
UNPACK: Final = "io.deis.oras.content.unpack"

MTIME_S_MAX: Final = 1 << 34
"""The year 2514: file systems take no times without end."""

_TIME: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9})\d*)?([Zz]|[+-]\d\d:\d\d)"
)
_REGULAR_FILE: Final = (0, ord("0"))
"""The types of a plain file in a tar header."""


class Packing(StrEnum):
    """How a layer holds its files."""

    RAW = "raw"
    TAR = "tar"
    TAR_GZIP = "tar+gzip"
    TAR_ZSTD = "tar+zstd"


class Layer(NamedTuple):
    """One layer to fetch."""

    descriptor: Descriptor
    packing: Packing
    path: str
    """Of the file; of an archive what its annotation says, "" for nothing."""
    mode: int | None = None
    mtime_ns: int | None = None
    one_file: bool = False
    """Whether an archive holds nothing but the file at `path`."""

    @property
    def name(self) -> str:
        """For people."""
        return self.path or self.descriptor.digest


def files_of(manifest: Manifest) -> tuple[Layer, ...] | None:
    """The layers of an artifact that is files, or None for one that is not: a container image.
    Raises DownloadError for paths that lead out of the directory or are named twice."""
    titled = [layer for layer in manifest.layers if _annotation(layer, FILEPATHS)]
    if not manifest.is_model and not (titled and len(titled) == len(manifest.layers)):
        return None
    layers = tuple(_layer(layer) for layer in manifest.layers)
    _check_places(layers)
    return layers


def wanted_of(layers: tuple[Layer, ...], patterns: Patterns) -> tuple[Layer, ...]:
    """The layers that may hold something that was asked for. An archive is left out only if it
    says that it is one file, and that one was not asked for."""
    return tuple(
        layer
        for layer in layers
        if patterns.wants(layer.path) or (layer.packing is not Packing.RAW and not layer.one_file)
    )


def _layer(descriptor: Descriptor) -> Layer:
    packing = _packing(descriptor)
    named = _annotation(descriptor, FILEPATHS)
    where = f"layer {descriptor.digest[:19]}"
    if packing is Packing.RAW and not named:
        raise DownloadError(
            Reason.ORIGIN_INVALID,
            f"{where}: a raw layer without a file path; refused: ask who made the artifact",
        )
    # The annotation of an archive may be `.`, for many files.
    path = safe_path(named, where) if named.strip("./") or packing is Packing.RAW else ""
    metadata = _metadata(descriptor, where)
    mode = metadata.get("mode")
    return Layer(
        descriptor=descriptor,
        packing=packing,
        path=path,
        mode=mode & 0o777 if isinstance(mode, int) and mode >= 0 else None,
        mtime_ns=parse_time(metadata.get("mtime")),
        one_file=bool(path) and metadata.get("typeflag") in _REGULAR_FILE,
    )


def _packing(descriptor: Descriptor) -> Packing:
    media_type = descriptor.media_type
    if media_type.startswith(MODEL_PREFIXES):
        ending = media_type.rpartition(".")[2]
        # From before there was a name for it, a plain archive.
        if ending in ("v1", ""):
            return Packing.TAR
        try:
            return Packing(ending)
        except ValueError:
            raise DownloadError(
                Reason.ORIGIN_INVALID,
                f"layer of the type {media_type[:120]!r}: shoal knows those that end in "
                f"{', '.join(Packing)}",
            ) from None
    if descriptor.annotations.get(UNPACK) == "true":
        if media_type.endswith("zstd"):
            return Packing.TAR_ZSTD
        return Packing.TAR if media_type.endswith(".tar") else Packing.TAR_GZIP
    return Packing.RAW


def _check_places(layers: tuple[Layer, ...]) -> None:
    raw = [layer.path for layer in layers if layer.packing is Packing.RAW]
    taken = set(raw)
    problem = ""
    if len(taken) < len(raw):
        problem = next(path for path in raw if raw.count(path) > 1) + " is in two layers"
    for path in raw:
        above = path.rpartition("/")[0]
        while above and not problem:
            if above in taken:
                problem = f"{above} is a file and a directory"
            above = above.rpartition("/")[0]
    if problem:
        raise DownloadError(Reason.ORIGIN_INVALID, f"{problem}; ask who made the artifact")


def _annotation(descriptor: Descriptor, names: tuple[str, ...]) -> str:
    return next((text for name in names if (text := descriptor.annotations.get(name))), "")


def _metadata(descriptor: Descriptor, where: str) -> dict[str, Any]:
    text = _annotation(descriptor, METADATA)
    if not text:
        return {}
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise DownloadError(
            Reason.ORIGIN_INVALID, f"{where}: its file metadata is no JSON object; ask who made it"
        )
    return fields


def parse_time(text: object) -> int | None:
    """A time of RFC 3339 in nanoseconds since 1970; None for anything else, and for one that file
    systems do not take."""
    if not isinstance(text, str) or (found := _TIME.fullmatch(text)) is None:
        return None
    day, time, fraction, zone = found.groups()
    try:
        moment = datetime.fromisoformat(f"{day}T{time}{zone.upper().replace('Z', '+00:00')}")
        seconds = int(moment.timestamp())
    except (ValueError, OverflowError):
        return None
    if not 0 <= seconds <= MTIME_S_MAX:
        return None
    return seconds * 1_000_000_000 + int((fraction or "").ljust(9, "0"))
