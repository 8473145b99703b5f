"""Typed configuration: a TOML file, then the environment, then flags; the later one wins.

A configuration is a frozen dataclass whose fields are options (see `option`) or sections (frozen
dataclasses again). Everything that can be said about an option stands at its field, so that
loading, `--help`, the reference page and `--check-config` cannot disagree. Unknown keys, wrong
types and values out of range are errors that name the option, the place and what is legal; all of
them are told at once. Knows no option itself and reads no secret.
"""

import dataclasses
import difflib
import re
import tomllib
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol, TypeVar

from shoal.runtime.config_values import Kind, SecretFile, kind_of, toml_value
from shoal.wire.errors import UsageError

CONFIG_FILE_BYTES_MAX: Final = 1024 * 1024
"""A larger file is not a configuration."""

# What container platforms put into the environment of a process next to a service whose name is
# the prefix. They are not options that somebody mistyped.
_SERVICE_LINK: Final = re.compile(r"(SERVICE_(HOST|PORT\w*)|PORT(_\d+_(TCP|UDP|SCTP)\w*)?)")
_FILE_OPTION: Final = "CONFIG"
"""`<prefix>_CONFIG` names the file itself; the command line reads it."""


class ConfigError(UsageError):
    """A configuration that cannot be used; one line per problem."""


class Configuration(Protocol):
    """What `load` builds: a frozen dataclass with the prefix of its environment names."""

    environment_prefix: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Any]]


C = TypeVar("C", bound=Configuration)


def option(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    unit: str = "",
    minimum: int | None = None,
    maximum: int | None = None,
    factory: Callable[[], Any] | None = None,
    default_text: str = "",
) -> Any:
    """A field of a configuration. `minimum` and `maximum` bound numbers (bytes, nanoseconds).
    `factory` computes a default that depends on the machine, described by `default_text`."""
    metadata = {
        "help": help,
        "unit": unit,
        "minimum": minimum,
        "maximum": maximum,
        "default_text": default_text,
    }
    if factory is not None:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def section(config_type: type[Any]) -> Any:
    """A field of a configuration that holds a section with all its defaults."""
    return dataclasses.field(default_factory=config_type)


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a configuration type, as tools for people need it."""

    key: str
    """`section.name`, as in TOML and flags."""
    environment_name: str
    kind: Kind
    help: str
    unit: str
    minimum: int | None
    maximum: int | None
    default: Any
    default_text: str

    @property
    def legal(self) -> str:
        """What may be written, for people."""
        bounds = []
        if self.minimum is not None:
            bounds.append(f"at least {self._shown(self.minimum)}")
        if self.maximum is not None:
            bounds.append(f"at most {self._shown(self.maximum)}")
        return ", ".join([self.kind.legal, *bounds])

    def _shown(self, bound: int) -> str:
        return self.kind.to_text(self.kind.of_number(bound))


def options(config_type: type[Configuration]) -> tuple[Option, ...]:
    """Every option of a configuration type, in the order of its fields."""
    return tuple(_options(config_type, "", config_type.environment_prefix))


def load(
    config_type: type[C],
    toml_path: Path | None,
    environ: Mapping[str, str],
    overrides: Mapping[str, str],
) -> C:
    """Builds a configuration from its defaults, a TOML file, the environment and flags, the later
    ones winning. `overrides` maps `section.name` to the text of a flag.

    A section or configuration may have a method `check()` that raises UsageError. Raises
    ConfigError with every problem found.
    """
    known = {entry.key: entry for entry in options(config_type)}
    problems: list[str] = []
    values: dict[str, Any] = {}
    for layer in (
        _from_file(toml_path, known, problems),
        _from_environment(config_type.environment_prefix, environ, known, problems),
        _from_flags(overrides, known, problems),
    ):
        for entry, place, read in layer:
            try:
                value = read()
                _check_bounds(entry, value)
            except UsageError as error:
                problems.append(f"{place}: {error} (legal: {entry.legal})")
            else:
                values[entry.key] = value
    if problems:
        raise ConfigError("\n".join(problems))
    return typing.cast("C", _build(config_type, "", values))


def reference(config_type: type[Configuration]) -> str:
    """A Markdown table of every option: for the reference page and for `--help`."""
    lines = [
        "| Option | Legal | Default | Meaning | Environment |",
        "|---|---|---|---|---|",
    ]
    for entry in options(config_type):
        unit = f" Unit: {entry.unit}." if entry.unit else ""
        cells = (
            f"`{entry.key}`",
            entry.legal,
            entry.default_text or f"`{toml_value(entry.kind, entry.default)}`",
            entry.help + unit,
            f"`{entry.environment_name}`",
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def dump(instance: Configuration) -> str:
    """A configuration as TOML that `load` reads back. Of a secret it shows the file's path."""
    top: list[str] = []
    sections: list[str] = []
    _dump(instance, "", top, sections)
    return "\n".join([*top, *sections]).strip() + "\n"


# ---------------------------------------------------------------- walking the types


