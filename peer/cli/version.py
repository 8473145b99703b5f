"""`shoal version`: what is installed, as one line."""

import sys
from collections.abc import Sequence
from importlib import metadata

DISTRIBUTION = "shoal-p2p"


def version() -> str:
    """The installed version, or `unknown` when run from a tree that was never installed."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "unknown"


def run(_name: str, arguments: Sequence[str]) -> int:
    """Prints the version; returns the exit code."""
    if arguments:
        sys.stderr.write("shoal version: takes no arguments\n")
        return 2
    sys.stdout.write(f"shoal {version()}\n")
    return 0
