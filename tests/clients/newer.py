"""Programs that are newer than this machine's: what `.ci/newer-clients` unpacked.

Such a program needs libraries of its own age, so it runs where its tree stands in for /usr; it sees
everything else of the machine as it is. What it mounts is gone when it ends. Installs nothing.
"""

import os
from pathlib import Path
from typing import Final

from tests.conftest import require_file, require_root, require_tool

_IN_PLACE_OF_USR: Final = 'mount --bind "$0/usr" /usr && exec "$@"'


def newer_root() -> Path:
    """The directory of the tree."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(Path.home(), ".cache")
    return Path(cache) / "shoal-tests" / "newer-clients"


def newer_command(name: str, *binds: tuple[Path, str]) -> tuple[str, ...]:
    """What starts a newer program, in front of its arguments. Skips the test where it is missing;
    fails under CI. `binds`: directories that it sees in place of others."""
    require_root()
    root = newer_root()
    places = [root / "usr" / folder / name for folder in ("bin", "sbin")]
    place = next((place for place in places if place.is_file()), places[0])
    require_file(place, "run .ci/newer-clients")
    return (*bound(*binds), *_private("sh", "-c", _IN_PLACE_OF_USR, str(root)), place.name)


def bound(*binds: tuple[Path, str]) -> tuple[str, ...]:
    """What starts a program that sees directories in place of others, in front of it."""
    command: tuple[str, ...] = ()
    for directory, place in binds:
        script = 'mount --bind "$0" "$1" && shift && exec "$@"'
        command = (*command, *_private("sh", "-c", script, str(directory), place))
    return command


def _private(*command: str) -> tuple[str, ...]:
    """In a namespace of mounts of its own: nobody else sees what is mounted in it."""
    return (require_tool("unshare"), "--mount", "--propagation", "private", *command)
