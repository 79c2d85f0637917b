"""One message: its life on a time line, its visit, the letter itself, and what one can do about it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from relay.core.address import sender_key
from relay.core.attribution import STATIC_METHOD
from relay.store import blocked, history
from relay.store.history import DeliveryRow, MessageRow
from relay.store.journey import Journey, journeys
from relay.store.life import life as read_life
from webapi import blocked as blocking
from webapi import files, messages, resend
from webapi.auth import Role
from webapi.message_views import item, spokesman
from webapi.problems import Problem, not_found
from webapi.ui import message_line, message_words
from webapi.ui.message_letter import HEADERS, LETTERS, document, head_of, may_have_html, source_of
from webapi.ui.page import Page, View, perform, see_other
from webapi.ui.render import render
from webapi.values import row_id

#: Characters of a letter's text that are shown at once; the rest on demand.
TEXT = 40_000
#: Runs of lines, quoted or not, that are set apart; the answer to a long letter has a hundred.
RUNS = 1000
#: What a letter's page shows of it.
SHOWS = ("text", "letter", "source")

OPERATIONS = {
    operation.action: operation
    for operation in (*messages.OPERATIONS, *blocking.OPERATIONS, *resend.OPERATIONS, *files.OPERATIONS)
}


@dataclass(frozen=True, slots=True)
class Panel:
    """A delivery with why it is attributed as it is. ``facts``: of its visit, where it is the first panel with it."""

    delivery: DeliveryRow
    journey: Journey | None
    explained: message_words.Explained
    facts: list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Trouble:
    """What an action was refused for; ``given`` is what stood in its form."""

    action: str
    problem: Problem
    given: dict[str, str]


async def show(view: View, trouble: Trouble | None = None) -> web.Response:
    row = await _row(view)
    context, reader, sites = view.context, view.context.store.reader, view.caller.sites
    life = await read_life(reader, row, sites)
    before = await journeys(reader, row)
    entries = message_line.line(row, life, before)
    shown = item(context, row, sites)
    chosen = spokesman(row)
    source = await source_of(context, row)
    wanted = view.query("show") if view.query("show") in SHOWS else "text"
    if wanted == "letter" and not may_have_html(source):
        wanted = "text"
    return render(
        view,
        "message.html",
        status=200 if trouble is None else trouble.problem.status,
        block="letter" if view.query("part") == "letter" else None,
        trouble=trouble,
        row=row,
        item=shown,
        files=[(one, one.url and one.url.removeprefix(context.public_url)) for one in shown.attachments],
        entries=entries,
        live=message_line.look_again(row, entries, context.clock()),
        crm=message_line.crm_state(life),
        pace=message_line.pace(row, life, before),
        panels=_panels(row, before, chosen),
        chosen=chosen,
        chosen_journey=before.get(chosen.id) if chosen else None,
        inferred=message_words.ground(chosen) if chosen and chosen.attribution == "inferred" else None,
        static_method=STATIC_METHOD,
        again=[one for one in row.deliveries if one.state in _again(view)] if source is not None else [],
        blocks=await _blocks(view, row) if view.is_manager else [],
        shows=wanted,
        has_source=source is not None,
        has_letter=may_have_html(source),
        **await _letter_parts(view, row, wanted, source, life.text),
    )


async def _row(view: View) -> MessageRow:
    row = await history.one(view.context.store.reader, row_id(view.path["id"], "message"), view.caller.sites)
    if row is None:
        raise not_found("message")
    return row


def _again(view: View) -> tuple[str, ...]:
    """The states in which whoever looks may have a delivery sent again."""
    return ("forwarded", "failed", "dropped") if view.is_admin else ("forwarded",) if view.is_manager else ()


def _panels(row: MessageRow, before: dict[int, Journey], chosen: DeliveryRow | None) -> list[Panel]:
    told: set[int] = set()
    panels = []
    for delivery in sorted(row.deliveries, key=lambda one: (one is not chosen, one.id)):
        journey = before.get(delivery.id)
        facts: list[tuple[str, str]] = []
        if journey is not None and journey.visit is not None and journey.visit.visit["row_id"] not in told:
            told.add(journey.visit.visit["row_id"])
            facts = message_words.visit_facts(journey.visit.visit)
        panels.append(Panel(delivery, journey, message_words.explained(delivery, journey), facts))
    return panels


async def _blocks(view: View, row: MessageRow) -> list[dict[str, Any]]:
    """By site, whether its sender or the sender's domain is blocked there."""
    if "@" not in row.sender:
        return []
    address = sender_key(row.sender)
    domain = address[address.rfind("@") :]
    sites = {one.site_id: one.site for one in row.deliveries if one.site_id is not None and one.site is not None}
    found = await blocked.which(view.context.store.reader, (address, domain), sites)
    return [
        {"site": name, "blocked": [one for one in (address, domain) if (site_id, one) in found]}
        for site_id, name in sites.items()
    ]


async def _letter_parts(view: View, row: MessageRow, wanted: str, source: Any, text: str | None) -> dict[str, Any]:
    """What the letter's tab shows: runs of text, or the beginning of its source."""
    if wanted == "source" and source is not None:
        try:
            head, more = await head_of(view.context, source)
        except OSError:
            head, more = "", False
        return {"runs": [], "source": head, "more": more}
    if wanted != "text" or text is None:
        return {"runs": [], "source": "", "more": False}
    whole = view.query("whole") == "1"
    return {"runs": runs(text if whole else text[:TEXT]), "source": "", "more": not whole and len(text) > TEXT}


