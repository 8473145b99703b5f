"""Unpacks verified archives of an artifact into a directory, member by member as they are read.

Refuses what could reach out of the directory or is no file: absolute paths, `..`, links that lead
out, devices, a path through a link, the same file twice. Never replaces a file that no pull made,
unless told to. The bytes must have been checked before.
"""

import contextlib
import gzip
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, cast

import zstandard

from peer.shell.errors import DownloadError
from peer.shell.oci.layers import MTIME_S_MAX, Layer, Packing
from peer.shell.oci.paths import Patterns, safe_link, safe_path
from peer.shell.oci.pull_state import PullState, key_of
from peer.shell.oci.tree import Tree
from shoal.wire.errors import Reason, UsageError

COPY_BYTES: Final = 1024 * 1024
MEMBERS_MAX: Final = 1_000_000
HEADER_BYTES_MAX: Final = 1024 * 1024
"""Of the long names and attributes before a member, which are read as a whole."""

UNPACKED_FREE_BYTES: Final = 1024 * 1024 * 1024
UNPACKED_FACTOR_MAX: Final = 200
"""An archive may unpack to so many times its size, and 1 GiB in any case: against archives made to
fill disks."""

ZSTD_WINDOW_BYTES_MAX: Final = 128 * 1024 * 1024
"""What zstd itself unpacks without being told to."""

_BROKEN: Final = (
    tarfile.TarError, zstandard.ZstdError, zlib.error, EOFError, gzip.BadGzipFile,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacking:
    """Where to, what of it, and what may be replaced."""

    tree: Tree
    state: PullState
    patterns: Patterns
    overwrite: bool
    placed: set[str]
    """Every file that this pull has put in place so far, of all layers."""
    on_bytes: Callable[[int], None] = lambda _count: None


class _BoundedInfo(tarfile.TarInfo):
    """A member whose long names and attributes are bounded; they are read into memory."""

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        lengthy = (
            tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
            tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE,
        )  # fmt: skip
        if self.type in lengthy and self.size > HEADER_BYTES_MAX:
            raise tarfile.ReadError("a name or attribute without end")
        return super()._proc_member(archive)  # type: ignore[misc]


def unpack(archive: Path, layer: Layer, work: Unpacking) -> None:
    """Unpacks the archive of a layer. Raises DownloadError for an archive that is refused or
    broken, UsageError for a file in the way, OSError for the disk. What was put in place before
    stays, and is known to the state."""
    key = key_of(layer.descriptor.digest, layer.path)
    limit = max(UNPACKED_FREE_BYTES, UNPACKED_FACTOR_MAX * layer.descriptor.size_bytes)
    try:
        with (
            _opened(archive, layer.packing) as stream,
            tarfile.open(
                fileobj=stream, mode="r|", tarinfo=_BoundedInfo, bufsize=COPY_BYTES
            ) as members,
        ):
            member_count = unpacked_bytes = 0
            own: set[str] = set()
            while (member := members.next()) is not None:
                # Otherwise it keeps all of them.
                members.members.clear()  # type: ignore[attr-defined]
                member_count += 1
                unpacked_bytes += member.size
                if member_count > MEMBERS_MAX or unpacked_bytes > limit:
                    raise _refused(layer, "it unpacks to far more than it should")
                _take(members, member, layer, work, own, key)
    except _BROKEN as error:
        raise DownloadError(
            Reason.ORIGIN_INVALID,
            f"layer {layer.name} is no proper {layer.packing} archive ({type(error).__name__}); "
            "ask who made the artifact",
        ) from None
    work.state.finish(key, repr(work.patterns))


def _take(
    members: tarfile.TarFile,
    member: tarfile.TarInfo,
    layer: Layer,
    work: Unpacking,
    own: set[str],
    key: str,
) -> None:
    where = f"layer {layer.name}"
    if member.isdir() and not member.name.strip("./"):
        return
    path = safe_path(member.name, where)
    if member.isdir():
        if not work.patterns:
            work.tree.make_directory(path, member.mode & 0o777)
        return
    if not (work.patterns.wants(path) or (work.patterns and _whole_layer(layer, work, path))):
        return
    if path in work.placed:
        raise _refused(layer, f"{path!r} is in the artifact twice")
    if not (member.isreg() or member.issym() or member.islnk()) or member.issparse():
        raise _refused(layer, f"{path!r} is neither file nor directory nor link")
    _check_free(path, work)
    if member.issym():
        work.tree.symlink(safe_link(path, member.linkname, where), path)
    elif member.islnk():
        source = safe_path(member.linkname, where)
        if source not in own:
            raise _refused(layer, f"the hard link {path!r} is not to a file before it")
        work.tree.link(source, path)
    else:
        _write(members, member, path, work)
        own.add(path)
    work.placed.add(path)
    work.state.record(key, path)


def _whole_layer(layer: Layer, work: Unpacking, path: str) -> bool:
    """Whether the user asked for the directory that the layer says it is."""
    included = bool(layer.path) and path.startswith(f"{layer.path}/")
    excluded = any(pattern.fullmatch(path) for pattern in work.patterns.exclude)
    return (
        included
        and bool(work.patterns.include)
        and not excluded
        and (work.patterns.wants(layer.path))
    )


def _check_free(path: str, work: Unpacking) -> None:
    if work.overwrite or work.state.is_own(path):
        return
    if work.tree.status(path) is not None:
        raise UsageError(f"{work.tree.root / path} exists: use --overwrite to replace it")


def _write(members: tarfile.TarFile, member: tarfile.TarInfo, path: str, work: Unpacking) -> None:
    source = members.extractfile(member)
    assert source is not None, "a regular file has content"
    seconds = min(max(float(member.mtime), 0.0), float(MTIME_S_MAX))
    # The owner can read what they pulled, whatever the archive says.
    with work.tree.writing(path, member.mode & 0o777 | 0o400, int(seconds * 1e9)) as sink:
        left = member.size
        while left:
            chunk = source.read(min(left, COPY_BYTES))
            if not chunk:
                raise EOFError
            sink.write(chunk)
            left -= len(chunk)
            work.on_bytes(len(chunk))


@contextlib.contextmanager
def _opened(archive: Path, packing: Packing) -> Iterator[IO[bytes]]:
    """The plain tar in an archive."""
    with archive.open("rb") as packed:
        os.posix_fadvise(packed.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        if packing is Packing.TAR_GZIP:
            with gzip.GzipFile(fileobj=packed) as plain:
                yield cast("IO[bytes]", plain)
        elif packing is Packing.TAR_ZSTD:
            engine = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES_MAX)
            with engine.stream_reader(packed, read_across_frames=True) as reader:
                yield cast("IO[bytes]", reader)
        else:
            yield packed


def _refused(layer: Layer, problem: str) -> DownloadError:
    return DownloadError(
        Reason.ORIGIN_INVALID, f"layer {layer.name}: {problem}; refused: ask who made the artifact"
    )
