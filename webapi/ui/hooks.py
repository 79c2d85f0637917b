"""Webhooks: the list over all sites, and one with its delivery log, its test and its replays."""

from __future__ import annotations

import hashlib
import json
from typing import Any
from urllib.parse import urlencode

from aiohttp import web

from relay.store import post_log
from webapi import hook_log
from webapi import hooks as hooks_api
from webapi import sites as sites_api
from webapi.auth import Role
from webapi.hook_models import PostedDetail, PostedPage, Replaying, Tested, WebhookDetail
from webapi.problems import Problem
from webapi.site_models import SiteShown
from webapi.ui import forms, hook_edit, hook_forms
from webapi.ui.forms import Errors
from webapi.ui.hook_health import health, state_of
from webapi.ui.page import Page, View, perform, see_other
from webapi.ui.render import render
from webapi.values import seconds_or_none

_API = {(each.method, each.path): each for each in (*hooks_api.OPERATIONS, *hook_log.OPERATIONS, *sites_api.OPERATIONS)}
_ONE = "/v1/webhooks/{id}"
_SHOW, _PATCH, _ENABLE = _API["GET", _ONE], _API["PATCH", _ONE], _API["POST", f"{_ONE}/enable"]
_LOG, _POST = _API["GET", f"{_ONE}/deliveries"], _API["GET", f"{_ONE}/deliveries/{{post}}"]
_TEST, _REPLAY = _API["POST", f"{_ONE}/test"], _API["POST", f"{_ONE}/replay"]
_SITE = _API["GET", "/v1/sites/{name}"]

#: Posts on a page of the log, and characters of a request's body that are shown.
LISTED = 50
BODY = 100_000
STATES = ("failed", "waiting", "delivered", "withheld")


async def list_webhooks(view: View) -> web.StreamResponse:
    reader = view.context.store.reader
    rows = []
    for site in view.sites:
        for webhook in site.webhooks:
            detail: WebhookDetail = await perform(view, _SHOW, path={"id": str(webhook.id)})
            rows.append((detail, state_of(detail), health(await post_log.recent(reader, webhook.id))))
    return render(
        view,
        "hooks.html",
        rows=rows,
        sites=view.sites,
        may_make=view.may(Role.ADMIN) and any(not site.declared for site in view.sites),
    )


async def show_webhook(view: View) -> web.StreamResponse:
    return await _page(view)


async def show_log(view: View) -> web.StreamResponse:
    """The log and the figures above it, where they are others than the page has: what is read is left in peace."""
    if "HX-Request" not in view.request.headers:  # by itself it is no page
        return see_other(_own(view))
    return await _page(view, block="now")


async def _page(
    view: View,
    *,
    trial: Tested | None = None,
    busy: str | None = None,
    errors: Errors = forms.NONE,
    status: int = 200,
    block: str | None = None,
) -> web.StreamResponse:
    webhook: WebhookDetail = await perform(view, _SHOW, path=_path(view))
    site: SiteShown = await perform(view, _SITE, path={"name": webhook.site})
    state, cursor = view.query("state"), view.query("cursor")
    wanted = {"limit": str(LISTED)} | ({"state": state} if state else {}) | ({"cursor": cursor} if cursor else {})
    log: PostedPage = await perform(view, _LOG, path=_path(view), query=wanted)
    edition = _edition(webhook, log)
    if block is not None and view.query("was") == edition:
        return web.Response(status=204, headers={"Cache-Control": "no-store"})
    chosen = await _chosen(view)
    return render(
        view,
        "hooks_hook.html",
        status=status,
        block=block,
        webhook=webhook,
        site=site,
        state=state_of(webhook),
        health=health(await post_log.recent(view.context.store.reader, int(webhook.id))),
        conditions=hook_forms.conditions(webhook.conditions.model_dump(mode="json"), site),
        log=log,
        edition=edition,
        older=None if log.next is None else _query(view, cursor=log.next, post=""),
        filters=[(name, _query(view, state=name, cursor="", post="")) for name in ("", *STATES)],
        filtered=state,
        first=not cursor,
        live=not cursor and chosen["post"] is None,
        at=seconds_or_none,
        query=_query(view, post=""),
        trial=trial,
        busy=busy,
        trial_body=None if trial is None or trial.request is None else readable(trial.request.body),
        values=hook_forms.REPLAY.typed(view.form) if errors else hook_forms.REPLAY.filled({"what": "failed"}),
        errors=errors,
        replayed=_count(view.query("replayed")),
        **chosen,
    )


