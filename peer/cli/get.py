"""`shoal get`: downloads files through the node's daemon, or by itself where there is none.

Takes dfget's everyday options under the same names. Leaves the whole verified file or none.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from peer.cli.local_client import DaemonError, LocalClient, socket_path
from peer.cli.outcome import FileOutcome, Outcome
from peer.cli.progress import Bar

EPILOG: Final = """\
exit codes: 0 done, 1 failed, 2 wrong usage, 3 wrong digest, 4 the origin refused (401, 403, 404),
5 the disk, 124 time is over, 130 interrupted (run the same command again to resume).
"""


class UsageProblem(Exception):
    """The command line makes no sense; the text says what would."""


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="shoal get",
        description="Download files, through the node's shoal daemon where there is one.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("urls", nargs="+", metavar="URL", help="http or https")
    add("-O", "--output", metavar="PATH", help="file; a directory for several URLs; - for stdout")
    add("--digest", action="append", default=[], metavar="ALGORITHM:HEX", help="sha256 or sha512")
    add("-H", "--header", action="append", default=[], metavar="'NAME: VALUE'")
    add("--header-file", type=Path, help="headers, one per line: they stay out of process lists")
    add("--timeout", default="2h", help="give up after so long (30s, 5m, 2h; 0 for never)")
    add("--piece-length", metavar="SIZE", help="power of two from 256KiB to 8MiB")
    add("--tag", default="", help="tells apart what the same URL gave at other times")
    add("--application", default="", help="like --tag, for the user of the file")
    add("--filtered-query-param", action="append", default=[], metavar="NAME",
        help="query parameter that does not change the content")  # fmt: skip
    add("--disable-back-to-source", action="store_true", help="only from other hosts")
    add("--overwrite", action="store_true", help="replace an output that exists")
    add("-p", "--priority", type=int, default=6, help="0 (least) to 6 (most urgent)")
    add("--no-progress", action="store_true", help="no progress bar")
    add("-e", "--endpoint", metavar="SOCKET", help="the daemon's Unix socket")
    add("--scheduler", action="append", default=[], metavar="HOST:PORT",
        help="join a swarm by itself, without a daemon")  # fmt: skip
    add("--json", action="store_true", help="print one JSON object at the end")
    add("-q", "--quiet", action="store_true", help="print errors only")
    add("-v", "--verbose", action="store_true", help="log what happens")
    return parser


def run(_name: str, arguments: Sequence[str]) -> int:
    """Runs `shoal get`; returns the exit code."""
    options = parser().parse_args(arguments)
    try:
        body, outputs = request_of(options)
    except UsageProblem as problem:
        return _finish(options, _usage(options, str(problem)))
    files = [
        FileOutcome(display(url), "-" if target is None else str(target))
        for url, target in zip(options.urls, outputs, strict=True)
    ]
    outcome = Outcome(files)
    began = time.monotonic()
    try:
        _download(options, body, outputs, outcome)
    except DaemonError as error:
        outcome.fail(error.reason, error.detail)
    except KeyboardInterrupt:
        outcome.fail("cancelled", "interrupted: run the same command again to resume")
    except BrokenPipeError:
        outcome.fail("cancelled", "nobody reads the output any longer")
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - so that the exit does not trip
    outcome.seconds = time.monotonic() - began
    return _finish(options, outcome)


def _usage(options: argparse.Namespace, problem: str) -> Outcome:
    outcome = Outcome([FileOutcome(display(url), "") for url in options.urls])
    outcome.fail("usage", problem)
    return outcome


def _finish(options: argparse.Namespace, outcome: Outcome) -> int:
    # With -O - stdout is the content's.
    stream = sys.stderr if options.output == "-" else sys.stdout
    if options.json:
        stream.write(json.dumps(outcome.as_json()) + "\n")
    elif outcome.ok and not options.quiet and options.output != "-":
        for each in outcome.files:
            stream.write(f"{each.output}  {each.digest}\n")
    if not outcome.ok:
        sys.stderr.write(f"shoal get: {outcome.reason}: {outcome.detail}\n")
    return outcome.exit_code


# ---------------------------------------------------------------- options


def display(url: str) -> str:
    """A URL without user, query and fragment: for people and logs."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def request_of(options: argparse.Namespace) -> tuple[dict[str, Any], list[Path | None]]:
    """The API's request and the output of each URL. Raises UsageProblem."""
    urls = options.urls
    digests = options.digest
    if digests and len(digests) != len(urls):
        raise UsageProblem(f"{len(digests)} digests for {len(urls)} URLs: give one for each")
    headers = [header_of(line) for line in options.header]
    if options.header_file is not None:
        headers += _headers_in(options.header_file)
    outputs = outputs_of(options)
    body: dict[str, Any] = {
        "urls": [
            {"url": url, "headers": headers, "digest": digests[at] if digests else None}
            for at, url in enumerate(urls)
        ],
        "outputs": [None if target is None else str(target) for target in outputs],
        "tag": options.tag,
        "application": options.application,
        "piece_length": None if not options.piece_length else size_of(options.piece_length),
        "filtered_query_params": options.filtered_query_param,
        "priority": options.priority,
        "disable_back_to_source": options.disable_back_to_source,
        "overwrite": options.overwrite,
        "demand": "whole",
        "timeout_ms": timeout_of(options.timeout),
    }
    return body, outputs


