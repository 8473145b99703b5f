"""`python -m benchmarks.real.mirror`: what it costs to read a registry through a node's mirror.

Prints a table (or `--json`): time to the first byte and in all of a big layer, straight from a real
registry, through a cold node and through a warm one, over a link of a given rate and over loopback;
then many clients at once on one node. Exit code 0: all bars were reached; 1: nothing could be
measured; 3: a bar was missed (said on stderr). Bars of time hold for the link with a rate; loopback
is told beside it. The link needs root.
"""

import argparse
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from benchmarks.real.command import run
from benchmarks.real.machine import described, facts, load_average
from benchmarks.real.mirror import crowd, stream
from benchmarks.real.mirror.layers import Blob, push_artifact, push_layer
from benchmarks.real.mirror.node import running_scheduler
from benchmarks.real.network import Network, check_possible
from benchmarks.real.registry import Registry
from peer.cli.local import human
from shoal.runtime.config_values import parse_size
from shoal.wire.errors import ShoalError

BAR_MISSED: Final = 3
COPIES: Final = 3
"""Of what is read at the same time: the registry's, while it is pushed a second one, the node's."""
MEMORY_FILE_SYSTEM: Final = Path("/dev/shm")


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real.mirror", description=__doc__)
    parser.add_argument("--size", default="1GB", help="of the layer; 0 leaves it out")
    parser.add_argument("--rate", type=int, default=1000, help="of the link, Mbit/s; 0: no link")
    parser.add_argument("--turns", type=int, default=5, help="of each way to read the layer")
    parser.add_argument("--clients", type=int, default=200, help="at once; 0 leaves them out")
    parser.add_argument("--blobs", type=int, default=100, help="that the clients read")
    parser.add_argument("--blobs-each", type=int, default=2, help="that each client reads")
    parser.add_argument("--blob-size", default="20MB", help="of each of them")
    parser.add_argument("--alone", action="store_true", help="nodes without a scheduler")
    parser.add_argument(
        "--directory", type=Path, help="where files go; default: memory if they fit, else TMPDIR"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints; returns the exit code."""
    options = parser().parse_args(arguments)
    result = run(
        "benchmarks.real.mirror",
        options,
        lambda work: measure(work, options),
        table,
        place=lambda: _place(options),
    )
    if isinstance(result, int):
        return result
    for text in result["missed"]:
        sys.stderr.write(f"missed: {text}\n")
    return BAR_MISSED if result["missed"] else 0


def _check_link_possible() -> None:
    try:
        check_possible()
    except ShoalError as error:
        raise ShoalError(f"{error}; --rate 0 measures loopback alone") from None


def _place(options: argparse.Namespace) -> Path | None:
    if options.directory is not None:
        return Path(options.directory)
    needed_bytes = COPIES * max(
        int(parse_size(options.size)), options.blobs * int(parse_size(options.blob_size))
    )
    if not MEMORY_FILE_SYSTEM.is_dir():
        return None
    free_bytes = shutil.disk_usage(MEMORY_FILE_SYSTEM).free
    return MEMORY_FILE_SYSTEM if free_bytes > 2 * needed_bytes else None


def measure(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All numbers as one object."""

    def tell(text: str) -> None:
        sys.stderr.write(f"{text} ...\n")

    if options.rate:
        _check_link_possible()
    result: dict[str, Any] = {"machine": facts(work), "missed": []}
    with ExitStack() as stack:
        scheduler = ""
        if not options.alone:
            scheduler = stack.enter_context(running_scheduler(work / "scheduler"))
        result["scheduler"] = bool(scheduler)
        storage = work / "storage"
        (work / "near").mkdir()
        near = stack.enter_context(Registry(work / "near", storage))
        if size_bytes := int(parse_size(options.size)):
            result["stream"] = _stream(work, near, size_bytes, options, scheduler, tell)
            if options.rate:
                shaped = result["stream"]["shaped"]
                result["missed"] += stream.missed(shaped)
            shutil.rmtree(storage)
        if options.clients:
            result["crowd"] = _crowd(work, near, options, scheduler, tell)
            result["missed"] += [text for each in result["crowd"] for text in crowd.missed(each)]
    result["machine"]["load_average_after"] = load_average()
    return result


def _stream(
    work: Path,
    near: Registry,
    size_bytes: int,
    options: argparse.Namespace,
    scheduler: str,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    tell("filling the registry")
    blob = push_layer(near.address, "layer", size_bytes)
    push_artifact(near.address, "layer", (blob,))
    result: dict[str, Any] = {"rate_mbit_s": options.rate}
    if options.rate:
        result["shaped"] = _over_link(work, blob, options, tell)
    result["loopback"] = stream.measure(work, near.address, blob, options.turns, scheduler, tell)
    return result


def _over_link(
    work: Path, blob: Blob, options: argparse.Namespace, tell: Callable[[str], None]
) -> dict[str, Any]:
    """The registry is on another host than the node and the client; both directions of the far
    host's link are held at the rate, and nothing else is."""
    with ExitStack() as stack:
        network = stack.enter_context(Network())
        network.add("near", 0)
        address = network.add("far", options.rate * 1_000_000 // 8)
        (work / "far").mkdir()
        with network.inside("far"):
            far = stack.enter_context(Registry(work / "far", work / "storage", address))
        stack.enter_context(network.inside("near"))
        scheduler = ""
        if not options.alone:
            scheduler = stack.enter_context(running_scheduler(work / "near-scheduler"))
        return stream.measure(work, far.address, blob, options.turns, scheduler, tell)


def _crowd(
    work: Path,
    near: Registry,
    options: argparse.Namespace,
    scheduler: str,
    tell: Callable[[str], None],
) -> list[dict[str, Any]]:
    tell("filling the registry")
    size_bytes = int(parse_size(options.blob_size))
    blobs = tuple(
        push_layer(near.address, f"blob {number}", size_bytes) for number in range(options.blobs)
    )
    manifest = push_artifact(near.address, "crowd", blobs)
    people = crowd.Crowd(options.clients, blobs, options.blobs_each)
    return [crowd.measure(work, near, people, path, scheduler, tell) for path in ("", manifest)]


def table(result: dict[str, Any]) -> str:
    """The same for people."""
    lines = described(result["machine"])
    lines[-1] += f"; nodes {'with a' if result['scheduler'] else 'without'} scheduler"
    for name in ("shaped", "loopback"):
        measured = result.get("stream", {}).get(name)
        if measured is None:
            continue
        where = f"{result['stream']['rate_mbit_s']} Mbit/s" if name == "shaped" else name
        lines += [
            "",
            f"a layer of {human(measured['size_bytes'])}, {where}",
            f"{'':12}{'first byte ms':>14}{'total s':>10}{'GB/s':>8}{'CPU s/GB':>10}{'peak':>10}",
        ]
        for row in measured["rows"]:
            line = (
                f"{row['name']:12}{row['first_byte_ms']:14.2f}{row['total_s']:10.3f}"
                f"{row['gb_per_s']:8.3f}"
            )
            if "cpu_s_per_gb" in row:
                line += f"{row['cpu_s_per_gb']:10.2f}{human(row['peak_rss_bytes']):>10}"
            lines.append(line)
        ratios = measured["ratios"]
        lines.append(
            f"over straight: cold {ratios['cold_total']}, warm {ratios['warm_total']}; first byte "
            f"{ratios['cold_first_byte_extra_ms']} ms over {stream.FIRST_BYTE_RATIO_MAX} x straight"
        )
    for measured in result.get("crowd", ()):
        lines += [
            "",
            f"{measured['clients']} clients, {measured['requests']} requests at once for "
            f"{measured['blobs']} blobs of {human(measured['blob_bytes'])}, "
            f"{'named by a manifest' if measured['by_manifest'] else 'asked for alone'}; peak "
            f"{human(measured['peak_rss_bytes'])}",
            f"{'':12}{'seconds':>9}{'CPU s':>8}{'errors':>8}{'p50 s':>8}{'max s':>8}{'copies':>9}",
        ]
        lines += [
            f"{row['name']:12}{row['seconds']:9.2f}{row['cpu_s']:8.2f}{row['errors']:8}"
            f"{row['p50_s']:8.2f}{row['max_s']:8.2f}{row['copies']:9.4f}"
            for row in measured["rounds"]
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
