"""`shoal version`: what is installed, as one line."""

import sys
from collections.abc import Sequence

from shoal.runtime.version import software_version


def run(_name: str, arguments: Sequence[str]) -> int:
    """Prints the version; returns the exit code."""
    if arguments:
        sys.stderr.write("shoal version: takes no arguments\n")
        return 2
    sys.stdout.write(f"shoal {software_version()}\n")
    return 0
