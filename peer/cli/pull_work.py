"""The work of `shoal pull`: asks the registry for the manifest, and gives all layers that are
missing to one download, like `shoal get` does.

A right that runs out on the way is asked for again while the download goes on. What is whole stays;
the same command goes on from there.
"""

import argparse
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from peer.cli.get import DAEMON_GRACE_S, is_alone, let_daemon_download
from peer.cli.get_options import display
from peer.cli.held_state import held_state
from peer.cli.local_client import DaemonError, LocalClient, socket_path
from peer.cli.outcome import FileOutcome, Outcome
from peer.cli.progress import Bar
from peer.cli.pull_options import Wish
from peer.cli.pull_plan import PullPlan
from peer.cli.pull_result import Result, print_event
from peer.cli.registry_questions import fresh_right, manifest_and_right
from peer.shell.errors import DownloadError
from peer.shell.oci.layers import Packing
from peer.shell.oci.paths import STATE_NAME
from peer.shell.oci.tree import Tree
from shoal.wire.errors import UsageError

UNWATCHED_PROGRESS_MS: Final = 2000
"""How often to be told how far it is when nobody looks."""

SAVE_EVERY_S: Final = 1.0
"""How often the state is written while files arrive; what it lacks is looked at again."""


class _Arrivals(Outcome):
    """An outcome that tells which file has arrived, and which daemon's download needs a right."""

    def __init__(
        self,
        files: list[FileOutcome],
        on_delivered: Callable[[int], None],
        on_unauthorized: Callable[[str], None],
        on_event: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        super().__init__(files)
        self._on_event = on_event
        self._on_delivered = on_delivered
        self._on_unauthorized = on_unauthorized

    def take(self, event: dict[str, Any]) -> None:
        """One event of the local API."""
        super().take(event)
        if self._on_event is not None:
            self._on_event(event)
        if event["event"] == "delivered":
            self._on_delivered(event["index"])
        elif event["event"] == "unauthorized" and "download" in event:
            self._on_unauthorized(event["download"])


class _Right:
    """Fresh rights to read the repository's blobs, for when the one at hand has run out."""

    def __init__(self, wish: Wish, digest: str) -> None:
        self._wish = wish
        self._digest = digest
        self.problem: DownloadError | UsageError | None = None
        """Why there was no fresh one."""

    def renew(self) -> str | None:
        """A fresh one; None if the registry or the user's credentials refuse."""
        try:
            return fresh_right(self._wish, self._digest)
        except (DownloadError, UsageError) as error:
            self.problem = error
            return None

    def renew_at(self, client: LocalClient, download: str) -> None:
        """Gives a daemon's download a fresh one. Raises DaemonError."""
        body = {"authorization": self.renew()}
        try:
            client.request("POST", f"/v1/downloads/{download}/authorization", body).close()
        except DaemonError as error:
            # Its end was on the way already.
            if error.reason != "unknown-download":
                raise


def pull(wish: Wish, result: Result) -> None:
    """Does it; what came of it is in `result`. Raises DownloadError, DaemonError, UsageError,
    OSError."""
    options = wish.options
    manifest, right = manifest_and_right(wish)
    result.reference, result.digest = str(wish.reference), manifest.digest
    root = Path(options.output).absolute()
    root.mkdir(parents=True, exist_ok=True)
    work = root / STATE_NAME
    with held_state(work), Tree(root) as tree:
        _clean(work)
        plan = PullPlan(
            manifest, tree, wish.patterns, overwrite=options.overwrite, own_files=options.own_files
        )
        result.plan = plan
        plan.prepare()
        try:
            if plan.missing:
                result.end = _fetch(
                    options,
                    _body(wish, plan, right),
                    plan,
                    _Right(wish, plan.missing[0].descriptor.digest),
                )
            else:
                result.end.ok = True
            if not result.end.ok:
                return
            # Only then are the files that it shares with the directory nobody else's.
            _remove(work / "store")
            result.end.ok = False
            plan.finish(wish.reference)
            result.end.ok = True
        finally:
            # Once at the end: to replace a file that was only just written is to wait for the disk.
            plan.state.save()
        _remove(work)


def _remove(directory: Path) -> None:
    """Removes a directory that may be there, as far as that can be done."""
    try:
        directory.rmdir()
    except FileNotFoundError:
        return
    except OSError:
        # It loads every compressor: not for a directory with nothing in it.
        import shutil

        shutil.rmtree(directory, ignore_errors=True)


def _clean(work: Path) -> None:
    """Removes what a killed pull had only half written."""
    for part in work.glob("*.part"):
        part.unlink()


def _body(wish: Wish, plan: PullPlan, right: str | None) -> dict[str, Any]:
    """The API's request: all missing layers as one collection."""
    options = wish.options
    body: dict[str, Any] = {
        "urls": [
            {
                "url": wish.reference.url(
                    "blobs", layer.descriptor.digest, plain_http=options.plain_http
                ),
                "headers": [["Authorization", right]] if right else [],
                "digest": layer.descriptor.digest,
            }
            for layer in plan.missing
        ],
        "outputs": [str(plan.output_of(layer)) for layer in plan.missing],
        "priority": options.priority,
        "disable_back_to_source": options.disable_back_to_source,
        # What must not be replaced was looked for before.
        "overwrite": True,
        "demand": "whole",
        "timeout_ms": wish.timeout_ms,
        "renewable": right is not None,
        "authorities": wish.authorities,
        "progress_ms": 0 if options.events or sys.stderr.isatty() else UNWATCHED_PROGRESS_MS,
    }
    if options.own_files:
        body["own_files"] = True  # Daemons from before it was known would refuse its name.
    return body


def _client(options: argparse.Namespace, timeout_ms: int) -> LocalClient:
    deadline_s = None
    if timeout_ms:
        deadline_s = time.monotonic() + timeout_ms / 1000 + DAEMON_GRACE_S
    return LocalClient(socket_path(options.endpoint), deadline_s)


def _fetch(
    options: argparse.Namespace, body: dict[str, Any], plan: PullPlan, right: _Right
) -> Outcome:
    """One download; what has arrived is known to the plan."""
    layers = plan.missing
    outputs: list[Path | None] = [plan.output_of(layer) for layer in layers]
    files = [
        FileOutcome(display(url["url"]), str(output))
        for url, output in zip(body["urls"], outputs, strict=True)
    ]
    before = [plan.identity(layer) for layer in layers]
    done: set[int] = set()
    saved_s = time.monotonic()

    def title() -> str:
        return f"{len(done)}/{len(layers)} files"

    def delivered(index: int) -> None:
        nonlocal saved_s
        # A daemon in a sandbox of its own may have delivered to another place of that name.
        now = plan.identity(layers[index])
        if layers[index].packing is Packing.RAW and now in (None, before[index]):
            return
        done.add(index)
        bar.rename(title())
        plan.arrived(layers[index], files[index].how)
        if time.monotonic() - saved_s > SAVE_EVERY_S:
            plan.state.save()
            saved_s = time.monotonic()

    client = _client(options, body["timeout_ms"])

    def tell(event: dict[str, Any]) -> None:
        # The name of a running download is for its client alone.
        told = {name: value for name, value in event.items() if name != "download"}
        if (index := event.get("index")) is not None:
            told["layer"] = layers[index].name
        print_event(told)

    outcome = _Arrivals(
        files,
        delivered,
        functools.partial(right.renew_at, client),
        tell if options.events else None,
    )
    wanted = not (options.no_progress or options.quiet or options.json or options.events)
    names = [layer.name for layer in layers]
    with Bar(title(), outcome, wanted=wanted, verbose=options.verbose, names=names) as bar:
        if is_alone(client, options):
            # A whole peer: not for those who only ask a daemon.
            from peer.cli.alone import download_alone

            store = plan.work / "store"
            # It ends with the pull: nobody else has what is linked into it, and no copy is needed.
            body.pop("own_files", None)
            download_alone(options, body, outputs, outcome, bar, root=store, renew=right.renew)
        else:
            let_daemon_download(client, options, body, outputs, outcome, bar)
    if outcome.ok:
        for layer, file in zip(layers, files, strict=True):
            plan.arrived(layer, file.how)
    elif right.problem is not None and outcome.reason in (
        "origin-unauthorized",
        "origin-forbidden",
    ):
        outcome.detail = f"{outcome.detail}; {right.problem}"
    plan.missing = [layer for at, layer in enumerate(layers) if at not in done]
    return outcome
