"""Senders: blocked ones of each site, and erasing everything that one has sent."""

from __future__ import annotations

from aiohttp import web

from relay.core.model import folded
from webapi.auth import Role
from webapi.messages import Erased
from webapi.problems import Problem
from webapi.ui.page import Page, View, perform, see_other
from webapi.ui.settings_parts import OPERATIONS, SETTINGS, settings_page, shown_again
from webapi.values import LONGEST_SENDER

SENDERS = f"{SETTINGS}/senders"
_BLOCKED = "/v1/sites/{name}/blocked-senders"
#: Blocked senders on one page; with more, one searches.
SHOWN = 200
#: Messages that are counted before one is asked whether to erase them.
COUNTED = 200


async def show_senders(view: View) -> web.Response:
    return await _senders(view, view.query("site"))


async def _senders(
    view: View, site: str, *, blocking: Problem | None = None, erasing: Problem | None = None
) -> web.Response:
    """The blocked senders of ``site``, of the first one where it is empty."""
    names = [one.name for one in view.sites]
    site = site or (names[0] if names else "")
    wanted = view.query("q").strip().lower()
    found: list[str] = []
    if site:
        listed = await perform(view, OPERATIONS[f"GET {_BLOCKED}"], path={"name": site})
        found = [sender for sender in listed.items if wanted in sender.lower()]
    problem = blocking or erasing
    return settings_page(
        view,
        "settings_senders.html",
        status=problem.status if problem else 200,
        site=site,
        names=names,
        q=view.query("q")[:LONGEST_SENDER],
        blocked=found[:SHOWN],
        more=len(found) - SHOWN,
        sender=view.field("sender")[:LONGEST_SENDER],
        longest=LONGEST_SENDER,
        blocking=blocking,
        erasing=erasing,
    )


async def block(view: View) -> web.Response:
    site = view.field("site")
    try:
        await perform(
            view, OPERATIONS[f"POST {_BLOCKED}"], path={"name": site}, body={"sender": view.field("sender").strip()}
        )
    except Problem as problem:
        if problem.status == 404:  # the site: there is no page to show it on
            raise
        return await _senders(view, site, blocking=shown_again(problem))
    return see_other(SENDERS, "blocked", site=site)


async def unblock(view: View) -> web.Response:
    site = view.field("site")
    path = {"name": site, "address": view.field("sender")}
    await perform(view, OPERATIONS[f"DELETE {_BLOCKED}/{{address}}"], path=path)
    return see_other(SENDERS, "unblocked", site=site)


async def erase(view: View) -> web.Response:
    """Asked once more, with what there is to erase."""
    sender = folded(view.field("sender"))
    try:
        if "@" not in sender:
            raise Problem(400, "must be an address", field="sender")
        found = await perform(view, OPERATIONS["GET /v1/messages"], query={"sender": sender, "limit": str(COUNTED)})
    except Problem as problem:
        return await _senders(view, "", erasing=shown_again(problem))
    if view.field("sure") != "yes":
        return settings_page(
            view, "settings_erase.html", sender=sender, count=len(found.items), more=found.next is not None
        )
    answer: Erased = await perform(view, OPERATIONS["DELETE /v1/senders/{address}"], path={"address": sender})
    if answer.left:
        return see_other(SENDERS, "erased_in_part")
    if answer.erased:
        return see_other(SENDERS, "sender_erased")
    return see_other(SENDERS, "sender_unblocked" if answer.unblocked else "sender_nothing")


PAGES = (
    Page("GET", SENDERS, show_senders, Role.ADMIN),
    Page("POST", f"{SENDERS}/block", block, Role.ADMIN),
    Page("POST", f"{SENDERS}/unblock", unblock, Role.ADMIN),
    Page("POST", f"{SENDERS}/erase", erase, Role.ADMIN),
)
