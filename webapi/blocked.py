"""Blocked senders over HTTP: their mail is forwarded, but becomes no deal."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from relay.config import fields as f
from relay.config.models import Section
from relay.store import blocked
from relay.store.noting import always
from webapi.auth import Role, visible_site
from webapi.operation import Call, Operation
from webapi.problems import Problem, not_found
from webapi.values import LONGEST_SENDER


class NewBlocked(Section):
    """An address, or a whole domain as "@example.com"."""

    sender: Annotated[str, f.by(f.blocked_sender), Field(max_length=LONGEST_SENDER)]


class BlockedList(BaseModel):
    items: list[str]


async def list_blocked(call: Call) -> BlockedList:
    site = visible_site(call.context.store, call.caller, call.path["name"])
    return BlockedList(items=await blocked.listing(call.context.store.reader, site.id))


async def block(call: Call) -> BlockedList:
    body: NewBlocked = call.body
    site = visible_site(call.context.store, call.caller, call.path["name"])
    now = call.context.clock()
    try:
        await call.write(lambda tx: blocked.block(tx, site.id, body.sender, now), changed=always)
    except blocked.TooMany as error:
        raise Problem(409, str(error), field="sender") from None
    return BlockedList(items=await blocked.listing(call.context.store.reader, site.id))


async def unblock(call: Call) -> None:
    site = visible_site(call.context.store, call.caller, call.path["name"])
    try:
        sender = f.blocked_sender(call.path["address"])
    except ValueError:
        raise not_found("blocked sender") from None
    if not await call.write(lambda tx: blocked.unblock(tx, site.id, sender)):
        raise not_found("blocked sender")


_OF_SITE = "/v1/sites/{name}/blocked-senders"
OPERATIONS = (
    Operation("GET", _OF_SITE, "Blocked senders.", list_blocked, Role.VIEWER, BlockedList, problems=(404,)),
    Operation(
        "POST",
        _OF_SITE,
        "Block a sender: its letters become no deals.",
        block,
        Role.MANAGER,
        BlockedList,
        body=NewBlocked,
        problems=(404, 409),
    ),
    Operation("DELETE", f"{_OF_SITE}/{{address}}", "Unblock it.", unblock, Role.MANAGER, None, problems=(404,)),
)
