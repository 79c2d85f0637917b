"""What each source brought: letters, deals and how soon people write, counted in SQL over any number of letters.

They are counted from lines (report_lines.py): one for each letter and site that states a visit, or no visit; and where
it is only likely whose letter it is, one for each candidate, which counts as much as its probability, and apart.

An *enquiry* is a letter that a person begins to write about something: no bounce, no automatic mail, no further letter
of a known thread, no copy of our own that came back. A deal is that of the first letter that has it: a thread is one.
Times are in UTC, weeks begin on Monday.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    FromClause,
    Select,
    and_,
    bindparam,
    case,
    func,
    literal,
    null,
    select,
    union_all,
)

from relay.core.site import Touch
from relay.store import report_lines
from relay.store.engine import Row, Statement
from relay.store.reader import Reader
from relay.store.report_lines import DAY, Shape
from relay.store.report_lines import By as By
from relay.store.report_lines import Interval as Interval
from relay.store.report_lines import Order as Order
from relay.store.schema import deliveries, messages, visits

#: Seconds from the beginning of a visit to the writing of its letter: the steps that letters are counted by.
DELAYS = (600, 3600, DAY, 7 * DAY)


@dataclass(frozen=True, slots=True)
class Wanted:
    """``since`` and ``until`` bound when letters were received and visits began: seconds since the epoch. ``source``:
    only what came from it, a first level. ``unknown``: with what no source is known of. ``limit``: rows at most."""

    sites: Collection[int]
    since: float
    until: float
    by: By = By.MARKER
    touch: Touch = Touch.LAST
    interval: Interval | None = None
    source: str | None = None
    order: Order = Order.ENQUIRIES
    unknown: bool = True
    limit: int = 10_000


@dataclass(frozen=True, slots=True)
class Figures:
    """``start`` is that of the interval, seconds since the epoch. ``known`` False: of no visit that is known; else
    ``key`` None is a visit that has no such mark. ``visits`` is None where visits cannot be counted so.

    ``messages`` are all letters, ``enquiries`` those that begin something, ``unknown`` those of them whose source is
    not known. ``deals`` are those whose first letter is here, ``likely_deals`` those whose first letter is likely from
    here, by its probability. ``timed`` is the number of exact enquiries; ``within`` says how many of them were written
    within each of DELAYS, ``median`` is in seconds."""

    start: int | None
    known: bool
    key: str | None
    visits: int | None
    messages: int
    enquiries: int
    unknown: int
    likely: float
    deals: int
    likely_deals: float
    timed: int
    within: tuple[int, ...]
    median: float | None


async def sources(reader: Reader, wanted: Wanted) -> list[Figures]:
    """The rows of a report, in its order, within an interval; the intervals in theirs. Raises StoreUnavailable."""
    return [_figures(row[1:], wanted) for row in await _run(reader, _shape(wanted), wanted)]


@dataclass(frozen=True, slots=True)
class Overview:
    """A report seen from three sides: all in one, by interval, and by what was wanted, without intervals."""

    total: Figures
    series: list[Figures]
    rows: list[Figures]


async def overview(reader: Reader, wanted: Wanted) -> Overview:
    """The three of them, counted from the same letters: for less than the price of three. ``limit`` bounds all rows
    together: the total and the intervals come first. Raises StoreUnavailable."""
    found: dict[int, list[Figures]] = {group: [] for group in _Group}
    for row in await _run(reader, _shape(wanted)._replace(overview=True), wanted):
        found[row[0]].append(_figures(row[1:], wanted if row[0] == _Group.ROWS else None))
    (total,) = found[_Group.TOTAL]
    return Overview(total, found[_Group.SERIES], found[_Group.ROWS])


async def _run(reader: Reader, shape: Shape, wanted: Wanted) -> list[Row]:
    # To make and compile one takes up to 0.1 s: the loop has other things to do.
    await asyncio.to_thread(lambda: _statement(shape).sql)
    return await reader.run(
        _statement(shape),
        sites=json.dumps(sorted(wanted.sites)),
        since=wanted.since,
        until=wanted.until,
        limit=wanted.limit,
        **({} if wanted.source is None else {"source": wanted.source}),
    )


def _figures(row: Row, wanted: Wanted | None) -> Figures:
    """A row without its group; ``wanted`` None: all in one, so that visits can be counted."""
    start, known, key, seen, letters, enquiries, unknown, likely, deals, likely_deals, timed, *within, median = row
    seen = None if wanted is not None and wanted.by is By.TARGET else seen
    counts = (letters, enquiries, unknown, likely, deals, likely_deals, timed)
    return Figures(start, bool(known), key, seen, *counts, tuple(within), median)


class _Group(IntEnum):
    """Which side of an overview a row is of, in the order they come. Of a plain report all are ROWS."""

    TOTAL = 0
    SERIES = 1
    ROWS = 2


def _shape(wanted: Wanted) -> Shape:
    one_source = wanted.source is not None
    return Shape(wanted.by, wanted.touch, wanted.interval, one_source, wanted.order, wanted.unknown)


@functools.lru_cache(maxsize=256)
def _statement(shape: Shape) -> Statement:
    return Statement(_report(shape))


_GROUP = ("part", "start", "known", "key")
_COUNTED = ("visits", "messages", "enquiries", "unknown", "likely", "deals", "likely_deals", "timed")
_WITHIN = tuple(f"within_{step}" for step in DELAYS)
_SUMMED = (*_COUNTED, *_WITHIN)


def _report(shape: Shape) -> Select[Any]:
    # Cells and medians both read the lines: without the word SQLite from 3.46 on makes them twice.
    lines = union_all(report_lines.stated(shape), report_lines.likely(shape)).cte("lines").prefix_with("MATERIALIZED")
    cells, seen = _cells(lines).cte("cells"), report_lines.seen(shape).cte("seen")
    groups = tuple(_Group) if shape.overview else (_Group.ROWS,)
    parts = [_added(cells, shape, group) for group in groups]
    parts += [_medians(lines, shape, group) for group in groups]
    parts += [_seen(seen, shape, group) for group in groups if shape.by is not By.TARGET or group is not _Group.ROWS]
    all_parts = union_all(*parts).subquery("parts")
    by = [all_parts.c[name] for name in _GROUP]
    summed = {name: func.sum(all_parts.c[name]) for name in _SUMMED}
    return (
        select(*by, *(summed[name].label(name) for name in _SUMMED), func.max(all_parts.c.median).label("median"))
        .group_by(*by)
        .order_by(
            all_parts.c.part,
            all_parts.c.start,
            summed[shape.order.value].desc(),
            summed["visits"].desc(),
            all_parts.c.known.desc(),
            all_parts.c.key,
        )
        .limit(bindparam("limit"))
    )


def _grouped(of: FromClause, shape: Shape, group: _Group) -> tuple[list[ColumnElement[Any]], list[ColumnElement[Any]]]:
    """(what a row of a group begins with, what it is grouped by) over lines or visits."""
    starts = group is _Group.SERIES or (group is _Group.ROWS and not shape.overview)
    keys = group is _Group.ROWS
    by: list[ColumnElement[Any]] = ([of.c.start] if starts else []) + ([of.c.known, of.c.key] if keys else [])
    head: list[ColumnElement[Any]] = [
        literal(int(group)).label("part"),
        of.c.start if starts else null().label("start"),
        of.c.known if keys else literal(1).label("known"),
        of.c.key if keys else null().label("key"),
    ]
    return head, by


def _cells(lines: CTE) -> Select[Any]:
    """What can be added up, of each key in each interval: every group is made of these."""
    line = lines.c
    stated, likely = line.likely == 0, line.likely == 1
    enquiry = line.enquiry == 1
    delays = [func.count(case((line.delay <= step, 1))).label(name) for step, name in zip(DELAYS, _WITHIN, strict=True)]
    return select(
        line.start,
        line.known,
        line.key,
        func.count(case((stated, 1))).label("messages"),
        func.count(case((and_(stated, enquiry), 1))).label("enquiries"),
        func.count(case((and_(stated, enquiry, line.sourced == 0), 1))).label("unknown"),
        func.total(case((and_(likely, enquiry), line.share))).label("likely"),
        func.count(case((and_(stated, line.deal == 1), 1))).label("deals"),
        func.total(case((and_(likely, line.deal == 1), line.share))).label("likely_deals"),
        func.count(line.delay).label("timed"),
        *delays,
    ).group_by(line.start, line.known, line.key)


def _added(cells: CTE, shape: Shape, group: _Group) -> Select[Any]:
    head, by = _grouped(cells, shape, group)
    sums = {column.name: func.coalesce(func.sum(column), 0) for column in cells.c if column.name in _SUMMED}
    return _part(head, **sums).group_by(*by)


def _part(head: list[ColumnElement[Any]], **known: ColumnElement[Any]) -> Select[Any]:
    """A part of the report that knows some of its columns."""
    columns = [known.get(name, literal(0)).label(name) for name in _SUMMED]
    return select(*head, *columns, known.get("median", null()).label("median"))


def _medians(lines: CTE, shape: Shape, group: _Group) -> Select[Any]:
    _, by = _grouped(lines, shape, group)
    window: dict[str, Any] = {"partition_by": by or None, "order_by": lines.c.delay, "rows": (None, None)}  # sort once
    ranked = (
        select(
            lines.c.start,
            lines.c.known,
            lines.c.key,
            lines.c.delay,
            func.row_number().over(**window).label("place"),
            func.count().over(**window).label("number"),
        )
        .where(lines.c.delay.is_not(None))
        .subquery(f"ranked_{group.name.lower()}")
    )
    head, by = _grouped(ranked, shape, group)
    middle = ranked.c.place.in_([(ranked.c.number + 1) // 2, (ranked.c.number + 2) // 2])
    return _part(head, median=func.avg(ranked.c.delay)).where(middle).group_by(*by)


def _seen(seen: CTE, shape: Shape, group: _Group) -> Select[Any]:
    head, by = _grouped(seen, shape, group)
    return _part(head, visits=func.coalesce(func.sum(seen.c.number), 0)).group_by(*by)


_FIRST_VISIT = Statement(select(func.min(visits.c.started_at)).where(visits.c.site_id == bindparam("site")))
_FIRST_LETTER = Statement(
    select(messages.c.received_at).where(
        messages.c.id
        == select(func.min(deliveries.c.message_id)).where(deliveries.c.site_id == bindparam("site")).scalar_subquery()
    )
)


async def begin(reader: Reader, sites: Collection[int]) -> float | None:
    """When the first visit or letter of these sites came, seconds since the epoch; None before any did."""
    found: list[float] = []
    for site in sites:
        for statement in (_FIRST_VISIT, _FIRST_LETTER):
            found += [row[0] for row in await reader.run(statement, site=site) if row[0] is not None]
    return min(found, default=None)
