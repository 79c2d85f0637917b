"""The history over HTTP: lists, one message with its life, its bytes; replay, deal, erasure."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from relay.core.model import folded
from relay.store import deals, history, retention
from relay.store import replay as replay_verbs
from relay.store.history import Filter, MessageRow
from relay.store.life import life as read_life
from relay.store.retention import ErasedSender
from webapi import message_views as views
from webapi.auth import Caller, Role, visible_site
from webapi.context import Context
from webapi.message_views import MessageDetail, MessagePage
from webapi.operation import Call, Operation, Parameters, Strict
from webapi.problems import Problem, not_found
from webapi.replays import reattribute
from webapi.values import Cursor, Digits, Limit, Moment, Sender, Text, cursor_of, row_id

#: Transactions in which one sender's messages are erased at most; a bite each.
ERASE_BITES = 10_000

State = Literal["queued", "deferred", "forwarded", "failed", "quarantined", "dropped", "looped", "collected"]


class MessageQuery(Parameters):
    site: Annotated[str | None, Field(description="Name of a site.")] = None
    visit: Annotated[Digits | None, Field(description="Number of a visit.")] = None
    sender: Sender | None = None
    q: Annotated[
        str | None,
        Field(
            max_length=500,
            description="Words of subject, addresses or text, those without a space between them as a phrase; the last "
            "one, from 3 characters on, as a beginning.",
        ),
    ] = None
    state: State | None = None
    source: Annotated[
        Text | None,
        Field(
            max_length=500,
            description="Marker of the stated visit; without an underscore also what has it as its first level "
            "(`source_level_1`).",
        ),
    ] = None
    deal: Annotated[bool | None, Field(description="Whether a CRM has given it a number.")] = None
    since: Moment | None = None
    until: Moment | None = None
    sort: Annotated[Literal["newest", "oldest"], Field(description="What comes first, by receipt.")] = "newest"
    limit: Limit = 50
    cursor: Cursor | None = None


class Deal(Strict):
    """The CRM's number for a message. ``url`` null leaves the address that is stored."""

    id: Annotated[Text, Field(min_length=1, max_length=255)]
    url: Annotated[Text, Field(max_length=2048, pattern=r"^https?://[^\s]+$")] | None = None
    site: Annotated[
        Text | None,
        Field(description="Whose CRM has it. Null: all sites that are seen, unless their deals differ (409)."),
    ] = None


class ReplayQuery(Parameters):
    reattribute: Annotated[bool, Field(description="First look again whose visit it came from.")] = False


class Replayed(BaseModel):
    posts: int
    reattributed: int = Field(description="Deliveries whose attribution came out otherwise.")


class Erased(BaseModel):
    erased: int
    left: int = Field(description="Messages that are still being forwarded; erase again later.")
    unblocked: bool = Field(description="It was among the blocked senders, and is no more: nothing of it is left.")


async def list_messages(call: Call) -> MessagePage:
    query: MessageQuery = call.query
    wanted = wanted_of(call.context, call.caller, query)
    page = await history.browse(call.context.store.reader, wanted, query.limit)
    items = []
    for row in page.rows:
        items.append(views.item(call.context, row, wanted.sites))
        await asyncio.sleep(0)  # a letter may have a thousand parts, each with a link to be signed: mail comes between
    return MessagePage(items=items, next=None if page.next is None else cursor_of(page.next))


def wanted_of(context: Context, caller: Caller, query: MessageQuery) -> Filter:
    """What a caller asks for, out of what it may see; raises Problem 404 for a site that it does not see."""
    sites = caller.sites
    if query.site is not None:
        sites = frozenset({visible_site(context.store, caller, query.site, "site").id})
    return Filter(
        sites=sites,
        visit=query.visit,
        sender=None if query.sender is None else folded(query.sender),
        query=query.q,
        state=query.state,
        source=query.source,
        deal=query.deal,
        since=query.since,
        until=query.until,
        oldest=query.sort == "oldest",
        cursor=query.cursor,
    )


async def show_message(call: Call) -> MessageDetail:
    row = await visible_message(call)
    life = await read_life(call.context.store.reader, row, call.caller.sites)
    return views.detail(call.context, row, life, call.caller.sites)


