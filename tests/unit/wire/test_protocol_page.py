"""docs/protocol.md says what the code does: its frames, caps, messages, fields and reasons."""

import re
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor

from shoal.v1 import control_pb2
from shoal.wire import frames, limits
from shoal.wire.errors import Reason

PAGE = Path(__file__).resolve().parents[3] / "docs" / "protocol.md"
TEXT = PAGE.read_text()
EXAMPLES = re.findall(r"^```frame\n(.+?)\n\n(.+?)\n```$", TEXT, re.MULTILINE | re.DOTALL)
CAPS = re.findall(r"^\| `([A-Z_]+)` \| (\d+) \|", TEXT, re.MULTILINE)
NAMES = {kind.__name__: kind for kind in frames.Frame.__args__} | {
    "Reason": Reason,
    "bytes": bytes,
    "range": range,
}


def example(expression: str) -> frames.Frame:
    """The frame that an example's first line describes."""
    made: frames.Frame = eval(expression, {"__builtins__": {}}, NAMES)
    return made


@pytest.mark.parametrize(("expression", "dump"), EXAMPLES, ids=lambda text: text.split("(")[0])
def test_an_example_is_encoded_as_the_page_shows(expression: str, dump: str) -> None:
    frame, data = example(expression), bytes.fromhex(dump)
    assert frames.encode(frame).hex(" ") == data.hex(" ")
    decoder = frames.FrameDecoder()
    decoder.feed(data)
    assert decoder.next_frame() == frame


def test_every_kind_of_frame_has_an_example_and_a_table_of_its_fields() -> None:
    assert {type(example(expression)) for expression, _ in EXAMPLES} == set(frames.Frame.__args__)
    for expression, dump in EXAMPLES:
        frame = example(expression)
        name = type(frame).__name__
        # Behind the length come the array's head and the kind, both one byte in every frame.
        kind = bytes.fromhex(dump)[5]
        table = re.search(rf"^\| Kind [\d, ]*\b{kind}\b.*?\n\n", TEXT, re.MULTILINE | re.DOTALL)
        assert table is not None, f"{name} has no table"
        assert f"`{name}`" in table.group().splitlines()[0]
        fields = re.findall(r"^\| \d+ `(\w+)`", table.group(), re.MULTILINE)
        assert fields == list(type(frame).__slots__), name


@pytest.mark.parametrize(("name", "value"), CAPS)
def test_a_cap_is_that_of_the_code(name: str, value: str) -> None:
    home = limits if hasattr(limits, name) else frames
    assert getattr(home, name) == int(value)


def test_the_page_has_tables_of_caps() -> None:
    assert len(CAPS) >= 12


def described() -> list[Descriptor]:
    """Every control message that carries something."""
    wrappers = {
        "HostBatch",
        "SchedulerBatch",
        "HostMessage",
        "SchedulerMessage",
        "Address",
        "Geometry",
    }
    messages = control_pb2.DESCRIPTOR.message_types_by_name
    return [message for name, message in sorted(messages.items()) if name not in wrappers]


@pytest.mark.parametrize("message", described(), ids=lambda message: message.name)
def test_a_control_message_and_its_fields_are_described(message: Descriptor) -> None:
    assert f"`{message.name}`" in TEXT
    missing = [field.name for field in message.fields if f"`{field.name}`" not in TEXT]
    assert not missing, f"{message.name}: {missing}"


def test_every_reason_is_listed() -> None:
    assert not [reason.value for reason in Reason if f"`{reason.value}`" not in TEXT]
