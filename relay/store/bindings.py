"""Bind: number the visit, lease its substitutes. One transaction for one page view."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from sqlalchemy import bindparam, func, select, text, update
from sqlalchemy import insert as insert_into

from relay.core import substitute
from relay.core.model import Address, AttributionState, Method, RouteKind
from relay.store import routes as route_verbs
from relay.store.engine import Statement, Tx
from relay.store.schema import bindings, counters, deliveries, routes
from relay.store.visits import TRIES, PageView, Visit, current


@dataclass(frozen=True, slots=True)
class Asked:
    """A target whose substitute the page wants. ``local`` is the local part of the real address."""

    target_id: int
    method: Method
    local: str
    domain: str | None
    lease: float
    reserve: int = 0  # free addresses of its pool that a first page view without a sign of a person leaves to others


@dataclass(frozen=True, slots=True, kw_only=True)
class BindRequest(PageView):
    """A page view that asks for addresses."""

    tracking: bool
    asked: tuple[Asked, ...]
    leasable: bool = True  # False: an automated browser, which is counted but gets no address
    new_leases: bool = True  # False: its network has had its share; what a visit holds already is renewed
    interacted: bool = False  # somebody moved, scrolled or typed
    count_mails: bool = False


@dataclass(frozen=True, slots=True)
class Bound:
    """``substitutes`` by target id; ``created`` are the keys of routes that did not exist before.

    ``fresh``: the visit began with this page view. ``leased``: it holds something that it did not hold before.
    ``reserved``: there is a free address for whoever interacts. ``exhausted``: targets whose pool was. ``mails``:
    letters that are its own for certain, where counted.
    """

    visit: str
    first_visit: str | None
    substitutes: dict[int, str] = field(default_factory=dict)
    created: tuple[tuple[str, str], ...] = ()
    fresh: bool = False
    leased: bool = False
    reserved: bool = False
    exhausted: tuple[int, ...] = ()
    mails: int | None = None


# What it holds may have gone to another target's pool since, or have become static: then it is not shown for this one.
_CURRENT = Statement(
    select(bindings.c.id, routes.c.id, routes.c.domain, routes.c.local, routes.c.binding_id)
    .join(routes, routes.c.id == bindings.c.route_id)
    .where(
        bindings.c.visit_id == bindparam("visit"),
        bindings.c.target_id == bindparam("target"),
        routes.c.target_id == bindings.c.target_id,
        routes.c.kind.in_([RouteKind.POOL.value, RouteKind.UNIQUE.value]),
        routes.c.retired_at.is_(None),
    )
    .order_by(bindings.c.id.desc())
    .limit(1)
)
_RENEW_BINDING = Statement(update(bindings).where(bindings.c.id == bindparam("binding")), "ended_at")
_RENEW_ROUTE = Statement(update(routes).where(routes.c.id == bindparam("route")), "leased_until")
_FREE = (
    select(routes.c.id, routes.c.domain, routes.c.local)
    .where(
        routes.c.target_id == bindparam("target"),
        routes.c.leased_until <= bindparam("now"),
        text("kind = 'pool' AND retired_at IS NULL"),
    )
    .order_by(routes.c.leased_until, routes.c.id)
    .limit(1)
)
_LEAST_RECENTLY_USED = Statement(_FREE)
_BEYOND_RESERVE = Statement(_FREE.offset(bindparam("reserve")))
_MAILS = Statement(
    select(func.count(deliveries.c.message_id.distinct())).where(
        deliveries.c.visit_id == bindparam("visit"), deliveries.c.attribution == AttributionState.EXACT.value
    )
)
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
    visit = current(tx, request, now, random)
    mails = None
    if request.count_mails:
        mails = 0 if visit.fresh else (tx.one(_MAILS, visit=visit.id) or (0,))[0]
    if not request.tracking or not request.leasable:
        return Bound(visit.number, visit.first, fresh=visit.fresh, mails=mails)
    leasing = _Leasing(tx, request, visit, now, random)
    found = {asked.target_id: leasing.substitute(asked) for asked in request.asked}
    return Bound(
        visit.number,
        visit.first,
        {target_id: address for target_id, address in found.items() if address is not None},
        tuple(leasing.created),
        fresh=visit.fresh,
        leased=leasing.leased,
        reserved=leasing.reserved,
        exhausted=tuple(leasing.exhausted),
        mails=mails,
    )


@dataclass(slots=True)
class _Leasing:
    """The addresses of one page view. ``created`` are keys of new routes; ``leased``: something is held anew."""

    tx: Tx
    request: BindRequest
    visit: Visit
    now: float
    random: Callable[[int], bytes]
    created: list[tuple[str, str]] = field(default_factory=list)
    leased: bool = False
    reserved: bool = False
    exhausted: list[int] = field(default_factory=list)

    def substitute(self, asked: Asked) -> str | None:
        if asked.method is Method.PLUS:
            return str(Address(f"{asked.local}+{self.visit.number}", asked.domain)) if asked.domain else None
        renewed = None if self.visit.fresh else self._renew(asked)
        if renewed is not None or not self.request.new_leases:
            return renewed
        if asked.method is Method.POOL and (address := self._lease(asked)):
            return address
        return None if asked.domain is None else self._mint(asked, asked.domain)

    def _lease(self, asked: Asked) -> str | None:
        row = self.tx.one(_LEAST_RECENTLY_USED, target=asked.target_id, now=self.now)
        if row is None:
            count(self.tx, self.request.site_id, "pool_exhausted", self.now)
            self.exhausted.append(asked.target_id)
            return None
        if self._is_reserved(asked):
            count(self.tx, self.request.site_id, "pool_reserved", self.now)
            self.reserved = asked.domain is None or self.reserved  # else a unique address does as well
            return None
        route_id, domain, local = row
        self._hold(route_id, asked)
        return str(Address(local, domain))

    def _is_reserved(self, asked: Asked) -> bool:
        """Whether the last free addresses are kept from this page view: nothing says yet that a person looks at it."""
        if not asked.reserve or not self.visit.fresh or self.request.interacted:
            return False
        return self.tx.one(_BEYOND_RESERVE, target=asked.target_id, now=self.now, reserve=asked.reserve) is None

    def _renew(self, asked: Asked) -> str | None:
        """The address that this visit has, its lease moved on; None when it has none or another visit was given it."""
        row = self.tx.one(_CURRENT, visit=self.visit.id, target=asked.target_id)
        if row is None:
            return None
        binding_id, route_id, domain, local, holder = row
        if holder != binding_id:
            return None
        until = self.now + asked.lease
        self.tx.run(_RENEW_BINDING, binding=binding_id, ended_at=until)
        self.tx.run(_RENEW_ROUTE, route=route_id, leased_until=until)
        return str(Address(local, domain))

    def _hold(self, route_id: int, asked: Asked) -> None:
        until = self.now + asked.lease
        binding_id = self.tx.insert(
            route_verbs.HOLD,
            route_id=route_id,
            target_id=asked.target_id,
            visit_id=self.visit.id,
            started_at=self.now,
            ended_at=until,
        )
        self.tx.run(_LEASE, route=route_id, leased_until=until, binding_id=binding_id)
        self.leased = True

    def _mint(self, asked: Asked, at: str) -> str:
        for _ in range(TRIES):
            address = Address(substitute.mint(self.random(substitute.RANDOM_OCTETS)), at)
            domain, local = address.key
            if self.tx.one(route_verbs.OWNER, domain=domain, local=local) is None:
                site_id = self.request.site_id
                route_id = route_verbs.create(self.tx, address, RouteKind.UNIQUE, site_id, asked.target_id, self.now)
                self._hold(route_id, asked)
                self.created.append(address.key)
                return str(address)
        raise RuntimeError("no free unique address found")
