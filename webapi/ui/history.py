"""The History: which letters came, from which visit, and what became of them. New mail appears by itself."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from relay.core.model import DeliveryState
from relay.store import glance, history
from relay.store.history import MessageRow, Receipt
from webapi import message_views
from webapi.ui import history_csv, history_events, history_figures, history_query
from webapi.ui.days import midnight
from webapi.ui.history_query import PATH, Asked
from webapi.ui.page import Page, View
from webapi.ui.render import render
from webapi.values import cursor_of

#: Letters on a page.
ROWS = 50
#: States that are about to change by themselves.
_MOVING = (DeliveryState.QUEUED.value,)
#: Seconds for which the CRM's answer, in which the deal may be, is waited for once a letter is posted.
ANSWERED = 60.0


@dataclass(frozen=True, slots=True)
class Line:
    """A letter as a row of the table. ``sent`` says what became of it in the CRM where there is no deal.

    ``moving``: something is about to change about it.
    """

    id: int
    received_at: float
    site: str | None
    sender: str
    receivers: tuple[str, ...]
    visit: str | None
    source: str | None
    candidates: tuple[tuple[str, float], ...]
    all_known: bool  # as in DeliveryRow
    attribution: str
    deal_id: str | None
    deal_url: str | None
    sent: Receipt | None
    subject: str | None
    files: int
    state: str
    answer: str | None
    moving: bool


async def show(view: View) -> web.Response:
    """The whole page; for a script of the page only the list, when new mail has come."""
    asked = history_query.read(view)
    reader, sites = view.context.store.reader, view.caller.sites
    # First: what comes while the list is read is told of as new.
    today, newest = await history_figures.today(view, midnight(view.context.clock()))
    page = history.Page((), None) if asked.wanted is None else await history.browse(reader, asked.wanted, ROWS)
    seen = sites if asked.wanted is None else asked.wanted.sites
    is_part = "HX-Request" in view.request.headers
    response = render(
        view,
        "history.html",
        status=400 if asked.problem else 200,
        block="list" if is_part else None,
        asked=asked,
        lines=[line(row, seen, view.context.clock()) for row in page.rows],
        narrowed=page.narrowed,
        next_url=None if page.next is None else asked.url(cursor=cursor_of(page.next)),
        ended_early=page.next is not None and len(page.rows) < ROWS,
        is_first="cursor" not in view.request.query,
        newest=newest,
        today=today,
        is_empty=not newest and not asked.is_filtered,
        sources=[] if is_part else await glance.sources(reader, [site.id for site in view.sites]),
        several=len({site.name for site in view.sites}) > 1,
        query=history_query,
    )
    response.headers["Vary"] = "HX-Request"
    return response


def line(row: MessageRow, sites: frozenset[int] | None, now: float) -> Line:
    """A letter as somebody sees it who sees ``sites``."""
    chosen = message_views.spokesman(row)
    deal_id, deal_url = row.deal_at(chosen.site if chosen else None)
    state = message_views.state_of(row, sites)
    waits = row.extraction == "waiting" or any(receipt.state == "waiting" for receipt in row.receipts)
    is_new = now - row.received_at < ANSWERED
    is_asked = deal_id is None and is_new and any(receipt.state == "posted" for receipt in row.receipts)
    return Line(
        id=row.id,
        received_at=row.received_at,
        site=chosen.site if chosen else None,
        sender=row.sender,
        receivers=tuple(dict.fromkeys(delivery.recipient for delivery in row.deliveries)),
        visit=chosen.visit if chosen else None,
        source=chosen.source if chosen else None,
        candidates=chosen.candidates if chosen and chosen.attribution == "likely" else (),
        all_known=bool(chosen and chosen.all_known),
        attribution=chosen.attribution if chosen else "none",
        deal_id=deal_id,
        deal_url=deal_url if deal_url and deal_url.startswith(("https://", "http://")) else None,
        sent=message_views.telling(row.receipts),
        subject=row.subject,
        files=row.files,
        state=state,
        answer=next((delivery.answer for delivery in row.deliveries if delivery.state == state), None),
        moving=waits or is_asked or state in _MOVING,
    )


def _asked_or_raise(view: View) -> Asked:
    asked = history_query.read(view)
    if asked.problem is not None:
        raise asked.problem
    return asked


async def export(view: View) -> web.StreamResponse:
    """The list, all of it, as CSV."""
    asked = _asked_or_raise(view)
    assert asked.wanted is not None
    return await history_csv.send(view, asked.wanted)


PAGES = (
    Page("GET", PATH, show),
    Page("GET", f"{PATH}/events", history_events.events),
    Page("GET", f"{PATH}/export.csv", export),
)
