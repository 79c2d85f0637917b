"""Reading the forwarding queue: pages by keyset, counts by destination; quick with 100,000 deliveries in it.

What is asked for is found, counted and put in order from the two partial indexes alone (what waits, what is held),
which hold all that the conditions here are about; only the rows of one page are read. So conditions on the state stand
in text: a partial index serves only what the text of a condition proves to be in it, and a reader's constants are
parameters.

A joined delivery is another site's to the same real address, carried by the first. It is in the list only for who does
not see that one; who names it finds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, func, literal_column, or_, select, text, union_all

from relay.core.model import DeliveryState
from relay.store.history import dicts
from relay.store.messages import NEVER
from relay.store.reader import Reader
from relay.store.schema import OPEN, deliveries, messages, posts, sites

_HELD = text("deliveries.state = 'failed'")
#: Destinations of a summary, the fullest first.
MOST_DESTINATIONS = 50

#: Where a page ends: (next_at, id) of its last row.
Place = tuple[float, int]


@dataclass(frozen=True, slots=True)
class QueueFilter:
    """What to list. ``sites`` are ids the reader may see (None: all); ``states`` are of what waits or is held."""

    sites: frozenset[int] | None = None
    states: frozenset[DeliveryState] = frozenset((DeliveryState.QUEUED, DeliveryState.DEFERRED, DeliveryState.FAILED))
    destination: str | None = None
    sender: str | None = None
    ids: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Destination:
    """What waits, or is held, for one destination. ``answer`` is one of the latest there, None before any attempt.

    ``next_at``: when the first of them is tried again; of held ones when the first was given up. None: when others'
    deliveries are, that carry these.
    """

    name: str
    count: int
    next_at: float | None
    code: int | None
    answer: str | None


@dataclass(frozen=True, slots=True)
class Group:
    """``destinations``: the fullest of them, ``others``: how many more there are."""

    count: int
    next_at: float | None
    destinations: tuple[Destination, ...]
    others: int


async def listed(
    reader: Reader, wanted: QueueFilter, limit: int, after: Place | None = None, *, newest: bool = False
) -> tuple[dict[str, Any], ...]:
    """At most ``limit`` deliveries, soonest first (``newest``: last first); raises StoreUnavailable."""
    return await dicts(reader, listing(wanted, limit, after, newest=newest))


def listing(
    wanted: QueueFilter = QueueFilter(), limit: int = 1000, after: Place | None = None, *, newest: bool = False
) -> Select[Any]:
    """The columns that everybody shows, the command line, the API and the pages; ``place`` is where it stands.

    When it is tried is said of its carrier, which is mostly itself.
    """
    carrier = deliveries.alias("carrier")
    chosen = _keys(wanted, after, newest=newest).subquery("chosen")
    order = [chosen.c.next_at.desc(), chosen.c.id.desc()] if newest else [chosen.c.next_at, chosen.c.id]
    first = select(chosen.c.id, chosen.c.next_at).order_by(*order).limit(limit).subquery("first")
    again = [first.c.next_at.desc(), first.c.id.desc()] if newest else [first.c.next_at, first.c.id]
    return (
        select(
            deliveries.c.id,
            deliveries.c.message_id,
            messages.c.received_at,
            messages.c.sender,
            deliveries.c.recipient,
            deliveries.c.forward_to,
            deliveries.c.state,
            carrier.c.attempts,
            carrier.c.next_at,
            carrier.c.expires_at,
            deliveries.c.answer,
            deliveries.c.host,
            messages.c.subject,
            deliveries.c.destination,
            deliveries.c.code,
            deliveries.c.finished_at,
            carrier.c.claimed_until,
            sites.c.name.label("site"),
            first.c.next_at.label("place"),
        )
        .select_from(first)
        .join(deliveries, deliveries.c.id == first.c.id)
        .join(carrier, carrier.c.id == func.coalesce(deliveries.c.joined_id, deliveries.c.id))
        .join(messages, messages.c.id == deliveries.c.message_id)
        .outerjoin(sites, sites.c.id == deliveries.c.site_id)
        .order_by(*again)
    )


async def ids(reader: Reader, wanted: QueueFilter) -> dict[int, int]:
    """Every delivery that is meant, soonest first, with the one that carries it (itself); raises StoreUnavailable."""
    chosen = _keys(wanted).subquery()
    rows = await reader.all(
        select(chosen.c.id, func.coalesce(chosen.c.joined_id, chosen.c.id)).order_by(chosen.c.next_at, chosen.c.id)
    )
    return {row[0]: row[1] for row in rows}


async def summary(reader: Reader, held: bool, wanted: QueueFilter) -> Group:
    """How many wait (or are held) for whom, and why; raises StoreUnavailable."""
    open_ = and_(_HELD if held else OPEN, *_conditions(wanted))
    grouped = (
        select(
            deliveries.c.destination,
            func.count().label("count"),
            func.min(deliveries.c.next_at).label("next_at"),
            func.max(deliveries.c.next_at).label("last_at"),
        )
        .where(open_)
        .group_by(deliveries.c.destination)
        .cte("grouped")
    )
    totals = (  # of all of them: in one pass over the index, however many there are
        func.sum(grouped.c.count).over().label("total"),
        func.min(grouped.c.next_at).over().label("first_at"),
        func.count().over().label("destinations"),
    )
    fullest = (
        select(grouped, *totals)
        .order_by(grouped.c.count.desc(), grouped.c.destination)
        .limit(MOST_DESTINATIONS)
        .subquery("fullest")
    )
    # What is tried again last has mostly been tried last.
    latest = (
        select(deliveries.c.id)
        .where(open_, deliveries.c.destination == fullest.c.destination, deliveries.c.next_at == fullest.c.last_at)
        .limit(1)
        .correlate(fullest)
        .scalar_subquery()
    )
    of_latest = deliveries.alias("latest")
    rows = await reader.all(
        select(
            fullest.c.destination,
            fullest.c.count,
            fullest.c.next_at,
            of_latest.c.code,
            of_latest.c.answer,
            fullest.c.total,
            fullest.c.first_at,
            fullest.c.destinations,
        )
        .select_from(fullest)
        .join(of_latest, of_latest.c.id == latest)
        .order_by(fullest.c.count.desc(), fullest.c.destination)
    )
    if not rows:
        return Group(0, None, (), 0)
    count, first_at, destinations = rows[0][5:]
    named = tuple(Destination(name, many, _time(at), code, answer) for name, many, at, code, answer, *_ in rows)
    return Group(count, _time(first_at), named, destinations - len(rows))


def _time(next_at: float) -> float | None:
    return next_at if next_at < NEVER else None


async def posts_waiting(reader: Reader, webhook_ids: Sequence[int]) -> dict[int, tuple[int, float]]:
    """Webhook id → how many posts wait for it, and when the first is due; raises StoreUnavailable."""
    rows = await reader.all(
        select(posts.c.webhook_id, func.count(), func.min(posts.c.next_at))
        .where(posts.c.webhook_id.in_(list(webhook_ids)), text("posts.state = 'waiting'"))
        .group_by(posts.c.webhook_id)
    )
    return {webhook_id: (count, next_at) for webhook_id, count, next_at in rows}


def _keys(wanted: QueueFilter, after: Place | None = None, *, newest: bool = False) -> Any:
    """(id, next_at, joined_id) of what is meant."""
    columns = deliveries.c.id, deliveries.c.next_at, deliveries.c.joined_id
    conditions = _conditions(wanted)
    if after is not None:
        next_at, id_ = after
        beyond, same = (
            (deliveries.c.next_at < next_at, deliveries.c.id < id_)
            if newest
            else (deliveries.c.next_at > next_at, deliveries.c.id > id_)
        )
        conditions.append(or_(beyond, and_(deliveries.c.next_at == next_at, same)))
    parts = []
    waiting = wanted.states - {DeliveryState.FAILED}
    if waiting:
        one = [deliveries.c.state == next(iter(waiting)).value] if len(waiting) == 1 else []
        parts.append(select(*columns).where(OPEN, *one, *conditions))
    if DeliveryState.FAILED in wanted.states:
        parts.append(select(*columns).where(_HELD, *conditions))
    return union_all(*parts) if len(parts) > 1 else parts[0]


def _conditions(wanted: QueueFilter) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    seen = None if wanted.sites is None else sorted(wanted.sites)
    if seen is not None:
        # The sum keeps SQLite from the index of everything that the sites ever got.
        found.append((deliveries.c.site_id + literal_column("0")).in_(seen))
    if wanted.ids is not None:
        found.append(deliveries.c.id.in_(wanted.ids))
    elif seen is None:
        found.append(deliveries.c.joined_id.is_(None))
    else:
        carrier = deliveries.alias("carrier")
        unseen = select(carrier.c.id).where(
            carrier.c.id == deliveries.c.joined_id, or_(carrier.c.site_id.is_(None), carrier.c.site_id.not_in(seen))
        )
        found.append(or_(deliveries.c.joined_id.is_(None), unseen.correlate(deliveries).exists()))
    if wanted.destination is not None:
        found.append(deliveries.c.destination == wanted.destination)
    if wanted.sender is not None:
        theirs = select(messages.c.id).where(
            messages.c.sender == wanted.sender, messages.c.state != literal_column("'forwarded'")
        )
        found.append(deliveries.c.message_id.in_(theirs))
    return found
