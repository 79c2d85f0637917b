"""Reading the history: lists by keyset, one message, one visit.

history_filter.py and history_pages.py find what a list holds, life.py has what happened to one message.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, case, func, literal_column, select

from relay.core.hook import EventType
from relay.core.mime import Part
from relay.store import history_pages
from relay.store.engine import Row
from relay.store.history_filter import Filter as Filter
from relay.store.history_filter import conditions, numbered
from relay.store.reader import Reader
from relay.store.schema import (
    bodies,
    deliveries,
    events,
    messages,
    sites,
    visits,
)


@dataclass(frozen=True, slots=True)
class DeliveryRow:
    id: int
    message_id: int
    site: str | None
    recipient: str
    forward_to: str
    state: str
    attempts: int
    next_at: float
    code: int | None
    answer: str | None
    host: str | None
    possibly_repeated: bool
    attribution: str
    method: str
    visit: str | None
    candidates: tuple[tuple[str, float], ...]
    all_known: bool  # there are several candidates, and the visit of every one is still known
    finished_at: float | None
    site_id: int | None
    source: str | None  # marker of the stated visit; of a static substitute its label, which stands for one


@dataclass(frozen=True, slots=True)
class Receipt:
    """What the receipt of a message was to a site: posted, waiting, or withheld for a reason."""

    message_id: int
    site: str
    state: str
    reason: str | None
    deal_id: str | None
    deal_url: str | None


@dataclass(frozen=True, slots=True)
class MessageRow:
    id: int
    received_at: float
    written_at: float
    mail_from: str
    sender: str
    subject: str | None
    message_id: str | None
    size: int
    state: str
    extraction: str
    parts: str | None  # JSON; read only by who asks for the attachments, for a stranger's letter has up to a thousand
    files: int  # of them that are no pictures within the text
    ip: str
    helo: str
    tls: str | None
    automatic: str | None
    bounce: bool
    raw_removed_at: float | None
    deliveries: tuple[DeliveryRow, ...]
    receipts: tuple[Receipt, ...]

    @property
    def attachments(self) -> tuple[Part, ...]:
        """Everything that came along, read anew each time."""
        return tuple(Part(**part) for part in json.loads(self.parts or "[]"))

    def deal_at(self, site: str | None) -> tuple[str | None, str | None]:
        """(id, url) of the deal in this site's CRM, else of the first site that has one."""
        ranked = sorted(self.receipts, key=lambda one: one.site != site)
        return next(((one.deal_id, one.deal_url) for one in ranked if one.deal_id), (None, None))


#: Counted by the database, in its thread.
_FILES: ColumnElement[int] = literal_column(
    "(SELECT count(*) FROM json_each(coalesce(messages.attachments, '[]')) WHERE NOT json_extract(value, '$.inline'))"
)
_MESSAGE = (
    messages.c.id,
    messages.c.received_at,
    messages.c.written_at,
    messages.c.mail_from,
    messages.c.sender,
    messages.c.subject,
    messages.c.message_id,
    messages.c.size,
    messages.c.state,
    messages.c.extraction,
    messages.c.attachments.label("parts"),
    _FILES.label("files"),
    messages.c.ip,
    messages.c.helo,
    messages.c.tls,
    messages.c.automatic,
    messages.c.bounce,
    messages.c.raw_removed_at,
)
#: What carries a joined delivery: how often and when it is tried is said there. No row for all others.
_CARRIER = deliveries.alias("carrier")
_DELIVERY = (
    deliveries.c.id,
    deliveries.c.message_id,
    sites.c.name.label("site"),
    deliveries.c.recipient,
    deliveries.c.forward_to,
    deliveries.c.state,
    func.coalesce(_CARRIER.c.attempts, deliveries.c.attempts).label("attempts"),
    func.coalesce(_CARRIER.c.next_at, deliveries.c.next_at).label("next_at"),
    deliveries.c.code,
    deliveries.c.answer,
    deliveries.c.host,
    deliveries.c.possibly_repeated,
    deliveries.c.attribution,
    deliveries.c.attribution_method.label("method"),
    visits.c.number.label("visit"),
    deliveries.c.claimed_number,
    deliveries.c.candidates,
    deliveries.c.finished_at,
    deliveries.c.site_id,
    case(
        (deliveries.c.visit_id.is_not(None), visits.c.marker),
        else_=deliveries.c.label,
    ).label("source"),
)

