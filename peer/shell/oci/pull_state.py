"""What a pull remembers of its directory, in `.shoal-pull.json`: which layer gave which files, and
how large and old they were then.

By it the next pull knows what it has no need to fetch, and what it may replace without being told.
A state that can't be read is an empty one: it costs a look at the files, never a file.
"""

import contextlib
import json
import os
import stat
from pathlib import Path
from typing import Any, Final

from peer.shell.oci.paths import STATE_NAME
from peer.shell.oci.tree import Tree

STATE_FILE: Final = f"{STATE_NAME}.json"
STATE_BYTES_MAX: Final = 512 * 1024 * 1024
VERSION: Final = 1


class LayerState:
    """The files that one layer gave."""

    def __init__(
        self,
        *,
        whole: bool = False,
        choice: str = "",
        files: dict[str, tuple[int, int]] | None = None,
    ) -> None:
        self.whole = whole
        """Whether that was everything the layer holds that was asked for."""
        self.choice = choice
        """Which of its files were asked for."""
        self.files = files if files is not None else {}
        """Size in bytes and time of change in nanoseconds, by path."""


class PullState:
    """The state of one directory."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self.layers: dict[str, LayerState] = _read(tree.root / STATE_FILE)
        """By place and digest (`key_of`): one blob may be wanted at several places."""

    def record(self, key: str, path: str) -> None:
        """A file of a layer is at its place."""
        status = self._tree.status(path)
        if status is not None:
            self.layers.setdefault(key, LayerState()).files[path] = _mark(status)

    def finish(self, key: str, choice: str = "") -> None:
        """Every file of a layer is at its place."""
        layer = self.layers.setdefault(key, LayerState())
        layer.whole, layer.choice = True, choice

    def holds(self, key: str, choice: str = "") -> bool:
        """Whether a layer's files are all there, as it left them."""
        layer = self.layers.get(key)
        if layer is None or not layer.whole or layer.choice != choice:
            return False
        for path, mark in layer.files.items():
            status = self._tree.status(path)
            if status is None or _mark(status) != mark:
                return False
        return True

    def is_own(self, path: str) -> bool:
        """Whether a pull put a file there, which a pull may replace."""
        return any(path in layer.files for layer in self.layers.values())

    def keep(self, keys: set[str]) -> None:
        """Forgets layers that belong to nothing any more, and remembers that their files were a
        pull's own."""
        gone: dict[str, tuple[int, int]] = {}
        for key in [key for key in self.layers if key not in keys]:
            gone.update(self.layers.pop(key).files)
        if gone:
            self.layers["earlier"] = LayerState(files=gone)

    def save(self) -> None:
        """Writes it, whole or not at all. Raises OSError."""
        body = {
            "version": VERSION,
            "layers": {
                key: {"whole": layer.whole, "choice": layer.choice, "files": layer.files}
                for key, layer in self.layers.items()
            },
        }
        part = self._tree.work / "state.part"
        part.write_text(json.dumps(body))
        os.replace(part, self._tree.root / STATE_FILE)


def key_of(digest: str, path: str) -> str:
    """The key of a layer at a place."""
    return f"{digest} {path}"


def _mark(status: os.stat_result) -> tuple[int, int]:
    # A link or a directory in a file's place never has the mark of a file.
    if not stat.S_ISREG(status.st_mode):
        return -status.st_mode, 0
    return status.st_size, status.st_mtime_ns


def _read(path: Path) -> dict[str, LayerState]:
    layers: dict[str, LayerState] = {}
    try:
        if path.is_symlink() or path.stat().st_size > STATE_BYTES_MAX:
            return {}
        fields: Any = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(fields, dict) or fields.get("version") != VERSION:
        return {}
    with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError):
        for key, layer in fields["layers"].items():
            files = {
                str(name): (int(mark[0]), int(mark[1])) for name, mark in layer["files"].items()
            }
            layers[key] = LayerState(
                whole=bool(layer["whole"]), choice=str(layer["choice"]), files=files
            )
    return layers
