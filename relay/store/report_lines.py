"""What one letter to one site says of one visit: the lines that reports are counted from, and the visits beside them.

    the letter's best delivery is     lines                                          counts as
    -----------------------------     -------------------------------------------    --------------------------------
    exact, inferred                   one, of its visit                              stated
    exact by a static substitute      one, of its label, which stands for a marker   stated
    claimed, none, its visit erased   one, of no visit                               stated, with an unknown source
    likely                            one for each candidate, of that visit          likely, as much as its probability

So ``likely`` adds up to the number of letters that are only likely, and none of it is ever in a figure of fact. The
best delivery is the one that the letter's event names: several substitutes of one site in one letter are one letter.

A deal counts with the first letter of its site that has it, stated or likely as that letter is, and with no other: a
source or an interval has the deals of its own enquiries, and ``deals`` and ``likely_deals`` never both have one.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, NamedTuple

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    FromClause,
    Integer,
    Select,
    and_,
    bindparam,
    case,
    cast,
    func,
    literal,
    literal_column,
    null,
    select,
)
from sqlalchemy.sql import Join

from relay.core.hook import EventType
from relay.core.model import AttributionState, DeliveryState
from relay.core.site import Touch
from relay.store.schema import deliveries, events, messages, targets, visits

DAY = 86_400


class By(StrEnum):
    """What letters and visits are counted by."""

    SOURCE = "source_level_1"  # the marker up to its first "_"
    MARKER = "marker"  # both levels
    CAMPAIGN = "campaign"
    LANDING_PAGE = "landing_page"  # without its query
    TARGET = "target"
    TOTAL = "total"  # nothing: all in one


class Interval(StrEnum):
    DAY = "day"
    WEEK = "week"
    MONTH = "month"


class Order(StrEnum):
    """Whichever is the most comes first."""

    MESSAGES = "messages"
    ENQUIRIES = "enquiries"
    VISITS = "visits"
    DEALS = "deals"


class Shape(NamedTuple):
    """All that a statement depends on; the rest are its parameters."""

    by: By
    touch: Touch
    interval: Interval | None
    one_source: bool
    order: Order
    unknown: bool
    overview: bool = False


_SITES = select(func.json_each(bindparam("sites")).table_valued("value").c.value)
_SINCE: BindParameter[Any] = bindparam("since")
_UNTIL: BindParameter[Any] = bindparam("until")
_LETTER = messages.alias("letter")
_BEST = deliveries.alias("best")
_VISIT = visits.alias("visit")
_TOUCHED = visits.alias("touched")


def _letters(shape: Shape) -> tuple[Join, list[ColumnElement[bool]]]:
    """The letters of the period with their best deliveries, and what they must be.

    The index of (site, message) leads to them, by the first and the last letter of the period: the sum keeps SQLite
    from going by the time of receipt instead, through the letters of all sites.
    """
    period = messages.c.received_at.between(_SINCE, _UNTIL)
    first, last = (select(edge(messages.c.id)).where(period).scalar_subquery() for edge in (func.min, func.max))
    found = _BEST.join(
        events,
        and_(
            events.c.message_id == _BEST.c.message_id,
            events.c.delivery_id == _BEST.c.id,
            events.c.type == EventType.RECEIVED.value,
        ),
    ).join(_LETTER, _LETTER.c.id == _BEST.c.message_id)
    received = _LETTER.c.received_at + 0.0
    return found, [
        _BEST.c.site_id.in_(_SITES),
        _BEST.c.message_id >= first,  # not BETWEEN: SQLite 3.46 would use its lower bound alone
        _BEST.c.message_id <= last,
        received >= _SINCE,
        received < _UNTIL,
    ]


_IS_ENQUIRY = case(
    (
        and_(
            _LETTER.c.automatic.is_(None),
            _LETTER.c.bounce == 0,
            _LETTER.c.thread_id.is_(None),
            _BEST.c.state != DeliveryState.LOOPED.value,
        ),
        1,
    ),
    else_=0,
)
# The later letters of a thread carry its deal, whenever and from wherever they come: it is its enquiry's.
_CARRIER = events.alias("carrier")
_FIRST_CARRIER = (
    select(func.min(_CARRIER.c.message_id))
    .where(_CARRIER.c.site_id == events.c.site_id, _CARRIER.c.deal_id == events.c.deal_id)
    .correlate(events)
    .scalar_subquery()
)
_HAS_DEAL = case((events.c.deal_id.is_(None), 0), (events.c.message_id == _FIRST_CARRIER, 1), else_=0)


def stated(shape: Shape) -> Select[Any]:
    found, conditions = _letters(shape)
    conditions.append(_BEST.c.attribution != AttributionState.LIKELY.value)
    found = _with_visit(found, _BEST.c.visit_id, shape.touch)
    marker = case((_VISIT.c.id.is_(None), _BEST.c.label), else_=_of_source("marker", shape.touch))
    known = _flag(_VISIT.c.id.is_not(None) | _BEST.c.label.is_not(None))
    exact = and_(_IS_ENQUIRY == 1, _BEST.c.attribution == AttributionState.EXACT.value, _VISIT.c.id.is_not(None))
    # A sender's clock that is behind may have written before the visit began.
    delay = case((exact, func.max(_LETTER.c.written_at - _VISIT.c.started_at, 0.0)))
    return _line(shape, found, conditions, known, marker, literal(1.0), delay)


def likely(shape: Shape) -> Select[Any]:
    found, conditions = _letters(shape)
    conditions.append(_BEST.c.attribution == AttributionState.LIKELY.value)
    if shape.by in (By.TARGET, By.TOTAL) and not shape.one_source:  # certain of these, whoever wrote
        return _line(shape, found, conditions, literal(1), null(), literal(1.0), null(), likely=True)
    candidate = func.json_each(_BEST.c.candidates).table_valued("value", name="candidate")
    share = func.json_extract(candidate.c.value, "$[1]")
    every: Any = found.join(candidate, literal_column("1") == 1)
    found = _with_visit(every, func.json_extract(candidate.c.value, "$[0]"), shape.touch)
    known, marker = _flag(_VISIT.c.id.is_not(None)), _of_source("marker", shape.touch)
    return _line(shape, found, conditions, known, marker, share, null(), likely=True)


def _line(
    shape: Shape,
    found: Join,
    conditions: list[ColumnElement[bool]],
    known: ColumnElement[int],
    marker: ColumnElement[Any],
    share: ColumnElement[Any],
    delay: ColumnElement[Any],
    likely: bool = False,
) -> Select[Any]:
    if shape.one_source:
        conditions.append(_first_level(marker) == bindparam("source"))
    if not shape.unknown:
        conditions.append(known == 1)
    if shape.by is By.TARGET:
        found = found.outerjoin(targets, targets.c.id == _BEST.c.target_id)
    together = shape.by in (By.TARGET, By.TOTAL)  # whether the source is known makes no rows of its own here
    return (
        select(
            _start(_LETTER.c.received_at, shape.interval).label("start"),
            (literal(1) if together else known).label("known"),
            _key(shape, marker).label("key"),
            known.label("sourced"),
            literal(int(likely)).label("likely"),
            share.label("share"),
            _IS_ENQUIRY.label("enquiry"),
            _HAS_DEAL.label("deal"),
            delay.label("delay"),
        )
        .select_from(found)
        .where(*conditions)
    )


def _flag(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return case((condition, 1), else_=0)


def _with_visit(found: Join, visit_id: ColumnElement[Any], touch: Touch) -> Join:
    """Join the visit itself, and the one whose source counts; both may be gone or erased."""
    found = found.outerjoin(_VISIT, and_(_VISIT.c.id == visit_id, _VISIT.c.erased_at.is_(None)))
    return _with_touched(found, touch)


def _with_touched(found: Any, touch: Touch) -> Join:
    reference = {Touch.FIRST: _VISIT.c.first_id, Touch.LAST_NON_DIRECT: _VISIT.c.touch_id}.get(touch)
    if reference is None:
        return found  # type: ignore[no-any-return]  # the visits themselves
    return found.outerjoin(_TOUCHED, and_(_TOUCHED.c.id == reference, _TOUCHED.c.erased_at.is_(None)))  # type: ignore[no-any-return]


def _of_source(name: str, touch: Touch) -> ColumnElement[Any]:
    """A column of the visit whose source counts: the visit's own where there is no other, or it is gone."""
    if touch is Touch.LAST:
        return _VISIT.c[name]
    return case((_TOUCHED.c.id.is_(None), _VISIT.c[name]), else_=_TOUCHED.c[name])


