"""`python -m benchmarks.scale`: a big swarm in simulated time, ours or a model of another system.

Prints a table, or JSON with `--json`; `--compare` runs every policy on the same plan. The first
word `service` measures the real scheduler under synthetic hosts instead (`service --help`);
`results FILE...` makes a table in Markdown of stored JSON.
docs/benchmarks.md defines scenarios, bounds and every number.
"""

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.scale import report
from benchmarks.scale.bounds import binding
from benchmarks.scale.options import (
    RunOptions,
    choose_unit,
    parse_bandwidth,
    parse_node_rates,
    parse_unit,
)
from benchmarks.scale.policies import COMPARED, POLICIES, run
from benchmarks.scale.scenarios import SCENARIOS, build
from shoal.runtime.config_values import parse_size
from shoal.wire.errors import UsageError

COMPARED_SCENARIOS = ("equal", "zones")


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--nodes", type=int, default=500, help="hosts (default 500)")
    add("--size", default="64GiB", help="what every host wants, such as 64GiB (default)")
    add("--layers", type=int, default=1, help="equal parts of it, tasks of one collection")
    add("--node-rate", default="25Gb", help="both ways: 25Gb, 3.125GB, or a mix 0.5x,1x,2x,4x")
    add("--origin-rate", default="1x", help="25Gb, 3.125GB, or multiples of a node (default 1x)")
    add("--zones", type=int, default=4, help="in the scenarios with zones (default 4)")
    add("--scenario", help="default equal, with --compare equal and zones: " + ", ".join(SCENARIOS))
    add("--policy", default="ours", help=", ".join(POLICIES))
    add("--compare", action="store_true", help="run every policy: " + ", ".join(COMPARED))
    add("--seed", type=int, default=1)
    add("--unit", help="bytes per simulated unit; default: 8 to 64 MiB by the size")
    add("--limit-s", type=float, help="give a run up after so many simulated seconds")
    add("--json", action="store_true", help="one JSON object; with --compare a list")
    add("--plot", type=Path, metavar="FILE.png", help="draw the run (the first one of --compare)")
    return parser


def read(arguments: argparse.Namespace) -> RunOptions:
    """The options of a run. Raises UsageError."""
    rates = parse_node_rates(arguments.node_rate)
    size_bytes = int(parse_size(arguments.size))
    multiples = all(word.strip().endswith("x") for word in arguments.node_rate.split(","))
    origin = (
        parse_bandwidth(arguments.origin_rate)
        if multiples
        else parse_bandwidth(arguments.origin_rate, rates[0])
    )
    return RunOptions(
        nodes=arguments.nodes,
        size_bytes=size_bytes,
        layers=arguments.layers,
        node_rates_bytes_s=rates,
        origin_rate_bytes_s=origin,
        zones=arguments.zones,
        scenario=arguments.scenario or "equal",
        policy=arguments.policy,
        seed=arguments.seed,
        unit_bytes=parse_unit(arguments.unit) if arguments.unit else choose_unit(size_bytes),
        limit_s=arguments.limit_s,
    )


def measure(options: RunOptions, picture: Path | None) -> dict[str, Any]:
    """Runs one policy; draws it if asked to."""
    plan = build(options)
    step_s = binding(plan).seconds / 100 if picture is not None else None
    result, outcome = run(options, plan, step_s)
    result["commit"] = report.commit()
    if picture is not None and outcome.curves is not None:
        # It takes a second to load, which other runs need not spend.
        plot = importlib.import_module("benchmarks.scale.plot")
        plot.draw(picture, plan, outcome, result)
    return result


def compared(arguments: argparse.Namespace, options: RunOptions) -> list[RunOptions]:
    """The runs of a comparison. Without a scenario of its own also one with zones, for what crosses
    between zones is a part of what policies differ in."""
    scenarios = [arguments.scenario] if arguments.scenario else COMPARED_SCENARIOS
    return [
        replace(options, scenario=scenario, policy=policy)
        for scenario in scenarios
        for policy in COMPARED
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs and prints. 0: every host finished; 1: some did not, or an invariant broke;
    2: wrong usage."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] == "service":
        service = importlib.import_module("benchmarks.scale.service")
        return int(service.main(words[1:]))
    if words and words[0] == "results":
        return _show_stored(words[1:])
    arguments = parser().parse_args(words)
    try:
        options = read(arguments)
        results: list[dict[str, Any]] = []
        for each in compared(arguments, options) if arguments.compare else [options]:
            if arguments.compare:
                sys.stderr.write(f"{each.scenario}, {each.policy} ...\n")
            picture = arguments.plot if not results else None
            results.append(measure(each, picture))
    except UsageError as error:
        sys.stderr.write(f"benchmarks.scale: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    text = (
        report.as_json(results, many=arguments.compare)
        if arguments.json
        else report.tables(results)
    )
    sys.stdout.write(text + "\n")
    return 1 if any(result["failures"] for result in results) else 0


def _show_stored(files: Sequence[str]) -> int:
    results: list[dict[str, Any]] = []
    try:
        for name in files:
            stored = json.loads(Path(name).read_text())
            results += stored if isinstance(stored, list) else [stored]
    except (OSError, ValueError) as error:
        sys.stderr.write(f"benchmarks.scale: give files written with --json: {error}\n")
        return 2
    sys.stdout.write(report.summary(results) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
