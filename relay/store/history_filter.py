"""What a list of messages is to hold: the conditions of one message, and the indexes that candidates come from."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    TextualSelect,
    and_,
    false,
    literal_column,
    or_,
    select,
    union_all,
)

from relay.core.hook import EventType
from relay.core.model import WORST_FIRST, DeliveryState
from relay.store.messages import COLLECTED
from relay.store.schema import deliveries, events, messages, sites, visits

#: Sites whose letters are read side by side; who sees more sees a good part of all letters anyway.
SITES_SIDE_BY_SIDE = 20

Condition = ColumnElement[bool]


@dataclass(frozen=True, slots=True)
class Filter:
    """What to list. ``sites`` are ids the reader may see (None: all); times are seconds since the epoch.

    ``source``: a marker, or the part of one before its first "_", which stands for all that begin so. ``deal``: whether
    a CRM has given it a number.
    ``oldest``: oldest first, not newest. ``cursor``: only what comes behind this id in that order.
    """

    sites: frozenset[int] | None = None
    visit: str | None = None
    sender: str | None = None
    query: str | None = None
    state: str | None = None
    source: str | None = None
    deal: bool | None = None
    since: float | None = None
    until: float | None = None
    oldest: bool = False
    cursor: int | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """The ids between ``low`` and ``high``, both left out, in the order of the list."""

    low: int
    high: int
    oldest: bool = False

    @property
    def is_empty(self) -> bool:
        return self.high - self.low < 2

    def behind(self, message_id: int) -> Span:
        """What comes after this message."""
        if self.oldest:
            return Span(max(self.low, message_id), self.high, True)
        return Span(self.low, min(self.high, message_id))

    def first(self, query: Select[tuple[int]], column: ColumnElement[int], most: int) -> Select[tuple[int]]:
        """The first of a query's ids that lie in it."""
        order = column.asc() if self.oldest else column.desc()
        return query.where(column > self.low, column < self.high).order_by(order).limit(most)


#: At most so many ids of messages that lie in a span, in order and each once: all that a list can hold are among them.
Candidates = Callable[[Span, int], Select[Any] | TextualSelect]


def conditions(wanted: Filter) -> list[Condition]:
    """What a row of messages has to be, apart from the words that are searched."""
    found: list[Condition] = []
    if wanted.since is not None:
        found.append(messages.c.received_at >= wanted.since)
    if wanted.until is not None:
        found.append(messages.c.received_at < wanted.until)
    if wanted.state is not None:
        found += _in_state(wanted.state, wanted.sites)
    if wanted.sender is not None:
        found.append(messages.c.sender == wanted.sender)
    if wanted.source is not None:
        found.append(_from_source(wanted.source, wanted.sites))
    if wanted.deal is not None:
        has_deal = dealt(wanted.sites)
        found.append(has_deal if wanted.deal else ~has_deal)
    if wanted.visit is not None:
        found.append(_of_visit(wanted.visit, wanted.sites))
    elif wanted.sites is not None:
        found.append(_delivered(wanted.sites))
    return found


def candidates(wanted: Filter) -> list[Candidates]:
    """The ways to come by what may be listed, most often the narrowest first; empty where only all messages are one."""
    found: list[Candidates] = []
    if wanted.visit is not None:
        found.append(_visit_candidates(wanted.visit, wanted.sites))
    if wanted.sender is not None:
        sent = _ANY.where(messages.c.sender == wanted.sender)
        found.append(lambda span, most: span.first(sent, messages.c.id, most))
    if wanted.state is not None and wanted.state != DeliveryState.FORWARDED.value:
        found.append(_state_candidates(wanted.state, wanted.sites))
    if wanted.deal:
        found.append(lambda span, most: span.first(_DEALT.distinct(), events.c.message_id, most))
    if wanted.sites is not None and len(wanted.sites) <= SITES_SIDE_BY_SIDE:
        found.append(_site_candidates(sorted(wanted.sites)))
    return found


def all_messages(span: Span, most: int) -> Select[Any]:
    return span.first(_ANY, messages.c.id, most)


def shared(visible: frozenset[int]) -> Condition:
    """Whether a message has recipients that belong to none of these sites."""
    foreign = or_(deliveries.c.site_id.is_(None), deliveries.c.site_id.not_in(sorted(visible)))
    return select(deliveries.c.id).where(deliveries.c.message_id == messages.c.id, foreign).exists()


def numbered(number: str, sites_seen: frozenset[int] | None) -> tuple[Condition, ...]:
    """The visits with this number. The sites are named even where all count: the index begins with them."""
    of_sites = select(sites.c.id).scalar_subquery() if sites_seen is None else sorted(sites_seen)
    return visits.c.site_id.in_(of_sites), visits.c.number == number, visits.c.erased_at.is_(None)


def dealt(visible: frozenset[int] | None) -> Condition:
    """Whether a message has a deal, as far as somebody sees it who sees ``visible``."""
    query = select(events.c.id).where(
        events.c.message_id == messages.c.id,
        events.c.deal_id.is_not(None),
        events.c.type == EventType.RECEIVED.value,
    )
    return (query if visible is None else query.where(events.c.site_id.in_(sorted(visible)))).exists()


