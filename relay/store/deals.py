"""The CRM's number for an enquiry. It belongs to the event, so each site sees its own CRM's; a thread is one deal."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence

from sqlalchemy import bindparam, case, func, literal_column, or_, select, update

from relay.core.hook import EventType
from relay.store.attribution import THREAD_REACH
from relay.store.engine import Statement, Tx
from relay.store.schema import deliveries, events, messages, posts

#: Letters of a thread that are looked at, going back for its deal or on to those that take over one that came late. Who
#: floods a thread with letters must not make each of them dearer for the writer.
REACH = 1000

_RECEIVED = events.c.type == EventType.RECEIVED.value
# A letter to two sites may have come as two messages of one Message-ID: each site's thread goes on from its own.
_OWN = deliveries.alias()
_ITS_SITES = select(_OWN.c.site_id).where(_OWN.c.message_id == bindparam("message"), _OWN.c.site_id.is_not(None))
_SHARES_A_SITE = select(deliveries.c.id).where(
    deliveries.c.message_id == messages.c.id, deliveries.c.site_id.in_(_ITS_SITES)
)
# The first message of this Message-ID is its owner: who repeats it later takes nobody into another thread.
_KNOWN = Statement(
    select(func.coalesce(messages.c.thread_id, messages.c.id))
    .where(
        messages.c.message_id == bindparam("reference"),
        messages.c.id < bindparam("message"),
        _SHARES_A_SITE.exists(),
    )
    .order_by(messages.c.id)
    .limit(1)
)
_OF_MESSAGE = Statement(select(messages.c.in_reply_to, messages.c.references).where(messages.c.id == bindparam("id")))
_ANSWERS = select(messages.c.id).where(messages.c.thread_id == bindparam("thread")).limit(REACH)
_BEFORE = _ANSWERS.where(messages.c.id < bindparam("before")).order_by(messages.c.id.desc())
_AFTER = _ANSWERS.where(messages.c.id > bindparam("after")).order_by(messages.c.id)
_OF_THREAD = Statement(
    select(events.c.deal_id, events.c.deal_url)
    .where(
        or_(events.c.message_id == bindparam("thread"), events.c.message_id.in_(_BEFORE)),
        _RECEIVED,
        literal_column("+events.site_id")
        == bindparam("site"),  # not by the index of a site's deals: it has years of them
        events.c.message_id < bindparam("before"),
        events.c.deal_id.is_not(None),
    )
    .order_by(events.c.message_id.desc())
    .limit(1)
)
_REJOIN = Statement(
    update(messages).where(messages.c.thread_id == bindparam("message")).values(thread_id=bindparam("thread"))
)
# A link belongs to its number: another number does not keep it.
_IS_ANOTHER = bindparam("deal").is_not(None) & bindparam("deal").is_distinct_from(events.c.deal_id)
_SET = Statement(
    update(events)
    .where(events.c.id == bindparam("event"))
    .values(
        deal_id=func.coalesce(bindparam("deal"), events.c.deal_id),
        deal_url=case((_IS_ANOTHER, bindparam("url")), else_=func.coalesce(bindparam("url"), events.c.deal_url)),
    )
)
_POSTED = events.alias()
_EVENT_OF_POST = Statement(
    select(events.c.id)
    .join(_POSTED, (_POSTED.c.message_id == events.c.message_id) & (_POSTED.c.site_id == events.c.site_id))
    .join(posts, posts.c.event_id == _POSTED.c.id)
    .where(posts.c.id == bindparam("post"), _RECEIVED)
)
_EVENTS_OF_MESSAGE = Statement(
    select(events.c.id, events.c.site_id).where(events.c.message_id == bindparam("message"), _RECEIVED)
)
_PLACE = Statement(
    select(events.c.message_id, events.c.site_id, messages.c.thread_id, events.c.deal_id, events.c.deal_url)
    .join(messages, messages.c.id == events.c.message_id)
    .where(events.c.id == bindparam("event"))
)
_FOLLOWERS = Statement(
    select(events.c.id).where(
        events.c.message_id.in_(_AFTER),  # the first of the thread is after none
        _RECEIVED,
        events.c.site_id == bindparam("site"),
        or_(events.c.deal_id.is_(None) & events.c.deal_url.is_(None), events.c.deal_id == bindparam("before")),
    )
)
_WAITS = Statement(
    select(posts.c.id).where(posts.c.event_id == bindparam("event"), posts.c.state == "waiting").limit(1)
)


def threads_of(tx: Tx, message_id: int) -> list[int]:
    """The threads that this message belongs to, each by the id of its first known message: that of what it answers
    first, then those of what it refers to, the nearest first. Empty where nothing is known."""
    row = tx.one(_OF_MESSAGE, id=message_id)
    if row is None or not (row[0] or row[1]):
        return []
    references = json.loads(row[1]) if row[1] else []
    answered = dict.fromkeys(filter(None, (row[0], *reversed(references[-THREAD_REACH:]))))
    known = [tx.one(_KNOWN, reference=one, message=message_id) for one in answered]
    return list(dict.fromkeys(row[0] for row in known if row is not None and row[0] is not None))


def rejoin(tx: Tx, message_id: int, thread: int) -> None:
    """Letters that were read before this one took it for the first of their thread; it belongs to an older one."""
    tx.run(_REJOIN, message=message_id, thread=thread)


def inherit(tx: Tx, event_id: int, message_id: int, site_id: int, threads: Sequence[int]) -> None:
    """Give a receipt the latest deal that its threads had before it at its site."""
    for thread in threads:
        row = tx.one(_OF_THREAD, thread=thread, site=site_id, before=message_id)
        if row is not None:
            _set(tx, event_id, *row)
            return


def of_post(tx: Tx, post_id: int, deal_id: str | None, url: str | None) -> None:
    """What the receiver of a post answered: whatever the event was, the deal is the message's at that site."""
    row = tx.one(_EVENT_OF_POST, post=post_id)
    if row is not None:
        _set(tx, row[0], deal_id, url)


def set_deal(
    tx: Tx, message_id: int, deal_id: str | None, url: str | None, sites: Collection[int] | None = None
) -> int:
    """The CRM's number for this message at these sites (None: all); the events changed.

    Without a number the one that is there stays; without a link the one that is there, unless the number changes.
    """
    changed = 0
    for event_id, site_id in tx.all(_EVENTS_OF_MESSAGE, message=message_id):
        if sites is None or site_id in sites:
            if tx.one(_WAITS, event=event_id) is not None:
                tx.revise()
            _set(tx, event_id, deal_id, url)
            changed += 1
    return changed


def _set(tx: Tx, event_id: int, deal_id: str | None, url: str | None) -> None:
    """Set an event's deal, and that of the later letters of its thread that have none, or the one that it had before:
    they did not know it yet, or had inherited what was mended now."""
    before = tx.one(_PLACE, event=event_id)
    tx.run(_SET, event=event_id, deal=deal_id, url=url)
    place = tx.one(_PLACE, event=event_id)
    if before is None or place is None or place[3] is None:
        return
    message_id, site_id, thread, *deal = place
    mended = before[3] if before[3:] != place[3:] else None
    followers = tx.all(_FOLLOWERS, thread=thread or message_id, site=site_id, after=message_id, before=mended)
    for (follower,) in followers:
        tx.run(_SET, event=follower, deal=deal[0], url=deal[1])
    if any(tx.one(_WAITS, event=follower) is not None for (follower,) in followers):
        tx.revise()  # they say the deal
