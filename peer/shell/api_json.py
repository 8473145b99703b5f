"""The JSON of the local API: request bodies to `DownloadRequest`, events to objects.

The one place that knows the field names on the Unix socket. Everything from a client is checked
here: types, bounds and unknown fields (named, with the nearest right one). Never does IO.
"""

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from peer.shell.api_types import (
    Delivered,
    Done,
    DownloadEvent,
    DownloadRequest,
    Failed,
    Progress,
    Ready,
    Resolved,
    RightNeeded,
    SwarmCounts,
    TaskSummary,
    WantedUrl,
)
from shoal.wire.control import Demand
from shoal.wire.digest import parse_digest
from shoal.wire.errors import UsageError
from shoal.wire.limits import (
    COLLECTION_TASKS_MAX,
    PIECE_LENGTH_BYTES_MAX,
    PIECE_LENGTH_BYTES_MIN,
    TEXT_CHARACTERS_MAX,
)

URL_CHARACTERS_MAX: Final = 16 * 1024
"""Signed URLs reach a few KiB; longer ones no server accepts."""

HEADERS_PER_URL_MAX: Final = 100
HEADER_CHARACTERS_MAX: Final = 16 * 1024
AUTHORITIES_CHARACTERS_MAX: Final = 1024 * 1024
"""All that a system trusts fits in."""

FILTERED_PARAMS_MAX: Final = 256
TIMEOUT_MS_MAX: Final = 7 * 24 * 3600 * 1000
PROGRESS_MS_MAX: Final = 60_000
PRIORITY_MAX: Final = 1000

REQUEST_FIELDS: Final = (
    "urls",
    "outputs",
    "tag",
    "application",
    "piece_length",
    "filtered_query_params",
    "priority",
    "disable_back_to_source",
    "overwrite",
    "own_files",
    "demand",
    "timeout_ms",
    "renewable",
    "authorities",
    "progress_ms",
)
URL_FIELDS: Final = ("url", "headers", "digest")

T = TypeVar("T")


def decode_request(body: object) -> DownloadRequest:
    """The request in a JSON body. Raises UsageError that names the field at fault."""
    fields = _object(body, "the body", REQUEST_FIELDS)
    urls = tuple(_url(entry, f"urls[{index}]") for index, entry in enumerate(_list(fields, "urls")))
    if not urls:
        raise UsageError("urls: name at least one")
    if len(urls) > COLLECTION_TASKS_MAX:
        raise UsageError(f"urls: {len(urls)} are too many, {COLLECTION_TASKS_MAX} is the limit")
    piece_length = _optional(fields, "piece_length", int)
    if piece_length is not None:
        check_piece_length(piece_length)
    params = _list(fields, "filtered_query_params")
    if len(params) > FILTERED_PARAMS_MAX or not all(isinstance(name, str) for name in params):
        raise UsageError(f"filtered_query_params: up to {FILTERED_PARAMS_MAX} names as strings")
    return DownloadRequest(
        urls=urls,
        outputs=_outputs(fields, len(urls)),
        tag=_text(fields, "tag"),
        application=_text(fields, "application"),
        piece_length_bytes=piece_length,
        filtered_query_params=tuple(params),
        priority=_number(fields, "priority", -PRIORITY_MAX, PRIORITY_MAX),
        disable_back_to_source=_flag(fields, "disable_back_to_source"),
        overwrite=_flag(fields, "overwrite"),
        own_files=_flag(fields, "own_files"),
        demand=_demand(fields),
        timeout_ms=_number(fields, "timeout_ms", 0, TIMEOUT_MS_MAX),
        renewable=_flag(fields, "renewable"),
        progress_ms=_number(fields, "progress_ms", 0, PROGRESS_MS_MAX),
        authorities=_authorities(fields, urls),
    )


def decode_renewal(body: object) -> str | None:
    """The fresh Authorization in a JSON body. Raises UsageError."""
    fields = _object(body, "the body", ("authorization",))
    value = fields.get("authorization")
    if value is None:
        return None
    if not isinstance(value, str):
        raise UsageError("authorization: the value of a header, or null")
    return _header(["Authorization", value], "authorization")[1]


