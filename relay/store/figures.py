"""Figures over many rows: a site's attendance, how late people write, how deep the queues are (reports.py has what each
source brought)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import ColumnElement, TextClause, and_, bindparam, case, func, select, text

from relay.core.model import AttributionState
from relay.core.sizing import Stay
from relay.store.engine import Statement
from relay.store.reader import Reader
from relay.store.routes import NOBODY
from relay.store.schema import OPEN, bindings, deliveries, events, messages, posts, routes, visits

_PERSON = func.coalesce(visits.c.device, "") != "bot"  # robots are given no address, and buy nothing
# What keeps that somebody held an address is no visit.
_VISITED = visits.c.number.not_like(f"{NOBODY}%")
_STAYS = Statement(
    select(visits.c.started_at, visits.c.last_seen_at)
    .where(
        visits.c.site_id == bindparam("site"),
        visits.c.started_at >= bindparam("since"),
        _PERSON,
        _VISITED,
    )
    .order_by(visits.c.started_at.desc())
    .limit(bindparam("most"))
)


async def stays(reader: Reader, site_id: int, since: float, most: int) -> list[Stay]:
    """When the latest visits of a site began and were seen last, newest first; at most ``most`` of those since then."""
    return [(row[0], row[1]) for row in await reader.run(_STAYS, site=site_id, since=since, most=most)]


_LAST_SEEN = Statement(
    select(visits.c.last_seen_at)
    .where(visits.c.site_id == bindparam("site"), _VISITED)
    .order_by(visits.c.started_at.desc())
    .limit(1)
)


async def last_seen(reader: Reader, site_id: int) -> float | None:
    """When the visit of a site that began last was seen last; None without any visit."""
    rows = await reader.run(_LAST_SEEN, site=site_id)
    return rows[0][0] if rows else None


#: Exact mails that delays are learned from: the latest, out of so many latest deliveries.
DELAYS_LEARNED = 2000
DELIVERIES_SEEN = 50_000

# Counted, not told by their ids: those of a restored copy go on far ahead (copied.py).
_SEEN = select(deliveries.c.id).order_by(deliveries.c.id.desc()).limit(1).offset(bindparam("seen")).scalar_subquery()
# One letter of each visit: who writes a thousand times shall not teach all others' delays.
_RECENT = (
    select(func.max(deliveries.c.message_id).label("message_id"), deliveries.c.route_id, deliveries.c.visit_id)
    .where(
        deliveries.c.id > func.coalesce(_SEEN, 0),
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
    return [row[0] for row in await reader.run(_DELAYS, seen=DELIVERIES_SEEN)]


@dataclass(frozen=True, slots=True)
class Depth:
    """How many wait, and when the oldest of them was received (seconds since the epoch; None when none waits)."""

    count: int
    oldest: float | None


NOTHING = Depth(0, None)


@dataclass(frozen=True, slots=True)
class Depths:
    """``held`` counts messages with a failed delivery; the others what waits.

    ``deliveries`` by state (queued, deferred, failed), ``posts`` by webhook.
    """

    held: int
    deliveries: Mapping[str, Depth]
    posts: Mapping[int, Depth]
    unextracted: Depth


# Each reads a partial index, however long the history is; ids are given in order and never twice.
_HELD = Statement(select(func.count()).where(messages.c.state == "failed", messages.c.state != "forwarded"))


def _waiting(*where: ColumnElement[bool] | TextClause) -> Statement:
    """State, number and oldest of the deliveries of some states; each index holds one such set and no other."""
    by_state = (
        select(deliveries.c.state, func.count().label("number"), func.min(deliveries.c.id).label("first"))
        .where(*where)
        .group_by(deliveries.c.state)
        .subquery()
    )
    return Statement(
        select(by_state.c.state, by_state.c.number, messages.c.received_at)
        .join(deliveries, deliveries.c.id == by_state.c.first)
        .join(messages, messages.c.id == deliveries.c.message_id)
    )


_OPEN = _waiting(OPEN)
_FAILED = _waiting(deliveries.c.state == "failed")
_BY_WEBHOOK = (
    select(posts.c.webhook_id, func.count().label("number"), func.min(posts.c.id).label("first"))
    .where(posts.c.state == "waiting")
    .group_by(posts.c.webhook_id)
    .subquery()
)
_UNPOSTED = Statement(
    select(_BY_WEBHOOK.c.webhook_id, _BY_WEBHOOK.c.number, events.c.created_at)
    .join(posts, posts.c.id == _BY_WEBHOOK.c.first)
    .join(events, events.c.id == posts.c.event_id)
)
_UNREAD = (
    select(func.count().label("number"), func.min(messages.c.id).label("first"))
    .where(messages.c.extraction == "waiting")
    .subquery()
)
_UNEXTRACTED = Statement(
    select(_UNREAD.c.number, messages.c.received_at).join(messages, messages.c.id == _UNREAD.c.first)
)


async def depths(reader: Reader) -> Depths:
    """One look at every queue."""
    waiting = [*await reader.run(_OPEN), *await reader.run(_FAILED)]
    return Depths(
        held=(await reader.run(_HELD))[0][0],
        deliveries=dict.fromkeys(("queued", "deferred", "failed"), NOTHING)
        | {state: Depth(number, oldest) for state, number, oldest in waiting},
        posts={webhook: Depth(number, oldest) for webhook, number, oldest in await reader.run(_UNPOSTED)},
        unextracted=next((Depth(*row) for row in await reader.run(_UNEXTRACTED)), NOTHING),
    )


_POOLS = Statement(
    select(
        routes.c.target_id,
        func.count(),
        func.count(case((routes.c.leased_until > bindparam("now"), 1))),
    )
    .where(text("kind = 'pool' AND retired_at IS NULL"))
    .group_by(routes.c.target_id)
)


async def pools(reader: Reader, now: float) -> dict[int, tuple[int, int]]:
    """Addresses of each target's pool, and how many of them somebody holds."""
    return {target: (size, held) for target, size, held in await reader.run(_POOLS, now=now)}
