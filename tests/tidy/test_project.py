"""The rules of tidiness, applied to every file of the project."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.tidy import rules
from tests.tidy.tree import (
    ROOT,
    files_with,
    is_generated,
    name_of,
    project_files,
    syntax_of,
    text_of,
)

BINARY_BYTES_MAX = 1024 * 1024
TEXT_SUFFIXES = (".md", ".py", ".proto", ".toml", ".service", ".txt", ".in", ".yml", ".yaml")


def complain(problems: Iterable[str]) -> None:
    """Fails with every problem, one per line."""
    found = list(problems)
    assert not found, "\n" + "\n".join(found)


def located(path: Path, problems: rules.Problems) -> Iterator[str]:
    """Problems with the file that they are in."""
    return (f"{name_of(path)}:{line}: {problem}" for line, problem in problems)


def written_texts() -> Iterator[tuple[Path, str]]:
    """Every text file that people wrote."""
    for path in project_files():
        text = text_of(path)
        if text is not None and not is_generated(path):
            yield path, text


def test_files_are_short() -> None:
    complain(
        problem
        for path in files_with(".py", ".proto")
        if not is_generated(path)
        for problem in located(path, rules.long_file(text_of(path) or ""))
    )


def test_functions_are_short() -> None:
    complain(
        problem
        for path in files_with(".py")
        if not is_generated(path)
        for problem in located(path, rules.long_functions(syntax_of(path)))
    )


def test_tests_do_not_sleep() -> None:
    complain(
        problem
        for path in files_with(".py", under="tests/")
        for problem in located(path, rules.sleeps(syntax_of(path)))
    )


def test_no_path_of_one_machine() -> None:
    complain(
        problem
        for path, text in written_texts()
        for problem in located(path, rules.machine_paths(text))
    )


def registry_hosts() -> set[str]:
    """Hosts that the package managers of this machine are set up to use."""
    commands = [[sys.executable, "-m", "pip", "config", "list"]]
    if shutil.which("npm"):
        commands.append(["npm", "config", "get", "registry"])
    if shutil.which("go"):
        commands.append(["go", "env", "GOPROXY"])
    hosts: set[str] = set()
    for command in commands:
        told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        for host in re.findall(r"https?://(?:[^/@\s'\"]*@)?([\w.-]+)", told.stdout):
            # A bare name such as `localhost` says nothing about anybody's registry.
            if "." in host and not re.fullmatch(r"[\d.]+", host):
                hosts.add(host.lower())
    return hosts


def test_no_registry_host_is_named() -> None:
    hosts = registry_hosts()
    complain(
        problem
        for path in project_files()
        if (text := text_of(path)) is not None
        for problem in located(path, rules.registry_hosts(text, hosts))
    )


def test_texts_speak_of_the_project() -> None:
    complain(
        problem
        for path, text in written_texts()
        if path.suffix in TEXT_SUFFIXES and not name_of(path).startswith("tests/tidy/")
        for problem in located(path, rules.talk(text))
    )


def test_no_lock_file_that_names_hosts() -> None:
    complain(name_of(path) for path in project_files() if path.name == "uv.lock")


def test_no_big_binary() -> None:
    complain(
        f"{name_of(path)}: {path.stat().st_size} bytes"
        for path in project_files()
        if path.stat().st_size > BINARY_BYTES_MAX
    )


def broken_links(path: Path, text: str) -> rules.Problems:
    """Links and named paths of a Markdown file that lead nowhere."""
    for line, target in rules.links(text):
        name, _, anchor = target.partition("#")
        aim = (path.parent / name).resolve() if name else path
        if not aim.exists():
            yield line, f"link to {target}, which does not exist"
        elif anchor and aim.suffix == ".md" and anchor not in rules.anchors(aim.read_text()):
            yield line, f"link to {target}: no such heading"
    for line, name in rules.named_paths(text):
        if not (ROOT / name).exists():
            yield line, f"names {name}, which does not exist"


def test_documents_have_no_broken_link() -> None:
    complain(
        problem
        for path in files_with(".md")
        for problem in located(path, broken_links(path, text_of(path) or ""))
    )


def test_packages_are_those_of_the_tree() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    present = {
        name_of(path.parent).removeprefix("proto/").replace("/", ".")
        for path in project_files()
        if path.name == "__init__.py"
        and name_of(path).startswith(("peer/", "scheduler/", "proto/shoal/"))
    }
    assert sorted(settings["packages"]) == sorted(present)
    # A module outside of any package would be left out of the wheel without a word.
    complain(
        f"{name_of(path)}: its folder has no __init__.py"
        for folder in ("peer/", "scheduler/", "proto/")
        for path in files_with(".py", under=folder)
        if not (path.parent / "__init__.py").exists()
    )


def test_shared_package_names_stay_empty() -> None:
    # Other distributions install packages of these names; with nothing in ours, nothing is lost.
    complain(
        f"{name} must stay empty"
        for name in ("peer/__init__.py", "scheduler/__init__.py")
        if (ROOT / name).read_bytes()
    )
    assert not (ROOT / "proto/__init__.py").exists()


def test_every_module_says_what_it_is_for() -> None:
    complain(
        f"{name_of(path)}: no docstring at the top"
        for path in files_with(".py")
        if not is_generated(path)
        and path.name != "__init__.py"
        and ast.get_docstring(syntax_of(path)) is None
    )
