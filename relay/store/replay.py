"""Posting again, under the same webhook-id: one message to all webhooks, or many events to one webhook."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import bindparam, func, or_, select, update

from relay.core.hook import EventType, HookSettings
from relay.store import events as event_verbs
from relay.store import posts as post_verbs
from relay.store.engine import Statement, Tx
from relay.store.post import PACE
from relay.store.reader import Reader
from relay.store.schema import events, messages, posts, webhooks

#: Events that one reading of a bulk replay finds at most.
PAGE = 100_000

_HOOK = Statement(
    select(webhooks.c.settings, webhooks.c.site_id).where(
        webhooks.c.id == bindparam("webhook"), webhooks.c.removed_at.is_(None), webhooks.c.enabled == 1
    )
)
_POST = Statement(
    select(posts.c.id, posts.c.state, posts.c.claimed_until, posts.c.next_at).where(
        posts.c.event_id == bindparam("event"), posts.c.webhook_id == bindparam("webhook")
    )
)
_STILL_WITHHELD = Statement(update(posts).where(posts.c.id == bindparam("post")), "answer")


class OutOfUse(Exception):
    """The webhook is disabled or removed: nothing can be posted to it."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What to replay to one webhook: what it has failed to take, or all events of its site in a time.

    ``since``, ``until``: receipt, seconds since the epoch.
    """

    failed: bool = False
    since: float | None = None
    until: float | None = None


def replay(tx: Tx, message_id: int, sites_allowed: Sequence[int] | None, now: float) -> int:
    """Post the message's receipt again, whatever the conditions said. The number of posts."""
    count = 0
    for event_id, site_id in event_verbs.of_sites(tx, message_id, sites_allowed):
        takers = event_verbs.takers(tx, site_id, EventType.RECEIVED.value)
        hooks = [webhook_id for webhook_id, _, disabled in takers if disabled is None]
        for webhook_id in hooks:
            post = tx.one(_POST, event=event_id, webhook=webhook_id)
            if post is None:
                post_verbs.add(tx, event_id, webhook_id, now)
            elif post[2] < now:
                post_verbs.again(tx, post[0], now)
            count += 1  # one that is claimed is read again if anything of it has changed, or followed by another
        if hooks:
            event_verbs.posted(tx, event_id)
    return count


def replay_to(
    tx: Tx, webhook_id: int, event_ids: Sequence[int], begin: float, now: float, *, forced: bool = False
) -> int:
    """Post these events again to one webhook, from ``begin`` on at PACE; the number of posts. Raises OutOfUse.

    What the conditions withhold stays so, unless they have changed or it is ``forced``.
    """
    row = tx.one(_HOOK, webhook=webhook_id)
    if row is None:
        raise OutOfUse(webhook_id)
    settings, site_id = HookSettings.from_json(row[0]), row[1]
    count = 0
    for event_id in event_ids:
        event = event_verbs.find(tx, event_id)
        if event is None or event.site_id != site_id or event.type not in settings.events:
            continue
        post = tx.one(_POST, event=event_id, webhook=webhook_id)
        if post is not None and post[2] >= now:
            continue  # under way, and followed by another if its visit has changed
        if not forced and (post is None or post[1] == "withheld"):
            reason = event_verbs.reason_against(tx, event, webhook_id, settings)
            if reason is not None:
                if post is not None:
                    tx.run(_STILL_WITHHELD, post=post[0], answer=reason)
                continue
        due = begin + count / PACE
        if post is None:
            post_verbs.add(tx, event_id, webhook_id, due)
        else:
            # What waits anyway is never put off.
            post_verbs.again(tx, post[0], min(due, post[3]) if post[1] == "waiting" else due)
        event_verbs.posted(tx, event_id)
        count += 1
    return count


async def newest(reader: Reader) -> int:
    """The highest id of an event, 0 without any: where a replay ends that begins now. Raises StoreUnavailable."""
    ((found,),) = await reader.all(select(func.max(events.c.id)))
    return found or 0


async def selected(
    reader: Reader, webhook_id: int, site_id: int, wanted: Selection, after: int, last: int
) -> list[int]:
    """The ids of the events after one and up to another, oldest first, at most PAGE; raises StoreUnavailable."""
    if wanted.failed:
        # A post that waits for its next attempt has failed, too, so far.
        lost = or_(posts.c.state == "failed", (posts.c.state == "waiting") & (posts.c.attempts > 0))
        query = (
            select(posts.c.event_id)
            .join(events, events.c.id == posts.c.event_id)
            .join(messages, messages.c.id == events.c.message_id)
            .where(posts.c.webhook_id == webhook_id, lost)
        )
    else:
        query = (
            select(events.c.id)
            .join(messages, messages.c.id == events.c.message_id)
            .where(
                events.c.site_id == site_id,
                messages.c.extraction != "waiting",
                or_(events.c.reason.is_(None), events.c.reason != event_verbs.LOOP),
            )
        )
    if wanted.since is not None:
        query = query.where(messages.c.received_at >= wanted.since)
    if wanted.until is not None:
        query = query.where(messages.c.received_at < wanted.until)
    query = query.where(events.c.id > after, events.c.id <= last).order_by(events.c.id).limit(PAGE)
    return [row[0] for row in await reader.all(query)]
