"""Who may do what, over HTTP: users of the pages, API tokens, the log of changes. For administrators of all sites."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, Field

from relay.secrets import new_link, new_token, token_hash
from relay.store import changes, tokens, users
from relay.store.engine import Tx
from relay.store.noting import always
from relay.store.users import LastAdmin, User, UserNameTaken
from webapi.auth import Role, visible_site
from webapi.context import Context
from webapi.operation import Call, Operation, Parameters
from webapi.problems import Problem, not_found
from webapi.user_models import (
    ChangedUser,
    Invited,
    NewToken,
    NewUser,
    TokenCreated,
    TokenList,
    TokenShown,
    UserList,
    UserShown,
    folded_name,
    shown,
)
from webapi.values import Cursor, Limit, cursor_of, moment


class ChangesQuery(Parameters):
    limit: Limit = 50
    cursor: Cursor | None = None


class ChangeShown(BaseModel):
    at: str
    kind: str = Field(description="user, token or command.")
    name: str = Field(description="Of the user or token, or the account that ran the command.")
    action: str
    site: str | None
    subject: str | None
    details: dict[str, Any] = Field(description="The fields that were given, without secrets.")


class ChangeList(BaseModel):
    items: list[ChangeShown]
    next: str | None


async def list_users(call: Call) -> UserList:
    _operators_only(call)
    return UserList(items=[shown(user) for user in await users.listing(call.context.store.reader)])


async def create_user(call: Call) -> Invited:
    _operators_only(call)
    body: NewUser = call.body
    _check_sites(call, body.sites)
    link, now = new_link(), call.context.clock()
    try:
        user = await call.write(
            lambda tx: users.create_invited(tx, body.name, body.role, body.sites, token_hash(link), now)
        )
    except UserNameTaken:
        raise Problem(409, "there is a user of this name", field="name") from None
    return _invited(call.context, user, link)


async def change_user(call: Call) -> UserShown:
    _operators_only(call)
    body: ChangedUser = call.body
    _check_sites(call, body.sites)
    name = folded_name(call.path["name"])
    try:
        user = await call.write(lambda tx: users.change(tx, name, body.role, body.sites))
    except LastAdmin:
        raise Problem(409, "nobody else is an administrator of all sites", field="role") from None
    if user is None:
        raise not_found("user")
    return shown(user)


async def invite_user(call: Call) -> Invited:
    """A new one-time link: for who lost the first one, or the password."""
    _operators_only(call)
    name, link, now = folded_name(call.path["name"]), new_link(), call.context.clock()

    def invite(tx: Tx) -> User | None:
        return users.named(tx, name) if users.invite(tx, name, token_hash(link), now) else None

    user = await call.write(invite)
    if user is None:
        raise not_found("user")
    return _invited(call.context, user, link)


async def delete_user(call: Call) -> None:
    _operators_only(call)
    name = folded_name(call.path["name"])
    try:
        removed = await call.write(lambda tx: users.remove(tx, name))
    except LastAdmin:
        raise Problem(409, "nobody else is an administrator of all sites") from None
    if not removed:
        raise not_found("user")


async def list_tokens(call: Call) -> TokenList:
    _operators_only(call)
    rows = await call.context.store.reader.all(tokens.listing())
    return TokenList(
        items=[
            TokenShown(name=name, role=role, sites=json.loads(sites or "null"), created_at=moment(created_at))
            for name, role, sites, created_at in rows
        ]
    )


async def create_token(call: Call) -> TokenCreated:
    _operators_only(call)
    body: NewToken = call.body
    _check_sites(call, body.sites)
    token, now = new_token(), call.context.clock()
    try:
        await call.write(
            lambda tx: tokens.create(tx, body.name, token_hash(token), body.role, body.sites, now), changed=always
        )
    except tokens.TokenNameTaken:
        raise Problem(409, "there is a token of this name", field="name") from None
    sites = None if body.sites is None else list(body.sites)
    return TokenCreated(name=body.name, role=body.role, sites=sites, created_at=moment(now), token=token)


async def revoke_token(call: Call) -> None:
    _operators_only(call)
    name = call.path["name"]
    if not await call.write(lambda tx: tokens.revoke(tx, name)):
        raise not_found("token")


async def list_changes(call: Call) -> ChangeList:
    """Who sees only some sites sees what was changed about those."""
    query: ChangesQuery = call.query
    reader = call.context.store.reader
    rows = await changes.page(reader, call.caller.sites, query.cursor, query.limit + 1)
    page, more = rows[: query.limit], rows[query.limit :]
    items = [
        ChangeShown(
            at=moment(row.change.at),
            kind=row.change.kind,
            name=row.change.name,
            action=row.change.action,
            site=row.site,
            subject=row.change.subject,
            details=dict(row.change.details or {}),
        )
        for row in page
    ]
    return ChangeList(items=items, next=cursor_of(page[-1].id) if more else None)


def _invited(context: Context, user: User, link: str) -> Invited:
    return Invited(**dict(shown(user)), link=f"{context.public_url}/ui/welcome/{link}")


def _operators_only(call: Call) -> None:
    if call.caller.sites is not None:
        raise Problem(403, "this takes an administrator of all sites")


def _check_sites(call: Call, names: tuple[str, ...] | None) -> None:
    for name in names or ():
        visible_site(call.context.store, call.caller, name, "sites")


_USER = "/v1/users/{name}"
OPERATIONS = (
    Operation("GET", "/v1/users", "Who can log in to the pages.", list_users, Role.ADMIN, UserList),
    Operation(
        "POST",
        "/v1/users",
        "Invite somebody: a user and the one-time link to choose a password by.",
        create_user,
        Role.ADMIN,
        Invited,
        body=NewUser,
        status=201,
        problems=(404, 409),
    ),
    Operation(
        "PUT",
        _USER,
        "Give a user other rights, from the next request on.",
        change_user,
        Role.ADMIN,
        UserShown,
        body=ChangedUser,
        problems=(404, 409),
    ),
    Operation(
        "POST",
        f"{_USER}/invitation",
        "A new one-time link for a user; the one before ends.",
        invite_user,
        Role.ADMIN,
        Invited,
        status=201,
        problems=(404,),
    ),
    Operation(
        "DELETE", _USER, "Remove a user and end its sessions.", delete_user, Role.ADMIN, None, problems=(404, 409)
    ),
    Operation("GET", "/v1/tokens", "API tokens, without their secrets.", list_tokens, Role.ADMIN, TokenList),
    Operation(
        "POST",
        "/v1/tokens",
        "Make an API token.",
        create_token,
        Role.ADMIN,
        TokenCreated,
        body=NewToken,
        status=201,
        problems=(404, 409),
    ),
    Operation("DELETE", "/v1/tokens/{name}", "Revoke an API token.", revoke_token, Role.ADMIN, None, problems=(404,)),
    Operation(
        "GET",
        "/v1/changes",
        "Who changed what, newest first.",
        list_changes,
        Role.ADMIN,
        ChangeList,
        query=ChangesQuery,
    ),
)
