"""What `shoal pull` fetches and where it goes: the layers of an artifact, the disk as it is, and
what to do once they have arrived.

Decides what is there already, and what must not be replaced. Fetches nothing itself.
"""

import hashlib
import json
import stat
from pathlib import Path
from typing import Any, Final

from peer.shell.oci.layers import Layer, Packing, files_of, wanted_of
from peer.shell.oci.manifest import OCI_INDEX, Descriptor, Manifest
from peer.shell.oci.paths import Patterns
from peer.shell.oci.pull_state import PullState, key_of
from peer.shell.oci.reference import Reference
from peer.shell.oci.tree import Tree
from shoal.wire.errors import UsageError

READ_BYTES: Final = 1024 * 1024
FILE_MODE: Final = 0o644


class PullPlan:
    """The layers of one pull, in order. `missing` are those that have to be fetched."""

    def __init__(
        self,
        manifest: Manifest,
        tree: Tree,
        patterns: Patterns,
        *,
        overwrite: bool,
        own_files: bool,
    ) -> None:
        """Looks at the disk. Raises DownloadError for a manifest that is refused, UsageError for
        files in the way."""
        self._manifest = manifest
        self._tree = tree
        self.work = tree.work
        self._patterns = patterns
        self._overwrite = overwrite
        self._own_files = own_files
        self.state = PullState(tree)
        files = files_of(manifest)
        self.is_image = files is None
        if files is None and patterns:
            raise UsageError("--include and --exclude choose files, and this is a container image")
        layers = _blobs_of(manifest) if files is None else wanted_of(files, patterns)
        self.layers = tuple({_key(layer): layer for layer in layers}.values())
        self.state.keep({_key(layer) for layer in self.layers})
        self.how: dict[str, str] = {}
        """What came of a layer, by key."""
        self.missing = [layer for layer in self.layers if not self._is_there(layer)]

    def output_of(self, layer: Layer) -> Path:
        """Where a layer is delivered to: its place, or for an archive the work directory."""
        if layer.packing is Packing.RAW:
            return self._tree.root / layer.path
        name = hashlib.sha256(_key(layer).encode()).hexdigest()
        return self._tree.work / f"{name}.layer"

    def prepare(self) -> None:
        """Makes the directories of what is missing. Raises DownloadError, OSError."""
        for layer in self.missing:
            if layer.packing is Packing.RAW:
                self._tree.make_parents(layer.path)
        self.state.save()

    def identity(self, layer: Layer) -> tuple[int, ...] | None:
        """What changes when a raw layer is put in place."""
        status = self._tree.status(layer.path) if layer.packing is Packing.RAW else None
        return None if status is None else (status.st_dev, status.st_ino, status.st_ctime_ns)

    def arrived(self, layer: Layer, how: str | None) -> None:
        """A layer was delivered; of an archive that says nothing of its files."""
        self.how[_key(layer)] = how or "copy"
        if layer.packing is Packing.RAW:
            self.state.record(_key(layer), layer.path)
            self.state.finish(_key(layer))

    def finish(self, reference: Reference) -> None:
        """Gives files their modes and times, unpacks, and writes an image's layout. Everything has
        arrived; the state is to be saved then. Raises DownloadError, UsageError, OSError."""
        raw = [layer for layer in self.layers if layer.packing is Packing.RAW]
        for layer in raw:
            self._tree.dress(layer.path, layer.mode or FILE_MODE, layer.mtime_ns)
            self.state.record(_key(layer), layer.path)
            self.state.finish(_key(layer))
        if any(self._is_packed(layer) for layer in self.layers):
            # That takes long: who is killed meanwhile does not look at the other files again.
            self.state.save()
        placed = {layer.path for layer in raw}
        for layer in self.layers:
            if self._is_packed(layer):
                self._unpack(layer, placed)
            elif layer.packing is not Packing.RAW:
                placed.update(self.state.layers[_key(layer)].files)
        if self.is_image:
            self._write_layout(reference)

    def as_json(self) -> list[dict[str, Any]]:
        """Every layer with its files."""
        return [
            {
                "path": layer.path,
                "digest": layer.descriptor.digest,
                "size_bytes": layer.descriptor.size_bytes,
                "packing": str(layer.packing),
                "how": self.how.get(_key(layer)),
                "files": sorted(self.files_of(layer)),
            }
            for layer in self.layers
        ]

    def files_of(self, layer: Layer) -> list[str]:
        """The files that a layer gave."""
        known = self.state.layers.get(_key(layer))
        return list(known.files) if known is not None else []

    def _is_there(self, layer: Layer) -> bool:
        key = _key(layer)
        is_raw = layer.packing is Packing.RAW
        linked = is_raw and self._own_files and self._is_linked(layer)
        if not linked and self.state.holds(key, "" if is_raw else repr(self._patterns)):
            self.how[key] = "there"
            return True
        if not is_raw:
            # An earlier pull may have ended while it unpacked.
            return _is_content(self.output_of(layer), layer.descriptor)
        status = self._tree.status(layer.path)
        if status is None:
            return False
        target = self._tree.root / layer.path
        if not linked and stat.S_ISREG(status.st_mode) and _is_content(target, layer.descriptor):
            self.how[key] = "there"
            return True
        if stat.S_ISDIR(status.st_mode):
            raise UsageError(f"{target} is a directory where a file belongs: remove it")
        if not (self._overwrite or self.state.is_own(layer.path)):
            raise UsageError(f"{target} exists: use --overwrite to replace it")
        return False

    def _is_packed(self, layer: Layer) -> bool:
        """Whether a layer is an archive that is still to be unpacked."""
        return layer.packing is not Packing.RAW and self.how.get(_key(layer)) != "there"

    def _is_linked(self, layer: Layer) -> bool:
        """Whether a file has other names: it is of a daemon's store then, for all that we know."""
        status = self._tree.status(layer.path)
        return status is not None and stat.S_ISREG(status.st_mode) and status.st_nlink > 1

    def _unpack(self, layer: Layer, placed: set[str]) -> None:
        # Readers of archives: most models come as plain files.
        from peer.shell.oci.unpack import Unpacking, unpack

        archive = self.output_of(layer)
        work = Unpacking(
            tree=self._tree,
            state=self.state,
            patterns=self._patterns,
            overwrite=self._overwrite,
            placed=placed,
        )
        try:
            unpack(archive, layer, work)
        finally:
            self.state.save()
        archive.unlink()
        self.how[_key(layer)] = "unpacked"

    def _write_layout(self, reference: Reference) -> None:
        manifest = self._manifest
        entry: dict[str, Any] = {
            "mediaType": manifest.media_type,
            "digest": manifest.digest,
            "size": len(manifest.body),
        }
        if reference.tag:
            entry["annotations"] = {"org.opencontainers.image.ref.name": reference.tag}
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}
        files = {
            _blob_path(manifest.digest): manifest.body,
            "index.json": json.dumps(index).encode(),
            "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
        }
        for path, body in files.items():
            with self._tree.writing(path, FILE_MODE, None) as sink:
                sink.write(body)


def _key(layer: Layer) -> str:
    return key_of(layer.descriptor.digest, layer.path)


def _blob_path(digest: str) -> str:
    algorithm, _, digits = digest.partition(":")
    return f"blobs/{algorithm}/{digits}"


def _blobs_of(manifest: Manifest) -> tuple[Layer, ...]:
    """Every blob of an image once, as a file of the layout."""
    blobs: dict[str, Descriptor] = {}
    for descriptor in (manifest.config, *manifest.layers):
        blobs.setdefault(descriptor.digest, descriptor)
    return tuple(
        Layer(descriptor, Packing.RAW, _blob_path(digest)) for digest, descriptor in blobs.items()
    )


def _is_content(path: Path, descriptor: Descriptor) -> bool:
    """Whether a file has the bytes of a blob."""
    try:
        if path.is_symlink() or path.stat().st_size != descriptor.size_bytes:
            return False
        algorithm, _, wanted = descriptor.digest.partition(":")
        hasher = hashlib.new(algorithm)
        with path.open("rb") as opened:
            while chunk := opened.read(READ_BYTES):
                hasher.update(chunk)
    except FileNotFoundError:
        return False
    return hasher.hexdigest() == wanted
