"""Max-min fair rates by progressive filling, vectorised and as in the textbook.

Bertsekas and Gallager, "Data Networks" (2nd edition, 1992), section 6.5.2: all flows rise together
until a link is full; the flows of that link are frozen at its fair share; the others rise on.

`fill` does not wait for the lowest link of all. A link whose fair share (what is left of it over
its unfrozen flows) is no more than that of any other link that its flows cross is a bottleneck
whatever happens elsewhere: freezing flows at or below its share elsewhere never lowers a share. So
all such links are frozen in the same round, and the rounds number the longest chain of bottlenecks
that wait for one another (5 to 20 in a swarm), not the bottlenecks (hundreds).

All rates are bytes per second.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

TIE = 1.0 + 1e-10
"""Shares that differ by less are equal: rounding must not cost a round each."""


def fill(capacities: Floats, links: Ints, caps: Floats) -> tuple[Floats, Floats]:
    """The rate of each flow, and what each link has left.

    `links[k, f]` is the k-th link that flow f crosses, 0 where it crosses no more: link 0 has
    infinite capacity. `caps` are finite: no flow is faster than its own.
    """
    width, flows = links.shape
    rates = np.zeros(flows)
    left = capacities.copy()
    flat = links.ravel()
    counts = np.bincount(flat, minlength=len(left))
    which: Ints | None = None  # the unfrozen flows; None is all
    while flows:
        shares = left / np.maximum(counts, 1)
        seen = shares.take(flat).reshape(width, flows)
        least = np.minimum.reduce(seen, axis=0)
        level = np.minimum(least, caps)
        # A link is held up where a flow of it is slower than its share. Ties go to link 0.
        held = np.zeros(len(left), np.bool_)
        held[np.where(seen > level * TIE, links, 0).ravel()] = True
        held[0] = True
        waits = np.logical_and.reduce(held.take(flat).reshape(width, flows), axis=0)
        waits &= caps > level
        frozen = np.flatnonzero(~waits)
        reached = level.take(frozen)
        rates[frozen if which is None else which.take(frozen)] = reached
        gone = links.take(frozen, axis=1).ravel()
        left -= np.bincount(gone, np.concatenate([reached] * width), len(left))
        if len(frozen) == flows:
            break
        np.maximum(left, 0.0, out=left)
        counts -= np.bincount(gone, minlength=len(left))
        kept = np.flatnonzero(waits)
        which = kept if which is None else which.take(kept)
        links = links.take(kept, axis=1)
        caps = caps.take(kept)
        flows = len(kept)
        flat = links.ravel()
    return rates, np.maximum(left, 0.0, out=left)


def max_min_rates(
    capacities: Sequence[float], flows_links: Sequence[Sequence[int]], caps: Sequence[float]
) -> list[float]:
    """The rate of each flow, one bottleneck at a time: slow, and simple enough to be believed."""
    rates = [0.0] * len(flows_links)
    left = list(capacities)
    rising = dict.fromkeys(range(len(flows_links)))
    while rising:
        users = [0] * len(left)
        for flow in rising:
            for link in flows_links[flow]:
                users[link] += 1
        link_level = min(
            (left[link] / users[link] for link in range(len(left)) if users[link]),
            default=float("inf"),
        )
        level = min(link_level, min(caps[flow] for flow in rising))
        full = {
            link
            for link in range(len(left))
            if users[link] and left[link] / users[link] <= level * (1 + 1e-12)
        }
        for flow in list(rising):
            if caps[flow] <= level or not full.isdisjoint(flows_links[flow]):
                del rising[flow]
                rates[flow] = level
                for link in flows_links[flow]:
                    left[link] = max(0.0, left[link] - level)
    return rates
