"""The delivery log of a webhook: what was posted to it, what it answered, and how it is doing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select, text

from relay.store.engine import Reader
from relay.store.history import dicts
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
)


async def posted(
    reader: Reader, webhook_id: int, before: int | None, limit: int, state: str | None = None
) -> tuple[dict[str, Any], ...]:
    """Newest first: one row a post, with what came of its last attempt; raises StoreUnavailable."""
    query = (
        select(*_COLUMNS)
        .join(events, events.c.id == posts.c.event_id)
        .where(posts.c.webhook_id == webhook_id)
        .order_by(posts.c.id.desc())
        .limit(limit)
    )
    if before is not None:
        query = query.where(posts.c.id < before)
    if state is not None:
        query = query.where(posts.c.state == state)
    return await dicts(reader, query)


async def post(reader: Reader, webhook_id: int, post_id: int) -> dict[str, Any] | None:
    """One post of the webhook with its ``attempts``, the oldest first; None when there is none."""
    query = select(*_COLUMNS).join(events, events.c.id == posts.c.event_id)
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
    # In text: a partial index serves only what the text of a condition proves to be in it.
    ((waiting,),) = await reader.all(select(func.count()).where(own, text("posts.state = 'waiting'")))
    ((failed,),) = await reader.all(select(func.count()).where(own, text("posts.state = 'failed'")))
    last = await reader.all(
        select(post_attempts.c.started_at, post_attempts.c.status, post_attempts.c.answer)
        .join(posts, posts.c.id == post_attempts.c.post_id)
        .where(own)
        .order_by(posts.c.id.desc(), post_attempts.c.id.desc())
        .limit(1)
    )
    return Doing(waiting, failed, *(last[0] if last else (None, None, None)))


async def message_of(reader: Reader, event_ids: list[int]) -> list[int]:
    """The messages that these events are about, oldest first."""
    query = select(messages.c.id).join(events, events.c.message_id == messages.c.id).where(events.c.id.in_(event_ids))
    return [row[0] for row in await reader.all(query.distinct().order_by(messages.c.id))]


async def events_of(reader: Reader, webhook_id: int, post_ids: list[int]) -> list[int]:
    """The events of these posts, as far as they are this webhook's."""
    query = select(posts.c.event_id).where(posts.c.id.in_(post_ids), posts.c.webhook_id == webhook_id)
    return [row[0] for row in await reader.all(query.order_by(posts.c.event_id))]
