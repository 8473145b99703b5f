"""What the local API and the command line need of the daemon: requests, events, and Protocols.

`Downloads` is the whole seam between whoever talks to local clients (the Unix-socket API, a
standalone `shoal get`) and the daemon that downloads. Plain values only: nothing here does IO,
knows HTTP or JSON, or decides anything.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from peer.shell.origin.places import PlaceRules
from shoal.wire.control import Demand
from shoal.wire.errors import Reason

# ---------------------------------------------------------------- requests


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedUrl:
    """One URL of a request. URL and headers may carry secrets, so `repr` shows neither."""

    url: str = field(repr=False)
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    digest: str | None = None
    """`algorithm:hex`, as `shoal.wire.digest.parse_digest` accepts it."""
    places: PlaceRules | None = None
    """Which addresses it may be read from; None for any."""
    trusted: bool = False
    """An operator named its host: that it lets the client have a content with this digest is
    believed. For a URL of the client's choice it has to be shown (`peer.core.proofs`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadRequest:
    """A collection of URLs that a local client wants, in order."""

    urls: tuple[WantedUrl, ...]
    outputs: tuple[Path | None, ...]
    """One per URL: the absolute path to deliver to, or None to leave it in the store only."""
    tag: str = ""
    application: str = ""
    piece_length_bytes: int | None = None
    filtered_query_params: tuple[str, ...] = ()
    """Query parameters that do not change the bytes, beside the well-known signatures."""
    priority: int = 0
    """Larger is more urgent."""
    disable_back_to_source: bool = False
    """This host must not read from the origin."""
    overwrite: bool = False
    own_files: bool = False
    """No hard links to the store: each output is a file of its own, to write to and to date."""
    demand: Demand = Demand.WHOLE
    timeout_ms: int = 0
    """The download fails with TIMEOUT after so long; 0 for never."""
    authorities: str = ""
    """PEM certificates that the origins of this request may be known by too. Only for URLs with a
    digest: what other bytes somebody else's certificate vouched for would then be noticed."""
    progress_ms: int = 0
    """How often its client wants to be told how far it is; 0 for as often as a person can see."""
    renewable: bool = False
    """Its client answers `RightNeeded` with a fresh Authorization."""


# ---------------------------------------------------------------- events of a download


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A URL is known to be this task. Once per URL, before its end."""

    index: int
    task_id: str
    size_bytes: int | None
    digest: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a download is, all URLs together."""

    received_bytes: int = 0
    """Verified and written, what was held before included."""
    size_bytes: int | None = None
    """Of all URLs; None while any is unknown."""
    origin_bytes: int = 0
    """Read from the origin by this host for this download."""
    peer_bytes: int = 0
    """Received from other hosts for this download."""
    rate_bytes_s: int = 0
    """Over the last two seconds; filled in by `peer.shell.api_events.follow`."""
    files: tuple[tuple[int, int], ...] = ()
    """How many bytes of each URL are there, by its index: of all that are known, and from `follow`
    of those that changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """A URL's whole verified content is at its output path."""

    index: int
    task_id: str
    size_bytes: int
    digest: str
    path: Path
    how: str
    """`hard-link`, `reflink` or `copy`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A URL without an output path is whole and verified in the store."""

    index: int
    task_id: str
    size_bytes: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """Every URL is delivered or ready. The last event of a download that succeeded."""

    size_bytes: int
    origin_bytes: int
    peer_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The download failed. The last event of a download that did not succeed."""

    reason: Reason
    detail: str
    index: int | None = None
    """The URL at fault, where it is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RightNeeded:
    """The origin refuses the Authorization that the client gave: it may have run out. Only for
    downloads that are `renewable`; to be answered with `Download.renew`, soon."""

    reason: Reason


DownloadEvent = Resolved | Progress | Delivered | Ready | RightNeeded | Done | Failed


# ---------------------------------------------------------------- what the daemon offers


class Download(Protocol):
    """One running download."""

    def events(self) -> AsyncIterator[DownloadEvent]:
        """Milestones as they happen; the last one is exactly one `Done` or `Failed`. To be
        iterated once. `Progress` need not be among them: whoever shows it asks `progress()`."""
        ...

    def progress(self) -> Progress:
        """How far it is now. Cheap."""
        ...

    def renew(self, authorization: str | None) -> None:
        """Answers `RightNeeded`: another value of the Authorization header for every URL that came
        with one, or None if there is none to be had, which fails the download. Allowed at any
        time, for a right that is about to run out."""
        ...

    async def close(self) -> None:
        """Nobody wants it any longer: cancels it if it still runs. Safe to call twice."""
        ...


