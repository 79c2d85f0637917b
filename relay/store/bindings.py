"""Bind: number the visit, lease its substitutes. One transaction for one page view."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple

from sqlalchemy import and_, bindparam, or_, select, text, update
from sqlalchemy import insert as insert_into

from relay.core import substitute
from relay.core.model import Address, Method, RouteKind
from relay.core.source import PageMarks, strip_scheme
from relay.core.visit import VisitMarks, is_new_visit, is_number, visit_number
from relay.store import routes as route_verbs
from relay.store.engine import Row, Statement, Tx
from relay.store.schema import bindings, counters, routes, visits

#: Random names tried before giving up; with 60 random bits the second is not expected in the life of the product.
TRIES = 20


@dataclass(frozen=True, slots=True)
class Asked:
    """A target whose substitute the page wants. ``local`` is the local part of the real address."""

    target_id: int
    method: Method
    local: str
    domain: str | None
    lease: float


@dataclass(frozen=True, slots=True)
class BindRequest:
    """One page view of a site. ``number`` is the visit that the browser believes it is in."""

    site_id: int
    tracking: bool
    visit_timeout: float
    own_hosts: Collection[str]
    number: str | None
    first_visit: str | None
    marks: PageMarks
    referrer: str | None
    params: dict[str, str]
    google_client_id: str | None
    ip: str | None
    user_agent: str | None
    asked: tuple[Asked, ...]
    leasable: bool = True  # False: an automated browser, which is counted but gets no address


@dataclass(frozen=True, slots=True)
class Bound:
    """``substitutes`` by target id; ``created`` are the keys of routes that did not exist before."""

    visit: str
    first_visit: str | None
    substitutes: dict[int, str] = field(default_factory=dict)
    created: tuple[tuple[str, str], ...] = ()


_FIND_VISIT = Statement(
    select(
        visits.c.id,
        visits.c.own,
        visits.c.first_visit,
        visits.c.last_seen_at,
        visits.c.marker,
        visits.c.utm_source,
        visits.c.utm_medium,
        visits.c.utm_campaign,
        visits.c.utm_term,
        visits.c.utm_content,
        visits.c.referrer,
    ).where(visits.c.site_id == bindparam("site"), visits.c.number == bindparam("number"))
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
    "site_id number own first_visit started_at last_seen_at referrer landing_page domain marker utm_source utm_medium "
    "utm_campaign utm_term utm_content params google_client_id ip user_agent",
)
_CURRENT = Statement(
    select(bindings.c.id, routes.c.id, routes.c.domain, routes.c.local, routes.c.binding_id)
    .join(routes, routes.c.id == bindings.c.route_id)
    .where(
        bindings.c.visit_id == bindparam("visit"),
        bindings.c.target_id == bindparam("target"),
        routes.c.retired_at.is_(None),
    )
    .order_by(bindings.c.id.desc())
    .limit(1)
)
_RENEW_BINDING = Statement(update(bindings).where(bindings.c.id == bindparam("binding")), "ended_at")
_RENEW_ROUTE = Statement(update(routes).where(routes.c.id == bindparam("route")), "leased_until")
_LEAST_RECENTLY_USED = Statement(
    select(routes.c.id, routes.c.domain, routes.c.local)
    .where(
        routes.c.target_id == bindparam("target"),
        routes.c.leased_until <= bindparam("now"),
        text("kind = 'pool' AND retired_at IS NULL"),
    )
    .order_by(routes.c.leased_until, routes.c.id)
    .limit(1)
)
_INSERT_BINDING = Statement(insert_into(bindings), "route_id target_id visit_id started_at ended_at")
_LEASE = Statement(update(routes).where(routes.c.id == bindparam("route")), "leased_until binding_id")
_FIND_COUNTER = Statement(
    update(counters)
    .where(
        counters.c.site_id == bindparam("site"),
        counters.c.day == bindparam("on_day"),
        counters.c.name == bindparam("what"),
    )
    .values(count=counters.c.count + 1)
)
_INSERT_COUNTER = Statement(insert_into(counters), "site_id day name count")


def count(tx: Tx, site_id: int, name: str, now: float) -> None:
    """One more of ``name`` for the site on this day (UTC)."""
    day = datetime.fromtimestamp(now, UTC).date().isoformat()
    if not tx.run(_FIND_COUNTER, site=site_id, on_day=day, what=name):
        tx.insert(_INSERT_COUNTER, site_id=site_id, day=day, name=name, count=1)


def bind(tx: Tx, request: BindRequest, now: float, random: Callable[[int], bytes] = secrets.token_bytes) -> Bound:
    """The visit of this page view, and for each target asked a substitute that is its until the lease ends.

    The same visit keeps its address as long as nobody else was given it. An exhausted pool falls back to a unique
    address where the target has a domain, else the target is missing from the answer; both are counted.
    """
    visit = _visit(tx, request, now, random)
    if not request.tracking or not request.leasable:
        return Bound(visit.number, visit.first)
    substitutes: dict[int, str] = {}
    created: list[tuple[str, str]] = []
    for asked in request.asked:
        address = _substitute(tx, request.site_id, visit, asked, now, random, created)
        if address is not None:
            substitutes[asked.target_id] = address
    return Bound(visit.number, visit.first, substitutes, tuple(created))


class _Visit(NamedTuple):
    """``fresh``: made just now, so it holds nothing yet."""

    id: int
    number: str
    first: str | None
    fresh: bool


def _visit(tx: Tx, request: BindRequest, now: float, random: Callable[[int], bytes]) -> _Visit:
    """The browser's own visit, or a new one (core/visit.py)."""
    given = request.number if request.number and is_number(request.number) else None
    if given is None:
        return _new_visit(tx, request, _own_number(tx, request.site_id, random), True, request.first_visit, now)
    row = tx.one(_FIND_VISIT, site=request.site_id, number=given)
    if row is None:
        return _new_visit(tx, request, given, False, request.first_visit, now)
    visit_id, own, first_visit, last_seen_at = row[:4]
    if is_new_visit(
        _marks(row),
        request.marks,
        request.referrer,
        request.own_hosts,
        last_seen_at,
        now,
        request.visit_timeout,
        foreign=not own,
    ):
        return _new_visit(tx, request, _own_number(tx, request.site_id, random), True, first_visit or given, now)
    tx.run(_SEEN, visit=visit_id, last_seen_at=now)
    return _Visit(visit_id, given, first_visit, False)


