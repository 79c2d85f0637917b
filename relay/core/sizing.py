"""How many addresses a pool should have (PRODUCT.md, "recommended pool size").

Enough visits: the last three days are played again. Every visit takes a free address and keeps it until one lease
after it was seen last; a visit that finds every address leased gets none of its own. The smallest pool that leaves at
most ``share`` of the visits without is the answer.

Few visits: a replay would mirror chance. Erlang's loss formula says what share of random arrivals at the rate of
the busiest hour finds every address leased; it holds for any distribution of holding times, so their mean is enough.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

#: Visits from which on a replay says more than the formula.
REPLAY_VISITS = 200
#: No pool is recommended smaller: addresses cost little, a crowded pool costs certainty.
MINIMUM = 5
HOUR = 3600.0

#: When a visit began and when it was seen last, in seconds.
Stay = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Recommendation:
    """``size`` addresses; ``shared`` is the share (0 to 1) of visits that would still find no address of their own.

    ``peak_per_hour`` is the number of visits that began in the busiest 60 minutes.
    """

    size: int
    shared: float
    peak_per_hour: int
    method: Literal["replay", "erlang-b"]


def erlang_b(offered: float, servers: int) -> float:
    """Share of arrivals that find all ``servers`` busy when ``offered`` erlangs are offered (Erlang B).

    By the recurrence B(0) = 1, B(n) = a B(n-1) / (n + a B(n-1)), which neither overflows nor cancels.
    ValueError for negative numbers.
    """
    if offered < 0 or servers < 0:
        raise ValueError("offered load and servers must not be negative")
    blocking = 1.0
    for busy in range(1, servers + 1):
        blocking = offered * blocking / (busy + offered * blocking)
    return blocking


def recommend(visits: Sequence[Stay], lease: float, share: float = 0.005) -> Recommendation:
    """Recommend a pool for ``visits`` (those of the last three days, in any order) and a lease in seconds.

    ``share`` is the share of visits that may find no address. ValueError when lease or share make no sense.
    """
    if lease <= 0:
        raise ValueError("lease must be longer than 0 s")
    if not 0 < share < 1:
        raise ValueError("share must lie between 0 and 1")
    held = sorted((began, max(began, seen) + lease) for began, seen in visits)
    peak = _most_within([began for began, _ in held], HOUR)
    if len(held) < REPLAY_VISITS:
        mean = sum(end - began for began, end in held) / len(held) if held else lease
        offered = peak * mean / HOUR
        size = max(MINIMUM, _erlang_size(offered, share))
        return Recommendation(size, erlang_b(offered, size), peak, "erlang-b")
    allowed = int(share * len(held))
    enough = _most_at_once(held)  # nobody goes without
    size = bisect_left(range(enough), -allowed, lo=1, key=lambda pool: -_without_address(held, pool))
    size = max(MINIMUM, size)
    return Recommendation(size, _without_address(held, size) / len(held), peak, "replay")


def _erlang_size(offered: float, share: float) -> int:
    size, blocking = 0, 1.0
    while blocking > share:
        size += 1
        blocking = offered * blocking / (size + offered * blocking)
    return size


def _most_within(starts: Sequence[float], span: float) -> int:
    """The most of the sorted ``starts`` that lie in one half-open span of that many seconds."""
    most = first = 0
    for index, start in enumerate(starts):
        while starts[first] <= start - span:
            first += 1
        most = max(most, index - first + 1)
    return most


def _most_at_once(held: Sequence[Stay]) -> int:
    ends: list[float] = []
    most = 0
    for began, end in held:
        while ends and ends[0] <= began:
            heapq.heappop(ends)
        heapq.heappush(ends, end)
        most = max(most, len(ends))
    return most


def _without_address(held: Sequence[Stay], pool: int) -> int:
    """How many visits find every one of ``pool`` addresses leased. ``held`` is sorted; an end is free again."""
    ends: list[float] = []
    without = 0
    for began, end in held:
        while ends and ends[0] <= began:
            heapq.heappop(ends)
        if len(ends) < pool:
            heapq.heappush(ends, end)
        else:
            without += 1
    return without
