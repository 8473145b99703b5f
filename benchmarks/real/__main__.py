"""`python -m benchmarks.real`: what shoal costs on this machine, beside curl from nginx.

Prints a table (or `--json`): CPU seconds per GB from the origin to a peer and from peer to peer,
peak memory of the daemons, and the latency of small files. Everything runs on loopback with real
processes; the numbers are those of one machine in one run, so compare rows, not machines.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.real import bulk, small
from benchmarks.real.command import run
from benchmarks.real.machine import described, facts, load_average
from peer.cli.local import human
from shoal.runtime.config_values import parse_size


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real", description=__doc__)
    parser.add_argument("--size", default="1GiB", help="of the big file; 0 leaves it out")
    parser.add_argument("--api-runs", type=int, default=200, help="small files at the API")
    parser.add_argument("--command-runs", type=int, default=50, help="small files by `shoal get`")
    parser.add_argument("--directory", type=Path, help="where files go; default: TMPDIR")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints; returns the exit code."""
    options = parser().parse_args(arguments)
    result = run(
        "benchmarks.real",
        options,
        lambda work: measure(work, options),
        table,
        place=lambda: options.directory,
    )
    return result if isinstance(result, int) else 0


def measure(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All numbers as one object."""

    def tell(text: str) -> None:
        sys.stderr.write(f"{text} ...\n")

    size_bytes = int(parse_size(options.size))
    result: dict[str, Any] = {"machine": facts(work)}
    for name in ("bulk", "small"):
        (work / name).mkdir()
    if size_bytes:
        result["bulk"] = bulk.measure(work / "bulk", size_bytes, tell)
        shutil.rmtree(work / "bulk")
    if options.api_runs or options.command_runs:
        result["small"] = small.measure(
            work / "small", options.api_runs, options.command_runs, tell
        )
    result["machine"]["load_average_after"] = load_average()
    return result


def table(result: dict[str, Any]) -> str:
    """The same for people."""
    lines = described(result["machine"])
    if "bulk" in result:
        measured = result["bulk"]
        lines += [
            "",
            f"{human(measured['size_bytes'])} on loopback",
            f"{'':22}{'seconds':>9}{'GB/s':>8}{'CPU s/GB':>10}   CPU seconds by process",
        ]
        for row in measured["rows"]:
            parts = "  ".join(f"{name} {value:.2f}" for name, value in row["cpu_s"].items())
            lines.append(
                f"{row['name']:22}{row['seconds']:9.2f}{row['gb_per_s']:8.2f}"
                f"{row['cpu_s_per_gb']:10.2f}   {parts}"
            )
        peaks = measured["peak_rss_bytes"].items()
        lines.append("peak memory: " + ", ".join(f"{name} {human(peak)}" for name, peak in peaks))
    if "small" in result:
        measured = result["small"]
        lines += ["", f"{human(measured['file_bytes'])} files over a warm daemon, ms"]
        lines.append(f"{'':22}{'runs':>9}{'p50':>8}{'p99':>10}{'max':>8}")
        for name, title in (("api", "at the API"), ("command", "whole `shoal get`")):
            row = measured[name]
            if row["runs"]:
                lines.append(
                    f"{title:22}{row['runs']:9}{row['p50_ms']:8.1f}{row['p99_ms']:10.1f}"
                    f"{row['max_ms']:8.1f}"
                )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
