"""The forms of a site as a whole: a new one, its settings, its source rules, its removal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from relay.core.channel import Channel
from webapi.auth import Role
from webapi.problems import Outdated, Problem
from webapi.site_models import SiteShown
from webapi.ui import forms, site_change, site_forms
from webapi.ui.forms import Errors, Shown
from webapi.ui.page import Page, View, perform, see_other
from webapi.ui.render import render
from webapi.ui.site_change import API, ONE, own, page_of, shown

_CREATE, _DELETE = API["POST", "/v1/sites"], API["DELETE", ONE]
_FIRST = site_forms.FIRST_TARGET
_ONLY_ALL = "only who sees all sites can make one: you would not see it"


async def new_site(view: View) -> web.StreamResponse:
    values = site_forms.NEW.filled({"tracking": True, "send_to_crm": True})
    values |= site_forms.NEW_TARGET.filled(site_forms.NEW_TARGET_VALUES, _FIRST)
    return _new(view, values)


async def make_site(view: View) -> web.StreamResponse:
    """A site with its first target; without an address it has none yet."""
    body: dict[str, Any] = {}
    try:
        body = site_forms.NEW.read(view.form)
        if body["name"] == "new":
            raise Problem(400, 'cannot be "new": this page has that name', field="name")
        if view.field(f"{_FIRST}address").strip():
            body["targets"] = [site_forms.target_of(site_forms.NEW_TARGET.read(view.form, _FIRST))]
        site: SiteShown = await perform(view, _CREATE, body=body)
    except Problem as problem:
        values = site_forms.NEW.typed(view.form) | site_forms.NEW_TARGET.typed(view.form, _FIRST)
        return _new(view, values, forms.errors_of(problem, values, body), problem.status)
    return see_other(page_of(site.name), "site_made")


def _new(view: View, values: Mapping[str, Shown], errors: Errors = forms.NONE, status: int = 200) -> web.StreamResponse:
    if view.caller.sites is not None:
        raise Problem(403, _ONLY_ALL)
    return render(view, "sites_new.html", status=status, values=values, errors=errors, first=_FIRST)


async def settings(view: View) -> web.StreamResponse:
    site = await shown(view)
    if site.declared:
        return see_other(page_of(site.name), "declared")
    return _settings(view, site)


async def change_settings(view: View) -> web.StreamResponse:
    site = await own(view)
    document = site_forms.definition(site)
    try:
        document |= site_forms.SETTINGS.read(view.form)
        await site_change.save(view, site, document)
    except Outdated as problem:  # not what was typed: saved again, it would undo what others have changed
        return _settings(view, await own(view), None, forms.errors_of(problem, ()), problem.status)
    except Problem as problem:
        errors = forms.errors_of(problem, site_forms.SETTINGS.fields, document)
        return _settings(view, site, site_change.typed(view, site_forms.SETTINGS), errors, problem.status)
    return see_other(page_of(site.name), "site_changed")


def _settings(
    view: View,
    site: SiteShown,
    values: Mapping[str, Shown] | None = None,
    errors: Errors = forms.NONE,
    status: int = 200,
) -> web.StreamResponse:
    """``values`` None: as the site is."""
    values = values or site_forms.SETTINGS.filled(site.model_dump(mode="json"))
    return render(view, "sites_settings.html", status=status, site=site, values=values, errors=errors)


async def rules(view: View) -> web.StreamResponse:
    """The rules in their order, and the form of one: a new one, or the one that ``rule`` names by its place."""
    site = await shown(view)
    if site.declared:
        return see_other(page_of(site.name), "declared")
    place = _place(view.query("rule"), site)
    values = {} if place is None else site.sources[place].model_dump(mode="json")
    return _rules(view, site, place, site_forms.RULE.filled(values))


async def change_rules(view: View) -> web.StreamResponse:
    """One rule of a form; without a place it is the last of them."""
    site = await own(view)
    document, place = site_forms.definition(site), _place(view.field("rule"), site)
    index = len(site.sources) if place is None else place
    try:
        document["sources"][index : index + 1] = [site_forms.RULE.read(view.form)]
        await site_change.save(view, site, document)
    except Outdated as problem:  # another rule may have the place now
        values = site_forms.RULE.filled({}) if view.field("rule") else site_forms.RULE.typed(view.form)
        return _rules(view, await own(view), None, values, forms.errors_of(problem, ()), problem.status)
    except Problem as problem:
        errors = forms.errors_of(problem, site_forms.RULE.fields, document, f"sources[{index}].")
        return _rules(view, site, place, site_forms.RULE.typed(view.form), errors, problem.status)
    return see_other(f"{page_of(site.name)}/sources", "site_changed")


async def order_rules(view: View) -> web.StreamResponse:
    """Take a rule out, or let it come before the one above it: the first that fits decides."""
    site = await own(view)
    site_change.check_edition(view, site)
    document, place = site_forms.definition(site), _place(view.field("rule"), site)
    if place is None:
        raise Problem(404, "no such rule")
    rule = document["sources"].pop(place)
    if view.field("action") == "up":
        document["sources"].insert(max(0, place - 1), rule)
    await site_change.save(view, site, document)
    return see_other(f"{page_of(site.name)}/sources", "site_changed")


def _rules(
    view: View,
    site: SiteShown,
    place: int | None,
    values: Mapping[str, Shown],
    errors: Errors = forms.NONE,
    status: int = 200,
) -> web.StreamResponse:
    return render(
        view,
        "sites_rules.html",
        status=status,
        site=site,
        place=place,
        rules=[(rule, site_forms.rule_in_words(rule)) for rule in site.sources],
        channels=[("", "campaign (unless it is one of these)"), *((each.value, each.value) for each in Channel)],
        values=values,
        errors=errors,
    )


def _place(text: str, site: SiteShown) -> int | None:
    known = text.isascii() and text.isdecimal() and len(text) < 5 and int(text) < len(site.sources)
    return int(text) if known else None


async def ask_to_remove(view: View) -> web.StreamResponse:
    site = await shown(view)
    return see_other(page_of(site.name), "declared") if site.declared else render(view, "sites_remove.html", site=site)


async def remove(view: View) -> web.StreamResponse:
    await perform(view, _DELETE, path={"name": view.path["name"]})
    return see_other("/ui/sites", "site_removed")


_SITE = "/ui/sites/{name}"
PAGES = (
    Page("GET", "/ui/sites/new", new_site, Role.ADMIN),
    Page("POST", "/ui/sites/new", make_site, Role.ADMIN),
    Page("GET", f"{_SITE}/settings", settings, Role.ADMIN),
    Page("POST", f"{_SITE}/settings", change_settings, Role.ADMIN),
    Page("GET", f"{_SITE}/sources", rules, Role.ADMIN),
    Page("POST", f"{_SITE}/sources", change_rules, Role.ADMIN),
    Page("POST", f"{_SITE}/sources/order", order_rules, Role.ADMIN),
    Page("GET", f"{_SITE}/remove", ask_to_remove, Role.ADMIN),
    Page("POST", f"{_SITE}/remove", remove, Role.ADMIN),
)
