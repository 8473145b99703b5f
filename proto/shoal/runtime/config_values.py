"""Values of configuration options: how people write them, and how they are read and printed.

Sizes (`256MiB`, `25MB`), rates (the same per second), durations (`250ms`), network endpoints and
secret files. Each type of value has one `Kind` that knows what is legal and says so. Decides
nothing about which options exist.
"""

import ipaddress
import json
import re
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, Literal, NewType

from shoal.wire.errors import UsageError
from shoal.wire.limits import MILLISECOND_NS, SECOND_NS

Size = NewType("Size", int)
"""A number of bytes, written `256MiB`."""

Rate = NewType("Rate", int)
"""Bytes per second, written `25MB` or `25MB/s`."""

SECRET_BYTES_MAX: Final = 1024 * 1024
"""Longer than any key or certificate chain; a secret file beyond this is the wrong file."""

_UNITS_BYTES: Final = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_PRINTED_UNITS_BYTES: Final = (
    ("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10),
    ("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3),
)  # fmt: skip
_UNITS_NS: Final = {
    "ns": 1, "us": 1000, "ms": MILLISECOND_NS, "s": SECOND_NS,
    "m": 60 * SECOND_NS, "h": 3600 * SECOND_NS, "d": 86400 * SECOND_NS,
}  # fmt: skip
_NUMBER: Final = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*)")
_BITS: Final = re.compile(r"[KMGT]i?b")
_TRUTHS: Final = {"true": True, "yes": True, "on": True, "1": True,
                  "false": False, "no": False, "off": False, "0": False}  # fmt: skip


@dataclass(frozen=True, slots=True, order=True)
class Duration:
    """A span of time, written `250ms`, `30s` or `5m`."""

    nanoseconds: int

    @property
    def seconds(self) -> float:
        """In seconds, as asyncio wants it."""
        return self.nanoseconds / SECOND_NS

    @property
    def milliseconds(self) -> int:
        """In whole milliseconds, rounded down."""
        return self.nanoseconds // MILLISECOND_NS

    def __str__(self) -> str:
        for unit in ("d", "h", "m", "s", "ms", "us"):
            if self.nanoseconds and self.nanoseconds % _UNITS_NS[unit] == 0:
                return f"{self.nanoseconds // _UNITS_NS[unit]}{unit}"
        return f"{self.nanoseconds}ns" if self.nanoseconds else "0s"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A host (an IP address or a name) and a TCP port, written `10.1.2.3:4001` or `[::1]:4001`.
    Port 0 to listen on stands for any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_ip(self) -> bool:
        """Whether the host is an IP address and not a name."""
        try:
            ipaddress.ip_address(self.host.partition("%")[0])
        except ValueError:
            return False
        return True

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if not self.is_ip:
            return self.host == "localhost"
        return ipaddress.ip_address(self.host.partition("%")[0]).is_loopback

    @property
    def is_unspecified(self) -> bool:
        """Whether it stands for all addresses of the machine: 0.0.0.0 or [::]."""
        return self.is_ip and ipaddress.ip_address(self.host.partition("%")[0]).is_unspecified


@dataclass(frozen=True, slots=True)
class SecretFile:
    """The path of a file that holds a secret. The secret itself is never an option's value, so
    it can end up in no environment, process list, dump or log."""

    path: Path

    def read(self) -> bytes:
        """What the file holds, without white space at its ends. Raises UsageError if it cannot be
        read or is empty."""
        try:
            with self.path.open("rb") as file:
                content = file.read(SECRET_BYTES_MAX + 1).strip()
        except OSError as error:
            raise UsageError(f"secret file {self.path}: {error.strerror}") from None
        if not content:
            raise UsageError(f"secret file {self.path} is empty")
        if len(content) > SECRET_BYTES_MAX:
            raise UsageError(f"secret file {self.path} has more than {SECRET_BYTES_MAX} bytes")
        return content


def parse_size(text: str) -> Size:
    """Bytes from `256MiB`, `25MB`, `4096`. Raises UsageError, naming what is legal."""
    match = _NUMBER.fullmatch(text.strip())
    unit = match[2].lower() if match else ""
    if match is None or unit not in _UNITS_BYTES or _BITS.fullmatch(match[2]):
        raise UsageError(f"{text!r} is not a size: write it like 256MiB, 25MB or 4096 (bytes)")
    count = Fraction(match[1]) * _UNITS_BYTES[unit]
    if count.denominator != 1:
        raise UsageError(f"{text!r} is not a whole number of bytes")
    return Size(int(count))


def parse_rate(text: str) -> Rate:
    """Bytes per second from `25MB`, `25MB/s`, `0`. Raises UsageError, naming what is legal."""
    try:
        return Rate(parse_size(text.strip().removesuffix("/s")))
    except UsageError:
        message = f"{text!r} is not a rate: write bytes per second like 25MB, 1GiB/s, 0 (no limit)"
        raise UsageError(message) from None


def parse_duration(text: str) -> Duration:
    """A duration from `250ms`, `30s`, `5m`. Raises UsageError, naming what is legal."""
    match = _NUMBER.fullmatch(text.strip())
    if match and not match[2] and Fraction(match[1]) == 0:
        return Duration(0)
    if match is None or match[2] not in _UNITS_NS:
        raise UsageError(f"{text!r} is not a duration: write it like 250ms, 30s, 5m or 1h")
    return Duration(int(Fraction(match[1]) * _UNITS_NS[match[2]]))


def parse_endpoint(text: str) -> Endpoint:
    """An endpoint from `host:port`. Raises UsageError, naming what is legal."""
    host, separator, port = text.strip().rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    plain = re.fullmatch(r"[A-Za-z0-9._-]{1,253}", host) is not None
    if not (
        separator
        and re.fullmatch(r"[0-9]{1,5}", port)
        and int(port) <= 65535
        and (plain or (bracketed and Endpoint(host[1:-1], 0).is_ip and ":" in host))
    ):
        raise UsageError(f"{text!r} is not host:port: write it like 10.1.2.3:4001 or [::1]:4001")
    return Endpoint(host[1:-1] if bracketed else host, int(port))


def format_size(size_bytes: int) -> str:
    """The shortest exact way to write a size; `parse_size` reads it back."""
    exact = [
        f"{size_bytes // factor}{unit}"
        for unit, factor in _PRINTED_UNITS_BYTES
        if size_bytes and size_bytes % factor == 0
    ]
    return min(exact, key=len, default=str(size_bytes))


# ---------------------------------------------------------------- kinds


@dataclass(frozen=True, slots=True)
class Kind:
    """How options of one type are read and written.

    `from_text` reads environment and flags, `from_toml` a value of a TOML file; both raise
    UsageError that names the value and what is legal. `to_text` gives what `from_text` reads.
    """

    legal: str
    from_text: Callable[[str], Any]
    from_toml: Callable[[Any], Any]
    to_text: Callable[[Any], str]
    bare: bool = False
    """Whether TOML writes the value without quotes."""
    sequence: bool = False
    of_number: Callable[[int], Any] = int
    """The value that a bound (bytes, nanoseconds) stands for."""


def kind_of(annotation: Any) -> Kind:
    """The kind of an option's type. Raises TypeError for a type that no option can have."""
    if annotation in _KINDS:
        return _KINDS[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        inner, *rest = arguments
        if rest == [types.NoneType]:
            return _optional(kind_of(inner))
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return _many(kind_of(arguments[0]))
    if origin is Literal:
        return _choice(arguments)
    raise TypeError(f"{annotation!r} is not a type of configuration options")


def toml_value(kind: Kind, value: Any) -> str:
    """A value as TOML writes it."""
    if kind.sequence:
        return "[" + ", ".join(_quoted(str(item)) for item in value) + "]"
    text = kind.to_text(value)
    return text if kind.bare else _quoted(text)


def _quoted(text: str) -> str:
    # TOML basic strings are JSON strings, except that TOML also forbids a bare DEL.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")


def _from_string(parse: Callable[[str], Any], legal: str) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if not isinstance(value, str):
            raise UsageError(f"{value!r} is not {legal}: write a quoted string")
        return parse(value)

    return read


def _textual(legal: str, parse: Callable[[str], Any], show: Callable[[Any], str] = str) -> Kind:
    return Kind(legal, parse, _from_string(parse, legal), show)


def _from_number(parse: Callable[[str], Any], legal: str) -> Callable[[Any], Any]:
    """Sizes and rates may also be plain integers in TOML; their unit is bytes then."""

    def read(value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise UsageError(f"{value!r} is not {legal}")
        return parse(str(value))

    return read


def _integer(text: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,18}", text.strip()):
        raise UsageError(f"{text!r} is not a whole number")
    return int(text)


def _toml_integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{value!r} is not a whole number")
    return value


def _truth(text: str) -> bool:
    try:
        return _TRUTHS[text.strip().lower()]
    except KeyError:
        raise UsageError(f"{text!r} is not true or false") from None


def _toml_truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{value!r} is not true or false (without quotes)")
    return value


def _path(text: str) -> Path:
    if not text.strip() or "\0" in text:
        raise UsageError(f"{text!r} is not a path")
    return Path(text).expanduser()


def _secret(text: str) -> SecretFile:
    # The value may be the secret itself, put here by mistake: it must not be repeated.
    if not text.strip() or "\n" in text or "\0" in text or "-----BEGIN" in text:
        raise UsageError("this is not a path: write the secret into a file and give its path")
    return SecretFile(Path(text).expanduser())


def _toml_secret(value: Any) -> SecretFile:
    if not isinstance(value, str):
        raise UsageError("this is not a path: write the secret into a file and give its path")
    return _secret(value)


def _show_secret(value: SecretFile) -> str:
    # A path that leads nowhere may be a secret that somebody put in the wrong place.
    return str(value.path) if value.path.is_file() else "(hidden: no such file)"


def _optional(kind: Kind) -> Kind:
    def from_text(text: str) -> Any:
        return kind.from_text(text) if text.strip() else None

    def from_toml(value: Any) -> Any:
        return None if value == "" else kind.from_toml(value)

    def to_text(value: Any) -> str:
        return "" if value is None else kind.to_text(value)

    return Kind(kind.legal + ' or ""', from_text, from_toml, to_text, of_number=kind.of_number)


def _many(kind: Kind) -> Kind:
    def from_text(text: str) -> tuple[Any, ...]:
        return tuple(kind.from_text(part) for part in text.split(",") if part.strip())

    def from_toml(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise UsageError(f"{value!r} is not a list: write it like [...]")
        return tuple(kind.from_toml(part) for part in value)

    def to_text(value: tuple[Any, ...]) -> str:
        return ",".join(kind.to_text(part) for part in value)

    return Kind(f"list of {kind.legal}", from_text, from_toml, to_text, sequence=True)


def _choice(names: tuple[str, ...]) -> Kind:
    legal = "one of " + ", ".join(names)

    def parse(text: str) -> str:
        if text not in names:
            raise UsageError(f"{text!r} is not {legal}")
        return text

    return _textual(legal, parse)


_KINDS: Final[dict[Any, Kind]] = {
    str: _textual("text", str),
    bool: Kind("true or false", _truth, _toml_truth, lambda value: str(value).lower(), bare=True),
    int: Kind("whole number", _integer, _toml_integer, str, bare=True),
    Size: Kind("size", parse_size, _from_number(parse_size, "a size"), format_size),
    Rate: Kind("rate", parse_rate, _from_number(parse_rate, "a rate"), format_size),
    Duration: Kind(
        "duration",
        parse_duration,
        _from_string(parse_duration, "a duration"),
        str,
        of_number=Duration,
    ),
    Endpoint: _textual("host:port", parse_endpoint),
    Path: _textual("path", _path),
    SecretFile: Kind("path of a secret file", _secret, _toml_secret, _show_secret),
}
