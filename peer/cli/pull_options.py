"""The options of `shoal pull` and `shoal inspect`, and what they mean.

Every problem with them is a UsageError or a UsageProblem that says what would be right. Loads
little: `--help` and a typing error should be answered at once.
"""

import argparse
from pathlib import Path
from typing import Final

from peer.cli.get_options import timeout_of
from peer.cli.help import HelpFormatter
from peer.shell.oci.paths import patterns
from peer.shell.oci.platforms import parse_platform
from peer.shell.oci.reference import parse_reference
from shoal.wire.errors import UsageError

EPILOG: Final = """\
Credentials come from SHOAL_REGISTRY_USERNAME and SHOAL_REGISTRY_PASSWORD, or from the files and
helpers of docker, podman and their like. Patterns: `*` stays within a name, `**` crosses slashes,
one without a slash is compared with the last name alone.

exit codes: 0 done, 1 failed, 2 wrong usage, 3 wrong digest, 4 the registry refused (401, 403, 404),
5 the disk, 124 time is over, 130 interrupted (run the same command again to resume).
"""


def parser(name: str) -> argparse.ArgumentParser:
    """The options of a command."""
    about = {
        "pull": "Download a model or a container image from a registry, through the node's shoal "
        "daemon where there is one. An image becomes an OCI layout.",
        "inspect": "Show what a registry has under a name, and what of it this host and its swarm "
        "hold. What the swarm holds is told by the daemon's scheduler.",
    }
    parser = argparse.ArgumentParser(
        prog=f"shoal {name}",
        description=about[name],
        epilog=EPILOG,
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add("reference", metavar="REF", help="host/repository:tag, or @digest")
    if name == "pull":
        add("-o", "--output", required=True, metavar="DIR", help="directory, made if need be")
        add("--include", action="append", default=[], metavar="GLOB", help="only these files")
        add("--exclude", action="append", default=[], metavar="GLOB", help="not these files")
        add("--overwrite", action="store_true", help="replace files that no pull put there")
        add("--own-files", action="store_true",
            help="no hard links into the daemon's store: files of their own, to write to, with the "
            "modes and times of the artifact")  # fmt: skip
        add("--timeout", default="0", help="give up after so long (30s, 5m, 2h; 0 for never)")
        add("-p", "--priority", type=int, default=6, help="0 (least) to 6 (most urgent)")
        add("--disable-back-to-source", action="store_true", help="layers only from other hosts")
        add("--scheduler", action="append", default=[], metavar="HOST:PORT",
            help="join a swarm by itself, without a daemon")  # fmt: skip
        add("--no-progress", action="store_true", help="no progress bars")
        add("--events", action="store_true",
            help="print what happens, one JSON object per line, the result last")  # fmt: skip
        add("-q", "--quiet", action="store_true", help="print errors only")
        add("-v", "--verbose", action="store_true", help="log what happens")
    add("--platform", metavar="OS/ARCH[/VARIANT]", help="of an image for several (this machine's)")
    add("--authfile", type=Path, metavar="FILE", help="credentials: this file and no other")
    add("--plain-http", action="store_true", help="ask the registry without TLS")
    add("--ca-file", type=Path, metavar="FILE",
        help="PEM certificates that the registry may be known by too")  # fmt: skip
    add("-e", "--endpoint", metavar="SOCKET", help="the daemon's Unix socket")
    add("--json", action="store_true", help="print one JSON object at the end")
    return parser


class Question:
    """What both commands want to know of a registry, checked."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Raises UsageError."""
        self.options = options
        self.reference = parse_reference(options.reference)
        self.platform = parse_platform(options.platform) if options.platform else None
        self.authorities = _authorities_of(options)
        """The certificates of `--ca-file` as text, "" for none."""


class Wish(Question):
    """What a pull is wanted to do, checked."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Raises UsageError, UsageProblem."""
        super().__init__(options)
        self.patterns = patterns(options.include, options.exclude)
        self.timeout_ms = timeout_of(options.timeout)


def _authorities_of(options: argparse.Namespace) -> str:
    if options.ca_file is None:
        return ""
    try:
        text: str = options.ca_file.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise UsageError(f"--ca-file {options.ca_file}: {error.strerror}") from None
    return text
