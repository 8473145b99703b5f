"""Edits of registries.conf and its drop-ins."""

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.cli.runtimes import containers
from peer.cli.runtimes.containers import DROP_INS, MAIN, OURS
from peer.cli.runtimes.wanted import EVERY_REGISTRY, Mirror, Refused, Registry
from shoal.wire.errors import UsageError
from tests.unit.peer.runtime_rig import MIRROR, Files, lost_lines

SITE = """\
# For more information see containers-registries.conf(5).
unqualified-search-registries = ["docker.io"]  # as everywhere
short-name-mode = "enforcing"

[[registry]]
location = "reg.example"   # ours

# The second site.
[[registry]]
prefix = "other.example:5000"
location = "other.example:5000/inner"
insecure = true

# Its cache.
[[registry.mirror]]
location = "cache.example"
pull-from-mirror = "digest-only"

[aliases]
"alpine" = "docker.io/library/alpine"
"""

OURS_ENTRY: dict[str, Any] = {"location": "127.0.0.1:4004/reg.example", "insecure": True}


DEDICATED = Mirror("http://127.0.0.1:4010", dedicated=True)


def entries(text: str) -> Any:
    return tomllib.loads(text)["registry"]


def test_a_registry_without_an_entry_gets_a_file_of_ours() -> None:
    before = Files({MAIN: SITE})
    after, _ = before.configured(containers.plan, [Registry("docker.io"), Registry("new.example")])
    assert after[MAIN] == SITE
    assert entries(after[OURS]) == [
        {
            "prefix": name,
            "location": name,
            "mirror": [{"location": f"127.0.0.1:4004/{name}", "insecure": True}],
        }
        for name in ("docker.io", "new.example")
    ]


def test_an_entry_is_edited_where_it_is() -> None:
    after, _ = Files({MAIN: SITE}).configured(containers.plan, [Registry("reg.example")])
    assert list(after) == [MAIN]
    assert entries(after[MAIN])[0] == {"location": "reg.example", "mirror": [OURS_ENTRY]}
    assert not lost_lines(SITE, after[MAIN])


def test_the_mirror_comes_before_other_mirrors() -> None:
    registry = Registry("other.example:5000")
    after, _ = Files({MAIN: SITE}).configured(containers.plan, [registry], DEDICATED)
    mirrors = entries(after[MAIN])[1]["mirror"]
    assert [mirror["location"] for mirror in mirrors] == ["127.0.0.1:4010", "cache.example"]
    assert not lost_lines(SITE, after[MAIN])


def test_the_last_drop_in_counts() -> None:
    late = '[[registry]]\nprefix = "reg.example"\nlocation = "reg.example"\n'
    files = Files({MAIN: SITE, f"{DROP_INS}/99-late.conf": late, f"{DROP_INS}/README": "["})
    after, _ = files.configured(containers.plan, [Registry("reg.example")])
    assert after[MAIN] == SITE
    assert entries(after[f"{DROP_INS}/99-late.conf"])[0]["mirror"] == [OURS_ENTRY]


def test_a_mirror_with_tls_is_not_insecure() -> None:
    after, _ = Files().configured(
        containers.plan, [Registry("reg.example")], Mirror("https://mirror.example/way")
    )
    assert entries(after[OURS])[0]["mirror"] == [{"location": "mirror.example/way/reg.example"}]


def test_a_registry_elsewhere() -> None:
    registry = Registry("models", "http://10.0.0.9:5000")
    after, _ = Files().configured(containers.plan, [registry], DEDICATED)
    assert entries(after[OURS]) == [
        {
            "prefix": "models",
            "location": "10.0.0.9:5000",
            "insecure": True,
            "mirror": [{"location": "127.0.0.1:4010", "insecure": True}],
        }
    ]


@pytest.mark.parametrize(
    "registry", [Registry("reg.example:5000"), Registry("models", "https://reg.example:5000")]
)
def test_a_port_has_no_place_in_the_path_of_a_mirror(registry: Registry) -> None:
    with pytest.raises(UsageError, match=r"mirror\.dedicated"):
        containers.plan(Files(), MIRROR, [registry])


