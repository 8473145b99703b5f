"""Who holds what in a swarm, as the scheduler's maps tell it. Immutable: each map leads from one
view to the next, and receivers in one process (a simulated swarm) share the work of that step."""

from dataclasses import dataclass, field

from shoal.wire.control import SwarmMap


@dataclass(frozen=True, slots=True)
class SwarmView:
    """All in units, as masks."""

    holders: dict[int, dict[int, int]] = field(default_factory=dict)
    """By task, then host (both by number): what it holds whole."""
    covered: dict[int, int] = field(default_factory=dict)
    """By task: what anybody holds."""
    spread: dict[int, int] = field(default_factory=dict)
    """By task: what half of the swarm holds."""


def fold(view: SwarmView, news: SwarmMap) -> SwarmView:
    """The view after a map."""
    for before, after in news.memo:
        if before is view:
            assert isinstance(after, SwarmView)
            return after
    after = _fold(view, news)
    del news.memo[:-7]
    news.memo.append((view, after))
    return after


def _fold(view: SwarmView, news: SwarmMap) -> SwarmView:
    holders = {} if news.full else dict(view.holders)
    if news.gone:
        gone = dict.fromkeys(news.gone)
        holders = {
            task: {host: units for host, units in hosts.items() if host not in gone}
            for task, hosts in holders.items()
        }
    copied: dict[int, None] = {}
    for change in news.changes:
        hosts = holders.get(change.task)
        if hosts is None or change.task not in copied:
            hosts = holders[change.task] = dict(hosts or {})
            copied[change.task] = None
        hosts[change.host] = hosts.get(change.host, 0) | change.units
    if news.full:
        return SwarmView(holders, dict(news.covered), dict(news.spread))
    return SwarmView(holders, view.covered | dict(news.covered), view.spread | dict(news.spread))
