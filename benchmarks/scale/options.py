"""What one run is made of, and how people write it: sizes, rates in bytes or bits, multiples.

Reads text and chooses the simulated unit. Decides nothing about scenarios.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from shoal.runtime.config_values import format_size, parse_size
from shoal.wire.errors import UsageError
from shoal.wire.limits import MIB, RUN_BYTES_MAX

BASE_RATE_BYTES_S: Final = 3_125_000_000
"""25 Gb/s: what multiples such as `0.5x` are of, where no rate is given."""

UNIT_BYTES_MIN: Final = 8 * MIB
"""The largest piece of the protocol; smaller units would simulate less than production's runs."""

UNITS_WANTED: Final = 1000
"""Units a run has at least where the size allows: the loss that the unit itself causes is about
log2(nodes) / units, so below 1 % for 1,000 nodes."""

_BITS: Final = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_BIT_RATE: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)\s*([kKMGT]b)(?:it)?(?:/s|ps)?")
_MULTIPLE: Final = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)x")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """One run. Rates in bytes per second."""

    nodes: int = 500
    size_bytes: int = 64 * 1024 * MIB
    layers: int = 1
    node_rates_bytes_s: tuple[float, ...] = (BASE_RATE_BYTES_S,)
    """One rate, or a mix in equal parts."""
    origin_rate_bytes_s: float = BASE_RATE_BYTES_S
    zones: int = 4
    scenario: str = "equal"
    policy: str = "ours"
    seed: int = 1
    unit_bytes: int = RUN_BYTES_MAX
    latency_ns: int = 500_000
    """One way: round trips of 1 ms."""
    control_batch_ns: int = 250_000_000
    limit_s: float | None = None
    """Simulated seconds after which a run is given up; None for a time that scales with it."""
    quantum_ns: int = 1_000_000

    def __post_init__(self) -> None:
        if self.nodes < 1 or self.layers < 1 or self.zones < 1:
            raise UsageError("--nodes, --layers and --zones must be at least 1")
        if self.size_bytes < self.layers:
            raise UsageError("--size must be at least one byte per layer")
        if any(rate <= 0 for rate in self.node_rates_bytes_s):
            raise UsageError("--node-rate must be more than 0")

    @property
    def base_rate_bytes_s(self) -> float:
        """What `one node` means where a scenario speaks of multiples: the mean of the mix."""
        return sum(self.node_rates_bytes_s) / len(self.node_rates_bytes_s)

    @property
    def layer_sizes(self) -> tuple[int, ...]:
        """The size of each layer: equal ones, the first taking what does not divide."""
        share = self.size_bytes // self.layers
        return (self.size_bytes - share * (self.layers - 1), *[share] * (self.layers - 1))

    def told(self) -> dict[str, object]:
        """The options as people write them."""
        return {
            "nodes": self.nodes,
            "size": format_size(self.size_bytes),
            "layers": self.layers,
            "node_rate": ",".join(format_rate(rate) for rate in self.node_rates_bytes_s),
            "origin_rate": format_rate(self.origin_rate_bytes_s),
            "zones": self.zones,
            "scenario": self.scenario,
            "policy": self.policy,
            "unit": format_size(self.unit_bytes),
            "round_trip_ms": 2 * self.latency_ns / 1e6,
            "control_batch_ms": self.control_batch_ns / 1e6,
        }


def choose_unit(size_bytes: int) -> int:
    """The largest power of two from 8 to 64 MiB that gives at least 1,000 units, else 8 MiB.

    A unit is handed on as a whole, like a run of production (at most 64 MiB, 250 to about 2,000 of
    them per collection); production hands on pieces of a run at once, so it can only be faster.
    """
    unit = RUN_BYTES_MAX
    while unit > UNIT_BYTES_MIN and size_bytes < UNITS_WANTED * unit:
        unit //= 2
    return unit


def parse_bandwidth(text: str, base_bytes_s: float = BASE_RATE_BYTES_S) -> float:
    """Bytes per second from `25Gb` (bits), `3.125GB` (bytes) or `0.2x` (of a node); `0` is none.

    Raises UsageError, naming what is legal.
    """
    word = text.strip()
    if match := _MULTIPLE.fullmatch(word):
        return float(Fraction(match[1])) * base_bytes_s
    if match := _BIT_RATE.fullmatch(word):
        return float(Fraction(match[1]) * _BITS[match[2].lower()] / 8)
    try:
        return float(parse_size(word.removesuffix("/s")))
    except UsageError:
        message = f"{text!r} is not a rate: write bits like 25Gb, bytes like 3.125GB, or 0.5x"
        raise UsageError(message) from None


def parse_node_rates(text: str) -> tuple[float, ...]:
    """A rate, or a mix in equal parts such as `0.5x,1x,2x,4x` or `10Gb,25Gb`."""
    words = [word for word in text.split(",") if word.strip()]
    if not words:
        raise UsageError("--node-rate is empty: write it like 25Gb or 0.5x,1x,2x,4x")
    return tuple(parse_bandwidth(word) for word in words)


def parse_unit(text: str) -> int:
    """A unit: a power of two, so that sizes of layers divide well."""
    unit = int(parse_size(text))
    if unit <= 0 or unit & (unit - 1):
        raise UsageError(f"--unit {text}: must be a power of two, such as 16MiB")
    return unit


def format_rate(bytes_s: float) -> str:
    """A rate in bits, as link speeds are named."""
    for unit, factor in (("Gb", 1e9), ("Mb", 1e6), ("kb", 1e3)):
        if bytes_s * 8 >= factor:
            return f"{bytes_s * 8 / factor:.6g}{unit}"
    return f"{bytes_s * 8:.6g}b" if bytes_s else "0"