def runs(text: str) -> list[tuple[bool, str]]:
    """The text in runs of lines: (whether they quote an earlier letter, the lines). All behind RUNS of them are one."""
    lines = text.split("\n")
    found: list[tuple[bool, str]] = []
    at = 0
    for quoted, run in itertools.groupby(lines, key=lambda line: line.startswith(">")):
        if len(found) == RUNS:
            found.append((False, "\n".join(lines[at:])))
            break
        count = sum(1 for _ in run)
        found.append((quoted, "\n".join(lines[at : at + count])))
        at += count
    return found


# ---- the letter's own addresses


async def letter(view: View) -> web.Response:
    """The letter in its frame."""
    row = await _row(view)
    source = await source_of(view.context, row)
    if source is None:
        raise Problem(410, "the message's bytes are no longer here")
    made = await view.request.app[LETTERS].read(row.id, source)
    text = None
    if made.html is None:
        text = (await read_life(view.context.store.reader, row, view.caller.sites)).text
    first = next((one.site_id for one in row.deliveries if one.site_id is not None), None)
    page = document(view.context, row, made, text, None if view.caller.sites is None else first)
    return web.Response(text=page, content_type="text/html", headers=HEADERS)


async def raw(view: View) -> web.StreamResponse:
    """The message as it was received, to save."""
    answer: web.StreamResponse = await perform(view, OPERATIONS["GET /v1/messages/{id}/raw"], path=_path(view))
    return answer


# ---- actions


def _path(view: View) -> dict[str, str]:
    return {"id": view.path["id"]}


def _here(view: View) -> str:
    return f"/ui/messages/{view.path['id']}"


async def _refused(view: View, action: str, problem: Problem, fields: Sequence[str] = ()) -> web.Response:
    """The page again, with what was wrong beside the form; what is no matter of the form has a page of its own."""
    if problem.status in (403, 404) or problem.status >= 500:
        raise problem
    return await show(view, Trouble(action, problem, {name: view.field(name) for name in fields}))


async def replay(view: View) -> web.Response:
    query = {"reattribute": "true"} if view.field("reattribute") else {}
    try:
        await perform(view, OPERATIONS["POST /v1/messages/{id}/replay"], path=_path(view), query=query)
    except Problem as problem:
        return await _refused(view, "replay", problem)
    return see_other(_here(view), "replayed")


async def send_again(view: View) -> web.Response:
    row = await _row(view)
    delivery = view.field("delivery")
    if delivery not in {str(one.id) for one in row.deliveries}:
        raise not_found("delivery")
    try:
        await perform(
            view,
            OPERATIONS["POST /v1/queue/{id}/resend"],
            path={"id": delivery},
            query={"attempts": view.field("attempts")},
        )
    except Problem as problem:
        return await _refused(view, "resend", problem)
    return see_other(_here(view), "resent")


async def put_deal(view: View) -> web.Response:
    body = {"id": view.field("id").strip()} | {name: view.field(name).strip() or None for name in ("url", "site")}
    try:
        await perform(view, OPERATIONS["PUT /v1/messages/{id}/deal"], path=_path(view), body=body)
    except Problem as problem:
        return await _refused(view, "deal", problem, ("id", "url", "site"))
    return see_other(_here(view), "deal")


async def block(view: View) -> web.Response:
    site, sender = {"name": view.field("site")}, view.field("sender")
    try:
        if view.field("undo"):
            action = "DELETE /v1/sites/{name}/blocked-senders/{address}"
            await perform(view, OPERATIONS[action], path=site | {"address": sender})
            return see_other(_here(view), "unblocked")
        action = "POST /v1/sites/{name}/blocked-senders"
        await perform(view, OPERATIONS[action], path=site, body={"sender": sender})
    except Problem as problem:
        return await _refused(view, "block", problem)
    return see_other(_here(view), "blocked")


async def erase(view: View) -> web.Response:
    """Erase the message, or everything that its sender has written."""
    row = await _row(view)
    try:
        if view.field("sure") != "yes":
            raise Problem(400, "tick the box: what is erased does not come back")
        if view.field("all"):
            action = "DELETE /v1/senders/{address}"
            erased = await perform(view, OPERATIONS[action], path={"address": row.sender})
            return see_other("/ui/history", "erased_in_part" if erased.left else "erased")
        await perform(view, OPERATIONS["DELETE /v1/messages/{id}"], path=_path(view))
    except Problem as problem:
        return await _refused(view, "erase", problem)
    return see_other("/ui/history", "erased")


_ONE = "/ui/messages/{id}"
PAGES: tuple[Page, ...] = (
    Page("GET", _ONE, show),
    Page("GET", f"{_ONE}/letter", letter),
    Page("GET", f"{_ONE}/raw", raw),
    Page("POST", f"{_ONE}/replay", replay, Role.MANAGER),
    Page("POST", f"{_ONE}/resend", send_again, Role.MANAGER),
    Page("POST", f"{_ONE}/deal", put_deal, Role.MANAGER),
    Page("POST", f"{_ONE}/block", block, Role.MANAGER),
    Page("POST", f"{_ONE}/erase", erase, Role.ADMIN),
)
