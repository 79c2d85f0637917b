"""Who comes to a made-up site, what they see, and who writes: the input of benchmarks/day.py.

One day is looked at, and the mail that comes on it. The days before are there because every address has been held
before, and because some of the mail is from their visits. All is drawn from one seed.

    when they come       a fixed number a day, by the hours of HOURLY: assumption, a site for business and home
    pages of a visit     half of the visits see one (rates of 30 to 60 % are published for sites that want enquiries),
                         the others a geometric number: assumption
    time on a page       Weibull with a shape below 1: Liu, White, Dumais, "Understanding web browsing behaviors through
                         Weibull analysis of dwell time", SIGIR 2010; shape and scale are assumptions, for a mean of
                         75 s. LINGERING of the visits leave their last page open before them for minutes: assumption
    between pages        PAUSED of the page changes come after 5 to 90 minutes with the tab hidden: assumption
    who comes back       RETURNING of the visits are a browser's second within a day, by another campaign: assumption
    who writes           a share of the visits, 1 % by default: assumption
    when they write      MOMENTS after the last page view began, by chance: assumption; there is no published curve
    the Date             DATES: right, off by minutes, or by whole hours (a wrong time zone): assumption
    on the way           seconds; a few are greylisted for minutes: assumption
    writing again        AGAIN of the writers take the address from their address book 1 to 5 days later: assumption

Of a large site only one day is played before, and what would be written 1 to 5 days after the visit is written 1 to 2
days after it: by then others have held every address of its pool anyway.

The script binds at each page view and, while the page is visible, at each half of the lease. Binds that come within
half a lease of each other change nothing but the end of the lease, so only the first, the last and what keeps the lease
are played.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from relay.core.sizing import Stay

HOUR = 3600.0
DAY = 86_400.0
LEASE = 900.0
#: When the day that is looked at begins: a Tuesday in January 2027, 0:00 UTC.
BEGIN = 1_800_057_600.0
END = BEGIN + DAY
#: Visits in each hour of a day, in per cent before scaling; the busiest has 7.2 % of the day.
HOURLY = (0.9, 0.6, 0.5, 0.4, 0.5, 0.8, 1.6, 2.9, 4.6, 6.0, 6.8, 7.0, 6.6, 6.5, 6.7, 6.6, 6.3, 5.9, 5.6, 5.6, 5.4, 4.7,
          3.3, 1.9)  # fmt: skip
ONE_PAGE = 0.5
ANOTHER_PAGE = 0.7
DWELL_SHAPE, DWELL_SCALE = 0.6, 50.0
LINGERING = 0.05
PAUSED = 0.03
RETURNING = 0.15
AGAIN = 0.05
#: Days that are played before: as long as somebody writes after a visit; 1 of a site with more than LARGE visits a day.
BEFORE = 5
LARGE = 20_000

#: (share, median in seconds, sigma) of log-normal times from the last page view to the mail; the rest of the writers
#: write after 1 to 5 days, evenly.
MOMENTS = ((0.72, 240.0, 0.9), (0.20, 2 * HOUR, 1.2))
#: (share, standard deviation in seconds) of the error of a Date; the rest is off by 1 to 12 hours, either way.
DATES = ((0.97, 2.0), (0.02, 600.0))
GREYLISTED = 0.02


@dataclass(frozen=True, slots=True)
class Letter:
    """When it was written, when its Date says so, and when it came; in seconds since 1970."""

    written: float
    date: float
    received: float


@dataclass(slots=True)
class Visit:
    """``binds`` are the times at which its pages ask for addresses. ``before`` is the same browser's earlier visit."""

    binds: tuple[float, ...]
    letters: tuple[Letter, ...] = ()
    before: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """``visits`` of all days that are played; letters only those that come on the day that is looked at.

    ``attendance``: when the visits of the three days before it began, and were seen last.
    """

    visits: list[Visit]
    attendance: list[Stay] = field(repr=False)

    @property
    def letters(self) -> int:
        return sum(len(visit.letters) for visit in self.visits)

    def binds(self) -> Iterator[tuple[float, int]]:
        """(time, index of the visit), in no order."""
        return ((at, index) for index, visit in enumerate(self.visits) for at in visit.binds)


