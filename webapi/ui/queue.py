"""Queue: what waits to be forwarded and what is held, why and until when; retry and drop."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from aiohttp import web

from relay.core.model import DeliveryState
from relay.store import queue_view
from relay.store.queue_view import Group, QueueFilter
from webapi.auth import Role
from webapi.problems import Problem
from webapi.queue import DROP, MOST_NAMED, RETRY, cursor_of, narrowed, read_cursor
from webapi.ui import reasons
from webapi.ui.page import Page, View, perform, see_other
from webapi.ui.render import render
from webapi.values import LONGEST_SENDER

PATH = "/ui/queue"
#: Deliveries of one page, and of each kind where all is shown.
PAGE = 50
FIRST = 20
#: Deliveries from which on they are counted by destination.
MANY = 20
_WAITING = frozenset((DeliveryState.QUEUED, DeliveryState.DEFERRED))
#: What may be asked for, and the words for it.
SHOWN = {
    "": ("Everything", QueueFilter().states),
    "held": ("Held", frozenset((DeliveryState.FAILED,))),
    "waiting": ("Waiting", _WAITING),
    "deferred": ("Waiting, tried before", frozenset((DeliveryState.DEFERRED,))),
}


@dataclass(frozen=True, slots=True)
class Asked:
    """The filters, as the address bar has them; ``cursor`` where a page begins."""

    site: str = ""
    show: str = ""
    destination: str = ""
    sender: str = ""
    cursor: str = ""

    def url(self, **changes: str) -> str:
        """Where the same is shown, but for ``changes``; from its first page unless they say otherwise."""
        other = replace(self, **{"cursor": "", **changes})
        given = {name: getattr(other, name) for name in Asked.__slots__ if getattr(other, name)}
        return PATH + (f"?{urlencode(given)}" if given else "")

    @property
    def narrow(self) -> bool:
        return bool(self.site or self.destination or self.sender)

    @classmethod
    def of(cls, fields: dict[str, str]) -> Asked:
        read = {name: fields.get(name, "")[:LONGEST_SENDER].replace("\0", "") for name in cls.__slots__}
        return cls(**read | {"show": read["show"] if read["show"] in SHOWN else ""})


@dataclass(frozen=True, slots=True)
class Part:
    """What waits, or what is held: ``rows`` of it and the page after them; ``group`` counts all of it."""

    held: bool
    shown: bool
    group: Group
    rows: tuple[dict[str, Any], ...]
    next_url: str
    retry: dict[str, str]  # the fields that mean all of it
    counted: bool  # whether to show it by destination


async def show(view: View) -> web.Response:
    asked = Asked.of(dict(view.request.query))
    wanted = _wanted(view, asked)
    held, waiting, posts = await asyncio.gather(
        _part(view, asked, wanted, True), _part(view, asked, wanted, False), _posts(view)
    )
    return render(
        view,
        "queue.html",
        asked=asked,
        shown=SHOWN,
        sections=[part for part in (held, waiting) if part.shown],
        totals={True: held.group.count, False: waiting.group.count},
        posts=posts,
        reason=reasons.reason,
        held_reason=reasons.held,
    )


def _is_shown(asked: Asked, held: bool) -> bool:
    return asked.show in (("", "held") if held else ("", "waiting", "deferred"))


def _wanted(view: View, asked: Asked) -> QueueFilter:
    """Raises Problem 404 for a site that is not there to be seen."""
    return narrowed(
        view.context.store, view.caller, asked.site or None, None, asked.destination or None, asked.sender or None
    )


async def _part(view: View, asked: Asked, wanted: QueueFilter, held: bool) -> Part:
    reader = view.context.store.reader
    alone = asked.show != ""
    limit = PAGE if alone else FIRST
    states = SHOWN["held" if held else asked.show or "waiting"][1]
    after = _after(asked.cursor) if alone else None
    group = await queue_view.summary(reader, held, wanted)
    shown = _is_shown(asked, held)
    rows: tuple[dict[str, Any], ...] = ()
    if shown and group.count:
        rows = await queue_view.listed(reader, replace(wanted, states=states), limit + 1, after, newest=held)
    more = len(rows) > limit
    rows = rows[:limit]
    show_ = asked.show or ("held" if held else "waiting")
    return Part(
        held=held,
        shown=shown,
        group=group,
        rows=rows,
        next_url=asked.url(show=show_, cursor=cursor_of(rows[-1])) if more else "",
        retry={"all": "1", "state": "failed" if held else "deferred"}
        | {name: value for name in ("site", "destination", "sender") if (value := getattr(asked, name))},
        counted=group.count > MANY and not asked.destination,
    )


def _after(cursor: str) -> queue_view.Place | None:
    try:
        return read_cursor(cursor) if cursor else None
    except ValueError:
        raise Problem(400, "this page of the queue is not there: begin at its first one", field="cursor") from None


async def _posts(view: View) -> list[dict[str, Any]]:
    """What waits for webhooks, the fullest first."""
    hooks = {hook.id: (site.name, hook) for site in view.sites for hook in site.webhooks}
    waiting = await queue_view.posts_waiting(view.context.store.reader, list(hooks))
    found = [
        {
            "id": id_,
            "site": hooks[id_][0],
            "host": urlsplit(hooks[id_][1].url).hostname or "",
            "enabled": hooks[id_][1].enabled,
            "count": count,
            "next_at": next_at,
        }
        for id_, (count, next_at) in waiting.items()
    ]
    return sorted(found, key=lambda one: -one["count"])


async def retry(view: View) -> web.Response:
    """Those that are ticked, the one whose button it was, or all that fit."""
    back = _back(view)
    if view.field("all"):
        given = {name: value for name in ("site", "state", "destination", "sender") if (value := view.field(name))}
        done = await perform(view, RETRY, body={"all": True, **given})
        return see_other(back, "retried" if done.changed else "retried_none")
    named = _named(view)
    if not named:
        return see_other(back, "none_selected")
    done = await perform(view, RETRY, body={"deliveries": named})
    return see_other(back, "retried_some" if done.left else "retried")


async def drop(view: View) -> web.Response:
    """First what it would mean, then, when it is confirmed, do it."""
    back, named = _back(view), _named(view)
    if not named:
        return see_other(back, "none_selected")
    if view.field("confirmed"):
        done = await perform(view, DROP, body={"deliveries": named})
        return see_other(back, "dropped_some" if done.left else "dropped")
    ids = tuple(int(one) for one in named if one.isascii() and one.isdecimal() and len(one) < 19)
    wanted = QueueFilter(view.caller.sites, ids=ids)
    rows = await queue_view.listed(view.context.store.reader, wanted, MOST_NAMED)
    if not rows:
        return see_other(back, "gone")
    return render(view, "queue_drop.html", rows=rows, back=back)


def _named(view: View) -> list[str]:
    """The delivery of the button that was pressed; without one, those that are ticked."""
    one = view.field("only")
    return [one] if one else list(dict.fromkeys(view.form.get("delivery", [])))[:MOST_NAMED]


def _back(view: View) -> str:
    """The part of the queue that the form was on: built anew, so that it leads nowhere else."""
    fields = parse_qs(view.field("back").partition("?")[2])
    return Asked.of({name: values[-1] for name, values in fields.items()}).url(
        cursor=fields.get("cursor", [""])[-1][:LONGEST_SENDER]
    )


PAGES = (
    Page("GET", PATH, show),
    Page("POST", f"{PATH}/retry", retry, Role.ADMIN),
    Page("POST", f"{PATH}/drop", drop, Role.ADMIN),
)
