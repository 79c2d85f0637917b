"""Routes: which real address the mail for a substitute goes to. A route outlives its bindings."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import bindparam, delete, func, select, update
from sqlalchemy import insert as insert_into

from relay.core import substitute
from relay.core.attribution import DATE_REACH
from relay.core.model import Address, RouteKind, fold
from relay.store.engine import Row, Statement, Tx
from relay.store.reader import Reader
from relay.store.schema import bindings, routes, sites, targets, visits

#: Begins the number of what is no visit but keeps that somebody held an address. Those of visits are digits, and an
#: erased one has its own id.
NOBODY = "-r"
#: Routes, and addresses known to have none, kept in memory.
CACHED = 65_536
#: Seconds for which an address that another site had is not leased: its visitors may still write to it.
REST = 86_400.0


@dataclass(frozen=True, slots=True)
class Route:
    """A route with what forwarding and attribution need of its target and site."""

    id: int
    domain: str
    local: str
    site_id: int
    target_id: int
    kind: RouteKind
    label: str | None
    real_address: str
    next_hop: str | None
    retired: bool
    tracking: bool  # whether its site's is on

    @property
    def attributed(self) -> bool:
        return self.tracking and not self.retired


_ROUTE = (
    select(
        routes.c.id,
        routes.c.domain,
        routes.c.local,
        routes.c.site_id,
        routes.c.target_id,
        routes.c.kind,
        routes.c.label,
        targets.c.forward_to,
        targets.c.address,
        targets.c.next_hop,
        routes.c.retired_at,
        sites.c.tracking,
    )
    .join(targets, targets.c.id == routes.c.target_id)
    .join(sites, sites.c.id == routes.c.site_id)
    .where(routes.c.domain == bindparam("domain"), routes.c.local == bindparam("local"))
)
FIND = Statement(_ROUTE)
DOMAINS = Statement(select(routes.c.domain).distinct())
# Where the mail of people goes; of removed targets too, whose routes go on.
REAL = Statement(select(targets.c.address, targets.c.forward_to))
INSERT = Statement(insert_into(routes), "domain local site_id target_id kind label leased_until created_at defined")
OWNER = Statement(
    select(routes.c.id, routes.c.site_id, routes.c.target_id, routes.c.kind, routes.c.retired_at).where(
        routes.c.domain == bindparam("domain"), routes.c.local == bindparam("local")
    )
)
RETIRE = Statement(update(routes).where(routes.c.id == bindparam("route"), routes.c.retired_at.is_(None)), "retired_at")
RETIRE_TARGET = Statement(
    update(routes).where(routes.c.target_id == bindparam("target"), routes.c.retired_at.is_(None)), "retired_at"
)
REVIVE = Statement(update(routes).where(routes.c.id == bindparam("route")), "retired_at target_id label kind defined")


NAMES_WITH_STEM = Statement(
    select(routes.c.local).where(
        routes.c.domain == bindparam("domain"), routes.c.local >= bindparam("low"), routes.c.local < bindparam("high")
    )
)
DELETE = Statement(delete(routes).where(routes.c.id == bindparam("route")))
HOLD = Statement(insert_into(bindings), "route_id target_id visit_id started_at ended_at")
_HELD = Statement(
    select(
        routes.c.site_id,
        routes.c.created_at,
        func.min(bindings.c.started_at),
        func.max(bindings.c.started_at),
        func.max(bindings.c.ended_at),
    )
    .outerjoin(bindings, bindings.c.route_id == routes.c.id)
    .where(routes.c.id == bindparam("route"))
    .group_by(routes.c.site_id, routes.c.created_at)
)
_SOMEBODY = Statement(insert_into(visits), "site_id number own started_at last_seen_at erased_at")


def stem_range(stem: str) -> tuple[str, str]:
    """``low`` and ``high`` for NAMES_WITH_STEM: the local parts that go on with a digit behind the stem."""
    return f"{fold(stem)}0", f"{fold(stem)}:"  # the character behind 9


class AddressTaken(Exception):
    """The address exists already: as a substitute of another target, or as one of another kind."""

    def __init__(self, address: str) -> None:
        super().__init__(f"{address} is another substitute already")
        self.address = address


def create(
    tx: Tx,
    address: Address,
    kind: RouteKind,
    site_id: int,
    target_id: int,
    now: float,
    label: str | None = None,
    *,
    defined: bool = False,
    from_any_site: bool = False,
) -> int:
    """A route for ``address``, or the retired one of the same site revived; raises AddressTaken. Its id.

    ``defined``: its site's definition names it. ``from_any_site``: a route that another site has retired may be taken
    over. Of what it knew of visits it keeps only that there were some, and it rests. What was static until now has been
    held by nobody knows whom; so has, from now on, what visits held until now. A unique address never becomes anything
    else.
    """
    domain, local = address.key
    leased_until = 0.0
    held: Row | None = None
    _refuse_mishearing(tx, address, kind, target_id)
    owner = tx.one(OWNER, domain=domain, local=local)
    to_static = owner is not None and owner[3] == RouteKind.POOL.value and kind is RouteKind.STATIC
    if owner is not None and owner[1] != site_id and owner[4] is not None and from_any_site:
        held = _held(tx, owner[0], owner[3], now)
        tx.run(DELETE, route=owner[0])
        owner, leased_until = None, max(now + REST, held[2] if held else 0.0)
    if owner is None:
        route_id = tx.insert(
            INSERT,
            domain=domain,
            local=local,
            site_id=site_id,
            target_id=target_id,
            kind=kind.value,
            label=label,
            leased_until=leased_until,
            created_at=now,
            defined=int(defined),
        )
        if held is not None:
            keep_holding(tx, route_id, target_id, held, now)
            if to_static:
                keep_holding(tx, route_id, target_id, (site_id, now, now), now)
        return route_id
    route_id, owner_site, owner_target, owner_kind, retired_at = owner
    live = retired_at is None
    if owner_site != site_id or (live and owner_target != target_id):
        raise AddressTaken(str(address))
    if owner_kind != kind.value and (owner_kind == RouteKind.UNIQUE.value or (live and not defined)):
        raise AddressTaken(str(address))
    if owner_kind == RouteKind.STATIC.value and kind is RouteKind.POOL:
        held = _held(tx, route_id, owner_kind, now)
    if to_static and _held(tx, route_id, owner_kind, now):
        held = site_id, now, now
    if not live or defined:
        tx.run(
            REVIVE,
            route=route_id,
            retired_at=None,
            target_id=target_id,
            label=label,
            kind=kind.value,
            defined=int(defined),
        )
    if held is not None:
        keep_holding(tx, route_id, target_id, held, now)
    return int(route_id)


def _held(tx: Tx, route_id: int, kind: str, now: float) -> Row | None:
    """Whose an address was, and from when to when somebody held it; None where nobody ever did.

    A static one has been held until now, by whoever has read it on a card or elsewhere. Since when is told no earlier
    than mail may have been written that is still to come: what visits there are would seem to begin there.
    """
    row = tx.one(_HELD, route=route_id)
    assert row is not None
    site_id, created_at, begun, last, ended = row
    if kind == RouteKind.STATIC.value:
        return site_id, max(created_at if last is None else last, now - DATE_REACH), max(ended or now, now)
    return None if ended is None else (site_id, begun, ended)


def keep_holding(tx: Tx, route_id: int, target_id: int, held: Row, now: float) -> None:
    """As one visit of its former site, and of nobody, which retention ends like the others.

    Late mail of who was shown it before would be stated as the visit's that is shown it now, for want of another.
    """
    site_id, begun, ended = held
    visit_id = tx.insert(
        _SOMEBODY,
        site_id=site_id,
        number=f"{NOBODY}{route_id}-{now:.6f}",  # it may have been static more than once
        own=0,
        started_at=begun,
        last_seen_at=min(ended, now),
        erased_at=now,
    )
    tx.insert(HOLD, route_id=route_id, target_id=target_id, visit_id=visit_id, started_at=begun, ended_at=ended)


def _refuse_mishearing(tx: Tx, address: Address, kind: RouteKind, target_id: int) -> None:
    """Raise AddressTaken for what would take mail that is meant for another target's unique address (misheard)."""
    meant = None if kind is RouteKind.UNIQUE else substitute.normalise(address.local)
    if meant is None:
        return
    owner = tx.one(OWNER, domain=address.domain, local=meant)
    if owner is not None and owner[2] != target_id and owner[3] == RouteKind.UNIQUE.value:
        raise AddressTaken(str(address))


