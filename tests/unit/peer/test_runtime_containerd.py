"""Edits of containerd's config.toml and hosts.toml."""

import copy
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.cli.runtimes import containerd
from peer.cli.runtimes.containerd import CONFIG, HOSTS_ROOT, PLUGINS
from peer.cli.runtimes.wanted import EVERY_REGISTRY, Mirror, Refused, Registry
from shoal.wire.errors import UsageError
from tests.unit.peer.runtime_rig import MIRROR, Files, lost_lines, new_lines

VERSION_2 = """\
# Written by the site's installer; do not reorder.
version = 2
root = "/var/lib/containerd"   # on the big disk
oom_score = -999

[grpc]
  address = "/run/containerd/containerd.sock"

[plugins]

  [plugins."io.containerd.gc.v1.scheduler"]
    pause_threshold = 0.02

  [plugins."io.containerd.grpc.v1.cri"]
    sandbox_image = "registry.k8s.io/pause:3.9"

    [plugins."io.containerd.grpc.v1.cri".containerd]
      default_runtime_name = "runc"

      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
        runtime_type = "io.containerd.runc.v2"

        [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
          SystemdCgroup = true # as the kubelet

    [plugins."io.containerd.grpc.v1.cri".registry]
      config_path = "" # nothing yet

      [plugins."io.containerd.grpc.v1.cri".registry.auths]

      [plugins."io.containerd.grpc.v1.cri".registry.headers]

[timeouts]
  "io.containerd.timeout.shim.load" = "5s"

[plugins."io.containerd.internal.v1.opt"]
  path = "/opt/containerd"
"""

VERSION_3 = """\
version = 3
disabled_plugins = []

[plugins]
  [plugins.'io.containerd.cri.v1.images']
    snapshotter = "overlayfs"

    [plugins.'io.containerd.cri.v1.images'.pinned_images]
      sandbox = "registry.k8s.io/pause:3.10"

  [plugins.'io.containerd.cri.v1.runtime']
    enable_selinux = false
"""

HOSTS = """\
# The site's cache, see the wiki.
server = "https://reg.example"

[header]
  X-Site = "a"

# nearest first
[host."https://cache.example"]
  capabilities = ["pull"]  # no resolve: it is slow
  ca = "/etc/certs/cache.pem"

  [host."https://cache.example".header]
    X-Token = ["one", "two"]
"""


def hosts_path(name: str, root: str = HOSTS_ROOT) -> str:
    return f"{root}/{name}/hosts.toml"


def config_path_of(text: str) -> Any:
    said = tomllib.loads(text)
    return said["plugins"][PLUGINS[said["version"]]]["registry"]["config_path"]


# ---------------------------------------------------------------- config.toml


def test_a_missing_configuration_is_made() -> None:
    after, _ = Files().configured(containerd.plan)
    assert config_path_of(after[CONFIG]) == HOSTS_ROOT
    assert tomllib.loads(after[CONFIG])["version"] == 2


def test_an_empty_config_path_is_set_and_its_comment_stays() -> None:
    after = containerd.config_text(VERSION_2)
    assert config_path_of(after) == HOSTS_ROOT
    assert lost_lines(VERSION_2, after) == ['      config_path = "" # nothing yet']
    assert new_lines(VERSION_2, after) == [f'      config_path = "{HOSTS_ROOT}" # nothing yet']


def test_version_3_has_another_plugin() -> None:
    after = containerd.config_text(VERSION_3)
    assert config_path_of(after) == HOSTS_ROOT
    assert after.startswith(VERSION_3)


def test_a_registry_table_without_the_path_gets_it() -> None:
    before = VERSION_2.replace('      config_path = "" # nothing yet\n', "")
    after = containerd.config_text(before)
    assert config_path_of(after) == HOSTS_ROOT
    assert not lost_lines(before, after)
    assert len(new_lines(before, after)) == 1


def test_a_path_that_is_set_stays_and_is_used() -> None:
    before = VERSION_2.replace('""', '"/etc/site/certs:/etc/docker/certs.d"')
    files = Files({CONFIG: before, "/etc/docker/certs.d/reg.example/hosts.toml": HOSTS})
    after, _ = files.configured(
        containerd.plan, [Registry("reg.example"), Registry("other.example")]
    )
    assert after[CONFIG] == before
    assert MIRROR.url in after["/etc/docker/certs.d/reg.example/hosts.toml"]
    assert hosts_path("other.example", "/etc/site/certs") in after


