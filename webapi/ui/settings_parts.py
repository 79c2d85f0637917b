"""What the pages of Settings share: their menu, the API's operations that they perform, rights out of a form."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from webapi import blocked, messages, people
from webapi.operation import Operation
from webapi.problems import Problem
from webapi.ui.page import View
from webapi.ui.render import render
from webapi.ui.session import ROOT

SETTINGS = f"{ROOT}/settings"
OPERATIONS: dict[str, Operation] = {
    operation.action: operation for operation in (*people.OPERATIONS, *blocked.OPERATIONS, *messages.OPERATIONS)
}
#: Roles as a form offers them, the least first.
ROLES = (
    ("viewer", "Viewer", "sees history, sources, addresses and queue"),
    ("manager", "Manager", "also replays, sets deals, blocks senders, switches sites and adds addresses"),
    ("admin", "Administrator", "also defines sites and webhooks, drops mail and erases; of all sites: everything here"),
)
#: What a form can be given wrongly: shown beside the field and not as a page of its own.
FORM_PROBLEMS = (400, 404, 409)


def settings_page(view: View, template: str, /, *, status: int = 200, **values: Any) -> web.Response:
    return render(view, template, status=status, tabs=_tabs(view), **values)


def _tabs(view: View) -> list[tuple[str, str]]:
    """The pages that this user may open."""
    tabs = [(SETTINGS, "Your account")]
    if view.is_operator:
        tabs += [(f"{SETTINGS}/users", "Users"), (f"{SETTINGS}/tokens", "API tokens")]
    if view.is_admin:
        tabs += [(f"{SETTINGS}/senders", "Senders"), (f"{SETTINGS}/retention", "Retention")]
    if view.is_operator:
        tabs.append((f"{SETTINGS}/keys", "Keys"))
    if view.is_admin:
        tabs.append((f"{SETTINGS}/changes", "Changes"))
    return tabs


def need_operator(view: View) -> None:
    """Raises Problem 403 for who is not an administrator of all sites."""
    if not view.is_operator:
        raise Problem(403, "this takes an administrator of all sites")


def sites_of(view: View) -> list[str] | None:
    """The sites that a form gives rights for, None for all. What was not chosen is never taken for all."""
    scope, chosen = view.field("scope"), view.form.get("site", [])
    if scope == "all":
        return None
    if scope != "some" or not chosen:
        raise Problem(400, "choose all sites, or at least one", field="sites")
    return list(chosen)


def rights_of(view: View) -> dict[str, Any]:
    return {"role": view.field("role"), "sites": sites_of(view)}


def given_again(view: View) -> dict[str, Any]:
    """What a form of name and rights was sent with, as it is shown again."""
    sites = None if view.field("scope") == "all" else view.form.get("site", [])
    return {"name": view.field("name")[:200], "role": view.field("role"), "sites": sites}


#: The same of a form that nobody has sent yet.
NOBODY: dict[str, Any] = {"name": "", "role": "viewer", "sites": None}


def form_page(
    view: View, template: str, problem: Problem | None, given: dict[str, Any], /, **values: Any
) -> web.Response:
    """A page with a form of rights, and with the problem that it was answered with."""
    status = problem.status if problem else 200
    return settings_page(view, template, status=status, roles=ROLES, given=given, problem=problem, **values)


def shown_again(problem: Problem) -> Problem:
    """The problem, when its form can be shown again with it; raised otherwise."""
    if problem.status not in FORM_PROBLEMS:
        raise problem
    return problem
