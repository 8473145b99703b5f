"""One layer, read in turns straight from the registry, through a cold node, and through a warm one.

A cold node is a daemon with an empty store that was never asked for anything; the same one is the
warm node of its turn. Medians over turns of one run.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.real.mirror.layers import Blob
from benchmarks.real.mirror.node import running_node
from benchmarks.real.mirror.reading import Reading, read
from shoal.wire.errors import ShoalError

GB: Final = 1_000_000_000

FIRST_BYTE_RATIO_MAX: Final = 1.5
FIRST_BYTE_EXTRA_S: Final = 0.05
COLD_TOTAL_RATIO_MAX: Final = 1.15
WARM_TOTAL_RATIO_MAX: Final = 0.6


@dataclass(slots=True)
class Row:
    """One way to read the layer."""

    name: str
    readings: list[Reading] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    """Of the daemon, per reading."""
    peak_rss_bytes: int = 0

    def as_json(self, size_bytes: int) -> dict[str, Any]:
        """Medians."""
        told: dict[str, Any] = {
            "name": self.name,
            "first_byte_ms": round(1000 * median(each.first_byte_s for each in self.readings), 2),
            "total_s": round(median(each.total_s for each in self.readings), 3),
            "totals_s": [round(each.total_s, 3) for each in self.readings],
            "gb_per_s": round(size_bytes / GB / median(each.total_s for each in self.readings), 3),
        }
        if self.cpu_s:
            told["cpu_s_per_gb"] = round(median(self.cpu_s) * GB / size_bytes, 2)
            told["peak_rss_bytes"] = self.peak_rss_bytes
        return told


def measure(
    directory: Path,
    registry: str,
    blob: Blob,
    turns: int,
    scheduler: str,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Reads the blob so many times in each way. Raises ShoalError if something fails."""
    straight, cold, warm = Row("straight"), Row("cold"), Row("warm")
    for turn in range(turns):
        tell(f"{blob.size_bytes} bytes from {registry}, turn {turn + 1} of {turns}")
        straight.readings.append(read(registry, blob.path))
        with running_node(directory / "node", registry, scheduler) as node:
            for row in (cold, warm):
                before_s = node.cpu_s()
                row.readings.append(read(node.mirror, blob.path))
                row.cpu_s.append(node.cpu_s() - before_s)
                row.peak_rss_bytes = max(row.peak_rss_bytes, node.peak_rss_bytes())
            if turn == turns - 1:
                _check(node.mirror, blob)
    rows = [row.as_json(blob.size_bytes) for row in (straight, cold, warm)]
    return {"size_bytes": blob.size_bytes, "rows": rows, "ratios": _ratios(*rows)}


def _check(mirror: str, blob: Blob) -> None:
    found = read(mirror, blob.path, with_digest=True).digest
    if found != blob.digest:
        raise ShoalError(f"the mirror sent {found} for {blob.digest}")


def _ratios(
    straight: dict[str, Any], cold: dict[str, Any], warm: dict[str, Any]
) -> dict[str, float]:
    return {
        "cold_first_byte_extra_ms": round(
            cold["first_byte_ms"] - FIRST_BYTE_RATIO_MAX * straight["first_byte_ms"], 2
        ),
        "cold_total": round(cold["total_s"] / straight["total_s"], 3),
        "warm_total": round(warm["total_s"] / straight["total_s"], 3),
    }


def missed(result: dict[str, Any]) -> list[str]:
    """The bars that a measurement did not reach, in words."""
    ratios = result["ratios"]
    told = []
    if ratios["cold_first_byte_extra_ms"] > 1000 * FIRST_BYTE_EXTRA_S:
        told.append(
            f"cold first byte is {ratios['cold_first_byte_extra_ms']} ms behind "
            f"{FIRST_BYTE_RATIO_MAX} x straight; {1000 * FIRST_BYTE_EXTRA_S:g} are allowed"
        )
    for name, most in (("cold", COLD_TOTAL_RATIO_MAX), ("warm", WARM_TOTAL_RATIO_MAX)):
        if ratios[f"{name}_total"] > most:
            told.append(f"{name} total is {ratios[f'{name}_total']} x straight, over {most}")
    return told
