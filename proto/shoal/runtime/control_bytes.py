"""Protobuf's wire form by hand, for the few messages of which a scheduler sends very many.

A batch's bytes are the entries of its messages one behind the other, and a list of hosts is their
fields one behind the other; so a host that is named to many others is serialised once. The bytes
are the same that protobuf makes of the same message, and a test compares them. Decides nothing.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from shoal.wire.control import Assigned, Directory, Parent, Parents
from shoal.wire.ids import CollectionId, HostId

HOSTS_KEPT_MAX: Final = 32_768
"""Serialised hosts of about 60 bytes each, and names; a scheduler has at most 20,000 by default."""

NUMBERS_KEPT_MAX: Final = 4_096
"""Lengths, nearly all of them: the same few thousand come again and again."""

COLLECTIONS_KEPT_MAX: Final = 1_024


@lru_cache(maxsize=NUMBERS_KEPT_MAX)
def varint(value: int) -> bytes:
    """Base-128, least significant group first, as protobuf writes lengths and numbers."""
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """The number at a position and where it ends. Raises IndexError behind the data's end."""
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def entry_of(data: bytes) -> bytes:
    """A serialised message as a batch's bytes hold it: field 1, length-delimited."""
    return b"\x0a" + varint(len(data)) + data


def parents_entry(message: Parents) -> bytes:
    """The entry of a list of parents: field 4 of a scheduler's message."""
    added = _repeated(b"\x12", map(_parent, message.added))
    removed = _repeated(b"\x1a", map(_name, message.removed))
    return _entry(b"\x22", _collection(message.collection_id) + added + removed)


def assigned_entry(message: Assigned) -> bytes:
    """The entry of a host's parents by stripe: field 13."""
    unit = _number(b"\x10", message.unit_bytes)
    named = _repeated(b"\x1a", map(_name, message.parents))
    return _entry(b"\x6a", _collection(message.collection_id) + unit + named)


def directory_entry(message: Directory) -> bytes:
    """The entry of a page of a directory: field 14."""
    first = _number(b"\x10", message.first)
    hosts = _repeated(b"\x1a", map(_parent, message.hosts))
    return _entry(b"\x72", _collection(message.collection_id) + first + hosts)


def _entry(kind: bytes, body: bytes) -> bytes:
    """The entry of a message of one kind."""
    return entry_of(kind + varint(len(body)) + body)


def _repeated(tag: bytes, values: Iterable[bytes]) -> bytes:
    """A field that is there once for each value. Values have their length before them, so that none
    is without a byte."""
    joined = tag.join(values)
    return tag + joined if joined else b""


@lru_cache(maxsize=COLLECTIONS_KEPT_MAX)
def _collection(collection_id: CollectionId) -> bytes:
    """Field 1 of all three."""
    return _text(b"\x0a", collection_id)


@lru_cache(maxsize=HOSTS_KEPT_MAX)
def _name(host_id: HostId) -> bytes:
    """With its length; one in a list is there even if it is empty."""
    data = host_id.encode()
    return varint(len(data)) + data


@lru_cache(maxsize=HOSTS_KEPT_MAX)
def _parent(parent: Parent) -> bytes:
    """A host to connect to, with its length."""
    parts = [_text(b"\x0a", parent.host_id)]
    for address in parent.addresses:
        body = _text(b"\x0a", address.ip) + _number(b"\x10", address.port)
        parts += (b"\x12", varint(len(body)), body)
    parts.append(_text(b"\x1a", parent.zone))
    body = b"".join(parts)
    return varint(len(body)) + body


def _text(tag: bytes, text: str) -> bytes:
    """A text field; protobuf leaves out an empty one."""
    data = text.encode()
    return tag + varint(len(data)) + data if data else b""


def _number(tag: bytes, value: int) -> bytes:
    """A field with a number; protobuf leaves out a zero."""
    return tag + varint(value) if value else b""