def _key(shape: Shape, marker: ColumnElement[Any]) -> ColumnElement[Any]:
    if shape.by is By.SOURCE:
        return _first_level(marker)
    if shape.by is By.MARKER:
        return marker
    if shape.by is By.CAMPAIGN:
        return _of_source("utm_campaign", shape.touch)
    if shape.by is By.LANDING_PAGE:
        return _up_to(_of_source("landing_page", shape.touch), "?")
    return targets.c.address if shape.by is By.TARGET else null()


def _first_level(marker: ColumnElement[Any]) -> ColumnElement[Any]:
    return func.nullif(_up_to(marker, "_"), "")


def _up_to(text: ColumnElement[Any], end: str) -> ColumnElement[Any]:
    place = func.instr(text, end)
    return case((place > 0, func.substr(text, 1, place - 1)), else_=text)


def _start(moment: ColumnElement[float], interval: Interval | None) -> ColumnElement[Any]:
    """The beginning of the interval that a time is in, seconds since the epoch."""
    if interval is None:
        return null()
    if interval is Interval.MONTH:
        return cast(func.strftime("%s", moment, "unixepoch", "start of month"), Integer)
    day = cast(moment / DAY, Integer)
    if interval is Interval.DAY:
        return day * DAY
    return ((day + 3) // 7 * 7 - 3) * DAY  # the epoch was a Thursday


def seen(shape: Shape) -> Select[Any]:
    """The visits of people that began in the period, by the source that letters of theirs would count under."""
    marker = _of_source("marker", shape.touch)
    conditions: list[ColumnElement[bool]] = [
        _VISIT.c.site_id.in_(_SITES),
        _VISIT.c.started_at >= _SINCE,
        _VISIT.c.started_at < _UNTIL,
        _VISIT.c.erased_at.is_(None),
        func.coalesce(_VISIT.c.device, "") != "bot",
    ]
    if shape.one_source:
        conditions.append(_first_level(marker) == bindparam("source"))
    found: FromClause = _with_touched(_VISIT, shape.touch)
    start = _start(_VISIT.c.started_at, shape.interval).label("start")
    key = (null() if shape.by is By.TARGET else _key(shape, marker)).label("key")
    counted = select(start, literal(1).label("known"), key, func.count().label("number"))
    return counted.select_from(found).where(*conditions).group_by(start, key)
