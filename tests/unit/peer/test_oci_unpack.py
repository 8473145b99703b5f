"""Archives of artifacts in a directory: what is placed, how, and everything that is refused."""

import gzip
import io
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from peer.shell.errors import DownloadError
from peer.shell.oci import unpack as module
from peer.shell.oci.layers import Layer, Packing
from peer.shell.oci.manifest import Descriptor
from peer.shell.oci.paths import patterns
from peer.shell.oci.pull_state import PullState
from peer.shell.oci.tree import Tree
from peer.shell.oci.unpack import Unpacking, unpack
from shoal.wire.errors import UsageError

MTIME_S = 1_700_000_000


class Archive:
    """A tar, member by member."""

    def __init__(self) -> None:
        self._body = io.BytesIO()
        self._tar = tarfile.TarFile(fileobj=self._body, mode="w", format=tarfile.PAX_FORMAT)

    def add(
        self, name: str, body: bytes = b"", *, mode: int = 0o644, **fields: object
    ) -> "Archive":
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = len(body), mode, MTIME_S
        for field, value in fields.items():
            setattr(info, field, value)
        self._tar.addfile(info, io.BytesIO(body))
        return self

    def bytes(self) -> bytes:
        self._tar.close()
        return self._body.getvalue()


class Place:
    """A directory to unpack into."""

    def __init__(self, root: Path, tree: Tree) -> None:
        self.root = root
        self.tree = tree
        self.state = PullState(tree)

    def unpack(
        self,
        body: bytes,
        packing: Packing = Packing.TAR,
        *,
        include: tuple[str, ...] = (),
        exclude: tuple[str, ...] = (),
        overwrite: bool = False,
        path: str = "",
    ) -> None:
        archive = self.tree.work / "archive"
        archive.write_bytes(body)
        layer = Layer(Descriptor("x", f"sha256:{'0' * 64}", len(body)), packing, path)
        work = Unpacking(
            tree=self.tree,
            state=self.state,
            patterns=patterns(include, exclude),
            overwrite=overwrite,
            placed=set(),
        )
        unpack(archive, layer, work)

    def names(self) -> set[str]:
        return {
            str(path.relative_to(self.root))
            for path in self.root.rglob("*")
            if ".shoal-pull" not in path.parts
        }


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    root = tmp_path / "out"
    root.mkdir()
    with Tree(root) as tree:
        yield Place(root, tree)


@pytest.mark.parametrize(
    ("packing", "pack"),
    [
        (Packing.TAR, bytes),
        (Packing.TAR_GZIP, gzip.compress),
        (Packing.TAR_ZSTD, zstandard.compress),
        # Several streams in one file, as parallel packers make them.
        (Packing.TAR_GZIP, lambda body: gzip.compress(body[:700]) + gzip.compress(body[700:])),
        (
            Packing.TAR_ZSTD,
            lambda body: zstandard.compress(body[:700]) + zstandard.compress(body[700:]),
        ),
    ],
)
def test_files_with_their_modes_and_times(place: Place, packing: Packing, pack: object) -> None:
    archive = (
        Archive()
        .add("bin/run", b"#!/bin/sh\n", mode=0o755)
        .add("data", b"x" * 5000, mode=0o640)
        .add("empty")
    )
    assert callable(pack)
    place.unpack(pack(archive.bytes()), packing)
    assert place.names() == {"bin", "bin/run", "data", "empty"}
    run, data = (place.root / "bin/run").stat(), (place.root / "data").stat()
    assert stat.S_IMODE(run.st_mode) == 0o755
    assert stat.S_IMODE(data.st_mode) == 0o640
    assert run.st_mtime == data.st_mtime == MTIME_S
    assert (place.root / "data").read_bytes() == b"x" * 5000


@pytest.mark.parametrize("special", [stat.S_ISUID, stat.S_ISGID, stat.S_ISVTX])
def test_bits_that_give_rights_are_dropped(place: Place, special: int) -> None:
    archive = Archive().add("su", b"x", mode=0o755 | special)
    archive.add("dir", type=tarfile.DIRTYPE, mode=0o777 | special)
    place.unpack(archive.bytes())
    assert stat.S_IMODE((place.root / "su").stat().st_mode) == 0o755
    assert not (place.root / "dir").stat().st_mode & special


def test_nobody_gets_a_file_that_they_cannot_read(place: Place) -> None:
    place.unpack(Archive().add("secret", b"x", mode=0).bytes())
    assert stat.S_IMODE((place.root / "secret").stat().st_mode) == 0o400
    assert (place.root / "secret").stat().st_uid == os.geteuid()


def test_owners_of_an_archive_do_not_count(place: Place) -> None:
    place.unpack(Archive().add("file", b"x", uid=1234, gid=1234).bytes())
    status = (place.root / "file").stat()
    assert (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid())


