"""The addresses of a target as its page lists them: state, holder, last letter; and what is not listed, in figures.

Pool and static addresses are rows that somebody made: some thousands at most, listed by index ix_routes_listed.
Unique ones are as many as there are visits, plus ones are no rows at all: of both there are only figures, taken from
the latest rows, so that no page ever reads a whole table.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from sqlalchemy import BindParameter, Case, Select, bindparam, case, func, select

from relay.core.model import Address, AttributionState
from relay.core.substitute import pool_names
from relay.store.engine import Statement
from relay.store.reader import Reader
from relay.store.routes import NAMES_WITH_STEM, stem_range
from relay.store.schema import LISTED, bindings, counters, deliveries, messages, routes, visits

#: Deliveries of a site, the latest, among which last letters are looked for; and routes, for what was made lately.
LATEST = 20_000
DAY = 86_400.0


class State(StrEnum):
    LEASED = "leased"
    FREE = "free"
    UNUSED = "unused"  # never leased
    RESTING = "resting"  # another site had it: not leased until its visitors have written
    STATIC = "static"
    RETIRED = "retired"  # forwards without attribution


@dataclass(frozen=True, slots=True)
class Row:
    """``until``: when its lease ends or ended, or its rest ends; None when it never was leased.

    ``holder`` is the number of the visit that holds it or held it last: None where there is none, or retention has
    deleted it. ``erased``: that visit was erased by request. ``declared``: named in its site's definition.
    """

    id: int
    address: str
    state: State
    kind: str
    label: str | None
    declared: bool
    created_at: float
    retired_at: float | None
    until: float | None
    holder: str | None
    held_since: float | None
    erased: bool


@dataclass(frozen=True, slots=True)
class Letter:
    """The latest letter to an address or a target, and how many there are among the latest of the site."""

    message_id: int
    received_at: float
    attribution: str
    count: int


@dataclass(frozen=True, slots=True)
class Latest:
    """Of each route and target that the latest :data:`LATEST` deliveries of a site went to: the last of them, and how
    many there are. ``walked``: how many deliveries that are in all; ``older``: the site has more than these."""

    walked: int
    by_route: Mapping[int, tuple[int, int]]
    by_target: Mapping[int, tuple[int, int]]
    older: bool


@dataclass(frozen=True, slots=True)
class Minted:
    """Unique addresses of a target: made in the last 24 hours, and when the last one was.

    ``at_least``: more may have been made, other targets' filled the latest :data:`LATEST` routes.
    """

    count: int
    last_at: float | None
    at_least: bool


def _state(now: float | BindParameter[float]) -> Case[str]:
    return case(
        (routes.c.retired_at.is_not(None), State.RETIRED.value),
        (routes.c.kind == "static", State.STATIC.value),
        ((routes.c.leased_until > now) & routes.c.binding_id.is_not(None), State.LEASED.value),
        (routes.c.leased_until > now, State.RESTING.value),
        (routes.c.binding_id.is_(None), State.UNUSED.value),
        else_=State.FREE.value,
    )


_STATE = _state(bindparam("now"))
_COUNTS = Statement(
    select(_STATE, func.count()).where(routes.c.target_id == bindparam("target"), LISTED).group_by(_STATE)
)


async def counts(reader: Reader, target_id: int, now: float) -> dict[State, int]:
    """How many pool and static addresses of a target are in each state that any is in."""
    return {State(state): count for state, count in await reader.run(_COUNTS, target=target_id, now=now)}


def _chosen(target_id: int, now: float, state: State | None, text: str) -> Select[tuple[int]]:
    query = select(routes.c.id).where(routes.c.target_id == target_id, LISTED)
    if state is not None:
        query = query.where(_state(now) == state.value)
    if text:
        local, at, domain = text.lower().partition("@")
        if at:
            query = query.where(routes.c.domain.startswith(domain, autoescape=True))
            query = query.where(routes.c.local.endswith(local, autoescape=True))
        else:
            query = query.where(routes.c.local.contains(local, autoescape=True))
    return query


async def count(reader: Reader, target_id: int, now: float, state: State | None = None, text: str = "") -> int:
    """How many addresses :func:`page` would list on all its pages."""
    query = select(func.count()).select_from(_chosen(target_id, now, state, text).subquery())
    return int((await reader.all(query))[0][0])


async def page(
    reader: Reader,
    target_id: int,
    now: float,
    state: State | None = None,
    text: str = "",
    *,
    first: int = 0,
    most: int = 100,
) -> list[Row]:
    """Pool and static addresses of a target in the order in which they were made, from the ``first`` on.

    ``text`` is a part of the local part, or of the address around its @.
    """
    ids = _chosen(target_id, now, state, text).order_by(routes.c.id).limit(most).offset(first).subquery()
    query = (
        select(
            routes.c.id,
            routes.c.local,
            routes.c.domain,
            _state(now),
            routes.c.kind,
            routes.c.label,
            routes.c.defined,
            routes.c.created_at,
            routes.c.retired_at,
            routes.c.leased_until,
            visits.c.number,
            bindings.c.started_at,
            visits.c.erased_at,
        )
        .select_from(ids)
        .join(routes, routes.c.id == ids.c.id)
        .outerjoin(bindings, bindings.c.id == routes.c.binding_id)
        .outerjoin(visits, visits.c.id == bindings.c.visit_id)
        .order_by(routes.c.id)
    )
    return [
        Row(
            id=route_id,
            address=str(Address(local, domain)),
            state=State(stands),
            kind=kind,
            label=label,
            declared=bool(defined),
            created_at=created_at,
            retired_at=retired_at,
            until=leased_until or None,
            holder=None if erased_at else number,
            held_since=started_at,
            erased=erased_at is not None,
        )
        for (
            route_id,
            local,
            domain,
            stands,
            kind,
            label,
            defined,
            created_at,
            retired_at,
            leased_until,
            number,
            started_at,
            erased_at,
        ) in await reader.all(query)
    ]


_WALKED = (
    select(deliveries.c.id, deliveries.c.message_id, deliveries.c.route_id, deliveries.c.target_id)
    .where(deliveries.c.site_id == bindparam("site"))
    .order_by(deliveries.c.message_id.desc())
    .limit(bindparam("latest"))
    .subquery()
)
_LATEST = Statement(
    select(
        _WALKED.c.route_id,
        _WALKED.c.target_id,
        func.max(_WALKED.c.id),
        func.count(),
        func.min(_WALKED.c.message_id),
    ).group_by(_WALKED.c.route_id, _WALKED.c.target_id)
)
_OLDER = Statement(
    select(deliveries.c.id)
    .where(deliveries.c.site_id == bindparam("site"), deliveries.c.message_id < bindparam("first"))
    .limit(1)
)


async def latest(reader: Reader, site_id: int) -> Latest:
    """Walk the latest deliveries of a site, once for all that its pages say of them: some 40 ms for :data:`LATEST`."""
    by_route: dict[int, tuple[int, int]] = {}
    by_target: dict[int, tuple[int, int]] = {}
    rows = await reader.run(_LATEST, site=site_id, latest=LATEST)
    for route, target, last, number, _ in rows:
        for found, key in ((by_route, route), (by_target, target)):
            if key is not None:
                before, counted = found.get(key, (0, 0))
                found[key] = max(before, last), counted + number
    first = min((row[4] for row in rows), default=0)
    walked = sum(row[3] for row in rows)
    return Latest(walked, by_route, by_target, older=bool(await reader.run(_OLDER, site=site_id, first=first)))


async def last_letters(
    reader: Reader, walked: Mapping[int, tuple[int, int]], wanted: Collection[int]
) -> dict[int, Letter]:
    """The last letters to these routes or targets, out of :class:`Latest`; what is gone since is left out."""
    keys = {walked[key][0]: key for key in wanted if key in walked}
    if not keys:
        return {}
    query = (
        select(deliveries.c.id, messages.c.id, messages.c.received_at, deliveries.c.attribution)
        .join(messages, messages.c.id == deliveries.c.message_id)
        .where(deliveries.c.id.in_(sorted(keys)))
    )
    return {
        keys[delivery]: Letter(message_id, received_at, AttributionState(attribution), walked[keys[delivery]][1])
        for delivery, message_id, received_at, attribution in await reader.all(query)
    }


_NEWEST = select(func.coalesce(func.max(routes.c.id), 0) - LATEST).scalar_subquery()
_MINTED = Statement(
    select(func.count(), func.max(routes.c.created_at)).where(
        routes.c.id > _NEWEST,
        routes.c.target_id == bindparam("target"),
        routes.c.kind == "unique",
        routes.c.created_at > bindparam("since"),
    )
)
_OLDEST_OF_NEWEST = Statement(
    select(routes.c.id, routes.c.created_at).where(routes.c.id > _NEWEST).order_by(routes.c.id).limit(1)
)


async def minted(reader: Reader, target_id: int, now: float) -> Minted:
    """Unique addresses made for a target in the last 24 hours."""
    ((made, last_at),) = await reader.run(_MINTED, target=target_id, since=now - DAY)
    oldest = await reader.run(_OLDEST_OF_NEWEST)
    return Minted(made, last_at, at_least=any(route_id > 1 and at > now - DAY for route_id, at in oldest))


_EXHAUSTED = Statement(
    select(func.coalesce(func.sum(counters.c.count), 0)).where(
        counters.c.site_id == bindparam("site"),
        counters.c.day >= bindparam("since_day"),
        counters.c.name == "pool_exhausted",
    )
)


async def exhausted(reader: Reader, site_id: int, since: float) -> int:
    """How often a page view of a site found a whole pool leased, from the day of ``since`` (UTC) on."""
    day = datetime.fromtimestamp(since, UTC).date().isoformat()
    return int((await reader.run(_EXHAUSTED, site=site_id, since_day=day))[0][0])


_DOMAINS = Statement(
    select(routes.c.domain)
    .where(routes.c.target_id == bindparam("target"), LISTED, routes.c.kind == "pool", routes.c.retired_at.is_(None))
    .group_by(routes.c.domain)
    .order_by(func.count().desc(), routes.c.domain)
    .limit(1)
)


async def usual_domain(reader: Reader, target_id: int) -> str | None:
    """The domain that most of a pool's addresses are at; None for an empty pool."""
    rows = await reader.run(_DOMAINS, target=target_id)
    return rows[0][0] if rows else None


async def free_names(
    reader: Reader, stem: str, domain: str, number: int, besides: Sequence[Address] = ()
) -> list[Address]:
    """``number`` addresses that nobody has, named as a pool that grows by itself would name them.

    ``besides`` are not free either: mailboxes that mail is forwarded to. ValueError for a stem that is no plain name.
    """
    low, high = stem_range(stem)
    taken = {row[0] for row in await reader.run(NAMES_WITH_STEM, domain=domain, low=low, high=high)}
    taken |= {address.local for address in besides if address.domain == domain}
    return [Address(local, domain) for local in pool_names(stem, number, taken)]