def visited(visible: frozenset[int] | None) -> Condition:
    """Whether the visit that a message came from is stated, as far as somebody sees it."""
    scope = [_OWN] if visible is None else [_OWN, deliveries.c.site_id.in_(sorted(visible))]
    return select(deliveries.c.id).where(*scope, deliveries.c.visit_id.is_not(None)).exists()


_ANY = select(messages.c.id.label("id"))
# The index holds what has a deal; a receipt is the only event that gets one.
_DEALT = select(events.c.message_id.label("id")).where(
    events.c.deal_id.is_not(None), events.c.type == EventType.RECEIVED.value
)
_OWN = deliveries.c.message_id == messages.c.id


def _delivered(visible: frozenset[int]) -> Condition:
    return select(deliveries.c.id).where(_OWN, deliveries.c.site_id.in_(sorted(visible))).exists()


def _from_source(source: str, visible: frozenset[int] | None) -> Condition:
    """The marker of a stated visit, or the label of a static substitute, which stands for one."""
    scope = [_OWN] if visible is None else [_OWN, deliveries.c.site_id.in_(sorted(visible))]
    visit = select(visits.c.id).where(visits.c.id == deliveries.c.visit_id, _is_source(visits.c.marker, source))
    found = or_(visit.correlate(deliveries).exists(), _is_source(deliveries.c.label, source))
    return select(deliveries.c.id).where(*scope, found).exists()


def _is_source(marker: ColumnElement[str | None], source: str) -> Condition:
    """``source`` itself; where it is a first level, too, what that begins: from "google_" up to "google`", the next
    character of ASCII."""
    if "_" in source:
        return marker == source
    return or_(marker == source, and_(marker >= f"{source}_", marker < f"{source}`"))


def _of_visit(number: str, visible: frozenset[int] | None) -> Condition:
    """A stated visit is always of the delivery's own site."""
    claimed = deliveries.c.claimed_number == number
    if visible is not None:
        claimed = and_(claimed, deliveries.c.site_id.in_(sorted(visible)))
    stated = deliveries.c.visit_id.in_(select(visits.c.id).where(*numbered(number, visible)))
    return select(deliveries.c.id).where(_OWN, or_(stated, claimed)).exists()


def _visit_candidates(number: str, visible: frozenset[int] | None) -> Candidates:
    stated = select(deliveries.c.message_id.label("id")).where(
        deliveries.c.visit_id.in_(select(visits.c.id).where(*numbered(number, visible)))
    )
    claimed = select(deliveries.c.message_id.label("id")).where(deliveries.c.claimed_number == number)

    def found(span: Span, most: int) -> Select[Any]:
        both = union_all(stated, claimed).subquery()
        return span.first(select(both.c.id).distinct(), both.c.id, most)

    return found


def _in_state(state: str, visible: frozenset[int] | None) -> list[Condition]:
    """Who sees only some sites sees the worst state of their deliveries."""
    if visible is None:
        return [messages.c.state == state]
    if state == COLLECTED:
        return [false()]  # such a message has no delivery
    seen = select(deliveries.c.id).where(_OWN, deliveries.c.site_id.in_(sorted(visible)))
    worse = _worse(state)
    own = [seen.where(deliveries.c.state == state).exists(), ~seen.where(deliveries.c.state.in_(worse)).exists()]
    return [messages.c.state.in_([*worse, state]), *own]  # no message is better than one of its deliveries


def _worse(state: str) -> list[str]:
    return [known.value for known in itertools.takewhile(lambda known: known != state, WORST_FIRST)]


def _state_candidates(state: str, visible: frozenset[int] | None) -> Candidates:
    """The index holds what is not forwarded, and serves only what the text proves to be in it."""
    states = [state] if visible is None else [*_worse(state), state]
    unfinished = _ANY.where(messages.c.state != literal_column("'forwarded'"))

    def found(span: Span, most: int) -> Select[Any]:
        return _merged([(unfinished.where(messages.c.state == one), messages.c.id) for one in states], span, most)

    return found


def _site_candidates(site_ids: Sequence[int]) -> Candidates:
    column = deliveries.c.message_id
    query = select(column.label("id")).distinct()

    def found(span: Span, most: int) -> Select[Any]:
        return _merged([(query.where(deliveries.c.site_id == one), column) for one in site_ids], span, most)

    return found


def _merged(queries: Sequence[tuple[Select[Any], ColumnElement[int]]], span: Span, most: int) -> Select[Any]:
    """The first ids of all these, each read no farther than it takes."""
    if not queries:
        return _ANY.where(false())
    if len(queries) == 1:
        query, column = queries[0]
        return span.first(query, column, most)
    parts = [span.first(query, column, most).subquery() for query, column in queries]
    every = union_all(*(select(part.c.id) for part in parts)).subquery()
    return span.first(select(every.c.id).distinct(), every.c.id, most)