def test_links_that_stay_inside(place: Place) -> None:
    archive = Archive().add("a/file", b"x")
    archive.add("a/soft", type=tarfile.SYMTYPE, linkname="../a/file")
    archive.add("a/hard", type=tarfile.LNKTYPE, linkname="a/file")
    archive.add("dangling", type=tarfile.SYMTYPE, linkname="not/there")
    place.unpack(archive.bytes())
    assert os.readlink(place.root / "a/soft") == "../a/file"
    assert (place.root / "a/soft").read_bytes() == b"x"
    assert (place.root / "a/hard").samefile(place.root / "a/file")


REFUSED: dict[str, Archive] = {
    "absolute": Archive().add("/evil", b"x"),
    "climbing": Archive().add("a/../../evil", b"x"),
    "climbing directory": Archive().add("../evil", type=tarfile.DIRTYPE),
    "long name that climbs": Archive().add("a/" * 120 + "../" * 121 + "evil", b"x"),
    "absolute link": Archive().add("l", type=tarfile.SYMTYPE, linkname="/etc"),
    "link that leads out": Archive().add("a/l", type=tarfile.SYMTYPE, linkname="../../out"),
    "link that climbs later": Archive().add("l", type=tarfile.SYMTYPE, linkname="a/../../out"),
    "hard link out": Archive().add("l", type=tarfile.LNKTYPE, linkname="../secret"),
    "absolute hard link": Archive().add("l", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
    "hard link to what was there": Archive().add("l", type=tarfile.LNKTYPE, linkname="mine"),
    "hard link to a link": Archive()
    .add("s", type=tarfile.SYMTYPE, linkname="x")
    .add("l", type=tarfile.LNKTYPE, linkname="s"),
    "through a link": Archive()
    .add("s", type=tarfile.SYMTYPE, linkname="mine-too")
    .add("s/evil", b"x"),
    "character device": Archive().add("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
    "block device": Archive().add("disk", type=tarfile.BLKTYPE, devmajor=8, devminor=0),
    "pipe": Archive().add("pipe", type=tarfile.FIFOTYPE),
    "twice": Archive().add("ok", b"x").add("ok", b"y"),
    "our own state": Archive().add(".shoal-pull.json", b"{}"),
    "our own directory": Archive().add(".shoal-pull/x", b"{}"),
    "line break": Archive().add("a\nb", b"x"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(place: Place, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (place.root / "mine").write_bytes(b"mine")
    (place.root / "mine-too").mkdir()
    with pytest.raises(DownloadError) as caught:
        place.unpack(REFUSED[name].bytes())
    assert str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "secret"}
    assert not list((place.root / "mine-too").iterdir())
    assert place.names() <= {"mine", "mine-too", "ok", "s", "a"}
    assert (place.root / "mine").stat().st_nlink == 1


@pytest.mark.parametrize("packing", [Packing.TAR_GZIP, Packing.TAR_ZSTD, Packing.TAR])
def test_broken_archives(place: Place, packing: Packing) -> None:
    whole = Archive().add("file", os.urandom(100_000)).bytes()
    packed = {
        Packing.TAR: whole,
        Packing.TAR_GZIP: gzip.compress(whole),
        Packing.TAR_ZSTD: zstandard.compress(whole),
    }[packing]
    for body in (packed[: len(packed) // 2], b"no archive at all" * 100):
        with pytest.raises(DownloadError, match="no proper"):
            place.unpack(body, packing)
    # A file that did not come to its end has no name.
    assert place.names() == set()


def test_an_archive_made_to_fill_disks(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNPACKED_FREE_BYTES", 1 << 20)
    body = gzip.compress(Archive().add("zeros", bytes(8 << 20)).bytes())
    with pytest.raises(DownloadError, match="far more than it should"):
        place.unpack(body, Packing.TAR_GZIP)
    assert place.names() == set()


def test_too_many_members(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MEMBERS_MAX", 2)
    archive = Archive().add("a").add("b").add("c")
    with pytest.raises(DownloadError, match="far more than it should"):
        place.unpack(archive.bytes())


def test_a_file_of_the_users_stays(place: Place) -> None:
    (place.root / "mine").write_bytes(b"mine")
    body = Archive().add("mine", b"theirs").bytes()
    with pytest.raises(UsageError, match="--overwrite"):
        place.unpack(body)
    assert (place.root / "mine").read_bytes() == b"mine"
    place.unpack(body, overwrite=True)
    assert (place.root / "mine").read_bytes() == b"theirs"
    # From now on it is the pull's own.
    place.unpack(body)


def test_a_link_in_a_files_place_is_replaced_and_not_followed(place: Place, tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"outside")
    (place.root / "file").symlink_to(tmp_path / "outside")
    place.unpack(Archive().add("file", b"theirs").bytes(), overwrite=True)
    assert (tmp_path / "outside").read_bytes() == b"outside"
    assert not (place.root / "file").is_symlink()


def test_only_what_was_asked_for(place: Place) -> None:
    archive = Archive().add("a.json", b"{}").add("b.bin", b"x").add("sub/c.json", b"{}")
    archive.add("sub", type=tarfile.DIRTYPE)
    place.unpack(archive.bytes(), include=("*.json",), exclude=("sub/**",))
    assert place.names() == {"a.json"}