_MESSAGE_NAMES = tuple(column.name for column in _MESSAGE)
_DELIVERY_NAMES = tuple(column.name for column in _DELIVERY)


@dataclass(frozen=True, slots=True)
class Page:
    """``next`` is the cursor of the page behind it, None at the end: a page may have few rows, or none, and yet a next
    one, where much was looked at for little (history_pages.MOST). ``narrowed`` as in history_pages.Found."""

    rows: tuple[MessageRow, ...]
    next: int | None
    narrowed: bool = False


async def browse(reader: Reader, wanted: Filter, limit: int) -> Page:
    """A page of at most ``limit`` messages, in bounded time; raises StoreUnavailable."""
    found = await history_pages.find(reader, wanted, limit)
    rows = await read(reader, found.ids, wanted.sites)
    return Page(tuple(rows), found.next, found.narrowed)


async def page(reader: Reader, wanted: Filter, limit: int) -> list[MessageRow]:
    """At most ``limit`` messages, fewer only where there are no more, however long that takes."""
    rows: list[MessageRow] = []
    while True:
        part = await browse(reader, wanted, limit - len(rows))
        rows += part.rows
        if len(rows) >= limit or part.next is None:
            return rows
        wanted = replace(wanted, cursor=part.next)


async def read(reader: Reader, ids: Sequence[int], visible: frozenset[int] | None) -> list[MessageRow]:
    """These messages in this order, as far as somebody sees them who sees ``visible``; those that are gone left out."""
    if not ids:
        return []
    rows = {row[0]: row for row in await reader.all(select(*_MESSAGE).where(messages.c.id.in_(ids)))}
    return await _with_deliveries(reader, [rows[one] for one in ids if one in rows], visible)


async def one(reader: Reader, message_id: int, visible: frozenset[int] | None) -> MessageRow | None:
    """A message, or None when there is none or none of its deliveries is for a site in ``visible``."""
    query = select(*_MESSAGE).where(messages.c.id == message_id, *conditions(Filter(sites=visible)))
    found = await _with_deliveries(reader, await reader.all(query), visible)
    return found[0] if found else None


async def _with_deliveries(reader: Reader, rows: Sequence[Row], visible: frozenset[int] | None) -> list[MessageRow]:
    if not rows:
        return []
    query = (
        select(*_DELIVERY)
        .outerjoin(sites, sites.c.id == deliveries.c.site_id)
        .outerjoin(visits, visits.c.id == deliveries.c.visit_id)
        .outerjoin(_CARRIER, _CARRIER.c.id == deliveries.c.joined_id)
        .where(deliveries.c.message_id.in_([row[0] for row in rows]))
        .order_by(deliveries.c.id)
    )
    if visible is not None:
        query = query.where(deliveries.c.site_id.in_(sorted(visible)))
    found = await reader.all(query)
    numbers = await _candidate_numbers(reader, found)
    by_message: dict[int, list[DeliveryRow]] = {}
    for row in found:
        by_message.setdefault(row[1], []).append(_delivery(row, numbers))
    receipts = await _receipts(reader, [row[0] for row in rows], visible)
    return [_message(row, tuple(by_message.get(row[0], ())), tuple(receipts.get(row[0], ()))) for row in rows]


async def _receipts(
    reader: Reader, message_ids: Sequence[int], visible: frozenset[int] | None
) -> Mapping[int, list[Receipt]]:
    query = (
        select(
            events.c.message_id,
            sites.c.name,
            events.c.state,
            events.c.reason,
            events.c.deal_id,
            events.c.deal_url,
        )
        .join(sites, sites.c.id == events.c.site_id)
        .where(events.c.message_id.in_(message_ids), events.c.type == EventType.RECEIVED.value)
        .order_by(events.c.id)
    )
    if visible is not None:
        query = query.where(events.c.site_id.in_(sorted(visible)))
    found: dict[int, list[Receipt]] = {}
    for row in await reader.all(query):
        found.setdefault(row[0], []).append(Receipt(*row))
    return found


