"""The plot of the page Sources: columns over time, as numbers that the template draws by SVG attributes alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from relay.store.reports import Figures, Interval
from webapi.ui.days import midnight

#: Units of the drawing: one column with its gap, and the height.
STEP, GAP, HEIGHT = 10, 1.5, 100
#: Spaces between the dates below the plot, the best first.
TICKS = (6, 5, 4, 3)


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a column, from below: ``kind`` is its class."""

    kind: str
    y: float
    height: float


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    x: float
    parts: tuple[Part, ...]
    title: str
    figures: Figures


@dataclass(frozen=True, slots=True)
class Plot:
    """``top`` is what the upper edge stands for; ``ticks`` are names of columns, left to right; ``kinds`` those that
    are there at all; ``summary`` says in words what it shows."""

    columns: tuple[Column, ...]
    top: float
    ticks: tuple[str, ...]
    kinds: tuple[str, ...]
    summary: str

    @property
    def width(self) -> int:
        return STEP * max(1, len(self.columns))

    @property
    def bar(self) -> float:
        return STEP - 2 * GAP


#: What of a row makes the column of a metric, from below: class and word. None of likely is in what is stated.
PARTS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "enquiries": (("known", "with a known source"), ("unknown", "from an unknown source"), ("likely", "only likely")),
    "visits": (("known", "visits"),),
    "deals": (("known", "deals"), ("likely", "only likely")),
}


def values(metric: str, row: Figures) -> tuple[float, ...]:
    if metric == "visits":
        return (row.visits or 0,)
    if metric == "deals":
        return row.deals, row.likely_deals
    return row.enquiries - row.unknown, row.unknown, row.likely


def stated(metric: str, row: Figures) -> int:
    """What of a metric is a fact."""
    return {"visits": row.visits or 0, "enquiries": row.enquiries, "deals": row.deals}[metric]


def filled(rows: Iterable[Figures], since: float, until: float, interval: Interval) -> list[Figures]:
    """A row for each interval of the period, also for those in which nothing came."""
    known = {row.start: row for row in rows}
    return [known.get(start) or empty(start) for start in starts(since, until, interval)]


def empty(start: int | None) -> Figures:
    return Figures(start, True, None, 0, 0, 0, 0, 0.0, 0, 0.0, 0, (0, 0, 0, 0), None)


def starts(since: float, until: float, interval: Interval) -> list[int]:
    """When the intervals begin that a period touches, seconds since the epoch."""
    at = datetime.fromtimestamp(midnight(since), UTC)
    if interval is Interval.WEEK:
        at -= timedelta(days=at.weekday())
    elif interval is Interval.MONTH:
        at = at.replace(day=1)
    found = []
    while at.timestamp() < until:
        found.append(int(at.timestamp()))
        days = {Interval.DAY: 1, Interval.WEEK: 7}.get(interval)
        at = at + timedelta(days=days) if days else (at + timedelta(days=32)).replace(day=1)
    return found


def name_of(start: int | None, interval: Interval) -> str:
    """What people call an interval: "5 Mar 2026", "week of 2 Mar 2026", "March 2026"."""
    at = datetime.fromtimestamp(start or 0, UTC)
    if interval is Interval.MONTH:
        return f"{at:%B %Y}"
    day = f"{at.day} {at:%b %Y}"
    return f"week of {day}" if interval is Interval.WEEK else day


def plot(rows: Sequence[Figures], metric: str, interval: Interval) -> Plot:
    """The columns of these rows, one for each."""
    top = ceiling(max((sum(values(metric, row)) for row in rows), default=0))
    columns = tuple(_column(number, row, metric, interval, top) for number, row in enumerate(rows))
    shown = {part.kind for column in columns for part in column.parts}
    kinds = tuple(kind for kind, _ in PARTS[metric] if kind in shown)
    return Plot(columns, top, _ticks([_short(row.start, interval) for row in rows]), kinds, _summary(columns, metric))


def _column(number: int, row: Figures, metric: str, interval: Interval, top: float) -> Column:
    parts, below = [], 0.0
    for (kind, _), value in zip(PARTS[metric], values(metric, row), strict=True):
        if value > 0:
            height = HEIGHT * value / top
            parts.append(Part(kind, round(max(0.0, HEIGHT - below - height), 2), round(height, 2)))
            below += height
    name = name_of(row.start, interval)
    return Column(name, number * STEP + GAP, tuple(parts), f"{name}: {_words(metric, row)}", row)


def _words(metric: str, row: Figures) -> str:
    if metric == "visits":
        return f"{row.visits or 0} visits"
    likely = row.likely_deals if metric == "deals" else row.likely
    return f"{stated(metric, row)} {metric}" + (f", and {amount(likely)} likely" if likely else "")


def _summary(columns: Sequence[Column], metric: str) -> str:
    if not columns:
        return "Nothing to show."
    best = max(columns, key=lambda column: sum(values(metric, column.figures)))
    if not best.parts:
        return f"No {metric} from {columns[0].name} to {columns[-1].name}."
    return f"From {columns[0].name} to {columns[-1].name}; the most on {best.title}."


def _short(start: int | None, interval: Interval) -> str:
    at = datetime.fromtimestamp(start or 0, UTC)
    return f"{at:%b %Y}" if interval is Interval.MONTH else f"{at.day} {at:%b}"


def _ticks(names: Sequence[str]) -> tuple[str, ...]:
    """The first name, the last, and some evenly between: so many that each is below its column, where that is to be."""
    steps = len(names) - 1
    if steps < 6:
        return tuple(names)
    count = next((count for count in TICKS if steps % count == 0), 4)
    return tuple(names[round(number * steps / count)] for number in range(count + 1))


def ceiling(most: float) -> float:
    """A round number that is not less, and not much more.

    >>> ceiling(0), ceiling(3), ceiling(7), ceiling(11), ceiling(41), ceiling(1201)
    (1, 3, 8, 12, 50, 1500)
    """
    if most <= 1:
        return 1
    power: int = 10 ** math.floor(math.log10(most))
    steps = (1, 2, 3, 4, 5, 6, 8, 10) if power == 1 else (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)
    return next(round(step * power) for step in steps if step * power >= most)


def amount(value: float) -> str:
    """A share of enquiries or deals: whole where it is, else to one decimal, and never a nought that is none.

    >>> amount(3), amount(2.46), amount(0.02), amount(0)
    ('3', '2.5', '0.1', '0')
    """
    rounded = max(0.1, round(value, 1)) if value > 0 else 0
    return f"{rounded:.0f}" if rounded == int(rounded) else f"{rounded:.1f}"
