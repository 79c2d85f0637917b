"""Tokens of the API: made, shown once, revoked."""

from __future__ import annotations

from aiohttp import web

from webapi.auth import Role
from webapi.problems import Problem
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
from webapi.values import seconds_or_none

TOKENS = f"{SETTINGS}/tokens"


async def show_tokens(view: View) -> web.Response:
    return await _tokens(view)


async def _tokens(view: View, problem: Problem | None = None) -> web.Response:
    found = await perform(view, OPERATIONS["GET /v1/tokens"])
    tokens = [(token, seconds_or_none(token.created_at)) for token in found.items]
    return form_page(view, "settings_tokens.html", problem, given_again(view) if problem else NOBODY, tokens=tokens)


async def create(view: View) -> web.Response:
    try:
        made = await perform(view, OPERATIONS["POST /v1/tokens"], body={"name": view.field("name"), **rights_of(view)})
    except Problem as problem:
        return await _tokens(view, shown_again(problem))
    return settings_page(view, "settings_token.html", made=made)


async def revoke(view: View) -> web.Response:
    await perform(view, OPERATIONS["DELETE /v1/tokens/{name}"], path={"name": view.field("name")})
    return see_other(TOKENS, "token_revoked")


PAGES = (
    Page("GET", TOKENS, show_tokens, Role.ADMIN),
    Page("POST", TOKENS, create, Role.ADMIN),
    Page("POST", f"{TOKENS}/revoke", revoke, Role.ADMIN),
)
