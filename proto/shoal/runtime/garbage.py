"""How often a daemon's process looks for garbage that refers to itself."""

import gc
from typing import Final

THRESHOLDS: Final = (20_000, 20, 50)
"""Python's own are 700, 10 and 10."""


def collect_less() -> None:
    """Tells the collector of cycles to look less often, in a process of the daemon's own that has
    started. Nearly all that a daemon makes goes without it, and what it keeps, its modules to begin
    with, is long to look through: each full collection would hold up everybody."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