def _options(config_type: type[Any], prefix: str, environment: str) -> Iterator[Option]:
    hints = typing.get_type_hints(config_type)
    for field in dataclasses.fields(config_type):
        annotation = hints[field.name]
        key = prefix + field.name
        name = f"{environment}_{field.name.upper()}"
        if dataclasses.is_dataclass(annotation) and "help" not in field.metadata:
            yield from _options(typing.cast("type[Any]", annotation), key + ".", name)
            continue
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        else:
            default = field.default
        yield Option(
            key=key, environment_name=name, kind=kind_of(annotation), default=default,
            **field.metadata,
        )  # fmt: skip


def _build(config_type: type[Any], prefix: str, values: Mapping[str, Any]) -> Any:
    arguments: dict[str, Any] = {}
    hints = typing.get_type_hints(config_type)
    for field in dataclasses.fields(config_type):
        key = prefix + field.name
        if "help" not in field.metadata:
            arguments[field.name] = _build(hints[field.name], key + ".", values)
        elif key in values:
            arguments[field.name] = values[key]
    built = config_type(**arguments)
    check = getattr(built, "check", None)
    if check is not None:
        try:
            check()
        except ConfigError:
            raise
        except UsageError as error:
            where = f"[{prefix.rstrip('.')}] " if prefix else ""
            raise ConfigError(where + str(error)) from None
    return built


def _dump(instance: Any, prefix: str, top: list[str], sections: list[str]) -> None:
    hints = typing.get_type_hints(type(instance))
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if "help" not in field.metadata:
            lines: list[str] = []
            _dump(value, prefix + field.name + ".", lines, sections)
            sections.append(f"\n[{prefix}{field.name}]\n" + "\n".join(lines))
            continue
        if value is None:
            top.append(f'{field.name} = ""')
        else:
            top.append(f"{field.name} = {toml_value(kind_of(hints[field.name]), value)}")


# ---------------------------------------------------------------- layers

_Layer = Iterator[tuple[Option, str, Callable[[], Any]]]


def _from_file(path: Path | None, known: Mapping[str, Option], problems: list[str]) -> _Layer:
    if path is None:
        return
    try:
        with path.open("rb") as file:
            content = file.read(CONFIG_FILE_BYTES_MAX + 1)
        if len(content) > CONFIG_FILE_BYTES_MAX:
            raise ConfigError(f"{path}: more than {CONFIG_FILE_BYTES_MAX} bytes")
        document = tomllib.loads(content.decode())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    sections = {key.rpartition(".")[0] for key in known} - {""}
    for key, value in _leaves(document, "", sections):
        entry = known.get(key)
        place = f"{path}:{key}"
        if entry is not None:
            yield entry, place, _reader(entry, value, path.parent)
        elif key in sections:
            problems.append(f"{place}: is a section: write [{key}] and its options below")
        else:
            problems.append(f"{place}: unknown option{_nearest(key, [*known, *sections])}")


def _reader(entry: Option, value: Any, directory: Path) -> Callable[[], Any]:
    """Reads a value of a file; paths in it are meant from the file's own directory."""

    def read() -> Any:
        result = entry.kind.from_toml(value)
        if isinstance(result, SecretFile):
            return SecretFile(directory / result.path)
        return directory / result if isinstance(result, Path) else result

    return read


def _leaves(table: Mapping[str, Any], prefix: str, sections: set[str]) -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        key = prefix + name
        if isinstance(value, dict) and key in sections:
            yield from _leaves(value, key + ".", sections)
        else:
            yield key, value


def _from_environment(
    prefix: str, environ: Mapping[str, str], known: Mapping[str, Option], problems: list[str]
) -> _Layer:
    by_name = {entry.environment_name: entry for entry in known.values()}
    for name in sorted(environ):
        if not name.startswith(prefix + "_"):
            continue
        rest = name.removeprefix(prefix + "_")
        entry = by_name.get(name)
        place = f"environment {name}"
        if entry is not None:
            yield entry, place, _text_reader(entry, environ[name])
        elif rest != _FILE_OPTION and not _SERVICE_LINK.fullmatch(rest):
            problems.append(f"{place}: unknown option{_nearest(name, list(by_name))}")


def _from_flags(
    overrides: Mapping[str, str], known: Mapping[str, Option], problems: list[str]
) -> _Layer:
    for key, text in overrides.items():
        entry = known.get(key)
        place = f"flag {key}"
        if entry is None:
            problems.append(f"{place}: unknown option{_nearest(key, list(known))}")
        else:
            yield entry, place, _text_reader(entry, text)


def _text_reader(entry: Option, text: str) -> Callable[[], Any]:
    return lambda: entry.kind.from_text(text)


def _nearest(name: str, candidates: list[str]) -> str:
    near = difflib.get_close_matches(name, candidates, n=1, cutoff=0.5)
    return f", did you mean {near[0]}?" if near else ""


def _check_bounds(entry: Option, value: Any) -> None:
    if value is None or (entry.minimum is None and entry.maximum is None):
        return
    number = value if isinstance(value, int) else value.nanoseconds
    low = entry.minimum is not None and number < entry.minimum
    high = entry.maximum is not None and number > entry.maximum
    if low or high:
        raise UsageError(f"{entry.kind.to_text(value)} is out of range")