async def _candidate_numbers(reader: Reader, rows: Sequence[Row]) -> Mapping[int, str]:
    ids = {visit for row in rows if row[16] for visit, _ in json.loads(row[16])}
    if not ids:
        return {}
    return {
        row[0]: row[1]
        for row in await reader.all(
            select(visits.c.id, visits.c.number).where(visits.c.id.in_(ids), visits.c.erased_at.is_(None))
        )
    }


def _delivery(row: Row, numbers: Mapping[int, str]) -> DeliveryRow:
    named: dict[str, Any] = dict(zip(_DELIVERY_NAMES, row, strict=True))
    candidates = json.loads(named["candidates"] or "[]")
    claimed_number = named.pop("claimed_number")
    return DeliveryRow(
        **named
        | {
            "possibly_repeated": bool(named["possibly_repeated"]),
            "visit": named["visit"] or claimed_number,
            "candidates": tuple((numbers[visit], share) for visit, share in candidates if visit in numbers),
            "all_known": len(candidates) > 1 and all(visit in numbers for visit, _ in candidates),
        }
    )


def _message(row: Row, of_message: tuple[DeliveryRow, ...], receipts: tuple[Receipt, ...]) -> MessageRow:
    named: dict[str, Any] = dict(zip(_MESSAGE_NAMES, row, strict=True))
    return MessageRow(**named | {"bounce": bool(named["bounce"]), "deliveries": of_message, "receipts": receipts})


async def dicts(reader: Reader, query: Any) -> tuple[dict[str, Any], ...]:
    """The rows of a query as maps by the names of its columns; raises StoreUnavailable."""
    names = [column.name for column in query.selected_columns]
    return tuple(dict(zip(names, row, strict=True)) for row in await reader.all(query))


async def visit(reader: Reader, number: str, visible: frozenset[int] | None) -> list[dict[str, Any]]:
    """The visits with this number: own numbers name one, another counter's one a site."""
    query = visit_columns().where(*numbered(number, visible)).order_by(visits.c.id).limit(100)
    return [row | {"params": json.loads(row["params"] or "{}")} for row in await dicts(reader, query)]


#: The first visit of the same browser, which may be the visit itself; no row where it is not known, or no more.
FIRST = visits.alias("first")


@functools.cache
def visit_columns() -> Select[Any]:
    """Visits as they are shown: their columns, the name of their site, and the markers of earlier touches."""
    hidden = ("id", "mark", "first_id", "touch_id", "erased_at")
    touch = visits.alias()
    return (
        select(
            *(column for column in visits.c if column.name not in hidden),
            sites.c.name.label("site"),
            FIRST.c.marker.label("first_touch"),
            case((touch.c.id.is_(None), visits.c.marker), else_=touch.c.marker).label("last_non_direct_touch"),
        )
        .join(sites, sites.c.id == visits.c.site_id)
        .outerjoin(
            FIRST,
            and_(
                FIRST.c.id == func.coalesce(visits.c.first_id, visits.c.id),
                FIRST.c.number == visits.c.first_visit,
                FIRST.c.erased_at.is_(None),
            ),
        )
        .outerjoin(touch, and_(touch.c.id == visits.c.touch_id, touch.c.erased_at.is_(None)))
    )


async def raw(reader: Reader, message_id: int) -> tuple[bytes | None, str | None] | None:
    """(body in wire form or None, name of its file or None); None when there is no such message."""
    rows = await reader.all(
        select(bodies.c.data, messages.c.body_file)
        .select_from(messages.outerjoin(bodies, bodies.c.message_id == messages.c.id))
        .where(messages.c.id == message_id)
    )
    return (rows[0][0], rows[0][1]) if rows else None


async def site_of_delivery(reader: Reader, delivery_id: int) -> tuple[int | None] | None:
    """The id of a delivery's site (None: it goes to the operator); None when there is no such delivery."""
    rows = await reader.all(select(deliveries.c.site_id).where(deliveries.c.id == delivery_id))
    return (rows[0][0],) if rows else None
