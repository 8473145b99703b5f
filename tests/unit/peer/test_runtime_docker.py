"""Edits of docker's daemon.json."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.cli.runtimes import docker
from peer.cli.runtimes.docker import CONFIG, KEY
from peer.cli.runtimes.wanted import Mirror, Refused, Registry
from shoal.wire.errors import UsageError
from tests.unit.peer.runtime_rig import MIRROR, Files, lost_lines

SITE = """\
{
    "log-driver": "json-file",
    "log-opts": {"max-size": "10m",   "max-file": "3"},
    "storage-driver": "overlay2"
}
"""


def test_a_missing_file_is_made() -> None:
    after, _ = Files().configured(docker.plan, [Registry("docker.io")])
    assert json.loads(after[CONFIG]) == {KEY: [MIRROR.url]}


def test_a_member_is_added_in_the_manner_of_the_file() -> None:
    after, _ = Files({CONFIG: SITE}).configured(docker.plan)
    added = f'"overlay2",\n    "{KEY}": [\n        "{MIRROR.url}"\n    ]\n'
    assert after[CONFIG] == SITE.replace('"overlay2"\n', added)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("{}", f'{{\n  "{KEY}": [\n    "{MIRROR.url}"\n  ]\n}}'),
        ('{"a":1}', f'{{"a":1,"{KEY}":["{MIRROR.url}"]}}'),
        ('{"a": 1, "b": 2}', f'{{"a": 1, "b": 2, "{KEY}": ["{MIRROR.url}"]}}'),
        (f'{{"{KEY}": []}}', f'{{"{KEY}": ["{MIRROR.url}"]}}'),
        (f'{{"{KEY}": ["http://a"]}}', f'{{"{KEY}": ["{MIRROR.url}", "http://a"]}}'),
        (
            f'{{\n\t"{KEY}": [\n\t\t"http://a"\n\t]\n}}\n',
            f'{{\n\t"{KEY}": [\n\t\t"{MIRROR.url}",\n\t\t"http://a"\n\t]\n}}\n',
        ),
        (f'{{"{KEY}": ["{MIRROR.url}/"]}}', f'{{"{KEY}": ["{MIRROR.url}/"]}}'),
    ],
)
def test_the_mirror_comes_first(before: str, after: str) -> None:
    assert docker.config_text(before, MIRROR) == after


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ('{"a": 1,}', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "JSON object"),
        ('{"a": 1, "a": 2}', "twice"),
        (f'{{"{KEY}": "http://a"}}', "list of strings"),
        (f'{{"{KEY}": null}}', "null"),
    ],
)
def test_what_cannot_be_edited_is_refused(before: str, said: str) -> None:
    with pytest.raises(Refused, match=said):
        docker.config_text(before, MIRROR)


def test_docker_has_mirrors_for_its_own_registry_alone() -> None:
    with pytest.raises(UsageError, match=r"docker\.io alone"):
        docker.plan(Files(), MIRROR, [Registry("reg.example")])
    with pytest.raises(UsageError, match="no path"):
        docker.plan(Files(), Mirror("http://a.example/b"), [])


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@given(
    st.dictionaries(st.text(max_size=8), values, max_size=4),
    st.none() | st.lists(st.sampled_from(["http://a", "http://b/"]), unique=True),
    st.sampled_from([None, 0, 1, 2, 4, "\t"]),
    st.sampled_from([(",", ":"), (", ", ": "), (" , ", " : ")]),
    st.booleans(),
    st.sampled_from(["\n", "\r\n"]),
)
def test_any_configuration_keeps_all_it_had(
    said: dict[str, Any],
    mirrors: list[str] | None,
    indent: int | str | None,
    separators: tuple[str, str],
    escaped: bool,
    end: str,
) -> None:
    if mirrors is not None:
        said = {KEY: mirrors, **said}
    text = json.dumps(said, indent=indent, separators=separators, ensure_ascii=escaped)
    text = text.replace("\n", end) + end
    after = docker.config_text(text, MIRROR)
    assert docker.config_text(after, MIRROR) == after
    assert json.loads(after) == {**said, KEY: [MIRROR.url, *said.get(KEY, [])]}
    assert [key for key in json.loads(after) if key in said] == list(said)
    if indent == 4 and said:
        assert len(lost_lines(text, after)) <= 1
