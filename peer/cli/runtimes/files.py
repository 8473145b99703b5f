"""The files of the runtimes on this machine: read, backed up, replaced as a whole, and put back.

A record below the state directory tells what was there before the first change. It is written
before the file that it speaks of, so that whatever happens, `undo` knows the way back. Never
decides what a file should say, and never overwrites what somebody else wrote unless it is told to.
"""

import fcntl
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from peer.cli.runtimes.wanted import Edit, Refused

FILE_BYTES_MAX: Final = 4 << 20
"""More than any configuration; what is bigger was named by mistake."""

RECORD: Final = "record.json"
RECORD_VERSION: Final = 1


class Root:
    """The machine's files, below a directory that stands for `/`."""

    def __init__(self, directory: Path) -> None:
        self.directory = Path(os.path.abspath(directory))

    def place(self, path: str) -> Path:
        """Where a file of the runtime really is; links are followed. Raises Refused."""
        named = self.directory / path.lstrip("/")
        real = Path(os.path.realpath(named))
        if not real.is_relative_to(os.path.realpath(self.directory)):
            raise Refused(f"{named} is a link that leads out of {self.directory}: replace it first")
        if named.is_symlink() and not real.exists():
            raise Refused(f"{named} is a link to nothing: remove it or make {real} first")
        return real

    def read(self, path: str) -> str | None:
        """A file's text; None if there is none. Raises Refused."""
        place = self.place(path)
        content = content_of(place)
        if content is None:
            return None
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Refused(f"{place} is not UTF-8: mend it first, nothing was written") from error

    def names(self, path: str) -> list[str]:
        """What lies in a directory, sorted; nothing if there is none."""
        place = self.place(path)
        return sorted(os.listdir(place)) if place.is_dir() else []


def content_of(place: Path) -> bytes | None:
    """A file's bytes, None if there is none. Raises Refused if it is no ordinary file."""
    if not os.path.lexists(place):
        return None
    if not place.is_file():
        raise Refused(f"{place} is not an ordinary file: move it away first")
    with place.open("rb") as file:
        content = file.read(FILE_BYTES_MAX + 1)
    if len(content) > FILE_BYTES_MAX:
        raise Refused(
            f"{place} is over {FILE_BYTES_MAX} bytes: that is no configuration of a runtime"
        )
    return content


def digest_of(content: bytes | None) -> str | None:
    """What a file is known by; None for a file that is not there."""
    return None if content is None else hashlib.sha256(content).hexdigest()


@dataclass
class Kept:
    """One file before its first change, and by which digests we know it as ours."""

    backup: str | None
    """The name of its copy; None if the file did not exist."""
    before: str | None
    mode: int
    uid: int
    gid: int
    written: list[str] = field(default_factory=list)
    """The digests of the last content and of the one before: a crash may leave either."""
    touched_by_others: bool = False

    def is_ours(self, digest: str | None) -> bool:
        """Whether a file with the digest holds nothing but what was there before and our part."""
        return digest == self.before or (digest in self.written and not self.touched_by_others)


@dataclass
class Record:
    """What undo has to know. `made` are directories, the outer ones first."""

    root: str
    mirror: str
    files: dict[str, Kept] = field(default_factory=dict)
    made: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Return:
    """One file as it is and as it was before shoal; None: not there."""

    place: Path
    now: bytes | None
    then: bytes | None
    kept: Kept


