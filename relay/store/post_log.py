"""The delivery log of a webhook: what was posted to it, what it answered, and how it is doing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, bindparam, func, select, text

from relay.store.engine import Statement
from relay.store.history import dicts
from relay.store.reader import Reader
from relay.store.schema import events, messages, post_attempts, posts


@dataclass(frozen=True, slots=True)
class Doing:
    """How a webhook is doing: posts that wait and that have failed, and its last attempt.

    ``last_at`` is in seconds since the epoch; ``last_status`` None when nothing was answered.
    """

    waiting: int
    failed: int
    last_at: float | None
    last_status: int | None
    last_answer: str | None


#: Posts of a webhook that its success is told by: the latest, out of so many.
RECENT = 100
SEEN = 1000


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one post: ``seconds`` that its last attempt took, None before the first."""

    state: str
    attempts: int
    created_at: float
    seconds: float | None


#: Seconds that the last attempt took.
_SECONDS = (
    select(post_attempts.c.duration)
    .where(post_attempts.c.post_id == posts.c.id)
    .order_by(post_attempts.c.id.desc())
    .limit(1)
    .scalar_subquery()
)
_LATEST = (
    select(posts.c.id)
    .where(posts.c.webhook_id == bindparam("webhook"))
    .order_by(posts.c.id.desc())
    .limit(SEEN)
    .subquery()
)
_RECENT = Statement(
    select(posts.c.state, posts.c.attempts, events.c.created_at, _SECONDS)
    .join(_LATEST, _LATEST.c.id == posts.c.id)
    .join(events, events.c.id == posts.c.event_id)
    .where(posts.c.state != "withheld")
    .order_by(posts.c.id.desc())
    .limit(RECENT)
)

_COLUMNS = (
    posts.c.id,
    events.c.uid,
    events.c.type,
    events.c.message_id,
    posts.c.state,
    posts.c.attempts,
    posts.c.next_at,
    posts.c.status,
    posts.c.answer,
    posts.c.finished_at,
    events.c.created_at,
    messages.c.sender,
    messages.c.subject,
    _SECONDS.label("seconds"),
)
#: Few of many posts are so, and an index holds just those. In text: it serves only what proves to be in it.
_FEW = {state: text(f"posts.state = '{state}'") for state in ("failed", "waiting")}
_LOG = posts.join(events, events.c.id == posts.c.event_id).join(messages, messages.c.id == events.c.message_id)


def _among_few(webhook_id: int) -> ColumnElement[bool]:
    """Whether one of a few posts is the webhook's. A sum, which no index serves: else the planner would take the one of
    all posts of the webhook, however many these are."""
    return posts.c.webhook_id + 0 == webhook_id


async def posted(
    reader: Reader, webhook_id: int, before: int | None, limit: int, state: str | None = None
) -> tuple[dict[str, Any], ...]:
    """Newest first: one row a post, with what came of its last attempt; raises StoreUnavailable."""
    return await dicts(reader, _log_page(webhook_id, before, limit, state))


def _log_page(webhook_id: int, before: int | None, limit: int, state: str | None) -> Select[Any]:
    wanted = select(posts.c.id).limit(limit)
    if state in _FEW:
        wanted = wanted.where(_among_few(webhook_id), _FEW[state]).order_by((posts.c.id + 0).desc())
    else:
        wanted = wanted.where(posts.c.webhook_id == webhook_id).order_by(posts.c.id.desc())
        if state is not None:
            wanted = wanted.where(posts.c.state == state)
    if before is not None:
        wanted = wanted.where(posts.c.id < before if state not in _FEW else posts.c.id + 0 < before)
    found = wanted.subquery()
    return select(*_COLUMNS).select_from(_LOG.join(found, found.c.id == posts.c.id)).order_by(posts.c.id.desc())


async def post(reader: Reader, webhook_id: int, post_id: int) -> dict[str, Any] | None:
    """One post of the webhook with its ``attempts``, the oldest first; None when there is none."""
    query = select(*_COLUMNS).select_from(_LOG)
    found = await dicts(reader, query.where(posts.c.id == post_id, posts.c.webhook_id == webhook_id))
    if not found:
        return None
    tried = (
        select(
            post_attempts.c.started_at,
            post_attempts.c.duration,
            post_attempts.c.status,
            post_attempts.c.answer,
            post_attempts.c.digest,
            post_attempts.c.size,
        )
        .where(post_attempts.c.post_id == post_id)
        .order_by(post_attempts.c.id)
    )
    return found[0] | {"tries": await dicts(reader, tried)}


async def doing(reader: Reader, webhook_id: int) -> Doing:
    """Raises StoreUnavailable."""
    own = posts.c.webhook_id == webhook_id
    few = select(func.count()).select_from(posts).where(_among_few(webhook_id))
    ((waiting,),) = await reader.all(few.where(_FEW["waiting"]))
    ((failed,),) = await reader.all(few.where(_FEW["failed"]))
    last = await reader.all(
        select(post_attempts.c.started_at, post_attempts.c.status, post_attempts.c.answer)
        .join(posts, posts.c.id == post_attempts.c.post_id)
        .where(own)
        .order_by(posts.c.id.desc(), post_attempts.c.id.desc())
        .limit(1)
    )
    return Doing(waiting, failed, *(last[0] if last else (None, None, None)))


async def recent(reader: Reader, webhook_id: int) -> list[Outcome]:
    """What came of its latest posts, newest first; those that its conditions withheld are none of them.

    Raises StoreUnavailable.
    """
    return [Outcome(*row) for row in await reader.run(_RECENT, webhook=webhook_id)]


async def message_of(reader: Reader, event_ids: list[int]) -> list[int]:
    """The messages that these events are about, oldest first."""
    query = select(messages.c.id).join(events, events.c.message_id == messages.c.id).where(events.c.id.in_(event_ids))
    return [row[0] for row in await reader.all(query.distinct().order_by(messages.c.id))]


async def events_of(reader: Reader, webhook_id: int, post_ids: list[int]) -> list[int]:
    """The events of these posts, as far as they are this webhook's."""
    query = select(posts.c.event_id).where(posts.c.id.in_(post_ids), posts.c.webhook_id == webhook_id)
    return [row[0] for row in await reader.all(query.order_by(posts.c.event_id))]
