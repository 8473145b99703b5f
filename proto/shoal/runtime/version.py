"""Which shoal this is."""

from importlib import metadata

DISTRIBUTION = "shoal-p2p"


def software_version() -> str:
    """The installed version, or `unknown` when run from a tree that was never installed."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "unknown"
