"""How `--help` is laid out for the commands that scripts run many times.

argparse makes a formatter for every option that it is told of, help or not, and its own one loads
`shutil`, with every compressor of Python, to ask how wide the terminal is.
"""

import argparse
import os
from typing import Final

COLUMNS_USUAL: Final = 80
"""Where nobody tells."""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """argparse's, as wide as the terminal."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_columns() - 2)


def _columns() -> int:
    try:
        told = int(os.environ.get("COLUMNS", "0"))
        return told if told > 0 else os.get_terminal_size().columns or COLUMNS_USUAL
    except (ValueError, OSError):
        return COLUMNS_USUAL