def decode_digests(body: object) -> tuple[str, ...]:
    """The digests in a JSON body, each once, in order. Raises UsageError."""
    digests = _list(_object(body, "the body", ("digests",)), "digests")
    if not 1 <= len(digests) <= COLLECTION_TASKS_MAX:
        raise UsageError(f"digests: 1 to {COLLECTION_TASKS_MAX}, not {len(digests)}")
    if not all(isinstance(digest, str) for digest in digests):
        raise UsageError("digests: strings such as sha256:<hex> are needed")
    return tuple(dict.fromkeys(str(parse_digest(digest)) for digest in digests))


def check_piece_length(piece_length_bytes: int) -> None:
    """Raises UsageError unless it is a power of two within the limits."""
    in_bounds = PIECE_LENGTH_BYTES_MIN <= piece_length_bytes <= PIECE_LENGTH_BYTES_MAX
    if not in_bounds or piece_length_bytes & (piece_length_bytes - 1):
        raise UsageError(
            f"piece length of {piece_length_bytes} bytes: a power of two"
            f" from {PIECE_LENGTH_BYTES_MIN} to {PIECE_LENGTH_BYTES_MAX} is needed"
        )


def encode_event(event: DownloadEvent) -> dict[str, Any]:
    """An event as the object that goes out as one line."""
    match event:
        case Resolved():
            return {
                "event": "resolved",
                "index": event.index,
                "task_id": event.task_id,
                "size": event.size_bytes,
                "digest": event.digest,
            }
        case Progress():
            return {
                "event": "progress",
                "bytes": event.received_bytes,
                "size": event.size_bytes,
                "origin_bytes": event.origin_bytes,
                "peer_bytes": event.peer_bytes,
                "rate": event.rate_bytes_s,
                "files": [list(file) for file in event.files],
            }
        case Delivered():
            return {
                "event": "delivered",
                "index": event.index,
                "task_id": event.task_id,
                "size": event.size_bytes,
                "digest": event.digest,
                "path": str(event.path),
                "how": event.how,
            }
        case Ready():
            return {
                "event": "ready",
                "index": event.index,
                "task_id": event.task_id,
                "size": event.size_bytes,
                "digest": event.digest,
                "content": f"/v1/tasks/{event.task_id}/content",
            }
        case RightNeeded():
            return {"event": "unauthorized", "reason": str(event.reason)}
        case Done():
            return {
                "event": "done",
                "size": event.size_bytes,
                "origin_bytes": event.origin_bytes,
                "peer_bytes": event.peer_bytes,
            }
        case Failed():
            return {
                "event": "failed",
                "index": event.index,
                "reason": str(event.reason),
                "detail": event.detail,
            }


def encode_task(task: TaskSummary) -> dict[str, Any]:
    """A stored task as the object that `GET /v1/tasks` lists."""
    return {
        "task_id": task.task_id,
        "url": task.display_url,
        "size": task.size_bytes,
        "held_bytes": task.held_bytes,
        "sealed": task.sealed,
        "digest": task.digest,
        "used_s_ago": task.used_s_ago,
        "pinned": task.pinned,
    }


def encode_swarm(counts: SwarmCounts) -> dict[str, Any]:
    """What the swarm holds, as the object that `POST /v1/swarm` answers with."""
    return {
        "hosts": counts.hosts,
        "whole_hosts": counts.whole_hosts,
        "contents": [
            {
                "digest": content.digest,
                "hosts": content.hosts,
                "whole_hosts": content.whole_hosts,
                "covered_bytes": content.covered_bytes,
                "size": content.size_bytes,
            }
            for content in counts.contents
        ],
    }


# ---------------------------------------------------------------- reading fields


