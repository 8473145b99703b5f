"""containerd's configuration: a hosts.toml per registry, and the path where they are looked for.

Decides which files have to say what, on texts alone: never reads or writes a file, never changes
a key that is not about the mirror.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from peer.cli.runtimes import toml_text
from peer.cli.runtimes.wanted import (
    EVERY_REGISTRY,
    Edit,
    Mirror,
    Plan,
    Reader,
    Refused,
    Registry,
)
from shoal.wire.errors import UsageError

CONFIG: Final = "/etc/containerd/config.toml"
HOSTS_ROOT: Final = "/etc/containerd/certs.d"
HEADER: Final = "X-Dragonfly-Registry"
CAPABILITIES: Final = ("pull", "resolve")

PLUGINS: Final = {2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.images"}
"""The plugin that knows registries, by the version of the configuration."""

_CERTIFICATE = re.compile(r".*\.(?:crt|cert|key)")


def plan(reader: Reader, mirror: Mirror, registries: Sequence[Registry]) -> Plan:
    """The edits that send pulls through the mirror. Raises Refused and UsageError."""
    result = Plan()
    before = reader.read(CONFIG)
    result.edits.append(Edit(CONFIG, before, config_text(before)))
    roots = roots_of(result.edits[0].after)
    taken = {root: reader.names(root) for root in roots}
    for registry in registries or [Registry(EVERY_REGISTRY)]:
        folder = folder_of(registry.name, taken)
        path = f"{folder}/hosts.toml"
        hosts = reader.read(path)
        if hosts is None:
            _refuse_lone_certificates(folder, reader.names(folder))
        result.edits.append(Edit(path, hosts, hosts_text(hosts, mirror, registry, path)))
        server = None if hosts is None else toml_text.parse(hosts, path).get("server")
        if hosts is not None and registry.told_url and server != registry.told_url:
            result.notes.append(
                f"{path}: `server` stays {'unset' if server is None else 'as it is'}; that is "
                "where pulls go when the mirror fails"
            )
    if not registries or any(registry.name == EVERY_REGISTRY for registry in registries):
        result.notes += _not_covered(taken, registries)
    if "imports" in toml_text.parse(result.edits[0].after, CONFIG):
        result.notes.append(f"{CONFIG} imports other files: one that sets config_path wins over it")
    return result


def _not_covered(taken: Mapping[str, Iterable[str]], named: Sequence[Registry]) -> list[str]:
    """containerd does not look into `_default` for a registry that has a directory."""
    known = {EVERY_REGISTRY} | {name for registry in named for name in spellings(registry.name)}
    others = sorted({name for names in taken.values() for name in names} - known)
    return [
        f"{name} has a directory of its own, so {EVERY_REGISTRY} does not hold for it: name it "
        "with --registry too"
        for name in others
    ]


def _refuse_lone_certificates(folder: str, names: Iterable[str]) -> None:
    if any(_CERTIFICATE.fullmatch(name) for name in names):
        raise Refused(
            f"{folder} holds certificates and no hosts.toml; containerd would not look at them "
            "any more: write a hosts.toml there with `server`, `ca` and `client` for them, then "
            "run this again"
        )


# ---------------------------------------------------------------- config.toml


def config_text(before: str | None) -> str:
    """The main configuration with a `config_path`; one that has it stays. Raises Refused."""
    said = {} if before is None else toml_text.parse(before, CONFIG)
    version = said.get("version", 2 if not said else 1)
    plugin = PLUGINS.get(version) if isinstance(version, int) else None
    if plugin is None:
        raise Refused(
            f"{CONFIG} is of version {version!r}, and shoal knows 2 and 3: let `containerd config "
            "migrate` write it anew, then run this again"
        )
    block = [
        f'[plugins."{plugin}".registry]',
        f"  config_path = {toml_text.quoted(HOSTS_ROOT)}",
    ]
    if not said:
        return (before or "") + "\n".join(["version = 2", "", *block, ""])
    registry = _table(said, "plugins", plugin, "registry")
    if registry is not None and registry.get("config_path"):
        return before or ""
    _refuse_old_ways(registry or {})
    if registry is not None:
        keys = ("plugins", plugin, "registry", "config_path")
        return toml_text.set_value(before or "", keys, HOSTS_ROOT, CONFIG)
    wanted = toml_text.parse(before or "", CONFIG)
    plugins = wanted.setdefault("plugins", {})
    plugins.setdefault(plugin, {})["registry"] = {"config_path": HOSTS_ROOT}
    return toml_text.insert(before or "", block, wanted.__eq__, CONFIG, at_end=True)


def _refuse_old_ways(registry: Mapping[str, Any]) -> None:
    """containerd does not start with `config_path` beside what it replaces."""
    configs = registry.get("configs") or {}
    old = ["registry.mirrors"] if registry.get("mirrors") else []
    old += [f"registry.configs.{name}.tls" for name, value in configs.items() if "tls" in value]
    if old:
        raise Refused(
            f"{CONFIG} has {', '.join(old)}, which containerd does not take beside config_path: "
            f"move that into hosts.toml files below {HOSTS_ROOT}, then run this again"
        )


def roots_of(config: str) -> list[str]:
    """The directories where containerd looks for hosts.toml, in its order. Raises Refused."""
    said = toml_text.parse(config, CONFIG)
    path = _table(said, "plugins", PLUGINS[said["version"]], "registry") or {}
    roots = [root.rstrip("/") for root in str(path["config_path"]).split(":") if root]
    if not roots or not all(root.startswith("/") for root in roots):
        raise Refused(f"{CONFIG}: config_path has to be absolute paths, like {HOSTS_ROOT}")
    return roots


def _table(said: Mapping[str, Any], *keys: str) -> Mapping[str, Any] | None:
    found: Any = said
    for at, key in enumerate(keys):
        found = found.get(key)
        if found is None:
            return None
        if not isinstance(found, dict):
            raise Refused(f"{CONFIG}: {'.'.join(keys[: at + 1])} is no table: mend it first")
    table: Mapping[str, Any] = found
    return table


# ---------------------------------------------------------------- hosts.toml


def spellings(name: str) -> list[str]:
    """The names of a registry's directory, in the order in which containerd tries them."""
    host, colon, port = name.rpartition(":")
    return [f"{host}_{port}_", name] if colon and port.isdigit() else [name]