def _marks(row: Row) -> VisitMarks:
    return VisitMarks(*row[4:11])


def _own_number(tx: Tx, site_id: int, random: Callable[[int], bytes]) -> str:
    for _ in range(TRIES):
        number = visit_number(int.from_bytes(random(16), "big"))
        if tx.one(_OWN_TAKEN, site=site_id, number=number) is None:
            return number
    raise RuntimeError("no free visit number found")


def _new_visit(tx: Tx, request: BindRequest, number: str, own: bool, first_visit: str | None, now: float) -> _Visit:
    marks = request.marks
    params = {str(i): value for i, value in enumerate(marks.params, 1) if value} | request.params
    first = first_visit if first_visit and is_number(first_visit) else number
    visit_id = tx.insert(
        _INSERT_VISIT,
        site_id=request.site_id,
        number=number,
        own=int(own),
        first_visit=first,
        started_at=now,
        last_seen_at=now,
        referrer=strip_scheme(request.referrer),
        landing_page=marks.landing,
        domain=marks.host,
        marker=marks.marker,
        utm_source=marks.utm_source,
        utm_medium=marks.utm_medium,
        utm_campaign=marks.utm_campaign,
        utm_term=marks.utm_term,
        utm_content=marks.utm_content,
        params=json.dumps(params) if params else None,
        google_client_id=request.google_client_id,
        ip=request.ip,
        user_agent=request.user_agent,
    )
    return _Visit(visit_id, number, first, True)


def _substitute(
    tx: Tx,
    site_id: int,
    visit: _Visit,
    asked: Asked,
    now: float,
    random: Callable[[int], bytes],
    created: list[tuple[str, str]],
) -> str | None:
    if asked.method is Method.PLUS:
        return str(Address(f"{asked.local}+{visit.number}", asked.domain)) if asked.domain else None
    renewed = None if visit.fresh else _renew(tx, visit.id, asked, now)
    if renewed is not None:
        return renewed
    if asked.method is Method.POOL:
        row = tx.one(_LEAST_RECENTLY_USED, target=asked.target_id, now=now)
        if row is not None:
            route_id, domain, local = row
            _hold(tx, route_id, visit.id, asked, now)
            return str(Address(local, domain))
        count(tx, site_id, "pool_exhausted", now)
    if asked.domain is None:
        return None
    return _mint(tx, site_id, visit.id, asked, now, random, created)


def _renew(tx: Tx, visit_id: int, asked: Asked, now: float) -> str | None:
    """The address that this visit has, its lease moved on; None when it has none or another visit was given it."""
    row = tx.one(_CURRENT, visit=visit_id, target=asked.target_id)
    if row is None:
        return None
    binding_id, route_id, domain, local, holder = row
    if holder != binding_id:
        return None
    until = now + asked.lease
    tx.run(_RENEW_BINDING, binding=binding_id, ended_at=until)
    tx.run(_RENEW_ROUTE, route=route_id, leased_until=until)
    return str(Address(local, domain))


def _hold(tx: Tx, route_id: int, visit_id: int, asked: Asked, now: float) -> None:
    until = now + asked.lease
    binding_id = tx.insert(
        _INSERT_BINDING,
        route_id=route_id,
        target_id=asked.target_id,
        visit_id=visit_id,
        started_at=now,
        ended_at=until,
    )
    tx.run(_LEASE, route=route_id, leased_until=until, binding_id=binding_id)


def _mint(
    tx: Tx,
    site_id: int,
    visit_id: int,
    asked: Asked,
    now: float,
    random: Callable[[int], bytes],
    created: list[tuple[str, str]],
) -> str:
    assert asked.domain is not None
    for _ in range(TRIES):
        address = Address(substitute.mint(random(substitute.RANDOM_OCTETS)), asked.domain)
        domain, local = address.key
        if tx.one(route_verbs.OWNER, domain=domain, local=local) is None:
            route_id = route_verbs.create(tx, address, RouteKind.UNIQUE, site_id, asked.target_id, now)
            _hold(tx, route_id, visit_id, asked, now)
            created.append(address.key)
            return str(address)
    raise RuntimeError("no free unique address found")