async def replay(call: Call) -> Replayed:
    """Post the message's receipt again, under the same webhook-id, whatever the conditions said."""
    query: ReplayQuery = call.query
    context, row = call.context, await visible_message(call)
    sites = None if call.caller.sites is None else sorted(call.caller.sites)
    now, changed = context.clock(), 0
    if query.reattribute:
        changed = await reattribute(context.store, row.id, context.evidence(), now, sites, call.write)
    count = await call.write(lambda tx: replay_verbs.replay(tx, row.id, sites, now))
    if not count and not changed:
        raise Problem(409, "nothing to post: the text is not extracted yet, or no webhook is enabled")
    context.on_posts_due()
    return Replayed(posts=count, reattributed=changed)


async def put_deal(call: Call) -> None:
    row = await visible_message(call)
    deal: Deal = call.body
    sites = call.caller.sites
    if deal.site is not None:
        sites = frozenset(one.site_id for one in row.deliveries if one.site_id is not None and one.site == deal.site)
    elif len({(one.deal_id, one.deal_url) for one in row.receipts}) > 1:
        raise Problem(409, "its sites have different deals: name the site whose deal it is", field="site")
    if not await call.write(lambda tx: deals.set_deal(tx, row.id, deal.id, deal.url, sites)):
        which = "none of your sites" if deal.site is None else "no such site of yours"
        raise Problem(409, f"the message is for {which}, so it is nobody's deal")


async def erase_message(call: Call) -> None:
    row = await visible_message(call)
    sites = call.caller.sites
    try:
        files = await call.write(lambda tx: retention.erase_message(tx, row.id, sites), _was_there)
    except retention.StillOpen:
        raise Problem(409, "it is still being forwarded; drop or retry its deliveries first") from None
    if files is None:
        raise not_found("message")
    await call.context.remove_files(files)


async def erase_sender(call: Call) -> Erased:
    """Erase what one address has sent, in bites, so that mail flows meanwhile."""
    address, sites = folded(call.path["address"]), call.caller.sites
    erased, left, unblocked = 0, 0, False
    for _ in range(ERASE_BITES):
        bite = await call.write(lambda tx: retention.erase_sender(tx, address, sites), _any_erased)
        await call.context.remove_files(bite.files)
        erased, left, unblocked = erased + bite.deleted, bite.left, unblocked or bite.unblocked
        if not bite.deleted:
            break
    return Erased(erased=erased, left=left, unblocked=unblocked)


def _was_there(files: tuple[str, ...] | None) -> bool:
    return files is not None


def _any_erased(bite: ErasedSender) -> bool:
    return bite.deleted > 0 or bite.unblocked


async def visible_message(call: Call) -> MessageRow:
    """The message that the path names; raises Problem 404 where the caller sees none."""
    message_id = row_id(call.path["id"], "message")
    row = await history.one(call.context.store.reader, message_id, call.caller.sites)
    if row is None:
        raise not_found("message")
    return row


_ONE = "/v1/messages/{id}"
OPERATIONS = (
    Operation(
        "GET",
        "/v1/messages",
        "The history, newest first unless told otherwise.",
        list_messages,
        Role.VIEWER,
        MessagePage,
        query=MessageQuery,
        problems=(400, 404),
    ),
    Operation("GET", _ONE, "One message with its life.", show_message, Role.VIEWER, MessageDetail, problems=(404,)),
    Operation(
        "POST",
        f"{_ONE}/replay",
        "Post its events to the webhooks again.",
        replay,
        Role.MANAGER,
        Replayed,
        query=ReplayQuery,
        status=202,
        problems=(404, 409),
    ),
    Operation(
        "PUT", f"{_ONE}/deal", "The CRM's number for it.", put_deal, Role.MANAGER, None, body=Deal, problems=(404, 409)
    ),
    Operation(
        "DELETE", _ONE, "Erase it with everything about it.", erase_message, Role.ADMIN, None, problems=(404, 409)
    ),
    Operation(
        "DELETE",
        "/v1/senders/{address}",
        "Erase everything that one address has sent.",
        erase_sender,
        Role.ADMIN,
        Erased,
        audited=lambda answer: answer.erased > 0 or answer.unblocked,
    ),
)
