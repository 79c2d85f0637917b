"""How many addresses a pool should have (PRODUCT.md, "recommended pool size").

Enough visits: the last three days are played again. Every visit takes a free address and keeps it until one lease
after it was seen last; a visit that finds every address leased gets none of its own. The smallest pool that leaves at
most ``share`` of the visits without is the answer.

One replay says it of all sizes. Let the addresses be numbered, without end, and each visit take the lowest free
number. Whether one of the first n is free depends only on who holds those; a visit that finds them all leased takes a
higher number and changes nothing among them. So the first n of the endless pool live as a pool of n by itself would,
and the visits with a number of n or higher (counted from 0) are exactly those that a pool of n turns away.

Few visits: a replay would mirror chance. Erlang's loss formula says what share of random arrivals at the rate of
the busiest hour finds every address leased; it holds for any distribution of holding times, so their mean is enough.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Literal

#: Visits from which on a replay says more than the formula.
REPLAY_VISITS = 200
#: No pool is recommended smaller: addresses cost little, a crowded pool costs certainty.
MINIMUM = 5
#: Share of the visits that may find no address.
SHARE = 0.005
#: The share at which Erlang's curve is drawn no further.
NEGLIGIBLE = 0.0001
HOUR = 3600.0

#: When a visit began and when it was seen last, in seconds.
Stay = tuple[float, float]
_first = itemgetter(0)


@dataclass(frozen=True, slots=True)
class Recommendation:
    """``size`` addresses; ``shared`` is the share (0 to 1) of visits that would still find no address of their own.

    ``peak_per_hour`` is the number of visits that began in the busiest 60 minutes.
    """

    size: int
    shared: float
    peak_per_hour: int
    method: Literal["replay", "erlang-b"]


@dataclass(frozen=True, slots=True)
class Advice:
    """A recommendation with what it rests on.

    ``shares[n]`` is the share (0 to 1) of the visits that find no address among n; beyond its end it is 0, or
    negligible by the formula. ``estimate`` is the size by Erlang's formula, ``rule`` that by the formula if every
    visit held its address for just one lease. ``hold`` is how long they do on average, in seconds.
    """

    recommendation: Recommendation
    visits: int
    shares: tuple[float, ...]
    hold: float
    estimate: int
    rule: int

    def shared(self, size: int) -> float:
        return self.shares[size] if size < len(self.shares) else 0.0


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


def recommend(visits: Sequence[Stay], lease: float, share: float = SHARE) -> Recommendation:
    """Recommend a pool for ``visits`` (those of the last three days, in any order) and a lease in seconds.

    ``share`` is the share of visits that may find no address. ValueError when lease or share make no sense.
    """
    return advise(visits, lease, share).recommendation


def advise(visits: Sequence[Stay], lease: float, share: float = SHARE) -> Advice:
    """As :func:`recommend`, with the figures of every other size: O(n log n) in the visits."""
    if lease <= 0:
        raise ValueError("lease must be longer than 0 s")
    if not 0 < share < 1:
        raise ValueError("share must lie between 0 and 1")
    held = held_by(visits, lease)
    count = len(held)
    peak = _most_within([began for began, _ in held], HOUR)
    hold = sum(end - began for began, end in held) / count if held else lease
    offered = peak * hold / HOUR
    estimate = max(MINIMUM, _erlang_size(offered, share))
    rule = max(MINIMUM, _erlang_size(peak * lease / HOUR, share))
    if count < REPLAY_VISITS:
        found = Recommendation(estimate, erlang_b(offered, estimate), peak, "erlang-b")
        return Advice(found, count, _erlang_shares(offered), hold, estimate, rule)
    without = turned_away(held)
    allowed = int(share * count)
    size = max(MINIMUM, next(size for size in range(1, len(without)) if without[size] <= allowed))
    shares = tuple(visits / count for visits in without)
    found = Recommendation(size, shares[size] if size < len(shares) else 0.0, peak, "replay")
    return Advice(found, count, shares, hold, estimate, rule)


def held_by(visits: Sequence[Stay], lease: float) -> list[Stay]:
    """From when to when each visit holds an address, by when it began."""
    held = [(began, (seen if seen > began else began) + lease) for began, seen in visits]
    held.sort(key=_first)
    return held


def turned_away(held: Sequence[Stay]) -> list[int]:
    """How many visits find no address in a pool of 0, 1, 2, …: the last is 0. An end is free again.

    ``held`` is as of :func:`held_by`: sorted, and no visit ends when it begins.
    """
    ends = [end for _, end in held]
    leaving = sorted(range(len(held)), key=ends.__getitem__)  # in a pool without end everybody comes to leave
    gone = 0
    number_of = [0] * len(held)
    free: list[int] = []
    took: list[int] = []  # by number: the visits that took it
    for visit, (began, _) in enumerate(held):
        while ends[leaving[gone]] <= began:
            heapq.heappush(free, number_of[leaving[gone]])
            gone += 1
        if free:
            number_of[visit] = number = heapq.heappop(free)
            took[number] += 1
        else:
            number_of[visit] = len(took)
            took.append(1)
    without = [len(held)]
    for visits in took:
        without.append(without[-1] - visits)
    return without


def at_once(held: Sequence[Stay], since: float, span: float, count: int) -> list[int]:
    """The most addresses held at once in each of ``count`` spans of ``span`` seconds from ``since`` on.

    ``held`` is as of :func:`held_by`; the pool has no end.
    """
    began, ends = [begin for begin, _ in held], sorted(end for _, end in held)
    starts = [since + span * index for index in range(count)]
    most = [bisect_left(began, start) - bisect_right(ends, start) for start in starts]
    gone = 0
    for index, begin in enumerate(began):
        while ends[gone] <= begin:
            gone += 1
        place = int((begin - since) // span)
        if 0 <= place < count and most[place] <= index - gone:
            most[place] = index + 1 - gone
    return most


def headroom(size: int, needed: int, share: float = SHARE) -> float:
    """How many times as many visits ``size`` addresses would do for, where ``needed`` do for those of today.

    By Erlang's formula: the loads of which either turns away ``share``. 0 for an empty pool.
    """
    return _load(size, share) / _load(needed, share)


def _load(servers: int, share: float) -> float:
    """The offered load of which ``servers`` turn away ``share``."""
    low, high = 0.0, servers / (1 - share)  # what is carried is at most one each
    for _ in range(24):
        middle = (low + high) / 2
        if erlang_b(middle, servers) <= share:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _erlang_size(offered: float, share: float) -> int:
    size, blocking = 0, 1.0
    while blocking > share:
        size += 1
        blocking = offered * blocking / (size + offered * blocking)
    return size


def _erlang_shares(offered: float) -> tuple[float, ...]:
    shares = [1.0]
    while shares[-1] > NEGLIGIBLE:
        shares.append(offered * shares[-1] / (len(shares) + offered * shares[-1]))
    return tuple(shares)


def _most_within(starts: Sequence[float], span: float) -> int:
    """The most of the sorted ``starts`` that lie in one half-open span of that many seconds."""
    most = first = 0
    for index, start in enumerate(starts):
        while starts[first] <= start - span:
            first += 1
        most = max(most, index - first + 1)
    return most
