"""The options of `shoal get`: dfget's everyday ones under the same names, checked at once.

Turns a command line into the request of the local API and the path of each output. Every problem
is a UsageProblem that says what would be right; none shows a header's value or a URL's query.
"""

import argparse
import os
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from peer.cli.help import HelpFormatter

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
        formatter_class=HelpFormatter,
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
    add("--transfer-from-dfdaemon", action="store_true",
        help="write the output here instead of letting the daemon do it")  # fmt: skip
    add("--overwrite", action="store_true", help="replace an output that exists")
    add("--own-files", action="store_true",
        help="no hard link into the daemon's store: a file of its own, to write to")  # fmt: skip
    add("-p", "--priority", type=int, default=6, help="0 (least) to 6 (most urgent)")
    add("--no-progress", action="store_true", help="no progress bar")
    add("-e", "--endpoint", metavar="SOCKET", help="the daemon's Unix socket")
    add("--scheduler", action="append", default=[], metavar="HOST:PORT",
        help="join a swarm by itself, without a daemon")  # fmt: skip
    add("--json", action="store_true", help="print one JSON object at the end")
    add("-q", "--quiet", action="store_true", help="print errors only")
    add("-v", "--verbose", action="store_true", help="log what happens")
    return parser


def display(url: str) -> str:
    """A URL without user, query and fragment: for people and logs."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(no valid URL)"
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
    if options.own_files and any(outputs):
        body["own_files"] = True  # Daemons from before it was known would refuse its name.
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
        milliseconds = int(float(number) * units[unit])
    except (KeyError, ValueError, OverflowError):
        milliseconds = -1
    if milliseconds < 0:
        raise UsageProblem(f"time {text!r}: write it as 30s, 5m or 2h")
    return milliseconds


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
    try:
        name = unquote(urlsplit(url).path.rpartition("/")[2])
    except ValueError:
        name = ""
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        raise UsageProblem(f"{display(url)} has no file name: give one with -O")
    return name
