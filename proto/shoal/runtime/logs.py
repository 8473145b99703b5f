"""Structured logs on the standard library's logging: text for people, JSON on demand.

A line is a message and fields (`log.info("lease granted", host=host_id, runs=3)`); times are UTC.
Every line passes a filter that takes out credentials: header values, URL user-info and queries,
and fields whose name says that they are secret. The filter is the last line of defence; code
still never hands a credential to a log. Decides nothing.
"""

import datetime
import json
import logging
import re
import sys
from collections.abc import Mapping
from typing import Any, Final, Literal, TextIO

FIELD_CHARACTERS_MAX: Final = 2048
"""A longer value is cut: one line must not fill a disk."""

HIDDEN: Final = "(hidden)"

_SECRET_NAME: Final = re.compile(
    r"authorization|cookie|token|secret|password|passwd|credential|signature|api[-_]?key"
    r"|private[-_]?key|session[-_]?key|headers",
    re.IGNORECASE,
)
_URL: Final = re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]{0,20}://)([^\s\"'<>]+)")
# A header's name and its value, as a line, in a dict or in a pair; unquoted values end the line.
_HEADER: Final = re.compile(
    r"(?i)((?:proxy-)?authorization|(?:set-)?cookie|x-[a-z0-9-]*(?:token|key|signature|secret))"
    r"(['\"]?\s*[:=,]\s*)(b?'[^']*'|b?\"[^\"]*\"|[^\r\n]*)"
)
_SCHEME: Final = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{16,}")
_PARAMETER: Final = re.compile(
    r"(?i)\b([\w-]*(?:signature|sig|token|password|passwd|secret|credential|apikey|api_key))="
    r"[^\s&\"']+"
)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
_PLAIN: Final = re.compile(r"[^\s\"'=\\]+")


def redact(text: str) -> str:
    """The text without what could be a credential: user-info and query of every URL, values of
    headers that carry credentials, and parameters named like one."""
    text = _URL.sub(_bare_url, text)
    text = _HEADER.sub(rf"\1\2{HIDDEN}", text)
    text = _SCHEME.sub(rf"\1 {HIDDEN}", text)
    return _PARAMETER.sub(rf"\1={HIDDEN}", text)


def _bare_url(match: re.Match[str]) -> str:
    scheme, rest = match.groups()
    end = min((at for mark in "?#" if (at := rest.find(mark)) >= 0), default=len(rest))
    slash = rest.find("/")
    # User-info ends at the last "@" before the path; a password may hold anything but a slash.
    authority_end = slash if 0 <= slash < end else end
    host_start = rest.rfind("@", 0, authority_end) + 1
    hidden_query = f"?{HIDDEN}" if end < len(rest) else ""
    return scheme + rest[host_start:end] + hidden_query


class Log:
    """A named logger whose lines have fields. Values are shown as `str()` shows them; bytes only
    by their length."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, message: str, /, **fields: object) -> None:
        """What only a developer wants to read."""
        self._write(logging.DEBUG, message, fields)

    def info(self, message: str, /, **fields: object) -> None:
        """What an operator wants to read."""
        self._write(logging.INFO, message, fields)

    def warning(self, message: str, /, **fields: object) -> None:
        """What went wrong and was dealt with."""
        self._write(logging.WARNING, message, fields)

    def error(
        self, message: str, /, *, error: BaseException | None = None, **fields: object
    ) -> None:
        """What went wrong for good; with `error`, where it came from."""
        self._write(logging.ERROR, message, fields, error)

    def _write(
        self,
        level: int,
        message: str,
        fields: Mapping[str, object],
        error: BaseException | None = None,
    ) -> None:
        if self._logger.isEnabledFor(level):
            extra = {"shoal_fields": dict(fields)}
            self._logger.log(level, "%s", message, exc_info=error, extra=extra, stacklevel=3)


class RedactionFilter(logging.Filter):
    """Takes credentials out of a record: message, fields and traceback. Never drops a record."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrites the record in place, so that no later handler sees more."""
        record.msg = redact(record.getMessage())
        record.args = None
        fields: dict[str, object] = getattr(record, "shoal_fields", {})
        record.shoal_fields = {name: _clean(name, value) for name, value in fields.items()}
        if record.exc_info:
            record.exc_text = redact(logging.Formatter().formatException(record.exc_info))
            record.exc_info = None
        return True


def _clean(name: str, value: object) -> object:
    if _SECRET_NAME.search(name):
        return HIDDEN
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return f"({len(value)} bytes)"
    text = redact(str(value))
    if len(text) > FIELD_CHARACTERS_MAX:
        text = text[:FIELD_CHARACTERS_MAX] + "..."
    return text


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.000Z INFO scheduler.shell.daemon: listening address=127.0.0.1:4001`"""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and a traceback below it where there is one."""
        fields: Mapping[str, object] = getattr(record, "shoal_fields", {})
        parts = [f"{_time(record)} {record.levelname} {record.name}: {_line(record.getMessage())}"]
        parts += [f"{name}={_text_value(value)}" for name, value in fields.items()]
        line = " ".join(parts)
        return f"{line}\n{record.exc_text}" if record.exc_text else line


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, message, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        document: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields: Mapping[str, object] = getattr(record, "shoal_fields", {})
        for name, value in fields.items():
            # A field never hides what every line has.
            document[f"field_{name}" if name in document else name] = value
        if record.exc_text:
            document["traceback"] = record.exc_text
        return json.dumps(document, ensure_ascii=False, default=str)


def configure_logs(
    level: str, format: Literal["text", "json"], stream: TextIO | None = None
) -> logging.Handler:
    """Sends this process's log to a stream (standard error unless told otherwise), replacing what
    an earlier call set up, and returns the handler. Called by a command, never by a library."""
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    handler.addFilter(RedactionFilter())
    handler.set_name("shoal")
    root = logging.getLogger()
    for old in [each for each in root.handlers if each.get_name() == "shoal"]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    return handler


def _time(record: logging.LogRecord) -> str:
    moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def _line(text: str) -> str:
    """Without line breaks and control characters: text from elsewhere must not forge lines."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def _text_value(value: object) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) and not _CONTROL.search(text) else json.dumps(text)
