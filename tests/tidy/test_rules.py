"""Each rule of tidiness catches a planted violation and lets the innocent pass."""

import ast

import pytest

from tests.tidy import rules


def lines_of(problems: rules.Problems) -> list[int]:
    """The line numbers of problems."""
    return [line for line, _ in problems]


def test_long_file() -> None:
    assert not lines_of(rules.long_file("x\n" * rules.FILE_LINES_MAX))
    assert lines_of(rules.long_file("x\n" * (rules.FILE_LINES_MAX + 1)))


@pytest.mark.parametrize("keyword", ["def", "async def"])
def test_long_function(keyword: str) -> None:
    def function(lines: int) -> ast.AST:
        return ast.parse(f"class A:\n  {keyword} f():\n" + "    x = 1\n" * (lines - 1))

    assert not lines_of(rules.long_functions(function(rules.FUNCTION_LINES_MAX)))
    assert lines_of(rules.long_functions(function(rules.FUNCTION_LINES_MAX + 1))) == [2]


def test_sleeps() -> None:
    source = "import time\nfrom time import sleep as nap\ntime.sleep(1)\ntime.sleep(POLL_S)\n"
    assert sorted(lines_of(rules.sleeps(ast.parse(source)))) == [2, 3]


def test_machine_paths() -> None:
    text = "see /{}/ann/x\n${{prefix}}/{}/x\nhttp://a.example/{}/x\n/var/lib/shoal\n"
    planted = text.format(*["home"] * 3)
    assert lines_of(rules.machine_paths(planted)) == [1]


def test_registry_hosts() -> None:
    text = "a\nhttps://Packages.Example/simple\n"
    assert lines_of(rules.registry_hosts(text, ["packages.example"])) == [2]
    assert not lines_of(rules.registry_hosts(text, ["other.example"]))


@pytest.mark.parametrize(
    "line", ["As you asked, peers connect.", "Done in this session", "See issue #12", "Phase 2"]
)
def test_talk_is_caught(line: str) -> None:
    assert lines_of(rules.talk(f"fine\n{line}")) == [2]


@pytest.mark.parametrize(
    "line", ["The session of a host ends.", "It issues 2 requests.", "Moves AI model weights."]
)
def test_plain_text_is_not_talk(line: str) -> None:
    assert not lines_of(rules.talk(line))


def test_links_and_anchors() -> None:
    text = (
        "# One `word`, two\n[a](b.md#c) [w](https://x.example/) [m](mailto:a@b.example)\n"
        "```\n# no\n[no](no.md)\n```\n## Again\n## Again\n`docs/a.md` `peer` `tests/x/*.txt`\n"
    )
    assert list(rules.links(text)) == [(2, "b.md#c")]
    assert rules.anchors(text) == {"one-word-two", "again", "again-1"}
    assert list(rules.named_paths(text)) == [(9, "docs/a.md")]