async def _chosen(view: View) -> dict[str, Any]:
    """The post that the query names, with its request's body for people."""
    post: PostedDetail | None = None
    if view.query("post"):
        post = await perform(view, _POST, path=_path(view) | {"post": view.query("post")})
    return {"post": post, "body": None if post is None or post.request is None else readable(post.request.body)}


def _edition(webhook: WebhookDetail, log: PostedPage) -> str:
    """What a page shows of them, in short."""
    return hashlib.sha256((webhook.model_dump_json() + log.model_dump_json()).encode()).hexdigest()[:16]


def _query(view: View, **changes: str) -> str:
    """The page's own query with changes; what is empty is left out."""
    now = {name: view.query(name) for name in ("state", "cursor", "post")} | changes
    return urlencode({name: value for name, value in now.items() if value})


def _count(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None


def readable(body: str) -> str:
    """A request's body, its JSON with a line for each member; of a long one the beginning."""
    try:
        body = json.dumps(json.loads(body), ensure_ascii=False, indent=2)
    except ValueError:
        pass  # a template may make anything
    return body if len(body) <= BODY else f"{body[:BODY]}\n…"


async def test(view: View) -> web.StreamResponse:
    """Post the made-up letter. What came of it is told by this page alone: nothing of it is stored."""
    try:
        tested: Tested = await perform(view, _TEST, path=_path(view))
    except Problem as problem:
        if problem.status != 429 or "HX-Request" not in view.request.headers:
            raise
        return await _page(view, busy=problem.detail)  # htmx shows what comes with 200 only
    return await _page(view, trial=tested)


async def switch(view: View) -> web.StreamResponse:
    if view.field("enabled") == "on":
        await perform(view, _ENABLE, path=_path(view))
    else:
        await perform(view, _PATCH, path=_path(view), body={"enabled": False})
    return see_other(_own(view), "hook_switched")


async def replay(view: View) -> web.StreamResponse:
    """One post, all that have failed, or the letters of a time."""
    try:
        given = hook_forms.REPLAY.read(view.form)
        body: dict[str, Any] = {"reattribute": given["reattribute"]}
        if given["what"] == "post":
            body["posts"] = [view.field("post")]
        elif given["what"] == "failed":
            body["failed"] = True
        else:
            body |= {name: given[name] for name in ("since", "until") if given[name]}
            if len(body) == 1:
                raise Problem(400, "give a time", field="since")
        found: Replaying = await perform(view, _REPLAY, path=_path(view), body=body)
    except Problem as problem:
        errors = forms.errors_of(problem, hook_forms.REPLAY.fields)
        return await _page(view, errors=errors, status=problem.status)
    back = f"&post={view.field('post')}" if view.field("what") == "post" else ""
    return see_other(f"{_own(view)}?replayed={found.posts}{back}")


def _path(view: View) -> dict[str, str]:
    return {"id": view.path["id"]}


def _own(view: View) -> str:
    return f"/ui/webhooks/{view.path['id']}"


_HOOK = "/ui/webhooks/{id}"
PAGES = (
    Page("GET", "/ui/webhooks", list_webhooks),
    *hook_edit.PAGES,  # first: "new" is no webhook's page
    Page("GET", _HOOK, show_webhook),
    Page("GET", f"{_HOOK}/log", show_log),
    Page("POST", f"{_HOOK}/test", test, Role.MANAGER),
    Page("POST", f"{_HOOK}/replay", replay, Role.MANAGER),
    Page("POST", f"{_HOOK}/switch", switch, Role.ADMIN),
)
