"""Paths inside a pulled artifact: what is a safe one, and which ones a user's patterns choose.

Pure: it looks at text alone. Whether a directory on disk is what its name says is the business of
`peer.shell.oci.tree`.
"""

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from peer.shell.errors import DownloadError
from shoal.wire.errors import Reason, UsageError

PATH_CHARACTERS_MAX: Final = 4096
STATE_NAME: Final = ".shoal-pull"
"""The beginning of the names that a pull keeps for itself at the top of its directory."""


def safe_path(text: str, where: str) -> str:
    """A relative path without `.` and doubled slashes. Raises DownloadError for one that is empty,
    absolute or climbs: whoever made the artifact decides only what lies in the directory."""
    parts = [part for part in text.split("/") if part not in ("", ".")]
    problem = ""
    if text.startswith("/"):
        problem = "is absolute"
    elif ".." in parts:
        problem = "leads out of the directory with `..`"
    elif not parts:
        problem = "names no file"
    elif "\0" in text or "\\" in text or any(ord(character) < 32 for character in text):
        problem = "has characters that no path should have"
    elif len(text) > PATH_CHARACTERS_MAX or any(len(part.encode("utf-8", "replace")) > 255
                                               for part in parts):  # fmt: skip
        problem = "is too long"
    elif parts[0].startswith(STATE_NAME):
        problem = f"begins with {STATE_NAME}, which pulls use themselves"
    if problem:
        raise DownloadError(
            Reason.ORIGIN_INVALID,
            f"{where}: the path {text[:200]!r} {problem}; refused: ask who made the artifact",
        )
    return "/".join(parts)


def safe_link(path: str, target: str, where: str) -> str:
    """The target of a symbolic link at `path` that stays inside. Raises DownloadError. `..` may
    stand at the beginning only: after a name it could climb out of where another link leads."""
    parts = [part for part in target.split("/") if part not in ("", ".")]
    climbs = 0
    while climbs < len(parts) and parts[climbs] == "..":
        climbs += 1
    depth = path.count("/")
    if (
        not target
        or target.startswith("/")
        or "\0" in target
        or climbs > depth
        or ".." in parts[climbs:]
        or len(target) > PATH_CHARACTERS_MAX
    ):
        raise DownloadError(
            Reason.ORIGIN_INVALID,
            f"{where}: the link {path[:200]!r} leads to {target[:200]!r}, out of the directory; "
            "refused: ask who made the artifact",
        )
    return target


class Patterns(NamedTuple):
    """Which paths a user wants. `*` and `?` stay within a name, `**` crosses slashes, and a
    pattern without a slash is compared with the last name alone."""

    include: tuple[re.Pattern[str], ...] = ()
    exclude: tuple[re.Pattern[str], ...] = ()

    def wants(self, path: str) -> bool:
        """Whether the path was asked for: included, or nothing is, and not excluded."""
        if any(pattern.fullmatch(path) for pattern in self.exclude):
            return False
        return not self.include or any(pattern.fullmatch(path) for pattern in self.include)

    def __bool__(self) -> bool:
        return bool(self.include or self.exclude)


def patterns(include: Sequence[str], exclude: Sequence[str]) -> Patterns:
    """The patterns of a command line. Raises UsageError."""
    return Patterns(tuple(map(_pattern, include)), tuple(map(_pattern, exclude)))


def _pattern(text: str) -> re.Pattern[str]:
    if not text or len(text) > PATH_CHARACTERS_MAX:
        raise UsageError("pattern of no length or too long: write it as '*.json' or 'dir/**'")
    glob = text if "/" in text else f"**/{text}"
    expression = ""
    at = 0
    for token in re.finditer(r"\*\*/|\*\*|\*|\?|\[!?\]?[^]/]*\]", glob):
        expression += re.escape(glob[at : token.start()])
        found = token[0]
        if found == "**/":
            expression += "(?:.*/)?"
        elif found == "**":
            expression += ".*"
        elif found in ("*", "?"):
            expression += "[^/]" + ("*" if found == "*" else "")
        else:
            inner = found[1:-1].replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]")
            expression += "[^/" + inner[1:] + "]" if inner.startswith("!") else f"[{inner}]"
        at = token.end()
    expression += re.escape(glob[at:])
    try:
        return re.compile(expression.removeprefix("/"), re.DOTALL)
    except re.error:
        raise UsageError(f"pattern {text[:80]!r} can't be read: write it as '*.json'") from None
