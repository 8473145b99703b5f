"""Edits of TOML that keep every comment, blank line and order, each proven on the result.

A block is put in as text; a value is changed by tomlkit. Either way the result is parsed again, and
has to say what the text said before and what was wanted, and nothing else; where no edit does that,
the text is refused. Pure: never reads or writes a file.
"""

import copy
import re
import tomllib
from collections.abc import Callable, Sequence
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from peer.cli.runtimes.wanted import Refused

_HEADER = re.compile(r"\s*\[")


def parse(text: str, path: str) -> dict[str, Any]:
    """What a file says. Raises Refused, without showing a value of the file."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"\(at [^)]*\)$", str(error))
        raise Refused(
            f"{path} is not valid TOML {place.group() if place else ''}: mend it first, "
            "nothing was written"
        ) from error


def quoted(text: str) -> str:
    """A TOML string."""
    return tomlkit.string(text).as_string()


def insert(
    text: str,
    block: Sequence[str],
    fits: Callable[[dict[str, Any]], bool],
    path: str,
    *,
    at_end: bool = False,
) -> str:
    """The text with the lines of the block before the first table (or at the end) where the whole
    says what it should. Raises Refused if there is no such place."""
    lines = text.splitlines(keepends=True)
    end = "\r\n" if "\r\n" in text else "\n"
    tables = [_above(lines, at) for at, line in enumerate(lines) if _HEADER.match(line)]
    for at in [len(lines)] if at_end else [*tables, len(lines)]:
        head, tail = lines[:at], lines[at:]
        if head and not head[-1].endswith("\n"):
            head[-1] += end
        before = [end] if head and head[-1].strip() else []
        after = [end] if tail and tail[0].strip() else []
        result = "".join([*head, *before, *(line + end for line in block), *after, *tail])
        try:
            said = tomllib.loads(result)
        except tomllib.TOMLDecodeError:
            continue  # a place that makes no sense, such as inside of a string: try the next
        if fits(said):
            return result
    raise by_hand(path, "\n".join(block))


def _above(lines: Sequence[str], at: int) -> int:
    """The first line of the comment that stands right above a line."""
    while at and lines[at - 1].lstrip().startswith("#"):
        at -= 1
    return at


def set_value(
    text: str, keys: Sequence[str | int], value: str | bool | list[str], path: str
) -> str:
    """The text with one value changed or added in a table that is there. Raises Refused."""
    wanted = tomllib.loads(text)
    inside(wanted, keys[:-1])[keys[-1]] = copy.deepcopy(value)
    shown = tomlkit.item(value).as_string()
    if keys[-1] not in inside(tomllib.loads(text), keys[:-1]):
        added = _added(text, f"{keys[-1]} = {shown}", wanted)
        if added is not None:
            return added
    elif not isinstance(value, list):
        replaced = _replaced(text, str(keys[-1]), shown, wanted)
        if replaced is not None:
            return replaced
    hint = f"{'.'.join(map(str, keys))} = {shown}"
    try:
        document = tomlkit.parse(text)
        table = inside(document, keys[:-1])
        old = table.get(keys[-1])
        if isinstance(value, list) and isinstance(old, list):
            for item in value[len(old) :]:
                old.append(item)
        else:
            table[keys[-1]] = value
        result = tomlkit.dumps(document)
        said = tomllib.loads(result)
    except (TOMLKitError, tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        raise by_hand(path, hint) from error
    if said != wanted or result.count("#") != text.count("#"):
        raise by_hand(path, hint)
    return result


def _replaced(text: str, key: str, shown: str, wanted: dict[str, Any]) -> str | None:
    """The text with a value of one line in place of the old one, if a line holds it so."""
    pattern = re.compile(
        rf"""^(\s*["']?{re.escape(key)}["']?[ \t]*=[ \t]*)("[^"\r\n]*"|'[^'\r\n]*'|true|false)""",
        re.M,
    )
    for found in pattern.finditer(text):
        result = text[: found.start(2)] + shown + text[found.end(2) :]
        try:
            if tomllib.loads(result) == wanted:
                return result
        except tomllib.TOMLDecodeError:
            continue  # it is no value, but part of a longer one: the next
    return None


def _added(text: str, line: str, wanted: dict[str, Any]) -> str | None:
    """The text with the line below the head of the table that it belongs to, if one has a head."""
    lines = text.splitlines(keepends=True)
    for at, head in enumerate(lines):
        if not _HEADER.match(head) or not head.endswith("\n"):
            continue
        follower = lines[at + 1] if at + 1 < len(lines) else ""
        like = head if _HEADER.match(follower) or not follower.strip() else follower
        indent = like[: len(like) - len(like.lstrip())]
        end = "\r\n" if head.endswith("\r\n") else "\n"
        result = "".join([*lines[: at + 1], f"{indent}{line}{end}", *lines[at + 1 :]])
        try:
            if tomllib.loads(result) == wanted:
                return result
        except tomllib.TOMLDecodeError:
            continue  # the key is in that table already, or it is no head of a table: the next
    return None


def inside(table: Any, keys: Sequence[str | int]) -> Any:
    """The table or list below the keys."""
    for key in keys:
        table = table[key]
    return table


def by_hand(path: str, block: str) -> Refused:
    """The error of a text that is valid and yet can't be edited."""
    return Refused(
        f"{path} is written in a way that can't be edited safely, nothing was written: put this "
        f"into it by hand:\n{block}"
    )
