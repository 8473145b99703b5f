"""Many clients at once on one node: every byte right, little memory, one copy from the registry."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.real.mirror.layers import Blob
from benchmarks.real.mirror.node import Node, running_node
from benchmarks.real.mirror.reading import read
from benchmarks.real.registry import Registry
from benchmarks.real.small import percentile
from shoal.wire.errors import ShoalError

PEAK_RSS_BYTES_MAX: Final = 300_000_000
COPIES_MAX: Final = 1.02
"""Of each blob's bytes from the registry; the look at its size is a part of it."""
SETTLE_S: Final = 0.5
"""For the registry to write down the requests that have just ended."""


@dataclass(frozen=True, slots=True)
class Crowd:
    """Who reads what: each client reads some of the blobs, all of them at the same time."""

    clients: int
    blobs: tuple[Blob, ...]
    blobs_each: int

    def wanted(self) -> list[Blob]:
        """One entry per request. Neighbours read the same first blob, and others beside it."""
        count = len(self.blobs)
        return [
            self.blobs[(client + each * (1 + client // count) * 37) % count]
            for client in range(self.clients)
            for each in range(self.blobs_each)
        ]


def measure(
    directory: Path,
    registry: Registry,
    crowd: Crowd,
    manifest: str,
    scheduler: str,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """A cold and a warm round on one node. `manifest`: the path of one that names all blobs, which
    is asked for first, as container runtimes do; "" for blobs that are asked for alone. Raises
    ShoalError only if nothing can be measured."""
    registry.reads()  # Of rounds before.
    with running_node(directory / "node", registry.address, scheduler) as node:
        if manifest:
            read(node.mirror, manifest)
        rounds = [
            {"name": name, **_round(node, registry, crowd, tell, f"{name}, {manifest or 'alone'}")}
            for name in ("cold", "warm")
        ]
        peak = node.peak_rss_bytes()
    return {
        "clients": crowd.clients,
        "requests": len(crowd.wanted()),
        "blobs": len(crowd.blobs),
        "blob_bytes": crowd.blobs[0].size_bytes,
        "by_manifest": bool(manifest),
        "peak_rss_bytes": peak,
        "rounds": rounds,
    }


def _round(
    node: Node, registry: Registry, crowd: Crowd, tell: Callable[[str], None], name: str
) -> dict[str, Any]:
    wanted = crowd.wanted()
    tell(f"{crowd.clients} clients, {len(wanted)} requests at once, {name}")
    before_s, began = node.cpu_s(), time.monotonic()
    with ThreadPoolExecutor(len(wanted)) as pool:
        ends = list(pool.map(lambda blob: _read_one(node.mirror, blob), wanted))
    seconds = time.monotonic() - began
    time.sleep(SETTLE_S)
    sent = registry.reads().body_bytes
    errors = [end for end in ends if isinstance(end, str)]
    times = [end for end in ends if not isinstance(end, str)]
    copies = [sent[blob.digest] / blob.size_bytes for blob in crowd.blobs]
    return {
        "seconds": round(seconds, 2),
        "cpu_s": round(node.cpu_s() - before_s, 2),
        "peak_rss_bytes": node.peak_rss_bytes(),
        "errors": len(errors),
        "error": errors[0] if errors else "",
        "p50_s": round(percentile(times, 50), 2) if times else 0.0,
        "max_s": round(max(times, default=0.0), 2),
        "copies": round(sum(copies) / len(copies), 4),
        "copies_max": round(max(copies), 4),
    }


def _read_one(mirror: str, blob: Blob) -> float | str:
    """How long it took, or what went wrong."""
    try:
        reading = read(mirror, blob.path, with_digest=True)
    except ShoalError as error:
        return str(error)
    return reading.total_s if reading.digest == blob.digest else f"{blob.digest}: wrong bytes"


def missed(result: dict[str, Any]) -> list[str]:
    """The bars that a measurement did not reach, in words."""
    told = []
    if result["peak_rss_bytes"] > PEAK_RSS_BYTES_MAX:
        told.append(
            f"the daemon took {result['peak_rss_bytes']} bytes of memory, over {PEAK_RSS_BYTES_MAX}"
        )
    for each, most in zip(result["rounds"], (COPIES_MAX, 0.0), strict=True):
        if each["errors"]:
            told.append(f"{each['name']}: {each['errors']} requests failed: {each['error']}")
        if each["copies_max"] > most:
            told.append(
                f"{each['name']}: the registry sent {each['copies_max']} copies of a blob, over "
                f"{most}"
            )
    return told
