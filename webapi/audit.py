"""What goes into the log of changes: who did what, with the fields that were given, but no secrets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from relay.core.model import Address
from relay.store import changes
from relay.store.changes import Change
from relay.store.noting import Note
from webapi.auth import Caller
from webapi.context import Context
from webapi.problems import Problem
from webapi.values import row_id

#: Fields that may hold a secret although they are shown elsewhere; that they were given is noted. Those that a model
#: keeps out of its repr are secrets anyway.
SECRET = frozenset(
    (
        *("access", "auth", "basic", "bearer", "headers", "login", "next_hop", "password", "previous_secret", "secret"),
        *("template", "url", "variables"),
    )
)
#: Values of a list that are noted.
LISTED = 50
PLAIN = (int, str, Address)
#: What names somebody who may ask to be forgotten, an address or a visit's number, is in no note, for nothing is taken
#: out of the log. In paths:
PERSONAL = {
    "/v1/senders/{address}": "address",
    "/v1/sites/{name}/blocked-senders/{address}": "address",
    "/v1/visits/{number}": "number",
}


async def site_of(context: Context, caller: Caller, action: str, path: Mapping[str, str]) -> int | None:
    """The id of the site that a path names: by itself, by a webhook, a message or a delivery of it.

    None for a message to several sites that the caller sees. Raises StoreUnavailable.
    """
    reader, directory = context.store.reader, context.store.sites
    if "/v1/sites/{name}" in action:
        site = directory.by_name.get(path["name"])
        return None if site is None else site.id
    if "/v1/webhooks/{id}" in action:
        owners = (site.id for site in directory.by_id.values() for hook in site.webhooks if str(hook.id) == path["id"])
        return next(owners, None)
    number = _number(path.get("id", ""))
    if number is None:
        return None
    if "/v1/messages/{id}" in action:
        found = await changes.sites_of(reader, message=number)
    elif "/v1/queue/{id}" in action:
        found = await changes.sites_of(reader, deliveries=(number,))
    else:
        return None
    seen = [site for site in found if caller.sees(site)]
    return seen[0] if len(seen) == 1 else None


def _number(text: str) -> int | None:
    """A row's number; None where the operation will say that it is none."""
    try:
        return row_id(text, "row")
    except Problem:
        return None


async def begin(context: Context, caller: Caller, action: str, path: Mapping[str, str], body: BaseModel | None) -> Note:
    """The note of a change that is about to be made: afterwards its site may be gone. Raises StoreUnavailable."""
    site_id = await site_of(context, caller, action, path)
    name = getattr(body, "name", None)
    named = dict(path)
    person = PERSONAL.get(action.partition(" ")[2])
    if person is not None and not named[person].startswith("@"):  # a whole domain is nobody in particular
        del named[person]
    subject = ", ".join(named.values()) or (name if isinstance(name, str) else None)
    return Note(context.store, Change(context.clock(), caller.kind, caller.name, action, site_id, subject, shown(body)))


def shown(body: BaseModel | None) -> dict[str, Any]:
    """The fields that were given: plain values as they are, of everything else that it was given."""
    if body is None:
        return {}
    fields = type(body).model_fields
    return {
        name: "…" if name in SECRET or not fields[name].repr else _plain(name, getattr(body, name))
        for name in sorted(body.model_fields_set)
    }


def _plain(name: str, value: Any) -> Any:
    if name == "number" or (name == "sender" and not str(value).startswith("@")):
        return "…"
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Address):
        return str(value)
    if isinstance(value, list | tuple) and len(value) <= LISTED and all(isinstance(one, PLAIN) for one in value):
        return [one if isinstance(one, int) else str(one) for one in value]
    return "…"
