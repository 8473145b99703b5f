"""The files of the project as the tidy tests see them: tracked ones and new ones, never ignored
ones. Reads; judges nothing."""

import ast
import functools
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GENERATED_SUFFIXES = ("_pb2.py", "_pb2_grpc.py", "_pb2.pyi", "_pb2_grpc.pyi")


@functools.cache
def project_files() -> tuple[Path, ...]:
    """Every file that is, or would be, committed."""
    # A checkout that belongs to another user is still this project.
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others"]
    listed = subprocess.run(
        [*command, "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, timeout=30
    )
    names = sorted({name for name in listed.stdout.decode().split("\0") if name})
    found = tuple(path for name in names if (path := ROOT / name).is_file())
    assert len(found) > 50, "the list of files is not that of this project"
    return found


def name_of(path: Path) -> str:
    """A file's path inside the project."""
    return path.relative_to(ROOT).as_posix()


def is_generated(path: Path) -> bool:
    """Whether a tool wrote the file."""
    return path.name.endswith(GENERATED_SUFFIXES)


def files_with(*suffixes: str, under: str = "") -> Iterator[Path]:
    """Files of the project with one of the suffixes, below a folder."""
    for path in project_files():
        if path.suffix in suffixes and name_of(path).startswith(under):
            yield path


@functools.cache
def text_of(path: Path) -> str | None:
    """A file's text, None if it has none."""
    data = path.read_bytes()
    if b"\0" in data[:8192]:
        return None
    return data.decode("utf-8", errors="replace")


@functools.cache
def syntax_of(path: Path) -> ast.Module:
    """A Python file's syntax tree."""
    return ast.parse(path.read_bytes(), str(path))
