"""What a message becomes once its text and attachments are known: an event, posted to the site's webhooks or withheld.

The body of a post is composed when it is attempted, from the rows it is about: one copy to retain, one to erase.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import bindparam, func, select, update
from sqlalchemy import insert as insert_into

from relay.core.conditions import Conditions, Facts, verdict
from relay.core.mime import Extracted
from relay.core.model import AttributionState
from relay.store.engine import Statement, Tx
from relay.store.messages import CLAIM
from relay.store.post_jobs import PostJob as PostJob
from relay.store.post_jobs import post_job
from relay.store.schema import (
    bodies,
    deliveries,
    events,
    messages,
    post_attempts,
    posts,
    sites,
    texts,
    webhooks,
)

#: Characters of text that are searched; the rest is stored apart.
SEARCHED = 8192
#: Characters of a receiver's answer that the delivery log keeps.
ANSWER_KEPT = 2000


@dataclass(frozen=True, slots=True)
class PostResult:
    """``state`` is delivered, failed or waiting (then ``next_at`` counts). ``deal`` is (id, url) as answered."""

    job: PostJob
    state: str
    next_at: float
    status: int | None
    answer: str
    started_at: float
    duration: float
    deal: tuple[str | None, str | None] | None = None
    disable_webhook: str | None = None


_UNEXTRACTED = Statement(
    select(messages.c.id, bodies.c.data, messages.c.body_file)
    .outerjoin(bodies, bodies.c.message_id == messages.c.id)
    .where(messages.c.extraction == "waiting", messages.c.id > bindparam("after"))
    .order_by(messages.c.id)
    .limit(bindparam("most"))
)
_EXTRACTED = Statement(
    update(messages)
    .where(messages.c.id == bindparam("message"), messages.c.extraction == "waiting")
    .values(subject=bindparam("title"), attachments=bindparam("files"), extraction=bindparam("result"))
)
_INSERT_TEXT = Statement(insert_into(texts), "message_id subject addresses head rest")
_ADDRESSES = Statement(
    select(messages.c.sender, messages.c.mail_from, func.group_concat(deliveries.c.recipient, " "))
    .outerjoin(deliveries, deliveries.c.message_id == messages.c.id)
    .where(messages.c.id == bindparam("message"))
    .group_by(messages.c.id)
)
_WAITING_EVENTS = Statement(
    select(
        events.c.id,
        events.c.site_id,
        sites.c.send_to_crm,
        sites.c.conditions,
        deliveries.c.attribution,
        messages.c.automatic,
        messages.c.bounce,
        messages.c.mail_from,
    )
    .join(sites, sites.c.id == events.c.site_id)
    .join(deliveries, deliveries.c.id == events.c.delivery_id)
    .join(messages, messages.c.id == events.c.message_id)
    .where(events.c.message_id == bindparam("message"), events.c.state == "waiting")
)
_EVENT_STATE = Statement(update(events).where(events.c.id == bindparam("event")), "state reason")
_SITE_WEBHOOKS = Statement(
    select(webhooks.c.id).where(
        webhooks.c.site_id == bindparam("site"), webhooks.c.removed_at.is_(None), webhooks.c.enabled == 1
    )
)
_INSERT_POST = Statement(insert_into(posts), "event_id webhook_id state attempts next_at claim claimed_until")
_POST_DUE = (
    posts.c.state == "waiting",
    posts.c.next_at <= bindparam("now"),
    posts.c.claimed_until < bindparam("now"),
)
# By webhook, so that they cost the same however many posts wait.
DUE_WEBHOOKS = Statement(
    select(webhooks.c.id).where(select(posts.c.id).where(posts.c.webhook_id == webhooks.c.id, *_POST_DUE).exists())
)
NEXT_POST = Statement(
    select(
        func.min(
            select(posts.c.next_at)
            .where(posts.c.webhook_id == webhooks.c.id, posts.c.state == "waiting", posts.c.next_at > bindparam("now"))
            .order_by(posts.c.next_at)
            .limit(1)
            .scalar_subquery()
        )
    ).select_from(webhooks)
)
_DUE_POSTS = Statement(
    select(posts.c.id)
    .where(posts.c.webhook_id == bindparam("webhook"), *_POST_DUE)
    .order_by(posts.c.next_at, posts.c.id)
    .limit(bindparam("most"))
)
_CLAIM_POST = Statement(
    update(posts)
    .where(posts.c.id == bindparam("post"))
    .values(claim=bindparam("by"), claimed_until=bindparam("until"), attempts=posts.c.attempts + 1)
)
_VOID_POSTS = Statement(
    update(posts).where(posts.c.state == "waiting", posts.c.claimed_until > 0).values(claim=None, claimed_until=0)
)
_RELEASE_POST = Statement(
    update(posts)
    .where(posts.c.id == bindparam("post"), posts.c.claim == bindparam("by"))
    .values(claim=None, claimed_until=0, attempts=posts.c.attempts - 1)
)
_FINISH_POST = Statement(
    update(posts)
    .where(posts.c.id == bindparam("post"), posts.c.claim == bindparam("by"))
    .values(
        state=bindparam("to_state"),
        next_at=bindparam("at"),
        status=bindparam("http_status"),
        answer=bindparam("reply"),
        finished_at=bindparam("finished"),
        claim=None,
        claimed_until=0,
    )
)
_LOG_POST = Statement(insert_into(post_attempts), "post_id started_at duration status answer")
_SET_DEAL = Statement(
    update(messages)
    .where(messages.c.id == bindparam("message"))
    .values(
        deal_id=func.coalesce(bindparam("deal"), messages.c.deal_id),
        deal_url=func.coalesce(bindparam("url"), messages.c.deal_url),
    )
)
_DISABLE = Statement(update(webhooks).where(webhooks.c.id == bindparam("webhook")), "enabled disabled_reason")
_OUT_OF_USE = Statement(
    select(webhooks.c.disabled_reason).where(webhooks.c.id == bindparam("webhook"), webhooks.c.enabled == 0)
)
_GIVE_UP = Statement(
    update(posts)
    .where(
        posts.c.webhook_id == bindparam("webhook"), posts.c.state == "waiting", posts.c.claimed_until < bindparam("now")
    )
    .values(state="failed", answer=bindparam("why"), finished_at=bindparam("now"))
)


def unextracted(tx: Tx, after: int, most: int) -> list[tuple[int, bytes | None, str | None]]:
    """Messages that wait for extraction: (id, body or None, name of the body's file or None), oldest first."""
    return [(row[0], row[1], row[2]) for row in tx.all(_UNEXTRACTED, after=after, most=most)]


def extracted(tx: Tx, message_id: int, result: Extracted, now: float, claim: str | None) -> list[PostJob]:
    """Record what a message says and turn its events into posts, claimed by ``claim`` when it is given."""
    files = json.dumps([asdict(part) for part in result.attachments]) if result.attachments else None
    state = "partial" if result.partial else "done"
    if not tx.run(_EXTRACTED, message=message_id, title=result.subject, files=files, result=state):
        return []  # erased, or another worker was quicker
    text = result.text or ""
    addresses = tx.one(_ADDRESSES, message=message_id) or ()
    tx.insert(
        _INSERT_TEXT,
        message_id=message_id,
        subject=result.subject or "",
        addresses=" ".join(filter(None, addresses)),
        head=text[:SEARCHED],
        rest=text[SEARCHED:] or None,
    )
    jobs = []
    for event_id, site_id, send, conditions, attribution, automatic, bounce, mail_from in tx.all(
        _WAITING_EVENTS, message=message_id
    ):
        facts = Facts(AttributionState(attribution), bool(bounce), mail_from == "", automatic)
        reason = verdict(facts, Conditions(**json.loads(conditions))) if send else "Send to CRM is off"
        hooks = [] if reason else tx.all(_SITE_WEBHOOKS, site=site_id)
        if not reason and not hooks:
            reason = "no webhook"
        tx.run(_EVENT_STATE, event=event_id, state="withheld" if reason else "posted", reason=reason)
        for (webhook_id,) in hooks:
            post_id = _add_post(tx, event_id, webhook_id, now, claim)
            if claim is not None:
                jobs.append(post_job(tx, post_id, claim))
    return jobs


def _add_post(tx: Tx, event_id: int, webhook_id: int, now: float, claim: str | None) -> int:
    return tx.insert(
        _INSERT_POST,
        event_id=event_id,
        webhook_id=webhook_id,
        state="waiting",
        attempts=1 if claim else 0,
        next_at=now,
        claim=claim,
        claimed_until=now + CLAIM if claim else 0.0,
    )


def claim_posts(tx: Tx, capacity: Mapping[int, int], claim: str, now: float) -> list[PostJob]:
    """Claim what is due, at most ``capacity[webhook id]`` each, in the order it became due."""
    jobs = []
    for webhook_id, most in capacity.items():
        row = tx.one(_OUT_OF_USE, webhook=webhook_id)
        if row is not None:
            give_up(tx, webhook_id, row[0] or "the webhook is switched off", now)
            continue
        for (post_id,) in tx.all(_DUE_POSTS, webhook=webhook_id, now=now, most=most):
            tx.run(_CLAIM_POST, post=post_id, by=claim, until=now + CLAIM)
            jobs.append(post_job(tx, post_id, claim))
    return jobs


def void_post_claims(tx: Tx) -> int:
    """At start: nobody else is posting anything. The number of claims that a crash had left."""
    return tx.run(_VOID_POSTS)


def release_posts(tx: Tx, jobs: Sequence[PostJob]) -> None:
    """Give claims back that were not used: nothing was sent."""
    tx.run_many(_RELEASE_POST, [{"post": job.post_id, "by": job.claim} for job in jobs])


def give_up(tx: Tx, webhook_id: int, reason: str, now: float) -> None:
    """Fail what waits for a webhook that is out of use; what is in flight comes to its own end."""
    tx.run(_GIVE_UP, webhook=webhook_id, why=reason, now=now)


def finish_post(tx: Tx, result: PostResult, now: float) -> bool:
    """Record an attempt and what came of it. False when the claim was lost: then nothing is changed."""
    job, state = result.job, result.state
    answer = result.answer[:ANSWER_KEPT]
    if state == "waiting" and tx.one(_OUT_OF_USE, webhook=job.webhook_id) is not None:
        state = "failed"  # the webhook was disabled or removed while this attempt was under way
    changed = tx.run(
        _FINISH_POST,
        post=job.post_id,
        by=job.claim,
        to_state=state,
        at=result.next_at,
        http_status=result.status,
        reply=answer,
        finished=None if state == "waiting" else now,
    )
    if not changed:
        return False
    tx.insert(
        _LOG_POST,
        post_id=job.post_id,
        started_at=result.started_at,
        duration=result.duration,
        status=result.status,
        answer=answer,
    )
    if result.deal is not None:
        set_deal(tx, job.message_id, *result.deal)
    if result.disable_webhook is not None:
        tx.run(_DISABLE, webhook=job.webhook_id, enabled=0, disabled_reason=result.disable_webhook)
        give_up(tx, job.webhook_id, result.disable_webhook, now)
    return True


def set_deal(tx: Tx, message_id: int, deal_id: str | None, url: str | None) -> bool:
    """The CRM's number for this message; None leaves what is there. False when there is no such message."""
    return tx.run(_SET_DEAL, message=message_id, deal=deal_id, url=url) > 0


_EVENTS_OF = Statement(
    select(events.c.id, events.c.site_id)
    .join(messages, messages.c.id == events.c.message_id)
    .where(events.c.message_id == bindparam("message"), messages.c.extraction != "waiting")
)
_AGAIN = Statement(
    update(posts)
    .where(
        posts.c.event_id == bindparam("event"),
        posts.c.webhook_id == bindparam("webhook"),
        posts.c.claimed_until < bindparam("now"),
    )
    .values(state="waiting", attempts=0, next_at=bindparam("now"), finished_at=None)
)
_IN_FLIGHT = Statement(
    select(posts.c.id).where(posts.c.event_id == bindparam("event"), posts.c.webhook_id == bindparam("webhook"))
)


def replay(tx: Tx, message_id: int, sites_allowed: Sequence[int] | None, now: float) -> int:
    """Post the message's events again under the same ids, whatever the conditions said. The number of posts."""
    count = 0
    for event_id, site_id in tx.all(_EVENTS_OF, message=message_id):
        if sites_allowed is not None and site_id not in sites_allowed:
            continue
        hooks = tx.all(_SITE_WEBHOOKS, site=site_id)
        for (webhook_id,) in hooks:
            if not tx.run(_AGAIN, event=event_id, webhook=webhook_id, now=now) and not tx.one(
                _IN_FLIGHT, event=event_id, webhook=webhook_id
            ):
                _add_post(tx, event_id, webhook_id, now, None)
            count += 1
        if hooks:
            tx.run(_EVENT_STATE, event=event_id, state="posted", reason=None)
    return count
