"""Log lines: readable, parseable, and never with a secret in them."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.runtime.logs import HIDDEN, Log, configure_logs, redact

SECRET = "hunter2hunter2hunter2"


class Capture:
    """What the process would have logged."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    def start(self, format: Literal["text", "json"], level: str = "info") -> Log:
        configure_logs(level, format, self.stream)
        return Log("tests.logs")

    @property
    def text(self) -> str:
        return self.stream.getvalue()


@pytest.fixture
def capture() -> Iterator[Capture]:
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield Capture()
    root.setLevel(level)
    for handler in [each for each in root.handlers if each not in handlers]:
        root.removeHandler(handler)


@pytest.mark.parametrize(
    "text",
    [
        f"GET https://user:{SECRET}@models.example/a/b?X-Amz-Signature={SECRET}#f failed",
        f"https://{SECRET}@models.example/x",
        f"https://models.example/x?{SECRET}",
        f"http://a:p@{SECRET}@host/y",
        f"Authorization: Bearer {SECRET}",
        f"authorization: {SECRET}",
        f"Cookie: a=b; session={SECRET}; c=d",
        f"Set-Cookie: session={SECRET}; HttpOnly",
        f"Proxy-Authorization: Basic {SECRET}",
        f"X-Amz-Security-Token: {SECRET}",
        f"{{'Authorization': 'Bearer {SECRET}', 'Accept': '*/*'}}",
        f'headers {{"authorization": "{SECRET}"}}',
        f"(('Cookie', '{SECRET}'), ('Accept', 'x'))",
        f"[(b'Authorization', b'{SECRET}')]",
        f"sent bearer {SECRET} to it",
        f"/path/file?sig={SECRET}&x=1",
        f"access_token={SECRET}",
        f"password={SECRET}",
    ],
)
def test_credentials_are_taken_out(text: str) -> None:
    assert SECRET not in redact(text)
    assert HIDDEN in redact(text) or "@" not in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "https://models.example:8443/a/b.safetensors",
        "read 3 pieces from 10.0.0.1:4001",
        "a basic configuration",
        "sha256:0123456789abcdef0123456789abcdef",
        "mail me@example.org",
        "piece 7 of https://models.example/a@b/c",
    ],
)
def test_harmless_text_stays(text: str) -> None:
    assert redact(text) == text


def test_a_redacted_url_still_says_which(capture: Capture) -> None:
    assert redact("https://u:p@h.example:1/a/b?q=1") == f"https://h.example:1/a/b?{HIDDEN}"


@settings(max_examples=50)
@given(st.text(max_size=200))
def test_redaction_takes_any_text(text: str) -> None:
    once = redact(text)
    assert redact(once) == once


def test_text_lines(capture: Capture) -> None:
    log = capture.start("text")
    log.info("lease granted", host="h1", runs=3, note="two words", nothing=None)
    time, rest = capture.text.split(" ", 1)
    assert rest == 'INFO tests.logs: lease granted host=h1 runs=3 note="two words" nothing=None\n'
    assert time.endswith("Z")
    assert len(time) == len("2026-01-31T12:00:00.000Z")


def test_json_lines(capture: Capture) -> None:
    log = capture.start("json")
    log.warning("slow", host="h1", rate_bytes_s=3, message="a field of that name")
    document = json.loads(capture.text)
    assert document["message"] == "slow"
    assert document["level"] == "warning"
    assert document["rate_bytes_s"] == 3
    assert document["field_message"] == "a field of that name"


@pytest.mark.parametrize("format", ["text", "json"])
def test_nothing_secret_passes(capture: Capture, format: Literal["text", "json"]) -> None:
    log = capture.start(format)
    log.info(f"asked https://x:{SECRET}@h/?{SECRET}")
    log.info("asked", url=f"https://h/?sig={SECRET}", swarm_token=SECRET, headers={"a": SECRET})
    log.info("asked", Authorization=SECRET, payload=SECRET.encode())
    logging.getLogger("elsewhere").warning("Cookie: %s", SECRET)
    try:
        raise ValueError(f"Authorization: Bearer {SECRET}")
    except ValueError as error:
        log.error("failed", error=error)
    assert SECRET not in capture.text
    assert "ValueError" in capture.text
    assert "(21 bytes)" in capture.text


def test_text_from_elsewhere_cannot_forge_a_line(capture: Capture) -> None:
    log = capture.start("text")
    log.info("from host\n2026-01-31T12:00:00.000Z INFO all is well", detail="a\nb\x1b[31m")
    assert len(capture.text.splitlines()) == 1
    assert "\x1b" not in capture.text


def test_long_values_are_cut(capture: Capture) -> None:
    log = capture.start("text")
    log.info("x", detail="y" * 100_000)
    assert len(capture.text) < 3_000


def test_levels_and_a_second_configuration(capture: Capture) -> None:
    log = capture.start("text", "warning")
    log.info("quiet")
    assert capture.text == ""
    capture.start("text", "debug")
    log.debug("loud")
    assert capture.text.count("loud") == 1
