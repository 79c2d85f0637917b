"""Reading the history: lists by keyset (newest first), one message with its life, one visit."""

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

from relay.core.mime import Part
from relay.core.model import WORST_FIRST, DeliveryState
from relay.store import queue
from relay.store.engine import Reader, Row
from relay.store.schema import (
    attempts,
    bodies,
    deliveries,
    events,
    messages,
    paths,
    post_attempts,
    posts,
    sites,
    texts,
    visits,
    webhooks,
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
    deal_id: str | None
    deal_url: str | None
    ip: str
    helo: str
    tls: str | None
    automatic: str | None
    bounce: bool
    raw_removed_at: float | None
    deliveries: tuple[DeliveryRow, ...]


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
    messages.c.deal_id,
    messages.c.deal_url,
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
    return [_message(row, tuple(by_message.get(row[0], ()))) for row in rows]


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


def _message(row: Row, of_message: tuple[DeliveryRow, ...]) -> MessageRow:
    named: dict[str, Any] = dict(zip(_MESSAGE_NAMES, row, strict=True))
    parts = json.loads(named["attachments"] or "[]")
    return MessageRow(
        **named
        | {
            "attachments": tuple(Part(**part) for part in parts),
            "bounce": bool(named["bounce"]),
            "deliveries": of_message,
        }
    )


@dataclass(frozen=True, slots=True)
class Life:
    """Everything that happened to one message, for its page: plain rows in order of time."""

    text: str | None
    paths: tuple[dict[str, Any], ...]
    attempts: tuple[dict[str, Any], ...]
    events: tuple[dict[str, Any], ...]
    posts: tuple[dict[str, Any], ...]


async def life(reader: Reader, row: MessageRow, visible: frozenset[int] | None) -> Life:
    """The life of a message that :func:`one` found, as far as the reader may see it."""
    delivery_ids = [delivery.id for delivery in row.deliveries]
    said = await reader.all(select(texts.c.head, texts.c.rest).where(texts.c.message_id == row.id))
    event_scope = [events.c.message_id == row.id]
    if visible is not None:
        event_scope.append(events.c.site_id.in_(sorted(visible)))
    return Life(
        text="".join(part or "" for part in said[0]) if said else None,
        paths=await _dicts(
            reader,
            select(paths.c.recipient, paths.c.kind, paths.c.received_at, paths.c.ip)
            .where(paths.c.message_id == row.id, paths.c.delivery_id.in_(delivery_ids))
            .order_by(paths.c.id),
        ),
        attempts=await _dicts(
            reader,
            select(
                attempts.c.delivery_id,
                attempts.c.started_at,
                attempts.c.finished_at,
                attempts.c.outcome,
                attempts.c.code,
                attempts.c.answer,
                attempts.c.host,
            )
            .where(attempts.c.delivery_id.in_(delivery_ids))
            .order_by(attempts.c.id),
        ),
        events=await _dicts(
            reader,
            select(events.c.uid, sites.c.name.label("site"), events.c.type, events.c.state, events.c.reason)
            .join(sites, sites.c.id == events.c.site_id)
            .where(*event_scope)
            .order_by(events.c.id),
        ),
        posts=await _dicts(
            reader,
            select(
                events.c.uid,
                webhooks.c.url,
                posts.c.state,
                post_attempts.c.started_at,
                post_attempts.c.duration,
                post_attempts.c.status,
                post_attempts.c.answer,
            )
            .join(posts, posts.c.id == post_attempts.c.post_id)
            .join(events, events.c.id == posts.c.event_id)
            .join(webhooks, webhooks.c.id == posts.c.webhook_id)
            .where(*event_scope)
            .order_by(post_attempts.c.id),
        ),
    )


async def _dicts(reader: Reader, query: Any) -> tuple[dict[str, Any], ...]:
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
    return [row | {"params": json.loads(row["params"] or "{}")} for row in await _dicts(reader, query)]


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
    return await _dicts(reader, query)


async def site_of_delivery(reader: Reader, delivery_id: int) -> tuple[int | None] | None:
    """The id of a delivery's site (None: it goes to the operator); None when there is no such delivery."""
    rows = await reader.all(select(deliveries.c.site_id).where(deliveries.c.id == delivery_id))
    return (rows[0][0],) if rows else None


async def posted(reader: Reader, webhook_id: int, before: int | None, limit: int) -> tuple[dict[str, Any], ...]:
    """The delivery log of a webhook, newest first: one row a post, with what came of its last attempt."""
    query = (
        select(
            posts.c.id,
            events.c.uid,
            events.c.message_id,
            posts.c.state,
            posts.c.attempts,
            posts.c.next_at,
            posts.c.status,
            posts.c.answer,
            posts.c.finished_at,
        )
        .join(events, events.c.id == posts.c.event_id)
        .where(posts.c.webhook_id == webhook_id)
        .order_by(posts.c.id.desc())
        .limit(limit)
    )
    return await _dicts(reader, query if before is None else query.where(posts.c.id < before))
