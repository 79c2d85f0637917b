"""A site's targets: a new one, one with its pool, changes and additions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from aiohttp import web

from webapi.auth import Role
from webapi.problems import Outdated, Problem, not_found
from webapi.site_models import SiteShown, TargetShown
from webapi.ui import forms, site_change, site_forms
from webapi.ui.forms import Errors, Shown
from webapi.ui.page import Page, View, perform, see_other
from webapi.ui.render import render
from webapi.ui.site_change import API, ONE, Document, own, page_of, refuse_declared, shown

_GROW = API["POST", f"{ONE}/targets/{{address}}/pool"]

#: Pool addresses that the target's page lists; the page Addresses has all of them.
LISTED = 200


async def new_target(view: View) -> web.StreamResponse:
    site = await shown(view)
    if site.declared:
        return see_other(page_of(site.name), "declared")
    return _page(view, site, None, site_forms.NEW_TARGET.filled(site_forms.NEW_TARGET_VALUES))


async def add_target(view: View) -> web.StreamResponse:
    site = await own(view)
    sent: Document = {"targets": []}

    def add(document: Document) -> None:
        nonlocal sent
        sent = document
        document["targets"].append(site_forms.target_of(site_forms.NEW_TARGET.read(view.form)))

    try:
        await site_change.add(view, add)
    except Problem as problem:
        prefix = f"targets[{max(0, len(sent['targets']) - 1)}]."
        errors = forms.errors_of(problem, site_forms.NEW_TARGET.fields, sent, prefix)
        return _page(view, site, None, site_forms.NEW_TARGET.typed(view.form), errors, problem.status)
    return see_other(f"{page_of(site.name)}#targets", "target_added")


async def show_target(view: View) -> web.StreamResponse:
    site = await shown(view)
    return _target(view, site, _index(view, site))


def _target(
    view: View,
    site: SiteShown,
    index: int,
    values: Mapping[str, Shown] | None = None,
    errors: Errors = forms.NONE,
    status: int = 200,
) -> web.StreamResponse:
    """One that there is; ``values`` are what is not as it is."""
    target = site.targets[index]
    filled = site_forms.TARGET.filled(target.model_dump(mode="json"))
    return _page(view, site, target, filled | dict(values or {}), errors, status)


async def change_target(view: View) -> web.StreamResponse:
    site = await own(view)
    index = _index(view, site)
    document = site_forms.definition(site)
    before = document["targets"][index]
    try:
        document["targets"][index] = site_forms.target_of(site_forms.TARGET.read(view.form), before)
        await site_change.save(view, site, document)
    except Outdated as problem:  # not what was typed: saved again, it would undo what others have changed
        site = await own(view)
        return _target(view, site, _index(view, site), None, forms.errors_of(problem, ()), problem.status)
    except Problem as problem:
        errors = forms.errors_of(problem, site_forms.TARGET.fields, document, f"targets[{index}].")
        return _target(view, site, index, site_change.typed(view, site_forms.TARGET), errors, problem.status)
    return see_other(f"{page_of(site.name)}#targets", "site_changed")


async def remove_target(view: View) -> web.StreamResponse:
    """With the static addresses that lead to it: they would lead nowhere."""
    site = await own(view)
    document = site_forms.definition(site)
    gone = document["targets"].pop(_index(view, site))
    document["statics"] = [static for static in document["statics"] if static["target"] != gone["address"]]
    await site_change.save(view, site, document)
    return see_other(f"{page_of(site.name)}#targets", "target_removed")


async def add_to_pool(view: View) -> web.StreamResponse:
    """Addresses that are typed, or so many made-up ones."""
    site = await shown(view)
    index = _index(view, site)
    target = site.targets[index]
    body: dict[str, Any] = {}
    try:
        given = site_forms.ADDITION.read(view.form)
        body = {name: value for name, value in given.items() if value}
        await perform(view, _GROW, path={"name": site.name, "address": target.address}, body=body)
    except Problem as problem:
        errors = forms.errors_of(problem, site_forms.ADDITION.fields, body)
        return _target(view, site, index, site_forms.ADDITION.typed(view.form), errors, problem.status)
    return see_other(f"{page_of(site.name)}/targets/{quote(target.address, safe='')}#pool", "pool_grown")


def _page(
    view: View,
    site: SiteShown,
    target: TargetShown | None,
    values: Mapping[str, Shown],
    errors: Errors = forms.NONE,
    status: int = 200,
) -> web.StreamResponse:
    if target is None:
        refuse_declared(site)
    return render(
        view,
        "sites_target.html",
        status=status,
        site=site,
        target=target,
        statics=[static for static in site.statics if target is not None and static.target == target.address],
        listed=[] if target is None else target.pool[:LISTED],
        may_change=view.may(Role.ADMIN) and not site.declared,
        values=site_forms.ADDITION.filled({}) | dict(values),
        errors=errors,
    )


def _index(view: View, site: SiteShown) -> int:
    address = view.path["address"]
    found = next((index for index, target in enumerate(site.targets) if target.address == address), None)
    if found is None:
        raise not_found("target")
    return found


_TARGETS = "/ui/sites/{name}/targets"
PAGES = (
    Page("GET", f"{_TARGETS}/new", new_target, Role.ADMIN),
    Page("POST", f"{_TARGETS}/new", add_target, Role.ADMIN),
    Page("GET", f"{_TARGETS}/{{address}}", show_target),
    Page("POST", f"{_TARGETS}/{{address}}", change_target, Role.ADMIN),
    Page("POST", f"{_TARGETS}/{{address}}/remove", remove_target, Role.ADMIN),
    Page("POST", f"{_TARGETS}/{{address}}/pool", add_to_pool, Role.MANAGER),
)