def _object(value: object, where: str, known: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{where}: a JSON object is needed")
    for name in value:
        if name not in known:
            nearest = difflib.get_close_matches(str(name)[:64], known, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else f"; known: {', '.join(known)}"
            raise UsageError(f"{where}: unknown field {str(name)[:64]!r}{hint}")
    return value


def _url(value: object, where: str) -> WantedUrl:
    fields = _object(value, where, URL_FIELDS)
    url = fields.get("url")
    if not isinstance(url, str) or not url or len(url) > URL_CHARACTERS_MAX:
        raise UsageError(f"{where}.url: a string of 1 to {URL_CHARACTERS_MAX} characters is needed")
    digest = fields.get("digest")
    if digest is not None:
        if not isinstance(digest, str):
            raise UsageError(f"{where}.digest: a string such as sha256:<hex> is needed")
        digest = str(parse_digest(digest))
    headers = fields.get("headers") or []
    if not isinstance(headers, list) or len(headers) > HEADERS_PER_URL_MAX:
        raise UsageError(f"{where}.headers: a list of up to {HEADERS_PER_URL_MAX} pairs is needed")
    pairs = tuple(_header(pair, f"{where}.headers[{at}]") for at, pair in enumerate(headers))
    return WantedUrl(url=url, headers=pairs, digest=digest)


def _header(pair: object, where: str) -> tuple[str, str]:
    # The value never enters the error: it may be a secret.
    match pair:
        case [str(name), str(value)] if name and len(name) + len(value) <= HEADER_CHARACTERS_MAX:
            if any(character in "\r\n\0" for character in name + value):
                raise UsageError(f"{where}: line breaks are not allowed in a header")
            return name, value
        case _:
            raise UsageError(f'{where}: a pair ["name", "value"] of strings is needed')


def _outputs(fields: dict[str, Any], url_count: int) -> tuple[Path | None, ...]:
    outputs = _list(fields, "outputs")
    if not outputs:
        return (None,) * url_count
    if len(outputs) != url_count:
        raise UsageError(f"outputs: {len(outputs)} for {url_count} urls; one for each, or null")
    paths: list[Path | None] = []
    for index, output in enumerate(outputs):
        if output is None:
            paths.append(None)
        elif isinstance(output, str) and output.startswith("/") and "\0" not in output:
            paths.append(Path(output))
        else:
            raise UsageError(f"outputs[{index}]: an absolute path or null is needed")
    named = [path for path in paths if path is not None]
    if len(set(named)) != len(named):
        raise UsageError("outputs: two urls cannot be delivered to the same path")
    return tuple(paths)


def _list(fields: dict[str, Any], name: str) -> list[Any]:
    return _optional(fields, name, list) or []


def _optional(fields: dict[str, Any], name: str, kind: type[T]) -> T | None:
    value = fields.get(name)
    # JSON's true is a Python int; it must not pass as a number.
    if value is None or (isinstance(value, kind) and (kind is bool or not isinstance(value, bool))):
        return value
    raise UsageError(f"{name}: {_KIND_NAMES[kind]} is needed")


def _text(fields: dict[str, Any], name: str) -> str:
    text = _optional(fields, name, str) or ""
    if len(text) > TEXT_CHARACTERS_MAX:
        raise UsageError(f"{name}: longer than {TEXT_CHARACTERS_MAX} characters")
    return text


def _authorities(fields: dict[str, Any], urls: tuple[WantedUrl, ...]) -> str:
    text = _optional(fields, "authorities", str) or ""
    if len(text) > AUTHORITIES_CHARACTERS_MAX:
        raise UsageError(f"authorities: {AUTHORITIES_CHARACTERS_MAX} characters of PEM at most")
    if text and any(url.digest is None for url in urls):
        raise UsageError("authorities: only for urls with a digest, which nobody can forge")
    return text


def _flag(fields: dict[str, Any], name: str) -> bool:
    return _optional(fields, name, bool) or False


def _number(fields: dict[str, Any], name: str, low: int, high: int) -> int:
    number = _optional(fields, name, int) or 0
    if not low <= number <= high:
        raise UsageError(f"{name}: {number} is not between {low} and {high}")
    return number


def _demand(fields: dict[str, Any]) -> Demand:
    name = _optional(fields, "demand", str) or Demand.WHOLE
    try:
        return Demand(name)
    except ValueError:
        known = ", ".join(Demand)
        raise UsageError(f"demand: {name[:64]!r} is none of {known}") from None


_KIND_NAMES: Final[dict[Callable[..., object], str]] = {
    int: "a whole number",
    str: "a string",
    bool: "true or false",
    list: "a list",
}
