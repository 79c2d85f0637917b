"""Everybody's own account: the password, and where one is logged in."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from aiohttp import web

from relay.agents import describe
from relay.store import users
from relay.store.changes import Change, note
from relay.store.engine import Tx
from webapi.context import client_of
from webapi.passwords import weakness
from webapi.problems import not_found
from webapi.ui import session
from webapi.ui.login import DOOR
from webapi.ui.page import Page, View, see_other
from webapi.ui.settings_parts import SETTINGS, settings_page
from webapi.values import row_id


async def show_account(view: View) -> web.Response:
    return await _account(view, {})


async def _account(view: View, errors: Mapping[str, str], status: int = 200) -> web.Response:
    found = await users.sessions_of(view.context.store.reader, view.visitor.session.user.id, view.context.clock())
    opened = [(one, _browser(one.user_agent)) for one in found]
    return settings_page(
        view,
        "settings_account.html",
        status=status,
        user=view.visitor.session.user,
        current=view.visitor.session.id,
        opened=opened,
        errors=errors,
    )


def _browser(user_agent: str) -> str:
    """ "Firefox on Linux", as far as it says."""
    agent = describe(user_agent)
    return f"{agent.browser or 'A program'} on {agent.os or 'an unknown system'}"


async def change_password(view: View) -> web.StreamResponse:
    """Whoever sits at somebody's open browser must know the password, and may guess no oftener than at the login.

    Every session ends and this browser gets a new one: what somebody has copied of the old is worth nothing.
    """
    context, user, door = view.context, view.visitor.session.user, view.request.app[DOOR]
    client, now = client_of(view.request), context.clock()
    current, password, again = (view.field(name) for name in ("current", "password", "again"))
    errors = {}
    weak = weakness(password, user.name)
    if weak is not None:
        errors["password"] = weak
    elif password != again:
        errors["again"] = "is not the same"
    if errors:
        return await _account(view, errors, 400)
    door.knock(user.name, client, now)
    _, stored = await users.password(context.store.reader, user.name) or (user, None)
    if not await door.passwords.fits(stored, current) or stored is None:
        return await _account(view, {"current": "is wrong"}, 403)
    door.was_right(user.name, client, now)
    hashed = await door.passwords.hash(password)
    change = Change(now, "user", user.name, f"POST {SETTINGS}/password")

    def change_it(tx: Tx) -> None:
        users.still_has(tx, user.id, stored)
        users.set_password(tx, user.id, hashed)
        note(tx, change)

    try:
        await context.store.write(change_it)
    except users.PasswordChanged:
        return await _account(view, {"current": "is wrong"}, 403)
    response = see_other(SETTINGS, "password")
    with suppress(users.PasswordChanged):  # once more: it goes to the login
        await session.log_in(view.request, response, user.id, hashed)
    return response


async def end_sessions(view: View) -> web.StreamResponse:
    """One of the user's own, or all but this one."""
    user, kept = view.visitor.session.user.id, view.visitor.token_hash
    if not view.field("session"):
        await view.context.store.write(lambda tx: users.end_others(tx, user, kept))
        return see_other(SETTINGS, "sessions")
    number = row_id(view.field("session"), "session")
    if not await view.context.store.write(lambda tx: users.end_own(tx, user, number)):
        raise not_found("session")
    return see_other(SETTINGS, "session")


PAGES = (
    Page("GET", SETTINGS, show_account),
    Page("POST", f"{SETTINGS}/password", change_password),
    Page("POST", f"{SETTINGS}/sessions", end_sessions),
)