class State:
    """Backups and record of one family of configuration files."""

    def __init__(self, directory: Path, family: str) -> None:
        self._base = Path(os.path.abspath(directory))
        self.folder = self._base / family
        self._record = self.folder / RECORD

    def load(self) -> Record | None:
        """The record, None if nothing was changed. Raises Refused."""
        content = content_of(self._record)
        if content is None:
            return None
        try:
            said: dict[str, Any] = json.loads(content)
            if said.pop("version") != RECORD_VERSION:
                raise ValueError("another version")
            files = {path: Kept(**kept) for path, kept in said.pop("files").items()}
            return Record(files=files, **said)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Refused(
                f"{self._record} can't be read ({error}): put the files back by hand from "
                f"{self.folder}, then remove that directory"
            ) from error

    def check(self, root: Root, mirror: str) -> None:
        """Whether a change may be added to what was changed before. Raises Refused."""
        record = self.load()
        if record is None:
            return
        if record.root != str(root.directory):
            raise Refused(
                f"{self.folder} remembers the files below {record.root}: use another --state-dir "
                f"for those below {root.directory}"
            )
        if record.mirror != mirror:
            raise Refused(
                f"the runtime uses the mirror {record.mirror} already: run this with --undo first, "
                f"then again for {mirror}"
            )

    @contextmanager
    def _locked(self) -> Iterator[list[str]]:
        """Keeps other processes out; gives the directories that it had to make, and takes those
        away again that hold nothing in the end."""
        made = make_directories(self.folder, mode=0o700)
        handle = os.open(self._base, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Refused(
                    f"another process works in {self._base}: run this again when it is done"
                ) from error
            yield made
        finally:
            for folder in reversed(made):
                remove_empty(Path(folder))
            os.close(handle)

    def apply(self, root: Root, mirror: str, edits: Sequence[Edit]) -> None:
        """Writes every edit. Raises Refused before the first write, if a file is not as read."""
        with self._locked() as made:
            self.check(root, mirror)
            record = self.load() or Record(str(root.directory), mirror)
            record.made += made
            placed = [(root.place(edit.path), edit) for edit in edits]
            contents = []
            for place, edit in placed:
                content = content_of(place)
                if content != (None if edit.before is None else edit.before.encode()):
                    raise Refused(f"{place} was changed a moment ago: run this again")
                contents.append(content)
            for (place, edit), content in zip(placed, contents, strict=True):
                self._keep(record, place, content, edit.after.encode())
            for place, _ in placed:
                record.made += missing_directories(place.parent, record.made)
            self._save(record)
            for place, edit in placed:
                make_directories(place.parent)
                replace(place, edit.after.encode(), *rights_of(place))

    def _keep(self, record: Record, place: Path, content: bytes | None, after: bytes) -> None:
        digest, digest_after = digest_of(content), digest_of(after)
        assert digest_after is not None
        kept = record.files.get(str(place))
        if kept is None:
            backup = None
            if content is not None:
                backup = f"{len(record.files):04}-{place.name}"
                replace(self.folder / backup, content, 0o600, os.geteuid(), os.getegid())
            kept = Kept(backup, digest, *rights_of(place))
            record.files[str(place)] = kept
        elif not kept.is_ours(digest):
            kept.touched_by_others = True
        kept.written = [*([digest] if digest in kept.written and digest else []), digest_after]

    def _save(self, record: Record) -> None:
        text = json.dumps({"version": RECORD_VERSION, **asdict(record)}, indent=1) + "\n"
        replace(self._record, text.encode(), 0o600, os.geteuid(), os.getegid())

    # ---------------------------------------------------------------- the way back

    def returns(self, root: Root, *, force: bool) -> list[Return]:
        """What undo would do. Raises Refused if somebody else changed a file, unless forced."""
        record = self.load()
        if record is None:
            return []
        if record.root != str(root.directory):
            raise Refused(
                f"{self.folder} remembers the files below {record.root}, not those below "
                f"{root.directory}: use --config-root {record.root}, or another --state-dir"
            )
        found = []
        for name, kept in record.files.items():
            place = Path(name)
            now = content_of(place)
            then = None if kept.backup is None else content_of(self.folder / kept.backup)
            if digest_of(then) != kept.before:
                raise Refused(
                    f"the copy of {name}, {self.folder / str(kept.backup)}, is lost or damaged: "
                    f"mend {name} by hand, then remove {self.folder}"
                )
            if not force and not kept.is_ours(digest_of(now)):
                raise Refused(self._foreign(name, kept))
            found.append(Return(place, now, then, kept))
        return found

    def _foreign(self, name: str, kept: Kept) -> str:
        held = "did not exist" if kept.backup is None else f"is kept in {self.folder / kept.backup}"
        return (
            f"{name} was changed by somebody else after shoal, so nothing was undone. What was "
            f"there before shoal {held}. Take shoal's lines out by hand, or run this again with "
            "--force to lose the other changes"
        )

    def undo(self, root: Root, *, force: bool) -> list[str]:
        """Puts every file back and forgets it; returns directories that hold other files now."""
        with self._locked():
            returns = self.returns(root, force=force)
            record = self.load()
            for one in returns:
                if one.now != one.then:
                    put_back(one)
            self._record.unlink(missing_ok=True)
            for one in returns:
                if one.kept.backup is not None:
                    (self.folder / one.kept.backup).unlink()
            made = [] if record is None else record.made
            deepest_first = sorted({*made, str(self.folder)}, key=len, reverse=True)
            left = [folder for folder in deepest_first if not remove_empty(Path(folder))]
            return [] if self._handed_over(left) else left

    def _handed_over(self, folders: Sequence[str]) -> bool:
        """Directories that another family uses still go when that one is undone."""
        for folder in sorted(self._base.iterdir()) if folders and self._base.exists() else []:
            other = State(self._base, folder.name)
            record = other.load()
            if record is not None:
                record.made += [one for one in reversed(folders) if one not in record.made]
                other._save(record)
                return True
        return False


def put_back(one: Return) -> None:
    """One file as it was, with the mode and owner that it had."""
    if one.then is None:
        one.place.unlink(missing_ok=True)
        return
    make_directories(one.place.parent)
    replace(one.place, one.then, one.kept.mode, one.kept.uid, one.kept.gid)


def rights_of(place: Path) -> tuple[int, int, int]:
    """Mode, user and group of a file, or those of a new one."""
    if not place.exists():
        return 0o644, os.geteuid(), os.getegid()
    found = place.stat()
    return stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid


def missing_directories(folder: Path, known: Sequence[str]) -> list[str]:
    """The directories that have to be made for a folder, the outer ones first."""
    missing = [str(one) for one in [folder, *folder.parents] if not one.exists()]
    return [one for one in reversed(missing) if one not in known]


def make_directories(folder: Path, mode: int = 0o755) -> list[str]:
    """Makes a directory and what it lies in; returns those that were missing."""
    made = missing_directories(folder, ())
    for one in made:
        # The mode holds whatever the umask is: a runtime may run as another user.
        os.mkdir(one)
        os.chmod(one, mode if one == str(folder) else 0o755)
    return made


def remove_empty(folder: Path) -> bool:
    """Removes a directory if nothing is in it; returns whether it is gone."""
    if not folder.exists():
        return True
    if any(folder.iterdir()):
        return False
    folder.rmdir()
    return True


def replace(place: Path, content: bytes, mode: int, uid: int, gid: int) -> None:
    """A file's new content, all of it or none, whenever the machine stops."""
    temporary = place.with_name(f".{place.name}.shoal-{secrets.token_hex(4)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            if (uid, gid) != (os.geteuid(), os.getegid()):
                os.fchown(file.fileno(), uid, gid)
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        temporary.replace(place)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(place.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
