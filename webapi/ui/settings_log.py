"""The log of changes, in words."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from webapi.auth import Role
from webapi.people import ChangeShown
from webapi.ui.page import Page, View, perform
from webapi.ui.settings_parts import OPERATIONS, SETTINGS, settings_page
from webapi.values import seconds_or_none

CHANGES = f"{SETTINGS}/changes"
#: What is done here and over the API, as somebody says it afterwards; for what is not listed, the API's own summary.
WORDS = {
    "POST /ui/welcome": "Chose a password by a one-time link",
    f"POST {SETTINGS}/password": "Changed the own password",
    "POST /v1/messages/{id}/replay": "Posted a message to the webhooks again",
    "PUT /v1/messages/{id}/deal": "Set a message's deal",
    "DELETE /v1/messages/{id}": "Erased a message",
    "DELETE /v1/senders/{address}": "Erased everything of a sender",
    "DELETE /v1/visits/{number}": "Erased a visit",
    "POST /v1/sites": "Added a site",
    "PUT /v1/sites/{name}": "Changed a site",
    "PATCH /v1/sites/{name}": "Switched a site",
    "DELETE /v1/sites/{name}": "Removed a site",
    "POST /v1/sites/{name}/targets/{address}/pool": "Added addresses to a pool",
    "DELETE /v1/sites/{name}/substitutes/{address}": "Took an address out of use",
    "POST /v1/sites/{name}/webhooks": "Added a webhook",
    "PATCH /v1/webhooks/{id}": "Changed a webhook",
    "DELETE /v1/webhooks/{id}": "Removed a webhook",
    "POST /v1/webhooks/{id}/enable": "Switched a webhook on",
    "POST /v1/webhooks/{id}/rotate": "Gave a webhook a new secret",
    "POST /v1/webhooks/{id}/replay": "Posted to a webhook again",
    "POST /v1/sites/{name}/blocked-senders": "Blocked a sender",
    "DELETE /v1/sites/{name}/blocked-senders/{address}": "Unblocked a sender",
    "POST /v1/queue/{id}/retry": "Tried a delivery at once",
    "POST /v1/queue/{id}/drop": "Gave a delivery up",
    "POST /v1/queue/{id}/resend": "Sent a message to its real address again",
    "POST /v1/queue/retry": "Tried deliveries at once",
    "POST /v1/queue/drop": "Gave deliveries up",
    "POST /v1/users": "Invited a user",
    "PUT /v1/users/{name}": "Gave a user other rights",
    "POST /v1/users/{name}/invitation": "Made a new one-time link for a user",
    "DELETE /v1/users/{name}": "Removed a user",
    "POST /v1/tokens": "Made an API token",
    "DELETE /v1/tokens/{name}": "Revoked an API token",
}
#: Commands do what the API does.
COMMANDS = {
    "token.create": "Made an API token",
    "token.revoke": "Revoked an API token",
    "queue.retry": "Tried deliveries at once",
    "queue.drop": "Gave deliveries up",
    "message.replay": "Posted a message to the webhooks again",
    "visit.erase": "Erased a visit",
    "site.add": "Added a site",
    "site.remove": "Removed a site",
    "site.tracking": "Switched Track e-mails",
    "site.crm": "Switched Send to CRM",
    "site.block": "Blocked a sender",
    "site.unblock": "Unblocked a sender",
    "target.add": "Added a target",
    "target.remove": "Removed a target",
    "target.pool.add": "Added addresses to a pool",
    "target.pool.grow": "Made a pool larger",
    "webhook.add": "Added a webhook",
    "webhook.change": "Changed a webhook",
    "webhook.remove": "Removed a webhook",
    "webhook.enable": "Switched a webhook on",
    "webhook.disable": "Switched a webhook off",
    "webhook.rotate": "Gave a webhook a new secret",
    "webhook.replay": "Posted to a webhook again",
    "user.create": "Invited a user",
    "user.invite": "Made a new one-time link for a user",
    "user.change": "Gave a user other rights",
    "user.remove": "Removed a user",
}


@functools.cache
def words() -> Mapping[str, str]:
    """What every action is called."""
    from webapi.app import OPERATIONS as everything  # which has these pages in it

    return {operation.action: operation.summary.rstrip(".") for operation in everything} | WORDS | COMMANDS


@dataclass(frozen=True, slots=True)
class Line:
    """``details``: the fields that were given, with their values in words."""

    at: float | None
    kind: str
    name: str
    what: str
    action: str
    site: str | None
    subject: str
    details: list[tuple[str, str]]


def line(change: ChangeShown) -> Line:
    subject = change.subject or ""
    if change.site is not None and subject.split(", ")[0] == change.site:
        subject = ", ".join(subject.split(", ")[1:])
    if subject == change.name:
        subject = ""  # their own account
    told = [text for text in (change.site, subject) if text]
    details = [
        (label(name), "all" if name == "sites" and given is None else value(given))
        for name, given in change.details.items()
        if given not in told
    ]
    what = words().get(change.action, change.action)
    return Line(
        seconds_or_none(change.at), change.kind, change.name, what, change.action, change.site, subject, details
    )


def label(name: str) -> str:
    """What a detail is of.

    >>> label("send_to_crm"), label("sales_1@example.com.forward_to"), label("conditions.max_size")
    ('send to crm', 'sales_1@example.com: forward to', 'conditions: max size')
    """
    of, dot, member = name.rpartition(".")
    if not dot or "@" in member:
        return name.replace("_", " ")
    return f"{of}: {member.replace('_', ' ')}"


def value(given: Any) -> str:
    """
    >>> value(None), value(True), value(["a", "b"]), value([]), value("…"), value(2.0)
    ('–', 'yes', 'a, b', 'none', '(not shown)', '2.0')
    >>> value({"before": None, "after": "x"}), value({"added": ["a", "b"], "removed": ["c"]}), value({"added": ["a"]})
    ('– → x', 'a, b added; c removed', 'a added')
    """
    match given:
        case {"before": before, "after": after}:
            return f"{value(before)} → {value(after)}"
        case dict() if given and given.keys() <= {"added", "removed"}:
            return "; ".join(f"{value(some)} {word}" for word, some in given.items())
        case None:
            return "–"
        case bool():
            return "yes" if given else "no"
        case "…":
            return "(not shown)"
        case list():
            return ", ".join(map(str, given)) or "none"
        case _:
            return str(given)


async def show_changes(view: View) -> web.Response:
    query = {"cursor": view.query("cursor")} if view.query("cursor") else {}
    page = await perform(view, OPERATIONS["GET /v1/changes"], query=query)
    return settings_page(
        view,
        "settings_changes.html",
        lines=[line(change) for change in page.items],
        next=page.next,
        first=not query,
    )


PAGES = (Page("GET", CHANGES, show_changes, Role.ADMIN),)
