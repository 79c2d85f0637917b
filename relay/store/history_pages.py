"""Which messages a page of the history shows, found in bounded steps however long the history is.

    candidates     come in the order of ids from one index: that of the narrowest filter (history_filter.py)
    each           is looked at with all conditions, a step at a time, until the page is full
    MOST           candidates are looked at for one page; then it ends early, and its cursor goes on from there; so it
                   does where words that rarely meet are searched in a part of all messages (search.py)

So a filter that hardly anything passes, and that no index knows (the source of the visit), never reads the whole
database for one page: who turns the pages does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from sqlalchemy import Executable, TextualSelect, and_, false, func, select, text, true

from relay.store.history_filter import Candidates, Filter, Span, all_messages, candidates, conditions, shared
from relay.store.reader import Reader
from relay.store.schema import messages
from relay.store.search import BEYOND, Search, matching, search

#: Candidates that are looked at for one page: some 40 ms, 130 where their visits have to be read from the disk.
MOST = 3500
#: Candidates of the first step; each further one takes four times as many.
STEP = 200
#: Candidates that are looked for in the search index one by one rather than being taken from it.
FEW = 300
#: Neighbours by time among which the one with the utmost id is taken: ids follow the order of acceptance, and a clock
#: that was set back makes times that do not.
NEIGHBOURS = 500


@dataclass(frozen=True, slots=True)
class Found:
    """``ids`` in the order of the list. ``next`` is the cursor of the page behind; None at the end.

    ``narrowed``: too many words begin as the last one of the query does, so it was searched as it stands.
    """

    ids: tuple[int, ...] = ()
    next: int | None = None
    narrowed: bool = False


async def find(reader: Reader, wanted: Filter, limit: int) -> Found:
    """At most ``limit`` messages, fewer where not enough are found among :data:`MOST` candidates.

    Raises StoreUnavailable.
    """
    left = await span_of(reader, wanted)
    ways = candidates(wanted)
    if wanted.query is None:
        drawn = (ways or [all_messages])[0]
        if len(ways) > 1:
            drawn = await _narrowest(reader, ways, left, MOST) or drawn
        return await _Walk(reader, wanted, drawn).pages(left, limit)
    words = await search(reader, wanted.query)
    if words is None:
        return Found()
    few = await _narrowest(reader, ways, left, FEW)
    if few is not None:
        found = await _Walk(reader, wanted, few, words, one_by_one=True).pages(left, limit)
        return replace(found, narrowed=words.narrowed)
    part = await _part(reader, left, words.share)
    found = await _Walk(reader, wanted, partial(_by_words, words), words).pages(part, limit)
    if found.next is None and part != left:  # all of this part was looked at; the rest comes behind it
        found = replace(found, next=part.high - 1 if part.oldest else part.low + 1)
    return replace(found, narrowed=words.narrowed)


async def _part(reader: Reader, span: Span, share: float) -> Span:
    """The beginning of a span, so long as this share of all messages."""
    if share >= 1.0:
        return span
    ((first,),) = await reader.all(select(func.min(messages.c.id)))
    ((last,),) = await reader.all(select(func.max(messages.c.id)))
    if last is None:
        return span
    low, high = max(span.low, first - 1), min(span.high, last + 1)
    width = max(MOST, int((last - first) * share))
    if span.oldest:
        return Span(span.low, low + width, True) if low + width < high else span
    return Span(high - width, span.high) if high - width > low else span


def _by_words(words: Search, span: Span, most: int) -> TextualSelect:
    return matching(words.expression, span.low, span.high, most, oldest=span.oldest)


async def _narrowest(reader: Reader, ways: Sequence[Candidates], span: Span, most: int) -> Candidates | None:
    """The first way that leads to at most so many candidates."""
    for drawn in ways:
        query = select(func.count()).select_from(drawn(span, most + 1).subquery())
        if (await reader.all(query))[0][0] <= most:
            return drawn
    return None


@dataclass(frozen=True, slots=True)
class _Walk:
    """``drawn`` yields candidates; with ``words`` that were searched, or, ``one_by_one``, have yet to be."""

    reader: Reader
    wanted: Filter
    drawn: Candidates
    words: Search | None = None
    one_by_one: bool = False

    async def pages(self, span: Span, limit: int) -> Found:
        passed: list[int] = []
        # A beginning is merged anew at each step, so there is one where there is more to look at than words.
        step = MOST if self.words and self.words.begins and conditions(self.wanted) else max(STEP, limit + 1)
        looked = 0
        while True:
            ids, good = await self._look(span, step)
            passed += [one for one in ids if one in good]
            if len(passed) > limit:
                return Found(tuple(passed[:limit]), passed[limit - 1])
            if len(ids) < step:
                return Found(tuple(passed))
            looked += step
            if looked >= MOST:
                return Found(tuple(passed), ids[-1])
            span, step = span.behind(ids[-1]), min(4 * step, MOST - looked)

    async def _look(self, span: Span, most: int) -> tuple[list[int], set[int]]:
        """The next candidates in order, and those of them that are to be listed."""
        if span.is_empty:
            return [], set()
        drawn = self.drawn(span, most).subquery()
        own = and_(true(), *conditions(self.wanted))
        is_shared = shared(self.wanted.sites) if self.words and self.wanted.sites is not None else false()
        # An outer join, so that the candidates are read first, and each message then by its id.
        query = select(drawn.c.id, own, is_shared).outerjoin(messages, messages.c.id == drawn.c.id)
        rows = sorted(await self.reader.all(query), reverse=not span.oldest)
        good = {row[0] for row in rows if row[1]}
        if self.words is not None:
            if self.one_by_one:
                good = await self._said(self.words.expression, good)
            foreign = {row[0] for row in rows if row[2]} & good
            # No site sees another's recipients, nor finds a message by them.
            good -= foreign - await self._said(f"- addresses : ({self.words.expression})", foreign)
        return [row[0] for row in rows], good

    async def _said(self, expression: str, ids: set[int]) -> set[int]:
        """Those of these messages in which the words are."""
        assert self.words is not None
        if not ids:
            return set()
        query: Executable = _EACH.bindparams(expression=expression, ids=json.dumps(sorted(ids)))
        if self.words.begins or not self.one_by_one:
            # What lies between is no more than what was read for these, or than a beginning reads anyway.
            query = matching(expression, min(ids) - 1, max(ids) + 1, -1)
        return {row[0] for row in await self.reader.all(query)} & ids


_EACH = text(
    "SELECT message_search.rowid FROM json_each(:ids) AS one CROSS JOIN message_search "
    "WHERE message_search MATCH :expression AND message_search.rowid = one.value"
)


async def span_of(reader: Reader, wanted: Filter) -> Span:
    """The ids that the cursor and the period leave."""
    low, high = 0, BEYOND
    if wanted.cursor is not None:
        low, high = (wanted.cursor, BEYOND) if wanted.oldest else (0, wanted.cursor)
    received = messages.c.received_at
    if wanted.since is not None:
        later = select(messages.c.id).where(received >= wanted.since).order_by(received).limit(NEIGHBOURS).subquery()
        (first,) = (await reader.all(select(func.min(later.c.id))))[0]
        low = BEYOND if first is None else max(low, first - 1)
    if wanted.until is not None:
        sooner = select(messages.c.id).where(received < wanted.until).order_by(received.desc()).limit(NEIGHBOURS)
        (last,) = (await reader.all(select(func.max(sooner.subquery().c.id))))[0]
        high = 0 if last is None else min(high, last + 1)
    return Span(low, high, wanted.oldest)
