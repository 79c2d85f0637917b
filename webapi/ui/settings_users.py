"""Who can log in: inviting, rights, new links, removing."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from relay.store.users import INVITED
from webapi.auth import Role
from webapi.problems import Problem, not_found
from webapi.ui.page import Page, View, perform, see_other
from webapi.ui.settings_parts import (
    NOBODY,
    OPERATIONS,
    SETTINGS,
    form_page,
    given_again,
    rights_of,
    settings_page,
    shown_again,
)
from webapi.user_models import UserShown, folded_name
from webapi.values import seconds_or_none

USERS = f"{SETTINGS}/users"
_USER = "/v1/users/{name}"


async def _listed(view: View) -> list[UserShown]:
    found = await perform(view, OPERATIONS["GET /v1/users"])
    items: list[UserShown] = found.items
    return items


async def show_users(view: View) -> web.Response:
    return await _users(view)


async def _users(view: View, problem: Problem | None = None) -> web.Response:
    """With ``problem`` the form as it was sent."""
    listed = [(user, seconds_or_none(user.created_at), seconds_or_none(user.seen_at)) for user in await _listed(view)]
    return form_page(view, "settings_users.html", problem, given_again(view) if problem else NOBODY, users=listed)


async def invite(view: View) -> web.Response:
    try:
        made = await perform(view, OPERATIONS["POST /v1/users"], body={"name": view.field("name"), **rights_of(view)})
    except Problem as problem:
        return await _users(view, shown_again(problem))
    return _link(view, made)


async def show_user(view: View) -> web.Response:
    return await _user(view)


async def _user(view: View, problem: Problem | None = None) -> web.Response:
    name = folded_name(view.path["name"])
    user = next((one for one in await _listed(view) if one.name == name), None)
    if user is None:
        raise not_found("user")
    given = given_again(view) if problem and "role" in view.form else {"role": user.role, "sites": user.sites}
    known = {site.name for site in view.sites}
    return form_page(
        view,
        "settings_user.html",
        problem,
        given,
        user=user,
        created_at=seconds_or_none(user.created_at),
        seen_at=seconds_or_none(user.seen_at),
        gone=[site for site in user.sites or () if site not in known],
    )


async def change(view: View) -> web.Response:
    try:
        await perform(view, OPERATIONS[f"PUT {_USER}"], path={"name": view.path["name"]}, body=rights_of(view))
    except Problem as problem:
        return await _user(view, shown_again(problem))
    return see_other(USERS, "saved")


async def new_link(view: View) -> web.Response:
    made = await perform(view, OPERATIONS[f"POST {_USER}/invitation"], path={"name": view.path["name"]})
    return _link(view, made)


async def remove(view: View) -> web.Response:
    try:
        await perform(view, OPERATIONS[f"DELETE {_USER}"], path={"name": view.path["name"]})
    except Problem as problem:
        return await _user(view, shown_again(problem))
    return see_other(USERS, "user_removed")


def _link(view: View, made: Any) -> web.Response:
    """The one-time link is on this page and nowhere else: no address has it, nothing keeps it."""
    return settings_page(view, "settings_link.html", made=made, until=view.context.clock() + INVITED)


PAGES = (
    Page("GET", USERS, show_users, Role.ADMIN),
    Page("POST", USERS, invite, Role.ADMIN),
    Page("GET", f"{USERS}/{{name}}", show_user, Role.ADMIN),
    Page("POST", f"{USERS}/{{name}}", change, Role.ADMIN),
    Page("POST", f"{USERS}/{{name}}/invitation", new_link, Role.ADMIN),
    Page("POST", f"{USERS}/{{name}}/remove", remove, Role.ADMIN),
)