def test_a_mirror_that_lacks_insecure_gets_it() -> None:
    before = (
        '[[registry]]\nlocation = "reg.example"\n[[registry.mirror]]\n'
        'location = "127.0.0.1:4004/reg.example" # by hand\n'
    )
    after = containers.with_mirror(before, MIRROR, Registry("reg.example"), MAIN)
    assert entries(after)[0]["mirror"] == [OURS_ENTRY]
    assert not lost_lines(before, after)


def test_what_the_mirror_does_not_reach_is_told() -> None:
    text = SITE + '[[registry]]\nlocation = "docker.io/team"\n'
    text += '[[registry]]\nlocation = "docker.io"\nblocked = true\n'
    _, plan = Files({MAIN: text}).configured(containers.plan, [Registry("docker.io")])
    assert any("docker.io/team" in note for note in plan.notes)
    assert any("blocks" in note for note in plan.notes)


@pytest.mark.parametrize("registries", [[], [Registry(EVERY_REGISTRY)]])
def test_each_registry_has_to_be_named(registries: list[Registry]) -> None:
    with pytest.raises(UsageError, match="--registry"):
        containers.plan(Files(), MIRROR, registries)


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ("[[registry]\n", "not valid TOML"),
        ("registry = 1\n", "list of tables"),
        ('[[registry]]\nlocation = "a.example"\nmirror = 1\n', "registry.mirror"),
        ('[[registry]]\nprefix = "*.example"\nblocked = true\n', "would replace"),
        ('[registries.insecure]\nregistries = ["reg.example"]\n', "old form"),
        ('registry = [{location = "reg.example"}]\n', "by hand"),
        ('[[registry]]\nlocation = "reg.example"\nmirror = [{location = "a"}]\n', "by hand"),
    ],
)
def test_what_cannot_be_edited_is_refused(before: str, said: str) -> None:
    with pytest.raises(Refused, match=said):
        containers.plan(Files({MAIN: before}), MIRROR, [Registry("reg.example")])


names = st.sampled_from(["a.example", "b.example:5000", "docker.io"])


@st.composite
def configurations(draw: st.DrawFn) -> str:
    """A registries.conf with comments, several entries, and mirrors in some of them."""
    lines = ["# top", 'short-name-mode = "permissive"']
    for name in draw(st.lists(names, unique=True)):
        lines += draw(st.lists(st.sampled_from(["", "# about", "# [[registry]]"]), max_size=2))
        lines += ["[[registry]] # entry", f'location = "{name}"']
        lines += draw(st.lists(st.sampled_from(["", "blocked = false", "# more"]), max_size=1))
        for number in range(draw(st.integers(0, 2))):
            lines += ["  [[registry.mirror]]", f'  location = "cache{number}.example"']
    lines += draw(st.sampled_from([[], ["[aliases]", 'a = "docker.io/a"'], ["# end", ""]]))
    return draw(st.sampled_from(["\n", "\r\n"])).join([*lines, ""])


@given(configurations(), names)
def test_any_configuration_keeps_all_it_had(text: str, name: str) -> None:
    mirror = DEDICATED if ":" in name else MIRROR
    after = containers.with_mirror(text, mirror, Registry(name), MAIN)
    assert containers.with_mirror(after, mirror, Registry(name), MAIN) == after
    assert not lost_lines(text, after)
    said, had = tomllib.loads(after), tomllib.loads(text)
    entry = next(one for one in said["registry"] if containers.prefix_of(one) == name)
    location = containers.location_of(mirror, Registry(name))
    assert entry["mirror"].pop(0)["location"] == location
    if not entry["mirror"]:
        del entry["mirror"]
    if name not in [one["location"] for one in had.get("registry", [])]:
        said["registry"].remove(entry)
        had.setdefault("registry", [])
    assert said == had
