"""Docker's daemon.json: the mirror first in `registry-mirrors`, and every other byte as it was.

Edits the text itself, for a JSON library would write the whole file anew. Pure: never reads or
writes a file.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from peer.cli.runtimes.wanted import DOCKER_HUB, Edit, Mirror, Plan, Reader, Refused, Registry
from shoal.wire.errors import UsageError

CONFIG: Final = "/etc/docker/daemon.json"
KEY: Final = "registry-mirrors"

_SPACE = re.compile(r"[ \t\r\n]*")


def plan(reader: Reader, mirror: Mirror, registries: Sequence[Registry]) -> Plan:
    """The edit that sends pulls through the mirror. Raises Refused and UsageError."""
    others = [registry.name for registry in registries if registry.name != DOCKER_HUB]
    if others:
        raise UsageError(
            f"docker has mirrors for {DOCKER_HUB} alone, not for {', '.join(others)}: leave "
            "--registry out"
        )
    if "/" in mirror.place:
        raise UsageError(f"--mirror {mirror.url}: docker takes no path in a mirror's URL")
    before = reader.read(CONFIG)
    plan = Plan([Edit(CONFIG, before, config_text(before, mirror))])
    if not mirror.dedicated:
        plan.notes.append(
            f"{DOCKER_HUB} itself wants a token of everybody, and docker looks for that at the "
            f"root of a mirror: have the daemon listen for it alone (mirror.dedicated), and name "
            f"that listener with --mirror, --registry {DOCKER_HUB} and --dedicated"
        )
    return plan


def config_text(before: str | None, mirror: Mirror) -> str:
    """The configuration with the mirror in it. Raises Refused."""
    if before is None or not before.strip():
        return json.dumps({KEY: [mirror.url]}, indent=2) + "\n"
    said = _parse(before)
    mirrors = said.get(KEY)
    if mirrors is None and KEY in said:
        raise Refused(f'{CONFIG}: "{KEY}" is null: take it out first')
    if mirrors is not None and not _are_strings(mirrors):
        raise Refused(f'{CONFIG}: "{KEY}" has to be a list of strings: mend it first')
    if any(url.rstrip("/") == mirror.url for url in mirrors or []):
        return before
    members = _Scan(before).members()
    if mirrors is None:
        result = _with_member(before, members, mirror.url)
    else:
        start = next(member.value_start for member in members if member.key == KEY)
        result = _with_item(before, start, mirror.url)
    # The proof: it says what it said before, and the mirror.
    wanted = {**said, KEY: [mirror.url, *(mirrors or [])]}
    assert json.loads(result) == wanted
    return result


def _parse(text: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise Refused(f"{CONFIG} has a key twice: take one out first, nothing was written")
        return found

    try:
        said = json.loads(text, object_pairs_hook=unique)
    except (json.JSONDecodeError, RecursionError) as error:
        where = ""
        if isinstance(error, json.JSONDecodeError):
            where = f" (line {error.lineno}, column {error.colno}: {error.msg})"
        raise Refused(
            f"{CONFIG} is not valid JSON{where}: mend it first, nothing was written"
        ) from error
    if not isinstance(said, dict):
        raise Refused(f"{CONFIG} has to be a JSON object, {{...}}: mend it first")
    return said


def _are_strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


@dataclass(frozen=True)
class _Member:
    key: str
    start: int
    value_start: int
    end: int


class _Scan:
    """Where the members of a valid JSON object lie in its text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._decoder = json.JSONDecoder()

    def _skip(self, at: int) -> int:
        found = _SPACE.match(self._text, at)
        assert found is not None
        return found.end()

    def members(self) -> list[_Member]:
        found: list[_Member] = []
        at = self._skip(self._skip(0) + 1)
        while self._text[at] != "}":
            start = at
            key, at = self._decoder.raw_decode(self._text, start)
            value_start = self._skip(self._skip(at) + 1)
            _, end = self._decoder.raw_decode(self._text, value_start)
            found.append(_Member(key, start, value_start, end))
            at = self._skip(end)
            if self._text[at] == ",":
                at = self._skip(at + 1)
        return found


def _with_member(text: str, members: Sequence[_Member], url: str) -> str:
    """One more member at the end, spaced as the last one is."""
    shown = json.dumps(url)
    newline = "\r\n" if "\r\n" in text else "\n"
    if not members:
        opening = text.index("{")
        space = _space_after(text, opening + 1)
        closing = opening + 1 + len(space)
        step = f"{newline}  "
        body = f"{step}{json.dumps(KEY)}: [{step}  {shown}{step}]{newline}"
        return text[: opening + 1] + body + text[closing:]
    first, last = members[0], members[-1]
    if len(members) > 1:
        gap = text[members[-2].end : last.start].partition(",")[2]
    else:
        gap = text[text.index("{") + 1 : last.start]
    colon = text[first.start : first.value_start].rpartition(":")[2]
    if "\n" in gap:
        line = newline + gap.rpartition("\n")[2]
        outer = newline + text[: text.rindex("}")].rpartition("\n")[2]
        extra = line[len(outer) :] if line.startswith(outer) and line != outer else "  "
        items = f"[{line}{extra}{shown}{line}]"
    else:
        line, items = gap or "", f"[{shown}]"
    body = f",{line}{json.dumps(KEY)}:{colon}{items}"
    return text[: last.end] + body + text[last.end :]


def _with_item(text: str, start: int, url: str) -> str:
    """One more item at the head of the list that begins at `start`, spaced as the first one is."""
    space = _space_after(text, start + 1)
    first = start + 1 + len(space)
    shown = json.dumps(url)
    if text[first] == "]":
        return text[: start + 1] + shown + text[first:]
    between = space if "\n" in space else " "
    return f"{text[:first]}{shown},{between}{text[first:]}"


def _space_after(text: str, at: int) -> str:
    found = _SPACE.match(text, at)
    assert found is not None
    return found.group()
