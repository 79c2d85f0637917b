"""What came before a letter, for its page: the page view, and the address that it showed to whom.

A delivery's visit, or each of its candidates, held the address by a binding; this finds the last one that had begun
when the letter was written, as the attribution does: a letter may be long on its way. Where none had, the letter's Date
is wrong, and it is the first one that had begun when the letter came in. A plus address needs none: the number in it is
the visit's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from relay.core.model import RouteKind
from relay.store import history
from relay.store.history import MessageRow, dicts
from relay.store.reader import Reader
from relay.store.schema import bindings, deliveries, routes, visits

#: Candidates of one delivery that are looked up; the others' share is told as one.
CANDIDATES = 20


@dataclass(frozen=True, slots=True)
class Seen:
    """A visit to which the address was shown, or that is stated for another reason.

    ``shown_at``: when it got the address, None where no binding says so; ``held_until`` is the end of its lease.
    ``share``: its probability, None where it is stated as fact. ``visit`` has the columns of table visits;
    ``known_first_id`` is None where the browser's first visit is not known.
    """

    visit: dict[str, Any]
    shown_at: float | None
    held_until: float | None
    share: float | None


@dataclass(frozen=True, slots=True)
class Journey:
    """What came before one delivery. ``kind`` is its address's route's, None where that is gone.

    ``visit`` is the one that is stated; ``candidates`` are those of which one it was, the likeliest first; ``others``:
    the probability of those that are not listed or were erased since.
    """

    delivery: int
    kind: RouteKind | None
    visit: Seen | None
    candidates: tuple[Seen, ...]
    others: float


async def journeys(reader: Reader, row: MessageRow) -> dict[int, Journey]:
    """By delivery, those that ``row`` has: its reader's. Raises StoreUnavailable."""
    query = (
        select(
            deliveries.c.id,
            deliveries.c.route_id,
            deliveries.c.visit_id,
            deliveries.c.candidates,
            routes.c.kind,
        )
        .outerjoin(routes, routes.c.id == deliveries.c.route_id)
        .where(deliveries.c.id.in_([delivery.id for delivery in row.deliveries]))
        .order_by(deliveries.c.id)
    )
    found = await dicts(reader, query)
    ranked = {one["id"]: json.loads(one["candidates"] or "[]")[:CANDIDATES] for one in found}
    wanted = {one["visit_id"] for one in found if one["visit_id"] is not None}
    wanted.update(visit for shares in ranked.values() for visit, _ in shares)
    known = await _visits(reader, wanted)
    held = await _held(reader, wanted, row)
    made: dict[int, Journey] = {}
    for one in found:
        listed = tuple(
            _seen(known[visit], held.get((one["route_id"], visit)), share)
            for visit, share in ranked[one["id"]]
            if visit in known
        )
        stated = known.get(one["visit_id"])
        made[one["id"]] = Journey(
            delivery=one["id"],
            kind=RouteKind(one["kind"]) if one["kind"] else None,
            visit=None if stated is None else _seen(stated, held.get((one["route_id"], one["visit_id"])), None),
            candidates=listed,
            others=max(0.0, 1.0 - sum(seen.share or 0.0 for seen in listed)) if ranked[one["id"]] else 0.0,
        )
    return made


def _seen(visit: dict[str, Any], held: tuple[float, float] | None, share: float | None) -> Seen:
    started_at, ended_at = held or (None, None)
    return Seen(visit, started_at, ended_at, share)


async def _visits(reader: Reader, ids: Iterable[int]) -> dict[int, dict[str, Any]]:
    """Whole visits by their ids, those that are erased left out."""
    query = history.visit_columns().where(visits.c.id.in_(sorted(ids)), visits.c.erased_at.is_(None))
    ids_of = (visits.c.id.label("row_id"), history.FIRST.c.id.label("known_first_id"))
    rows = await dicts(reader, query.add_columns(*ids_of))
    return {row["row_id"]: row | {"params": json.loads(row["params"] or "{}")} for row in rows}


async def _held(reader: Reader, ids: Iterable[int], row: MessageRow) -> dict[tuple[int, int], tuple[float, float]]:
    """By (route, visit): begin and end of the holding in which the letter was written, or which it may tell of."""
    query = (
        select(bindings.c.route_id, bindings.c.visit_id, bindings.c.started_at, bindings.c.ended_at)
        .where(bindings.c.visit_id.in_(sorted(ids)), bindings.c.started_at <= row.received_at)
        .order_by(bindings.c.started_at)
    )
    held: dict[tuple[int, int], tuple[float, float]] = {}
    for route, visit, start, end in await reader.all(query):
        if start <= row.written_at or (route, visit) not in held:
            held[route, visit] = (start, end)
    return held