def header_of(line: str) -> list[str]:
    """`Name: value` as a pair. Raises UsageProblem, without showing the value."""
    name, separator, value = line.partition(":")
    if not separator or not name.strip():
        raise UsageProblem("a header is written 'Name: value'")
    return [name.strip(), value.strip()]


def _headers_in(path: Path) -> list[list[str]]:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageProblem(f"--header-file {path}: {error}") from error
    return [header_of(line) for line in lines if line.strip()]


def size_of(text: str) -> int:
    """`4MiB` or a number of bytes. Raises UsageProblem."""
    units = {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "k": 1 << 10, "m": 1 << 20, "": 1}
    number = text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    unit = text[len(number) :].lower()
    if unit not in units or not number.isdigit():
        raise UsageProblem(f"size {text!r}: write it as 4MiB or 4194304")
    return int(number) * units[unit]


def timeout_of(text: str) -> int:
    """`30s`, `5m`, `2h`, `250ms` or seconds, in milliseconds. Raises UsageProblem."""
    units = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "": 1000}
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz")
    unit = text[len(number) :]
    try:
        return int(float(number) * units[unit])
    except (KeyError, ValueError):
        raise UsageProblem(f"time {text!r}: write it as 30s, 5m or 2h") from None


def outputs_of(options: argparse.Namespace) -> list[Path | None]:
    """Where each URL goes; None is stdout. Raises UsageProblem, also for what exists already."""
    urls, output = options.urls, options.output
    if output == "-":
        if len(urls) != 1:
            raise UsageProblem("-O - takes one URL")
        return [None]
    base = Path(output) if output else Path()
    if len(urls) > 1 or not output or base.is_dir():
        if output and len(urls) > 1 and not base.is_dir():
            raise UsageProblem(f"-O {output}: several URLs need a directory that exists")
        targets = [base / name_of(url) for url in urls]
    else:
        targets = [base]
    if len({target.resolve() for target in targets}) < len(targets):
        raise UsageProblem("two of the URLs end in the same file name")
    for target in targets:
        if target.is_dir():
            raise UsageProblem(f"{target} is a directory")
        if not target.parent.is_dir():
            raise UsageProblem(f"{target.parent} is not a directory that exists")
        if (target.exists() or target.is_symlink()) and not options.overwrite:
            raise UsageProblem(f"{target} exists: use --overwrite to replace it")
    return [Path(os.path.abspath(target)) for target in targets]


def name_of(url: str) -> str:
    """The last part of a URL's path. Raises UsageProblem if it has none."""
    name = unquote(urlsplit(url).path.rpartition("/")[2])
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        raise UsageProblem(f"{display(url)} has no file name: give one with -O")
    return name


# ---------------------------------------------------------------- downloading


def _download(
    options: argparse.Namespace,
    body: dict[str, Any],
    outputs: list[Path | None],
    outcome: Outcome,
) -> None:
    client = LocalClient(socket_path(options.endpoint))
    title = outcome.files[0].url.rpartition("/")[2] or "download"
    wanted = not (options.no_progress or options.quiet or options.json)
    with Bar(title, outcome, wanted=wanted) as bar:
        if options.endpoint or (not options.scheduler and client.answers()):
            if outputs == [None]:
                _stream_from_daemon(client, body, outcome)
            else:
                for event in client.lines("/v1/downloads", body):
                    outcome.take(event)
                    bar.update()
                _write_ourselves(client, outputs, outcome, overwrite=options.overwrite)
            return
        from peer.cli.alone import download_alone

        download_alone(options, body, outputs, outcome, bar)


def _stream_from_daemon(client: LocalClient, body: dict[str, Any], outcome: Outcome) -> None:
    broken: DaemonError | None = None
    with client.request("POST", "/v1/stream", body) as response:
        stream_id = response.headers.get("x-shoal-stream-id", "")
        outcome.files[0].task_id = response.headers.get("x-shoal-task-id")
        sink = sys.stdout.buffer
        try:
            for chunk in response.chunks():
                sink.write(chunk)
        except DaemonError as error:
            broken = error
        sink.flush()
    try:
        ended = client.get_json(f"/v1/streams/{stream_id}")
    except DaemonError:
        # It tells only why; that the content is not whole is known already.
        if broken is None:
            raise
        raise broken from None
    outcome.ok = bool(ended["ok"]) and broken is None
    if not outcome.ok:
        outcome.fail(str(ended["reason"] or "failed"), str(ended["detail"] or broken or ""))
    outcome.files[0].size_bytes = ended["size"]
    outcome.files[0].digest = ended["digest"]
    outcome.origin_bytes = ended["origin_bytes"]
    outcome.peer_bytes = ended["peer_bytes"]


def _write_ourselves(
    client: LocalClient, outputs: list[Path | None], outcome: Outcome, *, overwrite: bool
) -> None:
    """Contents that the daemon does not write for another user: fetched and written here."""
    if not outcome.ok:
        return
    for index, path in outcome.ready.items():
        target = outputs[index]
        assert target is not None
        part = target.with_name(f".{target.name}.shoal-part")
        try:
            with client.request("GET", path) as response, part.open("wb") as sink:
                for chunk in response.chunks():
                    sink.write(chunk)
            if overwrite:
                part.replace(target)
            else:
                # A link never replaces what somebody else made meanwhile.
                os.link(part, target)
            outcome.files[index].how = "copy"
        except OSError as error:
            outcome.fail("disk-failed", f"{target}: {error.strerror or error}")
        finally:
            part.unlink(missing_ok=True)
