"""The History as CSV: every letter that the filters pass, sent as it is read, however many there are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from weakref import WeakKeyDictionary

import structlog
from aiohttp import web

from relay.store import history, users
from relay.store.engine import StoreUnavailable
from relay.store.history import MessageRow
from relay.store.history_filter import Filter
from relay.store.store import Store
from webapi import message_views
from webapi.auth import site_ids
from webapi.problems import Problem
from webapi.ui import export
from webapi.ui.page import View

log = structlog.get_logger()

COLUMNS = (
    *("received_at", "site", "sender", "receivers", "visit", "source", "attribution", "deal", "deal_url", "subject"),
    *("state", "posting", "reason", "size", "files", "id"),
)
#: Letters read at once.
PAGE = 500
#: Exports under way at once.
EXPORTS = 3


@dataclass(slots=True)
class _Under:
    """How many exports of a store are under way."""

    count: int = 0


_UNDER_WAY: WeakKeyDictionary[Store, _Under] = WeakKeyDictionary()


async def send(view: View, wanted: Filter) -> web.StreamResponse:
    """Stream the list, from its beginning whatever page is shown. Raises Problem 429 while others are under way.

    What fails after the beginning can only be told by breaking the connection: half a table must not look whole.
    """
    under = _UNDER_WAY.setdefault(view.context.store, _Under())
    if under.count >= EXPORTS:
        raise Problem(429, "other exports are under way; try again in a minute", headers={"Retry-After": "60"})
    under.count += 1
    try:
        return await _stream(view, replace(wanted, cursor=None))
    finally:
        under.count -= 1


async def _stream(view: View, wanted: Filter) -> web.StreamResponse:
    reader, request = view.context.store.exports, view.request
    page = await history.browse(reader, wanted, PAGE)
    day = datetime.fromtimestamp(view.context.clock(), UTC).date().isoformat()
    response = await export.begin(request, f"history-{day}.csv")
    if request.method == "HEAD":
        return response
    try:
        await export.write_header(response, COLUMNS)
        while True:
            await export.write(response, cells(page.rows, wanted.sites))
            if page.next is None:
                break
            await _go_on(view, wanted)
            page = await history.browse(reader, replace(wanted, cursor=page.next), PAGE)
        await response.write_eof()
    except (ConnectionError, StoreUnavailable, Problem) as error:
        if not isinstance(error, ConnectionError):
            log.info("history.export_ended", error=str(error) or type(error).__name__)
        if request.transport is not None:
            request.transport.abort()
    return response


async def _go_on(view: View, wanted: Filter) -> None:
    """Raise Problem when whoever asked has logged out meanwhile or sees some of it no more, or the daemon is stopping:
    the user and its rights are read anew."""
    store = view.context.store
    if view.context.draining():
        raise Problem(503, "the daemon is stopping")
    session = await users.session(store.exports, view.visitor.token_hash, view.context.clock())
    if session is None:
        raise Problem(401, "the session has ended")
    seen = site_ids(store, session.user.sites)
    if seen is not None and (wanted.sites is None or not wanted.sites <= seen):
        raise Problem(403, "the user's sites are others now")


def cells(rows: Iterable[MessageRow], sites: frozenset[int] | None) -> Iterable[Sequence[object]]:
    """The lines of these letters, as somebody sees them who sees ``sites``."""
    for row in rows:
        chosen = message_views.spokesman(row)
        receipt = message_views.telling(row.receipts)
        yield (
            datetime.fromtimestamp(row.received_at, UTC).strftime("%Y-%m-%d %H:%M:%S"),
            chosen.site if chosen else None,
            row.sender,
            " ".join(dict.fromkeys(delivery.recipient for delivery in row.deliveries)),
            chosen.visit if chosen else None,
            chosen.source if chosen else None,
            chosen.attribution if chosen else "none",
            *row.deal_at(chosen.site if chosen else None),
            row.subject,
            message_views.state_of(row, sites),
            receipt.state if receipt else None,
            receipt.reason if receipt else None,
            row.size,
            row.files,
            row.id,
        )
