"""One run as a picture: who had everything when, each host's bandwidth, what the origin sent."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.scale.metrics import Curves, Outcome
from benchmarks.scale.plan import Plan

mpl.use("Agg")

GIGABIT_BYTES = 1e9 / 8
POINTS_MAX = 400
"""More samples than this are more than there are columns of pixels."""
DARK, BLUE, ORANGE, GREY = "#22313f", "#1f6fb2", "#d1671f", "#8a939b"


def draw(target: Path, plan: Plan, outcome: Outcome, result: dict[str, Any]) -> None:
    """Writes the picture of a run that recorded its curves."""
    curves = outcome.curves
    assert curves is not None, "the run recorded no curves"
    outcome = replace(outcome, curves=_thinned(curves))
    curves = outcome.curves
    assert curves is not None
    figure = Figure(figsize=(12, 7.6), dpi=110, layout="constrained")
    grid = figure.subplots(2, 2, sharex=True)
    _title(figure, result)
    _completion(grid[0][0], plan, outcome, result)
    _origin(grid[1][0], curves, plan, result)
    order = _order(plan, outcome)
    _bandwidth(figure, grid[0][1], curves, curves.down_bytes, order, "download of each host")
    _bandwidth(figure, grid[1][1], curves, curves.up_bytes, order, "upload of each host")
    end_s = max(curves.times_s[-1], result["bound_s"]) * 1.03
    for axes in grid.flat:
        axes.set_xlim(0, end_s)
        axes.tick_params(colors=DARK, labelsize=9)
    for axes in grid[1]:
        axes.set_xlabel("seconds", color=DARK)
    figure.savefig(target)


def _thinned(curves: Curves) -> Curves:
    """Every so many samples, and the last one."""
    count = len(curves.times_s)
    step = max(1, -(-count // POINTS_MAX))
    kept = sorted({*range(0, count, step), count - 1})
    return Curves(
        times_s=[curves.times_s[index] for index in kept],
        up_bytes=[curves.up_bytes[index] for index in kept],
        down_bytes=[curves.down_bytes[index] for index in kept],
        origin_bytes=[curves.origin_bytes[index] for index in kept],
    )


def _title(figure: Figure, result: dict[str, Any]) -> None:
    options = result["options"]
    ratio = result["makespan_over_bound"]
    told = f"{ratio:.3f} times the bound" if ratio is not None else "not finished"
    figure.suptitle(
        f"{result['policy']}: {options['nodes']} hosts, {options['size']}, "
        f"{result['scenario']}, {told}\n"
        f"seed {result['seed']}, commit {result['commit']}, nodes {options['node_rate']}, "
        f"origin {options['origin_rate']}, unit {options['unit']}",
        fontsize=11,
        color=DARK,
    )


def _completion(axes: Axes, plan: Plan, outcome: Outcome, result: dict[str, Any]) -> None:
    """Hosts that have everything, and how far all of them are together."""
    waiting = [index for index, host in enumerate(plan.hosts) if host.must_finish]
    ended = sorted(time for index in waiting if (time := outcome.ended_s[index]) is not None)
    steps = np.arange(1, len(ended) + 1) / len(waiting)
    curves = outcome.curves
    assert curves is not None
    total = plan.size_bytes * len(waiting)
    down = [float(np.sum(moved[waiting])) / total for moved in curves.down_bytes]
    axes.plot(curves.times_s, np.minimum(down, 1.0), color=BLUE, lw=1.8, label="bytes received")
    axes.step([0.0, *ended], [0.0, *steps], where="post", color=ORANGE, lw=1.8, label="hosts done")
    axes.axvline(result["bound_s"], color=GREY, ls="--", lw=1.2, label="bound")
    axes.set_ylim(0, 1.04)
    axes.set_title("completion", fontsize=10, color=DARK)
    axes.set_ylabel("share", color=DARK)
    axes.legend(fontsize=9, frameon=False, loc="upper left")
    axes.grid(alpha=0.25)


def _rates(times_s: list[float], moved: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gb/s between samples, of cumulative bytes (time first)."""
    spans = np.maximum(np.diff(times_s), 1e-9)
    steps: NDArray[np.float64] = np.diff(moved, axis=0)
    return (steps.T / spans).T / GIGABIT_BYTES


def _origin(axes: Axes, curves: Curves, plan: Plan, result: dict[str, Any]) -> None:
    """What the origin sends, and how many copies it has sent."""
    rates = _rates(curves.times_s, np.array(curves.origin_bytes))
    copies = np.array(curves.origin_bytes) / plan.size_bytes
    axes.stairs(rates, curves.times_s, fill=True, color=BLUE, alpha=0.35, label="rate")
    axes.axvline(result["bound_s"], color=GREY, ls="--", lw=1.2)
    axes.set_ylim(0, max(float(rates.max(initial=0.0)) * 1.15, 0.1))
    axes.set_ylabel("Gb/s", color=DARK)
    axes.set_title(f"origin: {result['origin_copies']:.3f} copies sent", fontsize=10, color=DARK)
    right = axes.twinx()
    right.plot(curves.times_s, copies, color=ORANGE, lw=1.6, label="copies")
    right.set_ylim(0, max(1.1, float(copies.max(initial=0.0)) * 1.1))
    right.set_ylabel("copies", color=ORANGE)
    right.tick_params(colors=ORANGE, labelsize=9)
    axes.grid(alpha=0.25)


def _order(plan: Plan, outcome: Outcome) -> list[int]:
    """Hosts by when they came and when they were done, the last ones on top."""
    late = float("inf")
    return sorted(
        range(len(plan.hosts)),
        key=lambda index: (plan.hosts[index].arrives_s, outcome.ended_s[index] or late),
    )


def _bandwidth(
    figure: Figure,
    axes: Axes,
    curves: Curves,
    moved: list[NDArray[np.float64]],
    order: list[int],
    title: str,
) -> None:
    """A line of colour per host."""
    rates = _rates(curves.times_s, np.array(moved)[:, order])
    edges = np.arange(len(order) + 1)
    mesh = axes.pcolormesh(
        curves.times_s, edges, rates.T, cmap="viridis", shading="flat", vmin=0.0, rasterized=True
    )
    bar = figure.colorbar(mesh, ax=axes, pad=0.01)
    bar.set_label("Gb/s", color=DARK, fontsize=9)
    bar.ax.tick_params(labelsize=8, colors=DARK)
    axes.set_ylabel("hosts", color=DARK)
    axes.set_title(title, fontsize=10, color=DARK)
