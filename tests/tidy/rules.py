"""The rules of tidiness that look at one text, each as a function from text to problems.

A problem is a line number and a sentence. Kept apart from the tests that apply them to the whole
project, so that each rule is itself tested on a planted violation.
"""

import ast
import re
from collections.abc import Collection, Iterator

FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70

Problems = Iterator[tuple[int, str]]

# Written in two parts, so that this file does not break its own rule.
_MACHINE_PATH = re.compile(r"(?<![\w.$}-])/(?:wo" r"rk|ho" r"me|ro" r"ot|Us" r"ers)/\w")

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^(```|~~~)")
_HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*$")
_SPAN_PATH = re.compile(
    r"`((?:benchmarks|deploy|docs|peer|proto|requirements|scheduler|tests)/[\w./-]+)`"
)
_TALK = re.compile(
    r"\b(?:"
    r"assistants?|chatbots?|claude|copilot|chatgpt|codex|anthropic|openai"
    r"|as (?:you )?(?:asked|requested|instructed)|(?:done|made|changed) in this session|my session"
    r"|as an ai|issue \d+|issues? #\d+|phase \d+|per the (?:brief|contract|prompt)"
    r"|i(?:'ve| have)? (?:added|implemented|written|created|fixed)"
    r")\b",
    re.IGNORECASE,
)


def long_file(text: str) -> Problems:
    """A file that wants to be split by responsibility."""
    count = len(text.splitlines())
    if count > FILE_LINES_MAX:
        yield count, f"{count} lines, at most {FILE_LINES_MAX}"


def long_functions(tree: ast.AST) -> Problems:
    """Functions that do not fit a screen."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            count = (node.end_lineno or node.lineno) - node.lineno + 1
            if count > FUNCTION_LINES_MAX:
                yield node.lineno, f"{node.name}: {count} lines, at most {FUNCTION_LINES_MAX}"


def sleeps(tree: ast.AST) -> Problems:
    """Tests that wait for time to pass. A bounded loop that looks again and again at another
    process may pause between two looks, for `POLL_S`."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="time"), attr="sleep"),
                args=[ast.Name(id="POLL_S")],
            ):
                continue
            case ast.Call(func=ast.Attribute(value=ast.Name(id="time"), attr="sleep")):
                yield node.lineno, "time.sleep: wait for what you need, not for time"
            case ast.ImportFrom(module="time", names=names) if any(
                alias.name == "sleep" for alias in names
            ):
                yield node.lineno, "time.sleep: wait for what you need, not for time"


def machine_paths(text: str) -> Problems:
    """Paths that exist on one developer's machine only."""
    for number, line in enumerate(text.splitlines(), 1):
        if found := _MACHINE_PATH.search(line):
            yield number, f"a path of one machine: {found.group()}"


def registry_hosts(text: str, hosts: Collection[str]) -> Problems:
    """Names of package registries, which are the business of whoever installs."""
    lowered = text.lower()
    if not any(host in lowered for host in hosts):
        return
    for number, line in enumerate(lowered.splitlines(), 1):
        if any(host in line for host in hosts):
            yield number, "names the host of a package registry"


def talk(text: str) -> Problems:
    """Words about how the text came to be instead of about the project."""
    for number, line in enumerate(text.splitlines(), 1):
        if found := _TALK.search(line):
            yield number, f"speaks of its making: {found.group()!r}"


def slug(heading: str) -> str:
    """The anchor that code hosts give a heading."""
    plain = re.sub(r"`|\*|\[|\]\([^)]*\)|\]", "", heading).lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def prose_lines(text: str) -> Iterator[tuple[int, str]]:
    """Numbered lines of a Markdown text that are not inside code blocks."""
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if _FENCE.match(line.lstrip()):
            fenced = not fenced
        elif not fenced:
            yield number, line


def anchors(text: str) -> set[str]:
    """Every anchor of a Markdown text; a repeated heading gets a number."""
    found: set[str] = set()
    for _, line in prose_lines(text):
        if heading := _HEADING.match(line):
            base = name = slug(heading.group(1))
            count = 0
            while name in found:
                count += 1
                name = f"{base}-{count}"
            found.add(name)
    return found


def links(text: str) -> Iterator[tuple[int, str]]:
    """The target of each relative link of a Markdown text."""
    for number, line in prose_lines(text):
        for target in _LINK.findall(line):
            if not re.match(r"[a-z][a-z+.-]*:", target):
                yield number, target


def named_paths(text: str) -> Iterator[tuple[int, str]]:
    """Each path of the project that a Markdown text names between backticks."""
    for number, line in prose_lines(text):
        for path in _SPAN_PATH.findall(line):
            yield number, path
