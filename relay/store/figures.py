"""Figures over many rows: a site's attendance, where its visits and messages come from, how deep the queues are."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import and_, bindparam, func, select

from relay.core.model import AttributionState
from relay.core.sizing import Stay
from relay.store.engine import Reader, Statement
from relay.store.schema import bindings, deliveries, events, messages, posts, visits

_PERSON = func.coalesce(visits.c.device, "") != "bot"  # robots are given no address, and buy nothing
_STAYS = Statement(
    select(visits.c.started_at, visits.c.last_seen_at)
    .where(visits.c.site_id == bindparam("site"), visits.c.started_at >= bindparam("since"), _PERSON)
    .order_by(visits.c.started_at.desc())
    .limit(bindparam("most"))
)


async def stays(reader: Reader, site_id: int, since: float, most: int) -> list[Stay]:
    """When the latest visits of a site began and were seen last, newest first; at most ``most`` of those since then."""
    return [(row[0], row[1]) for row in await reader.run(_STAYS, site=site_id, since=since, most=most)]


@dataclass(frozen=True, slots=True)
class Source:
    """``marker`` None: visits that came without a mark. ``messages`` and ``deals`` are those of its exact visits."""

    marker: str | None
    visits: int
    messages: int
    deals: int


_VISITS_BY_MARKER = Statement(
    select(visits.c.marker, func.count())
    .where(
        visits.c.site_id == bindparam("site"),
        visits.c.started_at >= bindparam("since"),
        visits.c.started_at < bindparam("until"),
        visits.c.erased_at.is_(None),
        _PERSON,
    )
    .group_by(visits.c.marker)
)
_MESSAGES_BY_MARKER = Statement(
    select(
        visits.c.marker,
        func.count(messages.c.id.distinct()),
        func.count(events.c.deal_id.distinct()),  # a thread is one deal
    )
    .select_from(deliveries)
    .join(messages, messages.c.id == deliveries.c.message_id)
    .join(visits, visits.c.id == deliveries.c.visit_id)
    .outerjoin(events, (events.c.message_id == messages.c.id) & (events.c.site_id == deliveries.c.site_id))
    .where(
        deliveries.c.site_id == bindparam("site"),
        messages.c.received_at >= bindparam("since"),
        messages.c.received_at < bindparam("until"),
    )
    .group_by(visits.c.marker)
)


async def sources(reader: Reader, site_id: int, since: float, until: float) -> list[Source]:
    """What each marker brought to a site between two times, the most messages first, then the most visits."""
    came = {row[0]: row[1] for row in await reader.run(_VISITS_BY_MARKER, site=site_id, since=since, until=until)}
    wrote = {
        row[0]: (row[1], row[2])
        for row in await reader.run(_MESSAGES_BY_MARKER, site=site_id, since=since, until=until)
    }
    found = [Source(marker, came.get(marker, 0), *wrote.get(marker, (0, 0))) for marker in {*came, *wrote}]
    return sorted(found, key=lambda source: (-source.messages, -source.visits, source.marker or ""))


#: Exact mails that delays are learned from: the latest, out of so many latest deliveries.
DELAYS_LEARNED = 2000
DELIVERIES_SEEN = 50_000

# One letter of each visit: who writes a thousand times shall not teach all others' delays.
_RECENT = (
    select(func.max(deliveries.c.message_id).label("message_id"), deliveries.c.route_id, deliveries.c.visit_id)
    .where(
        deliveries.c.id > select(func.coalesce(func.max(deliveries.c.id), 0) - DELIVERIES_SEEN).scalar_subquery(),
        deliveries.c.attribution == AttributionState.EXACT.value,
        deliveries.c.visit_id.is_not(None),
        deliveries.c.route_id.is_not(None),
    )
    .group_by(deliveries.c.visit_id)
    .order_by(func.max(deliveries.c.id).desc())
    .limit(DELAYS_LEARNED)
    .subquery()
)
# A visit that came back may have held the address several times: what counts is the last that began before writing.
_DELAYS = Statement(
    select(messages.c.written_at - func.max(bindings.c.ended_at))
    .select_from(_RECENT)
    .join(messages, messages.c.id == _RECENT.c.message_id)
    .join(
        bindings,
        and_(
            bindings.c.visit_id == _RECENT.c.visit_id,
            bindings.c.route_id == _RECENT.c.route_id,
            bindings.c.started_at <= messages.c.written_at,
        ),
    )
    .group_by(messages.c.id, bindings.c.route_id)
)


async def delays(reader: Reader) -> list[float]:
    """Seconds from the end of its lease to the writing of each of the latest exact mails; 0 or less: while it was held.

    Plus addresses have no lease and so are not among them.
    """
    return [row[0] for row in await reader.run(_DELAYS)]


@dataclass(frozen=True, slots=True)
class Depths:
    """``accepted`` counts every message ever accepted; the others what is there now."""

    accepted: int
    queued: int
    held: int
    unposted: int
    unextracted: int


# Each reads a partial index, however long the history is; ids are given in order and never twice.
_DEPTHS = tuple(
    Statement(statement)
    for statement in (
        select(func.coalesce(func.max(messages.c.id), 0)),
        select(func.count()).where(deliveries.c.state.in_(["queued", "deferred"])),
        select(func.count()).where(messages.c.state == "failed", messages.c.state != "forwarded"),
        select(func.count()).where(posts.c.state == "waiting"),
        select(func.count()).where(messages.c.extraction == "waiting"),
    )
)


async def depths(reader: Reader) -> Depths:
    return Depths(*[(await reader.run(statement))[0][0] for statement in _DEPTHS])