class RouteCache:
    """Exact: whatever changes routes in this process tells it. A look-up that misses reads the database once."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._routes: OrderedDict[tuple[str, str], Route | None] = OrderedDict()
        self._domains: frozenset[str] | None = None
        self._generation = 0

    async def find(self, keys: Sequence[tuple[str, str, str | None]]) -> tuple[Route, str | None] | None:
        """The first of (domain, local, tag) that has a route, with the tag; None when there is none."""
        for domain, local, tag in keys:
            try:
                route = self._routes[domain, local]
            except KeyError:
                route = await self._load(domain, local)
            if route is not None:
                return route, tag
        return None

    async def domains(self) -> frozenset[str]:
        """The domains that have a route: mail for them is ours."""
        if self._domains is None:
            generation = self._generation
            found = frozenset(row[0] for row in await self._reader.run(DOMAINS))
            if generation != self._generation:
                return found
            self._domains = found
        return self._domains

    def forget(self, keys: Iterable[tuple[str, str]]) -> None:
        """These substitutes were created just now."""
        self._generation += 1
        for key in keys:
            self._routes.pop(key, None)
            if self._domains is not None and key[0] not in self._domains:
                self._domains = None

    def forget_all(self) -> None:
        """Sites, targets or routes were changed."""
        self._generation += 1
        self._routes.clear()
        self._domains = None

    async def _load(self, domain: str, local: str) -> Route | None:
        generation = self._generation
        rows = await self._reader.run(FIND, domain=domain, local=local)
        route = _route(rows[0]) if rows else None
        if generation == self._generation:
            self._routes[domain, local] = route
            if len(self._routes) > CACHED:
                self._routes.popitem(last=False)
        return route


def _route(row: Row) -> Route:
    route_id, domain, local, site_id, target_id, kind, label, forward_to, address, next_hop, retired_at, tracking = row
    return Route(
        id=route_id,
        domain=domain,
        local=local,
        site_id=site_id,
        target_id=target_id,
        kind=RouteKind(kind),
        label=label,
        real_address=forward_to or address,
        next_hop=next_hop,
        retired=retired_at is not None,
        tracking=bool(tracking),
    )
