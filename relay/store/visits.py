"""Visits: which one a page view belongs to, numbered and with its source where it begins a new one."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import NamedTuple

from sqlalchemy import and_, bindparam, or_, select, text, update
from sqlalchemy import insert as insert_into

from relay.core.channel import Channel, Source
from relay.core.source import PageMarks, strip_scheme
from relay.core.visit import VisitMarks, is_handed_over, is_new_visit, is_number, visit_number
from relay.store.engine import Row, Statement, Tx
from relay.store.schema import visits

#: Random names tried before giving up; with 50 random bits a second is not expected in the life of the product.
TRIES = 20


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who looks at the page, as far as it may be kept."""

    ip: str | None = None
    city: str | None = None
    country: str | None = None
    user_agent: str | None = None
    device: str | None = None
    browser: str | None = None
    os: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PageView:
    """One page view of a site. ``number`` is the visit that the browser believes it is in; ``source`` is what a new
    visit came from."""

    site_id: int
    visit_timeout: float
    own_hosts: Collection[str]
    number: str | None
    first_visit: str | None
    marks: PageMarks
    source: Source
    referrer: str | None
    params: dict[str, str]
    google_client_id: str | None
    visitor: Visitor = field(default_factory=Visitor)
    ours: bool = False  # ``number`` stood in our own cookie, not in another counter's
    ym_uid: str | None = None


class _Known(NamedTuple):
    """A visit of the site as ``_FIND`` reads it."""

    id: int
    own: int
    first_visit: str | None
    last_seen_at: float
    first_id: int | None
    touch_id: int | None
    channel: str | None
    mark: str | None
    utm_source: str | None
    utm_medium: str | None
    utm_campaign: str | None
    utm_term: str | None
    utm_content: str | None
    referrer: str | None
    user_agent: str | None

    @property
    def marks(self) -> VisitMarks:
        return VisitMarks(
            marker=self.mark,
            utm_source=self.utm_source,
            utm_medium=self.utm_medium,
            utm_campaign=self.utm_campaign,
            utm_term=self.utm_term,
            utm_content=self.utm_content,
            referrer=self.referrer,
        )


_FIND = select(*(visits.c[name] for name in _Known._fields))
_FIND_VISIT = Statement(_FIND.where(visits.c.site_id == bindparam("site"), visits.c.number == bindparam("number")))
_LATEST_OF_BROWSER = Statement(
    _FIND.where(
        visits.c.site_id == bindparam("site"),
        or_(visits.c.id == bindparam("first"), visits.c.first_id == bindparam("first")),
        visits.c.erased_at.is_(None),
    )
    .order_by(visits.c.id.desc())
    .limit(1)
)
_SEEN = Statement(update(visits).where(visits.c.id == bindparam("visit")), "last_seen_at")
# Written so that each half has its index: a number of our own anywhere, or any number at this site.
_OWN_TAKEN = Statement(
    select(visits.c.id)
    .where(
        or_(
            and_(visits.c.number == bindparam("number"), text("own = 1")),
            and_(visits.c.site_id == bindparam("site"), visits.c.number == bindparam("number")),
        )
    )
    .limit(1)
)
_INSERT_VISIT = Statement(
    insert_into(visits),
    "site_id number own first_visit started_at last_seen_at referrer landing_page domain mark marker channel "
    "utm_source utm_medium utm_campaign utm_term utm_content params google_client_id ym_uid ip city country "
    "user_agent device browser os first_id touch_id",
)


class Visit(NamedTuple):
    """``fresh``: made just now, so it holds nothing yet."""

    id: int
    number: str
    first: str | None
    fresh: bool