class ContentStream(Protocol):
    """The content of one URL, in order, while its pieces still arrive."""

    @property
    def task_id(self) -> str:
        """The task that the URL was resolved to."""
        ...

    @property
    def size_bytes(self) -> int | None:
        """None while the origin did not tell it."""
        ...

    @property
    def digest(self) -> str | None:
        """The content's own digest where it is known from the start."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """Verified bytes in order, to be iterated once. `bytes`, since event loops keep what they
        are given to write. The last piece comes only after the whole digest has passed. Raises
        DownloadError; then what came before is not the whole content."""
        ...

    def progress(self) -> Progress:
        """How far the download behind the stream is. Cheap."""
        ...

    async def close(self) -> None:
        """Nobody reads any longer: cancels the download if it still runs. Safe to call twice."""
        ...


class LentContent(Protocol):
    """A whole, verified content lent by the store; its bytes stay until it is given back."""

    @property
    def fd(self) -> int:
        """Read-only file descriptor of the content from offset 0."""
        ...

    @property
    def size_bytes(self) -> int:
        """Length of the content."""
        ...

    @property
    def digest(self) -> str:
        """`algorithm:hex`"""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSummary:
    """One task in the store, as people want to see it."""

    task_id: str
    display_url: str
    """Without user, query and fragment; empty if unknown."""
    size_bytes: int | None
    held_bytes: int
    sealed: bool
    """Whole, and its digest has passed."""
    digest: str | None
    used_s_ago: float | None = None
    """Seconds since it was last delivered, read or served."""
    pinned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmContent:
    """What the swarm holds of one content, this host included."""

    digest: str
    hosts: int
    """That hold something of it."""
    whole_hosts: int
    """That have it whole and verified."""
    covered_bytes: int
    """That are held by some host."""
    size_bytes: int | None
    """None while the scheduler does not know it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmCounts:
    """What the swarm holds of some contents, as its scheduler counts it now."""

    hosts: int | None
    """That hold something of any of them. None: they are more than can be counted together."""
    whole_hosts: int | None
    """That have all of them."""
    contents: tuple[SwarmContent, ...]


class Downloads(Protocol):
    """What local clients may ask of a peer daemon."""

    def start(self, request: DownloadRequest) -> Download:
        """Begins a download. Raises UsageError for a request that makes no sense, DownloadError
        if none can be taken now (OVERLOADED, SHUTTING_DOWN)."""
        ...

    async def stream(self, request: DownloadRequest) -> ContentStream:
        """Begins to stream the one URL of the request; returns once its task is known. Raises
        UsageError, DownloadError. Cancelled, it leaves nothing running."""
        ...

    async def lend(self, task_id: str) -> AbstractContextManager[LentContent]:
        """Lends a whole content. Raises DownloadError: UNKNOWN_TASK, or NOT_HELD if it is not
        whole yet."""
        ...

    async def tasks(self) -> tuple[TaskSummary, ...]:
        """Every task in the store, most recently used first."""
        ...

    async def swarm(self, digests: tuple[str, ...]) -> SwarmCounts:
        """What the swarm holds of contents with these digests, at least one. Raises DownloadError
        if that is not known: NO_SCHEDULER, TIMEOUT or OVERLOADED. Within seconds."""
        ...

    async def remove(self, task_id: str) -> None:
        """Deletes a task. Raises DownloadError: UNKNOWN_TASK, or OVERLOADED if it is in use."""
        ...

    def status(self) -> dict[str, Any]:
        """What the daemon is and does, as values that JSON can hold. Without secrets. Keys are
        described at `shoal status` in the manual."""
        ...


# ---------------------------------------------------------------- without a daemon

OnEvent = Callable[[DownloadEvent], None]
Renew = Callable[[], Awaitable[str | None]]
"""Gives a fresh Authorization, None if there is none. Raises nothing."""
WriteChunk = Callable[[bytes], Awaitable[None]]


class DownloadStandalone(Protocol):
    """`peer.shell.standalone.download_standalone`: a whole peer for the time of one download."""

    async def __call__(
        self,
        request: DownloadRequest,
        scheduler_addresses: tuple[str, ...],
        state_root: Path,
        on_event: OnEvent,
        write_chunk: WriteChunk | None = None,
    ) -> None:
        """Runs one download to its end; the last event is `Done` or `Failed`, which is how it
        reports failure. `Progress` comes at most ten times a second. With `write_chunk` the
        request has one URL and no output, and its content is handed over in order, the last piece
        after the digest passed. Cancelling the coroutine stops the peer cleanly, and the state
        root then allows to resume."""
        ...
