"""Logging in and out, and the one-time links by which a password is chosen."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

from aiohttp import web

from relay.config.models import Limits
from relay.secrets import token_hash
from relay.store import users
from relay.store.changes import Change, note
from relay.store.engine import Tx
from webapi.context import CONTEXT, Client, client_of
from webapi.limits import Rate
from webapi.passwords import LONGEST, Passwords, weakness
from webapi.problems import too_many
from webapi.ui import session
from webapi.ui.page import Page, View, read_form, see_other
from webapi.ui.render import render
from webapi.ui.session import ROOT, safe_next
from webapi.user_models import USER_NAME, folded_name

#: Wrong passwords for one user a minute, from wherever they come: guessing from many addresses is slow, too.
FAILURES_PER_USER = 20
#: Users' networks that are remembered; the ones longest unused are forgotten.
KNOWN = 10_000


@dataclass(slots=True)
class Door:
    """What stands between a stranger and the pages: rates of wrong passwords, by address and by user."""

    by_address: Rate
    by_user: Rate = field(default_factory=lambda: Rate(FAILURES_PER_USER))
    known: OrderedDict[tuple[str, str], None] = field(default_factory=OrderedDict)
    passwords: Passwords = field(default_factory=Passwords)

    @classmethod
    def of(cls, limits: Limits) -> Self:
        return cls(Rate(limits.login_failures_per_address_per_minute))

    def knock(self, name: str, client: Client, now: float) -> None:
        """Take one try at a user's password; raises Problem 429 when there were too many wrong ones.

        Before the hash is made: it takes a while, in which others could come in at the same time.
        """
        user = self._key(name, client)
        wait = self.by_user.wait(user, now)
        if not client.exempt:
            wait = max(wait, self.by_address.wait(client.bucket, now))
        if wait:
            raise too_many(wait, "wrong passwords")
        self.by_user.take(user, now)
        if not client.exempt:
            self.by_address.take(client.bucket, now)

    def was_right(self, name: str, client: Client, now: float) -> None:
        """Give back what a right password has taken."""
        self.by_user.give_back(self._key(name, client), now)
        self.known[name, client.bucket] = None
        self.known.move_to_end((name, client.bucket))
        if len(self.known) > KNOWN:
            self.known.popitem(last=False)
        if not client.exempt:
            self.by_address.give_back(client.bucket, now)

    def _key(self, name: str, client: Client) -> str:
        """Where a user has logged in from, nobody else's guesses count: else anybody could keep the user out."""
        return f"{name} {client.bucket}" if (name, client.bucket) in self.known else name


DOOR = web.AppKey("door", Door)


async def show_login(request: web.Request) -> web.Response:
    target = safe_next(request.query.get("next", ""))
    if await session.visitor(request) is not None:
        return see_other(target)
    return render(None, "login.html", next=target, name="", error=None)


async def log_in(request: web.Request) -> web.StreamResponse:
    """One answer for a wrong name and a wrong password, after the same time."""
    form = await read_form(request)
    context, door, client = request.app[CONTEXT], request.app[DOOR], client_of(request)
    given, password, target = (form.get(name, [""])[-1] for name in ("name", "password", "next"))
    name, now = folded_name(given[:100]), context.clock()
    door.knock(name, client, now)
    user, stored = await users.password(context.store.reader, name) or (None, None)
    response = see_other(safe_next(target))
    if await door.passwords.fits(stored, password) and user is not None and stored is not None:
        with suppress(users.PasswordChanged):
            await session.log_in(request, response, user.id, stored)
            door.was_right(name, client, now)
            return response
    return render(
        None, "login.html", status=403, next=safe_next(target), name=given[:100], error="Wrong name or password."
    )


async def log_out(view: View) -> web.StreamResponse:
    response = see_other(f"{ROOT}/login")
    await session.log_out(view.request, response, view.visitor.token_hash)
    return response


async def show_welcome(request: web.Request) -> web.Response:
    """Nothing is used up by looking: mail programs open links to show what is behind them."""
    invited = await _invited(request)
    if invited is None:
        return render(None, "link_over.html", status=404)
    return render(None, "welcome.html", name=invited[0], first=invited[0] is None, given="", errors={})


async def welcome(request: web.Request) -> web.StreamResponse:
    form = await read_form(request)
    context, door = request.app[CONTEXT], request.app[DOOR]
    invited = await _invited(request)
    if invited is None:
        return render(None, "link_over.html", status=404)
    given = form.get("name", [""])[-1]
    name = invited[0] or folded_name(given)
    errors = _wrong(name, *(form.get(field, [""])[-1] for field in ("password", "again")))
    if errors:
        return render(
            None,
            "welcome.html",
            status=400,
            name=invited[0],
            first=invited[0] is None,
            given=given[:100],
            errors=errors,
        )
    hashed = await door.passwords.hash(form["password"][-1])
    link, now = token_hash(request.match_info["link"]), context.clock()

    def accept(tx: Tx) -> users.User | None:
        user = users.accept(tx, link, name, hashed, now)
        if user is not None:
            note(tx, Change(now, "user", user.name, "POST /ui/welcome", subject=user.name))
        return user

    user = await context.store.write(accept)
    if user is None:
        return render(None, "link_over.html", status=404)
    response = see_other(f"{ROOT}/history")
    with suppress(users.PasswordChanged):  # once more: it goes to the login
        await session.log_in(request, response, user.id, hashed)
    return response


def _wrong(name: str, password: str, again: str) -> dict[str, str]:
    """What is wrong with which field."""
    errors = {}
    if not USER_NAME.fullmatch(name):
        errors["name"] = "letters, digits and . _ - @ +, at most 64, beginning with a letter or digit"
    weak = weakness(password, name)
    if weak is not None:
        errors["password"] = weak
    elif password != again:
        errors["again"] = "is not the same"
    return errors


async def _invited(request: web.Request) -> tuple[str | None] | None:
    link = request.match_info["link"]
    if len(link) > LONGEST:
        return None
    context = request.app[CONTEXT]
    return await users.invited(context.store.reader, token_hash(link), context.clock())


#: Open to everybody; they make their own checks.
ROUTES = (
    ("GET", f"{ROOT}/login", show_login),
    ("POST", f"{ROOT}/login", log_in),
    ("GET", f"{ROOT}/welcome/{{link}}", show_welcome),
    ("POST", f"{ROOT}/welcome/{{link}}", welcome),
)
PAGES = (Page("POST", f"{ROOT}/logout", log_out),)