def current(tx: Tx, view: PageView, now: float, random: Callable[[int], bytes]) -> Visit:
    """The browser's own visit, or a new one (core/visit.py)."""
    given = view.number if view.number and is_number(view.number) else None
    row = None if given is None else _find(tx, view, given)
    if row is None and view.ours:
        given = None  # erased, or past its retention: not a number that somebody else is to give
    crossed = _crossed(tx, view, given, now)
    if crossed is not None:
        given, row = crossed
    if given is None:
        return _new_visit(tx, view, _own_number(tx, view.site_id, random), True, _latest(tx, view), now)
    if row is None:
        return _new_visit(tx, view, given, False, _latest(tx, view), now)
    if is_new_visit(
        row.marks,
        view.marks,
        view.referrer,
        view.own_hosts,
        row.last_seen_at,
        now,
        view.visit_timeout,
        foreign=not row.own and not view.ours,  # what our cookie has kept of a counter that is gone, nobody renews
    ):
        # Another tab may have begun a later visit than this one's.
        before = _latest_with(tx, view, row) or row
        return _new_visit(tx, view, _own_number(tx, view.site_id, random), True, before, now)
    tx.run(_SEEN, visit=row.id, last_seen_at=now)
    return Visit(row.id, given, row.first_visit, False)


def _find(tx: Tx, view: PageView, number: str | None) -> _Known | None:
    """The site's visit with this number."""
    if number is None or not is_number(number):
        return None
    return _known(tx.one(_FIND_VISIT, site=view.site_id, number=number))


def _latest(tx: Tx, view: PageView) -> _Known | None:
    """The latest visit of a browser that still knows its first one."""
    first = _find(tx, view, view.first_visit)
    return first and _latest_with(tx, view, first)


def _latest_with(tx: Tx, view: PageView, visit: _Known) -> _Known | None:
    """The latest visit of the browser that ``visit`` is of; None if all of them are erased."""
    return _known(tx.one(_LATEST_OF_BROWSER, site=view.site_id, first=visit.first_id or visit.id))


def _known(row: Row | None) -> _Known | None:
    return None if row is None else _Known(*row)


def _crossed(tx: Tx, view: PageView, given: str | None, now: float) -> tuple[str, _Known | None] | None:
    """The visit that a link from another of the site's domains hands over, with its row if it is known."""
    number = view.marks.visit
    if number is None or number == given:
        return None
    row = _find(tx, view, number)
    if row is not None and row.user_agent != view.visitor.user_agent:
        return None  # another browser's: its visit is not to be had by a link
    last_seen = None if row is None else row.last_seen_at
    if is_handed_over(view.marks, view.referrer, view.own_hosts, last_seen, now):
        return number, row
    return None


def _own_number(tx: Tx, site_id: int, random: Callable[[int], bytes]) -> str:
    for _ in range(TRIES):
        number = visit_number(int.from_bytes(random(16), "big"))
        if tx.one(_OWN_TAKEN, site=site_id, number=number) is None:
            return number
    raise RuntimeError("no free visit number found")


def _new_visit(tx: Tx, view: PageView, number: str, own: bool, before: _Known | None, now: float) -> Visit:
    """Count a visit; ``before`` is the row of an earlier visit of the same browser, the last one that is known."""
    marks, visitor = view.marks, view.visitor
    params = {str(i): value for i, value in enumerate(marks.params, 1) if value} | view.params
    first = before.first_visit if before else view.first_visit
    first = first if first and is_number(first) else number
    visit_id = tx.insert(
        _INSERT_VISIT,
        site_id=view.site_id,
        number=number,
        own=int(own),
        first_visit=first,
        started_at=now,
        last_seen_at=now,
        referrer=strip_scheme(view.referrer),
        landing_page=marks.landing,
        domain=marks.host,
        mark=marks.marker,
        marker=view.source.marker,
        channel=view.source.channel.value,
        utm_source=marks.utm_source,
        utm_medium=marks.utm_medium,
        utm_campaign=marks.utm_campaign,
        utm_term=marks.utm_term,
        utm_content=marks.utm_content,
        params=json.dumps(params) if params else None,
        google_client_id=view.google_client_id,
        ym_uid=view.ym_uid,
        ip=visitor.ip,
        city=visitor.city,
        country=visitor.country,
        user_agent=visitor.user_agent,
        device=visitor.device,
        browser=visitor.browser,
        os=visitor.os,
        first_id=None if before is None else before.first_id or before.id,
        touch_id=_touch(view.source, before),
    )
    return Visit(visit_id, number, first, True)


def _touch(source: Source, before: _Known | None) -> int | None:
    """The browser's last visit that was not direct, where it is not the new one."""
    if source.channel is not Channel.DIRECT or before is None:
        return None
    return before.touch_id if before.channel == Channel.DIRECT.value else before.id
