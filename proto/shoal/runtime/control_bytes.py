"""Protobuf's wire form by hand, for the few messages of which a scheduler sends very many.

A batch's bytes are the entries of its messages one behind the other, and a list of hosts is their
fields one behind the other; so a host that is named to many others is serialised once. The bytes
are the same that protobuf makes of the same message, and a test compares them. Decides nothing.
"""

from collections.abc import Iterable
from functools import lru_cache
from itertools import chain
from typing import Final

from shoal.wire.control import Assigned, Directory, Parent, Parents
from shoal.wire.ids import HostId

PARENTS_KEPT_MAX: Final = 32_768
"""Serialised parents of about 60 bytes each; a scheduler has at most 20,000 hosts by default."""

_SMALL_VARINTS: Final = tuple(bytes((value,)) for value in range(0x80))


def varint(value: int) -> bytes:
    """Base-128, least significant group first, as protobuf writes lengths and numbers."""
    if value < 0x80:
        return _SMALL_VARINTS[value]
    if value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
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
    parts = [_text(b"\x0a", message.collection_id)]
    for parent in message.added:
        parts += (b"\x12", _parent(parent))
    return _entry(b"\x22", parts, _listed(message.removed))


def assigned_entry(message: Assigned) -> bytes:
    """The entry of a host's parents by stripe: field 13."""
    parts = [_text(b"\x0a", message.collection_id), _number(b"\x10", message.unit_bytes)]
    return _entry(b"\x6a", parts, _listed(message.parents))


def directory_entry(message: Directory) -> bytes:
    """The entry of a page of a directory: field 14."""
    parts = [_text(b"\x0a", message.collection_id), _number(b"\x10", message.first)]
    for host in message.hosts:
        parts += (b"\x1a", _parent(host))
    return _entry(b"\x72", parts)


def _entry(kind: bytes, *parts: list[bytes]) -> bytes:
    """The entry of a message of one kind, from its fields."""
    body = b"".join(chain(*parts))
    return entry_of(kind + varint(len(body)) + body)


def _listed(host_ids: Iterable[HostId]) -> list[bytes]:
    """Field 3, a list of names: an empty one stays in it."""
    return [_name(host_id) for host_id in host_ids]


@lru_cache(maxsize=PARENTS_KEPT_MAX)
def _name(host_id: HostId) -> bytes:
    data = host_id.encode()
    return b"\x1a" + varint(len(data)) + data


@lru_cache(maxsize=PARENTS_KEPT_MAX)
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
