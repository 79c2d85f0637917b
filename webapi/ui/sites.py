"""Sites: the list, and a site at a glance with its switches, its tag, its addresses and its webhooks.

What is changed by a form of its own is in site_edit.py and site_targets.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from aiohttp import web

from relay.config import fields
from relay.store import figures
from relay.store.directory import SiteView
from webapi import hooks as hooks_api
from webapi.auth import Role, visible_site
from webapi.problems import Outdated, Problem
from webapi.script import PATH as SCRIPT_PATH
from webapi.seen import SIGHTS, Sight
from webapi.site_models import SiteShown
from webapi.ui import forms, hook_forms, site_change, site_edit, site_forms, site_targets
from webapi.ui.forms import Errors, Shown
from webapi.ui.hook_health import state_of
from webapi.ui.page import Page, View, perform, see_other
from webapi.ui.render import render
from webapi.ui.site_change import API, ONE, Document

_PATCH, _RETIRE = API["PATCH", ONE], API["DELETE", f"{ONE}/substitutes/{{address}}"]
_HOOK = next(each for each in hooks_api.OPERATIONS if each.action == "GET /v1/webhooks/{id}")


async def list_sites(view: View) -> web.StreamResponse:
    sights, reader = view.request.app[SIGHTS], view.context.store.reader
    seen_at = {}
    for site in view.sites:
        times = (sights.of(site.id).viewed_at, await figures.last_seen(reader, site.id))
        seen_at[site.id] = max((time for time in times if time is not None), default=None)
    return render(view, "sites.html", sites=view.sites, seen_at=seen_at, may_make=may_make(view))


def may_make(view: View) -> bool:
    """A site of one's own would not be seen by whoever sees some sites only."""
    return view.may(Role.ADMIN) and view.caller.sites is None


async def show_site(view: View) -> web.StreamResponse:
    return await site_page(view)


async def show_seen(view: View) -> web.StreamResponse:
    """The live check alone: what the page asks for until something is seen. By itself it is no page."""
    site = _site(view)
    if "HX-Request" not in view.request.headers:
        return see_other(page_of(view))
    return render(view, "sites_site.html", block="seen", site=site, **await _seen(view, site))


async def _seen(view: View, site: SiteView) -> dict[str, Any]:
    """What was last seen of the site's pages. Cheap: it is asked for every few seconds."""
    sight = view.request.app[SIGHTS].of(site.id)
    visited_at = await figures.last_seen(view.context.store.reader, site.id)
    return {"sight": sight, "visited_at": visited_at, "refused": _may_add(site, sight)}


async def site_page(
    view: View,
    *,
    errors: Errors = forms.NONE,
    values: Mapping[str, Shown] | None = None,
    labels: Mapping[str, str] | None = None,
    status: int = 200,
) -> web.StreamResponse:
    """A site at a glance. ``values``, ``labels`` (by address) and ``errors`` are of what was refused just now."""
    site = await site_change.shown(view)
    details = [await perform(view, _HOOK, path={"id": str(webhook.id)}) for webhook in _site(view).webhooks]
    return render(
        view,
        "sites_site.html",
        status=status,
        site=site,
        tag=tag_of(view, site),
        hooks=[(detail, state_of(detail)) for detail in details],
        targets=[(target.address, target.address) for target in site.targets],
        conditions=hook_forms.site_conditions(site),
        values=values or site_forms.STATIC.filled({}),
        labels=labels or {},
        errors=errors,
        **await _seen(view, _site(view)),
    )


def tag_of(view: View, site: SiteShown) -> str:
    """The script tag of a site's pages; under the script's second name where it has one."""
    http = view.context.http
    path = http.script_path or SCRIPT_PATH
    return f'<script async src="{view.context.public_url}{path}?{urlencode({"site": site.key})}"></script>'


def _may_add(site: SiteView, sight: Sight) -> str | None:
    """The refused origin, where it could be one of the site's: what a client has written may be anything."""
    if sight.refused_at is None:
        return None
    try:
        origin = fields.origin(sight.refused_origin)
    except ValueError:
        return None
    return None if origin in site.origins else origin


def _site(view: View) -> SiteView:
    return visible_site(view.context.store, view.caller, view.path["name"])


def _path(view: View) -> dict[str, str]:
    return {"name": view.path["name"]}


def page_of(view: View) -> str:
    """The path of the site's page."""
    return site_change.page_of(view.path["name"])


async def switch(view: View) -> web.StreamResponse:
    """One switch, as the field of its name says."""
    body = {name: view.field(name) == "on" for name in ("tracking", "send_to_crm") if view.field(name)}
    await perform(view, _PATCH, path=_path(view), body=body)
    return see_other(page_of(view), "site_switched")


async def add_origin(view: View) -> web.StreamResponse:
    sent: Document = {}

    def add(document: Document) -> None:
        nonlocal sent
        sent = document
        if view.field("origin") not in document["origins"]:  # somebody may have added the same meanwhile
            document["origins"].append(view.field("origin"))

    try:
        await site_change.add(view, add)
    except Problem as problem:
        return await site_page(view, errors=forms.errors_of(problem, (), sent), status=problem.status)
    return see_other(page_of(view), "site_changed")


async def add_static(view: View) -> web.StreamResponse:
    sent: Document = {"statics": []}

    def add(document: Document) -> None:
        nonlocal sent
        sent = document
        document["statics"].append(site_forms.STATIC.read(view.form))

    try:
        await site_change.add(view, add)
    except Problem as problem:
        place = max(0, len(sent["statics"]) - 1)
        return await site_page(
            view,
            values=site_forms.STATIC.typed(view.form),
            errors=forms.errors_of(problem, site_forms.STATIC.fields, sent, f"statics[{place}]."),
            status=problem.status,
        )
    return see_other(f"{page_of(view)}#statics", "static_added")


async def label_static(view: View) -> web.StreamResponse:
    """Another label for a static address."""
    site = await site_change.own(view)
    document = site_forms.definition(site)
    address, label = view.path["address"], view.field("label").strip()
    found = next((static for static in document["statics"] if static["address"] == address), None)
    if found is None:
        raise Problem(404, "no such static address")
    found["label"] = label
    try:
        await site_change.save(view, site, document)
    except Problem as problem:
        labels = {} if isinstance(problem, Outdated) else {address: label}  # saved again, it would undo another's
        errors = forms.errors_of(problem, (), document)
        return await site_page(view, errors=errors, labels=labels, status=problem.status)
    return see_other(f"{page_of(view)}#statics", "site_changed")


async def retire(view: View) -> web.StreamResponse:
    """Take a pool or static address out of use."""
    address = view.path["address"]
    await perform(view, _RETIRE, path=_path(view) | {"address": address})
    target: Any = view.field("target")
    back = f"/targets/{quote(target, safe='')}#pool" if target else "#statics"
    return see_other(f"{page_of(view)}{back}", "address_retired")


_SITE = "/ui/sites/{name}"
PAGES = (
    Page("GET", "/ui/sites", list_sites),
    *site_edit.PAGES,  # first: "new" is no site's page
    Page("GET", _SITE, show_site),
    Page("GET", f"{_SITE}/seen", show_seen),
    Page("POST", f"{_SITE}/switch", switch, Role.MANAGER),
    Page("POST", f"{_SITE}/origins", add_origin, Role.ADMIN),
    Page("POST", f"{_SITE}/statics", add_static, Role.ADMIN),
    Page("POST", f"{_SITE}/statics/{{address}}", label_static, Role.ADMIN),
    Page("POST", f"{_SITE}/substitutes/{{address}}/retire", retire, Role.ADMIN),
    *site_targets.PAGES,
)
