"""registries.conf, which CRI-O, podman, buildah and skopeo share: a mirror before each registry.

Decides which files have to say what, on texts alone: never reads or writes a file, never changes
a key that is not about the mirror.
"""

import copy
from collections.abc import Sequence
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

MAIN: Final = "/etc/containers/registries.conf"
DROP_INS: Final = "/etc/containers/registries.conf.d"
OURS: Final = f"{DROP_INS}/50-shoal.conf"


def plan(reader: Reader, mirror: Mirror, registries: Sequence[Registry]) -> Plan:
    """The edits that send pulls through the mirror. Raises Refused and UsageError.

    Of all entries for one registry the last file's replaces the others; so an entry that is there
    is edited where it is, and only a registry without one goes into a file of our own.
    """
    if not registries or any(registry.name == EVERY_REGISTRY for registry in registries):
        raise UsageError(
            "these runtimes have no mirror for all registries at once: name each one, for example "
            "--registry docker.io"
        )
    names = [name for name in reader.names(DROP_INS) if name.endswith(".conf")]
    paths = [MAIN, *(f"{DROP_INS}/{name}" for name in sorted(names))]
    befores = {path: reader.read(path) for path in paths}
    texts = {path: text for path, text in befores.items() if text is not None}
    result = Plan()
    changed: list[str] = []
    for registry in registries:
        path = _holder(texts, registry) or OURS
        if path not in changed:
            changed.append(path)
        texts[path] = with_mirror(texts.get(path), mirror, registry, path)
        result.notes += _notes(texts, registry, path)
    result.edits = [Edit(path, befores.get(path), texts[path]) for path in changed]
    return result


def _holder(texts: dict[str, str], registry: Registry) -> str | None:
    """The file whose entry for the registry counts. Raises Refused where an entry for more than
    this registry would be hidden by one of its own."""
    holder = wide = None
    for path, text in texts.items():
        said = toml_text.parse(text, path)
        if _named_in_version_1(said, registry.name):
            raise Refused(
                f"{path} names {registry.name} in the old form ([registries.insecure] or "
                "[registries.block]): write it as a [[registry]] entry, then run this again"
            )
        for entry in entries_of(said, path):
            prefix = prefix_of(entry)
            if prefix == registry.name:
                holder = path
            elif prefix.startswith("*.") and registry.name.endswith(prefix[1:]):
                wide = f"{path} has an entry for {prefix}"
    if holder is None and wide is not None:
        raise Refused(
            f"{wide}, which an entry for {registry.name} would replace: write a [[registry]] entry "
            f"for {registry.name} with what it should keep of that one, then run this again"
        )
    return holder


def _named_in_version_1(said: dict[str, Any], name: str) -> bool:
    lists = said.get("registries")
    if not isinstance(lists, dict):
        return False
    tables = [lists.get("insecure"), lists.get("block")]
    return any(isinstance(table, dict) and name in table.get("registries", []) for table in tables)


def _notes(texts: dict[str, str], registry: Registry, holder: str) -> list[str]:
    notes = []
    for path, text in texts.items():
        for entry in entries_of(toml_text.parse(text, path), path):
            prefix = prefix_of(entry)
            if prefix.startswith(f"{registry.name}/"):
                notes.append(f"{path} has an entry for {prefix}, which does not use the mirror")
            elif prefix == registry.name and path == holder and entry.get("blocked"):
                notes.append(f"{path} blocks {prefix}: it is pulled from nowhere, a mirror or not")
    return notes


def entries_of(said: dict[str, Any], path: str) -> list[dict[str, Any]]:
    """The `[[registry]]` entries of a file. Raises Refused if they are none."""
    entries = said.get("registry", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise Refused(f"{path}: `registry` has to be a list of tables, [[registry]]: mend it first")
    for entry in entries:
        mirrors = entry.get("mirror", [])
        if not isinstance(mirrors, list) or not all(isinstance(item, dict) for item in mirrors):
            raise Refused(f"{path}: `mirror` has to be [[registry.mirror]]: mend it first")
    return entries


def prefix_of(entry: dict[str, Any]) -> str:
    """Which images an entry is for."""
    return str(entry.get("prefix") or entry.get("location") or "")


def place_of(registry: Registry) -> str:
    """Where the registry is, in the words of registries.conf: without a scheme."""
    return registry.name if registry.told_url is None else registry.url.partition("://")[2]


def location_of(mirror: Mirror, registry: Registry) -> str:
    """What stands in place of the registry's name. Raises UsageError."""
    if mirror.dedicated:
        return mirror.place
    # One listener for all registries: the path says which one is meant. A path has no place for a
    # port, and these runtimes would pull nothing of that registry any more, not even from itself.
    place = place_of(registry)
    if ":" in place:
        raise UsageError(
            f"these runtimes cannot name {place} in a mirror's path, because of its port: give it "
            f"a listener of its own in the daemon's configuration, such as mirror.dedicated = "
            f'["127.0.0.1:4010={place}"], and run this with --dedicated and --mirror '
            "http://127.0.0.1:4010"
        )
    return f"{mirror.place}/{place}"


def with_mirror(before: str | None, mirror: Mirror, registry: Registry, path: str) -> str:
    """A file with the mirror first in the registry's entry, which is made if there is none. Raises
    Refused."""
    text = before or ""
    said = toml_text.parse(text, path)
    entries = entries_of(said, path)
    wanted_mirror: dict[str, Any] = {"location": location_of(mirror, registry)}
    if mirror.plain:
        wanted_mirror["insecure"] = True
    at = next((at for at, entry in enumerate(entries) if prefix_of(entry) == registry.name), None)
    if at is None:
        return _with_entry(text, said, registry, wanted_mirror, path)
    mirrors = entries[at].get("mirror", [])
    for number, held in enumerate(mirrors):
        if held.get("location") == wanted_mirror["location"]:
            if bool(held.get("insecure", False)) == mirror.plain:
                return text
            keys = ("registry", at, "mirror", number, "insecure")
            return toml_text.set_value(text, keys, mirror.plain, path)
    wanted = copy.deepcopy(said)
    wanted["registry"][at]["mirror"] = [wanted_mirror, *mirrors]
    return toml_text.insert(text, _block("registry.mirror", wanted_mirror), wanted.__eq__, path)


def _with_entry(
    text: str, said: dict[str, Any], registry: Registry, mirror: dict[str, Any], path: str
) -> str:
    entry: dict[str, Any] = {"prefix": registry.name, "location": place_of(registry)}
    if registry.url.startswith("http:"):
        entry["insecure"] = True
    comment = (
        f"# Pulls of {registry.name} go through shoal; where that fails, to the registry itself."
    )
    block = [comment, *_block("registry", entry), "", *_block("registry.mirror", mirror)]
    entries = [*said.get("registry", []), {**entry, "mirror": [mirror]}]
    wanted = {**said, "registry": entries}
    return toml_text.insert(text, block, wanted.__eq__, path, at_end=True)


def _block(table: str, values: dict[str, Any]) -> list[str]:
    shown = {
        key: "true" if value is True else toml_text.quoted(value) for key, value in values.items()
    }
    return [f"[[{table}]]", *(f"{key} = {value}" for key, value in shown.items())]
