"""Reading the history: lists by keyset (newest first), one message, one visit (life.py has what happened to one)."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    FromClause,
    TextualSelect,
    and_,
    bindparam,
    case,
    false,
    literal_column,
    or_,
    select,
    text,
    union_all,
)

from relay.core.hook import EventType
from relay.core.mime import Part
from relay.core.model import WORST_FIRST, DeliveryState
from relay.store import queue
from relay.store.engine import Reader, Row
from relay.store.schema import (
    bodies,
    deliveries,
    events,
    messages,
    sites,
    visits,
)
from relay.store.search import match_expression


@dataclass(frozen=True, slots=True)
class Filter:
    """What to list. ``sites`` are ids the reader may see (None: all); times are seconds since the epoch."""

    sites: frozenset[int] | None = None
    visit: str | None = None
    sender: str | None = None
    query: str | None = None
    state: str | None = None
    since: float | None = None
    until: float | None = None
    before: int | None = None  # keyset: ids smaller than this


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
    finished_at: float | None
    site_id: int | None


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
    attachments: tuple[Part, ...]
    ip: str
    helo: str
    tls: str | None
    automatic: str | None
    bounce: bool
    raw_removed_at: float | None
    deliveries: tuple[DeliveryRow, ...]
    receipts: tuple[Receipt, ...]

    @property
    def deal(self) -> tuple[str | None, str | None]:
        """(id, url) of the first site's CRM that has a deal for it."""
        return next(((one.deal_id, one.deal_url) for one in self.receipts if one.deal_id), (None, None))


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
    messages.c.attachments,
    messages.c.ip,
    messages.c.helo,
    messages.c.tls,
    messages.c.automatic,
    messages.c.bounce,
    messages.c.raw_removed_at,
)
_DELIVERY = (
    deliveries.c.id,
    deliveries.c.message_id,
    sites.c.name.label("site"),
    deliveries.c.recipient,
    deliveries.c.forward_to,
    deliveries.c.state,
    deliveries.c.attempts,
    deliveries.c.next_at,
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
)

_MESSAGE_NAMES = tuple(column.name for column in _MESSAGE)
_DELIVERY_NAMES = tuple(column.name for column in _DELIVERY)


async def page(reader: Reader, wanted: Filter, limit: int) -> list[MessageRow]:
    """At most ``limit`` messages, newest first; raises StoreUnavailable."""
    query = select(*_MESSAGE).where(*_conditions(wanted)).order_by(messages.c.id.desc()).limit(limit)
    rows = await reader.all(query)
    return await _with_deliveries(reader, rows, wanted.sites)


def _conditions(wanted: Filter) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if wanted.before is not None:
        found.append(messages.c.id < wanted.before)
    if wanted.since is not None:
        found.append(messages.c.received_at >= wanted.since)
    if wanted.until is not None:
        found.append(messages.c.received_at < wanted.until)
    if wanted.state is not None:
        found += _in_state(wanted.state, wanted.sites)
    if wanted.sender is not None:
        found.append(messages.c.sender == wanted.sender)
    if wanted.query is not None:
        expression = match_expression(wanted.query)
        if expression is None:
            found.append(false())
        else:
            found.append(messages.c.id.in_(_matching(expression)))
            if wanted.sites is not None:  # no site sees another's recipients, nor finds a message by them
                shared = select(deliveries.c.id).where(
                    deliveries.c.message_id == messages.c.id,
                    or_(deliveries.c.site_id.is_(None), deliveries.c.site_id.not_in(sorted(wanted.sites))),
                )
                found.append(or_(~shared.exists(), messages.c.id.in_(_matching(f"- addresses : ({expression})"))))
    if wanted.visit is not None:
        found.append(messages.c.id.in_(_of_visit(wanted.visit, wanted.sites)))
    elif wanted.sites is not None:
        seen = and_(deliveries.c.message_id == messages.c.id, deliveries.c.site_id.in_(sorted(wanted.sites)))
        found.append(select(deliveries.c.id).where(seen).exists())
    return found


def _matching(expression: str) -> TextualSelect:
    found = text("SELECT rowid FROM message_search WHERE message_search MATCH :expression")
    return found.bindparams(bindparam("expression", expression, unique=True)).columns(messages.c.id)


def _of_visit(number: str, sites_seen: frozenset[int] | None) -> CompoundSelect[Any]:
    """Ids of the messages of the visits with this number. A stated visit is always of the delivery's own site."""
    numbered = select(visits.c.id).where(*_numbered(number, sites_seen))
    stated = select(deliveries.c.message_id).where(deliveries.c.visit_id.in_(numbered))
    claimed = select(deliveries.c.message_id).where(deliveries.c.claimed_number == number)
    if sites_seen is not None:
        claimed = claimed.where(deliveries.c.site_id.in_(sorted(sites_seen)))
    return union_all(stated, claimed)