def test_comments_alone_are_an_empty_configuration() -> None:
    after = containerd.config_text("# nothing here\n")
    assert after.startswith("# nothing here\n")
    assert config_path_of(after) == HOSTS_ROOT


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ("version = 2\n[plugins\n", "not valid TOML"),
        ('disabled_plugins = ["cri"]\n', "config migrate"),
        ("version = 4\n", "version 4"),
        ("version = 2\nplugins = 1\n", "no table"),
        (
            'version = 2\n[plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]\n'
            'endpoint = ["https://cache.example"]\n',
            "registry.mirrors",
        ),
        (
            'version = 2\n[plugins."io.containerd.grpc.v1.cri".registry.configs."a.example".tls]\n'
            'ca_file = "a"\n',
            "registry.configs.a.example.tls",
        ),
        ('version = 2\nplugins = {"io.containerd.grpc.v1.cri" = {}}\n', "by hand"),
    ],
)
def test_a_configuration_that_cannot_be_edited_is_refused(before: str, said: str) -> None:
    with pytest.raises(Refused, match=said) as refused:
        containerd.config_text(before)
    assert CONFIG in str(refused.value)


def test_imports_are_told() -> None:
    files = Files({CONFIG: 'imports = ["/etc/containerd/conf.d/*.toml"]\n' + VERSION_2})
    _, plan = files.configured(containerd.plan)
    assert any("imports" in note for note in plan.notes)


# ---------------------------------------------------------------- hosts.toml


def test_all_registries_have_no_header_and_no_server() -> None:
    after, _ = Files().configured(containerd.plan)
    assert tomllib.loads(after[hosts_path(EVERY_REGISTRY)]) == {
        "host": {MIRROR.url: {"capabilities": ["pull", "resolve"]}}
    }


@pytest.mark.parametrize(
    ("registry", "upstream"),
    [
        (Registry("reg.example"), "https://reg.example"),
        (Registry("docker.io"), "https://registry-1.docker.io"),
        (Registry("localhost:5000"), "http://localhost:5000"),
        (Registry("models", "http://10.0.0.9:5000"), "http://10.0.0.9:5000"),
    ],
)
def test_a_named_registry_is_told_in_a_header(registry: Registry, upstream: str) -> None:
    after, _ = Files().configured(containerd.plan, [registry])
    assert tomllib.loads(after[hosts_path(registry.name)]) == {
        "server": upstream,
        "host": {
            MIRROR.url: {
                "capabilities": ["pull", "resolve"],
                "header": {"X-Dragonfly-Registry": upstream},
            }
        },
    }
    assert hosts_path(EVERY_REGISTRY) not in after


def test_the_mirror_comes_before_other_hosts_and_nothing_else_changes() -> None:
    after, _ = Files({hosts_path("reg.example"): HOSTS}).configured(
        containerd.plan, [Registry("reg.example")]
    )
    text = after[hosts_path("reg.example")]
    said = tomllib.loads(text)
    assert list(said["host"]) == [MIRROR.url, "https://cache.example"]
    assert not lost_lines(HOSTS, text)
    del said["host"][MIRROR.url]
    assert said == tomllib.loads(HOSTS)


def test_the_server_of_a_file_is_what_the_header_says() -> None:
    before = 'server = "https://inner.example:5000"\n'
    files = Files({hosts_path("reg.example"): before})
    after, plan = files.configured(containerd.plan, [Registry("reg.example")])
    said = tomllib.loads(after[hosts_path("reg.example")])
    header = said["host"][MIRROR.url]["header"]
    assert header == {"X-Dragonfly-Registry": "https://inner.example:5000"}
    assert not plan.notes
    told = Registry("reg.example", "https://far.example")
    after, plan = files.configured(containerd.plan, [told])
    assert tomllib.loads(after[hosts_path("reg.example")])["server"] == "https://inner.example:5000"
    assert any("`server` stays" in note for note in plan.notes)


def test_a_mirror_that_is_there_gets_what_it_lacks() -> None:
    before = (
        f'server = "https://reg.example"\n[host."{MIRROR.url}/"]\n'
        'capabilities = ["push"] # ours\n[host."https://b.example"]\n'
    )
    files = Files({hosts_path("reg.example"): before})
    after, _ = files.configured(containerd.plan, [Registry("reg.example")])
    host = tomllib.loads(after[hosts_path("reg.example")])["host"][MIRROR.url + "/"]
    assert host == {
        "capabilities": ["push", "pull", "resolve"],
        "header": {"X-Dragonfly-Registry": "https://reg.example"},
    }
    assert "# ours" in after[hosts_path("reg.example")]


def test_a_header_with_another_registry_is_mended() -> None:
    before = (
        f'[host."{MIRROR.url}"]\n[host."{MIRROR.url}".header]\n'
        'x-dragonfly-registry = ["https://old.example"]\nX-Other = "kept"\n'
    )
    files = Files({hosts_path("reg.example"): before})
    after, _ = files.configured(containerd.plan, [Registry("reg.example")])
    assert tomllib.loads(after[hosts_path("reg.example")])["host"][MIRROR.url]["header"] == {
        "x-dragonfly-registry": "https://reg.example",
        "X-Other": "kept",
    }


@pytest.mark.parametrize("taken", ["reg.example:5000", "reg.example_5000_"])
def test_both_spellings_of_a_port_are_known(taken: str) -> None:
    files = Files({hosts_path(taken): 'server = "https://reg.example:5000"\n'})
    after, _ = files.configured(containerd.plan, [Registry("reg.example:5000")])
    assert MIRROR.url in after[hosts_path(taken)]
    assert len(after) == 2


