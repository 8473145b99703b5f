"""How often a process looks for garbage that refers to itself: commands and daemons seldom.

Beside the runtime and not in it: a command loads this before anything else, and nothing of that.
"""

import gc
from typing import Final

LOOKED_FOR_AFTER: Final = 20_000
"""Python looks each time that so many things were made; it would after 700. Modules that are being
loaded are no garbage, and a command that lives long makes little that refers to itself."""

THRESHOLDS: Final = (LOOKED_FOR_AFTER, 20, 50)
"""Of a daemon. Python's own are 700, 10 and 10."""


def collect_less() -> None:
    """Tells the collector of cycles to look less often, in a process of the daemon's own that has
    started. Nearly all that a daemon makes goes without it, and what it keeps, its modules to begin
    with, is long to look through: each full collection would hold up everybody."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
