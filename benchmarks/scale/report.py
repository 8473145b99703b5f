"""How runs are shown: a table for people, JSON for programs, a page's table from stored JSON."""

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from shoal.runtime.config_values import format_size


def commit() -> str:
    """The commit that runs, `-dirty` if files differ from it; `unknown` outside of git."""
    here = Path(__file__).resolve().parent
    try:
        told = subprocess.run(
            ["git", "-c", "safe.directory=*", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return told.stdout.strip()


def headline(result: dict[str, Any]) -> str:
    """The first line: all that it takes to run the same again."""
    options = ", ".join(
        f"{name} {value}" for name, value in result["options"].items() if name != "policy"
    )
    return f"seed {result['seed']}, commit {result['commit']}, {options}"


def as_json(results: Sequence[dict[str, Any]], *, many: bool) -> str:
    """One object, or a list of them."""
    return json.dumps(list(results) if many else results[0])


def tables(results: Sequence[dict[str, Any]]) -> str:
    """A table for each plan that was run."""
    plans: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        plans.setdefault(result["scenario"], []).append(result)
    return "\n\n".join(table(runs) for runs in plans.values())


def table(results: Sequence[dict[str, Any]]) -> str:
    """Runs of one plan, one line each."""
    first = results[0]
    lines = [
        headline(first),
        first["definition"],
        f"bound {first['bound_s']:.3f} s (by {first['bound_by']})",
        "",
    ]
    lines += _aligned([[name for name, _ in _COLUMNS], *(_row(result) for result in results)])
    for result in results:
        lines += _remarks(result)
    return "\n".join(lines)


def _row(result: dict[str, Any]) -> list[str]:
    return [show(result) for _, show in _COLUMNS]


def _remarks(result: dict[str, Any]) -> list[str]:
    lines = []
    if result["class_ratios"]:
        told = ", ".join(
            f"{label} {_number(ratio, 3)}" for label, ratio in result["class_ratios"].items()
        )
        lines.append(f"{result['policy']}: slowest of each class over its own bound: {told}")
    if result["collections_s"]:
        told = ", ".join(_number(time, 2) for time in result["collections_s"])
        lines.append(f"{result['policy']}: all hosts had each collection after: {told} s")
    if result["failures"]:
        reasons = ", ".join(f"{name} ({count})" for name, count in result["failures"].items())
        lines.append(f"{result['policy']}: {result['unfinished']} hosts did not finish: {reasons}")
    return lines


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


_COLUMNS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("policy", lambda result: str(result["policy"])),
    ("makespan s", lambda result: _number(result["makespan_s"], 2)),
    ("over bound", lambda result: _number(result["makespan_over_bound"], 3)),
    ("utilisation", lambda result: _number(result["utilisation"], 3)),
    ("p50 s", lambda result: _number(result["p50_s"], 2)),
    ("p99 s", lambda result: _number(result["p99_s"], 2)),
    ("p99.9 s", lambda result: _number(result["p999_s"], 2)),
    ("slowest/p50", lambda result: _number(result["slowest_over_p50"], 3)),
    ("origin copies", lambda result: _number(result["origin_copies"], 3)),
    ("zone copies", lambda result: _number(result["zone_copies_max"], 2)),
    ("rack copies", lambda result: _number(result["rack_copies_max"], 2)),
    ("msg/host/s", lambda result: _number(result["scheduler_messages_per_host_s"], 1)),
    ("CPU s", lambda result: _number(result["cpu_s"], 1)),
)


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def summary(results: Sequence[dict[str, Any]]) -> str:
    """Runs of different plans as a table in Markdown, one line each, with what it takes to run
    each again."""
    columns = [column for column in _COLUMNS if column[0] in _SUMMARY]
    names = ["run", *(name for name, _ in columns), "classes over own bound", "commit"]
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for result in results:
        classes = ", ".join(
            f"{label} {_number(ratio, 3)}" for label, ratio in result["class_ratios"].items()
        )
        shown = [show(result) for _, show in columns]
        cells = [_given(result), *shown, classes or "-", result["commit"]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


_SUMMARY = (
    "policy",
    "makespan s",
    "over bound",
    "utilisation",
    "slowest/p50",
    "origin copies",
    "zone copies",
    "CPU s",
)


def _given(result: dict[str, Any]) -> str:
    options = result["options"]
    size = format_size(result["size_bytes"])
    words = [str(options["scenario"]), f"{options['nodes']} nodes", size]
    if options["layers"] != 1:
        words.append(f"{options['layers']} layers")
    if options["origin_rate"] != options["node_rate"]:
        words.append(f"origin {options['origin_rate']}")
    if result["seed"] != 1:
        words.append(f"seed {result['seed']}")
    return ", ".join(words)
