"""Names of things. Decides how a host, task or collection is named; never does IO or randomness.

A *source* is what a user can name before anything was asked of the origin: a digest, or a URL
without its signatures. A *task* is one immutable content. For content named by a digest both are
known at once; for a plain URL the task is known when the origin's validator is.
"""

import hashlib
from typing import NewType, Protocol

HostId = NewType("HostId", str)
"""A machine with a peer daemon; stable over restarts; 1 to 64 characters."""

SourceId = NewType("SourceId", str)
"""64 hex digits: SHA-256 over what a user asked for."""

TaskId = NewType("TaskId", str)
"""64 hex digits: SHA-256 over what fixes the bytes of one content and how it is cut."""

CollectionId = NewType("CollectionId", str)
"""64 hex digits: SHA-256 over the ordered sources of the collection."""

RequestId = NewType("RequestId", int)
"""One piece, stat or origin read asked for by this host; never used twice in a process."""

ConnectionId = NewType("ConnectionId", int)
"""One connection to or from another host, as the shell numbers it; never used twice."""

DownloadId = NewType("DownloadId", int)
"""One wish of a local client; never used twice in a process."""

LeaseNumber = NewType("LeaseNumber", int)
"""The number of an origin lease; 0 stands for a read without a scheduler."""

NO_LEASE = LeaseNumber(0)


class Dice(Protocol):
    """Injected randomness. `random.Random` satisfies it."""

    def random(self) -> float:
        """A number in [0, 1)."""
        ...

    def getrandbits(self, bits: int, /) -> int:
        """A number of so many random bits."""
        ...


def fingerprint(kind: str, *parts: str | int | None) -> str:
    """SHA-256 (hex) over a kind and parts; every part is tagged and length-prefixed, so that no
    two different lists of parts can ever give the same input."""
    hasher = hashlib.sha256()
    for part in (kind, *parts):
        if part is None:
            hasher.update(b"n;")
            continue
        tag = b"i" if isinstance(part, int) else b"s"
        data = str(part).encode()
        hasher.update(b"%s%d:%s;" % (tag, len(data), data))
    return hasher.hexdigest()


def source_of_digest(digest: str, piece_length_bytes: int | None) -> SourceId:
    """The source of a content named by its own digest, wherever it is read from."""
    return SourceId(fingerprint("digest-source", digest, piece_length_bytes))


def source_of_url(url: str, tag: str, application: str, piece_length_bytes: int | None) -> SourceId:
    """The source of a URL from which credentials and signatures were already taken out."""
    return SourceId(fingerprint("url-source", url, tag, application, piece_length_bytes))


def task_of_digest(digest: str, piece_length_bytes: int | None) -> TaskId:
    """The task of a content named by its own digest."""
    return TaskId(fingerprint("digest-task", digest, piece_length_bytes))


def task_of_source(source_id: SourceId, validator: str | None, size_bytes: int | None) -> TaskId:
    """The task of a URL source, once the origin told its validator (ETag or Last-Modified)."""
    return TaskId(fingerprint("source-task", source_id, validator, size_bytes))


def collection_of(sources: tuple[SourceId, ...]) -> CollectionId:
    """The collection of an ordered set of sources; a lone file is a collection of one."""
    return CollectionId(fingerprint("collection", *sources))