def folder_of(name: str, taken: Mapping[str, Iterable[str]]) -> str:
    """The directory that containerd reads for a registry: the first one that is there, or a new
    one in the first root."""
    for root, names in taken.items():
        for spelling in spellings(name):
            if spelling in names:
                return f"{root}/{spelling}"
    return f"{next(iter(taken))}/{name}"


def hosts_text(before: str | None, mirror: Mirror, registry: Registry, path: str) -> str:
    """A registry's hosts.toml with the mirror before all other hosts. Raises Refused."""
    said = {} if before is None else toml_text.parse(before, path)
    hosts = said.get("host", {})
    if not isinstance(hosts, dict) or not all(isinstance(host, dict) for host in hosts.values()):
        raise Refused(f"{path}: `host` has to be a table of tables: mend it first")
    upstream = None
    if registry.name != EVERY_REGISTRY:
        upstream = registry.told_url or said.get("server") or registry.url
        if not isinstance(upstream, str):
            raise Refused(f"{path}: `server` is no string: mend it first")
        if upstream.rstrip("/") == mirror.url:
            raise UsageError(
                f"{path}: its `server` is the mirror itself: tell what is behind it with "
                f"--registry {registry.name}=URL"
            )
    url = next((key for key in hosts if key.rstrip("/") == mirror.url), None)
    if url is not None:
        return _host_changed(before or "", url, hosts[url], upstream, path)
    block, table = _host_block(mirror.url, upstream)
    if before is None:
        server = [] if upstream is None else [f"server = {toml_text.quoted(registry.url)}", ""]
        return "\n".join([*server, *block, ""])
    wanted = {**said, "host": {mirror.url: table, **hosts}}

    def fits(result: dict[str, Any]) -> bool:
        return result == wanted and next(iter(result["host"])) == mirror.url

    return toml_text.insert(before, block, fits, path)


def _host_block(url: str, upstream: str | None) -> tuple[list[str], dict[str, Any]]:
    name = f"host.{toml_text.quoted(url)}"
    shown = ", ".join(map(toml_text.quoted, CAPABILITIES))
    lines = [f"[{name}]", f"  capabilities = [{shown}]"]
    table: dict[str, Any] = {"capabilities": list(CAPABILITIES)}
    if upstream is not None:
        lines += ["", f"  [{name}.header]", f"    {HEADER} = {toml_text.quoted(upstream)}"]
        table["header"] = {HEADER: upstream}
    return lines, table


def _host_changed(
    text: str, url: str, host: Mapping[str, Any], upstream: str | None, path: str
) -> str:
    """The text with what the mirror's table lacks; no capability is taken away."""
    held = host.get("capabilities")
    # Without the key a host has every capability.
    if isinstance(held, list) and not set(CAPABILITIES) <= set(held):
        lacking = [name for name in CAPABILITIES if name not in held]
        text = toml_text.set_value(text, ("host", url, "capabilities"), held + lacking, path)
    if upstream is None:
        return text
    headers = host.get("header")
    if headers is None:
        wanted = toml_text.parse(text, path)
        wanted["host"][url]["header"] = {HEADER: upstream}
        name = f"host.{toml_text.quoted(url)}.header"
        block = [f"[{name}]", f"  {HEADER} = {toml_text.quoted(upstream)}"]
        return toml_text.insert(text, block, wanted.__eq__, path)
    key = next((key for key in headers if key.lower() == HEADER.lower()), HEADER)
    if headers.get(key) in (upstream, [upstream]):
        return text
    return toml_text.set_value(text, ("host", url, "header", key), upstream, path)