def plan(visits: int, writers: float, seed: int) -> Plan:
    """Days of ``visits`` visits, of which the share ``writers`` writes."""
    rng = random.Random(seed)
    large = visits > LARGE
    before = 1 if large else BEFORE
    found: list[Visit] = []
    for day in range(-before, 1):
        for start in sorted(_arrivals(rng, visits, BEGIN + day * DAY)):
            views, end = _pages(rng, start)
            letters = _letters(rng, views[-1], large) if rng.random() < writers else ()
            kept = tuple(letter for letter in letters if BEGIN <= letter.received < END)
            found.append(Visit(_binds(views, end), kept))
    _come_back(rng, found)
    stays = ((visit.binds[0], visit.binds[-1]) for visit in found)
    attendance = [stay for stay in stays if BEGIN - 3 * DAY <= stay[0] < BEGIN]
    for day in range(-3, -before):
        starts = _arrivals(rng, visits, BEGIN + day * DAY)
        attendance += [(start, _binds(*_pages(rng, start))[-1]) for start in starts]
    return Plan(found, attendance)


def _arrivals(rng: random.Random, count: int, midnight: float) -> list[float]:
    """A Poisson process by the hours of the day, given how many come."""
    hours = rng.choices(range(24), HOURLY, k=count)
    return [midnight + (hour + rng.random()) * HOUR for hour in hours]


def _pages(rng: random.Random, start: float) -> tuple[list[float], float]:
    """When each page of a visit, or its coming back into sight, began; and when the last was left."""
    pages = 1 if rng.random() < ONE_PAGE else 2 + int(math.log(1.0 - rng.random()) / math.log(ANOTHER_PAGE))
    views, now = [start], start
    for page in range(1, pages + 1):
        stay = rng.weibullvariate(DWELL_SCALE, DWELL_SHAPE)
        if page == pages and rng.random() < LINGERING:
            stay += rng.lognormvariate(math.log(900.0), 0.8)
        now += stay
        if page < pages:
            views.extend(_renewals(views[-1], now))
            if rng.random() < PAUSED:
                now += rng.uniform(300.0, 5400.0)
            views.append(now)
    return views, now


def _renewals(since: float, until: float) -> list[float]:
    step = LEASE / 2
    return [since + step * n for n in range(1, int((until - since) / step) + 1)]


def _binds(views: list[float], end: float) -> tuple[float, ...]:
    times = [*views, *_renewals(views[-1], end)]
    kept = [times[0]]
    for at, following in pairwise([*times[1:], math.inf]):
        if following - kept[-1] > LEASE / 2:
            kept.append(at)
    return tuple(kept)


def _letters(rng: random.Random, last_view: float, large: bool) -> Iterator[Letter]:
    written = last_view + _moment(rng, last_view, large)
    yield _letter(rng, written)
    if rng.random() < AGAIN:
        yield _letter(rng, last_view + _days(rng, last_view, large))


def _moment(rng: random.Random, last_view: float, large: bool) -> float:
    chance = rng.random()
    for share, median, sigma in MOMENTS:
        if chance < share:
            return rng.lognormvariate(math.log(median), sigma)
        chance -= share
    return _days(rng, last_view, large)


def _days(rng: random.Random, last_view: float, large: bool) -> float:
    """Of a large site whatever is written days after a visit of the day before comes on the day that is looked at: as
    many come as do from five days."""
    return rng.uniform(DAY, max(DAY, END - last_view) if large else 5 * DAY)


def _letter(rng: random.Random, written: float) -> Letter:
    chance, error = rng.random(), rng.choice((-1, 1)) * HOUR * rng.randint(1, 12)
    for share, deviation in DATES:
        if chance < share:
            error = rng.gauss(0.0, deviation)
            break
        chance -= share
    way = rng.expovariate(1 / 8.0) + (rng.uniform(300.0, 3600.0) if rng.random() < GREYLISTED else 0.0)
    return Letter(written, written + error, written + way)


def _come_back(rng: random.Random, visits: list[Visit]) -> None:
    """Make some of the visits, in the order in which they began, those of a browser that was there before."""
    reach = 0
    for index, visit in enumerate(visits):
        while visits[reach].binds[0] < visit.binds[0] - DAY:
            reach += 1
        if index > reach and rng.random() < RETURNING:
            before = rng.randrange(reach, index)
            if visits[before].binds[-1] + LEASE < visit.binds[0]:
                visit.before = before