def _in_state(state: str, sites_seen: frozenset[int] | None) -> list[ColumnElement[bool]]:
    """Who sees only some sites sees the worst state of their deliveries."""
    # The index holds what is not forwarded, and serves only what the text proves to be in it.
    unfinished = [] if state == DeliveryState.FORWARDED.value else [messages.c.state != literal_column("'forwarded'")]
    if sites_seen is None:
        return [messages.c.state == state, *unfinished]
    seen = select(deliveries.c.id).where(
        deliveries.c.message_id == messages.c.id, deliveries.c.site_id.in_(sorted(sites_seen))
    )
    worse = [known.value for known in itertools.takewhile(lambda known: known != state, WORST_FIRST)]
    own = [seen.where(deliveries.c.state == state).exists(), ~seen.where(deliveries.c.state.in_(worse)).exists()]
    return [messages.c.state.in_([*worse, state]), *unfinished, *own]  # no message is better than one of its deliveries


def _numbered(number: str, sites_seen: frozenset[int] | None) -> tuple[ColumnElement[bool], ...]:
    """The visits with this number. The sites are named even where all count: the index begins with them."""
    of_sites = select(sites.c.id).scalar_subquery() if sites_seen is None else sorted(sites_seen)
    return visits.c.site_id.in_(of_sites), visits.c.number == number, visits.c.erased_at.is_(None)


async def one(reader: Reader, message_id: int, visible: frozenset[int] | None) -> MessageRow | None:
    """A message, or None when there is none or none of its deliveries is for a site in ``visible``."""
    wanted = Filter(sites=visible)
    query = select(*_MESSAGE).where(messages.c.id == message_id, *_conditions(wanted))
    found = await _with_deliveries(reader, await reader.all(query), visible)
    return found[0] if found else None


async def _with_deliveries(reader: Reader, rows: Sequence[Row], visible: frozenset[int] | None) -> list[MessageRow]:
    if not rows:
        return []
    query = (
        select(*_DELIVERY)
        .outerjoin(sites, sites.c.id == deliveries.c.site_id)
        .outerjoin(visits, visits.c.id == deliveries.c.visit_id)
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
        }
    )


def _message(row: Row, of_message: tuple[DeliveryRow, ...], receipts: tuple[Receipt, ...]) -> MessageRow:
    named: dict[str, Any] = dict(zip(_MESSAGE_NAMES, row, strict=True))
    parts = json.loads(named["attachments"] or "[]")
    return MessageRow(
        **named
        | {
            "attachments": tuple(Part(**part) for part in parts),
            "bounce": bool(named["bounce"]),
            "deliveries": of_message,
            "receipts": receipts,
        }
    )


async def dicts(reader: Reader, query: Any) -> tuple[dict[str, Any], ...]:
    """The rows of a query as maps by the names of its columns; raises StoreUnavailable."""
    names = [column.name for column in query.selected_columns]
    return tuple(dict(zip(names, row, strict=True)) for row in await reader.all(query))


async def visit(reader: Reader, number: str, visible: frozenset[int] | None) -> list[dict[str, Any]]:
    """The visits with this number: own numbers name one, another counter's one a site."""
    hidden = ("id", "mark", "first_id", "touch_id", "erased_at")
    first, touch = visits.alias(), visits.alias()
    query = (
        select(
            *(column for column in visits.c if column.name not in hidden),
            sites.c.name.label("site"),
            _touched(first, visits.c.first_id).label("first_touch"),
            _touched(touch, visits.c.touch_id).label("last_non_direct_touch"),
        )
        .join(sites, sites.c.id == visits.c.site_id)
        .outerjoin(first, first.c.id == visits.c.first_id)
        .outerjoin(touch, touch.c.id == visits.c.touch_id)
        .where(*_numbered(number, visible))
        .order_by(visits.c.id)
        .limit(100)
    )
    return [row | {"params": json.loads(row["params"] or "{}")} for row in await dicts(reader, query)]


def _touched(other: FromClause, reference: ColumnElement[int]) -> ColumnElement[str | None]:
    """The marker of the visit referred to; its own where there is none, or it is gone."""
    own = or_(reference.is_(None), other.c.id.is_(None), other.c.erased_at.is_not(None))
    return case((own, visits.c.marker), else_=other.c.marker)


async def raw(reader: Reader, message_id: int) -> tuple[bytes | None, str | None] | None:
    """(body in wire form or None, name of its file or None); None when there is no such message."""
    rows = await reader.all(
        select(bodies.c.data, messages.c.body_file)
        .select_from(messages.outerjoin(bodies, bodies.c.message_id == messages.c.id))
        .where(messages.c.id == message_id)
    )
    return (rows[0][0], rows[0][1]) if rows else None


async def waiting(reader: Reader, visible: frozenset[int] | None, limit: int) -> tuple[dict[str, Any], ...]:
    """What waits to be forwarded or is held, soonest first, as queue.listing says it, with the name of its site."""
    query = (
        queue.listing(limit)
        .add_columns(sites.c.name.label("site"))
        .outerjoin(sites, sites.c.id == deliveries.c.site_id)
    )
    if visible is not None:
        query = query.where(deliveries.c.site_id.in_(sorted(visible)))
    return await dicts(reader, query)


async def site_of_delivery(reader: Reader, delivery_id: int) -> tuple[int | None] | None:
    """The id of a delivery's site (None: it goes to the operator); None when there is no such delivery."""
    rows = await reader.all(select(deliveries.c.site_id).where(deliveries.c.id == delivery_id))
    return (rows[0][0],) if rows else None
