"""What is new: a few figures of the history that are known at once, however long it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select, union_all

from relay.store import history_pages
from relay.store.history_filter import SITES_SIDE_BY_SIDE, Filter, all_messages, candidates, conditions, dealt, visited
from relay.store.reader import Reader
from relay.store.schema import deliveries, messages, sites, visits

#: Letters that are counted; of more it is said that there are more.
COUNTED = 3000
#: Held letters that are counted.
HELD = 99
#: Visits that sources are taken from, in all, and sources.
VISITS, SOURCES = 1000, 40


@dataclass(frozen=True, slots=True)
class Glance:
    """Letters received since some time, and how many of them have a stated visit and a deal; letters that are held.

    ``more``, ``more_held``: there are more than were counted.
    """

    received: int
    visited: int
    deals: int
    held: int
    more: bool
    more_held: bool


async def glance(reader: Reader, visible: frozenset[int] | None, since: float) -> Glance:
    """What somebody sees who sees ``visible``; raises StoreUnavailable."""
    wanted = Filter(sites=visible, since=since)
    span = await history_pages.span_of(reader, wanted)
    drawn = (candidates(wanted) or [all_messages])[0](span, COUNTED + 1).subquery()
    seen = (
        select(visited(visible).label("visited"), dealt(visible).label("dealt"))
        .select_from(drawn.outerjoin(messages, messages.c.id == drawn.c.id))
        .where(*conditions(wanted))
        .subquery()
    )
    query = select(func.count(), func.total(seen.c.visited), func.total(seen.c.dealt)).select_from(seen)
    received, with_visit, deals = (int(figure) for figure in (await reader.all(query))[0])
    held = await history_pages.find(reader, Filter(sites=visible, state="failed"), HELD)
    return Glance(
        received=min(received, COUNTED),
        visited=min(with_visit, COUNTED),
        deals=min(deals, COUNTED),
        held=len(held.ids),
        more=received > COUNTED,
        more_held=held.next is not None,
    )


async def newest(reader: Reader, visible: frozenset[int] | None) -> int:
    """The id of the newest message that somebody sees who sees ``visible``; 0 where there is none.

    It is taken from the ends of indexes: cheap enough to be asked every second. Raises StoreUnavailable.
    """
    if visible is None:
        rows = await reader.all(select(func.max(messages.c.id)))
    else:
        own = select(func.max(deliveries.c.message_id)).where(deliveries.c.site_id == sites.c.id).scalar_subquery()
        rows = await reader.all(select(func.max(own)).where(sites.c.id.in_(sorted(visible))))
    return rows[0][0] or 0


async def sources(reader: Reader, site_ids: Sequence[int]) -> list[str]:
    """The markers of these sites' latest visits and their first levels, in the order of the alphabet."""
    shown = site_ids[:SITES_SIDE_BY_SIDE]
    latest = [
        select(visits.c.marker)
        .where(visits.c.site_id == site)
        .order_by(visits.c.started_at.desc())
        .limit(VISITS // len(shown))
        .subquery()
        for site in shown
    ]
    if not latest:
        return []
    counts: Counter[str] = Counter()
    for (marker,) in await reader.all(union_all(*(select(one.c.marker) for one in latest))):
        if marker:
            counts.update({marker, marker.partition("_")[0]} - {""})
    return sorted(source for source, _ in counts.most_common(SOURCES))