def test_the_spelling_that_containerd_tries_first_wins() -> None:
    both = ["reg.example:5000", "reg.example_5000_"]
    assert containerd.folder_of("reg.example:5000", {"/a": both}) == "/a/reg.example_5000_"
    assert containerd.folder_of("reg.example:5000", {"/a": []}) == "/a/reg.example:5000"


def test_registries_with_a_directory_are_named_when_all_are_meant() -> None:
    files = Files({hosts_path("reg.example"): HOSTS})
    _, plan = files.configured(containerd.plan)
    assert any("reg.example" in note and "--registry" in note for note in plan.notes)


def test_certificates_without_hosts_are_not_hidden() -> None:
    files = Files({f"{HOSTS_ROOT}/reg.example/ca.crt": "certificate"})
    with pytest.raises(Refused, match="certificates"):
        containerd.plan(files, MIRROR, [Registry("reg.example")])


@pytest.mark.parametrize(
    ("before", "error", "said"),
    [
        ("server = \n", Refused, "not valid TOML"),
        ("host = 1\n", Refused, "table of tables"),
        ("server = 1\n", Refused, "no string"),
        (f'server = "{MIRROR.url}/"\n', UsageError, "the mirror itself"),
        ('host = {"https://a.example" = {}}\n', Refused, "by hand"),
    ],
)
def test_hosts_that_cannot_be_edited_are_refused(
    before: str, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        containerd.hosts_text(before, MIRROR, Registry("reg.example"), "hosts.toml")


# ---------------------------------------------------------------- properties

names = st.from_regex(r"[a-z]{1,6}\.example(:[1-9][0-9]{3})?", fullmatch=True)
comments = st.from_regex(r"# [a-z \[\]\"=]{0,12}", fullmatch=True)
values = st.one_of(
    st.integers(-5, 5).map(str), st.booleans().map(lambda value: str(value).lower()),
    st.sampled_from(['"a"', "'b'", '["x", # one\n  "y"]', '"""\n[host."z"]\nserver = 1\n"""']),
)  # fmt: skip


@st.composite
def tables(draw: st.DrawFn, headers: list[str], top: str) -> str:
    """A TOML text with the tables in any order, comments, blank lines and some values in each."""
    indent = draw(st.sampled_from(["", "  ", "\t"]))
    lines = [draw(comments), top]
    for header in draw(st.permutations(headers)):
        lines += draw(st.lists(st.one_of(st.just(""), comments), max_size=2))
        lines.append(f"{indent}[{header}]{draw(st.sampled_from(['', ' # here']))}")
        for number in range(draw(st.integers(0, 3))):
            lines.append(f"{indent}key{number} = {draw(values)}")
    text = draw(st.sampled_from(["\n", "\r\n"])).join(lines)
    return text + draw(st.sampled_from(["", "\n", "\n\n"])) if "\r" not in text else text + "\r\n"


PLUGIN = f'plugins."{PLUGINS[2]}"'


@given(
    tables(
        ["grpc", PLUGIN, f"{PLUGIN}.containerd", 'plugins."io.containerd.x"', "timeouts"],
        "version = 2",
    ),
    st.sampled_from(["none", "table", "empty"]),
)
def test_any_configuration_keeps_all_but_the_path(text: str, registry: str) -> None:
    end = "\r\n" if "\r\n" in text else "\n"
    if registry != "none":
        text += end + f"[{PLUGIN}.registry] # ours{end}other = 1{end}"
        text += f'config_path = ""{end}' if registry == "empty" else ""
        text += f"[{PLUGIN}.registry.auths]{end}a = 1{end}[debug]{end}"
    after = containerd.config_text(text)
    assert containerd.config_text(after) == after
    wanted = copy.deepcopy(tomllib.loads(text))
    table = wanted["plugins"][PLUGINS[2]].setdefault("registry", {})
    table["config_path"] = HOSTS_ROOT
    assert tomllib.loads(after) == wanted
    assert len(lost_lines(text, after)) <= (registry == "empty")


@given(
    st.lists(names, min_size=1, max_size=3, unique=True).flatmap(
        lambda hosts: tables(
            ["header", *(f'host."https://{host}"' for host in hosts)],
            'server = "https://a.example"',
        )
    ),
    names,
    st.sampled_from([MIRROR, Mirror("https://[::1]:4001/path")]),
)
def test_any_hosts_keep_all_and_come_after_the_mirror(text: str, name: str, mirror: Mirror) -> None:
    registry = Registry(name)
    after = containerd.hosts_text(text, mirror, registry, "hosts.toml")
    assert containerd.hosts_text(after, mirror, registry, "hosts.toml") == after
    said = tomllib.loads(after)
    assert next(iter(said["host"])) == mirror.url
    del said["host"][mirror.url]
    assert said == tomllib.loads(text)
    assert not lost_lines(text, after)
