"""Posts: one event on its way to one webhook. Claimed, attempted once, finished; released when the claim was not used.

A webhook out of use takes nothing: what waits for it fails, and can be replayed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import structlog
from sqlalchemy import and_, bindparam, func, or_, select, update
from sqlalchemy import insert as insert_into

from relay.core.backoff import JITTER, WEBHOOK_DELAYS, webhook_delay
from relay.store import deals
from relay.store.engine import Statement, Tx, is_fatal
from relay.store.post import ANSWER_KEPT, CLAIM, PACE, PostJob, PostResult
from relay.store.post_jobs import HOOK_COLUMNS, has_another_visit, post_job, read_hook
from relay.store.schema import events, post_attempts, posts, webhooks

log = structlog.get_logger()

#: Seconds that the posts of a webhook are put off whose own row cannot be read, and how many of them at a time.
UNREADABLE = 600.0
MOST_UNREADABLE = 2000
#: Posts over whose turns at PACE those are spread that were planned while the clock was wrong.
SPREAD = 3000
#: Posts of a webhook that are tried at once when it answers again; what is left waits as planned.
MOST_HASTENED = 100_000
#: Seconds that a post is put off at most: the last step of the schedule with its jitter, or a Retry-After of a day.
LONGEST = WEBHOOK_DELAYS[-1] * (1 + JITTER)


_INSERT = Statement(
    insert_into(posts), "event_id webhook_id state attempts next_at claim claimed_until answer finished_at"
)
_DUE = (
    posts.c.state == "waiting",
    posts.c.next_at <= bindparam("now"),
    posts.c.claimed_until < bindparam("now"),
)
# By webhook, so that they cost the same however many posts wait.
DUE_WEBHOOKS = Statement(
    select(webhooks.c.id).where(select(posts.c.id).where(posts.c.webhook_id == webhooks.c.id, *_DUE).exists())
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
    .where(posts.c.webhook_id == bindparam("webhook"), *_DUE)
    .order_by(posts.c.next_at, posts.c.id)
    .limit(bindparam("most"))
)
_CLAIM = Statement(
    update(posts)
    .where(posts.c.id == bindparam("post"))
    .values(claim=bindparam("by"), claimed_until=bindparam("until"), attempts=posts.c.attempts + 1)
)
# Whether the attempt was begun nobody knows: it must not use up the schedule of a receiver that never heard of it.
_VOID = Statement(
    update(posts)
    .where(posts.c.state == "waiting", posts.c.claimed_until > 0)
    .values(claim=None, claimed_until=0, attempts=posts.c.attempts - 1)
)
_PLANNED_WRONG = Statement(
    update(posts)
    .where(posts.c.state == "waiting", posts.c.next_at > bindparam("latest"))
    .values(next_at=bindparam("now") + posts.c.id % SPREAD / PACE)
)
# In the order of the index that holds only what waits: it serves no other, and a long history costs nothing.
_TRIED = (
    select(posts.c.id)
    .where(posts.c.webhook_id == bindparam("webhook"), posts.c.state == "waiting", posts.c.attempts > 0)
    .order_by(posts.c.next_at)
    .limit(MOST_HASTENED)
)
TRIED = Statement(_TRIED)
# Of a run before, what says that the receiver was ill (webapi/breaker.py); until when a 503 has put something off is
# forgotten, too.
TRIED_BEFORE = Statement(
    _TRIED.where(
        posts.c.claimed_until < bindparam("before"),
        or_(posts.c.status.is_(None), and_(posts.c.status >= 500, posts.c.status != 503)),
        ~select(post_attempts.c.id)
        .where(post_attempts.c.post_id == posts.c.id, post_attempts.c.started_at >= bindparam("before"))
        .exists(),
    )
)
_SOONER = Statement(
    update(posts)
    .where(
        posts.c.id == bindparam("post"),
        posts.c.state == "waiting",
        posts.c.attempts > 0,
        posts.c.claimed_until < bindparam("now"),
        posts.c.next_at > bindparam("due"),
    )
    .values(next_at=bindparam("due"), attempts=posts.c.attempts - 1)
)
_AGAIN = Statement(
    update(posts)
    .where(posts.c.id == bindparam("post"))
    .values(state="waiting", attempts=0, next_at=bindparam("due"), finished_at=None, claim=None, claimed_until=0)
)
_RELEASE = Statement(
    update(posts)
    .where(posts.c.id == bindparam("post"), posts.c.claim == bindparam("by"))
    .values(claim=None, claimed_until=0, attempts=posts.c.attempts - 1)
)
_FINISH = Statement(
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
_ITS_EVENT = posts.alias()
_OF_EVENT = Statement(
    select(posts.c.event_id, posts.c.state, posts.c.answer)
    .join(_ITS_EVENT, _ITS_EVENT.c.event_id == posts.c.event_id)
    .where(_ITS_EVENT.c.id == bindparam("post"))
    .order_by(posts.c.webhook_id)
)
_EVENT_WITHHELD = Statement(
    update(events).where(events.c.id == bindparam("event")).values(state="withheld", reason=bindparam("why"))
)
_HOOK = Statement(select(*HOOK_COLUMNS).where(webhooks.c.id == bindparam("webhook")))
_ATTEMPTS = Statement(select(posts.c.attempts).where(posts.c.id == bindparam("post")))
_LOG = Statement(insert_into(post_attempts), "post_id started_at duration status answer digest size")
_HAS_MOVED = Statement(
    select(webhooks.c.id).where(webhooks.c.id == bindparam("webhook"), webhooks.c.url != bindparam("asked"))
)
_DISABLE = Statement(
    update(webhooks).where(webhooks.c.id == bindparam("webhook"), webhooks.c.enabled == 1), "enabled disabled_reason"
)
_OUT_OF_USE = Statement(
    select(webhooks.c.disabled_reason).where(webhooks.c.id == bindparam("webhook"), webhooks.c.enabled == 0)
)
_WAITING = posts.alias()
# What of a webhook waits for nobody, by the index of what waits.
_UNCLAIMED = (
    select(_WAITING.c.id)
    .where(
        _WAITING.c.webhook_id == bindparam("webhook"),
        _WAITING.c.state == "waiting",
        _WAITING.c.claimed_until < bindparam("now"),
    )
    .order_by(_WAITING.c.next_at)
)
_PUT_OFF = Statement(
    update(posts)
    .where(posts.c.id.in_(_UNCLAIMED.where(_WAITING.c.next_at <= bindparam("now")).limit(MOST_UNREADABLE)))
    .values(next_at=bindparam("until"))
)
_GIVE_UP = Statement(
    update(posts)
    .where(posts.c.id.in_(_UNCLAIMED))
    .values(state="failed", answer=bindparam("why"), finished_at=bindparam("now"))
)


def add(tx: Tx, event_id: int, webhook_id: int, due: float, claim: str | None = None) -> int:
    """A post that is due at ``due``, claimed from then on by ``claim`` when it is given; its id."""
    return tx.insert(
        _INSERT,
        event_id=event_id,
        webhook_id=webhook_id,
        state="waiting",
        attempts=1 if claim else 0,
        next_at=due,
        claim=claim,
        claimed_until=due + CLAIM if claim else 0.0,
        answer=None,
        finished_at=None,
    )


def leave_out(tx: Tx, event_id: int, webhook_id: int, state: str, reason: str, now: float) -> None:
    """Note why the event is not posted to this webhook; ``state`` is withheld, or failed."""
    tx.insert(
        _INSERT,
        event_id=event_id,
        webhook_id=webhook_id,
        state=state,
        attempts=0,
        next_at=now,
        claim=None,
        claimed_until=0.0,
        answer=reason,
        finished_at=now,
    )


def claim_posts(
    tx: Tx, capacity: Mapping[int, int], claim: str, now: float, held: Collection[int] = ()
) -> list[PostJob]:
    """Claim what is due, at most ``capacity[webhook id]`` each, in the order it became due.

    ``held`` are posts that the caller has in hand: their claims seem to have ended when the clock leaps ahead.
    What cannot be read is put aside, with a line in the log, for the sake of all that can.
    """
    jobs = []
    for webhook_id, most in capacity.items():
        row = tx.one(_OUT_OF_USE, webhook=webhook_id)
        if row is not None:
            give_up(tx, webhook_id, row[0] or "the webhook is switched off", now)
            continue
        if not _is_readable(tx, webhook_id, now):
            continue
        for (post_id,) in tx.all(_DUE_POSTS, webhook=webhook_id, now=now, most=most):
            if post_id in held:
                continue
            tx.run(_CLAIM, post=post_id, by=claim, until=now + CLAIM)
            try:
                jobs.append(post_job(tx, post_id, claim))
            except Exception as error:
                if is_fatal(error):
                    raise
                _put_aside(tx, webhook_id, post_id, claim, now, type(error).__name__)
    return jobs


def _is_readable(tx: Tx, webhook_id: int, now: float) -> bool:
    """False when no post can be made with this webhook: what is due for it waits until it may have been mended."""
    try:
        row = tx.one(_HOOK, webhook=webhook_id)
        assert row is not None
        read_hook(row)
    except Exception as error:
        if is_fatal(error):
            raise
        tx.run(_PUT_OFF, webhook=webhook_id, now=now, until=now + UNREADABLE)
        # Never the error's text: SQLite quotes what it cannot decode.
        log.error("webhook can't be read", webhook=webhook_id, reason=type(error).__name__, seconds=UNREADABLE)
        return False
    return True


def _put_aside(tx: Tx, webhook_id: int, post_id: int, claim: str, now: float, reason: str) -> None:
    """A post that is claimed and cannot be read has failed once more: its schedule goes on, and comes to its end."""
    row = tx.one(_ATTEMPTS, post=post_id)
    assert row is not None
    delay = webhook_delay(row[0], 0.5)
    state, answer = "waiting" if delay is not None else "failed", f"what it says cannot be read: {reason}"
    tx.run(
        _FINISH,
        post=post_id,
        by=claim,
        to_state=state,
        at=now + (delay or 0.0),
        http_status=None,
        reply=answer,
        finished=None if delay is not None else now,
    )
    tx.insert(_LOG, post_id=post_id, started_at=now, duration=0.0, status=None, answer=answer, digest=None, size=None)
    log.error("post can't be read", post=post_id, webhook=webhook_id, reason=reason, state=state)


def void_post_claims(tx: Tx, now: float) -> int:
    """At start: nobody else is posting anything. The number of claims that a crash had left.

    Nothing is put off for longer than LONGEST: what seems to be was planned while the clock was wrong, and is due.
    """
    tx.run(_PLANNED_WRONG, now=now, latest=now + LONGEST)
    return tx.run(_VOID)


def hasten(tx: Tx, post_ids: Sequence[int], begin: float, now: float) -> None:
    """The receiver is well again: try what waits for its next attempt (TRIED) from ``begin`` on, at PACE a second.

    Such an attempt does not count: a receiver that comes and goes must not use up the schedule, which lasts for days.
    """
    for place, post_id in enumerate(post_ids):
        tx.run(_SOONER, post=post_id, due=begin + place / PACE, now=now)


def again(tx: Tx, post_id: int, due: float) -> None:
    """Post it again, as if it had never been tried."""
    tx.run(_AGAIN, post=post_id, due=due)


def release_posts(tx: Tx, jobs: Sequence[PostJob]) -> None:
    """Give claims back that were not used: nothing was sent."""
    tx.run_many(_RELEASE, [{"post": job.post_id, "by": job.claim} for job in jobs])


def give_up(tx: Tx, webhook_id: int, reason: str, now: float) -> None:
    """Fail what waits for a webhook that is out of use; what is in flight comes to its own end."""
    tx.run(_GIVE_UP, webhook=webhook_id, why=reason, now=now)


def finish_post(tx: Tx, result: PostResult, now: float) -> bool:
    """Record an attempt and what came of it. False when the claim was lost: then nothing is changed.

    What was delivered, or was of no use to a template, and says another visit by now is posted once more.
    """
    job, state, webhook_id = result.job, result.state, result.job.hook.id
    answer = result.answer[:ANSWER_KEPT]
    disable = result.disable_webhook
    if disable is not None and tx.one(_HAS_MOVED, webhook=webhook_id, asked=job.hook.url) is not None:
        state, disable = "waiting", None  # the old place is closed, as it should be: on to the new one
    if state == "waiting" and tx.one(_OUT_OF_USE, webhook=webhook_id) is not None:
        state = "failed"  # the webhook was disabled or removed while this attempt was under way
    changed = tx.run(
        _FINISH,
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
        _LOG,
        post_id=job.post_id,
        started_at=result.started_at,
        duration=result.duration,
        status=result.status,
        answer=answer,
        digest=result.digest,
        size=result.size,
    )
    if state in ("delivered", "withheld") and has_another_visit(tx, job):
        again(tx, job.post_id, now)  # whoever asked for the other visit was told that it is posted
    elif state == "withheld":
        _withhold_event(tx, job.post_id)
    if result.deal is not None:
        deals.of_post(tx, job.post_id, *result.deal)
    if disable is not None:
        tx.run(_DISABLE, webhook=webhook_id, enabled=0, disabled_reason=disable)
        give_up(tx, webhook_id, disable, now)
    return True


def _withhold_event(tx: Tx, post_id: int) -> None:
    """A template had no use for it: when no webhook gets the event, History says so, with all the reasons."""
    rows = tx.all(_OF_EVENT, post=post_id)
    if all(state == "withheld" for _, state, _ in rows):
        reasons = dict.fromkeys(answer for _, _, answer in rows)
        tx.run(_EVENT_WITHHELD, event=rows[0][0], why="; ".join(reasons))
