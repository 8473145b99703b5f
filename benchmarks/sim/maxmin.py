"""Max-min fair rates by progressive filling, vectorised and as in the textbook.

Bertsekas and Gallager, "Data Networks" (2nd edition, 1992), section 6.5.2: all flows rise together
until a link is full; the flows of that link are frozen at its fair share; the others rise on.

`fill` does not wait for the lowest link of all. A link whose fair share (what is left of it over
its unfrozen flows) is no more than that of any other link that its flows cross is a bottleneck
whatever happens elsewhere: freezing flows at or below its share elsewhere never lowers a share. So
all such links are frozen in the same round, and the rounds number the longest chain of bottlenecks
that wait for one another (16 for 4,000 flows among 500 hosts, 20 to 40 with full zone links), not
the bottlenecks (hundreds).

All rates are bytes per second.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

FULL = 1.0 - 1e-10
"""A link is full where its flows take this part of it: more is lost in the rounding of sums."""


def fill(capacities: Floats, links: Ints, caps: Floats) -> tuple[Floats, Floats]:
    """The rate of each flow, and what each link has left.

    `links[k, f]` is the k-th link that flow f crosses, 0 where it crosses no more: link 0 has
    infinite capacity. `caps` are finite: no flow is faster than its own.

    A link is a bottleneck of this round if its flows, each at the least share that it sees, use up
    what the link has left: then none of them sees less elsewhere.
    """
    width, flows = links.shape
    rates = np.zeros(flows)
    left = capacities.copy()
    users = np.bincount(links.ravel(), minlength=len(left))
    rising = np.arange(flows)
    while flows:
        shares = left / np.maximum(users, 1)
        level = np.minimum(np.minimum.reduce(shares.take(links), axis=0), caps)
        taken = np.bincount(links.ravel(), np.concatenate((level,) * width), len(left))
        roomy = taken < left * FULL
        waits = np.logical_and.reduce(roomy.take(links), axis=0)
        waits &= level < caps
        frozen = (~waits).nonzero()[0]
        assert len(frozen), "the lowest share of all is a bottleneck"
        reached = level.take(frozen)
        rates[rising.take(frozen)] = reached
        gone = links.take(frozen, axis=1).ravel()
        left -= np.bincount(gone, np.concatenate((reached,) * width), len(left))
        np.maximum(left, 0.0, out=left)
        if len(frozen) == flows:
            break
        users -= np.bincount(gone, minlength=len(left))
        kept = waits.nonzero()[0]
        flows = len(kept)
        rising = rising.take(kept)
        links = links.take(kept, axis=1)
        caps = caps.take(kept)
    return rates, left


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
