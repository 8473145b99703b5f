"""`python -m benchmarks.scale WORD ...`: measurements of big swarms. Dispatches, nothing else."""

import sys

from benchmarks.scale import service

WORDS = {"service": service.main}


def main(arguments: list[str]) -> int:
    """Runs what the first word names; returns the exit code."""
    word, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if word not in WORDS:
        sys.stderr.write(f"usage: python -m benchmarks.scale {{{','.join(WORDS)}}} [OPTION...]\n")
        return 2
    return WORDS[word](rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
