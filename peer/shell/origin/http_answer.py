"""What an HTTP answer says: pure reading of a status and headers, no IO.

Decides which answers are errors and of which kind, where the body begins, how long the content is
and what its validator is (RFC 9110). The validator is the strong ETag; where there is none, a weak
ETag together with Last-Modified if there is one (a weak ETag alone may outlive a change of
bytes); else Last-Modified. It is compared as text with what the task began with. No precondition
(If-Match, If-Range) is ever sent: the answer must be compared anyway, since many origins ignore
preconditions, and a weak ETag may not be used in one.
"""

import email.utils
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from peer.shell.errors import OriginError
from shoal.wire.errors import Reason
from shoal.wire.limits import VALIDATOR_CHARACTERS_MAX

RETRY_AFTER_MS_MAX: Final = 3_600_000
"""An origin that asks for more than an hour is asked again after an hour."""

_CONTENT_RANGE: Final = re.compile(r"bytes\s+(?:(\d{1,19})-(\d{1,19})|\*)/(\d{1,19}|\*)")
_SIZE: Final = re.compile(r"\d{1,19}")

_REASONS: Final = {
    401: Reason.ORIGIN_UNAUTHORIZED,
    403: Reason.ORIGIN_FORBIDDEN,
    404: Reason.ORIGIN_NOT_FOUND,
    408: Reason.ORIGIN_FAILED,
    410: Reason.ORIGIN_NOT_FOUND,
    429: Reason.ORIGIN_BUSY,
    503: Reason.ORIGIN_BUSY,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A good answer. The body holds the bytes [start_byte, end_byte) of the content, `end_byte`
    None if only its end will tell. `ranges`: the origin cut the range that was asked for."""

    start_byte: int
    end_byte: int | None
    size_bytes: int | None
    validator: str | None
    ranges: bool


def read_answer(
    host: str,
    status: int,
    headers: Mapping[str, str],
    asked: tuple[int, int | None] | None,
    *,
    wall_s: float,
) -> Answer:
    """Reads an answer to a GET for a half-open byte range, or for everything (None). `wall_s` is
    the Unix time against which a Retry-After date without a Date header counts. Raises
    OriginError whose text names `host`, status and numbers only."""
    if status not in (200, 204, 206, 416):
        raise _refused(host, status, headers, wall_s)
    encoding = headers.get("Content-Encoding", "").strip().lower()
    if status != 416 and encoding not in ("", "identity"):
        raise OriginError(
            Reason.ORIGIN_INVALID,
            f"{host} sent the content encoded ({encoding[:20]}) although that was declined",
        )
    validator = read_validator(headers)
    if status == 206:
        return _read_part(host, headers, asked, validator)
    if status == 416:
        return _read_unsatisfiable(host, headers, asked, validator)
    size = 0 if status == 204 else _content_length(headers)
    return Answer(start_byte=0, end_byte=size, size_bytes=size, validator=validator, ranges=False)


def check_same(host: str, answer: Answer, validator: str | None, size_bytes: int | None) -> None:
    """Raises OriginError (ORIGIN_CHANGED) unless an answer is of the content that a task began
    with. What the task does not know can't be compared; what the answer leaves out differs,
    except for the size where the answer's own framing does not tell it."""
    if validator is not None and answer.validator != validator:
        how = "is missing, unlike" if answer.validator is None else "differs from"
        raise OriginError(
            Reason.ORIGIN_CHANGED,
            f"the content at {host} changed: its ETag or Last-Modified {how} the one that the "
            "download began with; start the download again",
        )
    if size_bytes is not None and answer.size_bytes not in (None, size_bytes):
        raise OriginError(
            Reason.ORIGIN_CHANGED,
            f"the content at {host} changed: it had {size_bytes} bytes when the download began and "
            f"has {answer.size_bytes} now; start the download again",
        )


def read_validator(headers: Mapping[str, str]) -> str | None:
    """The validator in an answer's headers, as the top of this file defines it."""
    etag = headers.get("ETag", "").strip()
    modified = headers.get("Last-Modified", "").strip()
    validator = f"{etag} {modified}".strip() if etag.startswith("W/") else etag or modified
    if len(validator) > VALIDATOR_CHARACTERS_MAX:
        validator = "sha256:" + hashlib.sha256(validator.encode(errors="replace")).hexdigest()
    return validator or None


def read_retry_after_ms(headers: Mapping[str, str], wall_s: float) -> int:
    """Retry-After (RFC 9110, section 10.2.3), seconds or a date, from 0 to an hour. A date counts
    from the answer's own Date, so that no clock need be right. 0 for none or nonsense."""
    text = headers.get("Retry-After", "").strip()
    if _SIZE.fullmatch(text):
        return min(int(text) * 1000, RETRY_AFTER_MS_MAX)
    until_s = _date_s(text)
    if until_s is None:
        return 0
    now_s = _date_s(headers.get("Date", ""))
    wait_s = until_s - (wall_s if now_s is None else now_s)
    return min(max(0, round(wait_s * 1000)), RETRY_AFTER_MS_MAX)


def _refused(host: str, status: int, headers: Mapping[str, str], wall_s: float) -> OriginError:
    reason = _REASONS.get(status)
    if reason is None:
        reason = Reason.ORIGIN_FAILED if status >= 500 else Reason.ORIGIN_INVALID
    try:
        phrase = f" {HTTPStatus(status).phrase}"
    except ValueError:
        phrase = ""
    retry_after_ms = read_retry_after_ms(headers, wall_s) if status == 429 or status >= 500 else 0
    return OriginError(reason, f"{host} answered {status}{phrase}", retry_after_ms)


def _read_part(
    host: str,
    headers: Mapping[str, str],
    asked: tuple[int, int | None] | None,
    validator: str | None,
) -> Answer:
    match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
    if asked is None or match is None or match[1] is None:
        what = "without being asked for one" if asked is None else "without saying which"
        raise OriginError(Reason.ORIGIN_INVALID, f"{host} answered 206 with a part {what}")
    start, end = int(match[1]), int(match[2]) + 1
    size = None if match[3] == "*" else int(match[3])
    wanted_start, wanted_end = asked
    beyond = (wanted_end is not None and end > wanted_end) or (size is not None and end > size)
    if start != wanted_start or end <= start or beyond:
        raise OriginError(
            Reason.ORIGIN_INVALID,
            f"{host} was asked for bytes from {wanted_start} to "
            f"{'the end' if wanted_end is None else wanted_end - 1} and answered with "
            f"{start} to {end - 1} of {'?' if size is None else size}",
        )
    length = _content_length(headers)
    if length is not None and length != end - start:
        raise OriginError(
            Reason.ORIGIN_INVALID,
            f"{host} announced {length} bytes for a range of {end - start}",
        )
    return Answer(start_byte=start, end_byte=end, size_bytes=size, validator=validator, ranges=True)


def _read_unsatisfiable(
    host: str,
    headers: Mapping[str, str],
    asked: tuple[int, int | None] | None,
    validator: str | None,
) -> Answer:
    """416 is a good answer for exactly one question: bytes from the very end on, of which there
    are none. An empty content is the case of it that `stat` meets."""
    match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
    size = int(match[3]) if match is not None and match[3] != "*" else None
    if asked is None or size is None:
        raise OriginError(Reason.ORIGIN_INVALID, f"{host} answered 416 Range Not Satisfiable")
    return Answer(
        start_byte=size, end_byte=size, size_bytes=size, validator=validator, ranges=size > 0
    )


def _content_length(headers: Mapping[str, str]) -> int | None:
    if headers.get("Transfer-Encoding", "identity").strip().lower() != "identity":
        return None
    text = headers.get("Content-Length", "").strip()
    return int(text) if _SIZE.fullmatch(text) else None


def _date_s(text: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except ValueError:
        return None
